"""What do features of a CLIP trained on the web carry? By embeddings of 500 pairs of COCO alone.

    python docs/experiments results.real_clip --embeddings features_clip.npy

The embeddings are others' and stay out of this repository; their digest is stored with the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from results import common
from results.real_clip_census import census
from results.real_clip_figures import CONFIG as CONFIG
from results.real_clip_figures import (
    RULES,
    Plan,
    Streams,
    encoded,
    gap,
    over_folds,
    r1,
    spread,
    trained,
)
from results.real_clip_tables import CLOSE, CROSS, FISHER, SOURCE
from results.real_clip_tables import DRAWN as DRAWN
from results.real_clip_tables import FROZEN as FROZEN
from results.real_clip_tables import notes as notes
from results.real_clip_tables import tables as tables
from vlm_edit import Dictionary
from vlm_edit.edits import Ablate, Splice
from vlm_edit.measures.controls import norm_matched, random_features
from vlm_edit.measures.dominance import Cut, Dominance, candidates, sureness
from vlm_edit.measures.stability import stability_of_halves, stability_of_seeds

OPTIONS = " --embeddings features_clip.npy"
SHAPE = (2, 500, 512)
KINDS = {"a centre per stream": True, "no centre": False}


@dataclass(frozen=True, eq=False)
class Fold:
    """A dictionary and scores of most pairs, and the pairs that neither has seen.

    Attributes:
        trained: Embeddings that it was trained and scored on, by stream.
        held: The others.
        dictionary: Trained on the first.
        codes: Of the first.
        dominance: Of the same codes.
        seed: Of random features.
    """

    trained: Streams
    held: Streams
    dictionary: Dictionary
    seed: int
    codes: Streams = field(init=False)
    dominance: Dominance = field(init=False)

    def __post_init__(self) -> None:
        """Score the features."""
        object.__setattr__(self, "codes", encoded(self.dictionary, self.trained))
        object.__setattr__(self, "dominance", common.dominance_of(self.codes))

    @property
    def live(self) -> list[int]:
        """Features that any pair activates."""
        return (~self.dominance.dead).nonzero().flatten().tolist()

    def without(self, features: list[int]) -> Streams:
        """Held-out embeddings from which features were deleted, the dictionary's error kept."""
        splice = Splice.of(self.dictionary, [Ablate(features)])
        return {s: splice(x, stream=s) for s, x in self.held.items()} if features else self.held

    def as_far(self, features: list[int], draws: int) -> list[list[int]]:
        """Random features whose deletion moves the embeddings as far."""
        both = torch.cat([self.codes[s] for s in common.STREAMS])
        return norm_matched(features, self.live, both, self.dictionary.decoder, draws, self.seed)


def compute(streams: Streams, plan: Plan = Plan()) -> dict[str, Any]:  # noqa: B008
    """Every table's figures."""
    result: dict[str, Any] = {"rule": RULES[0], "pairs": len(streams["image"])}
    result["unedited"] = {"gap": common.rounded(gap(streams)), "R@1": common.rounded(r1(streams))}
    result["census"] = census(streams, plan)
    folds = {kind: list(divided(streams, plan, centre)) for kind, centre in KINDS.items()}
    shares = 1 / (plan.folds - 1)  # held out, of those trained on
    result["held out"] = {kind: kept(some, shares) for kind, some in folds.items()}
    centred = folds["a centre per stream"]
    result["deletion"] = {rule: deletion(centred, rule, plan, shares) for rule in RULES}
    result["gap"] = {kind: closing(some, plan.draws, shares) for kind, some in folds.items()}
    learnt = [trained(streams, plan.config, seed) for seed in plan.seeds]
    result["seeds"] = seeds(learnt, streams)
    result["halves"] = halves(learnt, streams, plan.draws)
    return result


def divided(streams: Streams, plan: Plan, centre: bool) -> Iterator[Fold]:
    """Folds of every division, each with a dictionary of its own."""
    n = len(streams["image"])
    config = replace(plan.config, center=centre)
    for repeat in range(plan.repeats):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(repeat))
        for number, held in enumerate(order.chunk(plan.folds)):
            rest = torch.ones(n, dtype=torch.bool)
            rest[held] = False
            most = {s: x[rest] for s, x in streams.items()}
            seed = 10 * (repeat * plan.folds + number)
            yield Fold(most, {s: x[held] for s, x in streams.items()},
                       trained(most, config, seed), seed)  # fmt: skip


