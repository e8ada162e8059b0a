"""What each class of features tells of the known factors of the bundled pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_edit.ground.statistics import (
    Estimate,
    auc_estimate,
    drawn_difference,
    proportion,
    ratio_estimate,
    ratio_figures,
)
from vlm_edit.measures.controls import random_features
from vlm_edit.measures.dominance import Dominance, modality_dominance
from vlm_edit.measures.probing import hits, probe_each, variance_explained
from vlm_edit.measuring import Pairs
from vlm_edit.report import Table
from vlm_edit.selection import Kind

VISION_ONLY = ("background", "vendor")
TEXT_ONLY = ("language", "phrasing")
PROBED = (
    ("background", "image"),
    ("language", "text"),
    ("phrasing", "text"),
    ("group", "image"),
)
QUANTITIES = (*(factor for factor, _ in PROBED), "retrieval R@1")
SHOWN: tuple[Kind, ...] = ("vision", "language", "cross")
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
        known: Whether it is known to hold on the zoo. Only a verdict that is not the known one
            says that something broke; some claims are untrue, and are printed so.
    """

    claim: str
    holds: bool
    evidence: str
    known: bool = True


def as_known(verdicts: Sequence[Check]) -> bool:
    """Say whether every claim came out as it is known to."""
    return all(check.holds == check.known for check in verdicts)


