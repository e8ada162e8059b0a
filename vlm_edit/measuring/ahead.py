"""Make a host's inputs of pairs ahead of it, in other processes if asked: decode, then prepare."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_start_method
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.host import InputMaker, Inputs
from vlm_edit.measuring.gathering import Source
from vlm_edit.measuring.pictures import opened
from vlm_edit.measuring.sources import image_digest

_AHEAD = 2  # batches that each worker is ahead
_MOST_WORKERS = 8


class Item(NamedTuple):
    """One pair that is to be read.

    Attributes:
        number: Which it is among all.
        image: As its source has it.
        name: What messages call the image.
        text: Its text.
        shown: The number of the first pair with its image.
    """

    number: int
    image: Source
    name: str
    text: str
    shown: int


class Cut(NamedTuple):
    """Pairs that are read together, all captions of an image among them.

    Attributes:
        place: The number of the unit they are of, and theirs in it, both from 0.
        items: The pairs.
        broken: Numbers of pairs that are none, with the reason.
        stamps: Of each image's file, as it was before it was read.
    """

    place: tuple[int, int]
    items: Sequence[Item]
    broken: Sequence[tuple[int, str]] = ()
    stamps: Sequence[int] = ()

    def __len__(self) -> int:
        """Return the number of pairs, broken ones too."""
        return len(self.items) + len(self.broken)


@dataclass(frozen=True, eq=False)
class Forward:
    """What one forward takes.

    Attributes:
        items: The pairs whose image opened.
        inputs: Of the host, not on its device yet.
        digests: What each image shows, in 16 bytes.
        sizes: Width and height of each image as the processor was given it, in pixels.
        images: The images, where they were asked for.
    """

    items: Sequence[Item]
    inputs: Inputs
    digests: Sequence[bytes]
    sizes: Sequence[tuple[int, int]] = ()
    images: Sequence[Image.Image] = ()


@dataclass(frozen=True, eq=False)
class Prepared:
    """A cut that is ready for the host.

    Attributes:
        cut: What was asked.
        forwards: In turn, of ``size`` pairs at most.
        broken: Numbers of pairs left out, with the reason.
    """

    cut: Cut
    forwards: Sequence[Forward]
    broken: Sequence[tuple[int, str]]


@dataclass(eq=False)
class Preparing(Dataset[Prepared]):
    """Decode images and make inputs of cuts.

    Args:
        maker: Of the host's inputs.
        size: Pairs of a forward.
        least: Pixels of an image's shorter side that are needed; None for all.
        images: Whether the images are asked for too.
    """

    maker: InputMaker
    size: int
    least: int | None = None
    images: bool = False

    def __getitem__(self, cut: Cut) -> Prepared:
        """Return a cut that is ready."""
        items: list[Item] = []
        images: list[Image.Image] = []
        broken = list(cut.broken)
        for item in cut.items:
            try:
                images.append(opened(item.image, item.name, self.least))
                items.append(item)
            except DamagedFile as error:
                broken.append((item.number, str(error)))
        parts = [slice(i, i + self.size) for i in range(0, len(items), self.size)]
        return Prepared(cut, [self._forward(items[part], images[part]) for part in parts], broken)

    def _forward(self, items: Sequence[Item], images: list[Image.Image]) -> Forward:
        made = self.maker.inputs(images, [item.text for item in items], False)
        plain = Inputs(dict(made.values), made.cut, made.caption)
        digests = [image_digest(image) for image in images]
        sizes = [image.size for image in images]
        return Forward(items, plain, digests, sizes, images if self.images else ())


def prepared(cuts: Iterable[Cut], preparing: Preparing, workers: int) -> Iterator[Prepared]:
    """Yield cuts that are ready, in their order, whatever the number of workers.

    Args:
        cuts: What is to be read; taken a few ahead, in this process.
        preparing: How.
        workers: Processes that do it; 0 for this one.

    Raises:
        BadArgument: A number of workers below 0.
    """
    if workers < 0:
        raise BadArgument(f"workers is {workers}; give 0 for none, or how many processes read")
    if not workers:
        return map(preparing.__getitem__, cuts)
    _expect_to_travel(preparing)
    loader = DataLoader(
        preparing,
        sampler=cuts,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        worker_init_fn=_begin,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it draws from everybody's
    )
    return iter(loader)


def _expect_to_travel(preparing: Preparing) -> None:
    """Refuse what processes that are not forked could not be sent."""
    if get_start_method() == "fork":
        return
    try:
        ForkingPickler.dumps(preparing)
    except Exception as error:
        raise BadArgument(
            f"processor and prompt cannot be sent to worker processes ({error}): define the prompt "
            "function at the top of a module, or read with workers=0"
        ) from error


def _begin(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else they warn of being forked


def _as_it_is(value: Any) -> Any:
    return value


def workers_of(device: torch.device) -> int:
    """Return how many processes read where nobody says: none beside a host on the CPU."""
    if device.type == "cpu":
        return 0
    share = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MOST_WORKERS, (cores or 1) // share - 1))
