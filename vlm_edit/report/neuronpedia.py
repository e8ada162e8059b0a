"""Runs in the files that Neuronpedia exports and imports: JSON lines, a batch of features each."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.files import make_folder, write_bytes
from vlm_edit.measuring import STREAMS, Measurement, Pairs
from vlm_edit.report.details import Details, asked, checked

BATCH = 1024  # features of a file, as Neuronpedia's own exports have them
_TEXTS = 20
_BINS = 16


def write_neuronpedia(
    folder: str | os.PathLike[str],
    measurement: Measurement,
    pairs: Pairs,
    model: str,
    source: str,
    details: Details | None = None,
) -> Path:
    """Write what Neuronpedia knows of features: figures, activations by texts, explanations.

    The files are those of its public exports, ``MODEL/SOURCE/features/batch-0.jsonl.gz`` and so
    on, of which Neuronpedia's own server reads more. It shows tokens and no images, so that
    activations are of texts alone. Where ``details`` have heat maps of a text, its words are the
    tokens; else the whole text is one. What a run does not know is left out.

    Args:
        folder: Made if need be.
        measurement: What was measured.
        pairs: The pairs it was measured on.
        model: Neuronpedia's name of the model, a part of addresses, such as ``clip-vit-base``.
        source: Of the dictionary, likewise, such as ``9-language-sae``.
        details: As for ``write_page``; names become explanations.

    Returns:
        The folder of the source.

    Raises:
        BadArgument: A name that is no part of an address, or details of another form.
        VlmEditError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> from vlm_edit import Host, measure, zoo
        >>> pairs, dictionary = zoo.load_pairs().select(range(32)), zoo.load_dictionary("joint")
        >>> measurement = measure(Host.of(*zoo.load_host()), pairs, dictionary, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = write_neuronpedia(folder, measurement, pairs, "emoji-clip", "joint")
        ...     sorted(file.name for file in out.iterdir())
        ['activations', 'explanations', 'features']
    """
    for what, name in (("model", model), ("source", source)):
        if not name or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
            raise BadArgument(f"{what} {name!r}: use letters, digits, '-', '_' and '.' alone")
        if set(name) <= {"."}:
            raise BadArgument(f"{what} {name!r} names a folder above: use letters and digits")
    ask = asked(details or {})
    m, out = len(measurement.dominance.scores), Path(folder, model, source)
    whose = {"modelId": model, "layer": source}
    for number, first in enumerate(range(0, m, BATCH)):
        features = range(first, min(first + BATCH, m))
        facts = {k: checked(ask(k), k, m) for k in features}
        rows = {
            "features": _features(measurement, facts),
            "activations": _activations(measurement, pairs, facts),
            "explanations": _explanations(facts),
        }
        for kind, lines in rows.items():
            held = "".join(json.dumps({**whose, **line}, allow_nan=False) + "\n" for line in lines)
            file = make_folder(out / kind) / f"batch-{number}.jsonl.gz"
            write_bytes(file, gzip.compress(held.encode(), 6, mtime=0), "export")
    return out


def _features(
    measurement: Measurement, facts: Mapping[int, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    both = None
    if measurement.sizes:
        both = measurement.sizes["image"].together(measurement.sizes["text"])
        bars = both.by_size(_BINS).flip(1)
    for k, known in facts.items():
        line: dict[str, Any] = {"index": str(k), "hasVector": False}
        if both is not None and float(both.largest[k]):
            largest = float(both.largest[k])
            steps = [2 ** ((i + 0.5 - _BINS) * 4 / _BINS) for i in range(_BINS)]
            line["maxActApprox"] = largest
            line["freq_hist_data_bar_heights"] = bars[k].tolist()
            line["freq_hist_data_bar_values"] = [largest * step for step in steps]
        effects, near = known.get("effects", {}), known.get("near", {}).get("decoder", [])
        for way, name in (("up", "pos"), ("down", "neg")):
            line[f"{name}_str"] = [word for word, _ in effects.get(way, [])]
            line[f"{name}_values"] = [value for _, value in effects.get(way, [])]
        line["topkCosSimIndices"] = [other for other, _ in near]
        line["topkCosSimValues"] = [value for _, value in near]
        yield line


def _activations(
    measurement: Measurement, pairs: Pairs, facts: Mapping[int, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    for k, known in facts.items():
        maps = {one["pair"]: one for one in known.get("maps", {}).get("text", [])}
        top = measurement.examples[STREAMS[1]].of(k)[:_TEXTS]
        for number, strength in top:
            one = maps.get(number, {"words": [pairs.texts[number]], "values": [float(strength)]})
            values = torch.tensor(one["values"], dtype=torch.float64)
            if not len(values) or not math.isfinite(float(values.sum())):
                continue
            yield {
                "index": str(k),
                "dataSource": Path(pairs.name).name,
                "tokens": one["words"],
                "values": one["values"],
                "maxValue": float(values.max()),
                "minValue": float(values.min()),
                "maxValueTokenIndex": int(values.argmax()),
            }


def _explanations(facts: Mapping[int, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for k, known in facts.items():
        if name := known.get("name"):
            yield {"index": str(k), "description": name["name"]}
