"""Does dominance see the modality gap shrink? The gap and the scores under treatments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate, mean_estimate
from vlm_edit.measures.dominance import Dominance, modality_dominance, modality_gap

Treatment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Codes = Tensor | SparseCodes
Encode = Callable[[Tensor, Tensor], tuple[Codes, Codes]]
Metric = Callable[[Tensor, Tensor], Tensor | Sequence[float] | Sequence[bool]]


@dataclass(frozen=True, eq=False)
class GapUnder:
    """Hold what one treatment of the embeddings leaves.

    Attributes:
        gap: Distance of the centroids of the normalised embeddings (Liang et al. 2022).
        dominance: Of the dictionary on the treated embeddings.
        metric: Mean of the metric, with its interval over cases; None without one.
    """

    gap: float
    dominance: Dominance
    metric: Estimate | None


def gap_under(
    image: Tensor,
    text: Tensor,
    treatments: Mapping[str, Treatment],
    encode: Encode,
    metric: Metric | None = None,
) -> dict[str, GapUnder]:
    """Measure the modality gap and the dominance of features as embeddings are treated.

    Args:
        image: [n, d] embeddings, in the space in which treatments act: for a dictionary with a
            norm, normed (``dictionary.encoder.normalise``).
        text: [n, d], of the same pairs.
        treatments: Each from both streams to both, such as ``centred``, ``standardised`` and
            ``deleted(...)``. The embeddings as they are come first, as ``raw``.
        encode: From both treated streams to codes [n, m] of each. A dictionary that centres
            streams itself cannot see a treatment that moves their means.
        metric: From both treated streams to one value per case, such as hits of retrieval.

    Raises:
        VlmEditError: Shapes that differ, or a treatment called ``raw``.

    Example:
        >>> import torch
        >>> image = torch.tensor([[3.0, 1.0], [3.0, -1.0]])
        >>> text = torch.tensor([[-1.0, 1.0], [-1.0, -1.0]])
        >>> results = gap_under(image, text, {"centred": centred}, lambda i, t: (i, t))
        >>> results["centred"].gap
        0.0
        >>> results["raw"].dominance.scores, results["centred"].dominance.scores
        (tensor([0.7500, 0.5000], dtype=torch.float64),
         tensor([0.5000, 0.5000], dtype=torch.float64))
    """
    if "raw" in treatments:
        raise BadArgument("'raw' is the embeddings as they are: call the treatment otherwise")
    if image.shape != text.shape or image.ndim != 2:
        raise BadArgument(
            f"embeddings of pairs must both be [n, d], got {tuple(image.shape)} and "
            f"{tuple(text.shape)}"
        )
    results = {}
    for name, treat in {"raw": _as_they_are, **treatments}.items():
        images, texts = treat(image, text)
        mean = None
        if metric is not None:
            mean = mean_estimate(torch.as_tensor(metric(images, texts)).double())
        scores = modality_dominance(*encode(images, texts))
        results[name] = GapUnder(modality_gap(images, texts), scores, mean)
    return results


def centred(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Move each stream so that its mean is the mean of both.

    Example:
        >>> import torch
        >>> centred(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]]))
        (tensor([[3.],
                [5.]]), tensor([[3.],
                [5.]]))
    """
    grand = (image.mean(0) + text.mean(0)) / 2
    return image - image.mean(0) + grand, text - text.mean(0) + grand


def standardised(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Give each stream the mean of both, and in each dimension the root mean variance of both.

    A dimension that does not vary in a stream only moves there.

    Example:
        >>> import torch
        >>> images, texts = standardised(
        ...     torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [14.0]])
        ... )
        >>> images.flatten(), texts.flatten()
        (tensor([-0.5000,  9.5000]), tensor([-0.5000,  9.5000]))
    """
    grand = (image.mean(0) + text.mean(0)) / 2
    sds = [x.std(0, correction=0) for x in (image, text)]
    both = ((sds[0].square() + sds[1].square()) / 2).sqrt()
    # Where nothing varies, a standard deviation is what rounding leaves of none.
    varies = [x.amax(0) > x.amin(0) for x in (image, text)]
    scales = [torch.where(v, both / sd, 1.0) for v, sd in zip(varies, sds, strict=True)]
    images = (image - image.mean(0)) * scales[0] + grand
    return images, (text - text.mean(0)) * scales[1] + grand


def deleted(encode: Encode, decoder: Tensor, features: Sequence[int]) -> Treatment:
    """Return a treatment that takes out what some features write, ``x - code[features] @ decoder``.

    Args:
        encode: As in ``gap_under``; asked once, with the embeddings as they are.
        decoder: [m, d].
        features: Deleted.

    Raises:
        VlmEditError: A feature that is not there.

    Example:
        >>> import torch
        >>> treat = deleted(lambda i, t: (i, t), torch.eye(2), [1])
        >>> treat(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
        (tensor([[1., 0.]]), tensor([[3., 0.]]))
    """
    wrong = [k for k in features if not 0 <= k < len(decoder)]
    if wrong:
        raise BadArgument(
            f"feature {wrong[0]} is not there: there are features 0 to {len(decoder) - 1}"
        )
    mask = torch.zeros(len(decoder), dtype=torch.bool)
    mask[torch.as_tensor(list(features), dtype=torch.int64)] = True

    def part(codes: Codes) -> Tensor:
        sparse = SparseCodes.of(codes)
        entries = mask.to(sparse.features.device)[sparse.features]
        rows, columns, values = (t[entries] for t in (sparse.rows, sparse.features, sparse.values))
        counts = rows.bincount(minlength=len(sparse))
        return torch.nn.functional.embedding_bag(
            columns,
            decoder,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=values.to(decoder.dtype),
        )

    def treat(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images, texts = encode(image, text)
        return image - part(images), text - part(texts)

    return treat


def one_sided_change(before: Dominance, after: Dominance) -> Estimate:
    """Measure how much more one-sided features became: the mean change of ``|2 MDS - 1|``.

    Over features that are alive before and after, with the interval over them; NaN
    where there is none. A score that sees the gap shrink has it below 0.

    Example:
        >>> import torch
        >>> from vlm_edit.measures.dominance import modality_dominance
        >>> before = modality_dominance(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        >>> after = modality_dominance(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
        >>> one_sided_change(before, after).value
        -0.5
    """
    change = (2 * after.scores - 1).abs() - (2 * before.scores - 1).abs()
    numbers = change[~change.isnan()]
    return mean_estimate(numbers) if len(numbers) else Estimate(math.nan, math.nan, math.nan, 0)


def _as_they_are(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    return image, text
