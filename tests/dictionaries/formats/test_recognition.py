"""Recognising formats, and damaged files: nothing but a VlmEditError comes out."""

import json
import random
import shutil
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, Rows, StoredDictionary, formats, save_saelens


@pytest.fixture
def folder(tmp_path):
    encoder = Encoder(torch.randn(4, 8), torch.randn(8), "topk", k=2)
    save_saelens(Dictionary(encoder, torch.randn(8, 4), torch.randn(4)), tmp_path / "sae")
    save_file({"image": torch.randn(4)}, tmp_path / "sae" / "centers.safetensors")
    return tmp_path / "sae"


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(VlmEditError, match=r"no dictionary at '.*nowhere': the path does not"):
        load_dictionary(tmp_path / "nowhere")


def test_an_unknown_format_is_refused_with_those_known(folder, tmp_path):
    with pytest.raises(VlmEditError, match="unknown format 'onnx'; known formats: saelens"):
        load_dictionary(folder, format="onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VlmEditError, match=r"the format of .* is not known; known formats"):
        load_dictionary(tmp_path / "empty")
    with pytest.raises(VlmEditError, match=r"the format of .* is not known; known formats"):
        load_dictionary(folder / "cfg.json")


def test_the_format_may_be_named(folder):
    assert load_dictionary(str(folder), format="saelens").n_features == 8


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_named_format_whose_file_is_missing_names_the_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(VlmEditError, match=name):
        load_dictionary(folder, format="saelens")


def test_a_folder_in_two_formats_must_be_named(folder, request):
    def read(source, hints):  # noqa: ARG001
        rows = Rows(torch.eye(2))
        return StoredDictionary(rows, torch.zeros(2), rows, torch.zeros(2))

    other = formats.Format("other", "anything", lambda _: True, read)
    formats.register_format(other)
    request.addfinalizer(lambda: formats.FORMATS.remove("other"))
    with pytest.raises(VlmEditError, match="could be saelens, other: say which with format="):
        load_dictionary(folder)
    assert load_dictionary(folder, format="other").width == 2


def test_a_config_of_many_megabytes_is_not_read(folder):
    (folder / "cfg.json").write_text(json.dumps({"a": "x" * (1 << 21)}))
    with pytest.raises(VlmEditError, match="larger than 1 MiB"):
        load_dictionary(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"k": 1' + "0" * 5000 + "}"])
def test_a_config_that_is_not_an_object_is_refused(folder, text):
    (folder / "cfg.json").write_text(text)
    with pytest.raises(VlmEditError, match=r"cfg.json (is not valid JSON|holds a)"):
        load_dictionary(folder)


def mutate(data: bytes, rng: random.Random, header: int) -> bytes:
    """Damage of the kinds that disks, downloads and enemies do, most of it in the header."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(data), header) or 1)
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at : at + rng.randint(1, 20)]
        elif kind == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif kind == 3:
            del data[rng.randrange(len(data) + 1) :]
        elif kind == 4:
            digits = [i for i, b in enumerate(data[:header]) if 48 <= b <= 57]
            if digits:
                data[rng.choice(digits)] = 48 + rng.randrange(10)
        else:
            words = [b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"NaN", b"true", b"9" * 30]
            ends = [i for i, b in enumerate(data[:header]) if b == 58] or [at]
            at = rng.choice(ends) + 1
            stop = min((i for i in range(at, len(data)) if data[i] in b",}"), default=len(data))
            data[at:stop] = rng.choice(words)
        data = data or bytearray(b"\0")
    return bytes(data)


def fuzz(folder, work, seeds) -> int:
    """How many of the damaged folders were refused; any other exception comes through."""
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        name = rng.choice(["cfg.json", "sae_weights.safetensors", "centers.safetensors"])
        file = work / name
        file.write_bytes(mutate(file.read_bytes(), rng, 400))
        try:
            load_dictionary(work)
        except VlmEditError:
            refused += 1
    return refused


def test_damaged_files_raise_nothing_but_our_error_and_allocate_little(folder, tmp_path):
    tracemalloc.start()
    refused = fuzz(folder, tmp_path / "work", range(300))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 200 < refused <= 300
    assert peak < 20 << 20
