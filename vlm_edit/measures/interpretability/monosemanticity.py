"""Do the examples of a feature resemble each other? Scores over all examples, not the top ones.

Monosemanticity Score (MS) after Pach et al., "Sparse Autoencoders Learn Monosemantic Features in
Vision-Language Models" (arXiv 2504.02821), and the Multimodal Monosemanticity Score (MMS) of the
group-sparse SAE paper (ICLR 2026). Both weigh the cosine of each pair of examples, in an encoder
other than the studied one, by the product of their activations. Both are exact in one pass over
the activations that are not zero, because sums over pairs are squares of sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.measures.interpretability.sums import add_weighted

# Where all but this share of the squared sum of weights is one example with itself, the pairs
# are below what float64 resolves.
_RESOLVED = 1e-13
# Squared lengths above this, and below its inverse, lose nothing to the ends of float64.
_SMALL = 1e-200
_FEATURE_STATE = ("weighted", "first", "second", "low", "high", "at_low", "active")
_STATE = (*_FEATURE_STATE, "embedded", "n")


class SimilarityAccumulator:
    """Sum what MS and MMS need of one stream, over examples that come in batches.

    Activations are read by absolute value. Sums are float64 on the CPU: m * (width + 6) numbers.

    Args:
        n_features: Size m of the dictionary.
        width: Width of the embeddings.

    Example:
        >>> import torch
        >>> accumulator = SimilarityAccumulator(n_features=2, width=2)
        >>> east, north = [1.0, 0.0], [0.0, 1.0]
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> accumulator.update(codes, torch.tensor([east, east, north]))
        >>> accumulator.monosemanticity()
        tensor([1., 0.], dtype=torch.float64)
    """

    def __init__(self, n_features: int, width: int) -> None:
        if width < 1:
            raise BadArgument(f"width is {width}; embeddings need at least one dimension")
        per_feature = torch.zeros(n_features, dtype=torch.float64)
        self._weighted = torch.zeros(n_features, width, dtype=torch.float64)
        self._first, self._second = per_feature.clone(), per_feature.clone()
        self._low, self._high = per_feature + torch.inf, per_feature - torch.inf
        self._at_low = torch.zeros(n_features, dtype=torch.int64)
        self._active = torch.zeros(n_features, dtype=torch.int64)
        self._embedded = torch.zeros(width, dtype=torch.float64)
        self._n = torch.zeros((), dtype=torch.int64)

    @property
    def n_features(self) -> int:
        """Return the size m of the dictionary."""
        return len(self._first)

    @property
    def width(self) -> int:
        """Return the width of the embeddings."""
        return len(self._embedded)

    def update(self, codes: Tensor | SparseCodes, embeddings: Tensor) -> None:
        """Add examples, with their embeddings.

        Args:
            codes: [n, m], dense or sparse.
            embeddings: [n, width], of the same examples, from an encoder other than the studied
                one; any length but zero: they are normalised here.

        Raises:
            VlmEditError: Other shapes, activations that are not finite, or an embedding that is
                zero or not finite.
        """
        sparse = SparseCodes.of(codes.detach() if isinstance(codes, Tensor) else codes).to("cpu")
        shape = (len(sparse), self.width)
        if sparse.n_features != self.n_features or tuple(embeddings.shape) != shape:
            raise BadArgument(
                f"codes must be [n, {self.n_features}] and embeddings [n, {self.width}], got "
                f"{sparse.shape} and {tuple(embeddings.shape)}"
            )
        unit = normalised(embeddings)
        values = sparse.values.detach().double().abs()
        if not values.isfinite().all():
            raise BadArgument("codes hold NaN or infinity: mend them before they are scored")
        rows, features, weights = sparse.rows, sparse.features, values
        if len(sparse) < self.n_features:  # the larger of the two tables is walked in order
            order, _ = sparse.by_feature
            rows, features, weights = rows[order], features[order], weights[order]
        add_weighted(self._weighted, (rows, features, weights), unit)
        self._first.index_add_(0, sparse.features, values)
        self._second.index_add_(0, sparse.features, values.square())
        self._embedded += unit.sum(0)
        active = sparse.features.bincount(minlength=self.n_features)
        self._extremes(sparse.features, values, active, len(sparse))
        self._active += active
        self._n += len(sparse)

    def merge(self, other: SimilarityAccumulator) -> None:
        """Add the examples of another accumulator.

        Raises:
            VlmEditError: Another number of features, or another width.
        """
        if other._weighted.shape != self._weighted.shape:
            raise BadArgument(
                f"accumulators of {tuple(self._weighted.shape)} and of "
                f"{tuple(other._weighted.shape)} features and width do not merge"
            )
        self._lower(other._low, other._at_low)
        self._high = torch.maximum(self._high, other._high)
        for name in ("_weighted", "_first", "_second", "_active", "_embedded", "_n"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def compute(self) -> Tensor:
        """Return the same as ``monosemanticity``."""
        return self.monosemanticity()

    def monosemanticity(self) -> Tensor:
        """Compute the Monosemanticity Score (MS) per feature.

        The mean cosine of pairs of different examples, each weighted by the product of their
        activations, which are min-max scaled over all examples, those that do not activate the
        feature among them.

        Returns:
            [m] float64 in [-1, 1]. NaN for constant features, for features that scaling leaves
            fewer than two examples, and where one example outweighs all others by so much (about
            1e13) that float64 does not see their pairs.
        """
        low = torch.where(self._low.isfinite(), self._low, 0.0)
        first = self._first - self._n * low
        second = self._second - 2 * low * self._first + self._n * low.square()
        weighted = self._weighted - low[:, None] * self._embedded
        scale = (self._first + self._n * low).square()
        score = _over_pairs(weighted, first, second, scale)
        return score.masked_fill(self._n - self._at_low < 2, torch.nan)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was summed, to go on from."""
        return {name: getattr(self, f"_{name}").clone() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            VlmEditError: A state of another number of features, or another width.
        """
        for name in _STATE:
            mine = getattr(self, f"_{name}")
            shape = tuple(state[name].shape) if name in state else "nothing"
            if shape != tuple(mine.shape):
                raise BadArgument(
                    f"{name} of a SimilarityAccumulator must be {tuple(mine.shape)}, "
                    f"the state has {shape}"
                )
            setattr(self, f"_{name}", state[name].to("cpu", mine.dtype, copy=True))

    def _extremes(self, features: Tensor, values: Tensor, active: Tensor, n: int) -> None:
        if not n:
            return
        low = torch.full_like(self._low, torch.inf)
        low.scatter_reduce_(0, features, values, "amin")
        at_low = torch.zeros_like(self._at_low)
        silent = active < n
        low = low.masked_fill(silent, 0.0)
        at_low.index_add_(0, features, (values == low[features]).long())
        self._lower(low, torch.where(silent, n - active, at_low))
        self._high.scatter_reduce_(0, features, values, "amax")
        self._high = torch.where(silent, self._high.clamp_min(0.0), self._high)

    def _lower(self, low: Tensor, at_low: Tensor) -> None:
        """Take in other examples' minima, and how many examples lie at them."""
        lowest = torch.minimum(self._low, low)
        self._at_low = self._at_low * (self._low == lowest) + at_low * (low == lowest)
        self._low = lowest


def multimodal_monosemanticity(
    a: SimilarityAccumulator, b: SimilarityAccumulator | None = None
) -> Tensor:
    """Compute the Multimodal Monosemanticity Score (MMS) per feature.

    The mean cosine of pairs of examples, weighted by the product of their activations as they
    are. Within one stream pairs are of different examples; across two, all of one with all of the
    other. Across streams the embeddings of both must lie in one space, as those of a CLIP do.

    Args:
        a: One stream.
        b: The other stream; none for pairs within ``a``.

    Returns:
        [m] float64. NaN within a stream for fewer than two active examples (or one that outweighs
        the rest as in ``monosemanticity``), across streams where either has none.

    Raises:
        VlmEditError: Streams with other numbers of features, or embeddings of other widths.

    Example:
        >>> import torch
        >>> images, texts = SimilarityAccumulator(1, 2), SimilarityAccumulator(1, 2)
        >>> images.update(torch.tensor([[2.0], [2.0]]), torch.eye(2))
        >>> texts.update(torch.tensor([[1.0], [0.0]]), torch.eye(2))
        >>> multimodal_monosemanticity(images), multimodal_monosemanticity(images, texts)
        (tensor([0.], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    if b is None:
        score = _over_pairs(a._weighted, a._first, a._second, a._first.square())
        return score.masked_fill(a._active < 2, torch.nan)
    if a._weighted.shape != b._weighted.shape:
        raise BadArgument(
            f"streams of {tuple(a._weighted.shape)} and {tuple(b._weighted.shape)} features and "
            "width: both need the same dictionary, and one space for their embeddings"
        )
    score = (a._weighted * b._weighted).sum(1) / (a._first * b._first)
    return score.masked_fill((a._active == 0) | (b._active == 0), torch.nan)


def monosemanticity_score(codes: Tensor | SparseCodes, embeddings: Tensor) -> Tensor:
    """Compute the Monosemanticity Score of all features at once.

    Args:
        codes: [n, m], dense or sparse.
        embeddings: [n, width], of the same examples.

    Returns:
        [m] float64, as ``SimilarityAccumulator.monosemanticity``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0], [1.0], [0.0]])
        >>> monosemanticity_score(codes, torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]]))
        tensor([0.6000], dtype=torch.float64)
    """
    return _filled(codes, embeddings).monosemanticity()


def multimodal_monosemanticity_score(
    codes_a: Tensor | SparseCodes,
    embeddings_a: Tensor,
    codes_b: Tensor | SparseCodes | None = None,
    embeddings_b: Tensor | None = None,
) -> Tensor:
    """Compute the Multimodal Monosemanticity Score of all features at once.

    Args:
        codes_a: [n, m], dense or sparse.
        embeddings_a: [n, width], of the same examples.
        codes_b: [n', m] of the other stream; none for pairs within the first.
        embeddings_b: [n', width], with ``codes_b``.

    Returns:
        [m] float64, as ``multimodal_monosemanticity``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0], [1.0]])
        >>> multimodal_monosemanticity_score(codes, torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor([0.6000], dtype=torch.float64)
    """
    a = _filled(codes_a, embeddings_a)
    if codes_b is None and embeddings_b is None:
        return multimodal_monosemanticity(a)
    if codes_b is None or embeddings_b is None:
        raise BadArgument("the second stream needs both codes_b and embeddings_b")
    return multimodal_monosemanticity(a, _filled(codes_b, embeddings_b))


def normalised(embeddings: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
    """Bring embeddings to length 1, [n, width] float64 on the CPU.

    Args:
        embeddings: [n, width].
        numbers: What an error calls them; their places by default.

    Raises:
        VlmEditError: An embedding that is zero or not finite has no direction.
    """
    exact = embeddings.detach().to("cpu", torch.float64)
    squares = torch.einsum("nd,nd->n", exact, exact)
    if bool(((squares > _SMALL) & (squares < 1 / _SMALL)).all()):
        return exact * squares.rsqrt()[:, None]
    # Scaled first: squares of very small or large numbers leave float64.
    largest = exact.abs().amax(1, keepdim=True)
    wrong = (~largest.isfinite() | (largest == 0)).flatten()
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise BadArgument(
            f"the embedding of example {numbers[row] if numbers else row} is zero or not finite "
            f"and has no direction ({int(wrong.sum())} of {len(exact)} such): leave them out"
        )
    scaled = exact / largest
    unit: Tensor = scaled / scaled.norm(dim=1, keepdim=True)
    return unit


def _filled(codes: Tensor | SparseCodes, embeddings: Tensor) -> SimilarityAccumulator:
    codes = SparseCodes.of(codes.detach() if isinstance(codes, Tensor) else codes)
    if embeddings.ndim != 2:
        raise BadArgument(f"embeddings must be [n, width], got {tuple(embeddings.shape)}")
    accumulator = SimilarityAccumulator(codes.n_features, embeddings.shape[1])
    accumulator.update(codes, embeddings)
    return accumulator


def _over_pairs(weighted: Tensor, first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Average cosines of pairs of different examples by weight; ``scale`` is what was cancelled."""
    pairs = first.square() - second
    score = (weighted.square().sum(1) - second) / pairs
    return score.masked_fill(~(pairs > _RESOLVED * scale), torch.nan)
