"""Parts of a measurement that stop together, once intervals are narrow enough."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_measurement_runs import JUDGE, _Stop, run_part, stop_after
from test_sharded_pairs import files_of, tar
from test_sharing import expect_same

from vlm_edit import Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.measuring import Sharing, looking, measure_together, shards_of, until

COUNT, BATCH, FIRST = 96, 4, 16


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks from 16 pairs on."""
    monkeypatch.setattr(until, "FIRST", FIRST)


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_host())


@pytest.fixture(scope="module")
def some() -> Pairs:
    """96 pairs; the image of number 3, of the first batch, cannot be read."""
    pairs = zoo.load_pairs().select(range(COUNT))
    images = [Path("nowhere.png") if i == 3 else image for i, image in enumerate(pairs.images)]
    return Pairs(images, pairs.texts, name="some")


def share(folder: Path, host: Host, pairs: Any, part: tuple[int, int], **options: Any) -> Sharing:
    options = {"batch_size": BATCH, "progress": False} | options
    readings = [("joint", zoo.load_dictionary("joint"))]
    return Sharing(folder, host, pairs, readings, part=part, **options)


def alone(host: Host, pairs: Any, **options: Any) -> Measurement:
    options = {"batch_size": BATCH, "progress": False} | options
    return measure(host, pairs, zoo.load_dictionary("joint"), **options)


