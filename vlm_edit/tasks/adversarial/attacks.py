"""Projected gradient descent, and what all attacks share: a ball, an aim, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument

Norm = Literal["linf", "l2"]
Keep = Literal["best", "last"]

# Images [k, 3, h, w] and their numbers [k] to what the attacker wants to raise [k], and whether
# it has what it wants [k] bool.
Aim = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_TINY = 1e-12


@dataclass(frozen=True)
class Ball:
    """The images that an attacker may choose: near the true one, and images at all.

    Attributes:
        eps: Radius, in units of pixels of [0, 1].
        norm: ``linf``, each value by itself, or ``l2``, over all values of an image.

    Example:
        >>> import torch
        >>> Ball(0.1).project(torch.tensor([[0.5, 1.2]]), torch.tensor([[0.3, 0.95]]))
        tensor([[0.4000, 1.0000]])
    """

    eps: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        """Check the radius and the norm."""
        if not 0 < self.eps < float("inf"):
            raise BadArgument(f"eps is {self.eps}: it must be above 0, such as 4 / 255")
        if self.norm not in get_args(Norm):
            raise BadArgument(f"norm is {self.norm!r}: use one of {get_args(Norm)}")

    def project(self, images: Tensor, centre: Tensor) -> Tensor:
        """Return the ball's image next to each of [n, ...], around centre [n, ...]."""
        change = images - centre
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * (self.eps / length(change).clamp_min(_TINY)).clamp(max=1)
        return (centre + change).clamp(0, 1)

    def start(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a random image of the ball: each value uniform, or a random direction and length."""
        shape = centre.shape
        if self.norm == "linf":
            noise = torch.rand(shape, generator=generator).to(centre) * 2 - 1
        else:
            noise = torch.randn(shape, generator=generator).to(centre)
            share = torch.rand(len(centre), *[1] * (centre.ndim - 1), generator=generator)
            noise = share.to(centre) * noise / length(noise).clamp_min(_TINY)
        return self.project(centre + self.eps * noise, centre)

    def uphill(self, gradient: Tensor) -> Tensor:
        """Return the step of size 1 that raises most, to first order."""
        if self.norm == "linf":
            return gradient.sign()
        return gradient / length(gradient).clamp_min(_TINY)


def length(x: Tensor) -> Tensor:
    """Return the Euclidean length of each example of [n, ...], as [n, 1, ...]."""
    lengths: Tensor = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    return lengths


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack found.

    Attributes:
        images: [n, 3, h, w] in [0, 1], on the images' device.
        reached: [n] bool, whether the attacker has what it wanted, as the aim judged it.
        loss: [n], what it raised.
        curve: [steps + 1], mean over images of the loss at each step of the first start; an image
            that is done keeps its last.
    """

    images: Tensor
    reached: Tensor
    loss: Tensor
    curve: Tensor


class Best:
    """The best image so far of each: one that is done before one that is not, then by loss."""

    def __init__(self, images: Tensor, steps: int) -> None:
        n = len(images)
        self.images = images.clone()
        self.loss = images.new_full((n,), -torch.inf)
        self.reached = torch.zeros(n, dtype=torch.bool, device=images.device)
        self._curve = images.new_full((steps + 1, n), torch.nan)

    def see(self, step: int, rows: Tensor, x: Tensor, loss: Tensor, reached: Tensor) -> None:
        """Take what is better than before."""
        self.trace(step, rows, loss)
        was = self.reached[rows]
        better = torch.where(was == reached, loss > self.loss[rows], reached)
        self.take(rows[better], x[better], loss[better], reached[better])

    def trace(self, step: int, rows: Tensor, loss: Tensor) -> None:
        """Note the loss at a step of the first start."""
        known = self._curve[step, rows]
        self._curve[step, rows] = torch.where(known.isnan(), loss, known)

    def take(self, rows: Tensor, x: Tensor, loss: Tensor, reached: Tensor) -> None:
        """Take the images, better or not."""
        self.images[rows], self.loss[rows], self.reached[rows] = x, loss, reached

    def attacked(self) -> Attacked:
        """Return what stands now."""
        curve = self._curve
        for step in range(1, len(curve)):
            curve[step] = torch.where(curve[step].isnan(), curve[step - 1], curve[step])
        return Attacked(self.images, self.reached, self.loss, curve.mean(1).cpu())


def pgd(
    aim: Aim,
    images: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    steps: int = 20,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    keep: Keep = "best",
    guide: Aim | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> Attacked:
    """Run projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

    Args:
        aim: What to raise, such as ``Untargeted(classifier, labels)``.
        images: [n, 3, h, w] in [0, 1].
        eps: Radius of the ball.
        norm: ``linf`` or ``l2``.
        steps: Gradient steps from each start.
        step_size: Of one; by default 2.5 * eps / steps, at least eps / 10.
        restarts: Starts; later ones are for images that are not done.
        random_start: Whether starts are random images of the ball; else the images themselves.
        keep: The ``best`` image on the way, where images that are done rest; or the ``last``, for
            aims that are random themselves, where the best would be the luckiest.
        guide: Another aim whose gradient is followed, while ``aim`` judges: a surrogate's
            (transfer), or the undefended host's, where a defence's gradient may be masked (BPDA
            with the identity, Athalye et al. 2018, arXiv 1802.00420).
        seed: Of the starts.
        batch_size: Images at once.

    Raises:
        VlmEditError: A radius that is not above 0, no step, no start, or pixels outside of [0, 1].

    Example:
        >>> import torch
        >>> aim = lambda x, rows: (x.flatten(1).sum(1), torch.zeros(len(x), dtype=torch.bool))
        >>> outcome = pgd(aim, torch.full((1, 1, 1, 2), 0.5), eps=0.1, steps=5)
        >>> outcome.images.flatten().tolist()
        [0.6000000238418579, 0.6000000238418579]
    """
    ball = checked(images, eps, norm, steps, restarts)
    size = max(2.5 * eps / steps, eps / 10) if step_size is None else step_size
    best = Best(images, steps)
    for rows, x in starts(
        best, images, ball, restarts, random_start, seed, batch_size, again=keep == "last"
    ):
        _climb(aim, guide or aim, images, rows, x, ball, size, steps, keep, best)
    return best.attacked()


def starts(
    best: Best,
    images: Tensor,
    ball: Ball,
    restarts: int,
    random_start: bool,
    seed: int,
    batch_size: int,
    again: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield numbers of some images and where they start: all once, then those that are not done.

    Args:
        best: What is done; looked at anew before each start.
        images: [n, 3, h, w].
        ball: Around each.
        restarts: Starts of each.
        random_start: As for ``pgd``.
        seed: Of the starts.
        batch_size: Images at once.
        again: Whether images that are done start again too.
    """
    generator = torch.Generator().manual_seed(seed)
    for restart in range(restarts):
        numbers = torch.arange(len(images), device=images.device)
        if restart and not again:
            numbers = numbers[~best.reached]
        for rows in numbers.split(batch_size):
            yield rows, ball.start(images[rows], generator) if random_start else images[rows]


def _climb(
    aim: Aim,
    guide: Aim,
    images: Tensor,
    rows: Tensor,
    x: Tensor,
    ball: Ball,
    size: float,
    steps: int,
    keep: Keep,
    best: Best,
) -> None:
    """Climb from one start of some images."""
    for step in range(steps + 1):
        last = step == steps
        loss, reached, gradient = judged(aim, guide, x, rows, gradient=not last)
        if keep == "best":
            best.see(step, rows, x, loss, reached)
            rows, x, gradient = (t[~reached] for t in (rows, x, gradient))
            if not len(rows):
                return
        else:
            best.trace(step, rows, loss)
            if last:
                best.take(rows, x, loss, reached)
        if not last:
            x = ball.project(x + size * ball.uphill(gradient), images[rows])


def judged(
    aim: Aim, guide: Aim, x: Tensor, rows: Tensor, gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss [k], whether it is reached [k], and the guide's gradient (zeros if not asked)."""
    if not gradient:
        with torch.no_grad():
            loss, reached = aim(x, rows)
        return loss.detach(), reached, torch.zeros_like(x)
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        height, reached = guide(x, rows)
        (slope,) = torch.autograd.grad(height.sum(), x)
    loss = height.detach()
    if guide is not aim:
        with torch.no_grad():
            loss, reached = aim(x.detach(), rows)
    return loss.detach(), reached, slope


def checked(images: Tensor, eps: float, norm: Norm, steps: int, restarts: int = 1) -> Ball:
    """Refuse what is quick to refuse; return the ball."""
    if steps < 1 or restarts < 1:
        raise BadArgument(f"{steps} steps from {restarts} starts: an attack needs one of each")
    if images.ndim != 4 or not len(images):
        raise BadArgument(f"images must be [n, 3, h, w], at least one, got {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise BadArgument(
            f"pixels lie between {low:.3g} and {high:.3g}: an attack takes them in [0, 1], before "
            "the host's normalisation; Pixels.read gives them so"
        )
    return Ball(eps, norm)
