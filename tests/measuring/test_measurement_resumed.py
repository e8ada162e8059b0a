"""What must not change while a measurement is stopped, or between its parts."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_measurement_runs import _Stop, expect_same, stop_after
from tokenizers import Tokenizer
from torch import nn

from vlm_edit import Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.measuring import (
    measure_part,
    merge_parts,
)
from vlm_edit.measuring.details import details

Loaded = tuple[nn.Module, Any]


def go(host: Loaded, pairs: Pairs, **options: Any) -> Measurement:
    options = {"batch_size": 8, "progress": False} | options
    made = Host.of(*host, prompt=options.pop("prompt", None))
    return measure(made, pairs, zoo.load_dictionary("joint"), **options)


@pytest.fixture(scope="module")
def plain() -> Loaded:
    return zoo.load_host()


@pytest.fixture
def files(tmp_path: Path) -> Pairs:
    """24 images as files of one size each, of which number 3 is none."""
    pairs, folder = zoo.load_pairs().select(range(24)), tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        pairs.open(i).save(folder / f"{i}.bmp")
    (folder / "3.bmp").write_bytes(b"no image")
    return Pairs([folder / f"{i}.bmp" for i in range(24)], pairs.texts, name="files")


def stopped(host: Loaded, pairs: Pairs, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint of a measurement that died in its third batch."""
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(_Stop):
            go(host, pairs, checkpoint=file, every=0)
    return file


def in_model(change: Callable[[nn.Module], None]) -> Callable[[Loaded], Loaded]:
    def changed(host: Loaded) -> Loaded:
        model = copy.deepcopy(host[0])
        with torch.no_grad():
            change(model)
        return model, host[1]

    return changed


def one_bit(model: nn.Module) -> None:
    weight = model.text_model.encoder.layers[2].mlp.fc2.weight
    weight.view(torch.int32)[-1, -1] ^= 1


def other_eps(model: nn.Module) -> None:
    model.config.vision_config.layer_norm_eps = 1e-3


def in_processor(change: Callable[[Any], None]) -> Callable[[Loaded], Loaded]:
    def changed(host: Loaded) -> Loaded:
        processor = copy.deepcopy(host[1])
        change(processor)
        return host[0], processor

    return changed


def permuted(processor: Any) -> None:
    tokenizer = processor.tokenizer
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    words = told["model"]["vocab"]
    a, b = list(words)[100:102]
    words[a], words[b] = words[b], words[a]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))


CHANGES = {
    "a layer of the vision tower": (
        in_model(lambda m: m.vision_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)),
        r"weights of the host \(vision_model.encoder.layers.0.mlp.fc1.weight: ",
    ),
    "the embedding of tokens": (
        in_model(lambda m: m.text_model.embeddings.token_embedding.weight.mul_(-1)),
        r"weights of the host \(text_model.embeddings.token_embedding.weight: ",
    ),
    "one bit": (in_model(one_bit), r"weights of the host \(text_model.encoder.layers.2.mlp.fc2.w"),
    "a buffer": (
        in_model(lambda m: m.vision_model.embeddings.position_ids.add_(1)),
        r"weights of the host \(vision_model.embeddings.position_ids: ",
    ),
    "half precision": (in_model(lambda m: m.half()), "another host .dtype: float32, here float16"),
    "the config": (
        in_model(other_eps),
        r"another config of the host \(vision_config.layer_norm_eps: 1e-05",
    ),
    "the mean of pixels": (
        in_processor(lambda p: setattr(p.image_processor, "image_mean", [0.9, 0.1, 0.2])),
        r"another processor \(image_processor.image_mean: \[0.5, 0.5, 0.5\], here \[0.9, 0.1, 0.2",
    ),
    "the scale of pixels": (
        in_processor(lambda p: setattr(p.image_processor, "image_std", [0.1, 0.1, 0.1])),
        r"another processor \(image_processor.image_std",
    ),
    "ids of tokens": (in_processor(permuted), r"another processor \(tokenizer.vocabulary"),
    "the side of padding": (
        in_processor(lambda p: setattr(p.tokenizer, "padding_side", "left")),
        r"another processor \(tokenizer.padding_side: right, here left",
    ),
    "the chat template": (
        in_processor(lambda p: setattr(p, "chat_template", "{{ messages }}")),
        r"another processor \(processor.chat_template: None",
    ),
}


