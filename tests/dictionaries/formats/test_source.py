"""Files that lie about themselves, or that would act if they were believed."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import VlmEditError
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    expect_whole,
    read_json,
    read_safetensors,
    read_torch,
    safetensors_names,
)


class Allowed:
    """Nothing that weights_only lets through by itself."""


class Acting:
    """Pickled as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_act_is_refused_and_does_not_act(tmp_path):
    torch.save({"W": torch.zeros(2), "more": Acting(tmp_path / "acted")}, tmp_path / "sae.pt")
    with pytest.raises(VlmEditError, match=r"would run code from it: .*state_dict\(\)"):
        read_torch(tmp_path / "sae.pt")
    assert not (tmp_path / "acted").exists()
    with zipfile.ZipFile(tmp_path / "sae.pt") as archive:
        assert b"mkdir" in archive.read("sae/data.pkl")  # it would have


def test_a_whole_module_is_refused_with_the_mend(tmp_path):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "sae.pt")
    with pytest.raises(VlmEditError, match=r"save its state_dict\(\) alone"):
        read_torch(tmp_path / "sae.pt")


def test_the_format_of_before_torch_1_6_is_refused(tmp_path):
    torch.save({"W": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(VlmEditError, match="as torch.save wrote up to version 1.5"):
        read_torch(tmp_path / "old.pt")


def test_compressed_entries_are_refused_before_they_grow(tmp_path):
    torch.save({"W": torch.zeros(1 << 16)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "packed.pt").stat().st_size < 10_000
    with pytest.raises(VlmEditError, match="is compressed; torch.save never does"):
        read_torch(tmp_path / "packed.pt")


def lie(path, method=None, packed=None, unpacked=None):
    """Change what a zip's directory says of its first entry."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    for place, length, value in ((10, 2, method), (20, 4, packed), (24, 4, unpacked)):
        if value is not None:
            data[at + place : at + place + length] = value.to_bytes(length, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"method": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"unpacked": 1 << 20}, "is compressed"),
        ({"packed": 1 << 20, "unpacked": 1 << 20}, "claims more bytes than it has"),
    ],
)
def test_a_directory_that_lies_of_an_entry_is_refused(tmp_path, lies, message):
    torch.save({"W": torch.zeros(2)}, tmp_path / "sae.pt")
    assert read_torch(tmp_path / "sae.pt")["W"].tolist() == [0, 0]
    lie(tmp_path / "sae.pt", **lies)
    with pytest.raises(VlmEditError, match=message):
        read_torch(tmp_path / "sae.pt")


def test_what_stands_before_the_zip_does_not_count_as_its_content(tmp_path):
    torch.save({"W": torch.zeros(2)}, tmp_path / "sae.pt")
    data = (tmp_path / "sae.pt").read_bytes()
    (tmp_path / "sae.pt").write_bytes(b"x" * 4000 + data)
    size = len(data)
    lie(tmp_path / "sae.pt", packed=size, unpacked=size)  # less than the whole file
    with pytest.raises(VlmEditError, match="claims more bytes than it has"):
        read_torch(tmp_path / "sae.pt", skip=4000)


def test_a_pickle_of_many_megabytes_is_not_read(tmp_path):
    torch.save({"W": torch.zeros(2), "text": "x" * (5 << 20)}, tmp_path / "sae.pt")
    with pytest.raises(VlmEditError, match="is larger than 4 MiB"):
        read_torch(tmp_path / "sae.pt")


def test_a_view_that_claims_more_numbers_than_the_file_holds_is_refused(tmp_path):
    torch.save({"W": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "sae.pt")
    found = read_torch(tmp_path / "sae.pt")
    with pytest.raises(VlmEditError, match="more numbers than the file holds"):
        expect_matrix("sae.pt", found, "W")
    with pytest.raises(VlmEditError, match="more numbers than the file holds"):
        expect_vector("sae.pt", {"W": torch.zeros(1).expand(1 << 40)}, "W")


def test_a_torn_file_is_refused(tmp_path):
    torch.save({"W": torch.zeros(4000)}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "torn.pt").write_bytes(data[:length])
        with pytest.raises(VlmEditError, match=r"torn\.pt"):
            read_torch(tmp_path / "torn.pt")


def test_what_stands_before_the_zip_is_skipped(tmp_path):
    torch.save({"W": torch.arange(5.0)}, tmp_path / "plain.pt")
    (tmp_path / "behind.pt").write_bytes(b'{"a": 1}\n' + (tmp_path / "plain.pt").read_bytes())
    assert torch.equal(read_torch(tmp_path / "behind.pt", skip=9)["W"], torch.arange(5.0))


def test_tensors_of_a_file_are_views_that_cost_nothing_until_they_are_used(tmp_path):
    with (tmp_path / "large.safetensors").open("wb") as file:
        header = b'{"W":{"dtype":"F16","shape":[131072,4096],"data_offsets":[0,1073741824]}}'
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 30))  # a hole: it takes no room on disk
    before = int(Path("/proc/self/statm").read_text().split()[1])
    rows = read_safetensors(tmp_path / "large.safetensors")["W"][[5, 70_000, 131_071]]
    grown = (int(Path("/proc/self/statm").read_text().split()[1]) - before) * 4096
    assert rows.shape == (3, 4096)
    assert grown < 64 << 20


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00" * 7, b"\xff" * 8, (1 << 62).to_bytes(8, "little"), b"\x02" + b"\0" * 7 + b"[]"],
)
def test_a_safetensors_file_that_is_none_is_refused_and_has_no_names(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    assert safetensors_names(tmp_path / "x.safetensors") == frozenset()
    with pytest.raises(VlmEditError, match="is (empty|cut off|not a readable safetensors file)"):
        read_safetensors(tmp_path / "x.safetensors")


def test_names_come_from_the_header_alone(tmp_path):
    save_file({"a": torch.zeros(2), "b": torch.zeros(1)}, tmp_path / "x", metadata={"k": "v"})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:-4])
    assert safetensors_names(tmp_path / "x") == {"a", "b"}


def test_what_one_format_allows_is_not_read_for_another(tmp_path):
    torch.save({"n": Allowed()}, tmp_path / "sae.pt")
    source = Source(tmp_path / "sae.pt")
    assert isinstance(source.torch(allow=[Allowed])["n"], Allowed)
    assert source.peek_torch() is None


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "[" * 100_000, '{"k": 1' + "0" * 5000 + "}", "\0"]
)
def test_json_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(VlmEditError, match=r"c\.json (is not valid JSON|holds a)"):
        read_json(tmp_path / "c.json")
    assert Source(tmp_path).peek_json("c.json") == {}


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 2).to_sparse(), "is not a plain tensor"),
        (torch.zeros(2, 2, dtype=torch.int8), "expected floating-point"),
        (torch.zeros(2, 2, dtype=torch.complex64), "expected floating-point"),
        (torch.zeros(2, 2, 2), "expected 2 axes"),
        (torch.zeros(2, 2, device="meta"), "is not a plain tensor"),
        ("text", "is missing or is not a tensor"),
    ],
)
def test_a_matrix_is_a_plain_matrix_of_floating_point_numbers(tensor, message):
    with pytest.raises(VlmEditError, match=f"file: W .*{message}"):
        expect_matrix("file", {"W": tensor}, "W")


@pytest.mark.parametrize("value", [True, "3", None, float("nan"), float("inf"), torch.zeros(2)])
def test_one_number_is_one_finite_number(value):
    with pytest.raises(VlmEditError, match="file: k"):
        expect_scalar("file", {"k": value}, "k")
    assert expect_scalar("file", {"k": torch.tensor([2.5])}, "k") == 2.5


@pytest.mark.parametrize("value", [True, 0, -1, 2.0, "3", None, torch.tensor(2.0)])
def test_a_whole_number_is_one_above_0(value):
    with pytest.raises(VlmEditError, match="k must be a whole number above 0"):
        expect_whole("file", {"k": value}, "k")
    assert expect_whole("file", {"k": torch.tensor(7)}, "k") == 7


def test_a_tensor_that_is_missing_or_that_nobody_would_read_is_named():
    with pytest.raises(VlmEditError, match="tensors missing: b, c"):
        expect_names("file", {"a": 0}, {"a", "b", "c"})
    with pytest.raises(VlmEditError, match="does not have: d"):
        expect_names("file", {"a": 0, "d": 0}, {"a"}, {"e"})
    expect_names("file", {"a": 0, "e": 0}, {"a"}, {"e"})
