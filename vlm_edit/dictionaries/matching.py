"""Match two dictionaries, one of each stream, feature by feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.ground.errors import BadArgument

Similarity = Literal["correlation", "decoder"]
_ROWS = 4096


def match_dictionaries(
    image: Dictionary,
    text: Dictionary,
    streams: Mapping[str, Tensor] | None = None,
    by: Similarity = "correlation",
) -> PairedDictionary[Dictionary]:
    """Put the text dictionary's features in the order in which they fit the image's best.

    Separate dictionaries find features in any order. Of all orders this one has the largest sum
    of similarities (optimal assignment, scipy's).

    Args:
        image: Trained on image activations.
        text: Trained on text activations, with as many features.
        streams: [n, d] activations, ``image`` and ``text``, row i of both a pair; for
            ``correlation``.
        by: ``correlation`` of two features' codes over pairs; or ``decoder``, the cosine of their
            decoder rows, which asks for streams that share a space.

    Returns:
        Both, the text's reordered. Features that nothing fits are matched too, to what is left.

    Raises:
        VlmEditError: Numbers of features or of rows that differ, no pairs, or an unknown
            similarity; or no scipy: ``pip install 'vlm-edit[match]'``.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> one, other = Dictionary.identity(3), Dictionary.identity(3).reordered([2, 0, 1])
        >>> both = match_dictionaries(one, other, {"image": x, "text": x})
        >>> both.text.decoder.argmax(1)
        tensor([0, 1, 2])
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise BadArgument(
            "matching needs scipy's linear_sum_assignment: pip install 'vlm-edit[match]'"
        ) from error
    if by not in get_args(Similarity):
        raise BadArgument(f"by is {by!r}; match by 'correlation' or 'decoder'")
    PairedDictionary(image, text)  # refuses two that do not fit
    if by == "decoder":
        similarity = F.normalize(image.decoder, dim=1) @ F.normalize(text.decoder, dim=1).mT
    else:
        similarity = _correlation(image, text, _expect_pairs(streams))
    _, order = linear_sum_assignment(similarity.numpy(), maximize=True)
    return PairedDictionary(image, text.reordered(order.tolist()))


def _expect_pairs(streams: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    shapes = {name: tuple(x.shape) for name, x in (streams or {}).items()}
    if streams is None or set(shapes) != {"image", "text"} or len(set(shapes.values())) != 1:
        raise BadArgument(
            "to match by correlation takes activations of pairs: tensors 'image' and 'text' with "
            f"as many rows, row i of both a pair; got {shapes or None}"
        )
    if len(streams["image"]) < 2:
        raise BadArgument(f"a correlation needs at least 2 pairs, got {len(streams['image'])}")
    return streams["image"], streams["text"]


def _correlation(image: Dictionary, text: Dictionary, x: tuple[Tensor, Tensor]) -> Tensor:
    """Return Pearson's correlations [m, m] of codes over pairs; 0 where a feature never changes."""
    m, n = image.n_features, len(x[0])
    both = torch.zeros(m, m, dtype=torch.float64)
    sums, squares = (torch.zeros(2, m, dtype=torch.float64) for _ in range(2))
    for some in zip(x[0].split(_ROWS), x[1].split(_ROWS), strict=True):
        codes = [image.encode(some[0], "image").double(), text.encode(some[1], "text").double()]
        both += codes[0].mT @ codes[1]
        sums += torch.stack([c.sum(0) for c in codes])
        squares += torch.stack([c.square().sum(0) for c in codes])
    spread = (squares / n - (sums / n).square()).clamp_min(0).sqrt()
    covariance = both / n - torch.outer(sums[0] / n, sums[1] / n)
    correlation = covariance / torch.outer(spread[0], spread[1])
    return torch.where(correlation.isfinite(), correlation, 0.0)
