"""Tune a patch against attacks on a split: gains of features, or features made for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, Encoder, expect_plain
from vlm_edit.edits import Ablate, Blend, Rule
from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks import Tokens, attach, record
from vlm_edit.patches import Patch
from vlm_edit.tasks.adversarial.attacks import Ball, pgd
from vlm_edit.tasks.adversarial.host import ImageHost

_SHIFT = 4  # pixels


@dataclass(frozen=True)
class Hardening:
    """How a patch is tuned.

    Attributes:
        eps: l-inf radius of the attacks in training.
        steps: Of Adam, with a rate that falls to 0.
        rate: Its first.
        attack_steps: Of PGD, at each step of Adam; 0 for noise in place of an attack, a control.
        clean: Weight of true images beside attacked ones.
        batch_size: Images per step.
        seed: Of batches and starts.
        varied: Whether images are mirrored, moved by up to 4 pixels and their channels exchanged
            at random: what the host makes of an image needs no label, so that any will do.
        seconds: Time after which the rate falls to 0 at once; None for no limit.
    """

    eps: float = 4 / 255
    steps: int = 300
    rate: float = 0.01
    attack_steps: int = 3
    clean: float = 0.5
    batch_size: int = 64
    seed: int = 0
    varied: bool = True
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Hardened:
    """A patch that was tuned, and how its loss went.

    Attributes:
        patch: Of the image side.
        curve: [steps], the loss.
    """

    patch: Patch
    curve: Tensor


def harden_gains(
    host: ImageHost,
    images: Tensor,
    places: Mapping[str, Dictionary],
    how: Hardening = Hardening(),  # noqa: B008
    levels: int = 24,
) -> Hardened:
    """Tune how far each feature's code goes toward its mean, against attacks.

    ``code' = code + s (mean - code)``, one number s for each feature: above 0 it is held back,
    below 0 it is let out further. What is lowered is 1 minus the cosine between the embedding of
    an attacked image under the patch and that of the true image in the host as it is, as FARE
    does with all weights (Schlarmann et al. 2024, arXiv 2402.12336); no label or text is used.
    The numbers are then rounded to some levels, each one ``Blend``.

    Args:
        host: As it is, without this patch.
        images: [n, 3, h, w] in [0, 1], a split of their own.
        places: Dictionaries by site.
        how: Radius, steps, rate.
        levels: Values of s that the patch has in the end, at each site.

    Raises:
        VlmEditError: No image, no site, or a dictionary of another site.
    """
    means = _mean_codes(host, images, places)
    shares = {site: torch.zeros_like(mean, requires_grad=True) for site, mean in means.items()}
    placed = {site: dictionary.to(host.device) for site, dictionary in places.items()}

    def edit(site: str) -> Callable[[Tensor], Tensor]:
        def change(hidden: Tensor) -> Tensor:
            code, scale = placed[site].encoder(hidden, "image")
            step = shares[site] * (means[site] - code) @ placed[site].decoder
            return hidden + (step if scale is None else step * scale)

        return change

    curve = _descend(host, images, {s: edit(s) for s in places}, list(shares.values()), how)
    parts = [
        Patch(site, places[site], _blends(share.detach().cpu(), means[site].cpu(), levels),
                 tokens="image")
        for site, share in shares.items()
    ]  # fmt: skip
    return Hardened(sum(parts[1:], start=parts[0]), curve)


def harden_features(
    host: ImageHost,
    images: Tensor,
    sites: Sequence[str],
    how: Hardening = Hardening(),  # noqa: B008
    features: int = 64,
) -> Hardened:
    """Train a small dictionary at each site whose ablation makes the host stand attacks.

    ``x' = x - relu(norm(x) W + b) D``: features that ablating takes out. It is a trained adapter
    and no reading of the host: its features mean what the training made of them. Lowered as by
    ``harden_gains``.

    Args:
        host: As it is, without this patch.
        images: [n, 3, h, w] in [0, 1], a split of their own.
        sites: Of the image side.
        how: Radius, steps, rate.
        features: At each site.

    Raises:
        VlmEditError: No image, or an unknown site.
    """
    generator = torch.Generator().manual_seed(how.seed)
    layers: dict[str, list[Tensor]] = {}
    for site in sites:
        width = host.host.site(site).width
        weight = torch.randn(width, features, generator=generator) / width**0.5
        start = [weight, torch.zeros(features), torch.zeros(features, width)]
        layers[site] = [t.to(host.device).requires_grad_() for t in start]

    def edit(site: str) -> Callable[[Tensor], Tensor]:
        def change(hidden: Tensor) -> Tensor:
            weight, bias, decoder = layers[site]
            encoder = Encoder(weight, bias, "relu", norm="constant_norm_rescale")
            code, scale = encoder(hidden)
            assert scale is not None
            return hidden - scale * (code @ decoder)

        return change

    weights = [t for tensors in layers.values() for t in tensors]
    curve = _descend(host, images, {site: edit(site) for site in sites}, weights, how)
    parts = []
    for site, tensors in layers.items():
        weight, bias, decoder = (t.detach().cpu().half().float() for t in tensors)
        encoder = Encoder(weight, bias, "relu", norm="constant_norm_rescale")
        dictionary = Dictionary(encoder, decoder, torch.zeros(decoder.shape[1]))
        parts.append(Patch(site, dictionary, Ablate(range(features)), tokens="image"))
    return Hardened(sum(parts[1:], start=parts[0]), curve)


@torch.no_grad()
def _mean_codes(
    host: ImageHost, images: Tensor, places: Mapping[str, Dictionary]
) -> dict[str, Tensor]:
    """Return the mean codes [m] of each site, over true images and their tokens."""
    if not places or not len(images):
        raise BadArgument(f"{len(images)} images and {len(places)} sites: there must be some")
    total: dict[str, Tensor] = {}
    for some in images.split(128):
        with record(host.host, *places) as recording:
            host(some)
        for site, dictionary in places.items():
            expect_plain(dictionary, "a gain").expect_site(site)
            hidden = recording.last(site, "image").hidden
            codes = dictionary.to(hidden.device).encode(hidden, "image")
            mean = codes.flatten(0, -2).mean(0) * len(some)
            total[site] = total[site] + mean if site in total else mean
    return {site: summed / len(images) for site, summed in total.items()}


def _descend(
    host: ImageHost,
    images: Tensor,
    edits: Mapping[str, Callable[[Tensor], Tensor]],
    weights: Sequence[Tensor],
    how: Hardening,
) -> Tensor:
    """Lower the loss of attacked and of true images; only these weights learn."""
    generator = torch.Generator().manual_seed(how.seed)
    optimiser = torch.optim.Adam(list(weights), how.rate)
    losses: list[float] = []
    with _Edited(host, edits) as edited:
        start = time.perf_counter()
        for step in range(how.steps):
            progress = step / how.steps
            if how.seconds is not None:
                progress = max(progress, (time.perf_counter() - start) / how.seconds)
            if progress >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = how.rate * (1 - progress)
            rows = torch.randperm(len(images), generator=generator)[: how.batch_size]
            some = images[rows.to(images.device)]
            some = _varied(some, generator) if how.varied else some
            loss = _loss(host, some, edited.plain(some), how, step)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    return torch.tensor(losses)


class _Edited:
    """The host with edits in force, its own weights at rest, and a way around the edits."""

    def __init__(self, host: ImageHost, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self._host, self._edits, self._on = host, edits, True
        self._stack = ExitStack()

    def __enter__(self) -> _Edited:
        for p in [p for p in self._host.host.root.parameters() if p.requires_grad]:
            p.requires_grad_(False)
            self._stack.callback(p.requires_grad_, True)
        for site, edit in self._edits.items():
            inner = self._host.host
            handle = attach(inner, inner.site(site), self._change(edit))
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @torch.no_grad()
    def plain(self, images: Tensor) -> Tensor:
        """Return embeddings without the edits."""
        self._on = False
        try:
            return self._host(images)
        finally:
            self._on = True

    def _change(self, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tokens], Tensor]:
        def change(hidden: Tensor, tokens: Tokens) -> Tensor:
            return edit(hidden) if self._on and tokens.stream != "text" else hidden

        return change


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image or not, move it a little, put its channels in some order."""
    n, channels, height, width = images.shape
    padded = F.pad(images, [_SHIFT] * 4, mode="replicate")
    mirrored = torch.rand(n, generator=generator) < 0.5
    down, right = torch.randint(2 * _SHIFT + 1, (2, n), generator=generator)
    order = torch.rand(n, channels, generator=generator).argsort(1)
    intact = torch.rand(n, generator=generator) < 0.5
    order[intact] = torch.arange(channels)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    here = images.device
    each = torch.arange(n, device=here)[:, None, None, None]
    views: Tensor = padded[
        each,
        order.to(here)[:, :, None, None],
        rows.to(here)[:, None, :, None],
        columns.to(here)[:, None, None, :],
    ]
    return views


