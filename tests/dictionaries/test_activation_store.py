"""Activations in parts on the disk, against the same numbers in one tensor."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run_together
from safetensors.torch import load_file, save_file

from vlm_edit.dictionaries import (
    ActivationsWriter,
    Index,
    StoredActivations,
    TrainConfig,
    load_activations,
    train_dictionary,
    train_paired,
    write_part,
)
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError

WIDTH, BATCH, PAIRS = 8, 10, 95
NAME = "0123456789abcdef"
CONFIG = TrainConfig(n_features=16, k=2, steps=30, batch_size=64, norm="layer_norm")


def numbers(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDTH, generator=generator) * 3 + torch.arange(WIDTH)


def write(
    folder: Path,
    streams: dict[str, torch.Tensor],
    pairs: dict[str, torch.Tensor] | None = None,
    images: torch.Tensor | None = None,
    part_size: int = 1500,
) -> StoredActivations:
    """A store of these rows; by default row i is of pair i."""
    images = torch.arange(PAIRS) if images is None else images
    whose = pairs or {name: torch.arange(len(x)) for name, x in streams.items()}
    dtype = str(next(iter(streams.values())).dtype).removeprefix("torch.")
    batches = -(-len(images) // BATCH)
    index = Index(NAME, "joint", tuple(streams), WIDTH, dtype, batches, BATCH, {})
    part = write_part(folder / f"{NAME}-pairs.safetensors", {"images": [images]})
    writer = ActivationsWriter(folder, replace(index, pairs=part), part_size)
    for batch in range(batches):
        rows = {}
        for name, x in streams.items():
            numbers = whose[name]
            known = torch.where(numbers < 0, -1 - numbers, numbers // BATCH) == batch
            rows[name] = (x[known], numbers[known])
        writer.add(batch, rows, {})
    return writer.finish()


def both(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"image": numbers(PAIRS).to(dtype), "text": numbers(PAIRS, 1).to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_many_parts_are_those_of_one_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    streams = both(dtype)
    store = write(tmp_path, streams)
    assert len(list(tmp_path.glob(f"{NAME}-0*"))) > 2
    drawn = torch.tensor([94, 0, 33, 33, 10, 9, 50])
    for name, x in streams.items():
        rows = store[name]
        assert rows.shape == x.shape and rows.dtype == x.dtype and rows.ndim == 2
        assert len(rows) == PAIRS and rows.numel() == x.numel() and rows.is_floating_point()
        assert torch.equal(rows[:], x) and torch.equal(rows[drawn], x[drawn])
        assert torch.equal(rows[17:41], x[17:41]) and torch.equal(rows[94], x[94])
        assert torch.equal(rows[-1], x[-1]) and rows[5:5].shape == (0, WIDTH)
        assert torch.equal(rows[3:60:7], x[3:60:7])
        for some, expected in zip(rows.split(32), x.split(32), strict=True):
            assert torch.equal(some, expected)
        chosen = torch.tensor([5, 80, 20, 21])
        for part in (range(15, 70), range(15, 70, 3), chosen):
            few, expected = rows.select(part), x[torch.as_tensor(part)]
            assert torch.equal(few[:], expected) and torch.equal(few[1:3], expected[1:3])
            assert torch.equal(few[torch.tensor([3, 0])], expected[[3, 0]])
            again = few.select(torch.tensor([2, 1]))
            assert torch.equal(again[:], expected[[2, 1]])
            assert torch.equal(few.select(range(1, 3))[:], expected[1:3])
    for wrong in (torch.tensor([95]), torch.tensor([-1])):
        with pytest.raises(IndexError):
            store["image"][wrong]
    with pytest.raises(BadArgument, match="by a whole number, a slice, or a tensor"):
        store["image"][torch.tensor([True])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"kind": "ncl", "k": TrainConfig().k}, {"norm": "none"}])
def test_a_dictionary_of_a_store_is_that_of_one_file_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, changes: dict[str, object]
) -> None:
    streams, config = both(dtype), replace(CONFIG, **changes)
    store = write(tmp_path, streams)
    save_file(streams, tmp_path / "one")
    of_file = train_dictionary(tmp_path / "one", config, progress=False)
    for given in (store, tmp_path, dict(store)):
        found = train_dictionary(given, config, progress=False)
        assert torch.equal(found.decoder, of_file.decoder)
        assert torch.equal(found.encoder.weight, of_file.encoder.weight)
        assert torch.equal(found.encoder.bias, of_file.encoder.bias)


def test_dictionaries_of_both_streams_are_those_of_one_file_to_the_bit(tmp_path: Path) -> None:
    store = write(tmp_path, both())
    save_file(both(), tmp_path / "one")
    ours, theirs = (
        train_paired(given, CONFIG, progress=False) for given in (store, tmp_path / "one")
    )
    for stream in ("image", "text"):
        a, b = getattr(ours, stream), getattr(theirs, stream)
        assert torch.equal(a.decoder, b.decoder) and torch.equal(a.encoder.bias, b.encoder.bias)


def test_a_training_begun_on_one_file_goes_on_with_the_store_of_its_rows(tmp_path: Path) -> None:
    store = write(tmp_path, both())
    save_file(both(), tmp_path / "one")
    state = tmp_path / "state"
    train_dictionary(tmp_path / "one", CONFIG, checkpoint=state, progress=False)
    train_dictionary(store, CONFIG, checkpoint=state, progress=False)
    (tmp_path / "other").mkdir()
    changed = {**both(), "text": numbers(PAIRS, 2)}
    other = write(tmp_path / "other", changed)
    with pytest.raises(VlmEditError, match="with another data"):
        train_dictionary(other, CONFIG, checkpoint=state, progress=False)


TOGETHER = """
import sys
import torch, torch.distributed as dist
from safetensors.torch import save_file
from vlm_edit.dictionaries import TrainConfig, load_activations, train_dictionary
from vlm_edit.ground.errors import VlmEditError
torch.set_num_threads(1)
dist.init_process_group("gloo")
config, rank = TrainConfig(n_features=16, k=2, steps=20, batch_size=64), dist.get_rank()
found = train_dictionary(load_activations(sys.argv[1]), config, progress=False)
save_file({"decoder": found.decoder}, f"{sys.argv[1]}/{rank}")
store = load_activations(sys.argv[1])
fewer = {name: store[name].select(range(90)) for name in store}
for other in (load_activations(sys.argv[2]), fewer):
    try:
        train_dictionary(other if rank else store, config, progress=False)
    except VlmEditError as error:
        assert "differ from process 0 in process 1" in str(error), error
    else:
        raise AssertionError
