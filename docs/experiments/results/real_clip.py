"""What do features of a CLIP trained on the web carry? By embeddings of 500 pairs of COCO alone.

    python docs/experiments results.real_clip --embeddings features_clip.npy

The embeddings are others' and stay out of this repository; their digest is stored with the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from results import common
from results.real_clip_nulls import (
    joint_gaussian,
    other_images,
    random_directions,
    unpaired_gaussian,
)
from results.real_clip_tables import DRAWN, SOURCE
from results.real_clip_tables import notes as notes
from results.real_clip_tables import tables as tables
from vlm_edit import Dictionary
from vlm_edit.dictionaries import TrainConfig, match_dictionaries, train_dictionary
from vlm_edit.edits import Ablate, Splice
from vlm_edit.ground.statistics import t_quantile
from vlm_edit.measures.controls import norm_matched, random_features
from vlm_edit.measures.dominance import CLASSES, Cut, Dominance, modality_gap, sureness
from vlm_edit.measures.probing import hits

OPTIONS = " --embeddings features_clip.npy"
SHAPE = (2, 500, 512)
# Everything is said here, so that other defaults of the trainer change nothing.
CONFIG = TrainConfig(
    **{"kind": "topk", "n_features": 256, "k": 8, "steps": 400, "batch_size": 256, "lr": 3e-3},
    **{"norm": "constant_norm_rescale", "center": True, "auxiliary": 1 / 32},
    **{"dead_after": 200, "clip": 0.05},
)
DEFAULT: Cut = inspect.signature(Dominance.classes).parameters["rule"].default
RULES: tuple[Cut, ...] = tuple(dict.fromkeys((DEFAULT, "significant")))
KINDS = {"a centre per stream": True, "no centre": False}
CLOSE = 0.7  # cosine above which two seeds' features are called the same
Streams = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """Say how much is tried.

    Attributes:
        config: Of every dictionary, but for its seed and its centre.
        seeds: Of dictionaries trained on all pairs.
        repeats: Divisions of the pairs into folds.
        folds: Parts of a division, each held out once.
        draws: Of random features, for each set and fold.
    """

    config: TrainConfig = CONFIG
    seeds: Sequence[int] = (0, 10, 20, 30, 40)
    repeats: int = 2
    folds: int = 5
    draws: int = 10


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
    result: dict[str, Any] = {"rule": DEFAULT, "pairs": len(streams["image"])}
    result["unedited"] = {"gap": common.rounded(gap(streams)), "R@1": common.rounded(r1(streams))}
    result["census"] = census(streams, plan)
    folds = {kind: list(divided(streams, plan, centre)) for kind, centre in KINDS.items()}
    shares = 1 / (plan.folds - 1)  # held out, of those trained on
    result["held out"] = {kind: kept(some, shares) for kind, some in folds.items()}
    centred = folds["a centre per stream"]
    result["deletion"] = {r: deletion(centred, r, plan.draws, shares) for r in RULES}
    result["gap"] = {kind: closing(some, plan.draws, shares) for kind, some in folds.items()}
    result["seeds"] = stability(streams, plan)
    return result


REAL, CROSS = "CLIP", "cross"
DATA: dict[str, Callable[[Streams, int], Streams]] = {
    REAL: lambda streams, _: streams,
    "Gaussians, unpaired": unpaired_gaussian,
    "joint Gaussian": joint_gaussian,
    "images beside other images": other_images,
}


def census(streams: Streams, plan: Plan) -> dict[str, Any]:
    """Sizes of the classes for embeddings, nulls of them, and a dictionary of random directions."""
    lines: dict[str, Any] = {}
    for name, make in DATA.items():
        drawn = [make(streams, seed) for seed in plan.seeds]
        pairs = zip(plan.seeds, drawn, strict=True)
        learnt = [trained(some, plan.config, seed) for seed, some in pairs]
        lines[name] = _counted(drawn, learnt)
        if name == REAL:
            turned = [random_directions(d, s) for d, s in zip(learnt, plan.seeds, strict=True)]
            lines[DRAWN] = _counted(drawn, turned)
        print(name, lines[name], flush=True)
    return lines


def _counted(drawn: list[Streams], learnt: list[Dictionary]) -> dict[str, Any]:
    scores = [common.dominance_of(encoded(d, s)) for d, s in zip(learnt, drawn, strict=True)]
    line: dict[str, Any] = {"pairs": len(drawn[0]["image"])}
    line["gap"], line["R@1"] = ([f(some) for some in drawn] for f in (gap, r1))
    line["paired"] = [int(d.paired().sum()) for d in scores]
    line["sd of MDS"] = [d.sd for d in scores]
    told = {name: _range(v) if isinstance(v, list) else v for name, v in line.items()}
    told["classes"] = {
        rule: {name: _range([len(d.classes(rule)[name]) for d in scores]) for name in CLASSES}
        for rule in get_args(Cut)
    }
    return told


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
    return {"correlation": over_folds(alike, share), "features": _range(counts)}


def choices(dominance: Dominance, rule: Cut) -> dict[str, list[int]]:
    """Classes by a rule, and as many features as are cross by other scores."""
    classes = dominance.classes(rule)
    n = len(classes["cross"])
    by_p = dominance.cofiring_test().nan_to_num(1.0).argsort(stable=True)
    by_r = dominance.correlation().nan_to_num(-1.0).argsort(descending=True, stable=True)
    chosen = {CROSS: classes["cross"], "as many by Fisher's p": by_p[:n].tolist(),
              "as many by correlation": by_r[:n].tolist()}  # fmt: skip
    for name in ("vision", "language"):
        sure = sureness(dominance, name)
        chosen[f"as many of {name}, the surest"] = sorted(classes[name], key=lambda k: -sure[k])[:n]
        chosen[f"all of {name}"] = classes[name]
    return chosen


def deletion(folds: list[Fold], rule: Cut, draws: int, share: float) -> dict[str, Any]:
    """What retrieval loses on held-out pairs, beyond random features that move them as far."""
    costs: dict[str, dict[int, tuple[float, ...]]] = {}
    for number, fold in enumerate(folds):
        whole = r1(fold.held)
        for name, features in choices(fold.dominance, rule).items():
            if not features:
                continue
            random = fold.as_far(features, draws)
            lost = [whole - r1(fold.without(some)) for some in (features, *random)]
            beside = sum(lost[1:]) / draws
            sizes = len(features), sum(map(len, random)) / draws
            costs.setdefault(name, {})[number] = (lost[0], lost[0] - beside, *sizes)
    lines = {}
    for name, cost in costs.items():
        own, beyond, size, others = (list(v) for v in zip(*cost.values(), strict=True))
        less = [cost[i][1] - costs[CROSS][i][1] for i in cost if i in costs.get(CROSS, {})]
        lines[name] = {
            "lost": over_folds(own, share),
            "beyond": over_folds(beyond, share),
            "more than cross": over_folds(less, share) if name != CROSS and less else None,
            "features": _range(size),
            "random": _range(others),
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
        lines[name] = {**line, "features": _range(sizes)}
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


def stability(streams: Streams, plan: Plan) -> dict[str, Any]:
    """How alike dictionaries of several seeds are, their features matched by direction."""
    learnt = [trained(streams, plan.config, seed) for seed in plan.seeds]
    lines: dict[str, list[float]] = {}
    for one, other in combinations(learnt, 2):
        matched = match_dictionaries(one, other, by="decoder").text
        cosine = F.cosine_similarity(one.decoder, matched.decoder)
        first, second = (common.dominance_of(encoded(d, streams)) for d in (one, matched))
        live = ~(first.dead | second.dead)
        for part, some in (("all", live), ("close", live & (cosine > CLOSE))):
            for name, value in _agreement(first, second, some).items():
                lines.setdefault(f"{name}, {part}", []).append(value)
        lines.setdefault("cosine", []).append(float(cosine.mean()))
        lines.setdefault("share close", []).append(float((cosine > CLOSE).double().mean()))
    return {name: _range([v for v in values if v == v]) for name, values in lines.items()}


def _agreement(first: Dominance, second: Dominance, some: Tensor) -> dict[str, float]:
    both = torch.stack([first.scores[some], second.scores[some]])
    told = {"MDS": float(torch.corrcoef(both)[0, 1]) if both.shape[1] > 1 else float("nan")}
    for rule in RULES:
        marks = []
        for dominance in (first, second):
            marks.append(torch.full((len(some),), -1))
            for i, members in enumerate(dominance.classes(rule).values()):
                marks[-1][members] = i
        told[f"kappa ({rule})"] = kappa(marks[0][some], marks[1][some])
    return told


def kappa(first: Tensor, second: Tensor) -> float:
    """Cohen's kappa of two labellings: agreement beyond that of labels dealt at random."""
    if not len(first):
        return float("nan")
    agreed = float((first == second).double().mean())
    chance = sum(
        float((first == k).double().mean() * (second == k).double().mean()) for k in first.unique()
    )
    return (agreed - chance) / (1 - chance) if chance < 1 else float("nan")


