"""Auto-PGD: projected gradient descent that chooses its own step size."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_edit.tasks.adversarial.attacks import (
    Aim,
    Attacked,
    Ball,
    Best,
    Norm,
    checked,
    judged,
    starts,
)

_RHO = 0.75  # share of steps that must raise the loss, or the step size is halved
_MOMENTUM = 0.75


def apgd(
    aim: Aim,
    images: Tensor,
    eps: float,
    *,
    norm: Norm = "linf",
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    guide: Aim | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> Attacked:
    """Run APGD (Croce and Hein 2020, arXiv 2003.01690): momentum, and steps that halve themselves.

    Each image starts with a step of 2 * eps. At checkpoints, ever closer together, the step of an
    image is halved and it goes back to its best point if fewer than three quarters of the steps
    since the last one raised its loss, or if neither step nor best loss has changed since.

    Args:
        aim: What to raise.
        images: [n, 3, h, w] in [0, 1].
        eps: Radius of the ball.
        norm: ``linf`` or ``l2``.
        steps: Gradient steps from each start.
        restarts: Starts; later ones are for images that are not done.
        random_start: Whether starts are random images of the ball; else the images themselves.
        guide: As for ``pgd``.
        seed: Of the starts.
        batch_size: Images at once.

    Raises:
        VlmEditError: As ``pgd``.

    Example:
        >>> import torch
        >>> aim = lambda x, rows: (x.flatten(1).sum(1), torch.zeros(len(x), dtype=torch.bool))
        >>> outcome = apgd(aim, torch.full((1, 1, 1, 2), 0.5), eps=0.1, steps=5)
        >>> outcome.images.flatten().tolist()
        [0.6000000238418579, 0.6000000238418579]
    """
    ball = checked(images, eps, norm, steps, restarts)
    best = Best(images, steps)
    for rows, x in starts(best, images, ball, restarts, random_start, seed, batch_size):
        _climb(aim, guide or aim, images, rows, x, ball, steps, best)
    return best.attacked()


def checkpoints(steps: int) -> list[int]:
    """List the steps after which step sizes are checked: at 22 % of all, then ever closer together.

    Example:
        >>> checkpoints(100)
        [22, 41, 57, 70, 80, 87, 93, 99]
    """
    gap, least, shrink = (max(round(share * steps), 1) for share in (0.22, 0.06, 0.03))
    marks = [gap]
    while marks[-1] < steps:
        gap = max(gap - shrink, least)
        marks.append(marks[-1] + gap)
    return [k for k in marks if k < steps]


@dataclass(eq=False)
class _State:
    """Where the images are that are not done."""

    rows: Tensor
    x: Tensor
    before: Tensor
    size: Tensor  # [k, 1, 1, 1]
    loss: Tensor  # of x
    gradient: Tensor
    best: Tensor = field(init=False)
    best_loss: Tensor = field(init=False)
    best_gradient: Tensor = field(init=False)
    rises: Tensor = field(init=False)  # since the last checkpoint
    halved: Tensor = field(init=False)  # at the last checkpoint
    loss_then: Tensor = field(init=False)  # the best one there

    def __post_init__(self) -> None:
        self.best, self.best_loss, self.best_gradient = self.x, self.loss, self.gradient
        self.rises = torch.zeros_like(self.loss)
        self.halved = torch.ones_like(self.loss, dtype=torch.bool)
        self.loss_then = self.loss

    def keep(self, which: Tensor) -> None:
        """Leave the others out."""
        for name, value in vars(self).items():
            setattr(self, name, value[which])

    def move(self, x: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Be at x [k, ...] next."""
        self.rises = self.rises + (loss > self.loss)
        self.before, self.x, self.loss, self.gradient = self.x, x, loss, gradient
        better = loss > self.best_loss
        self.best = _where(better, x, self.best)
        self.best_gradient = _where(better, gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)

    def check(self, steps: int) -> None:
        """Halve the step where so many steps brought too little, and go back there."""
        wandering = self.rises <= _RHO * steps
        stuck = ~self.halved & (self.loss_then >= self.best_loss)
        halve = wandering | stuck
        self.size = _where(halve, self.size / 2, self.size)
        self.x = _where(halve, self.best, self.x)
        self.gradient = _where(halve, self.best_gradient, self.gradient)
        self.halved, self.loss_then = halve, self.best_loss
        self.rises = torch.zeros_like(self.rises)


def _climb(
    aim: Aim,
    guide: Aim,
    images: Tensor,
    rows: Tensor,
    x: Tensor,
    ball: Ball,
    steps: int,
    best: Best,
) -> None:
    """Climb from one start of some images."""
    marks, last_mark = set(checkpoints(steps)), 0
    loss, reached, gradient = judged(aim, guide, x, rows)
    best.see(0, rows, x, loss, reached)
    size = torch.full_like(x[:, :1, :1, :1], 2 * ball.eps)
    state = _State(rows, x, x, size, loss, gradient)
    state.keep(~reached)
    for step in range(1, steps + 1):
        if not len(state.rows):
            return
        x = _step(state, images[state.rows], ball, _MOMENTUM if step > 1 else 1.0)
        loss, reached, gradient = judged(aim, guide, x, state.rows, gradient=step < steps)
        best.see(step, state.rows, x, loss, reached)
        state.move(x, loss, gradient)
        state.keep(~reached)
        if step in marks:
            state.check(step - last_mark)
            last_mark = step


def _step(state: _State, centre: Tensor, ball: Ball, share: float) -> Tensor:
    """Return the next point: a step uphill, mixed with the way that was last taken."""
    ahead = ball.project(state.x + state.size * ball.uphill(state.gradient), centre)
    drift = state.x - state.before
    return ball.project(state.x + share * (ahead - state.x) + (1 - share) * drift, centre)


def _where(which: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(which.view(-1, *[1] * (yes.ndim - 1)), yes, no)
