"""Features under attack: who moves, what their movement does, and attacks that move only some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import Dictionary, expect_plain
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import (
    Estimate,
    drawn_difference,
    ratio_estimate,
    ratio_figures,
)
from vlm_edit.hooks import record
from vlm_edit.tasks.adversarial.host import ImageHost

RESIDUAL = "residual"  # what the dictionary does not explain


@dataclass(eq=False)
class Features:
    """Activations of images at a site, as a dictionary's features see them.

    Attributes:
        host: Embeds images.
        dictionary: Of the site.
        site: Its name, of the image side.
    """

    host: ImageHost
    dictionary: Dictionary
    site: str = "joint"
    _placed: dict[torch.device, Dictionary] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse another site than the dictionary's, and one that reads another place."""
        expect_plain(self.dictionary, "an attack on features")
        self.dictionary.expect_site(self.site)

    def on(self, device: torch.device) -> Dictionary:
        """Return the dictionary on a device."""
        if device not in self._placed:
            self._placed[device] = self.dictionary.to(device)
        return self._placed[device]

    def hidden(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return a site's output [n, d] or [n, t, d], and the embedding [n, d]; differentiable."""
        with record(self.host.host, self.site) as recording:
            embedding = self.host(images)
        return recording.last(self.site, "image").hidden.float(), embedding

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [n, ..., m] and normed activations [n, ..., d] of images; differentiable."""
        hidden, _ = self.hidden(images)
        placed = self.on(hidden.device)
        return placed.encode(hidden, "image"), placed.normalise(hidden, "image")


@dataclass(frozen=True, eq=False)
class Movement:
    """How far an attack moved the activations, and by which features.

    Attributes:
        parts: [n] by class: squared length of what its features' change decodes to, in the
            dictionary's space and summed over tokens.
        whole: [n], of the whole change. Parts that work against each other sum to more.
        before: [n], of the activations before.
        features: [m], mean absolute change of each code.
    """

    parts: Mapping[str, Tensor]
    whole: Tensor
    before: Tensor
    features: Tensor

    def share(self, name: str) -> Estimate:
        """Return a class's squared length over the whole's, both summed over images."""
        return ratio_estimate(self.parts[name], self.whole)

    def beyond(self, name: str, others: Sequence[str]) -> Estimate:
        """Estimate how far a class's share lies above that of others, image by image.

        Args:
            name: The class.
            others: Draws of what it is compared with: images and draws vary apart.

        Returns:
            The difference of shares; ``n`` counts the images.

        Example:
            >>> whole, part = torch.ones(3), torch.tensor([0.5, 0.6, 0.7])
            >>> moved = Movement({"own": part, "other": part - 0.2}, whole, whole, whole)
            >>> round(moved.beyond("own", ["other"]).value, 3)
            0.2
        """
        own, *drawn = (ratio_figures(self.parts[one], self.whole) for one in (name, *others))
        return drawn_difference(own[None], torch.stack(drawn))


@torch.no_grad()
def movement(
    features: Features,
    before: Tensor,
    after: Tensor,
    classes: Mapping[str, Sequence[int]],
    batch_size: int = 512,
) -> Movement:
    """Measure which classes of features moved between two versions of the same images.

    Args:
        features: Of a host, a dictionary and a site.
        before: [n, 3, h, w] in [0, 1].
        after: Likewise.
        classes: Features by class; what the dictionary leaves unexplained is added as
            ``residual``.
        batch_size: Images at once.

    Raises:
        VlmEditError: Other shapes, or a class of the name ``residual``.
    """
    if before.shape != after.shape:
        raise BadArgument(
            f"images before and after must be the same: {tuple(before.shape)} and "
            f"{tuple(after.shape)}"
        )
    if RESIDUAL in classes:
        raise BadArgument(f"a class is called {RESIDUAL!r}, which is what no feature explains")
    parts: dict[str, list[Tensor]] = {name: [] for name in (*classes, RESIDUAL)}
    sizes: list[tuple[Tensor, Tensor]] = []
    total = torch.zeros(features.dictionary.n_features, dtype=torch.float64)
    for some, others in zip(before.split(batch_size), after.split(batch_size), strict=True):
        codes, normed = features(some)
        moved, there = features(others)
        change, whole = moved - codes, there - normed
        decoder = features.on(change.device).decoder
        for name, members in classes.items():
            parts[name].append(_squared(change[..., list(members)] @ decoder[list(members)]))
        parts[RESIDUAL].append(_squared(whole - change @ decoder))
        sizes.append((_squared(whole), _squared(normed)))
        each = change.abs().flatten(1, -2).mean(1) if change.ndim > 2 else change.abs()
        total += each.sum(0).double().cpu()
    lengths = {name: torch.cat(some) for name, some in parts.items()}
    whole, first = (torch.cat(some) for some in zip(*sizes, strict=True))
    return Movement(lengths, whole, first, total / len(before))


def _squared(x: Tensor) -> Tensor:
    """Return the squared length of each example of [n, ...], on the CPU."""
    return x.flatten(1).square().sum(1).cpu()


@torch.no_grad()
def through(
    features: Features,
    before: Tensor,
    after: Tensor,
    chosen: Sequence[int] | None,
    choose: Callable[[Tensor], Tensor],
    batch_size: int = 512,
) -> Tensor:
    """Return logits if the attack had moved these features alone, at the joint site.

    Args:
        features: At the site ``joint``.
        before: [n, 3, h, w], the true images.
        after: The attacked ones.
        chosen: Features whose codes change; None for the residual, that is everything else.
        choose: Embeddings [n, d] to logits [n, c].
        batch_size: Images at once.

    Returns:
        [n, c].

    Raises:
        VlmEditError: Another site.
    """
    if features.site != "joint":
        raise BadArgument(f"what features do alone is told at 'joint', not at {features.site!r}")
    logits = []
    for some, others in zip(before.split(batch_size), after.split(batch_size), strict=True):
        codes, normed = features(some)
        moved, there = features(others)
        decoder = features.on(codes.device).decoder
        if chosen is None:
            change = (there - normed) - (moved - codes) @ decoder
        else:
            index = list(chosen)
            change = (moved - codes)[..., index] @ decoder[index]
        logits.append(choose(normed + change))
    return torch.cat(logits)


@dataclass(frozen=True, eq=False)
class Through:
    """The aim away from the right class by some features' movement alone, at the joint site.

    What is judged is the true image's embedding with these features' codes as the attacked image
    has them; reached where it is misread.

    Attributes:
        features: At the site ``joint``.
        chosen: Features whose movement counts.
        codes: [n, m], of the true images.
        normed: [n, d], likewise.
        choose: Embeddings [n, d] to logits [n, c].
        labels: [n].
    """

    features: Features
    chosen: Sequence[int]
    codes: Tensor
    normed: Tensor
    choose: Callable[[Tensor], Tensor]
    labels: Tensor

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge as ``Aim``; the loss is the cross-entropy."""
        codes, _ = self.features(images)
        decoder = self.features.on(codes.device).decoder[self.chosen]
        change = (codes - self.codes[rows])[..., self.chosen] @ decoder
        logits = self.choose(self.normed[rows] + change)
        loss = F.cross_entropy(logits, self.labels[rows], reduction="none")
        return loss, logits.argmax(1) != self.labels[rows]


@dataclass(frozen=True, eq=False)
class Others:
    """How far everything but some features moved: the penalty of an attack on those alone.

    Squared length of the change of activations less what the chosen features' change decodes to,
    over the squared length of the true activations, in the dictionary's space.

    Attributes:
        features: Of a host, a dictionary and a site.
        chosen: Features that may move.
        codes: [n, ..., m], of the true images.
        normed: [n, ..., d], likewise.
    """

    features: Features
    chosen: Sequence[int]
    codes: Tensor
    normed: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, features: Features, chosen: Sequence[int], images: Tensor, batch_size: int = 512
    ) -> Others:
        """Take the codes of true images [n, 3, h, w].

        Raises:
            VlmEditError: No features, or one that the dictionary does not have.
        """
        m = features.dictionary.n_features
        if not chosen or not all(0 <= k < m for k in chosen):
            raise BadArgument(
                f"features that may move must be some of 0 to {m - 1}, got {len(chosen)}: "
                f"{list(chosen)[:5]}"
            )
        parts = [features(some) for some in images.split(batch_size)]
        codes, normed = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return cls(features, list(chosen), codes, normed)

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return the penalty [k] of images with their numbers."""
        codes, normed = self.features(images)
        decoder = self.features.on(codes.device).decoder[self.chosen]
        own = (codes - self.codes[rows])[..., self.chosen] @ decoder
        rest = (normed - self.normed[rows] - own).flatten(1)
        size = self.normed[rows].flatten(1).square().sum(1).clamp_min(1e-12)
        return rest.square().sum(1) / size


def nearest_text(texts: Tensor, scale: float = 100.0) -> Callable[[Tensor], Tensor]:
    """Return a map of embeddings to logits: cosines with texts [c, d] of length 1, times scale."""
    return lambda embeddings: scale * F.normalize(embeddings, dim=-1) @ texts.mT
