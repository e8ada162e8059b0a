"""What each verb of the command does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.cli.host import load_host, load_model, quiet_when_piped
from vlm_edit.dictionaries import Dictionary, Norm, load_dictionary
from vlm_edit.dominance import Cut
from vlm_edit.edits import Rule, rule_from_dict
from vlm_edit.errors import VlmEditError
from vlm_edit.measurement import Measurement, Reader
from vlm_edit.measurement import measure as measure_pairs
from vlm_edit.pairs import Pairs, read_pairs
from vlm_edit.patches import Patch, load_patch
from vlm_edit.probing import hits
from vlm_edit.report import Table, class_table, feature_table, write_page
from vlm_edit.sites import find_site, find_sites
from vlm_edit.statistics import proportion


def demo(options: argparse.Namespace) -> int:
    """``vlm-edit demo``."""
    from vlm_edit.demo import run, run_generation

    if options.llava and options.out:
        raise VlmEditError("the demonstration of emoji-llava writes nothing: leave --out out")
    quiet_when_piped()
    done = run_generation() if options.llava else run(options.out or "vlm-edit-demo")
    return 0 if all(check.holds for check in done.checks) else 1


def sites(options: argparse.Namespace) -> int:
    """``vlm-edit sites``."""
    model = load_model(options.model)
    rows = [
        (site.name, str(site.width), ", ".join(site.streams), site.dead or "")
        for site in find_sites(model).values()
    ]
    print(Table(f"Sites of {type(model).__name__}", ("site", "width", "streams", "dead"), rows))
    return 0


def measure(options: argparse.Namespace) -> int:
    """``vlm-edit measure``."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    subject = _Subject.load(options)
    found = subject.measure()
    found.save(out)
    tables = [class_table(found), feature_table(found, subject.pairs)]
    write_page(out / "index.html", found, subject.pairs, f"Features at {options.site}", tables)
    for table in tables:
        print(f"{table}\n")
    _tell_left_out(found.skipped, found.truncated)
    print(f"table:  {out / 'features.csv'}\npage:   {out / 'index.html'}")
    return 0


def edit(options: argparse.Namespace) -> int:
    """``vlm-edit edit``."""
    _expect_one_way(options)
    if options.save_to and not Path(options.save_to).absolute().parent.is_dir():
        raise VlmEditError(f"--save {options.save_to}: its folder does not exist; make it first")
    subject = _Subject.load(options)
    if options.patch:
        named = {"the patch": load_patch(options.patch)}
    else:
        named = _make_patches(options, subject)
    for patch in named.values():
        patch.check(subject.model)
    rows = [("nothing", *subject.retrieval(None))]
    rows += [(name, *subject.retrieval(patch)) for name, patch in named.items()]
    print(
        Table(
            "Retrieval of a text by its image, before and after",
            ("edited", "R@1", "R@5", "embeddings moved by"),
            rows,
            f"{subject.read} pairs, 95 % Wilson intervals; a text equal to the image's own "
            "counts. Moved: mean of |after - before| / |before|.",
        )
    )
    _tell_left_out(subject.skipped, subject.truncated)
    if options.save_to:
        next(iter(named.values())).save(options.save_to, subject.model)
        print(f"\npatch:  {options.save_to}")
    return 0


