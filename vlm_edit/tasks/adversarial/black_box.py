"""Square Attack: random search without gradients, to tell whether a defence hides them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_edit.tasks.adversarial.attacks import Aim, Attacked, Best, checked

# After so many of 10,000 queries the share of pixels that is redrawn is halved.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@torch.no_grad()
def square(
    aim: Aim,
    images: Tensor,
    eps: float,
    *,
    queries: int = 500,
    share: float = 0.8,
    seed: int = 0,
    batch_size: int = 512,
) -> Attacked:
    """Run Square Attack, l-inf (Andriushchenko et al. 2020, arXiv 1912.00049).

    Starts from vertical stripes of +-eps, then redraws a random square window, one sign per
    channel, and keeps what raises the aim. It needs no gradient: where it beats gradient attacks,
    their gradients are masked.

    Args:
        aim: What to raise; a margin serves best.
        images: [n, 3, h, w] in [0, 1].
        eps: Radius of the l-inf ball.
        queries: Calls of the host per image.
        share: Of the image that the first windows cover; halved at fixed shares of the queries.
        seed: Of the draws.
        batch_size: Images at once.

    Raises:
        VlmEditError: As ``pgd``.

    Example:
        >>> import torch
        >>> aim = lambda x, rows: (x.flatten(1).sum(1), torch.zeros(len(x), dtype=torch.bool))
        >>> outcome = square(aim, torch.full((1, 1, 4, 4), 0.5), eps=0.1, queries=200)
        >>> bool((outcome.images == 0.6).float().mean() > 0.8)
        True
    """
    checked(images, eps, "linf", queries)
    generator = torch.Generator().manual_seed(seed)
    best = Best(images, queries)
    for rows in torch.arange(len(images), device=images.device).split(batch_size):
        signs = _signs((len(rows), images.shape[1], 1, images.shape[3]), generator).to(images)
        x = (images[rows] + eps * signs).clamp(0, 1)
        loss, reached = aim(x, rows)
        best.see(0, rows, x, loss, reached)
        for query in range(1, queries):
            x, loss, rows = (t[~reached] for t in (x, loss, rows))
            if not len(rows):
                break
            side = _side(images.shape[2:], share_at(query, queries, share))
            candidates = _redrawn(x, images[rows], eps, side, generator)
            new, reached = aim(candidates, rows)
            best.see(query, rows, candidates, new, reached)
            better = (new > loss) | reached
            x = torch.where(better.view(-1, 1, 1, 1), candidates, x)
            loss = torch.where(better, new, loss)
    return best.attacked()


def share_at(query: int, queries: int, first: float) -> float:
    """Return the share of pixels that is redrawn at a query.

    Example:
        >>> [share_at(query, 10_000, 0.8) for query in (0, 100, 9_999)]
        [0.8, 0.2, 0.0015625]
    """
    progress = query * 10_000 / queries
    return float(first / 2 ** sum(progress > mark for mark in _HALVINGS))


def _side(size: torch.Size, share: float) -> int:
    height, width = size
    side = int(round(math.sqrt(share * height * width)))
    return min(max(side, 1), height, width)


def _redrawn(
    x: Tensor, centre: Tensor, eps: float, side: int, generator: torch.Generator
) -> Tensor:
    """Set one window of each image to the true pixels plus or minus eps."""
    n, channels, height, width = x.shape
    top, left = (
        torch.randint(size - side + 1, (n, 1), generator=generator).to(x.device)
        for size in (height, width)
    )
    down, across = (torch.arange(size, device=x.device) for size in (height, width))
    inside = ((down >= top) & (down < top + side))[:, None, :, None]
    inside = inside & ((across >= left) & (across < left + side))[:, None, None, :]
    signs = _signs((n, channels, 1, 1), generator).to(x)
    return torch.where(inside, (centre + eps * signs).clamp(0, 1), x)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator) * 2.0 - 1
