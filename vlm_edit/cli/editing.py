"""``vlm-edit edit``: make a patch or take a saved one, and show what it does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from vlm_edit.cli.kept import save_edit
from vlm_edit.cli.patching import expect_folder_of
from vlm_edit.cli.subject import Subject, tell_left_out
from vlm_edit.edits import Rule, rule_from_dict
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.measures.dominance import Cut
from vlm_edit.measuring import Measurement
from vlm_edit.patches import Patch, load_patch
from vlm_edit.report import Table


def edit(options: argparse.Namespace) -> int:
    """``vlm-edit edit``."""
    _expect_one_way(options)
    if options.save_to:
        expect_folder_of(Path(options.save_to), f"--save {options.save_to}")
    subject = Subject.load(options)
    subject.expect_joint()
    run = subject.load_run(options.into) if options.into else None
    if options.patch:
        named = {"the patch": load_patch(options.patch)}
    else:
        named = _make_patches(options, subject, run)
    for patch in named.values():
        patch.check(subject.host)
    before = subject.retrieval(None)
    after = {name: subject.retrieval(patch) for name, patch in named.items()}
    table = Table(
        "Retrieval of a text by its image, before and after",
        ("edited", "R@1", "R@5", "embeddings moved by"),
        [(name, *found.row(before)) for name, found in {"nothing": before, **after}.items()],
        f"{subject.read} pairs, 95 % Wilson intervals; a text equal to the image's own "
        "counts.\nMoved: mean of |after - before| / |before|. Random: one draw of live features.",
    )
    print(table)
    tell_left_out(subject.skipped, subject.truncated)
    if options.save_to:
        next(iter(named.values())).save(options.save_to, subject.host)
        print(f"\npatch:  {options.save_to}")
    if run is not None:
        name, found = next(iter(after.items()))
        shown = found.changed(before, f"What images find, before and after: {name}")
        save_edit(Path(options.into), table, shown, run.checksum())
        print(f"\npage:   vlm-edit report {options.into}")
    return 0


def _make_patches(
    options: argparse.Namespace, subject: Subject, run: Measurement | None
) -> dict[str, Patch]:
    """The patch asked for, and one on as many random features for comparison."""
    dictionary = subject.expect_dictionary()
    rule = options.rule or "ablate"
    cuts: Cut = options.cuts or "significant"
    live: Sequence[int] = range(dictionary.n_features)
    if options.features is not None:
        features = _numbers(options.features)
        title = f"{rule} {len(features)} features"
    else:
        found = run or subject.measure()
        classes = found.dominance.classes(cuts)
        features = classes[options.name]
        live = (~found.dominance.dead).nonzero().flatten().tolist()
        title = f"{rule} {options.name} ({len(features)})"
        if not features:
            raise VlmEditError(
                f"no feature is {options.name}-dominant by the cuts "
                f"{found.dominance.cuts(cuts)}: try --cuts "
                f"{'sd' if cuts == 'fixed' else 'fixed'}"
            )
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(0))
    control = [live[i] for i in order[: len(features)].tolist()]
    return {
        name: Patch(subject.site, dictionary, _rule(options, chosen), options.tokens or "all")
        for name, chosen in ((title, features), (f"{rule} {len(control)} random", control))
    }


def _expect_one_way(options: argparse.Namespace) -> None:
    """A saved patch says all of it; what else is asked for would be ignored."""
    if not options.patch:
        return
    making = ("dictionary", "cuts", "rule", "factor", "value", "amount", "strength", "tokens")
    given = [name for name in making if getattr(options, name) is not None]
    if given:
        raise BadArgument(f"--patch applies a patch as it was saved: leave --{given[0]} out")


def _rule(options: argparse.Namespace, features: Sequence[int]) -> Rule:
    kind = options.rule or "ablate"
    needed = {"scale": "factor", "clamp": "value", "steer": "amount"}.get(kind)
    given = {name for name in ("factor", "value", "amount") if getattr(options, name) is not None}
    if given != ({needed} if needed else set()):
        mend = f"--{needed} and nothing else" if needed else "none of --factor, --value, --amount"
        raise BadArgument(f"--rule {kind} takes {mend}")
    values = {needed: getattr(options, needed)} if needed else {}
    strength = 1.0 if options.strength is None else options.strength
    return rule_from_dict({"kind": kind, "features": features, "strength": strength, **values})


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise BadArgument(f"--features takes numbers such as 3,17,40, got {text!r}") from error