def kept(folds: list[Fold], share: float) -> dict[str, Any]:
    """How alike the scores of the same features are on pairs that nobody has seen."""
    alike, counts = [], []
    for fold in folds:
        other = common.dominance_of(encoded(fold.dictionary, fold.held))
        live = ~(fold.dominance.dead | other.dead)
        both = torch.stack([fold.dominance.scores[live], other.scores[live]])
        alike.append(float(torch.corrcoef(both)[0, 1]))
        counts.append(int(live.sum()))
    return {"correlation": over_folds(alike, share), "features": spread(counts)}


def choices(dominance: Dominance, rule: Cut, ranked: int) -> dict[str, list[int]]:
    """Classes by a rule, and as many features by other scores.

    Where labels are earned, few features are cross: there so many are taken as are asked for, the
    surest of those on the class's side of the cuts, as ``by_class`` does.
    """
    classes = dominance.classes(rule)
    n = ranked if rule == "interval" else len(classes[CROSS])

    def surest(kind: str) -> list[int]:
        marked = candidates(dominance, kind, rule)
        sure = sureness(dominance, kind).masked_fill(~marked, -torch.inf)
        order: list[int] = sure.argsort(descending=True, stable=True).tolist()
        return order[: min(n, int(marked.sum()))]

    by_p = dominance.cofiring_test().nan_to_num(1.0).argsort(stable=True)
    by_r = dominance.correlation().nan_to_num(-1.0).argsort(descending=True, stable=True)
    chosen = {CROSS: surest(CROSS), FISHER: by_p[:n].tolist(),
              "as many by correlation": by_r[:n].tolist()}  # fmt: skip
    for name in ("vision", "language"):
        chosen[f"as many of {name}, the surest"] = surest(name)
        chosen[f"all of {name}"] = classes[name]
    return chosen


def deletion(folds: list[Fold], rule: Cut, plan: Plan, share: float) -> dict[str, Any]:
    """What retrieval loses on held-out pairs, beyond random features that move them as far."""
    costs: dict[str, dict[int, tuple[float, ...]]] = {}
    for number, fold in enumerate(folds):
        whole = r1(fold.held)
        for name, features in choices(fold.dominance, rule, plan.ranked).items():
            if not features:
                continue
            random = fold.as_far(features, plan.draws)
            lost = [whole - r1(fold.without(some)) for some in (features, *random)]
            beside = sum(lost[1:]) / plan.draws
            sizes = len(features), sum(map(len, random)) / plan.draws
            costs.setdefault(name, {})[number] = (lost[0], lost[0] - beside, *sizes)
    lines = {}
    for name, cost in costs.items():
        own, beyond, size, others = (list(v) for v in zip(*cost.values(), strict=True))
        less = [cost[i][1] - costs[CROSS][i][1] for i in cost if i in costs.get(CROSS, {})]
        lines[name] = {
            "lost": over_folds(own, share),
            "beyond": over_folds(beyond, share),
            "more than cross": over_folds(less, share) if name != CROSS and less else None,
            "features": spread(size),
            "random": spread(others),
        }
    print(rule, lines, flush=True)
    return lines


def closing(folds: list[Fold], draws: int, share: float) -> dict[str, Any]:
    """The gap and retrieval of held-out pairs without unimodal features, and without the means."""
    told: dict[str, dict[int, tuple[float, ...]]] = {}
    for number, fold in enumerate(folds):
        for name, (left, size) in _taken_away(fold, draws).items():
            each = [sum(map(f, left)) / len(left) for f in (gap, r1)]
            told.setdefault(name, {})[number] = (*each, size)
    lines: dict[str, Any] = {}
    for name, values in told.items():
        gaps, right, sizes = (list(v) for v in zip(*values.values(), strict=True))
        line = {"gap": over_folds(gaps, share), "R@1": over_folds(right, share)}
        lines[name] = {**line, "features": spread(sizes)}
        if name.startswith("random"):
            own = told[f"unimodal features{name[name.index(' (') :]}"]
            for place, what in enumerate(("gap", "R@1")):
                less = [own[i][place] - each[place] for i, each in values.items()]
                lines[name][f"{what} of unimodal, less this"] = over_folds(less, share)
    print(lines, flush=True)
    return lines