def _loss(host: ImageHost, images: Tensor, true: Tensor, how: Hardening, step: int) -> Tensor:
    def away(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        output = 1 - F.cosine_similarity(host(x), true[rows], dim=1)
        return output, torch.zeros(len(x), dtype=torch.bool, device=x.device)

    seed = how.seed + step
    if how.attack_steps:
        size = 2 * how.eps / how.attack_steps
        own: dict[str, Any] = {"steps": how.attack_steps, "step_size": size, "seed": seed}
        attacked = pgd(away, images, how.eps, keep="last", **own).images
    else:
        attacked = Ball(how.eps).start(images, torch.Generator().manual_seed(seed))
    output = host(torch.cat([attacked, images]))
    apart = 1 - F.cosine_similarity(output, true.repeat(2, 1), dim=1)
    bad, good = apart.chunk(2)
    return bad.mean() + how.clean * good.mean()


def _blends(shares: Tensor, means: Tensor, levels: int) -> list[Rule]:
    """Group features by their rounded share, evenly many to a level; each level one rule."""
    order = shares.argsort()
    rules: list[Rule] = []
    for group in order.chunk(min(levels, len(order))):
        reference = means[group].tolist()
        rules.append(Blend(group.tolist(), reference, strength=float(shares[group].mean())))
    return rules
