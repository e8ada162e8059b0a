"""What tells two sets of examples apart: differences of features, and tests of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, VlmEditWarning
from vlm_edit.ground.statistics import benjamini_hochberg
from vlm_edit.measures.dominance import fisher_p
from vlm_edit.selection.scores import ordered

Answer = Literal["correct", "incorrect"]

_CELLS = 1 << 22  # codes made dense at once: 32 MiB in float64


def by_difference(
    positive: Tensor | SparseCodes,
    negative: Tensor | SparseCodes,
    most: int | None = None,
    *,
    alpha: float | None = 0.05,
) -> list[int]:
    """Select features that respond more to one set of examples than to another, strongest first.

    In the order of ``standardised_difference``; of those above 0 that pass a one-sided rank test
    (Mann and Whitney 1947) after Benjamini and Hochberg over features that fire at all.

    Args:
        positive: [n, m] codes.
        negative: [k, m] codes, of the contrary or of examples in general.
        most: How many at most; None for all that pass.
        alpha: False discovery rate; None for no test.

    Raises:
        VlmEditError: Codes of other sizes, fewer than two examples in a set, or no such rate.

    Example:
        >>> import torch
        >>> negative = torch.zeros(9, 3)
        >>> positive = torch.tensor([[1.0, 0.0, 3.0]] * 8 + [[0.0, 0.0, 3.0]])
        >>> by_difference(positive, negative)
        [2, 0]
    """
    strength = standardised_difference(positive, negative)
    mask = strength > 0
    if alpha is not None:
        _warn_of_few(len(positive), len(negative), alpha, False)
        mask &= benjamini_hochberg(rank_test(positive, negative), alpha)
    return ordered(strength, mask, most)


def by_direction(
    positive: Tensor | SparseCodes,
    negative: Tensor | SparseCodes,
    decoder: Tensor,
    direction: Tensor,
    most: int | None = None,
    *,
    alpha: float | None = 0.05,
) -> list[int]:
    """Select features that respond more to a concept and write along it, highest score first.

    By ``(z+ - z-) * cos(decoder row, direction)`` where it is above 0 (DIAL, ICLR 2026): z+ and
    z- are mean codes. A feature that fires less on the positive set and points away counts too.

    Args:
        positive: [n, m] codes.
        negative: [k, m] codes.
        decoder: [m, d] rows; of a paired dictionary those of the codes' stream.
        direction: [d], of the concept, such as the difference of both sets' mean activations.
        most: How many at most; None for all that pass.
        alpha: False discovery rate of a two-sided rank test; None for no test.

    Raises:
        VlmEditError: As ``by_difference``, or a decoder or direction of another size.

    Example:
        >>> import torch
        >>> positive, negative = torch.tensor([[2.0, 2.0]] * 9), torch.zeros(9, 2)
        >>> by_direction(positive, negative, torch.eye(2), torch.tensor([1.0, -1.0]))
        [0]
    """
    gains = mean_codes(positive) - mean_codes(negative)
    if decoder.shape != (len(gains), *direction.shape) or direction.ndim != 1:
        raise BadArgument(
            f"codes of {len(gains)} features and a direction of {tuple(direction.shape)} need a "
            f"decoder of a row for each feature, got {tuple(decoder.shape)}"
        )
    strength = gains * F.cosine_similarity(decoder.double(), direction.double()[None])
    mask = strength > 0
    if alpha is not None:
        _warn_of_few(len(positive), len(negative), alpha, True)
        mask &= benjamini_hochberg(rank_test(positive, negative, two_sided=True), alpha)
    return ordered(strength, mask, most)


def _warn_of_few(positive: int, negative: int, alpha: float, two_sided: bool) -> None:
    """Warn where not even codes that the sets share nothing of would pass the test."""
    apart = (torch.ones(positive, 1), torch.zeros(negative, 1))
    least = float(rank_test(*apart, two_sided=two_sided)[0])
    if least > alpha:
        warnings.warn(
            f"{positive} positive and {negative} negative examples are so few that no feature can "
            f"be significant at alpha={alpha:g} (the least p there is {least:.2g}): give more, or "
            "alpha=None for a ranking without a test",
            VlmEditWarning,
            stacklevel=4,
        )


def by_answers(
    codes: Tensor | SparseCodes,
    correct: Tensor,
    most: int | None = None,
    *,
    of: Answer = "correct",
    alpha: float | None = 0.05,
) -> list[int]:
    """Select features that fire more often where a host answered correctly, or where it did not.

    In the order of ``p(fires | correct) - p(fires | incorrect)`` (SAVE, arXiv 2512.07730), or of
    its negative; of those above 0 that pass Fisher's exact test, one-sided, after Benjamini and
    Hochberg over features that fire at all.

    Args:
        codes: [n, m], a row per question, of any dictionary: what is not 0 fires.
        correct: [n] bool.
        most: How many at most; None for all that pass.
        of: ``correct`` for features of right answers, ``incorrect`` for those of wrong ones.
        alpha: False discovery rate; None for no test.

    Raises:
        VlmEditError: Not a bool for each row, answers that are all alike, or an unknown ``of``.

    Example:
        >>> import torch
        >>> correct = torch.tensor([True] * 10 + [False] * 10)
        >>> codes = torch.stack([correct, ~correct, torch.ones(20)], dim=1).float()
        >>> by_answers(codes, correct), by_answers(codes, correct, of="incorrect")
        ([0], [1])
    """
    if of not in get_args(Answer):
        raise BadArgument(f"of is {of!r}: use one of {get_args(Answer)}")
    sparse = SparseCodes.of(codes)
    if correct.dtype != torch.bool or correct.shape != (len(sparse),):
        raise BadArgument(
            f"correct must be [{len(sparse)}] bool, one for each row of codes, got "
            f"{tuple(correct.shape)} {correct.dtype}"
        )
    hits = (correct if of == "correct" else ~correct).cpu()
    n, yes = len(hits), int(hits.sum())
    if not 0 < yes < n:
        raise BadArgument(f"all {n} answers are alike: it takes right and wrong ones to compare")
    size, features = sparse.n_features, sparse.features.cpu()
    fires = features.bincount(minlength=size)
    there = features[hits[sparse.rows.cpu()]].bincount(minlength=size)
    strength = there.double() / yes - (fires - there).double() / (n - yes)
    mask = strength > 0
    if alpha is not None:
        p = fisher_p(there, fires, torch.full_like(fires, yes), n)
        mask &= benjamini_hochberg(p.masked_fill(fires == 0, math.nan), alpha)
    return ordered(strength, mask, most)


def standardised_difference(
    positive: Tensor | SparseCodes, negative: Tensor | SparseCodes
) -> Tensor:
    """Divide the difference of mean codes by the standard deviation of all examples, by feature.

    It grows with Cohen's d, which divides by the deviation inside the sets, but stays finite
    where a feature fires in all of one set alike and in none of the other.

    Args:
        positive: [n, m] codes.
        negative: [k, m] codes.

    Returns:
        [m] float64; 0 for features that do not vary.

    Raises:
        VlmEditError: Codes of other sizes, or fewer than two examples in a set.

    Example:
        >>> import torch
        >>> standardised_difference(torch.tensor([[1.0], [1.0]]), torch.zeros(2, 1))
        tensor([2.], dtype=torch.float64)
    """
    differences = []
    for yes, no in _columns(positive, negative):
        both = torch.cat([yes, no])
        gains = (yes.mean(0) - no.mean(0)) / both.std(0, correction=0)
        # Not by the deviation: rounding leaves some to what does not vary.
        differences.append(torch.where(both.amin(0) < both.amax(0), gains, 0.0))
    return torch.cat(differences)


def rank_test(
    positive: Tensor | SparseCodes, negative: Tensor | SparseCodes, two_sided: bool = False
) -> Tensor:
    """Compute the chance that shuffling the two sets ranks the positive one as high, by feature.

    Mann and Whitney's test by the normal approximation, with the correction for ties, which
    sparse codes are full of, and for continuity; from about eight examples a set it is near the
    exact one.

    Args:
        positive: [n, m] codes.
        negative: [k, m] codes.
        two_sided: Whether lower ranks count as much as higher ones.

    Returns:
        [m] float64 p values; NaN for features that do not vary, which are no tests.

    Raises:
        VlmEditError: Codes of other sizes, or fewer than two examples in a set.

    Example:
        >>> import torch
        >>> positive, negative = torch.arange(5.0, 10.0)[:, None], torch.arange(5.0)[:, None]
        >>> round(float(rank_test(positive, negative)), 4)
        0.0061
    """
    chances = []
    for yes, no in _columns(positive, negative):
        n, k, total = len(yes), len(no), len(yes) + len(no)
        values = torch.cat([yes, no]).T.contiguous()
        ladder = values.sort(dim=1).values
        first = torch.searchsorted(ladder, values)
        last = torch.searchsorted(ladder, values, right=True)
        wins = ((first + last + 1)[:, :n] / 2.0).double().sum(1) - n * (n + 1) / 2
        ties = ((last - first).double().square() - 1).sum(1) / (total * (total - 1))
        deviation = (n * k / 12 * (total + 1 - ties)).clamp_min(0).sqrt()
        lead = wins - n * k / 2
        if two_sided:
            lead = lead.abs()
        tail = torch.special.ndtr(-(lead - 0.5) / deviation)
        p = (2 * tail).clamp(max=1) if two_sided else tail
        chances.append(torch.where(first.amin(1) == first.amax(1), math.nan, p))
    return torch.cat(chances)


def mean_codes(codes: Tensor | SparseCodes) -> Tensor:
    """Average the code of every feature over examples, [m] float64."""
    sparse = SparseCodes.of(codes)
    total = torch.zeros(sparse.n_features, dtype=torch.float64)
    total.index_add_(0, sparse.features.cpu(), sparse.values.cpu().double())
    return total / len(sparse)


def _columns(
    positive: Tensor | SparseCodes, negative: Tensor | SparseCodes
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over both sets of codes, some features at a time, dense float64 on the CPU."""
    yes, no = SparseCodes.of(positive), SparseCodes.of(negative)
    if yes.n_features != no.n_features:
        raise BadArgument(
            f"codes of {yes.n_features} features cannot be compared with codes of "
            f"{no.n_features}: encode both with one dictionary"
        )
    for name, codes in (("positive", yes), ("negative", no)):
        if len(codes) < 2:
            raise BadArgument(f"{len(codes)} {name} examples: it takes at least 2 to compare")
    step = max(1, _CELLS // (len(yes) + len(no)))
    for start in range(0, max(1, yes.n_features), step):
        stop = min(start + step, yes.n_features)
        yield _dense(yes, start, stop), _dense(no, start, stop)


def _dense(codes: SparseCodes, start: int, stop: int) -> Tensor:
    order, starts = codes.by_feature
    part = order[int(starts[start]) : int(starts[stop])]
    full = torch.zeros(len(codes), stop - start, dtype=torch.float64)
    rows, features = codes.rows[part].cpu(), codes.features[part].cpu()
    full[rows, features - start] = codes.values[part].cpu().double()
    return full
