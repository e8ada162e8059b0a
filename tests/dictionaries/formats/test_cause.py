"""Files that cannot be read say why, whatever format they would have been of."""

import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, save_saelens
from vlm_edit.dictionaries.formats.cause import cause

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 37748736\n"
PAGE = b"\n<!DOCTYPE html><html><body>Log in</body></html>"
STATE = {
    "encoder.weight": torch.randn(8, 4),
    "encoder.bias": torch.randn(8),
    "decoder.weight": torch.randn(4, 8),
    "bias": torch.randn(4),
}


class Code:
    """What would be called if a pickle were trusted."""

    def __reduce__(self):
        return print, ("code from a file was run",)


@pytest.fixture
def saelens(tmp_path):
    encoder = Encoder(torch.randn(4, 8), torch.randn(8), "topk", k=2)
    save_saelens(Dictionary(encoder, torch.randn(8, 4), torch.randn(4)), tmp_path / "layers.10")
    return tmp_path / "layers.10"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (POINTER, "is a pointer of Git LFS"),
        (PAGE, "is a web page, not weights"),
        (b"<html>404</html>", "is a web page, not weights"),
    ],
)
@pytest.mark.parametrize("name", ["ae.pt", "sae.pth", "sae.safetensors", "params.npz", "x.ckpt"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_what_is_no_file_of_weights_is_named(tmp_path, name, content, message, in_folder):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VlmEditError, match=message) as caught:
        load_dictionary(tmp_path if in_folder else tmp_path / name)
    assert name in str(caught.value)
    assert "known formats" not in str(caught.value)


def test_every_cut_of_a_torch_file_says_that_it_is_cut_off(tmp_path):
    file = tmp_path / "ae.pt"
    torch.save(STATE, file)
    whole = file.read_bytes()
    assert cause(file) is None
    for share in (0.1, 0.5, 0.9):
        file.write_bytes(whole[: int(len(whole) * share)])
        for options in ({}, {"format": "dictionary_learning", "activation": "relu"}):
            with pytest.raises(VlmEditError, match=r"ae\.pt is cut off: it begins as a zip"):
                load_dictionary(tmp_path, **options)


def test_every_cut_of_a_safetensors_file_says_that_it_is_cut_off(saelens):
    file = saelens / "sae_weights.safetensors"
    whole = file.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (4, 60, header - 1, header, header + 1, len(whole) - 1):
        file.write_bytes(whole[:length])
        for options in ({}, {"format": "saelens"}):
            with pytest.raises(VlmEditError, match="is cut off") as caught:
                load_dictionary(saelens, **options)
            assert "known formats" not in str(caught.value)
    assert f"{len(whole) - 1} of the {len(whole)} bytes" in str(caught.value)


def test_a_pickle_is_named_and_not_run(tmp_path, capsys):
    file = tmp_path / "sae.pt"
    for write in (
        lambda: file.write_bytes(pickle.dumps(Code())),
        lambda: torch.save(STATE, file, _use_new_zipfile_serialization=False),
    ):
        write()
        with pytest.raises(VlmEditError, match="is a pickle.*would run code"):
            load_dictionary(tmp_path)
    torch.save({"model": Code()}, file)
    with pytest.raises(VlmEditError, match="more than tensors .* would run code"):
        load_dictionary(tmp_path)
    assert "was run" not in capsys.readouterr().out


def test_damage_that_no_size_shows_is_told_too(saelens):
    file = saelens / "sae_weights.safetensors"
    whole = bytearray(file.read_bytes())
    whole[8] = ord("x")
    file.write_bytes(bytes(whole))
    with pytest.raises(VlmEditError, match="is not a readable safetensors file"):
        load_dictionary(saelens)


def test_a_whole_file_of_no_format_is_still_of_no_format(tmp_path):
    save_file({"something": torch.zeros(2)}, tmp_path / "x.safetensors")
    torch.save({"something": torch.zeros(2)}, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt", "."):
        with pytest.raises(VlmEditError, match="is not known; known formats"):
            load_dictionary(tmp_path / name)


def test_a_folder_may_be_named_by_its_file_of_weights(saelens):
    x = torch.randn(5, 4)
    whole = load_dictionary(saelens)
    for found in (
        load_dictionary(saelens / "sae_weights.safetensors"),
        load_dictionary(saelens.parent, file="layers.10/sae_weights.safetensors"),
    ):
        assert torch.equal(found.encode(x), whole.encode(x))


def test_a_neighbour_of_a_folder_s_weights_is_not_taken_for_them(saelens):
    save_file({"something": torch.zeros(2)}, saelens / "sparsity.safetensors")
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(saelens / "sparsity.safetensors")
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(saelens / "cfg.json")