@dataclass(eq=False)
class Reading:
    """What can be read off codes, or off embeddings, of the two streams.

    Args:
        pairs: With the factors as columns.
    """

    pairs: Pairs

    def read(self, streams: Codes, embed: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
        """Say per quantity whether each pair is read right, [n] bool.

        Args:
            streams: [n, m] for ``image`` and ``text``: what the probes see.
            embed: From those to the space in which images and texts are compared.
        """
        right: dict[str, Tensor] = {}
        for stream, values in streams.items():
            columns = {name: self.pairs.columns[name] for name, where in PROBED if where == stream}
            right |= probe_each(values, columns)
        labels = self.pairs.columns["label"]
        matches = hits(embed(streams["image"]), embed(streams["text"]), labels, labels)
        return [*(right[name] for name, _ in PROBED), matches]


def factor_table(
    reading: Reading, codes: Codes, decoder: Tensor, classes: Mapping[str, list[int]]
) -> tuple[Table, dict[tuple[str, str], Tensor]]:
    """Return what can be read when as many features of one class are kept as of any other.

    Args:
        reading: Reads off codes.
        codes: [n, m] per stream.
        decoder: [m, d], for the comparison of images and texts.
        classes: Features of each class.

    Returns:
        The table with random features of the same number, and by class (or ``random``) and
        quantity whether each pair is read right, [draws, n] bool.
    """

    def keep(features: Sequence[int]) -> list[Tensor]:
        index = torch.as_tensor(features)
        part = {stream: code[:, index] for stream, code in codes.items()}
        return reading.read(part, lambda code: code @ decoder[index])

    live = alive(classes)
    sets = as_many(classes)
    (size,) = {len(draw) for draws in sets.values() for draw in draws} or {0}
    rows, right = [], {}
    for name, draws in sets.items():
        readings = [keep(draw) for draw in draws]
        rows.append((_kept(name, size, classes), _told(readings)))
        for column, hits_of in zip(QUANTITIES, zip(*readings, strict=True), strict=True):
            right[name, column] = torch.stack(hits_of)
    rows.append((f"all live ({len(live)})", estimates(keep(live))))
    table = Table(
        "Keep as many features of each class: what can still be read",
        ("kept features", *QUANTITIES),
        [(name, *(e.text(2) for e in figures)) for name, figures in rows],
        f"{note(len(reading.pairs))}\nOf a class with more features as many are drawn, "
        f"{DRAWS} times: mean, [lowest, highest].",
    )
    return table, right


def alive(classes: Mapping[str, list[int]]) -> list[int]:
    """List every feature that is not dead, of whatever class, rising."""
    return sorted(k for name, members in classes.items() if name != "dead" for k in members)


def as_many(
    classes: Mapping[str, list[int]], draws: int = DRAWS, seed: int = 0
) -> dict[str, list[list[int]]]:
    """Draw as many features of every class as the smallest has, and of all live ones, at random.

    More features of a class tell more of anything: only equal numbers can be compared. A class
    without a feature is left out; one that has no more than that is drawn once.

    Args:
        classes: Features by class.
        draws: Of each class.
        seed: Of the draws.

    Returns:
        Sets of features by class, and by ``random``.
    """
    sources = {name: classes[name] for name in SHOWN if classes[name]}
    if not sources:
        return {}
    size = min(map(len, sources.values()))
    return {
        name: random_features(range(size), members, draws if len(members) > size else 1, seed)
        for name, members in (*sources.items(), ("random", alive(classes)))
    }


def _kept(name: str, size: int, classes: Mapping[str, list[int]]) -> str:
    if name not in classes:
        return f"{size} random"
    whole = len(classes[name])
    return f"{name} ({size})" if whole == size else f"{name} ({size} of {whole})"


def _told(draws: Sequence[list[Tensor]]) -> list[Estimate]:
    return over_draws(draws) if len(draws) > 1 else estimates(draws[0])


def class_rows(
    classes: Mapping[str, list[int]], read: Callable[[list[int]], list[Tensor]], seed: int
) -> list[tuple[str, list[Estimate]]]:
    """Return what each class of features gives, and beside it as many random live ones.

    Args:
        classes: Features of each class.
        read: From features to whether each pair is read right, per quantity.
        seed: Of the random features.
    """
    live = alive(classes)
    rows = []
    for number, name in enumerate(SHOWN):
        size = len(classes[name])
        if not size:
            continue
        rows.append((f"{name} ({size})", estimates(read(classes[name]))))
        sets = random_features(classes[name], live, DRAWS, seed + number)
        rows.append((f"{size} random", over_draws([read(features) for features in sets])))
    return rows


def checks(
    found: Dominance,
    classes: Mapping[str, list[int]],
    codes: Codes,
    pairs: Pairs,
    right: Mapping[tuple[str, str], Tensor],
) -> list[Check]:
    """Check whether the classes recover what is known of the pairs; pairs of a concept are one."""
    concepts = numbered_by(pairs.columns["concept"])
    return [
        _beats(right, "vision", "background", concepts),
        _beats(right, "language", "phrasing", concepts),
        _beats(right, "language", "language", concepts),
        replace(_beats(right, "cross", "group", concepts), known=False),
        _beats(right, "cross", "retrieval R@1", concepts),
        replace(_recovers(codes, pairs, VISION_ONLY, "image"), known=False),
        _recovers(codes, pairs, TEXT_ONLY, "text"),
        replace(_fires_together(found, classes, codes, concepts), known=False),
    ]


def numbered_by(column: Sequence[str]) -> Tensor:
    """Return a number for each value of a column, [n].

    Example:
        >>> numbered_by(["dog", "cat", "dog"])
        tensor([0, 1, 0])
    """
    numbers = {value: i for i, value in enumerate(dict.fromkeys(column))}
    return torch.tensor([numbers[value] for value in column])


def _beats(
    right: Mapping[tuple[str, str], Tensor], name: str, column: str, concepts: Tensor
) -> Check:
    """Check that more is read right than from as many features of other classes, or random ones."""
    claim = f"{column} is read best from {name} features"
    if (name, column) not in right:
        return Check(claim, False, f"no feature is {name}")
    own = right[name, column].double()
    ahead = {
        other: drawn_difference(own, right[other, column].double(), concepts)
        for other in (*SHOWN, "random")
        if other != name and (other, column) in right
    }
    beside = ", ".join(f"{estimate} than {other}" for other, estimate in ahead.items())
    return Check(claim, all(e.low > 0 for e in ahead.values()), f"{_figure(own)}; more by {beside}")


def _figure(right: Tensor) -> str:
    """Return the mean over draws, three decimals without leading zeros."""
    return f"{float(right.mean()):.3f}".removeprefix("0")


def _recovers(codes: Codes, pairs: Pairs, factors: Sequence[str], stream: str) -> Check:
    """Check on odd pairs that MDS ranks first what carries a factor on even ones.

    Whatever fires in images leans to vision, so that the features must also rank before others
    that fire as often there as the rarest of them.
    """
    even, odd = range(0, len(pairs), 2), slice(1, None, 2)
    own = codes[stream][::2]
    columns = [[pairs.columns[name][i] for i in even] for name in factors]
    shares = torch.stack([variance_explained(own, column) for column in columns])
    carries = shares.amax(0) > CARRIES  # NaN is not
    scores = modality_dominance(codes["image"][odd], codes["text"][odd]).scores
    known, fires = ~scores.isnan(), (own != 0).sum(0)
    scores = scores if stream == "image" else 1 - scores
    claim = (
        f"MDS finds the features of {stream}-only factors ({', '.join(factors)}), among as active "
        "ones too"
    )
    if not bool((carries & known).any()):
        return Check(claim, False, "no feature carries one")
    active = known & (fires >= int(fires[carries & known].min()))
    among_all, alike = (auc_estimate(scores[part], carries[part]) for part in (known, active))
    return Check(
        claim,
        among_all.low > 0.5 and alike.low > 0.5,
        f"AUC {among_all}, {among_all.n} of {int(known.sum())} features carry one (eta^2 > "
        f"{CARRIES}, even pairs; MDS of odd ones);\n    {alike} among the {int(active.sum())} that "
        f"fire as often in {stream}s",
    )


def _fires_together(
    found: Dominance, classes: Mapping[str, list[int]], codes: Codes, concepts: Tensor
) -> Check:
    """Check that a class fires together more often than by chance, and than random features do."""
    claim = (
        "cross-modal features fire together on matched rather than shuffled pairs more than as "
        "many random ones"
    )
    chosen = classes["cross"]
    if not chosen or found.n_pairs < 2:
        return Check(claim, False, "no feature is cross")
    matched, shuffled = _together(codes, chosen)
    times = ratio_estimate(matched, shuffled, concepts)
    draws = [_together(codes, f) for f in random_features(chosen, alive(classes), DRAWS, 0)]
    own = ratio_figures(matched, shuffled)[None]
    ahead = drawn_difference(own, torch.stack([ratio_figures(*draw) for draw in draws]), concepts)
    return Check(
        claim,
        times.low > 1 and ahead.low > 0,
        f"{times.value:.1f} times [{times.low:.1f}, {times.high:.1f}] as often, {len(chosen)} "
        f"features; more by {ahead.value:.1f} [{ahead.low:.1f}, {ahead.high:.1f}] than random",
    )


def _together(codes: Codes, features: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Count for each image features that fire in its text too, and in another pair's on average."""
    index = torch.as_tensor(features)
    seen, said = ((codes[stream][:, index] != 0).double() for stream in ("image", "text"))
    return (seen * said).sum(1), (seen * (said.sum(0) - said)).sum(1) / (len(said) - 1)


def estimates(right: Sequence[Tensor]) -> list[Estimate]:
    """Return shares with their intervals."""
    return [proportion(int(column.sum()), len(column)) for column in right]


def over_draws(draws: Sequence[Sequence[Tensor]]) -> list[Estimate]:
    """Return the mean share over random draws; lowest and highest in place of an interval."""
    columns = zip(*draws, strict=True)
    shares = [[float(right.double().mean()) for right in column] for column in columns]
    return [Estimate(sum(s) / len(s), min(s), max(s), len(draws[0][0])) for s in shares]


def note(n: int) -> str:
    """Say how to read a table of shares."""
    return (
        f"Shares of {n} pairs, with 95 % Wilson intervals: 5-fold linear probes (group: of the "
        "concept),\nand retrieval of a text of the image's label. "
        f"Random rows: mean of {DRAWS} draws of as many live features, [lowest, highest]."
    )
