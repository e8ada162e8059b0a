"""Gender on emoji: who carries it, what takes it out, and what that costs.

    python docs/experiments results.bias --pairs build/emoji

Images of emoji-clip. What is fitted or tuned comes from one half of the concepts, and is tested on
the other, both ways round; no concept is in both. `build/emoji` is what the zoo's pairs recipe
renders; without `--pairs` the figures of drawings that do not ship stay as they are stored.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from results import common
from results.bias_captions import captions
from results.bias_more import more
from results.bias_tables import (
    BASELINE,
    BY_CHANCE,
    CHANCE,
    COMPARED,
    DRAWS,
    NUMBERS,
    VALUES,
    K,
    tables,
)
from vlm_edit import Host, Patch, zoo
from vlm_edit.dictionaries import Dictionary
from vlm_edit.measures.dominance import Dominance
from vlm_edit.selection import difference, random_like
from vlm_edit.tasks.bias import Bench, Evidence, Outcome, Questions, Study, edit, mitigate, select
from vlm_edit.tasks.bias.baselines import (
    bend,
    calibrated_projection,
    difference_components,
    difference_in_means,
    least_squares_erasure,
    modality_centring,
    nullspace,
    prompt_difference,
)
from vlm_edit.tasks.bias.mitigation import off_probe
from vlm_edit.tasks.bias.probing import (
    CONTROLS,
    deletions,
    leaning_difference,
    leanings,
)

TEMPLATES = ("{}", "a picture of {}", "an emoji showing {}")
OURS = f"difference of {NUMBERS[0]} features"

OPTIONS = " --pairs build/emoji"

Way = Callable[[Bench, Bench], Study]  # of images to learn from, and of those to test on


def questions() -> Questions:
    """Gender by bare prompts, concepts by labels, and roles that name no gender as queries."""
    columns = zoo.load_pairs().columns
    concept_of = dict(zip(columns["label"], columns["concept"], strict=True))
    gender_of = dict(zip(columns["label"], columns["gender"], strict=True))
    named: dict[str, dict[str, str]] = {}
    for label, concept in sorted(concept_of.items()):
        if gender_of[label] in VALUES:
            named.setdefault(concept, {})[gender_of[label]] = label
    roles = [concept for concept, labels in named.items() if len(labels) == len(VALUES)]
    told = TEMPLATES[1].format
    return Questions(
        "gender",
        {value: [template.format(value) for template in TEMPLATES] for value in VALUES},
        queries=[told(role) for role in roles],
        label="concept",
        labels={told(label): concept for label, concept in sorted(concept_of.items())},
        variants={
            told(role): {value: told(named[role][value]) for value in VALUES} for role in roles
        },
    )


@cache
def bench() -> Bench:
    """The host on the shipped pairs."""
    return Bench.read(Host.of(*zoo.load_host()), zoo.load_pairs(), questions(), batch_size=128)


@cache
def halves() -> tuple[Bench, Bench]:
    """Both halves of the concepts, those with people and the others halved apart."""
    columns = zoo.load_pairs().columns
    people = sorted({c for c, g in zip(columns["concept"], columns["gender"], strict=True)
                     if g in VALUES})  # fmt: skip
    others = sorted(set(columns["concept"]) - set(people))
    first: set[str] = set()
    for names in (people, others):
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
        first |= {names[i] for i in order[: len(names) // 2]}
    sides = [[], []]  # type: list[list[int]]
    for i, concept in enumerate(columns["concept"]):
        sides[concept not in first].append(i)
    one, two = (bench().part(side) for side in sides)
    return one, two


def by_patch(make: Callable[[Bench], Patch]) -> Way:
    """A way that is a patch made of what may be learned from."""
    return lambda learn, test: test.edited(make(learn))


def by_features(number: int, way: str, only: str = "all", kind: str | None = None) -> Way:
    """So many features of gender, edited in one way."""

    def make(learn: Bench) -> Patch:
        evidence = Evidence.gather(learn, dictionary())
        within = None if kind is None else dominance().classes("significant")[kind]
        return edit(evidence, select(evidence, number, within=within), way, tokens=only)  # type: ignore[arg-type]

    return by_patch(make)


def by_chance(seed: int, way: str) -> Way:
    """As many random live features, of the others."""

    def make(learn: Bench) -> Patch:
        evidence = Evidence.gather(learn, dictionary())
        chosen = select(evidence, NUMBERS[0])
        live = (~dominance().dead).nonzero().flatten().tolist()
        drawn = random_like(chosen, difference(live, chosen), seed=seed)
        return edit(evidence, drawn, way)  # type: ignore[arg-type]

    return by_patch(make)


def tuned(way: str) -> Way:
    """Number of features and strength found on what may be learned from."""
    return by_patch(lambda learn: mitigate(learn, dictionary(), way=way).patch)  # type: ignore[arg-type]


def tuned_by_probe() -> Way:
    """Ablation that a probe on what may be learned from tells least of, for .03 of recognition."""
    return by_patch(
        lambda learn: (
            mitigate(learn, dictionary(), way="ablate", aim=off_probe, tolerance=0.03).patch
        )
    )


def ways() -> dict[str, Way]:
    """Everything that is compared."""
    found: dict[str, Way] = {"nothing": lambda _, test: test.plain}
    for way in ("ablate", "project", "difference"):
        title = "difference of" if way == "difference" else way
        for number in NUMBERS:
            found[f"{title} {number} features"] = by_features(number, way)
        found[f"{way}, tuned"] = tuned(way)
    found["ablate, tuned by a probe"] = tuned_by_probe()
    for kind in ("vision", "cross", "language"):
        found[f"ablate {NUMBERS[1]} of the {kind} class"] = by_features(
            NUMBERS[1], "ablate", kind=kind
        )
    for only in ("image", "text"):
        found[f"{OURS}, {only}s only"] = by_features(NUMBERS[0], "difference", only)
    found |= {
        BASELINE: by_patch(lambda learn: difference_in_means(learn.plain)),
        f"{BASELINE}, of captions too": by_patch(
            lambda learn: difference_in_means(learn.plain, ("image", "text"))
        ),
        "LEACE": by_patch(lambda learn: least_squares_erasure(learn.plain)),
        "8 components of differences": by_patch(
            lambda learn: difference_components(learn.plain, "concept", 8)
        ),
        "22 components of differences": by_patch(
            lambda learn: difference_components(learn.plain, "concept", 22)
        ),
        "12 probes (null space)": by_patch(lambda learn: nullspace(learn.plain, 12)),
        "48 probes (null space)": by_patch(lambda learn: nullspace(learn.plain, 48)),
        "prompt difference": by_patch(lambda learn: prompt_difference(learn.plain)),
        "calibrated projection, texts only": by_patch(
            lambda learn: calibrated_projection(learn.plain)
        ),
        "modality centring": by_patch(lambda learn: modality_centring(learn.plain)),
        "BEND-VLM (queries only)": lambda learn, test: bend(test.plain, learn.plain),
    }
    for seed in range(DRAWS):
        found[f"{CHANCE[0]} {seed}"] = by_chance(seed, "ablate")
        found[f"{CHANCE[1]} {seed}"] = by_chance(seed, "difference")
    return found


@cache
def dictionary() -> Dictionary:
    """The zoo's."""
    return zoo.load_dictionary("joint")


