"""Pairs in shards: measured as the same pairs in a list, however they are cut, read or killed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_measurement_runs import _Stop, stop_after

from vlm_edit import Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.dictionaries import Dictionary
from vlm_edit.measuring import (
    Sample,
    Shards,
    measure_part,
    measure_together,
    merge_parts,
    shards_of,
)
from vlm_edit.report import write_page

N, PER_SHARD = 48, 16


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_host())


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return zoo.load_pairs().select(range(N))


@pytest.fixture(scope="module")
def whole(host: Host, pairs: Pairs) -> Measurement:
    return go(host, pairs)


def go(host: Host, pairs: Any, **options: Any) -> Measurement:
    options = {"batch_size": 8, "progress": False} | options
    return measure(host, pairs, zoo.load_dictionary("joint"), **options)


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def files_of(pairs: Pairs, numbers: range) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for i in numbers:
        files[f"{i:06d}.png"] = png(pairs.open(i))
        files[f"{i:06d}.txt"] = pairs.texts[i].encode()
    return files


def shards(pairs: Pairs) -> Iterator[range]:
    return (range(i, i + PER_SHARD) for i in range(0, len(pairs), PER_SHARD))


def as_tars(pairs: Pairs, folder: Path) -> str:
    for k, numbers in enumerate(shards(pairs)):
        tar(folder / f"{k:05d}.tar", files_of(pairs, numbers))
    return str(folder)


def as_zipped_tars(pairs: Pairs, folder: Path) -> str:
    for k, numbers in enumerate(shards(pairs)):
        tar(folder / f"{k:05d}.tar.gz", files_of(pairs, numbers), "w:gz")
    return str(folder)


def as_parquet(pairs: Pairs, folder: Path) -> str:
    import datasets

    for k, numbers in enumerate(shards(pairs)):
        rows = {
            "image": [pairs.open(i) for i in numbers],
            "caption": [pairs.texts[i] for i in numbers],
        }
        datasets.Dataset.from_dict(
            rows,
            features=datasets.Features(
                {"image": datasets.Image(), "caption": datasets.Value("string")}
            ),
        ).to_parquet(folder / f"{k}.parquet")
    return f"{folder}/*.parquet"


def as_lists(pairs: Pairs, folder: Path) -> str:
    for k, numbers in enumerate(shards(pairs)):
        lines = []
        for i in numbers:
            pairs.open(i).save(folder / f"{i}.png")
            lines.append(json.dumps({"image": f"{i}.png", "text": pairs.texts[i]}))
        (folder / f"{k}.jsonl").write_text("\n".join(lines))
    return f"{folder}/{{0..2}}.jsonl"


def as_stream(pairs: Pairs, folder: Path) -> Any:
    import datasets

    as_parquet(pairs, folder)
    return datasets.load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True
    )


def as_webdataset(pairs: Pairs, folder: Path) -> Any:
    import webdataset

    as_tars(pairs, folder)
    urls = sorted(map(str, folder.glob("*.tar")))
    return {url: webdataset.WebDataset(url, shardshuffle=False) for url in urls}


def as_functions(pairs: Pairs, _: Path) -> Any:
    def part(numbers: range) -> Callable[[], Iterator[Any]]:
        return lambda: ((pairs.open(i), pairs.texts[i]) for i in numbers)

    return shards_of({str(k): part(numbers) for k, numbers in enumerate(shards(pairs))})


class Own:
    """Shards of one's own, as the protocol asks."""

    name = "my shards"

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def shards(self) -> list[str]:
        return ["0", "16", "32"]

    def read(self, shard: str) -> Iterator[Sample]:
        for i in range(int(shard), int(shard) + PER_SHARD):
            yield Sample(str(i), self.pairs.images[i], (self.pairs.texts[i],))


KINDS: dict[str, Callable[[Pairs, Path], Any]] = {
    "tar": as_tars,
    "tar.gz": as_zipped_tars,
    "parquet": as_parquet,
    "JSON lines": as_lists,
    "datasets": as_stream,
    "webdataset": lambda pairs, folder: shards_of(as_webdataset(pairs, folder)),
    "functions": as_functions,
    "one's own": lambda pairs, _: Own(pairs),
}


