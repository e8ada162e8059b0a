"""What each class of features tells of the known factors of the bundled pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.dominance import Dominance
from vlm_edit.pairs import Pairs
from vlm_edit.probing import hits, probe_each, variance_explained
from vlm_edit.report import Table
from vlm_edit.statistics import (
    Estimate,
    auc_estimate,
    mean_estimate,
    proportion,
    ratio_estimate,
)

VISION_ONLY = ("background", "vendor")
TEXT_ONLY = ("language", "phrasing")
PROBED = (
    ("background", "image"),
    ("language", "text"),
    ("phrasing", "text"),
    ("group", "image"),
)
QUANTITIES = (*(factor for factor, _ in PROBED), "retrieval R@1")
SHOWN = ("vision", "language", "cross")
CARRIES = 0.1
DRAWS = 5

Codes = Mapping[str, Tensor]


@dataclass(frozen=True)
class Check:
    """Something that must hold if the scores recover what is known.

    Attributes:
        claim: What is claimed.
        holds: Whether it does.
        evidence: The figures.
    """

    claim: str
    holds: bool
    evidence: str


@dataclass(eq=False)
class Reading:
    """What can be read off codes, or off embeddings, of the two streams.

    Args:
        pairs: With the factors as columns.
    """

    pairs: Pairs

    def read(self, streams: Codes, embed: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
        """Per quantity, whether each pair is read right, [n] bool.

        Args:
            streams: [n, m] for ``image`` and ``text``: what the probes see.
            embed: From those to the space in which images and texts are compared.
        """
        read: dict[str, Tensor] = {}
        for stream, values in streams.items():
            asked = {name: self.pairs.columns[name] for name, where in PROBED if where == stream}
            read |= probe_each(values, asked)
        labels = self.pairs.columns["label"]
        found = hits(embed(streams["image"]), embed(streams["text"]), labels, labels)
        return [*(read[name] for name, _ in PROBED), found]


def factor_table(
    reading: Reading, codes: Codes, decoder: Tensor, classes: Mapping[str, list[int]]
) -> tuple[Table, dict[tuple[str, str], Tensor]]:
    """What remains to be read when only one class of features is kept.

    Args:
        reading: Reads off codes.
        codes: [n, m] per stream.
        decoder: [m, d], for the comparison of images and texts.
        classes: Features of each class.

    Returns:
        The table with random features of the same number beside each class, and by class and
        quantity whether each pair is read right, [n] bool.
    """

    def keep(features: Sequence[int]) -> list[Tensor]:
        index = torch.as_tensor(features)
        kept = {stream: code[:, index] for stream, code in codes.items()}
        return reading.read(kept, lambda code: code @ decoder[index])

    rows, read = class_rows(classes, keep, seed=0)
    live = [k for name in SHOWN for k in classes[name]]
    rows.append((f"all live ({len(live)})", estimates(keep(live))))
    right = {
        (name, column): hit
        for name, kept in read.items()
        for column, hit in zip(QUANTITIES, kept, strict=True)
    }
    table = Table(
        "Keep one class of features: what can still be read",
        ("kept features", *QUANTITIES),
        [(name, *(e.text(2) for e in found)) for name, found in rows],
        note(len(reading.pairs)),
    )
    return table, right


def class_rows(
    classes: Mapping[str, list[int]], read: Callable[[list[int]], list[Tensor]], seed: int
) -> tuple[list[tuple[str, list[Estimate]]], dict[str, list[Tensor]]]:
    """What each class of features gives, and beside it as many random live ones.

    Args:
        classes: Features of each class.
        read: From features to whether each pair is read right, per quantity.
        seed: Of the random features.

    Returns:
        Rows of estimates, and what was read by class.
    """
    live = sorted(k for name in SHOWN for k in classes[name])
    generator = torch.Generator().manual_seed(seed)
    rows, found = [], {}
    for name in SHOWN:
        size = len(classes[name])
        if not size:
            continue
        found[name] = read(classes[name])
        rows.append((f"{name} ({size})", estimates(found[name])))
        draws = [
            read([live[i] for i in torch.randperm(len(live), generator=generator)[:size].tolist()])
            for _ in range(DRAWS)
        ]
        rows.append((f"{size} random", over_draws(draws)))
    return rows, found


def checks(
    found: Dominance, codes: Codes, pairs: Pairs, right: Mapping[tuple[str, str], Tensor]
) -> list[Check]:
    """Whether the classes recover what is known of the pairs."""
    return [
        _beats(right, "vision", "background"),
        _beats(right, "language", "phrasing"),
        _beats(right, "language", "language"),
        _beats(right, "cross", "group"),
        _beats(right, "cross", "retrieval R@1"),
        _recovers(found, codes["image"], pairs, VISION_ONLY, "vision-only", found.scores),
        _recovers(found, codes["text"], pairs, TEXT_ONLY, "text-only", 1 - found.scores),
        _fires_together(found),
    ]


def _beats(right: Mapping[tuple[str, str], Tensor], name: str, column: str) -> Check:
    """More pairs are read right than from any other class, by a paired bootstrap."""
    claim = f"{column} is read best from {name} features"
    if (name, column) not in right:
        return Check(claim, False, f"no feature is {name} by mean -+ sd")
    own = right[name, column].double()
    ahead = {
        other: mean_estimate(own - right[other, column].double())
        for other in SHOWN
        if other != name and (other, column) in right
    }
    (share,) = estimates([right[name, column]])
    beside = ", ".join(f"ahead of {other} by {estimate}" for other, estimate in ahead.items())
    return Check(claim, all(e.low > 0 for e in ahead.values()), f"{share}; {beside}")


def _recovers(
    found: Dominance,
    codes: Tensor,
    pairs: Pairs,
    factors: Sequence[str],
    kind: str,
    scores: Tensor,
) -> Check:
    live = ~found.dead
    shares = torch.stack([variance_explained(codes, pairs.columns[f]) for f in factors])
    carries = (shares.amax(0) > CARRIES)[live]
    area = auc_estimate(scores[live], carries)
    return Check(
        f"MDS finds the features of {kind} factors ({', '.join(factors)}): AUC at least .90",
        area.value >= 0.90,
        f"AUC {area}, {area.n} of {int(live.sum())} live features carry one (eta^2 > {CARRIES})",
    )


def _fires_together(found: Dominance) -> Check:
    matched, shuffled = found.cofiring()
    cross = torch.as_tensor(found.classes("sd")["cross"])
    ratio = ratio_estimate(matched[cross], shuffled[cross])
    return Check(
        "cross-modal features fire on both sides of matched pairs at least 8 times as often as "
        "of shuffled ones",
        ratio.value >= 8,
        f"{float(matched[cross].mean()):.3f} against {float(shuffled[cross].mean()):.3f}: "
        f"{ratio.value:.1f} times [{ratio.low:.1f}, {ratio.high:.1f}], {len(cross)} features",
    )


def estimates(right: Sequence[Tensor]) -> list[Estimate]:
    """Shares with their intervals."""
    return [proportion(int(column.sum()), len(column)) for column in right]


def over_draws(draws: Sequence[Sequence[Tensor]]) -> list[Estimate]:
    """Mean share over random draws, with the lowest and the highest in place of an interval."""
    columns = zip(*draws, strict=True)
    shares = [[float(right.double().mean()) for right in column] for column in columns]
    return [Estimate(sum(s) / len(s), min(s), max(s), len(draws[0][0])) for s in shares]


def note(n: int) -> str:
    """How to read a table of shares."""
    return (
        f"Shares of {n} pairs, with 95 % Wilson intervals: 5-fold linear probes (group: of the "
        "concept),\nand retrieval of a text of the image's label. "
        f"Random rows: mean of {DRAWS} draws of as many live features, [lowest, highest]."
    )
