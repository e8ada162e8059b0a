"""Detectors: scores that say of an image whether it was attacked, also when the attacker knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument
from vlm_edit.tasks.adversarial.attacks import Aim, Attacked
from vlm_edit.tasks.adversarial.features import Features
from vlm_edit.tasks.adversarial.losses import Penalised

Score = Callable[[Tensor], Tensor]  # images [n, 3, h, w] to [n], differentiable; high is strange


@dataclass(frozen=True, eq=False)
class Unexplained:
    """Share of an image's activations that the dictionary does not explain, over its tokens.

    Attributes:
        features: Of a host, a dictionary and a site.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.tasks.adversarial.host import ImageHost
        >>> host = ImageHost.of(Host.of(*zoo.load_host()))
        >>> score = Unexplained(Features(host, zoo.load_dictionary("vision.2"), "vision.2"))
        >>> score(host.pixels.read([zoo.load_pairs().open(0)])).shape
        torch.Size([1])
    """

    features: Features

    def __call__(self, images: Tensor) -> Tensor:
        """Return [n], squared error over squared length about the bias."""
        codes, normed = self.features(images)
        placed = self.features.on(codes.device)
        if placed.encoder.centers:
            normed = normed - placed.encoder.center("image")
        remainder = (normed - placed.decode(codes)).square().flatten(1).sum(1)
        whole = (normed - placed.decoder_bias).square().flatten(1).sum(1)
        return remainder / whole.clamp_min(1e-12)


@dataclass(frozen=True, eq=False)
class Unusual:
    """The excess of codes over what true images reach, summed over features.

    Attributes:
        features: Of a host, a dictionary and a site.
        most: [m], a high quantile of each feature's largest code in an image, over true ones.
        spread: [m], by which the excess is divided.
    """

    features: Features
    most: Tensor
    spread: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, features: Features, images: Tensor, level: float = 0.95) -> Unusual:
        """Fit to true images [n, 3, h, w]."""
        largest = torch.cat([_largest(features, some) for some in images.split(256)])
        most = largest.quantile(level, dim=0)
        return cls(features, most, largest.std(0).clamp_min(1e-3))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the excess of each image, [n]."""
        excess = F.relu(_largest(self.features, images) - self.most.to(images.device))
        return (excess / self.spread.to(images.device)).sum(1)


@dataclass(frozen=True, eq=False)
class Distance:
    """Squared Mahalanobis distance of a site's mean activation from those of true images.

    Needs no dictionary's features: the baseline of detectors (Lee et al. 2018, arXiv 1807.03888).

    Attributes:
        features: Of a host and a site.
        mean: [d].
        precision: [d, d].
    """

    features: Features
    mean: Tensor
    precision: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, features: Features, images: Tensor, ridge: float = 0.05) -> Distance:
        """Fit to true images [n, 3, h, w]; ridge is a share of the mean variance."""
        x = torch.cat([_mean(features, some) for some in images.split(256)])
        centred = (x - x.mean(0)).double()
        spread = centred.mT @ centred / len(x)
        eye = torch.eye(len(spread), device=spread.device, dtype=spread.dtype)
        spread = spread + ridge * spread.diagonal().mean() * eye
        return cls(features, x.mean(0), torch.linalg.inv(spread).float())

    def __call__(self, images: Tensor) -> Tensor:
        """Return the distance of each image, [n]."""
        away = _mean(self.features, images) - self.mean
        return torch.einsum("nd,de,ne->n", away, self.precision, away)


@torch.no_grad()
def scores(score: Score, images: Tensor, batch_size: int = 512) -> Tensor:
    """Return scores of many images, [n]."""
    return torch.cat([score(some) for some in images.split(batch_size)])


@torch.no_grad()
def threshold(score: Score, images: Tensor, false_alarms: float = 0.05) -> float:
    """Return the score above which this share of true images lies.

    Raises:
        VlmEditError: A share outside of 0 to 1.
    """
    if not 0 < false_alarms < 1:
        raise BadArgument(f"false_alarms is {false_alarms}: a share lies between 0 and 1")
    return float(scores(score, images).quantile(1 - false_alarms))


def unseen(
    aim: Aim,
    score: Score,
    limit: float,
    attack: Callable[[Aim], Attacked],
    weights: tuple[float, ...] = (0.0, 1.0, 10.0),
) -> Attacked:
    """Attack a detector too: reached are images that the aim reaches and the detector passes.

    The detector's excess over its limit, as a share of it, is taken off the loss, by several
    weights; each image keeps the first that succeeds, or else the last (Carlini and Wagner 2017,
    arXiv 1705.07263, broke ten detectors so).

    Args:
        aim: What the attacker wants of the host.
        score: The detector.
        limit: What it passes at most, such as ``threshold`` gives.
        attack: An aim to what came of it, such as ``lambda aim: apgd(aim, images, 4 / 255)``.
        weights: Of the excess.
    """

    def excess(images: Tensor, _: Tensor) -> Tensor:
        return F.relu(score(images) - limit) / max(abs(limit), 1e-12)

    best: Attacked | None = None
    for weight in weights:
        here = attack(Penalised(aim, excess, weight, most=0.0))
        if best is None:
            best = here
            continue
        better = here.reached & ~best.reached
        images = torch.where(better.view(-1, 1, 1, 1), here.images, best.images)
        loss = torch.where(better, here.loss, best.loss)
        best = Attacked(images, best.reached | here.reached, loss, best.curve)
    assert best is not None
    return best


def _largest(features: Features, images: Tensor) -> Tensor:
    codes, _ = features(images)
    return codes.flatten(1, -2).amax(1) if codes.ndim > 2 else codes


def _mean(features: Features, images: Tensor) -> Tensor:
    hidden, _ = features.hidden(images)
    return hidden.flatten(1, -2).mean(1) if hidden.ndim > 2 else hidden
