"""How well a dictionary fits activations, and what is probably wrong where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.dictionaries.norms import norm_names, norm_of
from vlm_edit.ground.errors import BadArgument, WrongHost
from vlm_edit.ground.modality import Mixed, Modality, part_of

if TYPE_CHECKING:
    from vlm_edit.dictionaries.dictionary import Dictionary

GOOD, POOR = 0.9, 0.3  # explained variance: nothing else is tried; something must be wrong
_CODES = 1 << 24  # codes held at once
_WORK = 1 << 36  # products of one trial


@dataclass(frozen=True)
class Check:
    """How well a dictionary fits some activations.

    Attributes:
        explained_variance: As ``Dictionary.explained_variance``.
        l0: Active features of an activation, on average.
        dead: Share of features active in none of the activations.
        n: Number of activations.
        warnings: What looks wrong, the likely cause first; empty where nothing does.
    """

    explained_variance: float
    l0: float
    dead: float
    n: int
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return three lines at most, and one more for each warning."""
        summary = (
            f"explained variance {self.explained_variance:.3f}, L0 {self.l0:.1f}, "
            f"{self.dead:.1%} of features dead ({self.n} activations)"
        )
        return "\n".join([summary, *(f"warning: {text}" for text in self.warnings)])


@dataclass(frozen=True, eq=False)
class _Batch:
    """Activations [n, d], and of which stream."""

    x: Tensor
    stream: Modality | None

    def some(self, count: int) -> _Batch:
        """Return at most so many of them, evenly spread."""
        n = len(self.x)
        if n <= count:
            return self
        index = torch.arange(count, device=self.x.device) * n // count
        return _Batch(self.x[index], part_of(self.stream, index))

    def split(self, rows: int) -> Iterator[_Batch]:
        """Yield so many of them at a time."""
        for begin in range(0, len(self.x), rows):
            part = slice(begin, begin + rows)
            yield _Batch(self.x[part], part_of(self.stream, part))

    def means(self, values: Tensor) -> dict[str, Tensor]:
        """Return the mean of something by stream."""
        if not isinstance(self.stream, Mixed):
            return {self.stream or "image": values.mean(0)}
        masks = {name: self.stream.at(name) for name in self.stream.names}
        return {name: values[mask].mean(0) for name, mask in masks.items() if bool(mask.any())}


@dataclass(frozen=True, eq=False)
class _Trial:
    """Another way to read a dictionary, or to prepare activations for it.

    Attributes:
        what: Completes "with ...".
        cause: What it would mean.
        encoder: The encoder that is tried.
        batch: The activations, with another stream where that is tried.
        mean: [d] or a number, subtracted first.
        scale: [d] or a number, divided by then; both are put back to compare.
        decoder: That is tried; None for the dictionary's own.
    """

    what: str
    cause: str
    encoder: Encoder
    batch: _Batch
    mean: Tensor | float = 0.0
    scale: Tensor | float = 1.0
    decoder: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Found:
    """What a trial gave."""

    explained: float
    l0: float
    active: Tensor = field(repr=False)


def check(
    dictionary: Dictionary, x: Tensor, stream: Modality | None = None, trained_here: bool = False
) -> Check:
    """Check a dictionary as ``Dictionary.check`` does, without Python's warnings."""
    batch = _flat(dictionary, x, stream)
    own = _Trial("", "", dictionary.encoder, batch)
    outcome = _try(dictionary, own)
    dead = 1 - float(outcome.active.float().mean())
    report = Check(outcome.explained, outcome.l0, dead, len(batch.x))
    if dictionary.encoder.activator.linear:
        return report
    warnings = [*_codes_look_wrong(dictionary, report)]
    # A contrastive head keeps what both sides of a pair share, and need not explain the rest.
    if not outcome.explained >= GOOD and dictionary.info.get("kind") != "ncl":
        if trained_here:
            cause = _undertrained(outcome.explained)
        else:
            cause = _cause(dictionary, batch, outcome.explained)
        warnings = [*([cause] if cause else []), *warnings]
    return replace(report, warnings=tuple(warnings))


def _flat(dictionary: Dictionary, x: Tensor, stream: Modality | None) -> _Batch:
    if x.ndim < 1 or x.shape[-1] != dictionary.width:
        raise WrongHost(
            f"activations of shape {tuple(x.shape)} meet a dictionary of width "
            f"{dictionary.width}: is it another layer's or another host's?"
        )
    if isinstance(stream, Mixed) and stream.shape != x.shape[:-1]:
        raise BadArgument(
            f"the mask of image tokens has shape {tuple(stream.shape)}, expected "
            f"{tuple(x.shape[:-1])}"
        )
    flat = x.detach().reshape(-1, x.shape[-1]).float()
    if len(flat) < 2 or not bool(flat.isfinite().all()) or not bool((flat != flat[0]).any()):
        raise BadArgument(
            f"a check needs at least two activations that differ, all finite; got {len(flat)}: "
            "some hundreds tell more"
        )
    return _Batch(flat, stream.flatten() if isinstance(stream, Mixed) else stream)