@cache
def dominance() -> Dominance:
    """Of its features, on the shipped pairs."""
    return common.subject("clip", "joint").dominance


def compute(folder: str | None = None) -> dict[str, Any]:
    """All tables' figures.

    Args:
        folder: Of rendered drawings; without it what is stored of them stays.
    """
    result: dict[str, Any] = {"prompts": by_prompt(), "deletions": deleted(), "leanings": leaning()}
    one, two = halves()
    found = {
        name: Outcome.of(way(one, two), K) + Outcome.of(way(two, one), K)
        for name, way in ways().items()
    }
    result["ways"] = {name: figures(one, found[BASELINE]) for name, one in found.items()}
    result["chance"] = {name: dealt(found[name]) for name in BY_CHANCE}
    result["captions"] = captions(halves())
    result["more"] = more(Path(folder), bench(), ways()) if folder else common.load("bias")["more"]
    return result


def figures(one: Outcome, baseline: Outcome) -> dict[str, Any]:
    """What is told of a way."""
    told = {name: common.told(one.estimate(name)) for name in one.cases}
    told |= {group: common.told(found) for group, found in one.by_group("read").items()}
    told["gap"] = common.told(one.gap("recognised"))
    told["worst"] = common.told(one.worst("recognised")[1])
    told["ahead"] = {name: common.told(one.ahead(baseline, name)) for name in COMPARED}
    return told


