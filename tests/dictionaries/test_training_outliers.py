"""Activations far longer than the others are left out where that is asked for, and counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.ground.errors import BadArgument, VlmEditError, VlmEditWarning

CONFIG = TrainConfig(n_features=24, k=2, steps=40, batch_size=64, longest=5.0)
LONG, LONGER_THAN_THE_MEDIAN = [3, 77, 250], 250


def rows(seed: int = 0) -> Tensor:
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(seed))
    x[LONG] *= 40
    lengths = x.norm(dim=1)
    # Five medians long and more, and less than five means, which the others raise.
    x[LONGER_THAN_THE_MEDIAN] *= 5.1 * lengths.median() / lengths[LONGER_THAN_THE_MEDIAN]
    return x


def short(x: Tensor) -> Tensor:
    lengths = x.norm(dim=1)
    return x[lengths <= 5 * lengths.median()]


def test_a_run_is_one_on_the_others_to_the_bit() -> None:
    found = train_dictionary({"image": rows()}, CONFIG, {"site": "joint"}, progress=False)
    plain = replace(CONFIG, longest=None)
    same = train_dictionary({"image": short(rows())}, plain, progress=False)
    whole = train_dictionary({"image": rows()}, plain, progress=False)
    assert torch.equal(found.decoder, same.decoder)
    assert torch.equal(found.encoder.weight, same.encoder.weight)
    assert not torch.equal(found.decoder, whole.decoder)
    assert found.info == {"left_out": "3 image", "site": "joint"}
    assert "left_out" not in whole.info


def test_each_stream_has_a_median_of_its_own() -> None:
    x, y = rows(), 100 * rows(1)
    data = Data.of({"image": x, "text": y}, replace(CONFIG, center=False))
    assert data.left_out == {"image": 3, "text": 3}
    assert torch.equal(data.streams["image"], short(x))
    assert torch.equal(data.streams["text"], short(y))


def test_of_pairs_both_sides_go() -> None:
    x, y = rows(), torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    y[0] *= 40
    config = replace(CONFIG, kind="topk", group=0.1, center=False)
    data = Data.of({"image": x, "text": y}, config)
    kept = [i for i in range(400) if i not in (0, *LONG)]
    assert torch.equal(data.streams["image"], x[kept])
    assert torch.equal(data.streams["text"], y[kept])
    assert data.left_out == {"image": 4, "text": 4}


def test_those_in_a_file_stay_there(tmp_path: Path) -> None:
    save_file({"image": rows()}, tmp_path / "x.safetensors")
    data = Data.of(tmp_path / "x.safetensors", CONFIG)
    assert not isinstance(data.streams["image"], Tensor)
    assert data.left_out == {"image": 3}
    assert torch.equal(data.streams["image"][:], short(rows()))


def test_lengths_are_those_behind_the_norm() -> None:
    data = Data.of({"image": rows()}, replace(CONFIG, norm="constant_norm_rescale"))
    assert data.left_out == {"image": 0}, "all are of one length there"


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("broken", [[5], [3, 5], list(range(400))])
def test_activations_that_are_no_numbers_are_refused_as_without_it(
    kind: Any, broken: list[int], tmp_path: Path
) -> None:
    x = rows()
    x[broken, 2] = torch.nan
    save_file({"image": x}, tmp_path / "x.safetensors")
    for given in ({"image": x, "text": rows(1)}, tmp_path / "x.safetensors"):
        for longest in (None, 5.0):
            config = replace(CONFIG, kind=kind, longest=longest)
            with pytest.raises(BadArgument, match="norm is nan: .* a number that is not finite"):
                train_dictionary(given, config, progress=False)


def test_many_are_no_exceptions_and_that_is_said() -> None:
    x = rows()
    x[100:120] *= 40
    with pytest.warns(VlmEditWarning, match="23 of 400 image activations .* no few exceptions"):
        Data.of({"image": x}, CONFIG)


@pytest.mark.parametrize("longest", [0.5, 0, -1.0, float("inf"), float("nan"), "10", True])
def test_a_number_that_leaves_most_out_is_refused(longest: Any) -> None:
    with pytest.raises(VlmEditError, match="longest is .*; it must be at least 1 median"):
        train_dictionary({"image": rows()}, replace(CONFIG, longest=longest), progress=False)
