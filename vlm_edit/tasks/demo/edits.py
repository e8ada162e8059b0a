"""Before and after: what edits of the bundled host do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit import zoo
from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Ablate, Splice
from vlm_edit.hooks import record
from vlm_edit.host import Host
from vlm_edit.measures.probing import hits
from vlm_edit.measuring import STREAMS, Pairs, Reader
from vlm_edit.patches import load_patch
from vlm_edit.report import Examples, Table
from vlm_edit.tasks.demo.factors import QUANTITIES, Check, Reading, class_rows, estimates, note

SITE = "joint"
PROMPT = "a picture of {}"
ATTACHED = 256


@dataclass(eq=False)
class Edits:
    """Before and after, on zero-shot classification and on the known factors."""

    host: Host
    pairs: Pairs
    dictionary: Dictionary
    hidden: Mapping[str, Tensor]
    reading: Reading

    def __post_init__(self) -> None:
        self.labels = zoo.load_labels()
        self.prompts = self._embed_prompts()

    def attached_equals_spliced(self, file: Path) -> Check:
        """Check that the saved patch, reloaded and attached, gives what the equation gives."""
        patch = load_patch(file)
        pairs = self.pairs.select(range(ATTACHED))
        with patch.attach(self.host):
            attached = self._embed(pairs)
        restored = self._embed(pairs)
        splice = patch.bindings[0].splice
        before = {stream: hidden[:ATTACHED] for stream, hidden in self.hidden.items()}
        off = max(float((attached[s] - splice(h, stream=s)).abs().max()) for s, h in before.items())
        change = float((attached["image"] - before["image"]).abs().max())
        equal = all(torch.equal(restored[s], h) for s, h in before.items())
        return Check(
            "the patch, saved, reloaded and attached, acts as its equation says, and detaching "
            "restores the host bit for bit",
            off <= 1e-4 * change and equal,
            f"largest change {change:.3f}, off by {off:.0e} at most; restored: {equal}; "
            f"{len(pairs)} pairs; file of {file.stat().st_size / 1024:.0f} KiB",
        )

    def table(self, classes: Mapping[str, list[int]]) -> Table:
        """Return what each class's ablation takes, beside as many random features."""
        rows = class_rows(classes, self.read, seed=1)
        rows.insert(0, ("nothing", estimates(self.read(None))))
        return Table(
            "Ablate a class of features in the host: before and after",
            ("ablated", "zero-shot R@1", *QUANTITIES),
            [(name, *(e.text(2) for e in figures)) for name, figures in rows],
            f"Zero-shot: {len(self.labels)} labels, prompt {PROMPT.format('...')!r}.\n"
            f"{note(len(self.pairs))}",
        )

    def read(self, ablated: Sequence[int] | None) -> list[Tensor]:
        """Read zero-shot classification and the known factors off the embeddings, edited."""
        streams, prompts = dict(self.hidden), self.prompts
        if ablated is not None:
            splice = Splice.of(self.dictionary, [Ablate(ablated)])
            streams = {stream: splice(h, stream=stream) for stream, h in streams.items()}
            prompts = splice(prompts, stream="text")
        zero_shot = hits(streams["image"], prompts, self.pairs.columns["label"], self.labels)
        return [zero_shot, *self.reading.read(streams)]

    def changed(self, file: Path, shown: int = 8, seed: int = 0) -> Examples:
        """Show random pairs whose zero-shot label the patch changes."""
        splice = load_patch(file).bindings[0].splice
        before = self._predict(self.hidden["image"], self.prompts)
        after = self._predict(
            splice(self.hidden["image"], stream="image"), splice(self.prompts, stream="text")
        )
        places = (before != after).nonzero().flatten()
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        items = [
            (i, (f"before: {self.labels[before[i]]}", f"after: {self.labels[after[i]]}",
                 f"is: {self.pairs.columns['label'][i]}"))
            for i in places[order[:shown]].tolist()
        ]  # fmt: skip
        return Examples(
            "Zero-shot labels before and after ablating the vision-dominant features",
            items,
            f"{len(places)} of {len(self.pairs)} images get another label; {len(items)} of them "
            f"drawn at random with seed {seed}.",
        )

    def _predict(self, images: Tensor, prompts: Tensor) -> Tensor:
        return (images @ torch.nn.functional.normalize(prompts, dim=-1).mT).argmax(1)

    def _embed(self, pairs: Pairs) -> dict[str, Tensor]:
        reader = Reader(self.host, self.dictionary, SITE, progress=False)
        batches = list(reader.read(pairs))
        return {s: torch.cat([batch.hidden[s] for batch in batches]) for s in STREAMS}

    def _embed_prompts(self) -> Tensor:
        texts = [PROMPT.format(label) for label in self.labels]
        inputs = self.host.processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        model: Any = self.host.root
        with torch.inference_mode(), record(self.host, SITE) as recording:
            model.get_text_features(**inputs)
        return recording.last(SITE, "text").hidden.float()