@pytest.fixture(scope="module")
def half_done(plain: Loaded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pairs, Path]:
    pairs = zoo.load_pairs().select(range(24))
    with pytest.MonkeyPatch.context() as patch:
        return pairs, stopped(plain, pairs, tmp_path_factory.mktemp("half") / "state", patch)


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_does_not_go_on_with_another_host_or_processor(what, plain, half_done, tmp_path):
    pairs, file = half_done
    change, told = CHANGES[what]
    kept = Path(shutil.copy(file, tmp_path / "state"))
    with pytest.raises(VlmEditError, match=f"was measured with (other )?{told}"):
        go(change(plain), pairs, checkpoint=kept)
    assert kept.read_bytes() == file.read_bytes()


def test_a_run_goes_on_to_the_bit_with_the_same_loaded_anew(plain, half_done, tmp_path):
    pairs, file = half_done
    kept = Path(shutil.copy(file, tmp_path / "state"))
    plain[1](text=["a b c", "d"], padding=True, truncation=True, max_length=4)  # leaves traces
    assert details(Host.of(*plain)) == details(Host.of(*zoo.load_host()))
    expect_same(go(zoo.load_host(), pairs, checkpoint=kept), go(plain, pairs))


def test_another_way_to_make_inputs_is_noticed(plain, half_done, tmp_path):
    pairs, file = half_done
    kept = shutil.copy(file, tmp_path / "state")

    def prepare(processor, images, texts):
        return processor(text=[t.upper() for t in texts], images=images, return_tensors="pt")

    with pytest.raises(VlmEditError, match="another processor .prepare: None, here test_measure"):
        go(plain, pairs, checkpoint=kept, prompt=prepare)


def test_parts_of_two_hosts_are_not_merged(plain, tmp_path):
    pairs, dictionary = zoo.load_pairs().select(range(16)), zoo.load_dictionary("joint")
    other = in_model(one_bit)(plain)
    for part, host in enumerate((plain, other)):
        options = {"part": (part, 2), "checkpoint": tmp_path / str(part), "batch_size": 8}
        measure_part(Host.of(*host), pairs, dictionary, progress=False, **options)
    with pytest.raises(VlmEditError, match="another part, .*1', was measured with other weights"):
        merge_parts([tmp_path / "0", tmp_path / "1"], pairs)


def test_the_run_keeps_digests_of_host_and_processor(plain):
    pairs = zoo.load_pairs().select(range(8))
    first, again = (go(host, pairs).provenance for host in (plain, zoo.load_host()))
    assert first == again and "details" not in first
    for what, kind in (("one bit", "weights"), ("the config", "config"), ("ids of tokens", "pro")):
        other = go(CHANGES[what][0](plain), pairs).provenance["digests"]
        assert [k for k in other if other[k] != first["digests"][k]][0].startswith(kind)


def repaint(path: Path) -> None:
    """Another image of the same size under the same name, and with the times of before."""
    before = path.stat()
    Image.new("RGB", Image.open(path).size, "navy").save(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_image_that_was_read_and_has_changed_is_noticed(plain, files, tmp_path, monkeypatch):
    file = stopped(plain, files, tmp_path / "state", monkeypatch)
    repaint(files.images[5])
    with pytest.raises(VlmEditError, match=r"pair 5 \(.*5.bmp\) has another image than when the c"):
        go(plain, files, checkpoint=file)


def test_images_that_are_the_same_or_were_not_read_are_not_in_the_way(
    plain, files, tmp_path, monkeypatch
):
    file = stopped(plain, files, tmp_path / "state", monkeypatch)
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = Pairs([tmp_path / "moved" / p.name for p in files.images], files.texts, name="files")
    repaint(moved.images[20])
    found, whole = go(plain, moved, checkpoint=file), go(plain, moved)
    assert [number for number, _ in found.skipped] == [3]
    expect_same(found, replace(whole, skipped=found.skipped))  # with the path of then


def test_images_in_memory_and_those_of_finished_parts_are_looked_at_too(plain, half_done, tmp_path):
    pairs, file = half_done
    images = [Image.new("RGB", (64, 64)) if i == 2 else im for i, im in enumerate(pairs.images)]
    other = Pairs(images, pairs.texts, name=pairs.name)
    with pytest.raises(VlmEditError, match=r"pair 2 \(image 2\) has another image"):
        go(plain, other, checkpoint=shutil.copy(file, tmp_path / "state"))
    options = {"part": (0, 1), "batch_size": 8, "progress": False}
    dictionary = zoo.load_dictionary("joint")
    measure_part(Host.of(*plain), pairs, dictionary, checkpoint=tmp_path / "whole", **options)
    with pytest.raises(VlmEditError, match=r"another image than when part 1 read it"):
        merge_parts([tmp_path / "whole"], other)
