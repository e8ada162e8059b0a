"""A measurement that is stopped, shared among processes, saved and loaded."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm_edit import Dictionary, Host, Pairs, VlmEditError, measure, zoo
from vlm_edit.ground.files import read_tensors, write_tensors
from vlm_edit.measuring import (
    Judge,
    Measurement,
    Reader,
    centred,
    is_finished,
    load_measurement,
    measure_part,
    merge_parts,
)
from vlm_edit.measuring import run as room
from vlm_edit.measuring.plan import PairsPlan

pytestmark = pytest.mark.kernels

JUDGE = Judge(
    image=lambda images: torch.stack([_pixels(image) for image in images]),
    text=lambda texts: torch.stack([_letters(text) for text in texts]),
    name="pixels and letters",
)


def _pixels(image: Image.Image) -> Tensor:
    small = image.convert("RGB").resize((4, 4))
    return torch.tensor(list(small.tobytes()), dtype=torch.float32) + 1.0


def _letters(text: str) -> Tensor:
    return torch.tensor([1.0 + text.lower().count(chr(97 + i)) for i in range(26)])


@pytest.fixture(scope="module")
def host() -> tuple[nn.Module, Any]:
    return zoo.load_host()


@pytest.fixture(scope="module")
def some() -> Pairs:
    """100 pairs; the image of number 30 cannot be read."""
    pairs = zoo.load_pairs().select(range(100))
    images = [Path("nowhere.png") if i == 30 else image for i, image in enumerate(pairs.images)]
    return Pairs(images, pairs.texts, name="some")


def run(host: tuple[nn.Module, Any], pairs: Pairs, **options: Any) -> Measurement:
    options = {"batch_size": 16, "progress": False, "judge": JUDGE} | options
    return measure(Host.of(*host), pairs, zoo.load_dictionary("joint"), **options)


def run_part(
    host: tuple[nn.Module, Any], pairs: Pairs, part: tuple[int, int], file: Path, **options: Any
) -> None:
    options = {"batch_size": 16, "progress": False, "judge": JUDGE} | options
    dictionary = zoo.load_dictionary("joint")
    measure_part(Host.of(*host), pairs, dictionary, part=part, checkpoint=file, **options)


def expect_same(a: Measurement, b: Measurement, tolerance: float = 0.0) -> None:
    """The same to the bit, but for float64 sums where a tolerance is given."""

    def alike(x: Tensor, y: Tensor) -> None:
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)

    assert torch.equal(a.dominance.counts, b.dominance.counts)
    assert torch.equal(a.dominance.ratios, b.dominance.ratios)
    assert torch.equal(a.dominance.levels, b.dominance.levels)
    alike(a.dominance.masses, b.dominance.masses)
    assert a.gap == pytest.approx(b.gap, abs=tolerance)
    for stream in ("image", "text"):
        assert torch.equal(a.examples[stream].numbers, b.examples[stream].numbers)
        assert torch.equal(a.examples[stream].values, b.examples[stream].values)
        alike(a.means[stream], b.means[stream])
    assert list(a.interpretability) == list(b.interpretability)
    for name, scores in a.interpretability.items():
        torch.testing.assert_close(
            scores, b.interpretability[name], rtol=0, atol=100 * tolerance, equal_nan=True
        )
    assert a.random == b.random and a.provenance == b.provenance
    assert (a.skipped, a.truncated, a.n_pairs) == (b.skipped, b.truncated, b.n_pairs)


class _Stop(Exception):
    pass


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break the run off when so many batches are added."""
    update, left = room.MeasurementAccumulator.update, [batches]

    def counted(self: Any, *batch: Any) -> None:
        if not left[0]:
            raise _Stop
        left[0] -= 1
        update(self, *batch)

    monkeypatch.setattr(room.MeasurementAccumulator, "update", counted)


@pytest.mark.parametrize("batches", [1, 3, 6])
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    host, some, tmp_path, monkeypatch, batches
) -> None:
    whole = run(host, some)
    file = tmp_path / "folder" / "state"
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        with pytest.raises(_Stop):
            run(host, some, checkpoint=file, every=0)
    expect_same(run(host, some, checkpoint=file), whole)


def test_a_run_that_had_finished_reads_nothing_again(host, some, tmp_path, monkeypatch) -> None:
    whole = run(host, some, checkpoint=tmp_path / "state")
    stop_after(0, monkeypatch)
    expect_same(run(host, some, checkpoint=tmp_path / "state"), whole)


