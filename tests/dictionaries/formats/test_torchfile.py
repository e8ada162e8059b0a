"""Finding the one torch file that is meant."""

import pytest
import torch

from vlm_edit import VlmEditError
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.dictionaries.formats.torchfile import (
    mapping,
    open_mapping,
    peek_mapping,
    the_torch_file,
    torch_files,
)


def test_a_file_is_meant_itself_and_a_folder_its_only_torch_file(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    (tmp_path / "config.json").write_text("{}")
    for source in (Source(tmp_path), Source(tmp_path / "x.pth")):
        assert torch_files(source) == ["x.pth"]
        assert list(open_mapping(source)) == list(peek_mapping(source)) == ["a"]
    assert the_torch_file(Source(tmp_path)) == "x.pth"
    assert the_torch_file(Source(tmp_path / "x.pth")) is None


def test_several_torch_files_are_named_and_none_is_taken(tmp_path):
    for number in range(6):
        torch.save({"a": torch.ones(2)}, tmp_path / f"{number}.pt")
    assert list(peek_mapping(Source(tmp_path))) == ["a"]
    with pytest.raises(VlmEditError, match=r"6 torch files: .*file= \(0.pt, 1.pt, .*3.pt, ...\)"):
        open_mapping(Source(tmp_path))


@pytest.mark.parametrize(("count", "names"), [(2, r"\(0.pt, 1.pt\)"), (4, r"\(0.pt, .*, 3.pt\)")])
def test_a_few_torch_files_are_all_named(tmp_path, count, names):
    for number in range(count):
        torch.save({"a": torch.ones(2)}, tmp_path / f"{number}.pt")
    with pytest.raises(VlmEditError, match=f"{count} torch files: .*file= {names}$"):
        the_torch_file(Source(tmp_path))


def test_a_folder_without_a_torch_file_is_refused(tmp_path):
    assert peek_mapping(Source(tmp_path)) == {}
    with pytest.raises(VlmEditError, match=r"holds no .pt, .pth or .ckpt file"):
        open_mapping(Source(tmp_path))


def test_what_is_not_a_dictionary_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "x.pt")
    assert peek_mapping(Source(tmp_path)) == {}
    with pytest.raises(VlmEditError, match="holds a list, expected a dictionary"):
        open_mapping(Source(tmp_path))
    with pytest.raises(VlmEditError, match="here: b is missing or is not a dictionary"):
        mapping("here", {"b": 1}, "b")


def test_peeking_at_damage_raises_nothing(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"PK damaged")
    assert peek_mapping(Source(tmp_path)) == {}
