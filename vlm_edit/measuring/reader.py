"""Run a host over pairs and tell what they look like at a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from vlm_edit.dictionaries import Encodes, expect_origin
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, CannotKnow, DamagedFile, VlmEditError
from vlm_edit.hooks import Capture, Recording, Special, Tokens, chosen_in, meant, record
from vlm_edit.host import Host, Site, Tap, other_family
from vlm_edit.measures.sizes import ActivationSizes
from vlm_edit.measuring.order import Order
from vlm_edit.measuring.pairs import Pairs

STREAMS = ("image", "text")

_MOST_CODES = 1 << 26  # codes held at once while tokens are pooled: 256 MiB


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold what some pairs look like at a site.

    Attributes:
        numbers: The pairs' numbers.
        hidden: [n, d] float32 per stream, at the site; over tokens, their mean.
        codes: [n, m] float32 per stream; over tokens, the mean of their codes' absolute values.
        normed: [n, d] float32 per stream, after the dictionary's norm; over tokens, their mean.
        images: The pairs' images, RGB.
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
    texts: Sequence[str] = ()
    shown: Sequence[int] | None = None
    tokens: Mapping[str, SparseCodes | ActivationSizes] = field(default_factory=dict)


class TokenBatch(NamedTuple):
    """Hold the activations of every token of some pairs.

    Attributes:
        number: Of the batch.
        readable: The numbers of its pairs whose image could be read.
        images: Theirs, RGB.
        rows: By stream [t, d] float32, and [t], which of ``readable`` each is of: None where
            nobody can tell. Empty where no image could be read.
    """

    number: int
    readable: list[int]
    images: Sequence[Image.Image]
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
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    first_prompt: str | None = field(default=None, init=False)
    _special: Special | None = field(init=False, repr=False)
    _placed: dict[torch.device, Encodes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Ask the host's tokenizer which ids are no words."""
        self._special = Special.at(self.host, self.site)

    def read(self, pairs: Pairs) -> Iterator[Batch]:
        """Read what the pairs look like, batch by batch.

        Raises:
            VlmEditError: An unknown site, another width than the dictionary's, no pairs, or not
                one image that can be read.
        """
        self.truncated = 0
        self.skipped.clear()
        for _, read in self.read_numbered(pairs):
            yield from read

    def read_numbered(
        self, pairs: Pairs, batches: range | None = None, order: Order | None = None
    ) -> Iterator[tuple[int, list[Batch]]]:
        """Read some batches with their numbers.

        Args:
            pairs: To be read.
            batches: Numbers of the batches wanted; by default all. ``skipped`` and ``truncated``
                go on from what they are.
            order: Which pairs are in which batch; by default their own order, without asking
                whether images come again.

        Returns:
            A number, and what was read: nothing where no image of it can be read, and several
            batches of ``batch_size`` where an image has more captions than that.

        Raises:
            VlmEditError: As in ``read``.
        """
        site = self.host.site(self.site)
        shown = order.images.tolist() if order is not None and order.repeated else None
        for number, images, readable in self._batches(site, pairs, batches, order):
            yield (
                number,
                [
                    self._run(site, images[part], readable[part], pairs.texts, shown)
                    for part in _parts(len(readable), self.batch_size)
                ],
            )

    def tokens(self, pairs: Pairs) -> Iterator[dict[str, Tensor]]:
        """Read activations of every token by stream, [t, d] float32 on the CPU, batch by batch.

        At a joint embedding a pair is one row of each stream, in the pairs' order.

        Args:
            pairs: To be read.

        Raises:
            VlmEditError: As in ``read``.
        """
        self.truncated = 0
        self.skipped.clear()
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
        site = self.host.site(self.site)
        for number, images, readable in self._batches(site, pairs, batches):
            if not readable:
                yield TokenBatch(number, [], [], {})
                continue
            inputs = self._inputs(images, [pairs.texts[n] for n in readable])
            with torch.no_grad(), record(self.host, site.name) as recording:
                self.host.run(inputs)
                rows = {s: self._flat(recording, site, s, len(readable)) for s in site.streams}
            yield TokenBatch(number, readable, images, rows)

    def _batches(
        self,
        site: Site,
        pairs: Pairs,
        batches: range | None = None,
        order: Order | None = None,
    ) -> Iterator[tuple[int, list[Image.Image], list[int]]]:
        """Yield number, images and pairs' numbers of each batch, after everything is checked."""
        self.host.expect_width(site, self.dictionary.width)
        info = self.dictionary.info
        other = other_family(self.host.model, info.get("model_name"))
        expect_origin(info, self.site, self.host.name, other)
        self.host.expect_eval("what is measured random")
        if not len(pairs):
            raise BadArgument(f"{pairs.name}: no pairs, there is nothing to measure")
        ranges = list(pairs.batches(self.batch_size)) if order is None else order.batches
        batches = range(len(ranges)) if batches is None else batches
        total = sum(len(ranges[i]) for i in batches)
        count = 0
        with tqdm(
            total=total, desc=f"measure {self.site}", disable=None if self.progress else True
        ) as bar:
            for number in batches:
                images, readable = self._open(pairs, ranges[number])
                bar.update(len(ranges[number]))
                count += len(readable)
                yield number, images, readable
        if not count and total == len(pairs):
            raise DamagedFile(
                f"{pairs.name}: not one of {len(pairs)} images can be read; the first: "
                f"{self.skipped[0][1]}"
            )

    def _open(self, pairs: Pairs, numbers: Sequence[int]) -> tuple[list[Image.Image], list[int]]:
        images, readable = [], []
        for i in numbers:
            try:
                images.append(pairs.open(i))
                readable.append(i)
            except VlmEditError as error:
                self.skipped.append((i, str(error)))
        return images, readable

    def _run(
        self,
        site: Site,
        images: list[Image.Image],
        numbers: list[int],
        all_texts: Sequence[str],
        shown: Sequence[int] | None,
    ) -> Batch:
        texts = [all_texts[n] for n in numbers]
        inputs = self._inputs(images, texts)
        with (
            torch.no_grad(),  # not inference_mode: what it yields must serve training too
            record(self.host, site.name) as recording,
        ):
            self.host.run(inputs)
            tokens: dict[str, SparseCodes | ActivationSizes] = {}
            outputs = {s: self._pool(recording, site, s, tokens) for s in site.streams}
        for stream, (hidden, _, _) in outputs.items():
            if len(hidden) != len(numbers):
                raise CannotKnow(
                    f"{len(numbers)} pairs give {len(hidden)} rows of the {stream} stream at site "
                    f"{site.name!r}: this site cannot be measured pair by pair"
                )
        return Batch(
            numbers,
            {stream: hidden for stream, (hidden, _, _) in outputs.items()},
            {stream: codes for stream, (_, codes, _) in outputs.items()},
            {stream: normed for stream, (_, _, normed) in outputs.items()},
            images,
            texts,
            None if shown is None else [shown[n] for n in numbers],
            tokens,
        )

    def _inputs(self, images: list[Image.Image], texts: list[str]) -> Mapping[str, Any]:
        inputs = self.host.inputs(images, texts)
        self.truncated += inputs.cut
        if self.first_prompt is None:
            self.first_prompt = self.host.read_back(inputs.values)
        return inputs.values

    def _passed(self, recording: Recording, site: Site, stream: str) -> tuple[Tap, Capture]:
        """Return what of a stream passed last, and where: in a pipeline, of the prompts."""
        tap = next(tap for tap in site.taps if tap.stream in (stream, "mixed"))
        chosen = chosen_in(self.host, {})
        if not chosen:
            return tap, recording.last(site.name, tap.stream)
        mixed = False
        for capture in reversed(recording.captures):
            if (capture.site, capture.tokens.stream) == (site.name, tap.stream):
                try:
                    rows = torch.as_tensor(meant(chosen, capture.tokens.call, site.name))
                except CannotKnow:
                    rows = torch.tensor([True, False])
                if bool(rows.all()):
                    return tap, capture
                mixed = mixed or bool(rows.any())
        if mixed:
            what = (
                "negative prompts pass too, or may: have the prompt function call the pipeline "
                "without guidance"
            )
        elif self.host.prompt is None:
            what = (
                "nothing of the prompts passes: give the function that makes the pipeline's whole "
                "call, Host.of(pipeline, prompt=function)"
            )
        else:
            what = "nothing of the prompts passed in the call that the prompt function makes"
        raise CannotKnow(f"at site {site.name!r} {what}")

    def _flat(
        self, recording: Recording, site: Site, stream: str, pairs: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the activations [t, d] of a stream, a row a token, and the pair of each, [t]."""
        tap, capture = self._passed(recording, site, stream)
        hidden = capture.hidden.float()
        hidden = hidden.flatten(1, -2) if hidden.ndim > 3 else hidden
        tokens = capture.tokens.at(hidden)
        count, whose = len(hidden), torch.arange(len(hidden))
        if tokens.in_rows:
            count, whose, hidden = self._tokens(tokens, hidden, site, stream)
        elif tap.stream == "mixed":
            tokens.select(stream, self._special)  # refuses: nobody can tell its rows apart
        else:
            with suppress(CannotKnow):
                images = tokens.requests
                whose = whose if images is None else images
                count = int(whose.max()) + 1
        _expect_finite(hidden, site)
        return hidden.cpu(), whose.cpu() if count == pairs else None

    def _pool(
        self,
        recording: Recording,
        site: Site,
        stream: str,
        noted: dict[str, SparseCodes | ActivationSizes],
    ) -> tuple[Tensor, SparseCodes, Tensor]:
        """Return activations, codes and normed activations, a row a pair; note sizes of tokens."""
        tap, capture = self._passed(recording, site, stream)
        hidden = capture.hidden.float()
        dictionary = self._on(hidden.device)
        hidden = hidden.flatten(1, -2) if hidden.ndim > 3 else hidden  # a map of features
        tokens = capture.tokens.at(hidden)
        images = tokens.requests
        if not tokens.in_rows and images is None:
            tokens.select(stream, self._special)  # refuses where nobody can tell the rows apart
            _expect_finite(hidden, site)
            single = dictionary.encode_sparse(hidden, stream)
            noted |= {stream: single} if self.sizes else {}
            return hidden, single, dictionary.normalise(hidden, stream)
        if images is not None:
            count, row, states = int(images.max()) + 1, images, hidden
        else:
            count, row, states = self._tokens(tokens, hidden, site, stream)
        _expect_finite(states, site)
        sizes = row.bincount(minlength=count).unsqueeze(1)

        def mean(values: Tensor) -> Tensor:
            return values.new_zeros(count, values.shape[1]).index_add_(0, row, values) / sizes

        counted = ActivationSizes(self.dictionary.n_features) if self.sizes else None
        codes = states.new_zeros(count, self.dictionary.n_features)
        chunk = max(1, _MOST_CODES // self.dictionary.n_features)
        for some, rows in zip(states.split(chunk), row.split(chunk), strict=True):
            part = dictionary.encode(some, stream).abs()
            codes.index_add_(0, rows, part)
            if counted is not None:
                counted.update(part)
        noted |= {} if counted is None else {stream: counted}
        return (
            mean(states),
            SparseCodes.of(codes / sizes),
            mean(dictionary.normalise(states, stream)),
        )

    def _tokens(
        self, tokens: Tokens, hidden: Tensor, site: Site, stream: str
    ) -> tuple[int, Tensor, Tensor]:
        """Return the number of rows, the row of each of the stream's tokens, and the tokens."""
        mask = tokens.select(stream, self._special)
        if mask is None:
            mask = tokens.fill(True)
        if not bool(mask.any(1).all()):
            raise BadArgument(
                f"a pair has no {stream} tokens at site {site.name!r}: the host's inputs must "
                "hold image and text of every pair"
            )
        return len(hidden), mask.nonzero()[:, 0], hidden[mask]

    def _on(self, device: torch.device) -> Encodes:
        if device not in self._placed:
            self._placed[device] = self.dictionary.to(device)
        return self._placed[device]


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]


def _expect_finite(hidden: Tensor, site: Site) -> None:
    if not bool(hidden.isfinite().all()):
        raise VlmEditError(
            f"the activations at site {site.name!r} hold NaN or infinity: a host in float16 may "
            "overflow; load it in float32 or bfloat16"
        )
