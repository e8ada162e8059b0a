"""Several captions of an image: found by content, read together, counted as one image."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_measurement_runs import _Stop, expect_same, stop_after

from vlm_edit import Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.cli import main
from vlm_edit.measuring import (
    Reader,
    RepeatedPairs,
    Repeats,
    is_finished,
    load_measurement,
    measure_part,
    merge_parts,
)
from vlm_edit.measuring.order import Order, shown
from vlm_edit.report import class_table
from vlm_edit.report.overview import Overview

TEMPLATES = ("{}", "a picture of {}", "look: {}", "{}!", "this is {}")


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_host())


def go(host: Host, pairs: Pairs, **options: Any) -> Measurement:
    options = {"batch_size": 8, "progress": False} | options
    return measure(host, pairs, zoo.load_dictionary("joint"), **options)


def captioned(images: int, mixed: bool = False) -> Pairs:
    """Images of the zoo with five captions each, one below the other or not."""
    known = zoo.load_pairs()
    rows = [(i, form.format(known.texts[i])) for i in range(images) for form in TEMPLATES]
    if mixed:
        rows = [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator()).tolist()]
    return Pairs([known.images[i] for i, _ in rows], tuple(t for _, t in rows), name="captions")


def as_files(pairs: Pairs, folder: Path, each: bool) -> Pairs:
    """Write images to files: one for each image, or one for each pair."""
    paths = []
    for i, first in enumerate(shown(pairs).tolist()):
        path = folder / f"{i if each else first}.png"
        if not path.exists():
            pairs.open(first).save(path)
        paths.append(path)
    return Pairs(paths, pairs.texts, name="files")


# Which image a pair shows


def test_images_are_the_same_by_path_by_bytes_and_by_pixels(tmp_path: Path) -> None:
    pairs = captioned(6, mixed=True)
    expected = shown(pairs)
    assert len(np.unique(expected)) == 6 and bool((expected <= np.arange(30)).all())
    apart = Pairs([image.copy() for image in pairs.images], pairs.texts)
    for other in (
        apart,
        as_files(pairs, tmp_path, each=False),
        as_files(pairs, tmp_path, each=True),
    ):
        assert shown(other).tolist() == expected.tolist()


def test_files_of_one_size_and_one_end_that_differ_are_two_images(tmp_path: Path) -> None:
    paths = []
    for i, grey in enumerate((10, 20, 10)):
        image = Image.new("L", (64, 64), 200)
        image.putpixel((0, 63), grey)  # a bitmap begins with its last row
        image.save(tmp_path / f"{i}.bmp")
        paths.append(tmp_path / f"{i}.bmp")
    assert len({path.stat().st_size for path in paths}) == 1
    assert len({path.read_bytes()[-1024:] for path in paths}) == 1
    paths += [tmp_path / "gone.bmp", tmp_path / "gone too.bmp", tmp_path / "gone.bmp"]
    assert shown(Pairs(paths, ("a text",) * 6)).tolist() == [0, 1, 0, 3, 4, 3]


@pytest.mark.parametrize("size", [1, 4, 5, 7, 64])
def test_batches_hold_all_captions_of_their_images_and_every_pair_once(size: int) -> None:
    order = Order.of(captioned(9, mixed=True), size)
    assert sorted(n for batch in order.batches for n in batch) == list(range(45))
    of = [{int(order.images[n]) for n in batch} for batch in order.batches]
    assert sum(map(len, of)) == 9
    assert all(len(batch) <= max(size, 5) for batch in order.batches)


def test_pairs_without_repeats_are_read_in_their_own_order() -> None:
    order = Order.of(zoo.load_pairs().select(range(20)), 8)
    assert order.batches == [range(8), range(8, 16), range(16, 20)] and order.digest is None
    with pytest.raises(VlmEditError, match="batch size is 0"):
        Order.of(captioned(2), 0)


# What is measured


def test_five_captions_an_image_give_images_as_the_sample(host: Host) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedPairs)
        found = go(host, captioned(60), batch_size=64)
    dominance = found.dominance
    assert (found.n_pairs, dominance.images) == (300, 60)
    assert found.repeats["image"] == Repeats(60, 5, 4.0)
    assert dominance.sample().startswith("300 pairs show 60 images: intervals count images")
    assert found.summary()["sample"] == dominance.sample() and not found.doubts()
    # Measured one caption each, about as many features are called dominant or paired; by pairs
    # as the sample several times as many are.
    once = go(host, zoo.load_pairs().select(range(60)), batch_size=64).dominance
    counts = [count(d) for d in (once, dominance)]
    assert all(abs(a - b) <= 8 for a, b in zip(*counts, strict=True)), counts
    codes = codes_of(host, captioned(60))
    naive = count(type(dominance)(**by_pairs(codes)))
    assert naive[0] > 10 * (1 + counts[1][0])


def count(dominance: Any) -> tuple[int, int]:
    classes = dominance.classes("significant")
    return len(classes["vision"]) + len(classes["language"]), int(dominance.paired().sum())


def codes_of(host: Host, pairs: Pairs) -> Any:
    from vlm_edit.measures.dominance import DominanceAccumulator

    accumulator = DominanceAccumulator(512)
    for batch in Reader(host, zoo.load_dictionary("joint"), progress=False).read(pairs):
        accumulator.update(batch.codes["image"], batch.codes["text"])
    return accumulator.compute()


def by_pairs(dominance: Any) -> dict[str, Any]:
    names = ("n_pairs", "zeros", "counts", "ratios", "levels", "masses")
    return {name: getattr(dominance, name) for name in names}


def test_the_order_of_the_rows_and_the_size_of_batches_change_nothing(host: Host) -> None:
    pairs = captioned(12, mixed=True)
    whole = go(host, pairs, batch_size=64)
    for size in (3, 5, 16):  # 3: an image has more captions than a batch holds pairs
        found = go(host, pairs, batch_size=size)
        expect_alike(found, whole)


def expect_alike(one: Measurement, other: Measurement) -> None:
    a, b = one.dominance, other.dominance
    assert (a.images, a.captions, a.n_pairs) == (b.images, b.captions, b.n_pairs)
    torch.testing.assert_close(a.scores, b.scores, equal_nan=True, rtol=1e-4, atol=1e-5)
    for x, y in zip(a.intervals(), b.intervals(), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_that_died_goes_on_to_the_bit(host, stop, tmp_path, monkeypatch) -> None:
    pairs, file = as_files(captioned(9, mixed=True), tmp_path, each=True), tmp_path / "state"
    whole = go(host, pairs)
    with monkeypatch.context() as patch:
        stop_after(stop, patch)
        with pytest.raises(_Stop):
            go(host, pairs, checkpoint=file, every=0)
    assert not is_finished(file)
    again = go(host, pairs, checkpoint=file)
    assert is_finished(file)
    expect_same(again, whole)
    for x, y in zip(again.dominance.intervals(), whole.dominance.intervals(), strict=True):
        assert torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))


def test_parts_merge_to_what_one_process_measures(host: Host, tmp_path: Path) -> None:
    pairs = captioned(10, mixed=True)
    dictionary = zoo.load_dictionary("joint")
    files = [tmp_path / str(part) for part in range(3)]
    for part, file in enumerate(files):
        options = {"part": (part, 3), "checkpoint": file, "batch_size": 8, "progress": False}
        measure_part(host, pairs, dictionary, **options)
    merged, whole = merge_parts(files, pairs), go(host, pairs)
    expect_same(merged, whole, tolerance=1e-9)
    assert merged.dominance.images == 10 and merged.repeats == whole.repeats
    merged.save(tmp_path / "run")
    again = load_measurement(tmp_path / "run")
    assert again.dominance.classes() == whole.dominance.classes()
    assert again.dominance.images == 10 and again.repeats == merged.repeats
    assert torch.equal(
        again.dominance.swap_test().nan_to_num(), whole.dominance.swap_test().nan_to_num()
    )


def test_a_run_does_not_go_on_where_other_images_are_the_same_by_now(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, file = as_files(captioned(6), tmp_path, each=True), tmp_path / "state"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(_Stop):
            go(host, pairs, checkpoint=file, every=0)
    last = pairs.images[-1]
    assert isinstance(last, Path)
    size = last.stat().st_size
    data = bytearray(last.read_bytes())
    data[-30] ^= 1  # of the same size, and another file: nobody has read it yet
    last.write_bytes(data)
    assert last.stat().st_size == size
    with pytest.raises(VlmEditError, match=r"another pairs \(images"):
        go(host, pairs, checkpoint=file)


def test_an_image_that_cannot_be_read_leaves_out_all_its_captions(host, tmp_path) -> None:
    pairs = as_files(captioned(4), tmp_path, each=False)
    broken = pairs.images[5]
    assert isinstance(broken, Path)
    broken.write_bytes(b"no image")
    found = go(host, pairs, batch_size=3)
    assert [n for n, _ in found.skipped] == [5, 6, 7, 8, 9]
    assert (found.n_pairs, found.dominance.images) == (15, 3)


def test_files_that_differ_and_show_the_same_pixels_are_warned_of(host, tmp_path) -> None:
    pairs = captioned(8)
    paths = []
    for i in range(len(pairs)):  # compressed otherwise each
        pairs.open(i).save(tmp_path / f"{i}.png", compress_level=1 + i % 5)
        paths.append(tmp_path / f"{i}.png")
    files = Pairs(paths, pairs.texts, name="files")
    assert len(np.unique(shown(files))) > 30
    with pytest.warns(RepeatedPairs, match="image files show 8 images, pixel by pixel") as told:
        found = go(host, files)
    assert len([w for w in told if w.category is RepeatedPairs]) == 1
    assert found.doubts()[0] in found.summary()["warnings"]


@pytest.mark.parametrize("size", [3, 64])
def test_an_image_is_an_example_once_and_each_caption_one_of_its_own(host, size) -> None:
    pairs = captioned(20, mixed=True)
    first, found = shown(pairs), go(host, pairs, batch_size=size)
    repeated = 0
    for k in found.dominance.classes("fixed")["vision"]:
        images = [int(first[n]) for n, _ in found.examples["image"].of(k)]
        texts = [int(first[n]) for n, _ in found.examples["text"].of(k)]
        assert len(images) == len(set(images))
        repeated += len(texts) - len(set(texts))
    assert repeated > 0
    # An image that is the strongest of a feature in all its pairs still stands first.
    codes = {s: zoo.load_dictionary("joint").encode(x, s) for s, x in hidden(host, pairs).items()}
    for k in found.dominance.classes("fixed")["vision"][:20]:
        best = found.examples["image"].of(k)
        if best:
            assert int(first[int(codes["image"][:, k].argmax())]) == int(first[best[0][0]])


def hidden(host: Host, pairs: Pairs) -> dict[str, torch.Tensor]:
    from vlm_edit.measuring import collect

    return collect(host, pairs, progress=False)


def test_one_caption_of_each_image_is_no_reason_to_warn(host: Host) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedPairs)
        found = go(host, zoo.load_pairs().select(range(64)), batch_size=64)
    assert found.repeats["image"] == Repeats(64, 1, 0.0) and not found.doubts()
    assert found.dominance.sample() == "64 pairs, each with an image of its own."


def test_one_caption_of_many_images_is_said(host: Host) -> None:
    pairs = zoo.load_pairs().select(range(16))
    alike = Pairs(pairs.images, tuple(f"a {i % 2}" for i in range(16)), name="alike")
    with pytest.warns(RepeatedPairs, match="16 pairs have 2 texts, one of them 8 times.*one image"):
        found = go(host, alike)
    assert found.repeats["text"] == Repeats(2, 8, 7.0)


def test_runs_of_a_former_version_have_an_image_each(host: Host, tmp_path: Path) -> None:
    from vlm_edit.ground.files import CHECKSUM, read_tensors, write_tensors

    go(host, zoo.load_pairs().select(range(16))).save(tmp_path / "run")
    path = tmp_path / "run" / "measurement.safetensors"
    header, tensors = read_tensors(path, "measurement")
    for name in ("n_images", "drawn", "products", "idle", "captions"):
        header["dominance"].pop(name, None)
        assert name not in tensors
    header.pop(CHECKSUM, None)
    write_tensors(path, tensors, header, "measurement")
    shutil.rmtree(tmp_path / "old", ignore_errors=True)
    (tmp_path / "old").mkdir()
    shutil.copy(path, tmp_path / "old")
    assert load_measurement(tmp_path / "old").dominance.images == 16


def test_the_command_says_what_the_sample_is_in_the_run_and_on_the_page(tmp_path, capsys) -> None:
    pairs = as_files(captioned(4), tmp_path, each=False)
    rows = [f'{path.name},"{text}"' for path, text in zip(pairs.images, pairs.texts, strict=True)]
    (tmp_path / "pairs.csv").write_text("image,text\n" + "\n".join(rows))
    out = tmp_path / "run"
    measured = ["measure", "zoo:emoji-clip", str(tmp_path / "pairs.csv"), "--out", str(out)]
    assert main([*measured, "--dictionary", "zoo:joint"]) == 0
    told = capsys.readouterr()
    said = "20 pairs show 4 images: intervals count images, and tests take one caption of each."
    assert said in told.out and "independent" not in told.err
    found = load_measurement(out)
    assert said in class_table(found).note
    assert ("Images", "4", "what intervals and tests count") in Overview.of(found, pairs, 0).figures


def test_a_dataset_s_images_are_told_by_their_bytes_one_by_one() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    pairs = captioned(4, mixed=True)
    made = datasets.Dataset.from_dict({"image": list(pairs.images), "text": list(pairs.texts)})
    stored = Pairs.of(made.cast_column("image", datasets.Image()))
    assert not isinstance(stored.images, list)
    assert shown(stored).tolist() == shown(pairs).tolist()
