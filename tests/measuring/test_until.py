"""A measurement that stops once its intervals are narrow enough."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_measurement_runs import JUDGE, _Stop, expect_same, run, stop_after
from test_sharded_pairs import as_tars
from torch import Tensor, nn

from vlm_edit import Dictionary, Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.measures.dominance import DominanceAccumulator, modality_dominance
from vlm_edit.measuring import (
    is_finished,
    load_measurement,
    measure_together,
    shards_of,
    until,
    was_measured,
)
from vlm_edit.measuring.until import Look, Until
from vlm_edit.report import class_table

FEATURES = 512
STOP = 47  # pairs measured at the second look: 3 batches of 16, of which one pair is none


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks from 16 pairs on: hosts are slow, and what is looked at is the same."""
    monkeypatch.setattr(until, "FIRST", 16)


@pytest.fixture(scope="module")
def host() -> tuple[nn.Module, Any]:
    return zoo.load_host()


@pytest.fixture(scope="module")
def some() -> Pairs:
    """100 pairs; the image of number 30 cannot be read."""
    pairs = zoo.load_pairs().select(range(100))
    images = [Path("nowhere.png") if i == 30 else image for i, image in enumerate(pairs.images)]
    return Pairs(images, pairs.texts, name="some")


@pytest.fixture(scope="module")
def whole(host, some) -> Measurement:
    return run(host, some)


@pytest.fixture(scope="module")
def prefix(host, some) -> Measurement:
    """The first 48 pairs alone."""
    return run(host, some.select(range(48)))


def widths(measurement: Measurement) -> Tensor:
    low, high = measurement.dominance.intervals(0.9)
    return high - low


@pytest.fixture(scope="module")
def asked(host, some, prefix) -> dict[str, Any]:
    """Two features, and a width that they have after 48 pairs and not after 16."""
    first = widths(run(host, some.select(range(16))))
    later = widths(prefix)
    fit = (later < first - 0.05).nonzero().flatten()
    features = sorted(fit[later[fit].argsort()[:2]].tolist())
    width = float(later[features].max())
    assert len(features) == 2 and bool((first[features] > width).any())
    return {"until_width": width, "until_features": features}


@pytest.fixture(scope="module")
def stopped(host, some, asked) -> Measurement:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(until, "FIRST", 16)
        return run(host, some, **asked)


def bare(measurement: Measurement) -> Measurement:
    """A measurement without what says which pairs there were and how it came to stop."""
    provenance = dict(measurement.provenance)
    provenance.pop("until", None)
    provenance["settings"] = {k: v for k, v in provenance["settings"].items() if k != "until"}
    kept = ("digest", "count")
    provenance["pairs"] = {k: v for k, v in provenance["pairs"].items() if k in kept}
    object.__setattr__(measurement := _copy(measurement), "provenance", provenance)
    return measurement


def _copy(measurement: Measurement) -> Measurement:
    return Measurement(**vars(measurement))


def test_what_stopped_is_what_its_pairs_alone_give_to_the_bit(stopped, prefix) -> None:
    assert stopped.n_pairs == STOP and stopped.skipped == prefix.skipped != ()
    expect_same(bare(stopped), bare(prefix))
    pairs = stopped.provenance["pairs"]
    assert (pairs["count"], pairs["of"]) == (48, 100)
    assert stopped.interpretability and stopped.random


def test_looks_are_made_at_doubling_prefixes_and_kept(stopped, asked, host, some) -> None:
    there = stopped.provenance["until"]
    assert [look["pairs"] for look in there["looks"]] == [16, STOP] and there["stopped"]
    for look, end in zip(there["looks"], (16, 48), strict=True):
        alone = widths(run(host, some.select(range(end))))[asked["until_features"]]
        assert look["widest"] == float(alone.max()) and look["asked"] == 2
        assert look["wide"] == int((alone > asked["until_width"]).sum())
    assert (there["read"], there["of"], there["not_settled"]) == (48, 100, 0)
    assert there["features"] == asked["until_features"] and there["width"] == asked["until_width"]


def test_looks_go_by_pairs_and_each_is_made_once() -> None:
    asked, looks, at = Until(0.1), [], []
    for pairs in range(10, 300, 10):
        if asked.due(pairs, looks):
            at.append(pairs)
            looks.append((Look(pairs, 1, 1, 1.0),))
    assert at == [20, 40, 70, 130, 260]


@pytest.mark.parametrize("batches", [1, 2])
def test_a_run_that_died_looks_and_stops_where_it_would_have(
    host, some, asked, stopped, tmp_path, monkeypatch, batches
) -> None:
    file = tmp_path / "state"
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        with pytest.raises(_Stop):
            run(host, some, checkpoint=file, every=0, **asked)
    again = run(host, some, checkpoint=file, **asked)
    expect_same(again, stopped)
    assert is_finished(file)
    stop_after(0, monkeypatch)
    expect_same(run(host, some, checkpoint=file, **asked), stopped)


