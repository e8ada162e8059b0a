"""Load, measure, check, edit, save, reload and show: the whole way in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit import zoo
from vlm_edit.demo.factors import (
    DRAWS,
    QUANTITIES,
    Check,
    Reading,
    checks,
    estimates,
    factor_table,
    note,
    over_draws,
)
from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Ablate, Splice
from vlm_edit.hooks import record
from vlm_edit.measure import Measurement, MeasurementAccumulator, Reader
from vlm_edit.pairs import Pairs
from vlm_edit.patches import Patch, load_patch
from vlm_edit.probing import hits, same
from vlm_edit.report import Examples, Table, class_table, feature_table, write_page

SITE = "joint"
PROMPT = "a picture of {}"


@dataclass(frozen=True, eq=False)
class Run:
    """What a demonstration found.

    Attributes:
        found: The measurement.
        tables: As printed.
        checks: As printed.
        patch: Where the patch was saved.
        page: Where the page was written.
        seconds: Wall time.
    """

    found: Measurement
    tables: tuple[Table, ...]
    checks: tuple[Check, ...]
    patch: Path
    page: Path
    seconds: float


def run(folder: str | os.PathLike[str], say: Callable[[str], None] = print) -> Run:
    """Run the demonstration.

    Args:
        folder: Where the patch, the table of features and the page go; made if need be.
        say: Receives what a person reads, part by part.

    Returns:
        What was found.
    """
    start = time.perf_counter()
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    model, processor = zoo.load_host()
    pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary(SITE)
    say(f"host: emoji-clip, a CLIPModel of {_millions(model)} parameters\npairs: {len(pairs)}, "
        f"drawn by vendors whose drawing of the concept was not trained on\ndictionary: "
        f"{dictionary.n_features} features at site {SITE!r}\n")  # fmt: skip
    found, hidden = _measure(model, processor, pairs, dictionary)
    codes = {stream: dictionary.encode(h, stream) for stream, h in hidden.items()}
    classes = found.dominance.classes("sd")
    tables = [class_table(found), feature_table(found, pairs)]
    for table in tables:
        say(f"{table}\n")
    reading = Reading(pairs)
    kept, figures = factor_table(reading, codes, dictionary.decoder, classes)
    say(f"{kept}\n")
    verdicts = checks(found.dominance, codes, pairs, figures)
    patch = _save_patch(out / "no-vision-dominant.safetensors", model, dictionary, classes)
    edits = _Edits(model, processor, pairs, dictionary, hidden, reading)
    verdicts.append(edits.attached_equals_spliced(patch))
    say("\n".join(f"{'holds' if c.holds else 'DOES NOT HOLD'}: {c.claim}\n    {c.evidence}"
                  for c in verdicts) + "\n")  # fmt: skip
    ablated = edits.table(classes)
    say(f"{ablated}\n")
    tables += [kept, ablated, _check_table(verdicts)]
    found.save(out)
    page = out / "index.html"
    write_page(page, found, pairs, "Vision, language or both: the features of emoji-clip", tables,
               [edits.changed(patch)])  # fmt: skip
    seconds = time.perf_counter() - start
    say(f"patch:  {patch}\ntable:  {out / 'features.csv'}\npage:   {page}\ntook {seconds:.0f} s")
    return Run(found, tuple(tables), tuple(verdicts), patch, page, seconds)


def _measure(
    model: nn.Module, processor: Any, pairs: Pairs, dictionary: Dictionary
) -> tuple[Measurement, dict[str, Tensor]]:
    reader = Reader(model, processor, dictionary, SITE)
    accumulator = MeasurementAccumulator(dictionary.n_features)
    hidden: dict[str, list[Tensor]] = {"image": [], "text": []}
    for batch in reader.read(pairs):
        accumulator.update(batch)
        for stream, parts in hidden.items():
            parts.append(batch.hidden[stream])
    return accumulator.compute(reader), {name: torch.cat(parts) for name, parts in hidden.items()}


def _save_patch(
    path: Path, model: nn.Module, dictionary: Dictionary, classes: Mapping[str, list[int]]
) -> Path:
    patch = Patch.at(
        SITE,
        dictionary,
        Ablate(classes["vision"]),
        info={"what": "ablates the vision-dominant features of the zoo's joint dictionary"},
    )
    patch.save(path, model)
    return path


@dataclass(eq=False)
class _Edits:
    """Before and after, on zero-shot classification and on the known factors."""

    model: nn.Module
    processor: Any
    pairs: Pairs
    dictionary: Dictionary
    hidden: Mapping[str, Tensor]
    reading: Reading

    def __post_init__(self) -> None:
        self.labels = sorted(set(self.pairs.columns["label"]))
        self.truth = same(self.pairs.columns["label"], self.labels)
        self.prompts = self._embed_prompts()

    def attached_equals_spliced(self, file: Path) -> Check:
        """The saved patch, reloaded and attached, gives what the equation gives."""
        patch = load_patch(file)
        with patch.attach(self.model):
            _, attached = _measure(self.model, self.processor, self.pairs, self.dictionary)
        splice = patch.bindings[0].splice
        equal = all(torch.equal(attached[s], splice(h, stream=s)) for s, h in self.hidden.items())
        _, after = _measure(self.model, self.processor, self.pairs, self.dictionary)
        restored = all(torch.equal(after[s], h) for s, h in self.hidden.items())
        return Check(
            "the patch, saved, reloaded and attached, acts as its equation says, and detaching "
            "restores the host bit for bit",
            equal and restored,
            f"equal: {equal}; restored: {restored}; {len(self.pairs)} pairs, "
            f"{file.stat().st_size / 1024:.0f} KiB file",
        )

    def table(self, classes: Mapping[str, list[int]]) -> Table:
        """What each class's ablation takes, beside as many random features."""
        live = [k for name in ("vision", "language", "cross") for k in classes[name]]
        generator = torch.Generator().manual_seed(1)
        rows = [("nothing", estimates(self.read(None)))]
        for name in ("vision", "language", "cross"):
            features = classes[name]
            if not features:
                continue
            rows.append((f"{name} ({len(features)})", estimates(self.read(features))))
            draws = []
            for _ in range(DRAWS):
                order = torch.randperm(len(live), generator=generator)[: len(features)]
                draws.append(self.read([live[i] for i in order.tolist()]))
            rows.append((f"{len(features)} random", over_draws(draws)))
        return Table(
            "Ablate a class of features in the host: before and after",
            ("ablated", "zero-shot R@1", *QUANTITIES),
            [(name, *(e.text(2) for e in found)) for name, found in rows],
            f"Zero-shot: {len(self.labels)} labels, prompt {PROMPT.format('...')!r}. "
            f"{note(len(self.pairs))}",
        )

    def read(self, ablated: Sequence[int] | None) -> list[Tensor]:
        """Zero-shot classification and the known factors off the embeddings, edited."""
        streams, prompts = dict(self.hidden), self.prompts
        if ablated is not None:
            splice = Splice.of(self.dictionary, [Ablate(ablated)])
            streams = {stream: splice(h, stream=stream) for stream, h in streams.items()}
            prompts = splice(prompts, stream="text")
        zero_shot = hits(streams["image"], prompts, self.truth)
        return [zero_shot, *self.reading.read(streams)]

    def changed(self, file: Path, shown: int = 8, seed: int = 0) -> Examples:
        """Random pairs whose zero-shot label the patch changes."""
        splice = load_patch(file).bindings[0].splice
        before = self._predict(self.hidden["image"], self.prompts)
        after = self._predict(
            splice(self.hidden["image"], stream="image"), splice(self.prompts, stream="text")
        )
        moved = (before != after).nonzero().flatten()
        order = torch.randperm(len(moved), generator=torch.Generator().manual_seed(seed))
        items = [
            (i, (f"before: {self.labels[before[i]]}", f"after: {self.labels[after[i]]}",
                 f"is: {self.pairs.columns['label'][i]}"))
            for i in moved[order[:shown]].tolist()
        ]  # fmt: skip
        return Examples(
            "Zero-shot labels before and after ablating the vision-dominant features",
            items,
            f"{len(moved)} of {len(self.pairs)} images get another label; {len(items)} of them "
            f"drawn at random with seed {seed}.",
        )

    def _predict(self, images: Tensor, prompts: Tensor) -> Tensor:
        return (images @ torch.nn.functional.normalize(prompts, dim=-1).mT).argmax(1)

    def _embed_prompts(self) -> Tensor:
        texts = [PROMPT.format(label) for label in self.labels]
        inputs = self.processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode(), record(self.model, SITE) as recording:
            self.model.get_text_features(**inputs)  # type: ignore[operator]
        return recording.last(SITE, "text").hidden.float()


def _check_table(verdicts: Sequence[Check]) -> Table:
    rows = [("holds" if c.holds else "does not hold", c.claim, c.evidence) for c in verdicts]
    return Table("Checked against the known factors", ("", "claim", "evidence"), rows)


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million"
