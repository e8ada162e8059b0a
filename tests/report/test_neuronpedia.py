"""Files for Neuronpedia, read again and held against the measurement."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from browsed_pages import measured, pairs_of

from vlm_edit import VlmEditError
from vlm_edit.report import neuronpedia, write_neuronpedia


def lines(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl.gz"), key=lambda f: int(f.name.split("-")[1].split(".")[0]))
    text = "".join(gzip.decompress(file.read_bytes()).decode() for file in files)
    return [json.loads(line) for line in text.splitlines()]


def test_every_feature_is_written_once_with_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuronpedia, "BATCH", 16)
    found, pairs = measured(60, 40), pairs_of(60)
    pair = found.examples["text"].of(7)[0][0]
    details = {
        7: {
            "name": {"name": "ships"},
            "effects": {"up": [["ship", 2.5]]},
            "near": {"decoder": [[3, 0.5]]},
            "maps": {"text": [{"pair": pair, "words": ["a", "ship"], "values": [0.5, 3.0]}]},
        }
    }
    out = write_neuronpedia(tmp_path, found, pairs, "clip", "9-sae", details)
    assert out == tmp_path / "clip" / "9-sae"
    assert len(list((out / "features").iterdir())) == 3
    features = lines(out / "features")
    assert [line["index"] for line in features] == [str(k) for k in range(40)]
    both = torch.maximum(found.sizes["image"].largest, found.sizes["text"].largest)
    active = found.sizes["image"].active + found.sizes["text"].active
    for k, line in enumerate(features):
        assert (line["modelId"], line["layer"]) == ("clip", "9-sae")
        assert line.get("maxActApprox", 0) == float(both[k])
        assert sum(line.get("freq_hist_data_bar_heights", [])) == int(active[k])
    assert features[7]["pos_str"] == ["ship"] and features[7]["topkCosSimIndices"] == [3]
    activations = lines(out / "activations")
    for k in range(40):
        top = found.examples["text"].of(k)
        told = [line for line in activations if line["index"] == str(k)]
        assert len(told) == len(top)
        for (number, value), line in zip(top, told, strict=True):
            known = k == 7 and number == pair
            assert line["tokens"] == (["a", "ship"] if known else [pairs.texts[number]])
            assert line["maxValue"] == (3.0 if known else pytest.approx(float(value)))
            assert line["values"][line["maxValueTokenIndex"]] == line["maxValue"]
    (name,) = lines(out / "explanations")
    assert (name["index"], name["description"]) == ("7", "ships")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "ü"])
def test_names_that_are_no_part_of_an_address_are_refused(tmp_path: Path, name: str) -> None:
    found = measured(20, 10)
    with pytest.raises(VlmEditError, match="model "):
        write_neuronpedia(tmp_path, found, pairs_of(20), name, "source")
    with pytest.raises(VlmEditError, match="source "):
        write_neuronpedia(tmp_path, found, pairs_of(20), "model", name)
    assert not list(tmp_path.iterdir())