def expect_alike(found: Measurement, whole: Measurement) -> None:
    """Counts, ratios and examples to the bit, sums to 1e-12."""
    a, b = found.dominance, whole.dominance
    for name in ("scores", "active", "image_active", "text_active"):
        assert torch.equal(getattr(a, name).nan_to_num(-1), getattr(b, name).nan_to_num(-1)), name
    for stream in ("image", "text"):
        assert torch.equal(found.examples[stream].values, whole.examples[stream].values)
        torch.testing.assert_close(found.means[stream], whole.means[stream], rtol=1e-12, atol=1e-12)
    assert found.n_pairs == whole.n_pairs


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_in_shards_are_measured_as_those_in_a_list(
    kind: str, host: Host, pairs: Pairs, whole: Measurement, tmp_path: Path
) -> None:
    source = KINDS[kind](pairs, tmp_path)
    found = go(host, source)
    expect_alike(found, whole)
    assert found.provenance["pairs"]["count"] == N
    assert found.provenance["pairs"]["shards"] == 3


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["tar", "datasets", "list"])
def test_bits_do_not_depend_on_the_number_of_workers(
    kind: str, workers: int, host: Host, pairs: Pairs, tmp_path: Path
) -> None:
    source = pairs if kind == "list" else KINDS[kind](pairs, tmp_path)
    state = torch.random.get_rng_state()
    found = go(host, source, workers=workers)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.checksum() == go(host, source, workers=0).checksum()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_shards_and_give_what_one_process_gives(
    ranks: int, host: Host, pairs: Pairs, whole: Measurement, tmp_path: Path
) -> None:
    source = as_tars(pairs, tmp_path)
    files = [tmp_path / f"{i}.state" for i in range(ranks)]
    for i, file in enumerate(files):
        measure_part(
            *(host, source, zoo.load_dictionary("joint")),
            part=(i, ranks), checkpoint=file, batch_size=8, progress=False,
        )  # fmt: skip
    expect_alike(merge_parts(files[::-1], source), whole)