def test_parts_of_processes_make_the_whole(host, some, tmp_path) -> None:
    whole = run(host, some)
    files = [tmp_path / f"{i}" for i in range(3)]
    for i, file in enumerate(files):
        assert not is_finished(file)
        run_part(host, some, (i, 3), file)
        assert is_finished(file)
    expect_same(merge_parts([files[2], files[0], files[1]], some, JUDGE), whole, 1e-12)


def test_parts_that_do_not_make_a_whole_are_refused(host, some, tmp_path, monkeypatch) -> None:
    files = [tmp_path / f"{i}" for i in range(2)]
    for i, file in enumerate(files):
        run_part(host, some, (i, 2), file)
    with pytest.raises(VlmEditError, match="do not make a whole: they are 1 of 2$"):
        merge_parts(files[:1], some, JUDGE)
    with pytest.raises(VlmEditError, match="do not make a whole"):
        merge_parts([files[0], files[0]], some, JUDGE)
    with pytest.raises(VlmEditError, match="no parts"):
        merge_parts([], some, JUDGE)
    with pytest.raises(VlmEditError, match="not the pairs"):
        merge_parts(files, some.select(range(99)), JUDGE)
    (tmp_path / "other").mkdir()
    run_part(host, some, (1, 2), tmp_path / "other" / "1", zeros="half")
    with pytest.raises(VlmEditError, match=r"another settings \(zeros: half, here skip|zeros"):
        merge_parts([files[0], tmp_path / "other" / "1"], some, JUDGE)
    files[1].unlink()
    stop_after(1, monkeypatch)
    with pytest.raises(_Stop):
        run_part(host, some, (1, 2), files[1], every=0)
    with pytest.raises(VlmEditError, match="part 2 of 2 is not finished"):
        merge_parts(files, some, JUDGE)


@pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
def test_a_part_outside_of_the_whole_is_refused(host, some, part, tmp_path) -> None:
    with pytest.raises(VlmEditError, match="0 <= i < n"):
        run_part(host, some, part, tmp_path / "state")


def test_a_checkpoint_of_another_measurement_is_refused_and_kept(host, some, tmp_path) -> None:
    file = tmp_path / "state"
    run(host, some, checkpoint=file)
    before = file.read_bytes()
    changed = Pairs(some.images, ("another", *some.texts[1:]), name="some")
    neurons = Dictionary.identity(192, "constant_norm_rescale")
    for again, told in (
        (lambda: run(host, some, checkpoint=file, batch_size=8), "another settings .batch_size"),
        (lambda: run(host, changed, checkpoint=file), "another pairs .listing"),
        (lambda: run(host, some, checkpoint=file, judge=None), "another settings .judge"),
        (lambda: run_part(host, some, (0, 2), file), "is of part"),
        (
            lambda: measure(
                Host.of(*host), some, neurons, batch_size=16, judge=JUDGE, checkpoint=file
            ),
            "another dictionary",
        ),
    ):
        with pytest.raises(VlmEditError, match=told):
            again()
    assert file.read_bytes() == before