def dealt(one: Outcome) -> dict[str, Any]:
    """Its skews if genders were dealt to the images at random, and p: how often as high."""
    return {
        skew: [*common.told(one.by_chance(skew)), common.rounded(one.p(skew))]
        for skew in one.chance
    }


def by_prompt() -> dict[str, Any]:
    """How well single prompts tell gender, and how well both labels of the image's concept do."""
    plain, asked = bench().plain, questions()
    found = {}
    for i, template in enumerate(TEMPLATES):
        classes = {value: [prompts[i]] for value, prompts in asked.classes.items()}
        rows = [asked.texts().index(text) for texts in classes.values() for text in texts]
        study = Study(
            Questions("gender", classes), plain.pairs, plain.image, plain.caption, plain.text[rows]
        )
        found[template.format("man / woman")] = Outcome.of(study, folds=0)
    right = plain.named_right().clone()
    concepts = [plain.pairs.columns["concept"][i] for i in plain.told_apart]
    for j, (i, concept) in enumerate(zip(plain.told_apart, concepts, strict=True)):
        named = asked.variants.get(f"a picture of {concept}")
        if named:
            near = plain.similarity([named[value] for value in VALUES])[i]
            right[j] = VALUES[int(near.argmax())] == plain.asked_groups[j]
    with_both = torch.tensor([f"a picture of {c}" in asked.variants for c in concepts])
    groups = [g for g, both in zip(plain.asked_groups, with_both.tolist(), strict=True) if both]
    found["both labels of its concept"] = Outcome(tuple(groups), {"read": right[with_both]})
    return {
        name: {"read": common.told(one.estimate("read"))}
        | {group: common.told(e) for group, e in one.by_group("read").items()}
        for name, one in found.items()
    }


def deleted() -> list[dict[str, Any]]:
    """Deleting each class of features."""
    classes = dominance().classes("significant")
    live = (~dominance().dead).nonzero().flatten().tolist()
    codes = [Evidence.gather(bench(), dictionary(), stream=s).codes() for s in common.STREAMS]  # type: ignore[arg-type]
    found = deletions(
        bench(),
        dictionary(),
        {kind: classes[kind] for kind in ("vision", "language", "cross")},
        live,
        torch.cat(codes),
        draws=DRAWS,
    )
    return [
        {
            **{key: getattr(one, key) for key in ("kind", "features", "metric", "group")},
            **{key: common.told(getattr(one, key)) for key in ("before", "after", "loss")},
            "controls": {c: common.told(one.controls[c]) for c in CONTROLS},
            "beyond": {c: common.told(one.beyond[c]) for c in CONTROLS},
            "control_features": {c: common.rounded(one.control_features[c]) for c in CONTROLS},
        }
        for one in found
    ]


def leaning() -> list[dict[str, Any]]:
    """Of which class each gender's features are."""
    found = []
    for stream in common.STREAMS:
        evidence = Evidence.gather(bench(), dictionary(), stream=stream)  # type: ignore[arg-type]
        both = leanings(evidence, dominance())
        apart = leaning_difference(both[1], both[0], dominance())
        for one in both:
            told = {"stream": stream, "group": one.group, "features": len(one.features)}
            told |= {"classes": dict(one.classes)}
            for name, value in (("score", one.score), ("random", one.random), ("apart", apart)):
                told[name] = None if value is None else common.told(value)
            found.append(told)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", help="what the zoo's pairs recipe rendered")
    found = compute(parser.parse_args().pairs)
    common.save("bias", found)
    print("\n\n".join(str(table) for table in tables(found)))
