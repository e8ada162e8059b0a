"""More people for bias.py: drawings that do not ship, edited as the shipped ones teach."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from recipes.pairs import BACKGROUNDS, composite, load_drawings
from results import common
from results.bias_tables import BASELINE
from vlm_edit import Host, Pairs, zoo
from vlm_edit.ground.statistics import Estimate
from vlm_edit.measures.probing import probe
from vlm_edit.tasks.bias import Bench, Outcome, Questions

PEOPLE = {
    "seen drawings": ("train",),
    "held-out vendors": ("ov-dev", "ov-test"),
}
SIZE, FEW, DRAWS = 900, 103, 20
SHOWN = (
    "nothing",
    *(f"ablate {n} features" for n in (8, 16)),
    "project 8 features",
    *(f"difference of {n} features" for n in (8, 16)),
    BASELINE,
    "LEACE",
    "22 components of differences",
    "48 probes (null space)",
    "ablate 8 random 0",
)


def more(folder: Path, learn: Bench, ways: dict[str, Any]) -> dict[str, Any]:
    """What is left of gender on people that do not ship, edited by what the shipped ones teach.

    Args:
        folder: As ``python docs/experiments recipes.pairs`` renders it.
        learn: All shipped pairs.
        ways: By name.
    """
    found: dict[str, Any] = {}
    for kind in PEOPLE:
        test = people(folder, kind, learn.plain.questions)
        studies = {name: ways[name](learn, test) for name in SHOWN}
        outcomes = {name: Outcome.of(study) for name, study in studies.items()}
        found[kind] = {}
        for name, study in studies.items():
            one = outcomes[name]
            found[kind][name] = {
                key: common.told(one.estimate(key)) for key in ("read", "probe", "recognised")
            }
            found[kind][name]["few"] = common.told(few(study))
            found[kind][name]["ahead"] = common.told(one.ahead(outcomes[BASELINE], "probe"))
    return found


def people(folder: Path, kind: str, asked: Questions) -> Bench:
    """The host on so many men and women of a kind, drawn at random."""
    drawings, rows = load_drawings(folder)
    chosen = [
        i
        for i, row in enumerate(rows)
        if row["split"] in PEOPLE[kind] and row["gender"] in asked.values
    ]
    rng = random.Random(0)
    rng.shuffle(chosen)
    chosen, colours = chosen[:SIZE], list(BACKGROUNDS.values())
    images = [Image.fromarray(composite(drawings[i], rng.choice(colours))) for i in chosen]
    columns = {
        name: tuple(rows[i][name] for i in chosen) for name in ("gender", "concept", "label")
    }
    texts = tuple(f"a picture of {label}" for label in columns["label"])
    shipped = zoo.load_pairs().columns
    concept_of = dict(zip(shipped["label"], shipped["concept"], strict=True))
    concept_of |= dict(zip(columns["label"], columns["concept"], strict=True))
    labels = {f"a picture of {label}": concept for label, concept in sorted(concept_of.items())}
    questions = Questions("gender", asked.classes, label="concept", labels=labels)
    pairs = Pairs(images, texts, columns, kind)
    return Bench.read(Host.of(*zoo.load_host()), pairs, questions, batch_size=128)


def few(study: Any) -> Estimate:
    """A probe on as few people as the halves of the shipped pairs have: mean, lowest, highest."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(DRAWS):
        chosen = torch.randperm(len(study.groups), generator=generator)[:FEW].tolist()
        right = probe(study.image[chosen], [study.groups[i] for i in chosen])
        drawn.append(float(right.double().mean()))
    return Estimate(sum(drawn) / len(drawn), min(drawn), max(drawn), DRAWS)