def test_a_damaged_checkpoint_is_refused(host, some, tmp_path) -> None:
    file = tmp_path / "state"
    run(host, some, checkpoint=file)
    data = file.read_bytes()
    for broken in (b"", data[:100], data[: len(data) // 2], b"\x00" * 64):
        file.write_bytes(broken)
        with pytest.raises(VlmEditError, match="not a readable safetensors file"):
            run(host, some, checkpoint=file)
    run(host, some).save(tmp_path)
    (tmp_path / "measurement.safetensors").replace(file)
    with pytest.raises(VlmEditError, match="not a checkpoint"):
        run(host, some, checkpoint=file)


_SCRIPT = """
import sys, time
from vlm_edit import Host, measure, zoo
from vlm_edit.measuring import MeasurementAccumulator as Accumulator
update = Accumulator.update
def slow(self, batch):
    update(self, batch)
    time.sleep(0.2)
if sys.argv[2] == "slow":
    Accumulator.update = slow
found = measure(Host.of(*zoo.load_host()), zoo.load_pairs().select(range(200)),
                zoo.load_dictionary("joint"), batch_size=16, checkpoint=sys.argv[1], every=0,
                progress=False)
found.save(sys.argv[1] + "-run")
"""


@pytest.mark.slow
def test_a_killed_process_loses_nothing(host, tmp_path) -> None:
    state = tmp_path / "state"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(speed: str) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", _SCRIPT, str(state), speed]
        return subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)

    process = start("slow")
    deadline = time.monotonic() + 60
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start("fast").wait() == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = run(host, zoo.load_pairs().select(range(200)), judge=None)
    finally:
        torch.set_num_threads(threads)
    expect_same(load_measurement(f"{state}-run"), whole)


def test_what_was_saved_loads_the_same(host, some, tmp_path) -> None:
    found = run(host, some)
    found.save(tmp_path)
    again = load_measurement(tmp_path)
    expect_same(again, found)
    assert str(again.rows()) == str(found.rows()) and again.site == found.site
    assert again.summary() == found.summary() == json.loads((tmp_path / "summary.json").read_text())


def test_a_missing_or_damaged_run_is_refused(host, some, tmp_path) -> None:
    with pytest.raises(VlmEditError, match="no measurement at"):
        load_measurement(tmp_path)
    run(host, some).save(tmp_path)
    file = tmp_path / "measurement.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'\\"gap\\"', b'\\"gup\\"', 1))
    with pytest.raises(VlmEditError, match="is damaged"):
        load_measurement(tmp_path)
    file.write_bytes(data[:-8])
    with pytest.raises(VlmEditError, match="not a readable"):
        load_measurement(tmp_path)


def flip(file: Path, name: str) -> None:
    """Change one bit of a tensor's first number."""
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin = json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    data[8 + length + begin + 5] ^= 1
    file.write_bytes(data)


def test_a_flipped_bit_of_a_run_or_a_checkpoint_is_refused_by_name(host, some, tmp_path) -> None:
    state = tmp_path / "state"
    found = run(host, some, judge=None, checkpoint=state)
    found.save(tmp_path)
    flip(tmp_path / "measurement.safetensors", "ratios")
    with pytest.raises(VlmEditError, match="measurement.safetensors is damaged: .*measurement has"):
        load_measurement(tmp_path)
    (name,) = [name for name in read_tensors(state)[1] if name.endswith("ratios")]
    flip(state, name)
    with pytest.raises(VlmEditError, match="state is damaged: .*checkpoint has changed"):
        run(host, some, judge=None, checkpoint=state)


def test_runs_and_checkpoints_of_former_versions_have_no_checksum_and_are_read(
    host, some, tmp_path
) -> None:
    state, file = tmp_path / "state", tmp_path / "measurement.safetensors"
    found = run(host, some, judge=None, checkpoint=state)
    found.save(tmp_path)
    for path in (state, file):
        header, tensors = read_tensors(path)
        del header["checksum"]
        save_file(tensors, path, metadata={"vlm_edit": json.dumps(header)})
    told = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    del told["checksum"]
    (tmp_path / "summary.json").write_text(json.dumps(told), "utf-8")
    expect_same(load_measurement(tmp_path), found)
    expect_same(run(host, some, judge=None, checkpoint=state), found)
    assert load_measurement(tmp_path).checksum() == found.checksum()


def test_the_table_comes_as_json_and_without_pandas_says_what_to_install(
    host, some, tmp_path, monkeypatch
) -> None:
    found = run(host, some)
    found.to_json(tmp_path / "table.json")
    told = json.loads((tmp_path / "table.json").read_text("utf-8"))
    assert told["summary"] == found.summary()
    assert list(told["features"]) == list(found.table())
    for ours, written in zip(found.table()["mds"], told["features"]["mds"], strict=True):
        assert written == ours if ours == ours else written is None
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(VlmEditError, match="pip install pandas"):
        found.to_pandas()


def test_the_table_is_a_data_frame_where_pandas_is_installed(host, some) -> None:
    pandas = pytest.importorskip("pandas")
    found = run(host, some)
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["class"].value_counts().to_dict() == {
        name: len(members) for name, members in found.dominance.classes().items() if members
    }


def test_a_file_of_another_kind_or_version_is_no_measurement(host, some, tmp_path) -> None:
    run(host, some, judge=None).save(tmp_path)
    file = tmp_path / "measurement.safetensors"
    header, tensors = read_tensors(file)
    for change in ({"kind": "checkpoint"}, {"version": 99}):
        write_tensors(file, tensors, header | change)
        with pytest.raises(VlmEditError, match="is not a measurement of format 1"):
            load_measurement(tmp_path)


def test_the_table_holds_the_figures_of_dominance(host, some) -> None:
    found = run(host, some, judge=None)
    dominance, table = found.dominance, found.table()
    low, high = dominance.intervals()
    matched, shuffled = dominance.cofiring()
    for name, values in {
        "mds_low": low,
        "mds_high": high,
        "swap_p": dominance.swap_test(),
        "cofiring_matched": matched,
        "cofiring_shuffled": shuffled,
        "cofiring_p": dominance.cofiring_test(),
        "modality_score": dominance.modality_score(),
        "modality_score_energy": dominance.modality_score(energy=True),
        "mutual_information": dominance.mutual_information(),
        "correlation": dominance.correlation(),
    }.items():
        assert str(table[name]) == str(values.tolist()), name
    assert table["paired"] == dominance.paired().tolist()


def test_a_part_without_an_image_that_can_be_read_is_a_part_all_the_same(
    host, some, tmp_path
) -> None:
    images = [Path(f"{i}.png") if i < 16 else image for i, image in enumerate(some.images)]
    broken = Pairs(images, some.texts, name="broken")
    files = [tmp_path / str(i) for i in range(7)]
    for i, file in enumerate(files):
        run_part(host, broken, (i, 7), file, judge=None)
    assert merge_parts(files, broken).n_pairs == 83
    reader = Reader(Host.of(*host), zoo.load_dictionary("joint"), batch_size=16, progress=False)
    cuts = PairsPlan.as_they_come(broken, 16).cuts(range(1))
    assert [batches for _, batches in reader.run(cuts)] == [[[]]]
    assert len(reader.skipped) == 16


def test_the_means_are_those_of_normed_activations(host, some) -> None:
    dictionary = zoo.load_dictionary("joint")
    batches = list(Reader(Host.of(*host), dictionary, batch_size=16, progress=False).read(some))
    found = run(host, some, judge=None)
    for stream in ("image", "text"):
        hidden = torch.cat([batch.hidden[stream] for batch in batches])
        normed = torch.cat([batch.normed[stream] for batch in batches])
        assert torch.equal(normed, dictionary.encoder.normalise(hidden)[0])
        torch.testing.assert_close(found.means[stream], normed.double().mean(0))


def test_texts_that_were_cut_are_counted_anew_in_every_reading(host) -> None:
    pairs = zoo.load_pairs().select(range(4))
    long = Pairs(pairs.images, (" ".join(["cat"] * 80), *pairs.texts[1:]), name="long")
    reader = Reader(Host.of(*host), zoo.load_dictionary("joint"), batch_size=2, progress=False)
    for _ in range(2):
        list(reader.read(long))
        assert reader.truncated == 1


# Provenance


def test_provenance_tells_pairs_and_dictionaries_apart(host, some) -> None:
    found = run(host, some).provenance
    assert found["pairs"]["count"] == 100 and found["pairs"]["name"] == "some"
    assert found["host"]["architecture"] == "CLIPModel"
    assert found["versions"]["torch"] == version("torch")
    again = run(host, some, batch_size=7).provenance
    assert again["pairs"] == found["pairs"] and again["dictionary"] == found["dictionary"]
    pixel = some.open(5)
    pixel.putpixel((0, 0), (1, 2, 3))
    images = [pixel if i == 5 else image for i, image in enumerate(some.images)]
    other = run(host, Pairs(images, some.texts, name="some")).provenance
    assert other["pairs"]["digest"] != found["pairs"]["digest"]
    dictionary = zoo.load_dictionary("joint")
    dictionary.decoder[3, 5] += 1e-3
    moved = measure(Host.of(*host), some, dictionary, progress=False).provenance
    assert moved["dictionary"]["digest"] != found["dictionary"]["digest"]


# The judge


def test_scores_of_interpretability_are_those_of_the_codes_at_once(host, some) -> None:
    from vlm_edit.measures.interpretability import (
        TopExamples,
        example_similarity,
        monosemanticity_score,
    )

    found = run(host, some)
    reader = Reader(Host.of(*host), zoo.load_dictionary("joint"), batch_size=16, progress=False)
    batches = list(reader.read(some))
    for stream in ("image", "text"):
        codes = torch.cat([batch.codes[stream].dense() for batch in batches])
        readable = [i for i in range(100) if i != 30]
        vectors = JUDGE.embed_pairs(stream, some, readable)
        torch.testing.assert_close(
            found.interpretability[f"ms_{stream}"],
            monosemanticity_score(codes, vectors),
            rtol=0,
            atol=1e-9,
            equal_nan=True,
        )
        top = TopExamples(codes.shape[1], 50)
        top.update(codes, range(99))
        expected = example_similarity(top, lambda n, v=vectors: v[list(n)], 99)
        for m in (10, 20, 30, 50):
            scores = found.interpretability[f"embsim_{stream}_{m}"]
            torch.testing.assert_close(scores, expected[m].lift, equal_nan=True)
            wins = found.interpretability[f"winrate_{stream}_{m}"]
            torch.testing.assert_close(wins, expected[m].win_rate, equal_nan=True)
    assert "mms_image_text" not in found.interpretability


def test_a_judge_with_one_space_compares_images_with_texts(host, some) -> None:
    from vlm_edit.measures.interpretability import multimodal_monosemanticity_score

    judge = Judge(
        image=lambda images: torch.stack([_pixels(image) for image in images])[:, :26],
        text=JUDGE.text,
        shared=True,
    )
    found = run(host, some, judge=judge)
    reader = Reader(Host.of(*host), zoo.load_dictionary("joint"), batch_size=16, progress=False)
    batches = list(reader.read(some))
    readable = [i for i in range(100) if i != 30]
    image, text = (torch.cat([b.codes[s].dense() for b in batches]) for s in ("image", "text"))
    vectors = [judge.embed_pairs(s, some, readable) for s in ("image", "text")]
    expected = multimodal_monosemanticity_score(image, vectors[0], text, vectors[1])
    torch.testing.assert_close(
        found.interpretability["mms_image_text"], expected, rtol=0, atol=1e-9, equal_nan=True
    )


def test_a_judge_of_texts_alone_judges_texts_alone(host, some) -> None:
    found = run(host, some, judge=Judge(text=JUDGE.text, name="letters"))
    assert "ms_text" in found.interpretability
    assert not [name for name in found.interpretability if "image" in name]


def test_a_judge_that_cannot_judge_is_refused(host, some) -> None:
    with pytest.raises(VlmEditError, match="needs an encoder"):
        Judge()
    with pytest.raises(VlmEditError, match="pass both"):
        Judge(text=JUDGE.text, shared=True)
    with pytest.raises(VlmEditError, match=r"gives \(1, 3\) for 16 of them"):
        run(host, some, judge=Judge(text=lambda texts: torch.ones(len(texts[:1]), 3)))


# Centring


def test_centring_moves_each_streams_mean_onto_that_of_both(host, some) -> None:
    neurons = Dictionary.identity(192, "constant_norm_rescale")
    raw = measure(Host.of(*host), some, neurons, progress=False)
    moved = centred(neurons, raw.means)
    again = measure(Host.of(*host), some, moved, progress=False)
    both = (raw.means["image"] + raw.means["text"]) / 2
    for stream in ("image", "text"):
        torch.testing.assert_close(again.means[stream], raw.means[stream])
        torch.testing.assert_close(
            raw.means[stream] - moved.encoder.centers[stream].double(), both, rtol=0, atol=1e-5
        )
    assert again.dominance.sd < raw.dominance.sd


def test_centring_a_dictionary_that_centres_already_changes_next_to_nothing(host) -> None:
    pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("joint")
    raw = measure(Host.of(*host), pairs, dictionary, progress=False)
    again = measure(Host.of(*host), pairs, centred(dictionary, raw.means), progress=False)
    assert float((again.dominance.scores - raw.dominance.scores).abs().median()) < 0.05


def test_centring_needs_both_means_of_the_right_width() -> None:
    neurons = Dictionary.identity(4)
    with pytest.raises(VlmEditError, match=r"mean of the text stream, \[4\], got none"):
        centred(neurons, {"image": torch.zeros(4)})
    with pytest.raises(VlmEditError, match=r"image stream, \[4\], got \(3,\)"):
        centred(neurons, {"image": torch.zeros(3), "text": torch.zeros(4)})
