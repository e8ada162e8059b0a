"""Which features carry an attribute: deletion of classes beside random features, group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Ablate
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import UnknownName
from vlm_edit.ground.statistics import Estimate, mean_difference, mean_estimate, share_difference
from vlm_edit.hooks import TokenChoice
from vlm_edit.measures.controls import DeletionCurve, activity, activity_matched, deletion_curve
from vlm_edit.measures.dominance import Cut, Dominance
from vlm_edit.measures.probing import probe
from vlm_edit.patches import Patch
from vlm_edit.report import Table
from vlm_edit.selection import by_difference, difference
from vlm_edit.tasks.bias.bench import JOINT, Bench
from vlm_edit.tasks.bias.mitigation import Evidence
from vlm_edit.tasks.bias.study import Study

KINDS = ("vision", "language", "cross", "undecided")
CONTROLS = ("size", "norm")
EVERYBODY = "all"


@dataclass(frozen=True)
class Deletion:
    """What deleting a class of features does to one group, beside random features.

    Attributes:
        kind: The class.
        features: How many it has.
        metric: ``read``, whether prompts tell the attribute; ``probe``, whether a probe that is
            trained on the edited embeddings does.
        group: A value of the attribute, or ``all``.
        before: Share right without an edit (Wilson).
        after: With the class deleted (Wilson).
        loss: Before less after, image by image (Tango).
        controls: With as many random features (``size``) and with as many as move the embeddings as
            far (``norm``): mean, lowest and highest draw.
        beyond: By control how much more the class costs, over cases and draws.
        control_features: Mean number of random features.
    """

    kind: str
    features: int
    metric: str
    group: str
    before: Estimate
    after: Estimate
    loss: Estimate
    controls: Mapping[str, Estimate]
    beyond: Mapping[str, Estimate]
    control_features: Mapping[str, float]


def deletions(
    bench: Bench,
    dictionary: Dictionary,
    classes: Mapping[str, Sequence[int]],
    live: Sequence[int],
    codes: Tensor | SparseCodes,
    *,
    site: str = JOINT,
    tokens: TokenChoice = "all",
    draws: int = 10,
    seed: int = 0,
    metrics: Sequence[str] = ("read", "probe"),
) -> list[Deletion]:
    """Delete classes of features, and ask what is left of the attribute in every group.

    Args:
        bench: Host, images and questions.
        dictionary: Of the site.
        classes: Features by name, such as ``dominance.classes()``; empty ones are
            left out.
        live: Features that controls choose from.
        codes: [n, m] of what is edited, such as ``evidence.codes()``, for the norms of controls.
        site: Where features are deleted.
        tokens: Of which stream.
        draws: Of each control.
        seed: Of those.
        metrics: ``read``, ``probe`` or both.

    Returns:
        One per class, metric and group, and per class and metric one of all groups.

    Raises:
        VlmEditError: An unknown metric, or as ``deletion_curve``.
    """
    unknown = set(metrics) - set(_METRICS)
    if unknown:
        raise UnknownName(f"no metric {min(unknown)!r}: there are {', '.join(_METRICS)}")
    studies: dict[tuple[int, ...], Study] = {}

    def without(features: list[int]) -> Study:
        key = tuple(features)
        if key not in studies:
            patch = Patch(site, dictionary, Ablate(features), tokens) if features else None
            studies[key] = bench.edited(patch)
        return studies[key]

    def metric(name: str) -> Callable[[list[int]], Tensor]:
        return lambda features: _METRICS[name](without(features))

    results = []
    for kind, features in classes.items():
        if not len(features):
            continue
        for name in metrics:
            curve = deletion_curve(
                metric(name),
                *(features, live, codes, dictionary.decoder),
                fractions=(0.0, 1.0),
                draws=draws,
                seed=seed,
            )
            results += _told(kind, len(features), name, curve, bench.plain)
    return results


def deletion_table(found: Sequence[Deletion], title: str, note: str = "") -> Table:
    """Make a table with a row for each class, metric and group."""
    rows = [
        (
            f"{one.kind} ({one.features})",
            one.metric,
            f"{one.group} ({one.after.n})",
            *map(str, (one.before, one.after, one.loss)),
            *(f"{one.controls[c]} ({one.control_features[c]:.0f})" for c in CONTROLS),
            *(str(one.beyond[c]) for c in CONTROLS),
        )
        for one in found
    ]
    columns = ("deleted", "metric", "group", "before", "after", "loss", "as many random (features)")
    more = ("random that move as far", "beyond as many", "beyond as far")
    return Table(title, (*columns, *more), rows, note)


@dataclass(frozen=True)
class Leaning:
    """Where the features of one group stand between vision and language.

    Attributes:
        group: The value whose images or captions they fire more for than for the others'.
        stream: Whose codes were compared.
        features: Their numbers, strongest first.
        classes: How many are of each class.
        score: Their mean MDS, with its interval over features; 1 is vision.
        random: Mean MDS of random features as active: mean, lowest and highest draw.
    """

    group: str
    stream: str
    features: tuple[int, ...]
    classes: Mapping[str, int]
    score: Estimate | None
    random: Estimate | None


def leanings(
    evidence: Evidence,
    found: Dominance,
    rule: Cut = "interval",
    *,
    alpha: float = 0.05,
    draws: int = 100,
    seed: int = 0,
) -> list[Leaning]:
    """Say of which class the features of each group are.

    Args:
        evidence: Codes of the groups.
        found: Dominance of the dictionary's features.
        rule: Of the classes.
        alpha: False discovery rate of the test that a feature is the group's.
        draws: Of random features as active.
        seed: Of those.

    Returns:
        One per value, in the evidence's order.
    """
    members = {kind: set(numbers) for kind, numbers in found.classes(rule).items()}
    live = (~found.dead).nonzero().flatten().tolist()
    results = []
    for value, own in evidence.seen.items():
        rest = torch.cat([s.codes.dense() for v, s in evidence.seen.items() if v != value])
        features = [k for k in by_difference(own.codes, rest, alpha=alpha) if k in set(live)]
        counts = {kind: len(members[kind] & set(features)) for kind in KINDS}
        score = mean_estimate(found.scores[features], bounds=(0.0, 1.0)) if features else None
        baseline = None
        if features:
            both = activity(torch.cat([own.codes.dense(), rest]))
            pool = difference(live, features)
            sets = activity_matched(features, pool, both, draws, seed)
            means = torch.tensor([float(found.scores[numbers].mean()) for numbers in sets])
            baseline = Estimate(
                float(means.mean()), float(means.min()), float(means.max()), len(means)
            )
        results.append(Leaning(value, evidence.stream, tuple(features), counts, score, baseline))
    return results


def leaning_difference(one: Leaning, other: Leaning, found: Dominance) -> Estimate | None:
    """Estimate how much nearer to vision one group's features are than another's.

    Args:
        one: Of a group.
        other: Of another.
        found: The dominance that both were told by.

    Returns:
        Difference of mean MDS; None where a group has no feature.
    """
    if not one.features or not other.features:
        return None
    first, second = (found.scores[list(side.features)] for side in (one, other))
    return mean_difference(first, second, (0.0, 1.0))


def _probed(study: Study) -> Tensor:
    return probe(study.image[study.told_apart], study.asked_groups)


_METRICS: dict[str, Callable[[Study], Tensor]] = {"read": Study.named_right, "probe": _probed}


def _told(kind: str, count: int, metric: str, curve: DeletionCurve, plain: Study) -> list[Deletion]:
    results = []
    for group in (*plain.questions.values, EVERYBODY):
        cases = torch.tensor([group in (g, EVERYBODY) for g in plain.asked_groups])
        images = None if plain.images is None else plain.images[plain.told_apart][cases]
        part = replace(
            curve,
            values=curve.values[:, cases],
            controls={name: values[:, :, cases] for name, values in curve.controls.items()},
        )
        first, last = part.values > 0
        before, after = (mean_estimate(right, images) for right in (first, last))
        loss = share_difference(first, last, images)
        controls, beyond, sizes = {}, {}, {}
        for name, values in part.controls.items():
            means = values[:, 1].mean(1)
            ends = float(means.min()), float(means.max())
            controls[name] = Estimate(float(means.mean()), *ends, len(means))
            # Of two fractions the area is half of the difference at the second.
            area = part.area(name, images)
            beyond[name] = Estimate(2 * area.value, 2 * area.low, 2 * area.high, area.n)
            sizes[name] = float(part.control_counts[name][:, 1].double().mean())
        results.append(
            Deletion(kind, count, metric, group, before, after, loss, controls, beyond, sizes)
        )
    return results