dist.destroy_process_group()
"""


def test_two_processes_that_map_one_store_train_what_one_trains_and_notice_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "other").mkdir()
    store = write(tmp_path, both())
    write(tmp_path / "other", {**both(), "text": numbers(PAIRS, 2)})
    ran = run_together(TOGETHER, tmp_path, tmp_path / "other")
    assert [status for status, _ in ran] == [0, 0], ran
    config = TrainConfig(n_features=16, k=2, steps=20, batch_size=64)
    alone = train_dictionary(store, config, progress=False)
    ranks = [load_file(tmp_path / str(rank))["decoder"] for rank in range(2)]
    assert torch.equal(*ranks) and torch.allclose(ranks[0], alone.decoder, atol=2e-4)


def test_held_out_rows_share_no_pair_and_no_image_with_those_trained_on(tmp_path: Path) -> None:
    # Five captions of each image, in five rounds or one behind the other; three tokens a pair.
    whose = torch.arange(PAIRS).repeat_interleave(3)
    rows = {"image": numbers(len(whose)), "text": numbers(len(whose), 1)}
    for images in (torch.arange(PAIRS) // 5 * 5, torch.arange(PAIRS), torch.arange(PAIRS) % 80):
        folder = tmp_path / hashlib.sha256(images.numpy().tobytes()).hexdigest()
        folder.mkdir()
        store = write(folder, rows, {"image": whose, "text": whose}, images)
        split = store.split(0.17)
        kept = round(PAIRS * 0.83)
        held = [i for i in range(PAIRS) if images[i] >= kept]
        assert split.pairs == len(held)
        for name, x in rows.items():
            is_held = torch.isin(whose, torch.tensor(held))
            assert torch.equal(split.held_out[name][:], x[is_held])
            assert torch.equal(split.training[name][:], x[~is_held])
            seen, unseen = images[whose[~is_held]], images[whose[is_held]]
            assert not set(seen.tolist()) & set(unseen.tolist())


def test_a_batch_whose_pairs_cannot_be_told_apart_is_on_one_side_or_on_none(
    tmp_path: Path,
) -> None:
    batch = torch.arange(PAIRS) // BATCH
    rows = {"image": numbers(PAIRS), "text": numbers(PAIRS, 1)}
    whose = {"image": -1 - batch, "text": torch.arange(PAIRS)}
    split = write(tmp_path, rows, whose).split(0.16)  # 80 of 95 are kept
    assert torch.equal(split.training["image"][:], rows["image"][:80])
    assert torch.equal(split.held_out["image"][:], rows["image"][80:])
    assert split.pairs == 15
    split = load_activations(tmp_path).split(0.2)  # 76: the batch from 70 is of both
    assert torch.equal(split.training["image"][:], rows["image"][:70])
    assert torch.equal(split.held_out["image"][:], rows["image"][80:])
    assert torch.equal(split.held_out["text"][:], rows["text"][76:])


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001, -1.0, 2.0])
def test_both_sides_need_a_row(tmp_path: Path, share: float) -> None:
    with pytest.raises(BadArgument, match="both parts need at least one"):
        write(tmp_path, both()).split(share)


def test_captions_of_images_that_were_all_seen_before_leave_nothing_to_hold_out(
    tmp_path: Path,
) -> None:
    store = write(tmp_path, both(), images=torch.arange(PAIRS) % 19)
    with pytest.raises(BadArgument, match="whose image is not in the other"):
        store.split(0.1)


def flip(file: Path, place: int = -5) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (Path.unlink, "is missing"),
    "cut": (cut, "is damaged: it has"),
    "another": (
        lambda file: file.write_bytes(file.with_name(f"{NAME}-000001.safetensors").read_bytes()),
        "is of another store|is damaged",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("which", ["000000", "000002"])
def test_a_part_that_is_gone_or_cut_or_another_s_is_named(
    tmp_path: Path, how: str, which: str
) -> None:
    write(tmp_path, both())
    damage, told = DAMAGE[how]
    file = tmp_path / f"{NAME}-{which}.safetensors"
    damage(file)
    with pytest.raises(DamagedFile, match=told) as caught:
        load_activations(tmp_path)
    assert str(file) in str(caught.value) and "collect anew" in str(caught.value)


def test_a_part_of_another_store_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a", both())
    write(tmp_path / "b", {**both(), "text": numbers(PAIRS, 7)})
    part = f"{NAME}-000001.safetensors"
    (tmp_path / "a" / part).write_bytes((tmp_path / "b" / part).read_bytes())
    with pytest.raises(DamagedFile, match="is of another store than its index"):
        load_activations(tmp_path / "a")


def test_a_changed_byte_is_noticed_when_its_part_is_first_read(tmp_path: Path) -> None:
    write(tmp_path, both())
    flip(tmp_path / f"{NAME}-000001.safetensors")
    store = load_activations(tmp_path)
    assert torch.equal(store["image"][:3], both()["image"][:3])  # of the first part
    with pytest.raises(DamagedFile, match="000001.safetensors is damaged: a byte"):
        store["image"][:]
    with pytest.raises(DamagedFile, match="000001.safetensors is damaged: a byte"):
        train_dictionary(store, CONFIG, progress=False)
    unseen = load_activations(tmp_path, verify=False)
    assert unseen["image"][:].shape == (PAIRS, WIDTH)
    with pytest.raises(DamagedFile, match="000001.safetensors is damaged: a byte"):
        unseen.verify()


def test_the_images_of_pairs_are_looked_at_too(tmp_path: Path) -> None:
    write(tmp_path, both())
    flip(tmp_path / f"{NAME}-pairs.safetensors")
    with pytest.raises(DamagedFile, match="pairs.safetensors is damaged"):
        load_activations(tmp_path).split(0.2)


def test_an_index_that_is_not_whole_or_a_stranger_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match="no activations in .*vlm-edit collect writes them"):
        load_activations(tmp_path)
    write(tmp_path, both())
    path = tmp_path / "activations.json"
    whole = json.loads(path.read_text())
    part = {**whole["parts"][0], "file": "../elsewhere.safetensors"}
    parts = whole["parts"]
    cases = [
        ("{", "cannot be read"),
        ("[]", "is no index of activations"),
        ({**whole, "format": "other"}, "is no index of activations"),
        ({**whole, "version": 2}, "is of version 2"),
        ({**whole, "parts": [part, *parts[1:]]}, "no name of a file"),
        ({**whole, "name": "../x"}, "no name of a store's files"),
        ({**whole, "parts": parts[1:]}, "do not follow each other"),
        ({**whole, "parts": parts[:-1]}, "do not follow each other"),
        ({**whole, "dtype": "int8"}, "is none"),
        ({**whole, "width": "8"}, "is none"),
        ({**whole, "width": 9}, "does not hold what its index says"),
        ({**whole, "dtype": "bfloat16"}, "does not hold what its index says"),
        ({k: v for k, v in whole.items() if k != "streams"}, "is damaged"),
    ]
    for told, message in cases:
        path.write_text(told if isinstance(told, str) else json.dumps(told))
        with pytest.raises(VlmEditError, match=message):
            load_activations(tmp_path)["image"][:]


def test_what_is_begun_says_that_it_is_not_all_there(tmp_path: Path) -> None:
    write(tmp_path, both())
    (tmp_path / "activations.json").rename(tmp_path / "collecting.json")
    with pytest.raises(BadArgument, match="not all there yet.*10 of 10 batches"):
        load_activations(tmp_path)


def test_a_store_says_on_a_line_what_it_holds(tmp_path: Path) -> None:
    store = write(tmp_path, both())
    assert repr(store).startswith("StoredActivations(95 of image, 95 of text, width 8, float32, at")
    assert "95 rows of 8" in repr(store["image"])
    assert list(store) == ["image", "text"] and len(store) == 2


@pytest.mark.parametrize("size", [0, -1])
def test_a_part_of_no_bytes_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadArgument, match=f"part_size is {size}"):
        write(tmp_path, both(), part_size=size)
