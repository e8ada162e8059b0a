"""Image files that nobody vouches for: each is one left-out item, at once, and in little memory."""

import ast
import contextlib
import csv
import os
import signal
import socket
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from vlm_edit import Host, Pairs, VlmEditError, measure, read_pairs, zoo
from vlm_edit.cli import kept, main
from vlm_edit.cli.pipeline import read
from vlm_edit.measuring import IMAGE_FORMATS, collect, open_image, pairs_listing

ROOT = Path(__file__).resolve().parents[2]
MOST = Image.MAX_IMAGE_PIXELS
LONG = "x" * 300 + ".png"

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@contextlib.contextmanager
def within(seconds: int):
    """Fail rather than wait for somebody who never comes."""

    def late(*_):
        raise TimeoutError(f"no answer in {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def tiny_gif(width: int, height: int) -> bytes:
    """A screen of any size in 35 bytes, one transparent pixel of it drawn."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0;"


def odd(folder: Path) -> dict[str, Path]:
    """What may lie behind a name, other than an image."""
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "gone.png").symlink_to(folder / "nowhere" / "a.png")
    (folder / "bomb.png").write_bytes(tiny_gif(13_000, 13_000))
    (folder / "vast.png").write_bytes(tiny_gif(60_000, 60_000))
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        where = os.getcwd()
        os.chdir(folder)  # the name of a socket must be short
        bound.bind("socket.png")
        os.chdir(where)
    names = ("pipe", "folder", "loop", "device", "gone", "bomb", "vast", "script", "socket")
    found = {name: folder / f"{name}.png" for name in names}
    return found | {"long": folder / LONG, "zero": folder / "a\0b.png"}


def mixed(folder: Path, good: int = 6) -> tuple[Path, int]:
    """A CSV of images that can be read and of all that cannot, and how many those are."""
    pairs, rows = zoo.load_pairs(), [("image", "text", "label")]
    for i in range(good):
        pairs.open(i).save(folder / f"good{i}.png")
        rows.append((f"good{i}.png", pairs.texts[i], "one" if i % 2 else "two"))
    strange = {name: path for name, path in odd(folder).items() if name != "zero"}
    rows[3:3] = [(path.name, "an odd one", "one") for path in strange.values()]
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return folder / "pairs.csv", len(strange)


# One image


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, "not a regular file") for name in ("pipe", "folder", "device", "socket")),
        ("loop", "symbolic links"),
        ("gone", "No such file"),
        ("bomb", "169,000,000 pixels"),
        ("vast", "decompression bomb"),
        ("script", "cannot identify"),
        ("long", "too long"),
        ("zero", "null"),
    ],
)
def test_whatever_lies_behind_a_name_is_one_error_at_once(tmp_path, name, reason):
    path = odd(tmp_path)[name]
    with within(5), pytest.raises(VlmEditError, match=reason) as raised:
        Pairs([path], ("one",)).open(0)
    assert str(raised.value).startswith(f"{path}: ")


def test_an_image_that_postscript_would_draw_reaches_no_ghostscript(tmp_path, monkeypatch):
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(VlmEditError, match="cannot identify"):
        Pairs([odd(tmp_path)["script"]], ("one",)).open(0)
    assert not called.exists()


def test_an_image_in_a_folder_that_may_not_be_entered_is_one_error(tmp_path):
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom vlm_edit import Pairs, read_pairs\n"
        "from vlm_edit.measuring import pairs_listing\n"
        "assert not read_pairs(sys.argv[1]).readable()[1]\n"  # and imports all there is
        "os.setuid(65534)\n"
        "pairs = read_pairs(sys.argv[1])\n"
        "print(len(pairs), len(pairs_listing(pairs)), pairs.readable()[1][0][1])\n"
    )
    if os.getuid() != 0:
        pytest.skip("only root may become somebody who is refused")
    shut = tmp_path / "shut"
    shut.mkdir()
    Image.new("RGB", (4, 4)).save(shut / "a.png")
    shut.chmod(0)
    (tmp_path / "list.csv").write_text("image,text\nshut/a.png,one\n", "utf-8")
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, "list.csv"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    shut.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 32 ") and "Permission denied" in done.stdout


@pytest.mark.parametrize(("over", "fits"), [(0, True), (1, False)])
def test_the_limit_is_pillows_own(tmp_path, monkeypatch, over, fits):
    (tmp_path / "a.gif").write_bytes(tiny_gif(10, 10 + over))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    pairs = Pairs([tmp_path / "a.gif"], ("one",))
    if fits:
        assert pairs.open(0).size == (10, 10)
    else:
        with pytest.raises(VlmEditError, match="110 pixels, and at most 100 are decoded"):
            pairs.open(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert pairs.open(0).size == (10, 10 + over)


def test_a_file_that_claims_a_large_picture_is_refused_before_it_takes_memory(tmp_path):
    for number, (width, height) in enumerate([(13_000, 13_000), (9_460, 9_460)]):
        (tmp_path / f"{number}.gif").write_bytes(tiny_gif(width, height))
    code = (
        "import resource, sys, warnings\nfrom pathlib import Path\nfrom vlm_edit import Pairs\n"
        "warnings.simplefilter('ignore')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "left_out = Pairs(list(map(Path, sys.argv[1:])), ('x',) * 2).readable()[1]\n"
        "taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(len(left_out), taken // 1024)\n"
    )
    files = [str(tmp_path / f"{number}.gif") for number in range(2)]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=100
    )
    refused, megabytes = map(int, done.stdout.split())
    assert refused == 2
    assert megabytes < 20


@pytest.mark.parametrize("name", IMAGE_FORMATS)
def test_each_format_that_is_named_is_opened(tmp_path, name):
    Image.init()
    if name not in Image.SAVE or (name == "AVIF" and not _has_avif()):
        pytest.skip(f"this Pillow writes no {name}")
    Image.new("RGB", (16, 8), "red").save(tmp_path / "image.png", format=name)
    with open_image(tmp_path / "image.png") as image:
        assert (image.format, image.size) == (name, (16, 8))


def _has_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


def test_a_photograph_of_two_frames_is_still_a_photograph(tmp_path):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    red, _, blue = Pairs([tmp_path / "a.jpg"], ("one",)).open(0).getpixel((0, 0))
    assert red > 200 and blue < 50


@pytest.mark.parametrize("name", ["PCX", "TGA", "SGI", "ICO", "EPS", "PDF", "DDS", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, name):
    try:
        Image.new("RGB", (16, 16), "red").save(tmp_path / "image.png", format=name)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {name}")
    with pytest.raises(VlmEditError, match="cannot identify"):
        Pairs([tmp_path / "image.png"], ("one",)).open(0)


# Pairs on disk


def test_a_list_of_odd_names_is_read_and_told_apart(tmp_path):
    path, odd_ones = mixed(tmp_path)
    with within(20):
        pairs = read_pairs(path)
        assert pairs_listing(pairs) == pairs_listing(read_pairs(path))
        kept, left_out = pairs.readable()
    assert (len(kept), len(left_out)) == (6, odd_ones)
    assert [number for number, _ in left_out] == list(range(2, 2 + odd_ones))
    assert kept.texts == tuple(zoo.load_pairs().texts[:6])


def test_a_folder_of_odd_names_is_read(tmp_path):
    strange = [path for name, path in odd(tmp_path).items() if name not in ("zero", "long")]
    Image.new("RGB", (4, 4), "red").save(tmp_path / "good.png")
    for path in [*strange, tmp_path / "good.png"]:
        path.with_suffix(".txt").write_text("one")
    with within(20):
        kept, left_out = read_pairs(tmp_path).readable()
    assert [Path(str(image)).name for image in kept.images] == ["good.png"]
    assert len(left_out) == len(strange) - 1  # a folder is no image, whatever its name


@pytest.mark.parametrize("name", [LONG, "a\0b.csv", "a.csv/b.csv"])
def test_pairs_out_of_reach_are_one_error(tmp_path, name):
    (tmp_path / "a.csv").write_text("image,text\n")
    with pytest.raises(VlmEditError, match="no pairs at"):
        read_pairs(tmp_path / name)


def test_measuring_leaves_out_whatever_cannot_be_read(tmp_path):
    path, odd_ones = mixed(tmp_path)
    with within(60):
        found = measure(
            Host.of(*zoo.load_host()),
            read_pairs(path),
            zoo.load_dictionary("joint"),
            progress=False,
        )
    assert [number for number, _ in found.skipped] == list(range(2, 2 + odd_ones))
    assert found.dominance.n_pairs == 6


def test_collecting_warns_of_what_it_leaves_out_or_tells(tmp_path):
    path, odd_ones = mixed(tmp_path)
    pairs, host = read_pairs(path), zoo.load_host()
    told = f"{odd_ones} of {len(pairs)} pairs left out.*pipe.png: not a regular file"
    with pytest.warns(UserWarning, match=told):
        found = collect(Host.of(*host), pairs, progress=False)
    assert len(found["image"]) == 6
    left_out: list[tuple[int, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        collect(Host.of(*host), pairs, progress=False, left_out=left_out)
    assert [number for number, _ in left_out] == list(range(2, 2 + odd_ones))


@pytest.mark.parametrize(
    "words",
    [
        ["measure", "zoo:emoji-clip", "{pairs}", "--dictionary", "zoo:joint", "--out", "{out}"],
        ["check", "zoo:emoji-clip", "{pairs}", "--dictionary", "zoo:joint"],
        ["attack", "zoo:emoji-clip", "{pairs}", "--label", "label", "--eps", "1", "--steps", "1",
         "--queries", "1", "--out", "{out}"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_commands_list_and_count_what_they_leave_out(tmp_path, capsys, words):
    path, odd_ones = mixed(tmp_path)
    given = [word.format(pairs=path, out=tmp_path / "out") for word in words]
    with within(120):
        main(given)
    told = capsys.readouterr().err
    assert f"{odd_ones} pairs left out because their image could not be read" in told
    assert "    number 2: " in told and "pipe.png: not a regular file" in told


def test_train_counts_what_it_leaves_out_by_the_numbers_of_the_list(tmp_path, capsys):
    path, odd_ones = mixed(tmp_path, good=20)
    words = ["train", "zoo:emoji-clip", str(path), "--out", str(tmp_path / "sae"), "--steps", "2",
             "--features", "8", "--k", "2", "--rows", "8", "--held-out", "0.9"]  # fmt: skip
    with within(120):
        assert main(words) == 0
    told = capsys.readouterr().err
    assert f"{odd_ones} pairs left out" in told and "    number 3: " in told


def test_a_reference_that_is_a_pipe_is_refused_at_once(tmp_path):
    with within(5), pytest.raises(VlmEditError, match="no image could be read.*regular file"):
        read(str(odd(tmp_path)["pipe"]))


@pytest.mark.parametrize("name", ["pipe", "folder", "bomb", "vast", "script", "device", "loop"])
def test_a_drawing_of_a_run_that_is_no_drawing_is_told_in_one_line(tmp_path, name):
    (tmp_path / kept.DRAWINGS).mkdir()
    odd(tmp_path)[name].rename(tmp_path / kept.DRAWINGS / "001.png")
    with within(5), pytest.raises(VlmEditError, match=r"001\.png is damaged: delete it"):
        kept.pictures(tmp_path)


def test_a_pipe_among_the_edits_of_a_run_is_told_at_once(tmp_path):
    (tmp_path / kept.EDITS).mkdir()
    os.mkfifo(tmp_path / kept.EDITS / "001.json")
    with within(5), pytest.raises(VlmEditError, match=r"001\.json is damaged"):
        kept.edits(tmp_path)


# The sources


def test_every_image_of_a_file_is_opened_by_its_format():
    """One function opens what users bring; the rest names one format, of bytes just made."""
    found = {}
    for path in [p for f in ("vlm_edit", "docs") for p in sorted((ROOT / f).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                words = {word.arg for word in node.keywords}
                found[path.relative_to(ROOT).as_posix()] = words
    assert found == {
        "vlm_edit/measuring/pictures.py": {"formats"},
        "docs/experiments/recipes/pairs.py": {"formats"},
    }
