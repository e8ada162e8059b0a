"""Run a host over pairs and tell what they look like at one site, or at several in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.hooks import EarlyStop, Recording, record
from vlm_edit.host import Host
from vlm_edit.measures.sizes import ActivationSizes
from vlm_edit.measuring.ahead import Cut, Forward, Prepared, Preparing, prepared, workers_of
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.pictures import side_needed
from vlm_edit.measuring.plan import PairsPlan
from vlm_edit.measuring.reading import Coded, Reading

STREAMS = ("image", "text")

_OF_A_JUDGE = 512  # pixels of an image's shorter side that encoders of examples are left at least


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold what some pairs look like at a site.

    Attributes:
        numbers: The pairs' numbers.
        hidden: [n, d] float32 per stream, at the site; over tokens, their mean.
        codes: [n, m] float32 per stream; over tokens, the mean of their codes' absolute values.
        normed: [n, d] float32 per stream, after the dictionary's norm; over tokens, their mean.
        images: The pairs' images, RGB, where they were asked for.
        digests: What each image shows, in 16 bytes.
        texts: The pairs' texts.
        shown: Which image each pair shows, as whole numbers; None where each shows its own.
        tokens: Per stream the activations of single tokens, where they were asked for: the codes
            where a pair is one token, else counted by size.
    """

    numbers: list[int]
    hidden: Mapping[str, Tensor]
    codes: Mapping[str, SparseCodes]
    normed: Mapping[str, Tensor] = field(default_factory=dict)
    images: Sequence[Image.Image] = ()
    digests: Sequence[bytes] = ()
    texts: Sequence[str] = ()
    shown: Sequence[int] | None = None
    tokens: Mapping[str, SparseCodes | ActivationSizes] = field(default_factory=dict)


class TokenBatch(NamedTuple):
    """Hold the activations of every token of some pairs.

    Attributes:
        number: Of the batch.
        readable: The numbers of its pairs whose image could be read.
        digests: What each of their images shows, in 16 bytes.
        rows: By stream [t, d] float32, and [t], which of ``readable`` each is of: None where
            nobody can tell. Empty where no image could be read.
    """

    number: int
    readable: list[int]
    digests: Sequence[bytes]
    rows: Mapping[str, tuple[Tensor, Tensor | None]]


