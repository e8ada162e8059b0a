"""Numpy's archives, read as views; what lies about its size, or holds code, is refused."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries.formats.npz import npz_names, read_npz


def member(array):
    """The bytes of one ``.npy``."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(path, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_are_those_that_numpy_wrote(tmp_path, dtype):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.random((3, 5)).astype(dtype), "b": np.asfortranarray(rng.random((4, 2)))}
    arrays |= {"c": rng.random(7).astype(dtype), "none": np.zeros((0, 3), dtype)}
    np.savez(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz")
    assert npz_names(tmp_path / "x.npz") == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name].numpy(), array)
    found["a"][:] = 0  # a copy of its own
    assert np.array_equal(read_npz(tmp_path / "x.npz")["a"].numpy(), arrays["a"])


def test_a_view_takes_no_memory(tmp_path):
    np.savez(tmp_path / "x.npz", W=np.zeros((1000, 1000), np.float32))
    found = read_npz(tmp_path / "x.npz")["W"]
    assert isinstance(found.numpy().base, np.memmap) or found.numpy().flags.owndata is False


class Code:
    def __reduce__(self):
        return print, ("code from a file was run",)


def header(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header((1 << 40, 1 << 40)) + b"\0" * 16, "claims shape"),
        (header((1 << 62, 4)) + b"\0" * 16, "claims shape"),
        (header((2,)) + b"\0" * 12, "claims shape"),
        (header((-2, -2)) + b"\0" * 16, "claims shape|not a readable"),
        (header((2, 2), "<i4") + b"\0" * 16, "expected floating-point"),
        (header((2, 2), ">f4") + b"\0" * 16, "expected floating-point"),
        (header((2,), "|O") + pickle.dumps(Code()), "expected floating-point"),
        (b"\x93NUMPY\x07\x00" + b"\0" * 64, "of version"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "not a readable"),
        (b"", "not a readable"),
        (b"nothing", "not a readable"),
    ],
)
def test_what_an_array_claims_is_checked_before_memory_is_taken(tmp_path, capsys, data, message):
    with pytest.raises(VlmEditError, match=message):
        read_npz(archive(tmp_path / "x.npz", W=data))
    assert "was run" not in capsys.readouterr().out


def test_compressed_arrays_are_refused_before_they_grow(tmp_path):
    data = member(np.zeros(1 << 20))
    with pytest.raises(VlmEditError, match="save it anew with numpy.savez"):
        read_npz(archive(tmp_path / "x.npz", zipfile.ZIP_DEFLATED, W=data))


def test_very_many_arrays_are_refused(tmp_path):
    one = member(np.zeros(1))
    with pytest.raises(VlmEditError, match="holds 101 arrays"):
        read_npz(archive(tmp_path / "x.npz", **{f"a{i}": one for i in range(101)}))


def test_names_that_lead_elsewhere_touch_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as made:
        made.writestr("../../outside.npy", member(np.ones(2)))
    assert torch.equal(read_npz(tmp_path / "x.npz")["../../outside"], torch.ones(2).double())
    assert [path.name for path in tmp_path.rglob("*")] == ["x.npz"]


def gemma(folder, d=6, m=16, **changes):
    """A folder of the first Gemma Scope."""
    rng = np.random.default_rng(d)
    shapes = {"W_enc": (d, m), "W_dec": (m, d), "b_enc": (m,), "b_dec": (d,), "threshold": (m,)}
    arrays = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: a for name, a in (arrays | changes).items() if a is not None}
    np.savez(folder / "params.npz", **arrays)
    return arrays


@pytest.mark.parametrize("named", ["folder", "file", "inside"])
def test_gemma_scope_is_read_by_folder_by_file_and_from_a_repository_s_folder(tmp_path, named):
    place = "layer_20/width_16k/average_l0_71"
    w = gemma(tmp_path / place, m=16_384, d=2)
    if named == "inside":
        found = load_dictionary(tmp_path, file=place)
    else:
        found = load_dictionary(tmp_path / place / ("params.npz" if named == "file" else ""))
    x = torch.randn(9, 2)
    hidden = x.double().numpy() @ w["W_enc"] + w["b_enc"]
    codes = np.where((hidden > w["threshold"]) & (hidden > 0), hidden, 0)
    torch.testing.assert_close(found.encode(x), torch.from_numpy(codes).float())
    back = torch.from_numpy(codes @ w["W_dec"] + w["b_dec"]).float()
    torch.testing.assert_close(found.reconstruct(x), back, rtol=1e-4, atol=1e-3)
    assert found.info == {"layer": "20"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": np.full(16, 2.0)}, "scaling_factor that is not 1"),
        ({"b_dec": np.full(6, np.nan)}, "b_dec holds NaN"),
        ({"W_enc": np.full((6, 16), np.inf)}, "W_enc holds NaN or infinity"),
        ({"more": np.zeros(2)}, "does not have: more"),
        ({"W_dec": np.zeros((6, 16))}, "the decoder of 6 and 16"),
        ({"threshold": np.zeros(6)}, "threshold has shape"),
    ],
)
def test_what_gemma_scope_cannot_be_read_from_is_refused_by_name(tmp_path, changes, message):
    gemma(tmp_path, **changes)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_a_scale_of_one_is_no_scale_and_a_width_is_held_to(tmp_path):
    gemma(tmp_path, scaling_factor=np.ones(16))
    assert load_dictionary(tmp_path).n_features == 16
    gemma(tmp_path / "width_16k" / "average_l0_71")
    with pytest.raises(VlmEditError, match="says width_16k, the file has 16"):
        load_dictionary(tmp_path / "width_16k" / "average_l0_71")


def test_a_cut_archive_says_so(tmp_path):
    gemma(tmp_path)
    whole = (tmp_path / "params.npz").read_bytes()
    (tmp_path / "params.npz").write_bytes(whole[: len(whole) // 2])
    for options in ({}, {"format": "gemma_scope_1"}):
        with pytest.raises(VlmEditError, match=r"params\.npz is cut off"):
            load_dictionary(tmp_path, **options)
