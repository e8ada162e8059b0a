"""What can be read off a representation: linear probes, retrieval, zero-shot classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument

_CHUNK = 1024


def probe(
    values: Tensor, labels: Sequence[str], folds: int = 5, ridge: float = 1e-2, seed: int = 0
) -> Tensor:
    """Tell for every case whether a linear probe that has not seen it names its label.

    A ridge classifier, one label against the rest, on standardised values, cross-validated.

    Args:
        values: [n, m] float.
        labels: n of them, at least two different.
        folds: Parts; each is predicted from the others.
        ridge: Penalty, as a share of the number of training cases.
        seed: Of the folds.

    Returns:
        [n] bool.

    Raises:
        VlmEditError: Fewer cases than folds, or one label only.

    Example:
        >>> import torch
        >>> values = torch.tensor([[0.0], [1.0]] * 10)
        >>> bool(probe(values, ["no", "yes"] * 10).all())
        True
    """
    return probe_each(values, {"": labels}, folds, ridge, seed)[""]


def probe_each(
    values: Tensor,
    labels: Mapping[str, Sequence[str]],
    folds: int = 5,
    ridge: float = 1e-2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Run ``probe`` for several sets of labels of the same cases, at the price of one."""
    truths = {name: _numbered(values, column, folds) for name, column in labels.items()}
    sizes = [int(truth.max()) + 1 for truth in truths.values()]
    pairs = zip(truths.values(), sizes, strict=True)
    target = torch.cat([F.one_hot(truth, size) for truth, size in pairs], dim=1).double()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    right = {name: torch.zeros(len(values), dtype=torch.bool) for name in truths}
    for test in order.chunk(folds):
        train = torch.ones(len(values), dtype=torch.bool)
        train[test] = False
        scores = _ridge(values[train].double(), target[train], values[test].double(), ridge)
        for (name, truth), part in zip(truths.items(), scores.split(sizes, dim=1), strict=True):
            right[name][test] = part.argmax(1) == truth[test]
    return right


def _numbered(values: Tensor, labels: Sequence[str], folds: int) -> Tensor:
    names = sorted(set(labels))
    if len(values) != len(labels) or len(values) < folds or len(names) < 2:
        raise BadArgument(
            f"a probe needs a label per case, two different ones and {folds} cases: got "
            f"{len(values)} cases, {len(labels)} labels, {len(names)} different"
        )
    index = {name: i for i, name in enumerate(names)}
    return torch.tensor([index[label] for label in labels])


def _ridge(train: Tensor, target: Tensor, test: Tensor, ridge: float) -> Tensor:
    mean, sd = train.mean(0), train.std(0).clamp_min(1e-9)
    x, offset = (train - mean) / sd, target.mean(0)
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights: Tensor = torch.linalg.solve(gram, x.T @ (target - offset))
    return (test - mean) / sd @ weights + offset


def hits(
    queries: Tensor,
    keys: Tensor,
    query_labels: Sequence[str],
    key_labels: Sequence[str],
    k: int = 1,
) -> Tensor:
    """Tell whether a query has a key of its own label among its k nearest by cosine.

    Ties with keys of other labels count against it.

    Args:
        queries: [n, d].
        keys: [c, d].
        query_labels: n of them.
        key_labels: c of them.
        k: Keys that count.

    Returns:
        [n] bool.

    Example:
        >>> import torch
        >>> hits(torch.tensor([[2.0, 1.0]]), torch.eye(2), ["cat"], ["dog", "cat"])
        tensor([False])
    """
    if len(queries) != len(query_labels) or len(keys) != len(key_labels):
        raise BadArgument(
            f"{len(queries)} queries and {len(keys)} keys need a label each, got "
            f"{len(query_labels)} and {len(key_labels)}"
        )
    index = {name: i for i, name in enumerate(dict.fromkeys([*query_labels, *key_labels]))}
    own, other = (torch.tensor([index[name] for name in names]) for names in
                  (query_labels, key_labels))  # fmt: skip
    queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    verdicts = []
    for some, labels in zip(queries.split(_CHUNK), own.split(_CHUNK), strict=True):
        similarity, relevant = some @ keys.mT, labels[:, None] == other[None, :]
        best = similarity.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
        rivals = ((similarity >= best) & ~relevant).sum(1)
        verdicts.append((rivals < k) & best.squeeze(1).isfinite())
    return torch.cat(verdicts)


def variance_explained(values: Tensor, labels: Sequence[str]) -> Tensor:
    """Compute each column's share of variance that lies between groups of a label (eta squared).

    Args:
        values: [n, m].
        labels: n of them.

    Returns:
        [m] float64; 0 for a column without variance.

    Example:
        >>> import torch
        >>> variance_explained(torch.tensor([[1.0, 0.0], [1.0, 1.0], [3.0, 0.0]]), ["a", "a", "b"])
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    names = sorted(set(labels))
    member = torch.tensor([[label == name for name in names] for label in labels]).double()
    centred = values.double() - values.double().mean(0)
    means = member.T @ centred / member.sum(0)[:, None]
    between = (member.sum(0)[:, None] * means.square()).sum(0)
    total = centred.square().sum(0)
    return torch.where(total > 1e-12, between / total.clamp_min(1e-12), 0.0)