@dataclass(eq=False)
class Reader:
    """Run a host over pairs, batch by batch, and tell what they look like at a site.

    Args:
        host: The host, with its processor.
        dictionary: Encodes the site's activations.
        site: The site's name.
        batch_size: Pairs per forward.
        progress: Whether to show a bar.
        sizes: Whether to count the activations of single tokens by size.
        beside: What else is read of the same forwards.
        workers: Processes that decode images and make inputs, ahead of the host; 0 for this one,
            None for as many as suit: none beside a host on the CPU.
        images: Whether batches bring the images.
        verb: What the bar says it does.

    Attributes:
        skipped: Pairs whose image could not be read so far, with the reason.
        truncated: Texts cut at the host's limit so far.
        first_prompt: What the host was asked first, read back from its ids; None before, and
            where it has no tokenizer.
    """

    host: Host
    dictionary: Encodes
    site: str = "joint"
    batch_size: int = 64
    progress: bool = True
    sizes: bool = False
    beside: Sequence[Reading] = ()
    workers: int | None = 0
    images: bool = False
    verb: str = "measure"
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    first_prompt: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Ask the host's tokenizer which ids are no words."""
        own = Reading(self.host, self.dictionary, self.site, self.sizes)
        self._readings = (own, *self.beside)

    def read(self, pairs: Pairs) -> Iterator[Batch]:
        """Read what the pairs look like, batch by batch.

        Raises:
            VlmEditError: An unknown site, another width than the dictionary's, no pairs, or not
                one image that can be read.
        """
        for _, batches in self.run(self._all(pairs), len(pairs)):
            yield from batches[0]
        self._expect_any(pairs)

    def run(
        self, cuts: Iterable[Cut], total: int | None = None
    ) -> Iterator[tuple[Cut, list[list[Batch]]]]:
        """Read cuts of pairs; ``skipped`` and ``truncated`` go on from what they are.

        Args:
            cuts: What is read together.
            total: Pairs in all of them, where it is known.

        Returns:
            A cut and, of each reading, its batches: none where no image of it can be read, and
            several of ``batch_size`` where an image has more captions than that.

        Raises:
            VlmEditError: As in ``read``.
        """
        for ready in self._prepared(cuts, total):
            several = len({item.shown for item in ready.cut.items}) < len(ready.cut.items)
            read = [self._run(forward, several) for forward in ready.forwards]
            by_reading = [list(some) for some in zip(*read, strict=True)]
            yield ready.cut, by_reading or [[] for _ in self._readings]

    def tokens(self, pairs: Pairs) -> Iterator[dict[str, Tensor]]:
        """Read activations of every token by stream, [t, d] float32 on the CPU, batch by batch.

        At a joint embedding a pair is one row of each stream, in the pairs' order.

        Args:
            pairs: To be read.

        Raises:
            VlmEditError: As in ``read``.
        """
        self._begin(pairs)
        for batch in self.tokens_numbered(pairs):
            if batch.readable:
                yield {stream: rows for stream, (rows, _) in batch.rows.items()}

    def tokens_numbered(self, pairs: Pairs, batches: range | None = None) -> Iterator[TokenBatch]:
        """Read activations of every token of some batches, also of those that give nothing.

        Args:
            pairs: To be read.
            batches: Numbers of the batches wanted; by default all. ``skipped`` and ``truncated``
                go on from what they are.

        Raises:
            VlmEditError: As in ``read``.
        """
        _expect_pairs(pairs)
        plan = PairsPlan.as_they_come(pairs, self.batch_size)
        units = range(plan.total) if batches is None else batches
        for ready in self._prepared(plan.cuts(units), plan.count(units)):
            number = ready.cut.place[0]
            if not ready.forwards:
                yield TokenBatch(number, [], [], {})
            for forward in ready.forwards:
                with self._recorded(forward) as recording:
                    rows = self._readings[0].flat(recording, len(forward.items))
                readable = [item.number for item in forward.items]
                yield TokenBatch(number, readable, forward.digests, rows)
        self._expect_any(pairs)

    def coded(self, pairs: Pairs) -> Iterator[tuple[Forward, dict[str, Coded]]]:
        """Read the codes of every token by stream, forward by forward.

        Args:
            pairs: To be read; those that cannot be are in ``skipped``.

        Raises:
            VlmEditError: As in ``read``, or nobody can tell which tokens are of which pair.
        """
        for ready in self._prepared(self._all(pairs), len(pairs)):
            for forward in ready.forwards:
                with self._recorded(forward) as recording:
                    coded = self._readings[0].coded(recording, len(forward.items))
                yield forward, coded
        self._expect_any(pairs)

    def forwards(self, pairs: Pairs) -> Iterator[Forward]:
        """Yield what the host takes, forward by forward, without running it.

        Args:
            pairs: To be read; those that cannot be are in ``skipped``.

        Raises:
            VlmEditError: Not one of them can be read.
        """
        for ready in self._prepared(self._all(pairs), len(pairs)):
            yield from ready.forwards
        self._expect_any(pairs)

    def _begin(self, pairs: Pairs) -> None:
        _expect_pairs(pairs)
        self.truncated = 0
        self.skipped.clear()

    def _all(self, pairs: Pairs) -> Iterator[Cut]:
        self._begin(pairs)
        plan = PairsPlan.as_they_come(pairs, self.batch_size)
        return plan.cuts(range(plan.total))

    def _prepared(self, cuts: Iterable[Cut], total: int | None) -> Iterator[Prepared]:
        """Yield what is ready for the host, after everything is checked."""
        for reading in self._readings:
            reading.expect()
        self.host.expect_eval("what is measured random")
        preparing = Preparing(self.host.maker, self.batch_size, self.least, self.images)
        workers = workers_of(self.host.device) if self.workers is None else self.workers
        with tqdm(
            total=total, desc=f"{self.verb} {self.site}", disable=None if self.progress else True
        ) as bar:
            for ready in prepared(cuts, preparing, workers):
                self.skipped += ready.broken
                bar.update(len(ready.cut))
                yield ready

    def _expect_any(self, pairs: Pairs) -> None:
        if len(self.skipped) == len(pairs):
            raise not_one(pairs.name, self.skipped)

    @property
    def least(self) -> int | None:
        """Return the side in pixels that an image needs; None where a function makes the inputs."""
        if callable(self.host.prompt):
            return None
        side = side_needed(self.host.processor)
        return max(side, _OF_A_JUDGE) if side is not None and self.images else side

    def _run(self, forward: Forward, several: bool) -> list[Batch]:
        numbers = [item.number for item in forward.items]
        shown = [item.shown for item in forward.items] if several else None
        texts = [item.text for item in forward.items]
        with self._recorded(forward) as recording:
            pooled = [reading.pooled(recording, len(numbers)) for reading in self._readings]
        rest = (forward.images, forward.digests, texts, shown)
        return [Batch(numbers, p.hidden, p.codes, p.normed, *rest, p.tokens) for p in pooled]

    @contextmanager
    def _recorded(self, forward: Forward) -> Iterator[Recording]:
        """Run the host as far as is read, and yield what passed."""
        inputs = self.host.receive(forward.inputs)
        self.truncated += inputs.cut
        if self.first_prompt is None:
            self.first_prompt = self.host.read_back(inputs.values)
        # Not inference_mode: what it yields must serve training too.
        with torch.no_grad(), record(self.host, *self._sites) as recording:
            self._early.run(inputs.values, len(forward.items))
            yield recording

    @cached_property
    def _sites(self) -> list[str]:
        return list(dict.fromkeys(reading.place for reading in self._readings))

    @cached_property
    def _early(self) -> EarlyStop:
        return EarlyStop(self.host, *self._sites)


def _expect_pairs(pairs: Pairs) -> None:
    if not len(pairs):
        raise BadArgument(f"{pairs.name}: no pairs, there is nothing to measure")


def not_one(name: str, skipped: Sequence[tuple[int, str]]) -> DamagedFile:
    """Return the error of pairs of which none can be read.

    Args:
        name: Where they come from.
        skipped: All of them, with the reasons.
    """
    return DamagedFile(
        f"{name}: not one of {len(skipped)} images can be read; the first: {skipped[0][1]}"
    )