@pytest.mark.parametrize("batches", [1, 3, 5])
@pytest.mark.parametrize("kind", ["tar", "parquet", "functions"])
def test_a_run_over_shards_that_died_goes_on_to_the_bit(
    kind: str,
    batches: int,
    host: Host,
    pairs: Pairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, file = KINDS[kind](pairs, tmp_path), tmp_path / "state"
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        with pytest.raises(_Stop):
            go(host, source, checkpoint=file, every=0)
    assert go(host, source, checkpoint=file).checksum() == go(host, source).checksum()


def stopped(host: Host, source: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die in the second batch of the second shard."""
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(_Stop):
            go(host, source, checkpoint=file, every=0)


CHANGES: dict[str, tuple[int, Callable[[dict[str, bytes]], None], str]] = {
    "a text of the shard that is half read": (
        1,
        lambda files: files.update(
            {"000016.txt": b"a quite other text"[: len(files["000016.txt"])]}
        ),
        "holds other pairs than when",
    ),
    "an image of a shard that was read": (
        0,
        lambda files: files.update({"000003.png": png(Image.new("RGB", (64, 64), "red"))}),
        "holds other pairs than when|another listing|another pairs",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changed_is_named_when_a_run_goes_on(
    change: str, host: Host, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, file = as_tars(pairs, tmp_path), tmp_path / "state"
    stopped(host, source, file, monkeypatch)
    shard, edit, says = CHANGES[change]
    files = files_of(pairs, range(shard * PER_SHARD, (shard + 1) * PER_SHARD))
    edit(files)
    tar(tmp_path / f"{shard:05d}.tar", files)
    with pytest.raises(VlmEditError, match=says):
        go(host, source, checkpoint=file)


def test_shards_that_were_copied_are_read_again_and_go_on(
    host: Host, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, file = as_tars(pairs, tmp_path), tmp_path / "state"
    stopped(host, source, file, monkeypatch)
    for path in sorted(tmp_path.glob("*.tar")):
        path.write_bytes(path.read_bytes())
    assert go(host, source, checkpoint=file, verify="all").n_pairs == N


def test_an_image_changed_behind_its_stamp_is_found_by_looking_at_all(
    host: Host, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, file = list(pairs.images), tmp_path / "state"

    def source() -> Any:
        return shards_of({"all": lambda: zip(images, pairs.texts, strict=True)})

    stopped(host, source(), file, monkeypatch)
    images[2] = Image.new("RGB", (64, 64), "red")
    with pytest.raises(VlmEditError, match="holds other pairs than when"):
        go(host, source(), checkpoint=file, verify="all")


def test_what_is_broken_in_a_shard_is_counted_and_listed_and_never_fatal(
    host: Host, pairs: Pairs, tmp_path: Path
) -> None:
    files = files_of(pairs, range(12))
    files["000002.png"] = b"no image"
    files["000004.txt"] = b"  "
    del files["000006.png"]
    files["000008.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    path = tar(tmp_path / "a.tar", files)
    (tmp_path / "b.tar").write_bytes(path.read_bytes()[:30_000])
    (tmp_path / "c.tar").write_bytes(b"no tar file at all")
    found = go(host, str(tmp_path))
    by_shard = [
        [why for number, why in found.skipped if number >> 32 == shard] for shard in range(3)
    ]
    assert len(by_shard[0]) == 4
    assert any("000004: it has no text" in why for why in by_shard[0])
    assert any("000006: no image among .txt" in why for why in by_shard[0])
    assert by_shard[1] and "c.tar" in by_shard[2][0]
    assert found.n_pairs == 8 + sum(
        1 for n in set(range(12)) - {2, 4, 6, 8} if _fits(files, n, 30_000)
    )


def _fits(files: dict[str, bytes], n: int, length: int) -> bool:
    """Whether both files of a sample lie within the beginning of an archive."""
    end = 0
    for name, data in files.items():
        end += 512 + -(-len(data) // 512) * 512
        if name == f"{n:06d}.txt":
            return end <= length
    raise AssertionError(n)


def test_captions_side_by_side_are_of_one_image(host: Host, pairs: Pairs, tmp_path: Path) -> None:
    forms = ("{}", "a picture of {}", "look: {}")
    rows = [(i, form.format(pairs.texts[i])) for i in range(12) for form in forms]
    listed = Pairs([pairs.images[i] for i, _ in rows], tuple(text for _, text in rows))
    files: dict[str, bytes] = {}
    for i in range(12):
        files[f"{i:03d}.png"] = png(pairs.open(i))
        files[f"{i:03d}.json"] = json.dumps(
            {"caption": [form.format(pairs.texts[i]) for form in forms]}
        ).encode()
    found, whole = go(host, str(tar(tmp_path / "a.tar", files))), go(host, listed)
    assert found.dominance.n_images == whole.dominance.n_images == 12
    expect_alike(found, whole)
    for a, b in zip(found.dominance.intervals(), whole.dominance.intervals(), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_a_page_of_a_run_over_shards_shows_texts_and_pictures(
    host: Host, pairs: Pairs, tmp_path: Path
) -> None:
    from vlm_edit.measuring import found_in

    source = as_parquet(pairs, tmp_path)
    run = go(host, source)
    write_page(tmp_path / "page.html", run, found_in(source, run), "Shards")
    page = (tmp_path / "page.html").read_text()
    number = int(run.examples["text"].numbers[run.examples["text"].numbers >= 0][0])
    assert pairs.texts[(number >> 32) * PER_SHARD + (number & 0xFFFFFFFF)] in page
    assert "UklGR" in page  # how a sheet of pictures begins


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere/{0..3}.tar", "no shard at 'nowhere/0.tar'"),
        (iter([]), "used up by being read once: give the function that makes it"),
        (3, "a int is no shard"),
        ([], "a list is no|no shards|nothing to measure"),
    ],
)
def test_what_is_no_shard_is_refused_by_name(source: Any, says: str, host: Host) -> None:
    with pytest.raises(VlmEditError, match=says):
        go(host, shards_of(source) if source != [] else shards_of({}))


def test_shards_of_ones_own_are_known_by_their_members(pairs: Pairs) -> None:
    assert isinstance(Own(pairs), Shards) and not isinstance(pairs, Shards)


LAZY = r"""
import re
from pathlib import Path
from PIL import Image
from vlm_edit.measuring.shards import shards_of
from vlm_edit.measuring.plan import plan_of

opened = 0
square = Image.new("RGB", (32, 32))

def some(count):
    def make():
        global opened
        for i in range(count):
            opened += 1
            yield square.copy(), f"number {i}"
    return make

plan = plan_of(shards_of({str(k): some(100_000) for k in range(10)}), 64)
plan.facts()
assert not opened
def peak():  # getrusage tells that of the process it was forked from, too
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
cuts = plan.cuts(range(plan.total))
next(cuts)
assert opened <= 66  # one more tells where the captions of the last image end
print(64 + sum(len(cut) for cut in cuts))
print(peak() - before)
"""


def test_a_million_pairs_that_are_made_when_asked_for_add_little_memory() -> None:
    out = subprocess.run(
        [sys.executable, "-c", LAZY], capture_output=True, text=True, check=True, timeout=300
    ).stdout.split()
    assert int(out[1]) < 20_000  # KiB; a list of as many takes several hundred thousand


def test_several_sites_and_dictionaries_in_one_pass_are_as_one_by_one(pairs: Pairs) -> None:

    speaker = Host.load("zoo:emoji-llava", device="cpu")
    width = speaker.site("language.1").width
    readings = [
        ("language.1", Dictionary.identity(width)),
        ("language.0", Dictionary.identity(width)),
        ("language.1", Dictionary.identity(width, "constant_norm_rescale")),
    ]
    some, options = pairs.select(range(24)), {"batch_size": 8, "progress": False}
    together = measure_together(speaker, some, readings, **options)
    for (site, dictionary), found in zip(readings, together, strict=True):
        assert found.checksum() == measure(speaker, some, dictionary, site, **options).checksum()


def test_a_state_of_several_goes_on_to_the_bit_and_not_with_others(
    host: Host, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Dictionary.identity(192, "constant_norm_rescale")
    readings = [("joint", zoo.load_dictionary("joint")), ("joint", other)]
    options: dict[str, Any] = {"batch_size": 8, "progress": False, "every": 0}
    file = tmp_path / "state"
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(_Stop):
            measure_together(host, pairs, readings, checkpoint=file, **options)
    for others, says in (
        (readings[:1], "is of 2 sites or dictionaries, not 1"),
        (readings[::-1], "another dictionary"),
    ):
        with pytest.raises(VlmEditError, match=says):
            measure_together(host, pairs, others, checkpoint=file, **options)
    again = measure_together(host, pairs, readings, checkpoint=file, **options)
    whole = measure_together(host, pairs, readings, **options)
    assert [run.checksum() for run in again] == [run.checksum() for run in whole]


def test_a_prompt_that_cannot_be_sent_to_workers_is_refused_where_they_are_not_forked(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_edit.measuring import ahead

    model, processor = zoo.load_host()
    made = Host.of(
        model,
        processor,
        prompt=lambda p, images, texts: p(
            images=list(images), text=list(texts), return_tensors="pt", padding=True
        ),
    )
    some = pairs.select(range(8))
    assert go(made, some, workers=1).checksum() == go(made, some).checksum()
    monkeypatch.setattr(ahead, "get_start_method", lambda: "spawn")
    with pytest.raises(VlmEditError, match="cannot be sent to worker processes .* workers=0"):
        go(made, some, workers=1)
