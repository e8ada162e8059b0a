"""What results.real_clip says of embeddings: of planted ones, and of CLIP's where they are there.

VLM_EDIT_REAL_CLIP=features_clip.npy runs the script itself and compares.
"""

import importlib
import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

EMBEDDINGS = os.environ.get("VLM_EDIT_REAL_CLIP")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("results.real_clip")
    torch.set_num_threads(threads)


def planted(n: int = 150) -> dict[str, Tensor]:
    """Pairs that share three of 16 concepts; each side has two of 8 of its own, and an offset."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(34, 34, generator=generator))[0]

    def drawn(active: int, of: Tensor) -> Tensor:
        chosen = torch.rand(n, len(of), generator=generator).topk(active).indices
        codes = torch.zeros(n, len(of)).scatter_(1, chosen, 1.0)
        return codes * (0.5 + torch.rand(n, len(of), generator=generator))

    shared = drawn(3, basis[:16]) @ basis[:16]
    own = {"image": basis[16:24], "text": basis[24:32]}
    return {
        stream: torch.nn.functional.normalize(
            shared + drawn(2, rows) @ rows + 1.5 * basis[32 + number], dim=1
        )
        for number, (stream, rows) in enumerate(own.items())
    }


@pytest.fixture(scope="module")
def result(script: ModuleType) -> dict[str, Any]:
    config = script.replace(script.CONFIG, n_features=34, k=6, steps=400, batch_size=64)
    plan = script.Plan(config, seeds=(0, 10), repeats=1, folds=3, draws=3, ranked=12)
    found: dict[str, Any] = script.compute(planted(), plan)
    return found


@pytest.mark.parametrize("rule", ["interval", "significant"])
def test_deleting_what_pairs_share_costs_retrieval_and_what_they_do_not_costs_less(
    result: dict[str, Any], rule: str
) -> None:
    lines = result["deletion"][rule]
    assert lines["cross"]["lost"][0] > 0.3
    for name in ("vision", "language"):
        assert lines[f"all of {name}"]["lost"][0] < 0.1
        assert lines[f"as many of {name}, the surest"]["more than cross"][0] < -0.1
    assert lines["as many by Fisher's p"]["lost"][0] > 0.3


def test_the_planted_gap_goes_with_the_means_and_without_a_centre_with_features(
    result: dict[str, Any],
) -> None:
    for lines in result["gap"].values():
        assert lines["the means of both streams"]["gap"][0] < lines["nothing"]["gap"][0] / 2
    gaps = {name: line["gap"][0] for name, line in result["gap"]["no centre"].items()}
    unimodal = gaps["unimodal features (significant)"]
    assert unimodal < gaps["nothing"] / 2
    assert unimodal < gaps["random ones, as many (significant)"] - 0.1


def test_nulls_have_no_pairing_and_images_beside_images_no_modality(
    result: dict[str, Any],
) -> None:
    lines = result["census"]
    assert lines["CLIP"]["paired"][0] > 8
    for name in ("Gaussians, unpaired", "images beside other images"):
        assert lines[name]["paired"][0] <= 1
    assert lines["joint Gaussian"]["R@1"][0] > 0.3 > lines["Gaussians, unpaired"]["R@1"][0]
    sizes = lines["images beside other images"]["classes"]["significant"]
    assert sizes["vision"][0] + sizes["language"][0] <= 1
    assert lines["CLIP"]["classes"]["significant"]["vision"][0] >= 6


def test_directions_that_no_data_chose_find_less_of_what_is_planted(
    script: ModuleType, result: dict[str, Any]
) -> None:
    lines = result["census"]
    for name in (script.DRAWN, script.FROZEN):
        assert lines[name]["sd of MDS"][0] < lines["CLIP"]["sd of MDS"][0]
        assert lines[name]["R@1"] == lines["CLIP"]["R@1"]  # of the same embeddings


def test_planted_scores_hold_on_unseen_pairs(result: dict[str, Any]) -> None:
    for line in result["held out"].values():
        assert line["correlation"][0] > 0.8


def test_the_same_seed_comes_again_whole_and_another_does_not(
    script: ModuleType, result: dict[str, Any]
) -> None:
    config = script.replace(script.CONFIG, n_features=34, k=6, steps=50, batch_size=64)
    twice = [script.trained(planted(), config, 0) for _ in range(2)]
    same = script.seeds(twice, planted())
    shares = {name: line[0] for name, line in same.items() if not name.startswith("share in all")}
    assert shares == pytest.approx(dict.fromkeys(shares, 1.0))
    codes = script.encoded(twice[0], planted())
    live = float((torch.cat(list(codes.values())) != 0).any(0).double().mean())
    assert same["share in all (interval)"][0] == pytest.approx(live, abs=1e-5)
    assert 0.4 < result["seeds"]["cosine"][0] < 0.9
    assert result["seeds"]["kappa (significant), all"][0] < 0.9


def test_labels_that_are_earned_contradict_each_other_in_no_half_and_others_may(
    result: dict[str, Any],
) -> None:
    lines = result["halves"]
    assert lines["MDS"][0] > 0.8 and lines["MDS"][3] == 6  # two dictionaries, three draws each
    assert lines["conflicts (interval)"][0] <= lines["conflicts (significant)"][0] < 0.2
    assert 0 < lines["decided (interval)"][0] < lines["decided (significant)"][0]


def test_every_table_can_be_made_of_what_is_stored(
    script: ModuleType, result: dict[str, Any]
) -> None:
    again = json.loads(json.dumps(result, allow_nan=False))
    for table in script.tables(again):
        assert table.rows and all(len(row) == len(table.columns) for row in table.rows)


def test_the_interval_over_folds_is_wider_than_that_of_independent_ones(
    script: ModuleType,
) -> None:
    values = [0.1, 0.3, 0.2, 0.6, 0.4]
    mean, low, high, n = script.over_folds(values, 0.25)
    se = np.std(values, ddof=1) * (1 / 5 + 0.25) ** 0.5
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), se), abs=1e-4)
    assert mean == pytest.approx(np.mean(values)) and n == 5


def test_retrieval_counts_both_directions(script: ModuleType) -> None:
    image = torch.eye(4)
    text = image.clone()
    text[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # ties with the second: neither direction is sure
    similarity = (image @ text.T).numpy()
    right = [similarity[i, i] > np.delete(similarity[i], i).max(initial=-1) for i in range(4)] + [
        similarity[i, i] > np.delete(similarity[:, i], i).max(initial=-1) for i in range(4)
    ]
    assert script.r1({"image": image, "text": text}) == np.mean(right)


def test_a_file_that_is_not_there_or_another_is_told_with_where_to_get_it(
    script: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="Weixin-Liang/Modality-Gap"):
        script.read(tmp_path / "missing.npy")
    np.save(tmp_path / "other.npy", np.zeros((2, 5, 512), np.float32))
    with pytest.raises(SystemExit, match=r"\(2, 5, 512\)"):
        script.read(tmp_path / "other.npy")


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Figures and their ranges, by where they stand."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, f"{where}/{key}")
    else:
        yield where, value


@pytest.mark.slow
@pytest.mark.skipif(EMBEDDINGS is None, reason="VLM_EDIT_REAL_CLIP names no file of embeddings")
@pytest.mark.timeout(3600)
def test_the_script_finds_on_clip_what_is_stored(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = importlib.import_module("results.common")
    stored = dict(leaves(common.load("real_clip")))
    monkeypatch.setattr(common, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["real_clip.py", "--embeddings", str(EMBEDDINGS)])
    runpy.run_path(str(script.__file__), run_name="__main__")
    found = dict(leaves(common.load("real_clip")))
    assert list(found) == list(stored)
    for where, wanted in stored.items():
        if not isinstance(wanted, list) or wanted[1] is None:
            assert found[where] == pytest.approx(wanted), where
            continue
        # Another machine's rounding trains other dictionaries, as another seed does.
        mean, low, high, n = wanted
        room = max(high - low, 0.02, 0.05 * abs(mean))
        assert low - room <= found[where][0] <= high + room, (where, found[where], wanted)
        assert found[where][3] == n, where