def prefix(count: int, look: int) -> list[int]:
    """Number what parts of 24 batches of 4 have read at a look, counted from their units."""
    numbers = []
    for i in range(count):
        units = range(24 * i // count, 24 * (i + 1) // count)
        good = 0
        for unit in units:
            there = range(BATCH * unit, BATCH * (unit + 1))
            numbers += there
            good += len([k for k in there if k != 3])
            if good * count >= look:
                break
    return numbers


def asked(host: Host, some: Pairs, count: int) -> dict[str, Any]:
    """Two features, and a width that they have at the second look at parts and not at the first."""
    first, later = (
        high - low
        for low, high in (
            alone(host, some.select(prefix(count, look))).dominance.intervals(0.9)
            for look in (FIRST, 2 * FIRST)
        )
    )
    fit = (later < first - 0.02).nonzero().flatten()
    features = sorted(fit[later[fit].argsort()[:2]].tolist())
    width = float(later[features].max())
    assert len(features) == 2 and bool((first[features] > width).any())
    return {"until_width": width, "until_features": features}


def expect_prefix(
    merged: Measurement, wanted: Measurement, some: Pairs, numbers: list[int]
) -> None:
    """What all parts gave is what the pairs they had read by then give, but for their numbers."""
    assert torch.equal(merged.dominance.counts, wanted.dominance.counts)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(merged.dominance.masses, wanted.dominance.masses, **close)
    for stream in ("image", "text"):
        theirs = wanted.examples[stream].numbers
        named = torch.tensor([*numbers, -1])[theirs]  # the last for none
        assert torch.equal(merged.examples[stream].numbers, named)
        assert torch.equal(merged.examples[stream].values, wanted.examples[stream].values)
    assert [number for number, _ in merged.skipped] == [n for n in numbers if n == 3]
    pairs = merged.provenance["pairs"]
    assert (pairs["count"], pairs["of"]) == (len(numbers), len(some))


@pytest.mark.parametrize("count", [2, 3])
def test_parts_in_any_order_stop_at_the_same_prefixes(count, host, some, tmp_path) -> None:
    wanted = asked(host, some, count)
    numbers = prefix(count, 2 * FIRST)
    assert numbers != list(range(len(numbers)))
    merged = []
    for order in itertools.permutations(range(count)):
        folder = tmp_path / "-".join(map(str, order))
        parts = [share(folder, host, some, (i, count), **wanted) for i in order]
        for part in parts:
            assert len(part.missing()) > 0
            part.claim()
            part.run()
        assert parts[0].missing() == []  # though the last part has not read all its batches
        merged.append(parts[0].merge()[0])
    expect_prefix(merged[0], alone(host, some.select(numbers)), some, numbers)
    assert {one.checksum() for one in merged} == {merged[0].checksum()}
    looks = merged[0].provenance["until"]["looks"]
    assert [look["pairs"] for look in looks] == [
        len([n for n in prefix(count, at) if n != 3]) for at in (FIRST, 2 * FIRST)
    ]
    assert merged[0].stopping().startswith(f"Stopped after {len(numbers)} of {COUNT} pairs: ")


def test_a_part_ends_when_another_sees_that_all_have_enough(host, some, tmp_path) -> None:
    wanted = asked(host, some, 2)
    parts = [share(tmp_path, host, some, (i, 2), **wanted) for i in range(2)]
    parts[0].claim()
    parts[0].run()
    parts[1].claim()
    parts[1].run()
    read = parts[1]._state.runs[0].accumulator.dominance.n_pairs
    assert read == FIRST  # of 48: its share of the second look, not of the third


@pytest.mark.parametrize("seed", range(4))
def test_parts_that_die_at_random_batches_stop_at_the_same_prefixes(
    host, some, tmp_path, monkeypatch, seed
) -> None:
    wanted = asked(host, some, 2)
    generator = random.Random(seed)
    left = {0, 1}
    while left:
        part = share(tmp_path, host, some, (generator.choice(sorted(left)), 2), **wanted)
        part.claim()
        with monkeypatch.context() as patch:
            stop_after(generator.randrange(1, 9), patch)
            try:
                part.run(every=generator.choice([0.0, 60.0]))
            except _Stop:
                continue
        left.discard(part.part[0])
    assert part.missing() == []
    numbers = prefix(2, 2 * FIRST)
    merged = part.merge()[0]
    expect_prefix(merged, alone(host, some.select(numbers)), some, numbers)
    assert len(merged.provenance["until"]["looks"]) == 2


def test_parts_that_never_have_enough_are_read_whole_and_say_what_was_seen(
    host, some, tmp_path
) -> None:
    parts = [share(tmp_path, host, some, (i, 3), until_width=1e-6) for i in range(3)]
    for part in parts:
        part.claim()
        part.run()
    (merged,) = parts[0].merge()
    whole = alone(host, some)
    bare = {k: v for k, v in merged.provenance.items() if k != "until"}
    bare["settings"] = {k: v for k, v in bare["settings"].items() if k != "until"}
    object.__setattr__(merged, "provenance", bare | {"until": merged.provenance["until"]})
    there = merged.provenance["until"]
    assert not there["stopped"] and [look["pairs"] for look in there["looks"]] == [
        len([n for n in prefix(3, at) if n != 3]) for at in (16, 32, 64)
    ]
    object.__setattr__(merged, "provenance", bare)
    expect_same(merged, whole)
    assert not list(tmp_path.glob("*.look-*"))  # looked at, and deleted


def test_what_a_finished_part_lacks_of_its_share_is_not_waited_for(host, some, tmp_path) -> None:
    """Shards of unlike sizes: the first part ends before its share of the second look."""
    for a, b in ((4, 14), (14, 96)):
        tar(tmp_path / f"shards-{a:02d}.tar", files_of(some, range(a, b)))
    source = shards_of(str(tmp_path / "shards-*.tar"))
    narrow = {"until_width": 1e-6, "until_features": [3]}
    parts = [share(tmp_path / "narrow", host, source, (i, 2), **narrow) for i in range(2)]
    for part in parts:
        part.run()
    looks = parts[0].merge()[0].provenance["until"]["looks"]
    assert [look["pairs"] for look in looks] == [16, 26, 42, 74]


def test_a_look_needs_a_batch_of_each_part_at_least(monkeypatch) -> None:
    assert looking._first(2, 8) == 16 and looking._first(3, 8) == 32
    monkeypatch.setattr(until, "FIRST", 512)
    assert looking._first(8, 64) == 512 and looking._first(512, 64) == 32_768


def test_what_was_kept_for_another_measurement_is_refused(host, some, tmp_path) -> None:
    wanted = asked(host, some, 2)
    part = share(tmp_path, host, some, (0, 2), **wanted)
    part.claim()
    part.run()
    (tmp_path / "parts.json").unlink()
    part.files[0].unlink()
    other = share(tmp_path, host, some, (1, 2), **wanted | {"until_width": 0.5})
    with pytest.raises(VlmEditError, match=r"look-16.checkpoint.* another settings .until:"):
        other.claim()
    cut = share(tmp_path, host, some, (1, 3), **wanted)
    with pytest.raises(VlmEditError, match="part-1-of-2.look-16.checkpoint"):
        cut.claim()
    assert not (tmp_path / "parts.json").exists()


def test_looks_that_are_none_are_refused(host, some, tmp_path) -> None:
    part = share(tmp_path, host, some, (0, 2), until_width=0.1)
    part.claim()
    told = json.loads((tmp_path / "parts.json").read_text("utf-8"))
    (tmp_path / "parts.json").write_text(json.dumps(told | {"looks": [[[1, 2]]]}))
    with pytest.raises(VlmEditError, match="parts.json is damaged .*delete it, and"):
        part.run()


def test_a_part_ends_when_the_run_was_made_without_it(host, some, tmp_path, monkeypatch) -> None:
    """Another process merged all parts and took away what told of them."""
    part = share(tmp_path, host, some, (0, 2), until_width=1e-6)
    part.claim()
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(_Stop):
            part.run(every=0)
    (tmp_path / "parts.json").unlink()
    part.run()
    assert part._state.runs[0].accumulator.dominance.n_pairs == 4 * BATCH - 1  # a batch more


def test_a_part_alone_in_a_file_of_its_own_is_refused(some, tmp_path) -> None:
    what = zoo.load_host(), some, (1, 3), tmp_path / "part"
    with pytest.raises(VlmEditError, match="part 2 of 3 sees its own alone: .* folder .Sharing"):
        run_part(*what, until_width=0.1)


def test_several_dictionaries_and_a_judge_stop_together(host, some, tmp_path) -> None:
    readings = [("joint", zoo.load_dictionary("joint"))] * 2
    options: dict[str, Any] = {"batch_size": BATCH, "progress": False, "judge": JUDGE}
    options |= {"until_width": 0.95, "until_share": 0.2}
    parts = [Sharing(tmp_path, host, some, readings, part=(i, 2), **options) for i in range(2)]
    for part in parts:
        part.run()
    merged = parts[0].merge()
    numbers = prefix(2, FIRST)
    options = {k: v for k, v in options.items() if "until" not in k}
    wanted = measure_together(host, some.select(numbers), readings, **options)
    assert len(merged) == 2
    for one, other in zip(merged, wanted, strict=True):
        expect_prefix(one, other, some, numbers)
        assert one.interpretability and one.random == other.random
        for name, scores in one.interpretability.items():
            close = {"rtol": 0, "atol": 1e-10, "equal_nan": True}
            torch.testing.assert_close(scores, other.interpretability[name], **close)
