"""The page of names: its figures are the stored ones, and those come out again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXPERIMENTS = Path(__file__).resolve().parents[2] / "docs" / "experiments"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for name in ("features", "features.naming"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from importlib import import_module

    return import_module("features.naming")


def test_the_page_of_names_is_what_the_stored_figures_say(script: ModuleType) -> None:
    stored = json.loads(script.STORED.read_text("utf-8"))
    assert list(stored) == list(script.ROWS)
    page = script.PAGE.read_text("utf-8")
    assert page == script.page(stored), "run: python docs/experiments features.naming --stored"
    assert all(f"| {name} |" in page for name in script.ROWS)


def test_right_names_of_a_row_come_out_as_stored(script: ModuleType) -> None:
    row = "joint, labels, first"
    there = json.loads(script.STORED.read_text("utf-8"))[row]
    here = script.count(script.ROWS[row])
    # Another machine rounds otherwise: a feature may pass the test here and not there.
    assert abs(here["described"] - there["described"]) <= 6
    (now, then) = (part["of described"] for part in (here, there))
    assert abs(now["n"] - then["n"]) <= 6 and abs(now["right"] - then["right"]) <= 6
    assert now["right"] > now["shuffled"][2]


def test_shuffled_names_are_right_as_often_as_two_draws_agree(script: ModuleType) -> None:
    true = torch.tensor([0] * 30 + [1] * 10)
    said = torch.tensor([0] * 20 + [1] * 20)
    found = script.rates(true, said)
    # A feature of the first kind meets a name of it in half of the deals.
    assert found["right"] == 30 and found["n"] == 40
    assert abs(found["shuffled"][0] - (30 * 0.5 + 10 * 0.5)) < 0.3
    assert found["p"] < 0.01


def test_a_value_is_the_one_that_goes_with_firing_and_none_where_that_is_not_clear(
    script: ModuleType,
) -> None:
    has = torch.eye(4).bool().repeat(20, 1)
    fires = torch.stack([has[:, 2], torch.arange(80) == 3, torch.arange(80) % 7 == 0], 1)
    assert script.best_value(fires, has, 3.3).tolist() == [2, -1, -1]
