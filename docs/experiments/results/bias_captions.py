"""Captions of bias.py: what emoji-llava calls people, edited at two of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from results import common
from results.bias_tables import BASELINE, QUESTION, SAID, VALUES
from vlm_edit import Host, Patch, zoo
from vlm_edit.hooks import TokenChoice
from vlm_edit.selection import difference, random_like
from vlm_edit.tasks.bias import Bench, Evidence, edit, select
from vlm_edit.tasks.bias.baselines import project_out
from vlm_edit.tasks.bias.captions import Captions, describe

DRAWS = 3
# Site, whose tokens, features, and ways.
SETS = (
    ("language.0", "image", 32, ("ablate", "project", "difference")),
    ("language.3", "text", 8, ("ablate", "project", "difference")),
)


def captions(halves: tuple[Bench, Bench]) -> dict[str, Any]:
    """Answers about people of the half that was not learned from, both ways round."""
    model, processor = zoo.load_llava()
    # Features are chosen on the tokens that are edited: all text that is no image.
    host = Host.of(model, processor, prompt=common.with_special)
    made: dict[str, list[Captions]] = {}
    for learn, test in (halves, halves[::-1]):
        patches: dict[str, Patch | None] = {"nothing": None}
        for site, stream, count, ways in SETS:
            patches |= edits(host, learn, site, stream, count, ways)
        pairs, numbers = test.plain.pairs, test.plain.told_apart
        images = [pairs.open(i) for i in numbers]
        wanted = [pairs.columns["label"][i] for i in numbers]
        for name, patch in patches.items():
            with patch.attach(host) if patch else nullcontext():
                said = describe(host, images, QUESTION)
            made.setdefault(name, []).append(Captions(said, test.plain.asked_groups, wanted))
    return {name: told(joined(parts)) for name, parts in made.items()}


def edits(
    host: Host,
    learn: Bench,
    site: str,
    stream: str,
    count: int,
    ways: tuple[str, ...],
) -> Mapping[str, Patch]:
    """Patches at a site, of features and without, and of random features."""
    pairs = learn.plain.pairs
    pairs = replace(pairs, texts=(QUESTION,) * len(pairs))  # no caption may tell the gender
    evidence = Evidence.of(host, zoo.load_dictionary(site), pairs, "gender", VALUES, site, stream)
    tokens: TokenChoice = "text+special" if stream == "text" else "image"
    chosen = select(evidence, count)
    live = evidence.codes().abs().amax(0).nonzero().flatten().tolist()
    found = {
        f"{site}, {way} {'of ' if way == 'difference' else ''}{count} features": edit(
            evidence,
            chosen,
            way,  # type: ignore[arg-type]
            tokens=tokens,
        )
        for way in ways
    }
    means = [seen.normed.mean(0) for seen in evidence.seen.values()]
    found[f"{site}, {BASELINE}"] = project_out((means[1] - means[0])[None], tokens, site)
    for seed in range(DRAWS):
        drawn = random_like(chosen, difference(live, chosen), seed=seed)
        found[f"{site}, project {count} random, draw {seed + 1}"] = edit(
            evidence, drawn, "project", tokens=tokens
        )
    return found


def joined(parts: list[Captions]) -> Captions:
    """Both halves' captions."""
    one, two = parts
    return Captions([*one.said, *two.said], [*one.groups, *two.groups], [*one.wanted, *two.wanted])


def told(found: Captions) -> dict[str, Any]:
    """Shares of each gender's captions that name men, women or neither, and the other words."""
    shown: dict[str, Any] = {
        group: {kind: common.told(found.shares(group)[kind]) for kind in SAID} for group in VALUES
    }
    shown["words"] = common.told(found.quality())
    return shown
