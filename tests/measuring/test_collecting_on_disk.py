"""Collecting onto the disk: the same rows as in memory, killed or not, and nothing mixed up."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlm_edit import Host, Pairs, VlmEditError, zoo
from vlm_edit.dictionaries import StoredActivations, load_activations
from vlm_edit.ground.errors import BadArgument, DamagedFile, WrongHost
from vlm_edit.measuring import collect, shown

OPTIONS: dict[str, Any] = {"batch_size": 5, "part_size": 14_000, "progress": False}
# A process that is killed as it begins to write its n-th file, or within the write.
KILLED = """
import os, sys
sys.path[:0] = {path!r}
from vlm_edit.ground.files import whole
from test_collecting_on_disk import OPTIONS, some
from vlm_edit import Host, zoo
from vlm_edit.measuring import collect
import torch
torch.set_num_threads(1)
left, fill, replace = [{after}], whole._fill, whole.Path.replace
def killed(partial, pieces, target=None):
    left[0] -= 1
    if left[0] < 0 and {within}:
        partial.write_bytes(b"half of it")
        os.kill(os.getpid(), 9)
    fill(partial, pieces, target)
    if left[0] < 0:
        os.kill(os.getpid(), 9)
whole._fill = killed
collect(Host.of(*zoo.load_host()), some({folder!r}), {site!r}, most={most}, out={out!r}, **OPTIONS)
os._exit(0)
"""


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.of(*zoo.load_host())


def some(folder: str | Path) -> Pairs:
    """32 pairs as files, of which two have no image that can be read."""
    folder, pairs = Path(folder), zoo.load_pairs().select(range(32))
    for i in range(len(pairs)):
        path = folder / f"{i}.png"
        if not path.exists() and i not in (3, 17):
            pairs.open(i).save(path)
    return Pairs([folder / f"{i}.png" for i in range(32)], pairs.texts, name="some")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("site", "most"), [("joint", None), ("vision.1", None), ("vision.1", 3), ("text.1", 2)]
)
def test_what_is_stored_is_what_is_collected_in_memory(
    host: Host, tmp_path: Path, site: str, most: int | None, dtype: Any
) -> None:
    out, left_out = tmp_path / "out", [list[tuple[int, str]]() for _ in range(2)]
    given: Any = (host, some(tmp_path), site)
    store = collect(*given, most=most, out=out, dtype=dtype, left_out=left_out[0], **OPTIONS)
    assert isinstance(store, StoredActivations)
    options = {"most": most, "batch_size": 5, "progress": False, "left_out": left_out[1]}
    memory = collect(*given, **options)
    again = collect(*given, **{**options, "dtype": dtype})
    assert left_out[0] == left_out[1][:2] and [i for i, _ in left_out[0]] == [3, 17]
    assert set(store) == set(memory) and len(list(out.glob("*-0*"))) > 1
    for name, x in memory.items():
        assert torch.equal(store[name][:], x.to(getattr(torch, dtype)))
        assert torch.equal(store[name][:], again[name])
        assert torch.equal(load_activations(out)[name][:], store[name][:])
    index = store.index
    assert (index.site, index.width, index.dtype) == (site, host.site(site).width, dtype)
    assert index.left_out == tuple(left_out[0]) and index.truncated == 0
    assert index.origin["pairs"]["count"] == 32 and index.origin["settings"]["most"] == most
    assert index.origin["model_name"] == "emoji-clip" and index.asked


def test_rows_know_their_pair(host: Host, tmp_path: Path) -> None:
    pairs = some(tmp_path)
    store = collect(host, pairs, "vision.1", out=tmp_path / "out", left_out=[], **OPTIONS)
    whose = store.pairs("image")
    assert set(whose.tolist()) == set(range(32)) - {3, 17}
    for number in (0, 4, 31):  # alone, as a batch of its own
        alone = collect(host, pairs.select([number]), "vision.1", progress=False)["image"]
        torch.testing.assert_close(store["image"][:][whose == number], alone)
    text = collect(host, pairs, "text.1", out=tmp_path / "text", left_out=[], **OPTIONS)
    whose = text.pairs("text")
    for number in (0, 4, 31):
        alone = collect(host, pairs.select([number]), "text.1", progress=False)["text"]
        torch.testing.assert_close(text["text"][:][whose == number], alone, atol=1e-4, rtol=1e-4)
    language = Host.of(*zoo.load_llava())
    both = collect(language, pairs, "language.1", out=tmp_path / "both", left_out=[], **OPTIONS)
    for stream in ("image", "text"):
        whose = both.pairs(stream)
        alone = collect(language, pairs.select([4]), "language.1", progress=False)[stream]
        found = both[stream][:][whose == 4]
        torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("site", "most", "after", "within"),
    [
        ("joint", None, 0, False),  # the pairs' images, and nothing else
        ("joint", None, 1, True),
        ("joint", None, 2, True),
        ("joint", None, 4, False),
        ("vision.1", 3, 3, True),
    ],
)
def test_a_killed_process_is_gone_on_with_to_the_same_files(
    host: Host, tmp_path: Path, site: str, most: int | None, after: int, within: bool
) -> None:
    out, expected = tmp_path / "out", tmp_path / "expected"
    given: Any = (host, some(tmp_path), site)
    collect(*given, most=most, out=expected, left_out=[], **OPTIONS)
    path = [str(Path(__file__).parent), *sys.path]
    code = KILLED.format(
        **{"path": path, "folder": str(tmp_path), "site": site, "most": most, "out": str(out)},
        **{"after": after, "within": within},
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -9, done.stderr
    if (out / "collecting.json").exists():
        with pytest.raises(BadArgument, match="not all there yet"):
            load_activations(out)
    before = {name: (out / name).stat().st_mtime_ns for name in files(out) if "-0" in name}
    left_out: list[tuple[int, str]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    collect(*given, most=most, out=out, left_out=left_out, **OPTIONS)
    torch.set_num_threads(threads)
    assert files(out) == files(expected) and [i for i, _ in left_out] == [3, 17]
    whole = [name for name in sorted(before) if not name.startswith(".")][: max(after - 1, 0) // 2]
    assert all((out / name).stat().st_mtime_ns == before[name] for name in whole)


def test_a_finished_one_returns_at_once(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Any = (host, some(tmp_path), "joint")
    options = {"out": tmp_path / "out", "left_out": [], **OPTIONS}
    collect(*given, **options)
    before = files(tmp_path / "out")
    monkeypatch.setattr(Host, "run", lambda *_: pytest.fail("the host was run"))
    for more in ({}, {"overwrite": True}, {"part_size": 1 << 20}):
        store = collect(*given, **{**options, **more})
        assert store["image"].shape == (30, 192) and files(tmp_path / "out") == before


class Stopped(Exception):
    pass


def begin(host: Host, pairs: Pairs, out: Path, site: str = "joint", **options: Any) -> None:
    """Collect until the fourth batch, and break off."""
    run, left = Host.run, [4]

    def stopped(self: Host, inputs: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise Stopped
        return run(self, inputs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Host, "run", stopped)
        collect(host, pairs, site, out=out, left_out=[], **{**OPTIONS, **options})


def other_weight(host: Host, pairs: Pairs) -> tuple[Host, Pairs]:
    with torch.no_grad():
        host.root.get_parameter("text_model.final_layer_norm.weight")[5] += 1e-6
    return host, pairs


def other_processor(host: Host, pairs: Pairs) -> tuple[Host, Pairs]:
    host.processor.image_processor.image_mean = [0.4, 0.4, 0.4]
    return host, pairs


def other_text(host: Host, pairs: Pairs) -> tuple[Host, Pairs]:
    return host, Pairs(pairs.images, ("another", *pairs.texts[1:]), name="some")


def fewer(host: Host, pairs: Pairs) -> tuple[Host, Pairs]:
    return host, pairs.select(range(31))


def other_image(host: Host, pairs: Pairs) -> tuple[Host, Pairs]:
    path = pairs.images[1]
    assert isinstance(path, Path)
    size = path.stat().st_size
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # as long as it was
    return host, pairs


CHANGES: dict[str, tuple[Callable[[Host, Pairs], tuple[Host, Pairs]], dict[str, Any], str]] = {
    "weight": (other_weight, {}, "other weights of the host .text_model.final_layer_norm.weight"),
    "processor": (other_processor, {}, "another processor .image_processor.image_mean"),
    "text": (other_text, {}, "another pairs .listing"),
    "fewer": (fewer, {}, "another pairs .count: 32, here 31"),
    "image": (other_image, {}, r"pair 1 .*1.png. has another image than when"),
    "seed": (lambda host, pairs: (host, pairs), {"seed": 1}, "another settings .seed: 0, here 1"),
    "most": (lambda host, pairs: (host, pairs), {"most": 2}, "settings .most: None, here 2"),
    "dtype": (
        lambda host, pairs: (host, pairs), {"dtype": "bfloat16"},
        "settings .dtype: float32, here bfloat16",
    ),
    "batch": (
        lambda host, pairs: (host, pairs), {"batch_size": 6}, "settings .batch_size: 5, here 6",
    ),
    "site": (
        lambda host, pairs: (host, pairs), {"site": "vision.1"}, "site: joint, here vision.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_named_and_nothing_goes_on(
    tmp_path: Path, change: str, finished: bool
) -> None:
    host, pairs, out = Host.of(*zoo.load_host()), some(tmp_path), tmp_path / "out"
    if finished:
        collect(host, pairs, out=out, left_out=[], **OPTIONS)
    else:
        begin(host, pairs, out)
    before = files(out)
    alter, options, told = CHANGES[change]
    host, pairs = alter(host, pairs)
    options = {"left_out": [], **OPTIONS, **options}
    with pytest.raises(WrongHost, match=told) as caught:
        collect(host, pairs, out=out, **options)
    assert "collect into another folder" in str(caught.value) and str(out) in str(caught.value)
    assert files(out) == before
    collect(host, pairs, out=out, overwrite=True, **options)
    fresh = collect(host, pairs, out=tmp_path / "fresh", **options)
    assert {name.split("-")[0] for name in files(out)} == {fresh.index.name, "activations.json"}
    assert files(out) == files(tmp_path / "fresh")


def test_another_prompt_is_named(tmp_path: Path) -> None:
    pairs, out = some(tmp_path), tmp_path / "out"
    collect(Host.of(*zoo.load_llava()), pairs, "language.1", out=out, left_out=[], **OPTIONS)
    asked = Host.of(*zoo.load_llava(), prompt="{image}\n{text}?")
    with pytest.raises(WrongHost, match="another settings .prompt: "):
        collect(asked, pairs, "language.1", out=out, left_out=[], **OPTIONS)


def test_the_former_activations_stay_until_the_new_ones_are_whole(
    host: Host, tmp_path: Path
) -> None:
    pairs, out = some(tmp_path), tmp_path / "out"
    former = collect(host, pairs, out=out, left_out=[], **OPTIONS)
    rows = former["image"][:]
    begin(host, pairs, out, "vision.1", overwrite=True)
    assert torch.equal(load_activations(out)["image"][:], rows)
    with pytest.raises(WrongHost):  # not unasked, though it was begun
        collect(host, pairs, "vision.1", out=out, left_out=[], **OPTIONS)
    begun = {name for name in files(out) if "-0" in name and former.index.name not in name}
    times = {name: (out / name).stat().st_mtime_ns for name in begun}
    collect(host, pairs, "vision.1", out=out, left_out=[], overwrite=True, **OPTIONS)
    assert begun and all((out / name).stat().st_mtime_ns == times[name] for name in begun)
    assert load_activations(out).index.site == "vision.1"
    assert not [name for name in files(out) if former.index.name in name]


def test_what_a_killed_replacement_left_goes_with_the_next_call(host: Host, tmp_path: Path) -> None:
    pairs, out = some(tmp_path), tmp_path / "out"
    former = collect(host, pairs, out=out, left_out=[], **OPTIONS)
    shutil.copytree(out, tmp_path / "copy")
    collect(host, pairs, "vision.1", out=out, left_out=[], overwrite=True, **OPTIONS)
    for file in (tmp_path / "copy").glob(f"{former.index.name}*"):
        shutil.copy(file, out)
    (out / "notes-mine.safetensors").write_bytes(b"mine")
    shutil.copy(out / "activations.json", out / "collecting.json")
    collect(host, pairs, "vision.1", out=out, left_out=[], **OPTIONS)
    assert not [name for name in files(out) if former.index.name in name]
    assert "collecting.json" not in files(out) and "notes-mine.safetensors" in files(out)


def test_damaged_activations_are_collected_anew_where_that_is_asked_for(
    host: Host, tmp_path: Path
) -> None:
    pairs, out = some(tmp_path), tmp_path / "out"
    collect(host, pairs, out=out, left_out=[], **OPTIONS)
    whole, file = files(out), sorted(out.glob("*-0*"))[1]
    for damage in (
        lambda: file.unlink(),
        lambda: file.write_bytes(whole[file.name][:-1] + b"?"),
        lambda: (out / "activations.json").write_text("{"),
    ):
        damage()
        if not (out / file.name).exists() or (out / "activations.json").stat().st_size == 1:
            with pytest.raises(DamagedFile, match="overwrite"):
                collect(host, pairs, out=out, left_out=[], **OPTIONS)
        collect(host, pairs, out=out, left_out=[], overwrite=True, **OPTIONS)
        assert files(out) == whole


def test_nothing_that_can_be_read_is_no_store(host: Host, tmp_path: Path) -> None:
    pairs = Pairs([tmp_path / "a.png", tmp_path / "b.png"], ("a", "b"))
    for batch_size in (1, 2):
        with pytest.raises(DamagedFile, match="not one of 2 images can be read"):
            collect(host, pairs, out=tmp_path / "out", batch_size=batch_size, progress=False)
    with pytest.raises(BadArgument, match="no pairs at|no pairs, there is nothing"):
        collect(host, pairs.select([]), out=tmp_path / "none", progress=False)
    with pytest.raises(BadArgument, match="dtype is 'float16'; keep"):
        collect(host, pairs, dtype="float16", progress=False)  # type: ignore[call-overload]
    host.root.train()
    try:
        with pytest.raises(VlmEditError, match="eval"):
            collect(host, zoo.load_pairs(), out=tmp_path / "train", progress=False)
    finally:
        host.root.eval()
    assert not files(tmp_path / "train") and not files(tmp_path / "none")


def test_texts_alone_are_held_out_by_what_they_say(host: Host, tmp_path: Path) -> None:
    texts = ["a cat", "a dog", "a cat", "a tree", "a car", "a dog", "a house", "a cat"]
    store = collect(host, texts, out=tmp_path / "out", **OPTIONS)
    assert list(store) == ["text"]
    split = store.split(0.5)
    assert split.pairs == 2 and len(split.training["text"]) == 6
    assert torch.equal(split.held_out["text"][:], store["text"][:][[4, 6]])


def test_captions_of_one_image_stay_on_one_side(host: Host, tmp_path: Path) -> None:
    pairs = some(tmp_path)
    numbers = [0, 1, 2, 4, 5, 6, 7, 4, 5, 0]
    pairs = pairs.select(numbers)
    store = collect(host, pairs, out=tmp_path / "out", **OPTIONS)
    split, images = store.split(0.5), shown(pairs)
    assert split.pairs == 2 and [images[i] for i in (5, 6)] == [5, 6]
    assert torch.equal(split.held_out["image"][:], store["image"][:][5:7])


MEMORY = """
import resource, sys
import torch
from vlm_edit import Host, Pairs, zoo
from vlm_edit.measuring import collect
torch.set_num_threads(1)
host, few = Host.of(*zoo.load_host()), zoo.load_pairs()
many = int(sys.argv[1])
pairs = Pairs([few.open(i) for i in range(64)] * (many // 64), few.texts[:64] * (many // 64))
# What the host takes, and a part.
collect(host, pairs.select(range(64)), "vision.1", progress=False, out=sys.argv[2] + "-first")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = collect(host, pairs, "vision.1", progress=False, out=sys.argv[2], part_size=1 << 20)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(store["image"].numel() * 4, (after - before) * 1024)
"""
HELD = """
import resource
import torch
from vlm_edit.measuring.collecting import _Held
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held, one = _Held(1024, torch.float32), torch.ones(250, 1024)
for i in range(400):
    held.add(one * i)
x = held.joined()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert x.shape == (100_000, 1024) and torch.equal(x[::250, 0], torch.arange(400.0))
print(x.nbytes, (after - before) * 1024)
"""


def peak(script: str, *words: object) -> tuple[int, int]:
    """Bytes of all activations, and bytes that collecting them took at most."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    size, most = map(int, done.stdout.split())
    print(f"{words}: {size / 2**20:.1f} MiB of activations, {most / 2**20:.1f} MiB more at most")
    return size, most


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pairs(tmp_path: Path) -> None:
    for count in (128, 640):
        size, most = peak(MEMORY, count, tmp_path / str(count))
        assert most < 6 << 20
    assert size > 16 << 20


def test_in_memory_rows_are_held_once_and_not_again_as_they_are_joined() -> None:
    size, most = peak(HELD)
    assert size > 390 << 20 and most < 1.25 * size
