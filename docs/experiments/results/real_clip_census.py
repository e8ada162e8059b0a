"""How many features of each class are found where there is nothing to be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import torch

from results import common
from results.real_clip_figures import Plan, Streams, encoded, gap, r1, spread, trained
from results.real_clip_tables import DRAWN, FROZEN, REAL, UNPAIRED
from vlm_edit import Dictionary
from vlm_edit.measures.dominance import CLASSES, Cut
from vlm_edit.measures.nulls import joint_gaussian, random_dictionary, unpaired_gaussians


def other_images(streams: Streams, seed: int) -> Streams:
    """Call half of the images images, the other half texts: no modality, nor any pairing."""
    n = len(streams["image"])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    halves = order[: n // 2], order[n // 2 : n // 2 * 2]
    return {s: streams["image"][half] for s, half in zip(common.STREAMS, halves, strict=True)}


DATA: dict[str, Callable[[Streams, int], Streams]] = {
    REAL: lambda streams, _: streams,
    UNPAIRED: lambda streams, seed: unpaired_gaussians(streams, seed=seed),
    "joint Gaussian": lambda streams, seed: joint_gaussian(streams, seed=seed),
    "images beside other images": other_images,
}


def census(streams: Streams, plan: Plan) -> dict[str, Any]:
    """Count the classes in embeddings and nulls of them, and in dictionaries of random directions.

    Each null has dictionaries of its own, trained as those of the embeddings are: as
    ``frozen_dictionary`` does, but by the plan's config.
    """
    lines: dict[str, Any] = {}
    for name, make in DATA.items():
        drawn = [make(streams, seed) for seed in plan.seeds]
        pairs = list(zip(plan.seeds, drawn, strict=True))
        learnt = [trained(some, plan.config, seed) for seed, some in pairs]
        lines[name] = _counted(drawn, learnt)
        if name == REAL:
            turned = [
                random_dictionary(d, streams, seed)
                for d, seed in zip(learnt, plan.seeds, strict=True)
            ]
            lines[DRAWN] = _counted(drawn, turned)
            half = replace(plan.config, frozen="decoder")
            lines[FROZEN] = _counted(drawn, [trained(some, half, seed) for seed, some in pairs])
        print(name, lines[name], flush=True)
    return lines


def _counted(drawn: list[Streams], learnt: list[Dictionary]) -> dict[str, Any]:
    scores = [common.dominance_of(encoded(d, s)) for d, s in zip(learnt, drawn, strict=True)]
    figures: dict[str, list[float]] = {
        "gap": [gap(some) for some in drawn],
        "R@1": [r1(some) for some in drawn],
        "paired": [int(d.paired().sum()) for d in scores],
        "sd of MDS": [d.sd for d in scores],
    }
    line: dict[str, Any] = {"pairs": len(drawn[0]["image"])}
    line |= {name: spread(values) for name, values in figures.items()}
    line["classes"] = {}
    for rule in get_args(Cut):
        classes = [d.classes(rule) for d in scores]
        line["classes"][rule] = {name: spread([len(c[name]) for c in classes]) for name in CLASSES}
    return line