@torch.no_grad()
def _try(dictionary: Dictionary, trial: _Trial) -> _Found:
    """Measure explained variance, L0, and which features are active, some rows at a time."""
    m = dictionary.n_features
    candidate = replace(
        dictionary,
        encoder=trial.encoder,
        decoder=dictionary.decoder if trial.decoder is None else trial.decoder,
    )
    active = torch.zeros(m, dtype=torch.bool, device=trial.batch.x.device)
    error = count = 0.0
    total = torch.zeros(dictionary.width, dtype=torch.float64, device=trial.batch.x.device)
    squares, shift = 0.0, None
    for part in trial.batch.split(max(1, _CODES // m)):
        z = (part.x - trial.mean) / trial.scale
        normed = trial.encoder.normaliser.target(z)
        if trial.encoder.centers:
            normed = normed - trial.encoder.center(part.stream)
        codes = candidate.encode(z, part.stream)
        active |= (codes != 0).any(0)
        count += float((codes != 0).sum())
        error += float(((normed - candidate.decode(codes)) * trial.scale).double().square().sum())
        values = (normed * trial.scale).double()
        shift = values.mean(0) if shift is None else shift  # keeps the digits of large means
        total += (values - shift).sum(0)
        squares += float((values - shift).square().sum())
    n = len(trial.batch.x)
    variance = squares - float(total.square().sum()) / n
    explained = 1 - error / variance if variance > 0 else float("-inf")
    return _Found(explained, count / n, active)


def _codes_look_wrong(dictionary: Dictionary, found: Check) -> Iterator[str]:
    """Yield what codes alone show to be wrong."""
    encoder, m = dictionary.encoder, dictionary.n_features
    threshold, k = encoder.threshold, str(dictionary.info.get("k", ""))
    if (
        threshold is not None
        and bool((threshold < 0).all())
        and bool((threshold == threshold[0]).all())
    ):
        yield (
            f"every threshold is {float(threshold[0]):g}: it was never calibrated, and every "
            "feature above 0 is active; load the dictionary with activation='topk', or calibrate it"
        )
    if not found.l0:
        yield f"no feature is active on any of {found.n} activations"
        return
    if found.l0 > m / 2:
        yield (
            f"L0 is {found.l0:.1f} of {m} features: codes are not sparse, as when a threshold is "
            "lost or activations are too large"
        )
    expected = encoder.k if encoder.k is not None else int(k) if k.isdecimal() else None
    if expected is not None and not expected / 3 <= found.l0 <= expected * 3:
        yield f"L0 is {found.l0:.1f}, and the dictionary was trained for {expected}"
    if found.dead > 0.9 and found.n * found.l0 >= 20 * m:
        yield (
            f"{found.dead:.1%} of features are active on none of {found.n} activations: these are "
            "a narrow sample, or not what it was trained on"
        )


def _cause(dictionary: Dictionary, batch: _Batch, explained: float) -> str | None:
    """Say what would explain the activations better; None where nothing does and nothing need."""
    rows = max(128, min(1024, _WORK // (dictionary.width * dictionary.n_features)))
    some = batch.some(rows)
    own = _try(dictionary, _Trial("", "", dictionary.encoder, some))
    attempts = [(t, _try(dictionary, t)) for t in _trials(dictionary, some)]
    better = [(t, f) for t, f in attempts if _better(f, own)]
    scales = _scales(dictionary, some)
    # Any number may be fitted a little too well: it must tell more than what has a reason.
    least = min((1 - f.explained for _, f in better), default=float("inf"))
    better += [(t, f) for t, f in scales if _better(f, own) and 1 - f.explained < 0.85 * least]
    opening = f"explained variance is {explained:.2f}; "
    if better:
        # Of those about as good the first: it changes least.
        least = min(1 - f.explained for _, f in better)
        trial, outcome = next((t, f) for t, f in better if 1 - f.explained <= least * 1.005)
        return f"{opening}with {trial.what} it would be {outcome.explained:.2f}: {trial.cause}"
    if explained >= POOR:
        return None
    best = max(f.explained for _, f in [*attempts, *scales])
    return (
        f"{opening}no other scale, shift, norm or orientation explains much (the best {best:.2f}): "
        "these activations probably come from another layer or another host than the dictionary "
        "was trained on"
    )


def _undertrained(explained: float) -> str | None:
    if explained >= POOR:
        return None
    return (
        f"explained variance is {explained:.2f}; it was trained on this host at this site, so it "
        "was trained too little: take more steps, more pairs, or more active features"
    )


def _better(found: _Found, own: _Found) -> bool:
    """Say whether a trial explains so much more that the dictionary was made for it."""
    if own.explained < POOR:
        return found.explained >= max(0.5, own.explained + 0.2)
    # Denser codes explain more of anything.
    share = 0.8 if found.l0 <= 1.05 * own.l0 else 0.6 if found.l0 <= 1.5 * own.l0 else 0.3
    return 1 - found.explained < share * (1 - own.explained)


def _trials(dictionary: Dictionary, batch: _Batch) -> Iterator[_Trial]:
    """Yield other ways to read the dictionary, then other activations."""
    encoder = dictionary.encoder
    wrongly = "its format or an option of it was probably read wrongly"
    if encoder.subtract is None:
        what = "the decoder's bias subtracted before the encoder"
        yield _Trial(what, wrongly, replace(encoder, subtract=dictionary.decoder_bias), batch)
    else:
        what = "nothing subtracted before the encoder"
        yield _Trial(what, wrongly, replace(encoder, subtract=None), batch)
    for norm in norm_names():
        if norm != encoder.norm and not (encoder.centers and norm_of(norm).reads):
            cause = f"the dictionary was probably trained with norm {norm!r}"
            yield _Trial(f"norm {norm!r}", cause, replace(encoder, norm=norm), batch)
    if dictionary.width == dictionary.n_features:
        yield from _transposed(dictionary, batch)
    yield from _shifts(encoder, batch)
    if encoder.normaliser.plain:
        yield from _standards(encoder, batch)


def _transposed(dictionary: Dictionary, batch: _Batch) -> Iterator[_Trial]:
    encoder, decoder = dictionary.encoder, dictionary.decoder.T.contiguous()
    turned = replace(encoder, weight=encoder.weight.T.contiguous())
    cause = "it was probably stored the other way round"
    yield _Trial("the encoder transposed", cause, turned, batch)
    yield _Trial("the decoder transposed", cause, encoder, batch, decoder=decoder)
    yield _Trial("encoder and decoder transposed", cause, turned, batch, decoder=decoder)


def _shifts(encoder: Encoder, batch: _Batch) -> Iterator[_Trial]:
    """Yield other centers: the other stream's, none, or this batch's own."""
    if not isinstance(batch.stream, Mixed) and batch.stream in encoder.centers:
        for name in encoder.centers:
            if name != batch.stream:
                cause = f"the activations are probably of the {name} stream"
                yield _Trial(f"stream={name!r}", cause, encoder, replace(batch, stream=name))
        cause = "the dictionary was probably trained without"
        yield _Trial("no center subtracted", cause, replace(encoder, centers={}), batch)
    if encoder.normaliser.reads:
        return
    normed, _ = encoder.normalise(batch.x)
    means = batch.means(normed)
    named = batch if batch.stream else replace(batch, stream=next(iter(means)))
    if not isinstance(batch.stream, Mixed) or len(means) == 2:
        what = "the mean of the activations subtracted"
        cause = "the dictionary was probably trained on centred activations, each stream apart"
        if encoder.normaliser.plain:
            cause += "; see Dictionary.standardised"
        yield _Trial(what, cause, replace(encoder, centers=means), named)


def _standards(encoder: Encoder, batch: _Batch) -> Iterator[_Trial]:
    """Yield activations brought to a size, and to mean 0 and deviation 1."""
    x, d = batch.x, batch.x.shape[1]
    cause = "the dictionary was probably trained on {} activations; see Dictionary.standardised"
    norm, deviation = float(x.norm(dim=1).mean()), float(x.std())
    sizes = (
        (f"activations scaled to norm sqrt({d})", norm / d**0.5),
        ("activations scaled to norm 1", norm),
        ("activations scaled to deviation 1", deviation),
    )
    for what, scale in sizes:
        yield _Trial(what, cause.format("normalised"), encoder, batch, scale=max(scale, 1e-12))
    mean, each = x.mean(0), x.std(0)
    each = torch.where(each > 0, each, 1.0)
    for what, scale in (
        ("the mean subtracted and activations scaled to deviation 1", (x - mean).std()),
        ("each dimension brought to mean 0 and deviation 1", each),
    ):
        yield _Trial(what, cause.format("standardised"), encoder, batch, mean, scale)


def _scales(dictionary: Dictionary, batch: _Batch) -> list[tuple[_Trial, _Found]]:
    """Return the best of other scales, by powers of four and then finer."""
    if not dictionary.encoder.normaliser.plain:
        return []
    cause = (
        "the dictionary was probably trained on activations of another scale; see "
        "Dictionary.standardised"
    )

    def attempt(factor: float) -> tuple[_Trial, _Found]:
        what = f"activations multiplied by about {factor:.2g}"
        trial = _Trial(what, cause, dictionary.encoder, batch, scale=1 / factor)
        return trial, _try(dictionary, trial)

    attempts = [attempt(4.0**power) for power in range(-6, 7) if power]
    for step in (2.0, 2.0**0.5, 2.0**0.25):
        best = max(attempts, key=lambda pair: pair[1].explained)
        center = 1 / float(best[0].scale)
        attempts += [attempt(center * step), attempt(center / step)]
    return [max(attempts, key=lambda pair: pair[1].explained)]