def test_a_checkpoint_of_another_width_is_refused(host, some, asked, tmp_path, monkeypatch) -> None:
    file = tmp_path / "state"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(_Stop):
            run(host, some, checkpoint=file, every=0, **asked)
    with pytest.raises(VlmEditError, match="another settings .until:"):
        run(host, some, checkpoint=file)
    with pytest.raises(VlmEditError, match="another settings .until:"):
        run(host, some, checkpoint=file, until_width=0.01)


def test_a_later_call_finds_the_run_whole(host, some, asked, stopped, tmp_path) -> None:
    stopped.save(tmp_path / "run")
    there = load_measurement(tmp_path / "run")
    expect_same(there, stopped)

    def same(pairs: Pairs = some, **options: Any) -> bool:
        options = {"batch_size": 16, "judge": JUDGE, **options}
        return was_measured(there, Host.of(*host), pairs, zoo.load_dictionary("joint"), **options)

    assert same(**asked)
    assert not same() and not same(until_width=0.01)
    assert not same(some.select(range(48)), **asked) and not same(some.select(range(99)), **asked)


def test_features_that_fire_often_are_asked_about_by_default(host, some, whole) -> None:
    active, n = whole.dominance.active, whole.n_pairs
    measurement = run(host, some, until_width=1e-3, until_share=0.2)
    there, often = measurement.provenance["until"], active >= 0.2 * n
    expect_same(bare(measurement), bare(whole))
    assert [look["pairs"] for look in there["looks"]] == [16, 47, 79] and not there["stopped"]
    assert there["asked"] == int(often.sum()) > 0
    wide, dead = widths(whole) > 1e-3, whole.dominance.dead
    assert there["not_settled"] == int((often & wide).sum()) > 0
    assert there["others_not_settled"] == int((~often & wide & ~dead).sum()) > 0
    assert there["others_dead"] == int(dead.sum())
    assert "of" not in measurement.provenance["pairs"]


def test_what_is_not_settled_is_told_in_a_sentence(host, some, stopped, asked, whole) -> None:
    wide = widths(stopped) > asked["until_width"]
    open_ones = (wide & ~stopped.dominance.dead).nonzero().flatten().tolist()
    dead = int(stopped.dominance.dead.sum())
    width = f"{asked['until_width']:g}"[1:]
    listed = ", ".join(map(str, open_ones[:8]))
    sentence = (
        f"Stopped after 48 of 100 pairs: the 90 % intervals of the 2 features asked about are at "
        f"most {width} wide; {len(open_ones)} other live features wider and {dead} dead "
        f"(not settled: {listed}, and {len(open_ones) - 8} more)."
    )
    assert stopped.stopping() == sentence and whole.stopping() == ""
    told = stopped.summary()["until"]
    assert told == {"told": sentence, "not_settled": open_ones} and "until" not in whole.summary()
    json.dumps(told)
    assert f"\n{sentence}\n" in class_table(stopped).note
    read = run(host, some, until_width=1e-3, until_features=[3])
    assert read.stopping().startswith(
        "Read all 100 pairs: of the 1 feature asked about 1 has a 90 % interval wider than .001; "
    )
    none = run(host, some, until_width=0.9, until_share=1.0)
    assert none.provenance["until"]["asked"] == 0 and not none.provenance["until"]["stopped"]
    assert none.stopping().startswith(
        "Read all 100 pairs: no feature fires in at least 100 % of pairs, so that no look could "
    )


def test_the_page_says_where_it_stopped(stopped, some, tmp_path) -> None:
    stopped.page(tmp_path / "page.html", some)
    assert "Stopped after 48 of 100 pairs: " in (tmp_path / "page.html").read_text("utf-8")


def test_a_feature_that_never_fires_is_never_settled() -> None:
    dominance = modality_dominance(torch.tensor([[1.0, 0.0]] * 100), torch.zeros(100, 2))
    look = Until(0.5, (0, 1)).look(dominance)
    assert (look.asked, look.wide, look.widest) == (2, 1, 1.0) and not look.settled
    assert Until(0.5, (0,)).look(dominance).settled
    assert Until(0.5, None, 0.0).look(dominance).asked == 1


def test_features_measured_together_are_waited_for_all(host, some) -> None:
    neurons = Dictionary.identity(Host.of(*host).site("joint").width, "constant_norm_rescale")
    named = [("joint", zoo.load_dictionary("joint")), ("joint", neurons)]
    options = {"batch_size": 16, "progress": False, "until_share": 0.2}
    alone = [measure(Host.of(*host), some, one, **options, until_width=0.01) for _, one in named]
    widest = [[look["widest"] for look in m.provenance["until"]["looks"]] for m in alone]
    width = max(looks[1] for looks in widest)  # what both have at the second look
    assert max(looks[0] for looks in widest) > width
    both = measure_together(Host.of(*host), some, named, **options, until_width=width)
    assert [m.n_pairs for m in both] == [STOP, STOP]
    for measurement, looks in zip(both, widest, strict=True):
        there = measurement.provenance["until"]["looks"]
        assert [look["widest"] for look in there] == looks[:2]
    with pytest.raises(VlmEditError, match="2 are measured together: leave it out"):
        measure_together(Host.of(*host), some, named, until_width=0.1, until_features=[1])