@dataclass(eq=False)
class _Subject:
    """A model with pairs and, if one is given, a dictionary."""

    model: nn.Module
    processor: Any
    pairs: Pairs
    dictionary: Dictionary | None
    site: str
    batch_size: int
    read: int = 0
    skipped: tuple[tuple[int, str], ...] = ()
    truncated: int = 0

    @classmethod
    def load(cls, options: argparse.Namespace) -> _Subject:
        """Everything that the arguments name; what is quick to refuse comes first."""
        pairs = read_pairs(options.pairs)
        named = options.dictionary
        dictionary = load_dictionary(named) if named not in (None, "neurons") else None
        model, processor = load_host(options.model)
        site = find_site(model, options.site)
        if named == "neurons":
            norm: Norm = "constant_norm_rescale" if site.name == "joint" else "none"
            dictionary = Dictionary.identity(site.width, norm)
        return cls(model, processor, pairs, dictionary, site.name, options.batch_size)

    def measure(self) -> Measurement:
        """Dominance of the dictionary's features."""
        return measure_pairs(
            self.model,
            self.processor,
            self.pairs,
            self.expect_dictionary(),
            self.site,
            batch_size=self.batch_size,
        )

    def expect_dictionary(self) -> Dictionary:
        """The dictionary."""
        if self.dictionary is None:
            raise VlmEditError("features are numbers in a dictionary: name it with --dictionary")
        return self.dictionary

    def retrieval(self, patch: Patch | None) -> tuple[str, str, str]:
        """Recall at 1 and at 5 at the joint site, and how far the patch moves what is there."""
        with patch.attach(self.model) if patch else nullcontext():
            image, text, numbers = self._embeddings()
        self.read = len(numbers)
        if patch is None:
            self._before = torch.cat([image, text])
        moved = (torch.cat([image, text]) - self._before).norm(dim=1) / self._before.norm(dim=1)
        texts = [self.pairs.texts[i] for i in numbers]
        recalls = [hits(image, text, texts, texts, k) for k in (1, 5)]
        at_1, at_5 = (proportion(int(r.sum()), len(r)).text(3) for r in recalls)
        return at_1, at_5, f"{float(moved.mean()):.1%}"

    def _embeddings(self) -> tuple[Tensor, Tensor, list[int]]:
        joint = find_site(self.model, "joint")
        reader = Reader(
            self.model,
            self.processor,
            Dictionary.identity(joint.width),
            batch_size=self.batch_size,
        )
        batches = list(reader.read(self.pairs))
        self.skipped, self.truncated = tuple(reader.skipped), reader.truncated
        image, text = (torch.cat([b.hidden[s] for b in batches]) for s in ("image", "text"))
        return image, text, [number for batch in batches for number in batch.numbers]


def _make_patches(options: argparse.Namespace, subject: _Subject) -> dict[str, Patch]:
    """The patch asked for, and one on as many random features for comparison."""
    dictionary = subject.expect_dictionary()
    rule = options.rule or "ablate"
    cuts: Cut = options.cuts or "sd"
    live: Sequence[int] = range(dictionary.n_features)
    if options.features is not None:
        features = _numbers(options.features)
        title = f"{rule} {len(features)} features"
    else:
        found = subject.measure()
        classes = found.dominance.classes(cuts)
        features = classes[options.name]
        live = (~found.dominance.dead).nonzero().flatten().tolist()
        title = f"{rule} {options.name} ({len(features)})"
        if not features:
            raise VlmEditError(
                f"no feature is {options.name}-dominant by the cuts "
                f"{found.dominance.cuts(cuts)}: try --cuts "
                f"{'fixed' if cuts == 'sd' else 'sd'}"
            )
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(0))
    control = [live[i] for i in order[: len(features)].tolist()]
    return {
        name: Patch.at(subject.site, dictionary, _rule(options, chosen), options.tokens or "all")
        for name, chosen in ((title, features), (f"{rule} {len(control)} random", control))
    }


def _expect_one_way(options: argparse.Namespace) -> None:
    """A saved patch says all of it; what else is asked for would be ignored."""
    if not options.patch:
        return
    making = ("dictionary", "cuts", "rule", "factor", "value", "amount", "strength", "tokens")
    given = [name for name in making if getattr(options, name) is not None]
    if given:
        raise VlmEditError(f"--patch applies a patch as it was saved: leave --{given[0]} out")


def _rule(options: argparse.Namespace, features: Sequence[int]) -> Rule:
    kind = options.rule or "ablate"
    needed = {"scale": "factor", "clamp": "value", "steer": "amount"}.get(kind)
    given = {name for name in ("factor", "value", "amount") if getattr(options, name) is not None}
    if given != ({needed} if needed else set()):
        mend = f"--{needed} and nothing else" if needed else "none of --factor, --value, --amount"
        raise VlmEditError(f"--rule {kind} takes {mend}")
    values = {needed: getattr(options, needed)} if needed else {}
    strength = 1.0 if options.strength is None else options.strength
    return rule_from_dict({"kind": kind, "features": features, "strength": strength, **values})


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise VlmEditError(f"--features takes numbers such as 3,17,40, got {text!r}") from error


def _tell_left_out(skipped: Sequence[tuple[int, str]], truncated: int) -> None:
    if skipped:
        print(f"{len(skipped)} pairs left out because their image could not be read:")
        for number, why in skipped[:5]:
            print(f"    pair {number} (from 0): {why}")
        if len(skipped) > 5:
            print(f"    and {len(skipped) - 5} more: vlm-edit measure lists them in summary.json")
    if truncated:
        print(f"{truncated} texts are longer than the model takes and were cut")
