"""How much of a host's own loss a dictionary's reconstruction keeps, in the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import STREAMS, AnyDictionary, Dictionary, Transcoder
from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Beside, Callback, Tokens, attach, expect_one
from vlm_edit.host import Host, Inputs, Site
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.reader import Reader


@dataclass(frozen=True)
class LossRecovered:
    """A host's loss with what passes at a site as it is, reconstructed, zero, and at its mean.

    Attributes:
        kind: ``cross-entropy`` of the texts' own tokens, or ``contrastive``, the symmetric InfoNCE
            loss of a forward's pairs.
        plain: The host alone.
        reconstructed: With the dictionary's reconstruction in place of the site's output.
        zero: With zeros there; nan where the host divides by their length, as after a joint
            embedding.
        mean: With the mean there, of each modality where that is known.
        n: What the losses are means over: tokens, or pairs.
    """

    kind: str
    plain: float
    reconstructed: float
    zero: float
    mean: float
    n: int

    @property
    def of_zero(self) -> float:
        """Return the share of the loss by zeros that the reconstruction takes back; 1 is all.

        It is nan where ``zero`` is, or costs nothing.
        """
        return _share(self.zero, self.reconstructed, self.plain)

    @property
    def of_mean(self) -> float:
        """Return the share of the loss by means that the reconstruction takes back; 1 is all."""
        return _share(self.mean, self.reconstructed, self.plain)


@torch.no_grad()
def loss_recovered(
    host: Host, dictionary: AnyDictionary, site: str, pairs: Any, *, batch_size: int = 8
) -> LossRecovered:
    """Compare a host's loss with a reconstruction spliced in, and with ablations of the site.

    Padding stays as it is. A contrastive loss is among the pairs of a forward, so that it depends
    on ``batch_size``; pairs of one image count as different ones in it.

    Args:
        host: In eval mode, with its processor; it speaks, or tells pairs apart.
        dictionary: Of the site's width.
        site: Where.
        pairs: Image-text pairs, or what ``Pairs.of`` takes; those whose image cannot be read are
            left out. They are read twice.
        batch_size: Pairs per forward.

    Raises:
        CannotKnow: A host with neither loss, or one whose text tokens nobody can tell.
        VlmEditError: An unknown site, or another width than the dictionary's.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.measuring import loss_recovered
        >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(16))
        >>> loss_recovered(host, zoo.load_dictionary("joint"), "joint", pairs).of_mean > 0.5
        True
    """
    host, pairs = Host.of(host), Pairs.of(pairs)
    place = host.site(site)
    expect_one(place)
    read = host.site(dictionary.read_at(site))
    host.expect_width(read, dictionary.width)
    dictionary = dictionary.to(host.device)
    beside = Beside([read], site) if read.name != site else None
    reader = _reader(host, dictionary, site, batch_size)
    means, sums = _Means(), {name: _Sum() for name in ("plain", "reconstructed", "zero", "mean")}
    for forward in reader.forwards(pairs):
        _run(host, place, means, host.receive(forward.inputs), sums["plain"], None)
    ways: dict[str, Callback] = {
        "reconstructed": _in_place_of(_reconstructing(dictionary, beside)),
        "zero": _in_place_of(lambda x, _: torch.zeros_like(x)),
        "mean": _in_place_of(means.like),
    }
    for forward in reader.forwards(pairs):
        inputs = host.receive(forward.inputs)
        for name, way in ways.items():
            _run(host, place, way, inputs, sums[name], beside)
    values = {name: each.value / each.n for name, each in sums.items()}
    return LossRecovered(sums["plain"].kind, n=sums["plain"].n, **values)


@torch.no_grad()
def expect_loss(host: Host, site: str, pairs: Any) -> None:
    """Refuse a host that ``loss_recovered`` cannot compare, by what it says of one pair.

    Args:
        host: As for ``loss_recovered``.
        site: Likewise.
        pairs: Likewise; the first that can be read is.

    Raises:
        CannotKnow: As ``loss_recovered``.
        VlmEditError: No pair that can be read, or an unknown site.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.measuring import expect_loss
        >>> expect_loss(Host.of(*zoo.load_host()), "joint", zoo.load_pairs())
    """
    host, pairs = Host.of(host), Pairs.of(pairs)
    place = host.site(site)
    expect_one(place)
    reader = _reader(host, Dictionary.identity(place.width), site, 1)
    forward = next(iter(reader.forwards(pairs)))
    _run(host, place, _Means(), host.receive(forward.inputs), _Sum(), None)


def _reader(host: Host, dictionary: AnyDictionary, site: str, batch_size: int) -> Reader:
    host.expect_eval("its losses would be drawn")
    return Reader(host, dictionary, site, batch_size, False, verb="compare")


class _Means:
    """Sum up what passes at a site, by modality, and leave it as it is."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}

    def __call__(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        real = tokens.real
        for name, mask in _parts(hidden, tokens).items():
            x = hidden[mask if real is None else mask & real].double()
            total, count = self.sums.get(name, (torch.zeros_like(x[:0].sum(0)), 0))
            self.sums[name] = total + x.sum(0), count + len(x)
        return hidden

    def like(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Return the mean in each token's place."""
        result = hidden.clone()
        for name, mask in _parts(hidden, tokens).items():
            total, count = self.sums[name]
            result[mask] = (total / max(count, 1)).to(hidden.dtype)
        return result


@dataclass
class _Sum:
    kind: str = ""
    value: float = 0.0
    n: int = 0


def _run(
    host: Host, place: Site, way: Callback, inputs: Inputs, into: _Sum, beside: Beside | None
) -> None:
    """Add the loss of a forward."""
    places = [*(() if beside is None else beside.listeners()), (place, way)]
    handles = []
    try:
        for at, callback in places:
            handles.append(attach(host, at, callback))
        output = host(**inputs.values)
    finally:
        for handle in handles:
            handle.remove()
    into.kind, loss, n = _loss(output, inputs)
    into.value, into.n = into.value + loss * n, into.n + n


def _loss(output: Any, inputs: Inputs) -> tuple[str, float, int]:
    """Return the kind of loss, its mean, and over how many."""
    pairs: Any = getattr(output, "logits_per_image", None)
    if isinstance(pairs, Tensor):
        own, alike = torch.arange(len(pairs), device=pairs.device), pairs.float()
        both = F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)
        return "contrastive", float(both) / 2, len(pairs)
    logits: Any = getattr(output, "logits", None)
    ids = inputs.values.get("input_ids")
    if not isinstance(logits, Tensor) or not isinstance(ids, Tensor):
        raise CannotKnow(
            f"{type(output).__name__} has neither logits_per_image nor logits of input_ids: take "
            "the whole model, one that speaks or one that tells pairs apart"
        )
    if inputs.caption is None or logits.shape[:2] != ids.shape:
        raise CannotKnow(
            "nobody can tell where in the logits the texts' own tokens lie: give the host a prompt "
            "in words"
        )
    chosen = inputs.caption[:, 1:]
    loss = F.cross_entropy(logits[:, :-1][chosen].float(), ids[:, 1:][chosen])
    return "cross-entropy", float(loss), int(chosen.sum())


def _reconstructing(
    dictionary: AnyDictionary, beside: Beside | None
) -> Callable[[Tensor, Tokens], Tensor]:
    """Return what reconstructs tokens, each stream's by its own half where there are two.

    Of a transcoder it is what it predicts from what is kept of the place that it reads.
    """
    if isinstance(dictionary, Transcoder):
        predict = dictionary.load().predict
        if beside is None:
            return lambda x, tokens: predict(x, tokens.modality)
        return lambda x, tokens: predict(beside.take(x), tokens.modality)
    if isinstance(dictionary, Dictionary):
        return lambda x, tokens: dictionary.reconstruct(x, tokens.modality)
    halves: dict[str, Any] = {name: getattr(dictionary, name, None) for name in STREAMS}

    def halved(x: Tensor, tokens: Tokens) -> Tensor:
        result = x.float()
        for name, mask in _parts(x, tokens).items():
            half = halves.get(name)
            if not isinstance(half, Dictionary):
                raise BadArgument(
                    f"{type(dictionary).__name__} has nothing to reconstruct tokens of "
                    f"{name or 'unknown modality'!r} with: load a dictionary whole, or another"
                )
            result[mask] = half.reconstruct(x[mask], name)
        return result

    return halved


def _in_place_of(make: Callable[[Tensor, Tokens], Tensor]) -> Callback:
    """Return a callback that puts something in place of all tokens but padding."""

    def spliced(hidden: Tensor, tokens: Tokens) -> Tensor:
        new, real = make(hidden, tokens).to(hidden.dtype), tokens.real
        return new if real is None else torch.where(real[..., None], new, hidden)

    return spliced


def _parts(hidden: Tensor, tokens: Tokens) -> dict[str, Tensor]:
    """Return masks [...] of the tokens by modality; all of them as one where it is not known."""
    modality = tokens.modality
    if isinstance(modality, Mixed):
        return {name: modality.at(name) for name in modality.names}
    everything = torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
    return {modality or "": everything}


def _share(ablated: float, spliced: float, plain: float) -> float:
    return (ablated - spliced) / (ablated - plain) if ablated != plain else float("nan")
