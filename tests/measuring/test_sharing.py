"""A measurement that several processes share in one folder, and what they find there."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm_edit import Host, Pairs, VlmEditError, measure, zoo
from vlm_edit.ground.files import read_tensors, write_tensors
from vlm_edit.measuring import Measurement, Sharing, expect_cut, is_finished, measure_part
from vlm_edit.measuring.state import State


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_host())


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """70 pairs in seven batches of ten; the image of number 30 cannot be read."""
    pairs = zoo.load_pairs().select(range(70))
    images = [Path("nowhere.png") if i == 30 else image for i, image in enumerate(pairs.images)]
    return Pairs(images, pairs.texts, name="some")


@pytest.fixture(scope="module")
def whole(host: Host, pairs: Pairs) -> Measurement:
    return measure(host, pairs, zoo.load_dictionary("joint"), batch_size=10, progress=False)


def share(folder: Path, host: Host, pairs: Pairs, part: tuple[int, int], **options) -> Sharing:
    options = {"batch_size": 10, "progress": False} | options
    return Sharing(
        folder, host, pairs, [("joint", zoo.load_dictionary("joint"))], part=part, **options
    )


def expect_same(a: Measurement, b: Measurement) -> None:
    """Counts, ratios and examples are the same to the bit, float64 sums to 1e-12."""
    for name in ("counts", "ratios", "levels"):
        assert torch.equal(getattr(a.dominance, name), getattr(b.dominance, name))
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(a.dominance.masses, b.dominance.masses, **close)
    assert a.gap == pytest.approx(b.gap, abs=1e-12)
    for stream in ("image", "text"):
        assert torch.equal(a.examples[stream].numbers, b.examples[stream].numbers)
        assert torch.equal(a.examples[stream].values, b.examples[stream].values)
        torch.testing.assert_close(a.means[stream], b.means[stream], **close)
    assert (a.n_pairs, a.skipped, a.truncated) == (b.n_pairs, b.skipped, b.truncated)
    assert a.provenance == b.provenance


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_in_any_order_make_what_one_process_measures(
    count, host, pairs, whole, tmp_path
) -> None:
    parts = [share(tmp_path, host, pairs, (i, count)) for i in reversed(range(count))]
    for done, part in enumerate(parts, 1):
        part.claim()
        part.run()
        assert len(part.missing()) == count - done
    (merged,) = parts[0].merge()
    expect_same(merged, whole)
    # And the bits do not depend on who merges.
    assert parts[-1].merge()[0].checksum() == merged.checksum()


def test_a_merge_holds_two_states_at_once(host, pairs, tmp_path, monkeypatch) -> None:
    parts = [share(tmp_path, host, pairs, (i, 5)) for i in range(5)]
    for part in parts:
        part.run()
    del part
    last = parts.pop()
    parts.clear()
    alive: weakref.WeakSet[State] = weakref.WeakSet()
    most, load = [0], State.load.__func__

    def counted(cls, path, judge):
        state = load(cls, path, judge)
        alive.add(state)
        most[0] = max(most[0], len(alive))
        return state

    monkeypatch.setattr(State, "load", classmethod(counted))
    assert last.merge()[0].n_pairs == 69
    assert most == [2]


def test_who_is_missing_is_read_off_the_heads_of_files_alone(host, pairs, tmp_path) -> None:
    part = share(tmp_path, host, pairs, (0, 2))
    part.run()
    file = part.files[0]
    # The tensors could not even be read: the file's bytes behind its header are gone.
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    file.write_bytes(data[: 8 + length])
    assert part.missing() == [1]


def test_a_checkpoint_of_another_version_is_refused(host, pairs, tmp_path) -> None:
    part = share(tmp_path, host, pairs, (0, 2))
    part.run()
    header, tensors = read_tensors(part.files[0])
    write_tensors(part.files[0], tensors, header | {"version": 2})
    with pytest.raises(VlmEditError, match="another version of vlm-edit: delete it to begin anew"):
        is_finished(part.files[0])


def changed() -> Host:
    model, processor = zoo.load_host()
    with torch.no_grad():
        model.text_model.encoder.layers[2].mlp.fc2.weight[0, 0] += 1
    return Host.of(model, processor)


def test_a_part_of_another_host_or_of_other_pairs_is_refused_before_it_reads(
    host, pairs, tmp_path
) -> None:
    share(tmp_path, host, pairs, (0, 2)).claim()  # and nothing is saved yet
    texts = ("another", *pairs.texts[1:])
    for other, message in (
        (share(tmp_path, changed(), pairs, (1, 2)), r"other weights of the host \(text_model"),
        (share(tmp_path, host, Pairs(pairs.images, texts), (1, 2)), "another pairs"),
        (share(tmp_path, host, pairs, (1, 2), zeros="half"), r"another settings \(zeros: skip"),
    ):
        with pytest.raises(VlmEditError, match=rf"parts.json', was measured with {message}"):
            other.claim()
    share(tmp_path, host, pairs, (1, 2)).claim()


def test_a_part_refuses_states_of_another_host_where_nobody_has_written_down_what_is_measured(
    host, pairs, tmp_path
) -> None:
    first = share(tmp_path, host, pairs, (0, 2))
    options = {"part": (0, 2), "checkpoint": first.files[0], "batch_size": 10, "progress": False}
    measure_part(host, pairs, zoo.load_dictionary("joint"), **options)
    with pytest.raises(VlmEditError, match=r"part-1-of-2.checkpoint' was measured with other wei"):
        share(tmp_path, changed(), pairs, (1, 2)).claim()
    assert not first.claimed
    first.claim()


@pytest.mark.parametrize("saved", [False, True], ids=["claimed", "saved"])
@pytest.mark.parametrize("counts", [(2, 3), (3, 2), (3, 1)])
def test_parts_of_two_numbers_do_not_mix(counts, saved, host, pairs, tmp_path) -> None:
    there, here = counts
    first = share(tmp_path, host, pairs, (0, there))
    if saved:
        first.run()
    else:
        first.claim()
    name = f"part-1-of-{there}.checkpoint" if saved else "parts.json"
    with pytest.raises(VlmEditError, match=rf"holds {name}, of .* in {there} parts.* be {here}: "):
        share(tmp_path, host, pairs, (0, here)).claim()
    with pytest.raises(VlmEditError, match="to begin anew"):
        expect_cut(tmp_path, here)
    expect_cut(tmp_path, there)


def test_of_two_numbers_at_the_same_instant_one_is_refused(
    host, pairs, tmp_path, monkeypatch
) -> None:
    """Where there are no locks: both have seen an empty folder, and one is quicker."""
    quick, slow = (share(tmp_path, host, pairs, (0, n)) for n in (2, 3))
    from vlm_edit.measuring import sharing

    def late(path, data, what):
        monkeypatch.undo()
        quick.claim()
        return sharing.write_new(path, data, what)

    monkeypatch.setattr(sharing, "write_new", late)
    with pytest.raises(VlmEditError, match="holds parts.json, of a measurement in 2 parts"):
        slow.claim()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"parts": 2}', '{"parts": null}'])
def test_a_damaged_list_of_parts_is_refused(text, host, pairs, tmp_path) -> None:
    (tmp_path / "parts.json").write_text(text)
    with pytest.raises(VlmEditError, match=r"parts.json is damaged or gone .*: delete it"):
        share(tmp_path, host, pairs, (0, 2)).claim()


def test_a_claim_says_how_many_parts_and_of_what(host, pairs, tmp_path) -> None:
    part = share(tmp_path / "new" / "folder", host, pairs, (1, 2))
    assert not part.claimed
    part.claim()
    part.claim()  # again is nothing new
    told = json.loads((part.folder / "parts.json").read_text())
    assert told["parts"] == 2 and told["told"][0]["pairs"]["count"] == 70
    assert part.leftovers() == [part.folder / "parts.json", *part.files]


def test_a_folder_with_the_run_is_known_by_it(host, pairs, whole, tmp_path) -> None:
    part = share(tmp_path, host, pairs, (0, 2))
    assert not part.is_measured()
    whole.save(tmp_path)
    assert part.is_measured()
    assert not share(tmp_path, host, pairs, (0, 2), keep=7).is_measured()


def test_an_image_that_changed_since_a_part_read_it_stops_the_merge(host, pairs, tmp_path) -> None:
    parts = [share(tmp_path, host, pairs, (i, 2)) for i in range(2)]
    for part in parts:
        part.run()
    images = [*pairs.images[:60], Image.new("RGB", (48, 48)), *pairs.images[61:]]
    images[60] = images[60].resize(pairs.open(60).size)
    other = share(tmp_path, host, Pairs(images, pairs.texts, name="some"), (0, 2))
    with pytest.raises(VlmEditError, match="pair 60 .*another image than when part 2 read it"):
        other.merge()
