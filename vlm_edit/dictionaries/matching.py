"""Match two dictionaries feature by feature: one of each stream, or two of the same streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.activation_store import MappedRows
from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.paired import STREAMS, PairedDictionary
from vlm_edit.ground.errors import BadArgument

Similarity = Literal["correlation", "decoder"]
_ROWS = 4096


def match_dictionaries(
    image: Dictionary,
    text: Dictionary,
    streams: Mapping[str, Tensor | MappedRows] | None = None,
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
    _expect_similarity(by)
    PairedDictionary(image, text)  # refuses two that do not fit
    if by == "decoder":
        similarity = decoder_cosines(image, text)
    else:
        x, y = _expect_pairs(streams)
        similarity = _correlation(
            (image.encode(some, "image"), text.encode(other, "text"))
            for some, other in zip(x.split(_ROWS), y.split(_ROWS), strict=True)
        )
    return PairedDictionary(image, text.reordered(best_order(similarity).tolist()))


def match_features(
    one: Dictionary,
    other: Dictionary,
    streams: Mapping[str, Tensor | MappedRows] | None = None,
    by: Similarity = "decoder",
) -> tuple[Tensor, Tensor]:
    """Find for each feature of a dictionary its counterpart in another of the same streams.

    One to one, with the largest sum of similarities, as ``match_dictionaries`` has it.

    Args:
        one: Such as trained with one seed.
        other: Such as trained with another, with as many features.
        streams: [n, d] activations by stream, for ``correlation``: both dictionaries encode all of
            them.
        by: ``decoder``, the cosine of decoder rows; or ``correlation`` of codes.

    Returns:
        [m] numbers of features of the other, and [m] how similar they are to the first's.

    Raises:
        VlmEditError: As ``match_dictionaries``.

    Example:
        >>> from vlm_edit import Dictionary
        >>> one, other = Dictionary.identity(3), Dictionary.identity(3).reordered([2, 0, 1])
        >>> match_features(one, other)
        (tensor([1, 2, 0]), tensor([1., 1., 1.]))
    """
    _expect_similarity(by)
    PairedDictionary(one, other)
    if by == "decoder":
        similarity = decoder_cosines(one, other)
    else:
        if not set(streams or {}) & set(STREAMS):
            raise BadArgument("to match by correlation takes activations: 'image', 'text' or both")
        assert streams is not None
        similarity = _correlation(
            (one.encode(some, name), other.encode(some, name))
            for name in STREAMS
            for some in (streams[name].split(_ROWS) if name in streams else ())
        ).float()
    order = best_order(similarity)
    return order, similarity.gather(1, order[:, None])[:, 0]


def decoder_cosines(one: Dictionary, other: Dictionary) -> Tensor:
    """Return the cosines [m, m] of two dictionaries' decoder rows."""
    return F.normalize(one.decoder, dim=1) @ F.normalize(other.decoder, dim=1).mT


def best_order(similarity: Tensor) -> Tensor:
    """Return for each row its own column, one to one, with the largest sum of similarities.

    Raises:
        VlmEditError: No scipy.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise BadArgument(
            "matching needs scipy's linear_sum_assignment: pip install 'vlm-edit[match]'"
        ) from error
    _, order = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(order)


def _expect_similarity(by: str) -> None:
    if by not in get_args(Similarity):
        raise BadArgument(f"by is {by!r}; match by 'correlation' or 'decoder'")


def _expect_pairs(
    streams: Mapping[str, Tensor | MappedRows] | None,
) -> tuple[Tensor | MappedRows, Tensor | MappedRows]:
    shapes = {name: tuple(x.shape) for name, x in (streams or {}).items()}
    if streams is None or set(shapes) != {"image", "text"} or len(set(shapes.values())) != 1:
        raise BadArgument(
            "to match by correlation takes activations of pairs: tensors 'image' and 'text' with "
            f"as many rows, row i of both a pair; got {shapes or None}"
        )
    if len(streams["image"]) < 2:
        raise BadArgument(f"a correlation needs at least 2 pairs, got {len(streams['image'])}")
    return streams["image"], streams["text"]


def _correlation(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return Pearson's correlations [m, m] of codes over rows; 0 where a feature never changes."""
    n, moments = 0, None
    for codes in parts:
        one, other = (c.double() for c in codes)
        part = [one.mT @ other, one.sum(0), other.sum(0)]
        part += [one.square().sum(0), other.square().sum(0)]
        moments = part if moments is None else [a + b for a, b in zip(moments, part, strict=True)]
        n += len(one)
    assert moments is not None
    both, *sums = (moment / n for moment in moments)
    spread = [(sums[i + 2] - sums[i].square()).clamp_min(0).sqrt() for i in range(2)]
    correlation = (both - torch.outer(sums[0], sums[1])) / torch.outer(*spread)
    return torch.where(correlation.isfinite(), correlation, 0.0)
