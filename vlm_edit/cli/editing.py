"""``vlm-edit edit``: make a patch or take a saved one, and show what it does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vlm_edit.cli.arguments import Cut, Edit
from vlm_edit.cli.kept import save_edit
from vlm_edit.cli.patching import expect_folder_of
from vlm_edit.cli.subject import Subject, tell_left_out
from vlm_edit.edits import Rule, rule_from_dict
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.measuring import Measurement
from vlm_edit.patches import Patch, load_patch
from vlm_edit.report import Table


def edit(options: Edit) -> int:
    """Print what a patch does to retrieval, and save it if asked."""
    _expect_one_way(options)
    if options.save:
        expect_folder_of(Path(options.save), f"--save {options.save}")
    subject = Subject.load(options)
    subject.expect_joint()
    run = subject.load_run(options.run) if options.run else None
    if options.patch is not None:
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
        [(name, *shown.row(before)) for name, shown in {"nothing": before, **after}.items()],
        f"{subject.read} pairs, 95 % Wilson intervals; a text equal to the image's own "
        "counts.\nMoved: mean of |after - before| / |before|. Random: one draw of live features.",
    )
    print(table)
    tell_left_out(subject.skipped, subject.truncated)
    if options.save:
        next(iter(named.values())).save(options.save, subject.host)
        print(f"\npatch:  {options.save}")
    if run is not None and options.run:
        name, first = next(iter(after.items()))
        shown = first.changed(before, f"What images find, before and after: {name}")
        save_edit(Path(options.run), table, shown, run.checksum())
        print(f"\npage:   vlm-edit report {options.run}")
    return 0


def _make_patches(options: Edit, subject: Subject, run: Measurement | None) -> dict[str, Patch]:
    """Make the patch asked for, and one on as many random features for comparison."""
    dictionary = subject.expect_dictionary()
    rule = options.rule or "ablate"
    cuts: Cut = options.cuts or "significant"
    live: Sequence[int] = range(dictionary.n_features)
    if options.features is not None:
        features = _numbers(options.features)
        title = f"{rule} {len(features)} features"
    else:
        assert options.name is not None
        dominance = (run or subject.measure()).dominance
        features = dominance.classes(cuts)[options.name]
        live = (~dominance.dead).nonzero().flatten().tolist()
        title = f"{rule} {options.name} ({len(features)})"
        if not features:
            raise VlmEditError(
                f"no feature is {options.name}-dominant by the cuts {dominance.cuts(cuts)}: try "
                f"--cuts {'sd' if cuts == 'fixed' else 'fixed'}"
            )
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(0))
    control = [live[i] for i in order[: len(features)].tolist()]
    return {
        name: Patch(subject.site, dictionary, _rule(options, chosen), options.tokens or "all")
        for name, chosen in ((title, features), (f"{rule} {len(control)} random", control))
    }


def _expect_one_way(options: Edit) -> None:
    """Refuse two ways at once: a saved patch says all of it."""
    ways = {"--patch": options.patch, "--class": options.name, "--features": options.features}
    named = [way for way, value in ways.items() if value is not None]
    if len(named) != 1:
        several = " and ".join(named) or "none"
        raise BadArgument(f"edit takes one of --patch, --class and --features, got {several}")
    if options.patch is None:
        return
    making = ("dictionary", "cuts", "rule", "factor", "value", "amount", "strength", "tokens")
    given = [name for name in making if getattr(options, name) is not None]
    if given:
        raise BadArgument(f"--patch applies a patch as it was saved: leave --{given[0]} out")


def _rule(options: Edit, features: Sequence[int]) -> Rule:
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
