"""Reading a study off a host, as it is and edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.dictionaries import Dictionary
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Adapter, Host, Model
from vlm_edit.measuring import Pairs, Reader, one_sided
from vlm_edit.patches import Patch
from vlm_edit.tasks.bias.study import Questions, Study

JOINT = "joint"


@dataclass(frozen=True, eq=False)
class Door:
    """Where patches are put, and how a study is read with them there.

    Attributes:
        host: To attach patches to.
        options: For ``Patch.attach``.
        read: The study under whatever is attached.
    """

    host: Host
    options: dict[str, Any]
    read: Callable[[], Study]


@dataclass(frozen=True, eq=False)
class Bench:
    """A host, images and questions: reads studies, whatever is edited, and where.

    Patches of the joint embedding alone act on embeddings that are kept, as they would in the host;
    others run the host.

    Attributes:
        host: In eval mode, with its processor; it has a site ``joint``.
        plain: The study without any edit.
        batch_size: Pairs per forward.
        skipped: Pairs left out since their image could not be read, with the reason.

    Example:
        >>> from vlm_edit import Ablate, Host, Patch, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> asked = Questions(
        ...     "gender", {"man": ["a picture of man"], "woman": ["a picture of woman"]}
        ... )
        >>> bench = Bench.read(host, zoo.load_pairs().select(range(64)), asked)
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7, 12]))
        >>> bench.plain.read_out().n, bench.edited(patch).read_out().n
        (7, 7)
    """

    host: Host
    plain: Study
    batch_size: int = 64
    skipped: tuple[tuple[int, str], ...] = field(default=(), compare=False)

    @classmethod
    def read(
        cls,
        host: Host | Model,
        pairs: Pairs,
        questions: Questions,
        *,
        batch_size: int = 64,
    ) -> Bench:
        """Read the host once, as it is.

        Args:
            host: In eval mode, with its processor.
            pairs: Images with columns; those that cannot be opened are left out.
            questions: What is asked.
            batch_size: Pairs per forward.

        Raises:
            VlmEditError: A host without a joint embedding, a column or a group that is not there,
                or not one image that can be read.
        """
        host = Host.of(host)
        read = _Reading(host, questions, batch_size)
        reader, study = read(pairs)
        return cls(host, study, batch_size, tuple(reader.skipped))

    def edited(self, patch: Patch | None, strength: float = 1.0) -> Study:
        """Return the study with a patch attached.

        Args:
            patch: None for the study as it is.
            strength: As in ``Patch.attach``.
        """
        if patch is None:
            return self.plain
        door = self.door(patch)
        with patch.attach(door.host, strength=strength, **door.options):
            return door.read()

    def door(self, patch: Patch) -> Door:
        """Return where such a patch is put: on embeddings that are kept, or on the host."""
        if all(binding.site == JOINT for binding in patch.bindings):
            self.host.site(JOINT)
            model = _Kept(self.plain.image.shape[1]).eval()
            inside = Host.of(model, adapter=model.adapter)
            return Door(inside, {"check_host": False}, lambda: model.study(self.plain))
        read = _Reading(self.host, self.plain.questions, self.batch_size)
        return Door(self.host, {}, lambda: read(self.plain.pairs)[1])

    def part(self, numbers: Sequence[int]) -> Bench:
        """Return the same bench with some of the images; nothing is read anew."""
        return replace(self, plain=self.plain.part(numbers))


class _Kept(nn.Module):
    """A host that is nothing but its joint site, for embeddings that are at hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = nn.Identity(), nn.Identity()
        self.adapter = Adapter.of({JOINT: [("image", "image", width), ("text", "text", width)]})

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(image), self.text(text)

    @torch.no_grad()
    def study(self, plain: Study) -> Study:
        texts = torch.cat([plain.caption, plain.text])
        image, text = self(plain.image, texts)
        caption, rest = text.split([len(plain.caption), len(plain.text)])
        return replace(plain, image=image, caption=caption, text=rest)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What runs a host over images and texts."""

    host: Host
    questions: Questions
    batch_size: int

    def __call__(self, pairs: Pairs) -> tuple[Reader, Study]:
        first = self._reader()
        image, caption, numbers = self._embed(first, pairs)
        texts = one_sided(self.questions.texts(), "questions")
        text = self._embed(self._reader(), texts)[1]
        return first, Study(self.questions, pairs.select(numbers), image, caption, text)

    def _reader(self) -> Reader:
        site = self.host.site(JOINT)
        if set(site.streams) != {"image", "text"}:
            raise BadArgument(
                f"the joint embedding of {self.host.kind.__name__} is of "
                f"{', '.join(site.streams)} only: images and texts must be comparable"
            )
        return Reader(
            self.host,
            Dictionary.identity(site.width),
            JOINT,
            batch_size=self.batch_size,
            progress=False,
        )

    @staticmethod
    def _embed(reader: Reader, pairs: Pairs) -> tuple[Tensor, Tensor, list[int]]:
        batches = list(reader.read(pairs))
        image, text = (torch.cat([b.hidden[s].cpu() for b in batches]) for s in ("image", "text"))
        return image, text, [number for batch in batches for number in batch.numbers]
