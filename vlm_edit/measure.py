"""Measure: a host, a dictionary and pairs, to dominance and examples of every feature."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from vlm_edit.dictionaries import Dictionary, Encoder
from vlm_edit.dominance import (
    CLASSES,
    Dominance,
    DominanceAccumulator,
    GapAccumulator,
    Zeros,
)
from vlm_edit.errors import VlmEditError
from vlm_edit.hooks import Recording, record
from vlm_edit.interpretability import TopExamples
from vlm_edit.pairs import Pairs
from vlm_edit.sites import Adapter, Site, unwrap
from vlm_edit.sites import site as find_site

Prepare = Callable[[Any, Sequence[Image.Image], Sequence[str]], Mapping[str, Any]]

STREAMS = ("image", "text")


@dataclass(frozen=True, eq=False)
class Batch:
    """What some pairs look like at a site.

    Attributes:
        numbers: The pairs' numbers.
        hidden: [n, d] float32 per stream, at the site; over tokens, their mean.
        codes: [n, m] float32 per stream; over tokens, the mean of their codes.
    """

    numbers: list[int]
    hidden: Mapping[str, Tensor]
    codes: Mapping[str, Tensor]


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
            "modality_gap": self.gap,
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


@dataclass(eq=False)
class Reader:
    """Runs a host over pairs, batch by batch, and tells what they look like at a site.

    Args:
        model: The host.
        processor: Its processor, or whatever ``prepare`` wants.
        dictionary: Encodes the site's activations.
        site: The site's name.
        adapter: The host's adapter; by default found.
        prepare: Turns (processor, images, texts) into the host's inputs; by default calls the
            processor, with the image token before the text if it has one.
        batch_size: Pairs per forward.
        progress: Whether to show a bar.

    Attributes:
        skipped: Pairs whose image could not be read so far, with the reason.
        truncated: Texts cut at the host's limit so far.
    """

    model: nn.Module
    processor: Any
    dictionary: Dictionary
    site: str = "joint"
    adapter: Adapter | None = None
    prepare: Prepare | None = None
    batch_size: int = 64
    progress: bool = True
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    _placed: dict[torch.device, Encoder] = field(default_factory=dict, init=False, repr=False)

    def read(self, pairs: Pairs) -> Iterator[Batch]:
        """What the pairs look like, batch by batch.

        Raises:
            VlmEditError: An unknown site, another width than the dictionary's, no pairs, or not
                one image that can be read.
        """
        site = find_site(self.model, self.site, self.adapter)
        if site.width != self.dictionary.width:
            raise VlmEditError(
                f"the dictionary is {self.dictionary.width} wide, site {site.name!r} of "
                f"{type(unwrap(self.model)).__name__} is {site.width}: it belongs to another "
                "site or host"
            )
        if not len(pairs):
            raise VlmEditError(f"{pairs.name}: no pairs, there is nothing to measure")
        seen = 0
        bar = tqdm(
            total=len(pairs), desc=f"measure {self.site}", disable=None if self.progress else True
        )
        with bar:
            for numbers in pairs.batches(self.batch_size):
                images, readable = self._open(pairs, numbers)
                bar.update(len(numbers))
                if readable:
                    seen += len(readable)
                    yield self._run(site, images, readable, [pairs.texts[i] for i in readable])
        if not seen:
            raise VlmEditError(
                f"{pairs.name}: not one of {len(pairs)} images can be read; the first: "
                f"{self.skipped[0][1]}"
            )

    def _open(self, pairs: Pairs, numbers: range) -> tuple[list[Image.Image], list[int]]:
        images, readable = [], []
        for i in numbers:
            try:
                images.append(pairs.open(i))
                readable.append(i)
            except VlmEditError as error:
                self.skipped.append((i, str(error)))
        return images, readable

    def _run(
        self, site: Site, images: list[Image.Image], numbers: list[int], texts: list[str]
    ) -> Batch:
        inputs = self._inputs(images, texts)
        with (
            torch.no_grad(),  # not inference_mode: what it yields must serve training too
            record(self.model, site.name, adapter=self.adapter) as recording,
        ):
            self.model(**inputs)
            hidden, codes = {}, {}
            for stream in site.streams:
                hidden[stream], codes[stream] = self._pool(recording, site, stream)
        for stream, found in codes.items():
            if len(found) != len(numbers):
                raise VlmEditError(
                    f"{len(numbers)} pairs give {len(found)} rows of the {stream} stream at site "
                    f"{site.name!r}: this site cannot be measured pair by pair"
                )
        return Batch(numbers, hidden, codes)

    def _inputs(self, images: list[Image.Image], texts: list[str]) -> dict[str, Any]:
        if self.prepare is not None:
            inputs = self.prepare(self.processor, images, texts)
        else:
            token = getattr(self.processor, "image_token", None)
            texts = [f"{token}\n{text}" for text in texts] if token else texts
            inputs = self.processor(text=texts, images=images, return_tensors="pt", padding=True)
            limit = _text_limit(self.model)
            if limit and inputs["input_ids"].shape[1] > limit:
                self.truncated += sum(length > limit for length in self._lengths(inputs, texts))
                inputs = self.processor(
                    text=texts,
                    images=images,
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=limit,
                )
        weight = next(p for p in self.model.parameters() if p.is_floating_point())

        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(weight.device, weight.dtype if value.is_floating_point() else None)

        return {name: place(value) for name, value in inputs.items()}

    def _lengths(self, inputs: Mapping[str, Any], texts: list[str]) -> list[int]:
        """Tokens of each text, an image's included where it takes any."""
        if "attention_mask" in inputs:
            return list(inputs["attention_mask"].sum(1).tolist())
        return [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]]

    def _pool(self, recording: Recording, site: Site, stream: str) -> tuple[Tensor, Tensor]:
        tap = next(tap for tap in site.taps if tap.stream in (stream, "mixed"))
        capture = recording.last(site.name, tap.stream)
        hidden, where = capture.hidden.float(), capture.where
        codes, _ = self._encoder(hidden.device)(hidden, where.stream, where.image_at(hidden))
        if hidden.ndim == 2:
            return hidden, codes
        mask = where.select(stream, hidden)
        if mask is not None and not bool(mask.any(1).all()):
            raise VlmEditError(
                f"a pair has no {stream} tokens at site {site.name!r}: the host's inputs must "
                "hold image and text of every pair"
            )
        return _mean(hidden, mask), _mean(codes, mask)

    def _encoder(self, device: torch.device) -> Encoder:
        if device not in self._placed:
            self._placed[device] = self.dictionary.encoder.to(device)
        return self._placed[device]


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

    def compute(self, reader: Reader) -> Measurement:
        """The measurement of all batches so far, which this reader gave."""
        return Measurement(
            self.dominance.compute(),
            self.gap.compute(),
            self.examples,
            reader.site,
            self.dominance.n_pairs,
            tuple(reader.skipped),
            reader.truncated,
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
    return accumulator.compute(reader)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(1)
    weight = mask.unsqueeze(-1).to(values.dtype)
    return (values * weight).sum(1) / weight.sum(1)


def _text_limit(model: nn.Module) -> int | None:
    config = getattr(unwrap(model), "config", None)
    text = getattr(config, "text_config", config)
    limit = getattr(text, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else value


def _class_of(members: Mapping[str, list[int]]) -> dict[int, str]:
    return {feature: name for name in CLASSES for feature in members[name]}
