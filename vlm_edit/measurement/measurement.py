"""A host, a dictionary and pairs, to dominance and examples of every feature."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlm_edit.dictionaries import Dictionary
from vlm_edit.dominance import (
    CLASSES,
    Dominance,
    DominanceAccumulator,
    GapAccumulator,
    Zeros,
)
from vlm_edit.errors import VlmEditError
from vlm_edit.interpretability import TopExamples
from vlm_edit.measurement.reader import STREAMS, Batch, Prepare, Reader
from vlm_edit.pairs import Pairs
from vlm_edit.sites import Adapter, find_site


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured of a dictionary's features.

    Attributes:
        dominance: Scores, counts and classes.
        gap: Distance of the streams' centroids at the site (``modality_gap``).
        examples: Most activating pairs per feature, for ``image`` and ``text``.
        site: Where.
        n_pairs: Pairs measured.
        skipped: Pairs left out because their image could not be read: number and reason.
        truncated: Texts longer than the host takes, cut at its limit.
    """

    dominance: Dominance
    gap: float
    examples: Mapping[str, TopExamples]
    site: str
    n_pairs: int
    skipped: tuple[tuple[int, str], ...] = ()
    truncated: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One row per feature: score, classes by both rules, counts, co-firing, top examples."""
        found, (matched, shuffled) = self.dominance, self.dominance.cofiring()
        names = {rule: _class_of(found.classes(rule)) for rule in ("sd", "fixed")}
        return [
            {
                "feature": k,
                "mds": float(found.scores[k]),
                "class": names["sd"][k],
                "class_fixed": names["fixed"][k],
                "active_pairs": int(found.active[k]),
                "image_active": int(found.image_active[k]),
                "text_active": int(found.text_active[k]),
                "cofiring_matched": float(matched[k]),
                "cofiring_shuffled": float(shuffled[k]),
                "top_images": " ".join(str(n) for n, _ in self.examples["image"].of(k)),
                "top_texts": " ".join(str(n) for n, _ in self.examples["text"].of(k)),
            }
            for k in range(len(found.scores))
        ]

    def summary(self) -> dict[str, Any]:
        """The figures of the whole, as JSON-able values."""
        found = self.dominance
        return {
            "site": self.site,
            "pairs": self.n_pairs,
            "skipped": [{"pair": n, "reason": why} for n, why in self.skipped],
            "truncated_texts": self.truncated,
            "zeros": found.zeros,
            "mds_mean": _number(found.mean),
            "mds_sd": _number(found.sd),
            "modality_gap": _number(self.gap),
            "classes": {
                rule: {name: len(members) for name, members in found.classes(rule).items()}
                for rule in ("sd", "fixed")
            },
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``features.csv`` and ``summary.json`` into a folder, made if need be."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        rows = self.rows()
        with (target / "features.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        text = json.dumps(self.summary(), indent=2, ensure_ascii=False)
        (target / "summary.json").write_text(text + "\n", encoding="utf-8")


class MeasurementAccumulator:
    """A measurement over batches of pairs, for those who read them on their own.

    Args:
        n_features: Size of the dictionary.
        zeros: As in ``modality_dominance``.
        keep: Top examples per feature.
    """

    def __init__(self, n_features: int, zeros: Zeros = "skip", keep: int = 9) -> None:
        self.dominance = DominanceAccumulator(n_features, zeros)
        self.gap = GapAccumulator()
        self.examples = {stream: TopExamples(n_features, keep) for stream in STREAMS}

    def update(self, batch: Batch) -> None:
        """Add a batch of a site with both streams."""
        self.dominance.update(batch.codes["image"], batch.codes["text"])
        self.gap.update(batch.hidden["image"], batch.hidden["text"])
        for stream, top in self.examples.items():
            top.update(batch.codes[stream], batch.numbers)

    def merge(self, other: MeasurementAccumulator) -> None:
        """Add the batches of another accumulator, such as another process's."""
        self.dominance.merge(other.dominance)
        self.gap.merge(other.gap)
        for stream, top in self.examples.items():
            top.merge(other.examples[stream])

    def compute(
        self, site: str, skipped: Sequence[tuple[int, str]] = (), truncated: int = 0
    ) -> Measurement:
        """The measurement of all batches so far.

        Args:
            site: Where they were read.
            skipped: Pairs left out, with the reason.
            truncated: Texts that were cut.
        """
        return Measurement(
            self.dominance.compute(),
            self.gap.compute(),
            {stream: copy.deepcopy(top) for stream, top in self.examples.items()},
            site,
            self.dominance.n_pairs,
            tuple(skipped),
            truncated,
        )


def measure(
    model: nn.Module,
    processor: Any,
    pairs: Pairs,
    dictionary: Dictionary,
    site: str = "joint",
    *,
    zeros: Zeros = "skip",
    keep: int = 9,
    batch_size: int = 64,
    adapter: Adapter | None = None,
    prepare: Prepare | None = None,
    progress: bool = True,
) -> Measurement:
    """Measure how much each feature of a dictionary belongs to image or text.

    Args:
        model: The host, in eval mode, wherever its weights are.
        processor: Its processor.
        pairs: Image-text pairs.
        dictionary: Of the site's width.
        site: A site with both streams, e.g. ``joint``, or a LLaVA's ``language.16``, where codes
            are averaged over a pair's image tokens and over its text tokens.
        zeros: As in ``modality_dominance``.
        keep: Top examples per feature.
        batch_size: Pairs per forward.
        adapter: The host's adapter; by default found.
        prepare: Makes the host's inputs; by default the processor does.
        progress: Whether to show a bar.

    Returns:
        The measurement; pairs whose image could not be read are listed in ``skipped``.

    Raises:
        VlmEditError: A site with one stream only, another width than the dictionary's, or not
            one image that can be read.

    Example:
        >>> from vlm_edit import measure, zoo
        >>> host, processor = zoo.load_host()
        >>> pairs = zoo.load_pairs().select(range(64))
        >>> dictionary = zoo.load_dictionary("joint")
        >>> found = measure(host, processor, pairs, dictionary, progress=False)
        >>> found.n_pairs
        64
    """
    streams = find_site(model, site, adapter).streams
    if streams != STREAMS:
        raise VlmEditError(
            f"site {site!r} has the {streams[0]} stream only; dominance compares image and text: "
            "choose a site that both pass, such as 'joint'"
        )
    reader = Reader(model, processor, dictionary, site, adapter, prepare, batch_size, progress)
    accumulator = MeasurementAccumulator(dictionary.n_features, zeros, keep)
    for batch in reader.read(pairs):
        accumulator.update(batch)
    return accumulator.compute(site, reader.skipped, reader.truncated)


def _class_of(members: Mapping[str, list[int]]) -> dict[int, str]:
    return {feature: name for name in CLASSES for feature in members[name]}


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value
