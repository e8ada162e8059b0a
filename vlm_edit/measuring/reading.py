"""Tell what the pairs of a forward look like at one site, in the codes of one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_edit.dictionaries import Encodes, expect_model
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.hooks import Capture, Recording, Special, Tokens, chosen_in, meant
from vlm_edit.host import Host, Site, Tap, other_family
from vlm_edit.measures.sizes import ActivationSizes

_MOST_CODES = 1 << 26  # codes held at once while tokens are pooled: 256 MiB


class Pooled(NamedTuple):
    """What pairs look like at a site, by stream.

    Attributes:
        hidden: [n, d] float32; over tokens, their mean.
        codes: [n, m]; over tokens, the mean of their codes' absolute values.
        normed: [n, d] float32, after the dictionary's norm; over tokens, their mean.
        tokens: Activations of single tokens, where they were asked for: the codes where a pair is
            one token, else counted by size.
    """

    hidden: Mapping[str, Tensor]
    codes: Mapping[str, SparseCodes]
    normed: Mapping[str, Tensor]
    tokens: Mapping[str, SparseCodes | ActivationSizes]


class Coded(NamedTuple):
    """The codes of the tokens of some pairs, of one stream.

    Attributes:
        codes: [t, m].
        whose: [t] int64, the pair of each.
        ids: [t] int64, what the tokenizer calls each; None for images and where nobody can tell.
    """

    codes: SparseCodes
    whose: Tensor
    ids: Tensor | None


@dataclass(eq=False)
class Reading:
    """What is read at one site, with one dictionary.

    Args:
        host: Whose site it is.
        dictionary: Encodes the site's activations.
        site: The site's name; a transcoder's, what it writes.
        sizes: Whether to count the activations of single tokens by size.

    Attributes:
        place: The name of the site that is read: of a transcoder another.
    """

    host: Host
    dictionary: Encodes
    site: str = "joint"
    sizes: bool = False
    place: str = field(init=False)
    _special: Special | None = field(init=False, repr=False)
    _placed: dict[torch.device, Encodes] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Ask the host's tokenizer which ids are no words."""
        self.place = self.dictionary.read_at(self.site)
        self._special = Special.at(self.host, self.place)

    def expect(self) -> None:
        """Refuse a dictionary of another width or origin than the site.

        Raises:
            VlmEditError: It is one.
        """
        self.host.expect_width(self.host.site(self.place), self.dictionary.width)
        self.host.site(self.site)
        trained_on = self.dictionary.info.get("model_name")
        self.dictionary.expect_site(self.site)
        expect_model(trained_on, self.host.name, other_family(self.host.model, trained_on))

    def pooled(self, recording: Recording, count: int) -> Pooled:
        """Return what the pairs of the last forward look like, a row a pair.

        Args:
            recording: Of that forward.
            count: How many pairs it had.

        Raises:
            VlmEditError: Another number of rows passed, or nobody can tell which are whose.
        """
        site = self.host.site(self.place)
        tokens: dict[str, SparseCodes | ActivationSizes] = {}
        outputs = {s: self._pool(recording, site, s, tokens) for s in site.streams}
        for stream, (hidden, _, _) in outputs.items():
            if len(hidden) != count:
                raise CannotKnow(
                    f"{count} pairs give {len(hidden)} rows of the {stream} stream at site "
                    f"{site.name!r}: this site cannot be measured pair by pair"
                )
        return Pooled(
            {stream: hidden for stream, (hidden, _, _) in outputs.items()},
            {stream: codes for stream, (_, codes, _) in outputs.items()},
            {stream: normed for stream, (_, _, normed) in outputs.items()},
            tokens,
        )

    def flat(self, recording: Recording, count: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return the activations [t, d] of each stream, a row a token, on the CPU.

        Args:
            recording: Of a forward.
            count: How many pairs it had.

        Returns:
            By stream also [t], the place of each row's pair; None where nobody can tell.
        """
        site, flat = self.host.site(self.place), {}
        for stream in site.streams:
            hidden, whose, _ = self._rows(recording, site, stream, count)
            flat[stream] = hidden.cpu(), whose
        return flat

    def coded(self, recording: Recording, count: int) -> dict[str, Coded]:
        """Return the codes of each stream's tokens, on the CPU.

        Args:
            recording: Of a forward.
            count: How many pairs it had.

        Raises:
            CannotKnow: Nobody can tell which tokens are of which pair.
        """
        site, coded = self.host.site(self.place), {}
        for stream in site.streams:
            hidden, whose, ids = self._rows(recording, site, stream, count)
            if whose is None:
                raise CannotKnow(
                    f"{len(hidden)} rows of the {stream} stream pass for {count} pairs at site "
                    f"{site.name!r}: nobody can tell which is of which pair"
                )
            dictionary = self._on(hidden.device)
            chunk = max(1, _MOST_CODES // dictionary.n_features)
            parts = [dictionary.encode_sparse(p, stream).to("cpu") for p in hidden.split(chunk)]
            coded[stream] = Coded(SparseCodes.cat(parts), whose, None if ids is None else ids.cpu())
        return coded

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

    def _rows(
        self, recording: Recording, site: Site, stream: str, pairs: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the tokens [t, d] of a stream, the pair of each and its id; None if unknown."""
        tap, capture = self._passed(recording, site, stream)
        hidden = capture.hidden.float()
        hidden = hidden.flatten(1, -2) if hidden.ndim > 3 else hidden
        tokens = capture.tokens.at(hidden)
        count, whose, ids = len(hidden), torch.arange(len(hidden)), None
        if tokens.in_rows:
            mask = self._mask(tokens, site, stream)
            count, whose, hidden = len(hidden), mask.nonzero()[:, 0], hidden[mask]
            there = tokens.call.ids
            if stream == "text" and there is not None and there.shape == mask.shape:
                ids = there.to(mask.device)[mask]
        elif tap.stream == "mixed":
            tokens.select(stream, self._special)  # refuses: nobody can tell its rows apart
        else:
            with suppress(CannotKnow):
                images = tokens.requests
                whose = whose if images is None else images
                count = int(whose.max()) + 1
        _expect_finite(hidden, site)
        return hidden, whose.cpu() if count == pairs else None, ids

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
            mask = self._mask(tokens, site, stream)
            count, row, states = len(hidden), mask.nonzero()[:, 0], hidden[mask]
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

    def _mask(self, tokens: Tokens, site: Site, stream: str) -> Tensor:
        """Mark the stream's tokens in rows of which each has some."""
        mask = tokens.select(stream, self._special)
        if mask is None:
            mask = tokens.fill(True)
        if not bool(mask.any(1).all()):
            raise BadArgument(
                f"a pair has no {stream} tokens at site {site.name!r}: the host's inputs must "
                "hold image and text of every pair"
            )
        return mask

    def _on(self, device: torch.device) -> Encodes:
        if device not in self._placed:
            self._placed[device] = self.dictionary.to(device)
        return self._placed[device]


def _expect_finite(hidden: Tensor, site: Site) -> None:
    if not bool(hidden.isfinite().all()):
        raise VlmEditError(
            f"the activations at site {site.name!r} hold NaN or infinity: a host in float16 may "
            "overflow; load it in float32 or bfloat16"
        )