def test_shards_are_taken_as_they_come_and_found_whole(host, asked, tmp_path, monkeypatch) -> None:
    pairs = zoo.load_pairs().select(range(80))
    source = shards_of(as_tars(pairs, tmp_path))
    what = (Host.of(*host), source, zoo.load_dictionary("joint"))
    options: dict[str, Any] = {"batch_size": 8}
    quiet = {"progress": False, "checkpoint": tmp_path / "state"}
    wanted = {"until_width": 0.9, "until_features": asked["until_features"]}
    plain = measure(*what, **options, progress=False)
    assert was_measured(plain, *what, **options)
    found = measure(*what, **options, **wanted, **quiet)
    assert found.n_pairs < 80 and found.provenance["pairs"]["count"] == found.n_pairs
    assert found.stopping().startswith(f"Stopped after {found.n_pairs} pairs: ")
    assert was_measured(found, *what, **options, **wanted)
    assert not was_measured(found, *what, **options)
    stop_after(0, monkeypatch)
    expect_same(measure(*what, **options, **wanted, **quiet), found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"until_width": 0}, "until_width is 0; .*give a width between them"),
        ({"until_width": -0.1}, "until_width is -0.1"),
        ({"until_width": 1}, "until_width is 1;"),
        ({"until_width": float("nan")}, "until_width is nan"),
        ({"until_width": 0.1, "until_features": []}, "names no feature: name some"),
        ({"until_width": 0.1, "until_features": [3, 512]}, "feature 512, .* has 512: .* 0 to 511"),
        ({"until_width": 0.1, "until_features": [-1]}, "names feature -1"),
        ({"until_width": 0.1, "until_share": 1.5}, "until_share is 1.5"),
        ({"until_width": 0.1, "until_share": -0.1}, "until_share is -0.1"),
        ({"until_width": 0.1, "until_share": 0.1, "until_features": [1]}, "leave one out"),
        ({"until_features": [1]}, "until_features says whose .* until_width"),
        ({"until_share": 0.5}, "until_share says whose .* until_width"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(host, some, options, told) -> None:
    with pytest.raises(VlmEditError, match=told):
        run(host, some, **options)


def test_near_an_end_of_the_scale_intervals_at_the_stop_hold_it_less_often(monkeypatch) -> None:
    """What docs/before-you-believe.md owns up to."""
    monkeypatch.setattr(until, "FIRST", 512)
    stopped, held = coverage(lambda u: torch.where(u[0] < 0.02, u[1], 1.0), 0.99, 0.011)
    assert stopped > 0.9 and 0.78 <= held <= 0.88


def coverage(draw: Any, truth: float, width: float, experiments: int = 1000) -> tuple[float, float]:
    """The share of experiments that stop, and of those whose interval then holds the truth."""
    generator = torch.Generator().manual_seed(0)
    gathered, asked = DominanceAccumulator(experiments), Until(width)
    stopped = held = torch.zeros(experiments, dtype=torch.bool)
    looks: list[tuple[Look, ...]] = []
    for pairs in range(512, 4097, 512):
        ratio = draw(torch.rand(2, 512, experiments, generator=generator, dtype=torch.float64))
        fires = torch.rand(512, experiments, generator=generator) < 0.3
        gathered.update(ratio * fires, (1 - ratio) * fires)
        if asked.due(pairs, looks):
            dominance = gathered.compute()
            looks.append((asked.look(dominance),))
            low, high = dominance.intervals(0.9)
            now = ~asked.wide(dominance) & ~stopped
            held, stopped = held | (now & (low <= truth) & (truth <= high)), stopped | now
    return float(stopped.double().mean()), float(held.sum() / stopped.sum())


@pytest.mark.parametrize(
    ("draw", "truth", "width"),
    [
        (lambda u: u[0], 0.5, 0.076),
        (lambda u: (u[0] < 0.9).double(), 0.9, 0.056),
        (lambda u: (u[0] < 0.98).double(), 0.98, 0.026),
    ],
    ids=["uniform", "nine of ten", "nearly all"],
)
def test_intervals_at_the_stop_hold_the_truth_nearly_as_often_as_they_say(
    monkeypatch, draw, truth, width
) -> None:
    monkeypatch.setattr(until, "FIRST", 512)
    stopped, held = coverage(draw, truth, width)
    assert stopped > 0.9 and 0.86 <= held <= 0.94