def encoded(dictionary: Dictionary, streams: Streams) -> Streams:
    """Codes by stream."""
    return {s: dictionary.encode(x, s) for s, x in streams.items()}


def trained(streams: Streams, config: TrainConfig, seed: int) -> Dictionary:
    """A dictionary of these embeddings."""
    return train_dictionary(streams, replace(config, seed=seed), progress=False)


def gap(streams: Streams) -> float:
    """Distance of the centroids of normalised embeddings."""
    return modality_gap(*(F.normalize(streams[s], dim=1) for s in common.STREAMS))


def r1(streams: Streams) -> float:
    """Share of images and texts whose nearest of the other kind is their own."""
    names = [str(i) for i in range(len(streams["image"]))]
    image, text = (streams[s] for s in common.STREAMS)
    both = hits(image, text, names, names), hits(text, image, names, names)
    return float(torch.cat(both).double().mean())


def over_folds(values: Sequence[float], share: float) -> list[float]:
    """Mean over folds with a 95 % interval that minds what folds share.

    Nadeau and Bengio's corrected variance (2003): folds train on the same pairs, so that their
    spread is widened by the share of pairs held out to those trained on.
    """
    each, n = torch.tensor(values, dtype=torch.float64), len(values)
    sd = float(each.std()) if n > 1 else float("nan")
    half = float(t_quantile(0.95, torch.tensor([max(n - 1.0, 1.0)]))) * sd * (1 / n + share) ** 0.5
    mean = float(each.mean())
    return [common.rounded(v) for v in (mean, mean - half, mean + half)] + [n]


def _range(values: Sequence[float]) -> list[float | None] | None:
    """Mean, lowest, highest and number."""
    if not values:
        return None
    mean = sum(values) / len(values)
    return [common.rounded(float(v)) for v in (mean, min(values), max(values))] + [len(values)]


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
