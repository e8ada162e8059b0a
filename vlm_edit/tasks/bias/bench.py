"""Reading a study off a host, as it is and edited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.dictionaries import Dictionary
from vlm_edit.errors import VlmEditError
from vlm_edit.measurement import Prepare, Reader
from vlm_edit.pairs import Pairs
from vlm_edit.patches import Patch
from vlm_edit.selection.concepts import as_pairs
from vlm_edit.sites import Adapter, find_site
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

    host: nn.Module
    options: dict[str, Any]
    read: Callable[[], Study]


@dataclass(frozen=True, eq=False)
class Bench:
    """A host, images and questions: reads studies, whatever is edited, and where.

    Patches of the joint embedding alone act on embeddings that are kept, as they would in the host;
    others run the host.

    Attributes:
        model: The host, in eval mode; it has a site ``joint``.
        processor: Its processor.
        plain: The study without any edit.
        adapter: The host's adapter; by default found.
        prepare: As in ``vlm_edit.measurement.Reader``.
        batch_size: Pairs per forward.
        skipped: Pairs left out since their image could not be read, with the reason.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> host, processor = zoo.load_host()
        >>> asked = Questions(
        ...     "gender", {"man": ["a picture of man"], "woman": ["a picture of woman"]}
        ... )
        >>> bench = Bench.read(host, processor, zoo.load_pairs().select(range(64)), asked)
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7, 12]))
        >>> bench.plain.read_out().n, bench.edited(patch).read_out().n
        (7, 7)
    """

    model: nn.Module
    processor: Any
    plain: Study
    adapter: Adapter | None = None
    prepare: Prepare | None = None
    batch_size: int = 64
    skipped: tuple[tuple[int, str], ...] = field(default=(), compare=False)

    @classmethod
    def read(
        cls,
        model: nn.Module,
        processor: Any,
        pairs: Pairs,
        questions: Questions,
        *,
        adapter: Adapter | None = None,
        prepare: Prepare | None = None,
        batch_size: int = 64,
    ) -> Bench:
        """Read the host once, as it is.

        Args:
            model: The host, in eval mode.
            processor: Its processor.
            pairs: Images with columns; those that cannot be opened are left out.
            questions: What is asked.
            adapter: The host's adapter; by default found.
            prepare: As in ``vlm_edit.measurement.Reader``.
            batch_size: Pairs per forward.

        Raises:
            VlmEditError: A host without a joint embedding, a column or a group that is not there,
                or not one image that can be read.
        """
        read = _Reading(model, processor, questions, adapter, prepare, batch_size)
        kept, study = read(pairs)
        skipped = tuple(kept.skipped)
        return cls(model, processor, study, adapter, prepare, batch_size, skipped)

    def edited(self, patch: Patch | None, strength: float = 1.0) -> Study:
        """The study with a patch attached.

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
        """Where such a patch is put: on embeddings that are kept, or on the host."""
        if all(binding.site == JOINT for binding in patch.bindings):
            find_site(self.model, JOINT, self.adapter)
            kept = _Kept(self.plain.image.shape[1]).eval()
            options = {"adapter": kept.adapter, "check_host": False}
            return Door(kept, options, lambda: kept.study(self.plain))
        read = _Reading(
            *(self.model, self.processor, self.plain.questions),
            *(self.adapter, self.prepare, self.batch_size),
        )
        return Door(
            self.model,
            {} if self.adapter is None else {"adapter": self.adapter},
            lambda: read(self.plain.pairs)[1],
        )

    def part(self, numbers: Sequence[int]) -> Bench:
        """The same bench with some of the images; nothing is read anew."""
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
    """Runs a host over images and texts."""

    model: nn.Module
    processor: Any
    questions: Questions
    adapter: Adapter | None
    prepare: Prepare | None
    batch_size: int

    def __call__(self, pairs: Pairs) -> tuple[Reader, Study]:
        first = self._reader()
        image, caption, numbers = self._embed(first, pairs)
        texts, _ = as_pairs(self.questions.texts(), "questions")
        text = self._embed(self._reader(), texts)[1]
        return first, Study(self.questions, pairs.select(numbers), image, caption, text)

    def _reader(self) -> Reader:
        site = find_site(self.model, JOINT, self.adapter)
        if set(site.streams) != {"image", "text"}:
            raise VlmEditError(
                f"the joint embedding of {type(self.model).__name__} is of "
                f"{', '.join(site.streams)} only: images and texts must be comparable"
            )
        return Reader(
            *(self.model, self.processor, Dictionary.identity(site.width), JOINT, self.adapter),
            prepare=self.prepare,
            batch_size=self.batch_size,
            progress=False,
        )

    @staticmethod
    def _embed(reader: Reader, pairs: Pairs) -> tuple[Tensor, Tensor, list[int]]:
        batches = list(reader.read(pairs))
        image, text = (torch.cat([b.hidden[s].cpu() for b in batches]) for s in ("image", "text"))
        return image, text, [number for batch in batches for number in batch.numbers]
