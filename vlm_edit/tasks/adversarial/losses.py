"""What attacks raise: losses of a zero-shot choice, distances of embeddings, features' movement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument
from vlm_edit.tasks.adversarial.host import Classifier, ImageHost

Loss = Literal["ce", "dlr", "margin"]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy [n] of logits [n, c] and labels [n]."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how far the best wrong class is above the right one, [n].

    Example:
        >>> import torch
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    right = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference of logits ratio [n]: a margin without scale.

    ``-(z_y - max_{i != y} z_i) / (z_1 - z_3)``, z_1 >= z_2 >= z_3 the largest logits
    (Croce and Hein 2020, equation 6).

    Example:
        >>> import torch
        >>> dlr(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    if logits.shape[1] < 3:
        raise BadArgument(
            f"dlr needs three classes, and there are {logits.shape[1]}: use ce or margin"
        )
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the targeted difference of logits ratio [n] (Croce and Hein 2020, equation 7)."""
    if logits.shape[1] < 4:
        raise BadArgument(
            f"targeted dlr needs four classes, and there are {logits.shape[1]}: use ce"
        )
    top = logits.topk(4, dim=1).values
    right, goal = (logits.gather(1, y[:, None])[:, 0] for y in (labels, targets))
    return (goal - right) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": margin,
}


@dataclass(frozen=True, eq=False)
class Untargeted:
    """The aim away from the right class; reached where another is chosen.

    Attributes:
        classifier: Images to logits.
        labels: [n], of all images.
        loss: ``ce``, ``dlr`` or ``margin``.

    Example:
        >>> import torch
        >>> aim = Untargeted(lambda x: x.flatten(1), torch.tensor([0]), "margin")
        >>> aim(torch.tensor([0.2, 0.5, 0.1]).view(1, 3, 1, 1), torch.tensor([0]))
        (tensor([0.3000]), tensor([True]))
    """

    classifier: Classifier
    labels: Tensor
    loss: Loss = "ce"

    def __post_init__(self) -> None:
        """Check that the loss is known."""
        if self.loss not in get_args(Loss):
            raise BadArgument(f"loss is {self.loss!r}: use one of {get_args(Loss)}")

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images as ``Aim`` does."""
        logits, labels = self.classifier(images), self.labels[rows]
        return LOSSES[self.loss](logits, labels), logits.argmax(1) != labels


@dataclass(frozen=True, eq=False)
class Targeted:
    """The aim to a class, that is to a text; reached where it is chosen.

    Attributes:
        classifier: Images to logits.
        targets: [n], of all images.
        labels: [n], the right ones: then the loss is the targeted DLR; None for cross-entropy.
    """

    classifier: Classifier
    targets: Tensor
    labels: Tensor | None = None

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images as ``Aim`` does."""
        logits, targets = self.classifier(images), self.targets[rows]
        if self.labels is None:
            loss = -cross_entropy(logits, targets)
        else:
            loss = targeted_dlr(logits, self.labels[rows], targets)
        return loss, logits.argmax(1) == targets


@dataclass(frozen=True, eq=False)
class Away:
    """The aim as far from the true image's embedding as can be, without any text; never reached.

    Attributes:
        host: Embeds images.
        embeddings: [n, d], the true ones, as the host gives them.
    """

    host: ImageHost
    embeddings: Tensor

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge as ``Aim``; the loss is 1 minus the cosine."""
        cosine = F.cosine_similarity(self.host(images), self.embeddings[rows], dim=1)
        return 1 - cosine, torch.zeros_like(cosine, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Toward:
    """The aim as near to an embedding of a text as can be; reached at a cosine.

    Attributes:
        host: Embeds images.
        text: [d], or [n, d], one for each image.
        enough: The cosine at which it is reached.
    """

    host: ImageHost
    text: Tensor
    enough: float = 1.0

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge as ``Aim``; the loss is the cosine."""
        text = self.text if self.text.ndim == 1 else self.text[rows]
        cosine = F.cosine_similarity(self.host(images), text.expand(len(images), -1), dim=1)
        return cosine, cosine >= self.enough


@dataclass(frozen=True, eq=False)
class Penalised:
    """An aim less what it costs: features that must not move, or what a detector sees.

    Attributes:
        first: An aim, which decides what is reached.
        penalty: Images and their numbers to what the attacker wants low, [k].
        weight: Of the penalty.
        most: Penalty up to which an image counts as reached; None for any.
    """

    first: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    penalty: Callable[[Tensor, Tensor], Tensor]
    weight: float = 1.0
    most: float | None = None

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge images as ``Aim`` does, less the penalty."""
        loss, reached = self.first(images, rows)
        cost = self.penalty(images, rows)
        if self.most is not None:
            reached = reached & (cost <= self.most)
        return loss - self.weight * cost, reached
