"""Checksums of tensors: equal where every bit is, and other where one is not."""

import pytest
import torch

from vlm_edit import VlmEditError
from vlm_edit.ground import checksums
from vlm_edit.ground.checksums import checksum

WORD = 4 * checksums._WORDS  # bytes of half a block


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 2 * WORD // 4, 2 * WORD // 4 + 1, WORD])
def test_one_bit_of_any_value_changes_it(size) -> None:
    x = noise(size)
    before = checksum(x)
    for place in {0, size // 2, size - 1}:
        for bit in (0, 13, 31):
            y = x.clone()
            y.view(torch.int32)[place] ^= torch.tensor(1 << bit).to(torch.int32)
            assert checksum(y) != before
    assert checksum(x.clone()) == before


def test_signs_places_and_scale_of_many_values_change_it() -> None:
    x = noise(300, 400)
    swapped = x.clone()
    swapped[[3, 200]] = x[[200, 3]]
    two = x.clone()
    two[5, 1] *= -1
    two[9, 3] *= -1  # both in the upper half of a word
    others = [
        -x,
        x.flip(0),
        x * 1.5,
        swapped,
        two,
        x.roll(1, 1),
        x.roll(2, 1),
        x.T,
        x.view(400, -1),
    ]
    found = {checksum(y) for y in (x, *others)}
    assert len(found) == 1 + len(others)


def test_dtype_and_shape_belong_to_it() -> None:
    bits = torch.zeros(8, dtype=torch.int32)
    alike = [bits, bits.view(torch.float32), bits.view(2, 4), bits.view(torch.int16), bits[:6]]
    assert len({checksum(x) for x in alike}) == len(alike)
    assert checksum(torch.zeros(0)) != checksum(torch.zeros(0, 3)) != checksum(torch.zeros(()))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
def test_every_dtype_has_one(dtype) -> None:
    x = noise(1001).gt(0) if dtype == torch.bool else noise(1001, dtype=torch.float32).to(dtype)
    other = x.clone()
    other.view(torch.uint8)[-1] ^= 1
    assert checksum(x) == checksum(x.clone()) != checksum(other)


def test_it_does_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    x = noise(37, 1001)
    ways = [x.T.contiguous().T, torch.cat([noise(3), x.flatten()])[3:].view(37, 1001)]
    assert not ways[0].is_contiguous() and ways[1].storage_offset() == 3
    assert {checksum(y) for y in ways} == {checksum(x)}


@pytest.mark.parametrize("blocks", [2, 3, 64])
def test_it_does_not_depend_on_how_many_blocks_are_taken_at_once(blocks, monkeypatch) -> None:
    x = noise(9 * WORD // 4 + 5)
    before = checksum(x)
    monkeypatch.setitem(checksums._BLOCKS, "cpu", blocks)
    assert checksum(x) == before


def test_what_cannot_be_read_is_refused_by_name() -> None:
    with pytest.raises(VlmEditError, match="values of far cannot be read: it is on meta"):
        checksums.checksums([("here", noise(3)), ("far", torch.empty(3, device="meta"))])