def _taken_away(fold: Fold, draws: int) -> dict[str, tuple[list[Streams], float]]:
    """Held-out embeddings without this or that, and how many features that is."""
    left: dict[str, tuple[list[Streams], float]] = {"nothing": ([fold.held], 0)}
    for rule in RULES:
        classes = fold.dominance.classes(rule)
        chosen = classes["vision"] + classes["language"]
        if not chosen:
            continue
        sets = {
            f"unimodal features ({rule})": [chosen],
            f"random ones, as many ({rule})": random_features(chosen, fold.live, draws, fold.seed),
            f"random ones, as far ({rule})": fold.as_far(chosen, draws),
        }
        for name, some in sets.items():
            left[name] = [fold.without(each) for each in some], sum(map(len, some)) / len(some)
    means = {s: fold.held[s] - x.mean(0) for s, x in fold.trained.items()}
    return left | {"the means of both streams": ([means], 0)}


def seeds(learnt: list[Dictionary], streams: Streams) -> dict[str, Any]:
    """How alike dictionaries of several seeds are, their features matched by direction."""
    lines: dict[str, Any] = {}
    for rule in RULES:
        stable = stability_of_seeds(learnt, streams, rule=rule, least=CLOSE)
        known = stable.pairs
        lines |= {
            "cosine": spread([pair.similarity for pair in known]),
            "share close": spread([pair.matched for pair in known]),
            "MDS, all": spread([pair.correlation for pair in known]),
            "MDS, close": spread([pair.close_correlation for pair in known]),
            f"kappa ({rule}), all": spread([pair.agreement.kappa for pair in known]),
            f"kappa ({rule}), close": spread([pair.close.kappa for pair in known if pair.close]),
            f"share in all ({rule})": spread([float(stable.recurs.double().mean())]),
        }
    return lines


def halves(learnt: list[Dictionary], streams: Streams, draws: int) -> dict[str, Any]:
    """How alike scores and classes of the same features are from two halves of the pairs."""
    lines: dict[str, Any] = {}
    for rule in RULES:
        known = [
            stability_of_halves(*encoded(d, streams).values(), rule=rule, draws=draws)
            for d in learnt
        ]
        both = [draw for stable in known for draw in stable.draws]
        lines |= {
            "MDS": spread([value for stable in known for value in stable.correlations]),
            f"share ({rule})": spread([draw.share for draw in both]),
            f"kappa ({rule})": spread([draw.kappa for draw in both]),
            f"decided ({rule})": spread([draw.decided for draw in both]),
            f"conflicts ({rule})": spread([draw.conflicts for draw in both]),
        }
    return lines


def read(path: Path) -> tuple[Streams, str]:
    """Embeddings of a file, by stream, and its digest.

    Raises:
        SystemExit: It is not there, or holds something else.
    """
    if not path.is_file():
        sys.exit(f"{path} is not there: it is {SOURCE}, given as --embeddings PATH")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = np.load(path, allow_pickle=False)
    if found.shape != SHAPE or found.dtype != np.float32 or not np.isfinite(found).all():
        sys.exit(
            f"{path} holds {found.dtype} {found.shape}; what is wanted is finite float32 {SHAPE}, "
            f"images and then texts: {SOURCE}"
        )
    return dict(zip(common.STREAMS, torch.from_numpy(found).unbind(), strict=True)), digest


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, prog="real_clip.py")
    parser.add_argument("--embeddings", type=Path, required=True, help=SOURCE)
    streams, digest = read(parser.parse_args().embeddings)
    print(f"SHA-256 {digest}")
    torch.set_num_threads(1)
    result = {"sha256": digest, **compute(streams)}
    common.save("real_clip", result)
    print("\n\n".join(str(table) for table in tables(result)))
