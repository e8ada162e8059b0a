"""Files that disks, downloads and enemies have changed: our error, soon, and no code is run.

``fuzz`` makes them from files of every format and rule. CI tries some hundred; all of them:

    python -m pytest tests/patches/test_damaged_files.py -m slow
"""

import json
import pickle
import random
import struct
import time
import tracemalloc
from dataclasses import dataclass

import pytest
import torch
from conftest import make_clip, random_dictionary
from golden.write_patches import FOLDER
from test_storage import damage

from vlm_edit import Ablate, Clamp, Keep, Patch, Project, Scale, Steer, VlmEditError, load_patch
from vlm_edit.edits import Blend, Cap, Detect

LONG = 1.0  # seconds for a file


def sources(folder):
    """A small file for each thing that one can say."""
    clip = make_clip()
    rules = [
        *(Ablate([7, 3]), Scale([3, 9], 2.5), Clamp([1], -1.0), Steer([9], 0.1, relative=True)),
        *(Cap([2], 1.0), Blend([4], [0.5]), Project([5, 6]), Detect([8], [0.0] * 12)),
    ]
    for number, activation in enumerate(("relu", "topk", "jumprelu")):
        dictionary = random_dictionary(12, 10, activation)
        patch = Patch("joint", dictionary, rules, "image", {"why": "gölden"})
        patch += Patch("joint", dictionary, Keep([0]), steps=(0, 3), schedule=[1.0, 0.5])
        patch += Patch("joint", dictionary, Ablate([0]), positions=[-1], gate=0.2)
        patch.save(folder / f"{number}.safetensors", clip)
    made = [file.read_bytes() for file in sorted(folder.glob("*.safetensors"))]
    golden = sorted(FOLDER.glob("version-*/*.safetensors"))
    return made * 4 + [file.read_bytes() for file in golden if file.stem != "expected"]


def bytes_changed(data, rng):
    raw = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(len(raw))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(raw)


def length_changed(data, rng):
    there = struct.unpack("<Q", data[:8])[0]
    sizes = [0, 1, there - 1, there + 1, len(data), 2**31, 2**63, 2**64 - 1, rng.randrange(2**20)]
    return struct.pack("<Q", rng.choice(sizes)) + data[8:]


def cut_or_grown(data, rng):
    if rng.random() < 0.5:
        return data[: rng.randrange(len(data) + 1)]
    return data + rng.randbytes(rng.choice([1, 8, 4096]))


def spliced(data, rng):
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice([data[:a] + data[b:], data[:b] + data[a:], data[a:b] + data[:a]])


def text_changed(data, rng):
    """The header's text, whatever comes of it as JSON, with a length that fits."""
    length = struct.unpack("<Q", data[:8])[0]
    text = data[8 : 8 + length].decode("utf-8")
    place = rng.randrange(len(text))
    bits = [
        "[",
        "{",
        '"',
        "\\",
        "\\u0000",
        "1e999",
        "NaN",
        "null",
        "-",
        "[" * 5000,
        "\ud800",
        "9" * 400,
    ]
    text = text[:place] + rng.choice(bits) + text[place + rng.choice([0, 1, 20]) :]
    raw = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def values_changed(data, rng):
    """Values of the header as JSON, ours or safetensors' own."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.7:
        inner = json.loads(header["__metadata__"]["vlm_edit"])
        for _ in range(rng.randint(1, 3)):
            damage(inner, rng)
            if not inner:
                break
        header["__metadata__"]["vlm_edit"] = json.dumps(inner)
    else:
        damage(header, rng)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data[8 + length :]


def pickled(data, rng):
    """A program in the place of a file, or before or behind one."""
    bomb = pickle.dumps(Bomb("ran"))
    return rng.choice([bomb, bomb + data, data + bomb, data[:8] + bomb + data[8:]])


@dataclass
class Bomb:
    """Makes a file where it is unpickled."""

    name: str

    def __reduce__(self):
        return (open, (self.name, "w"))


KINDS = [
    *(bytes_changed, length_changed, cut_or_grown, spliced, text_changed),
    *(values_changed, values_changed, values_changed, pickled),
]


@dataclass
class Found:
    """What became of damaged files."""

    refused: int = 0
    slowest: float = 0.0
    messages: frozenset = frozenset()


def fuzz(folder, seeds, verify):
    """Load damaged files; any other error than ours comes through."""
    found, made, work, messages = Found(), sources(folder), folder / "work", set()
    for seed in seeds:
        rng = random.Random(seed)
        work.write_bytes(rng.choice(KINDS)(rng.choice(made), rng))
        begin = time.perf_counter()
        try:
            load_patch(work, verify=verify)
        except VlmEditError as error:
            found.refused += 1
            messages.add(str(error)[:200])
        found.slowest = max(found.slowest, time.perf_counter() - begin)
    found.messages = frozenset(messages)
    return found


@pytest.mark.parametrize("verify", [True, False])
def test_damaged_files_are_refused_soon_and_in_little_memory(tmp_path, monkeypatch, verify):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    found = fuzz(tmp_path, range(400), verify)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.refused > 200
    assert found.slowest < 5 * LONG  # memory is being traced
    assert peak < 20 << 20
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verify", [True, False])
def test_ten_thousand_damaged_files_are_refused_soon_and_run_nothing(tmp_path, monkeypatch, verify):
    monkeypatch.chdir(tmp_path)
    found = fuzz(tmp_path, range(1000, 11_000), verify)
    assert found.refused > 5000
    assert found.slowest < LONG
    assert not (tmp_path / "ran").exists()
    print(found.refused, found.slowest, len(found.messages))


def test_of_a_file_of_the_second_format_no_change_of_content_passes(tmp_path):
    """Whatever loads with its checksum says and does what the file that was written did."""
    (tmp_path / "in").mkdir()
    data, x = sources(tmp_path / "in")[0], torch.randn(5, 12)
    (tmp_path / "p").write_bytes(data)
    wanted = load_patch(tmp_path / "p")
    for seed in range(600):
        rng = random.Random(seed)
        (tmp_path / "p").write_bytes(rng.choice([bytes_changed, values_changed])(data, rng))
        try:
            found = load_patch(tmp_path / "p")
        except VlmEditError:
            continue
        assert (found.info, found.host) == (wanted.info, wanted.host)
        for a, b in zip(found.bindings, wanted.bindings, strict=True):
            assert (a.site, a.selection, a.schedule) == (b.site, b.selection, b.schedule)
            assert torch.equal(a.splice(x), b.splice(x))


def test_a_number_of_features_that_no_tensor_bears_out_is_not_counted_through(tmp_path):
    file = tmp_path / "p"
    Patch("joint", random_dictionary(12, 10), Keep([0])).save(file, make_clip())
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["vlm_edit"])
    inner["bindings"][0]["n_features"] = 2**62
    header["__metadata__"]["vlm_edit"] = json.dumps(inner)
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    with pytest.raises(VlmEditError, match="has not all features that 'keep' touches"):
        load_patch(file, verify=False)
