"""Gaussian activations that have the given ones' means and covariances, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument

# How far from 1 the norms of unit vectors lie that went through half precision.
_UNIT = 1e-2


def unpaired_gaussians(
    streams: Mapping[str, Tensor],
    n: int | None = None,
    seed: int = 0,
    unit: bool | None = None,
) -> dict[str, Tensor]:
    """Draw each stream from a Gaussian with its own mean and covariance, apart from the other.

    The covariance is the sample's, with n - 1, also where it is singular because there are fewer
    rows than dimensions: draws then lie in the rows' span.

    Args:
        streams: [n, d] activations by stream; numbers of rows may differ.
        n: Rows to draw of each; by default as many as the stream has.
        seed: Of the draws.
        unit: Whether to bring drawn rows to norm 1, which changes mean and covariance a little.
            None does so for a stream whose rows all have norm 1, so that draws lie where joint
            embeddings lie.

    Returns:
        [n, d] float32 by stream.

    Raises:
        VlmEditError: No [n, d] activations, fewer than two rows, or no row to draw.

    Example:
        >>> import torch
        >>> x = torch.randn(500, 2) * torch.tensor([1.0, 3.0])
        >>> drawn = unpaired_gaussians({"image": x, "text": x + 5}, n=20_000)
        >>> (drawn["text"].mean(0) - drawn["image"].mean(0)).round()
        tensor([5., 5.])
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _on_sphere(_draw(x, n, generator), x, unit)
        for name, x in _expect_streams(streams).items()
    }


def joint_gaussian(
    streams: Mapping[str, Tensor],
    n: int | None = None,
    seed: int = 0,
    unit: bool | None = None,
) -> dict[str, Tensor]:
    """Draw both streams from one Gaussian with their joint mean and covariance.

    So pairing is kept to second order: every covariance of an image's with a text's dimension.

    Args:
        streams: [n, d] activations by stream, row i of all of them one pair.
        n: Pairs to draw; by default as many as there are.
        seed: As for ``unpaired_gaussians``.
        unit: Likewise.

    Returns:
        [n, d] float32 by stream, row i of both a pair.

    Raises:
        VlmEditError: As ``unpaired_gaussians``, or streams of other numbers of rows.

    Example:
        >>> import torch
        >>> x = torch.randn(500, 2)
        >>> drawn = joint_gaussian({"image": x, "text": -x}, seed=1)
        >>> torch.allclose(drawn["image"], -drawn["text"], atol=1e-5)
        True
    """
    given = _expect_streams(streams)
    sizes = {name: len(x) for name, x in given.items()}
    if len(set(sizes.values())) > 1:
        raise BadArgument(f"row i of every stream must be one pair; the streams have {sizes} rows")
    whole = torch.cat([x.double() for x in given.values()], dim=1)
    drawn = _draw(whole, n, torch.Generator().manual_seed(seed))
    parts = drawn.split([x.shape[1] for x in given.values()], dim=1)
    return {
        name: _on_sphere(part, x, unit)
        for (name, x), part in zip(given.items(), parts, strict=True)
    }


def _draw(x: Tensor, n: int | None, generator: torch.Generator) -> Tensor:
    """Draw [n, d] float64 with the mean and covariance of the rows."""
    count = len(x) if n is None else n
    if count < 1:
        raise BadArgument(f"n is {n}: draw at least one row")
    mean = x.double().mean(0)
    centred = x.double() - mean
    # The symmetric root, which there is one of: any other turns with the last digits of x where
    # its rank is not full, and draws something else on another machine.
    values, vectors = torch.linalg.eigh(centred.mT @ centred)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    noise = torch.randn(count, len(root), generator=generator, dtype=torch.float64)
    drawn: Tensor = mean + noise @ root / (len(x) - 1) ** 0.5
    return drawn


def _on_sphere(drawn: Tensor, like: Tensor, unit: bool | None) -> Tensor:
    if unit is None:
        unit = bool(((like.double().norm(dim=1) - 1).abs() < _UNIT).all())
    return F.normalize(drawn, dim=1).float() if unit else drawn.float()


def _expect_streams(streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return streams on the CPU."""
    for name, x in streams.items():
        if x.ndim != 2 or len(x) < 2:
            raise BadArgument(
                f"the {name} stream is {tuple(x.shape)}: give [n, d] activations, two rows or more"
            )
        if not bool(x.isfinite().all()):
            raise BadArgument(f"the {name} stream holds NaN or infinity: take those rows out")
    if not streams:
        raise BadArgument("no streams: give activations by name, as {'image': x, 'text': y}")
    return {name: x.detach().cpu() for name, x in streams.items()}
