"""``vlm-edit edit``: make a patch or take a saved one, and show what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Cut, Edit
from vlm_edit.cli.beside import print_table
from vlm_edit.cli.choosing import choose, said
from vlm_edit.cli.effects import Effect, answers, retrieval
from vlm_edit.cli.kept import save_edit
from vlm_edit.cli.patching import expect_folder_of, open_patch
from vlm_edit.cli.subject import Subject
from vlm_edit.cli.writing import expect_free
from vlm_edit.edits import Rule, rule_from_dict
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host
from vlm_edit.measuring import Measurement
from vlm_edit.patches import Patch
from vlm_edit.tasks.answers import expect_speaks, speaks

CUTS: Cut = "interval"  # unless --cuts says another
_MUTE = "has no joint embedding and does not speak"


def edit(options: Edit) -> int:
    """Print what a patch does to retrieval or to answers, and save it if asked."""
    _expect_one_way(options)
    if options.save:
        expect_folder_of(Path(options.save), f"--save {options.save}")
        expect_free([Path(options.save)], options.overwrite, "name another file with --save")
    saved_patch = None
    if options.patch is not None:
        saved_patch = open_patch(options.patch, verify=not options.no_verify)
        options = replace(options, site=saved_patch.bindings[0].site)
    subject = Subject.load(options)
    effect_of = _shown(options, subject.host)
    run = subject.load_run(options.run) if options.run else None
    named = {"the patch": saved_patch} if saved_patch else _make_patches(options, subject, run)
    for patch in named.values():
        patch.attach(subject.host, check_host=not options.no_check_host).remove()
    if options.save:
        next(iter(named.values())).save(options.save, subject.host)
    if effect_of is None:
        print(f"{subject.host.kind.__name__} {_MUTE}, so the effect is not shown\n")
        telling.wrote("patch", options.save)
        return 0
    effect = effect_of(subject, named, options)
    telling.table(effect.table, show=print_table)
    telling.left_out(subject.skipped, subject.truncated)
    if effect.edited:
        print(f"\n{effect.edited}")
    if options.save:
        print()
        telling.wrote("patch", options.save)
    if run is not None and options.run:
        save_edit(Path(options.run), effect.table, effect.examples, run.checksum())
        print()
        telling.wrote("page", f"vlm-edit report {options.run}")
    return 0


def _shown(options: Edit, host: Host) -> Callable[..., Effect] | None:
    """Return what shows an edit of this host; None where nothing can, and it is only saved."""
    if options.shown < 1:
        raise BadArgument(f"--shown {options.shown}: it must be at least 1")
    if options.ask is not None:
        if not options.ask.strip():
            raise BadArgument("--ask is empty: ask something, such as 'what is it?'")
        expect_speaks(host, "leave --ask out")
        return answers
    if "joint" in host.sites:
        return retrieval
    if speaks(host):
        return answers
    if options.run or not options.save:
        mend = "leave --run out" if options.run else "keep the patch with --save FILE"
        raise BadArgument(f"{host.kind.__name__} {_MUTE}: nothing can be shown; {mend}")
    return None


def _make_patches(options: Edit, subject: Subject, run: Measurement | None) -> dict[str, Patch]:
    """Make the patch asked for, and one on as many random features for comparison."""
    dictionary = subject.expect_dictionary()
    rule = options.rule or "ablate"
    cuts: Cut = options.cuts or CUTS
    live: Sequence[int] = range(dictionary.n_features)
    if options.features is not None:
        features = _numbers(options.features)
        title = f"{rule} {len(features)} features"
    else:
        assert options.name is not None
        dominance = (run or subject.measure()[0]).dominance
        features = choose(dominance, options.name, cuts, options.most)
        live = (~dominance.dead).nonzero().flatten().tolist()
        title = f"{rule} {options.name} ({said(features)})"
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
    making = (
        *("dictionary", "cuts", "most", "rule", "factor", "value"),
        *("amount", "strength", "tokens"),
    )
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
