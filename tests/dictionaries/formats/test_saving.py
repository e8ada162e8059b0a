"""What is saved for SAELens: read by its formulas, read back here, and written whole or not."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_saelens import D, M, sae_lens

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import (
    Encoder,
    PairedDictionary,
    TrainConfig,
    Transcoder,
    save_saelens,
    train_dictionary,
)

STREAMS = ("image", "text")


def made(seed=0, activation="relu", norm="none", subtract="bias", streams=STREAMS, **info):
    """A random dictionary; it subtracts the decoder's bias, nothing, or something else."""
    g = torch.Generator().manual_seed(seed)
    bias = torch.randn(D, generator=g)
    encoder = Encoder(
        torch.randn(D, M, generator=g),
        torch.randn(M, generator=g),
        activation,
        threshold=torch.rand(M, generator=g) if activation == "jumprelu" else None,
        k=3 if "topk" in activation else None,
        subtract={"bias": bias, "none": None, "other": torch.randn(D, generator=g)}[subtract],
        norm=norm,
        centers={stream: 3 * torch.randn(D, generator=g) for stream in streams},
    )
    return Dictionary(encoder, torch.randn(M, D, generator=g), bias, info)


def activations():
    return torch.randn(40, D, generator=torch.Generator().manual_seed(9)) * 2 + 1


def expect_read_alike(dictionary, folder, stream, tolerance=2e-6):
    """SAELens' formula gives of a folder's files what the dictionary gives."""
    x = activations()
    codes, found = sae_lens(folder, x)
    for ours, theirs in (
        (dictionary.encode(x, stream), codes),
        (dictionary.reconstruct(x, stream), found),
    ):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


@pytest.mark.parametrize("streams", [(), STREAMS])
def test_what_was_left_on_disk_is_loaded_and_saved(tmp_path, streams):
    whole = made(activation="jumprelu", streams=streams)
    for name, dictionary in (("one", whole), ("paired", PairedDictionary(whole, whole))):
        save_saelens(dictionary, tmp_path / name)
        lazy = load_dictionary(tmp_path / name, lazy=True)
        save_saelens(lazy, tmp_path / f"{name} again")
        assert load_dictionary(tmp_path / f"{name} again").digest() == dictionary.digest()


def test_so_is_a_transcoder(tmp_path):
    transcoder = Transcoder(made(subtract="none", streams=()), "mid", "mlp_out", skip=torch.eye(D))
    save_saelens(transcoder, tmp_path)
    save_saelens(load_dictionary(tmp_path, lazy=True), tmp_path)  # over the files it is left in
    assert load_dictionary(tmp_path).digest() == transcoder.digest()


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "topk_abs"])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("subtract", ["bias", "none", "other"])
def test_a_saved_dictionary_is_read_right_by_sae_lens_and_comes_back_bit_for_bit(
    tmp_path, activation, norm, subtract
):
    for streams, folders in (
        ((), {None: "."}),
        (("image",), {"image": "."}),
        (STREAMS, {stream: stream for stream in STREAMS}),
    ):
        dictionary = made(0, activation, norm, subtract, streams, model_name="host")
        path = tmp_path / "new" / f"of {len(streams)}"
        save_saelens(dictionary, path)
        for stream, folder in folders.items():
            expect_read_alike(dictionary, path / folder, stream)
        assert not list(path.rglob("centers.safetensors"))
        back = load_dictionary(path)
        assert back.digest() == dictionary.digest()
        assert back.info == {"model_name": "host"}
        assert load_dictionary(path, lazy=True).digest() == dictionary.digest()
        save_saelens(back, tmp_path / "again")
        for file in (f for f in path.rglob("*") if f.is_file()):
            again = tmp_path / "again" / file.relative_to(path)
            assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("kind", "streams"),
    [("batchtopk", ("image",)), ("batchtopk", STREAMS), ("topk", STREAMS), ("ncl", STREAMS)],
)
def test_what_training_gives_by_default_is_read_right_by_sae_lens(tmp_path, kind, streams):
    g = torch.Generator().manual_seed(0)
    data = {s: torch.randn(300, D, generator=g) + 4 * torch.randn(D, generator=g) for s in streams}
    size = {"k": 3} if kind != "ncl" else {}
    config = TrainConfig(n_features=M, steps=30, batch_size=64, kind=kind, **size)
    found = train_dictionary(data, config, progress=False)
    save_saelens(found, tmp_path)
    for stream in streams:
        expect_read_alike(found, tmp_path / stream if len(streams) == 2 else tmp_path, stream)


def test_where_the_decoder_s_bias_is_subtracted_a_center_changes_no_bit_of_the_codes(tmp_path):
    dictionary = made(streams=["text"])
    save_saelens(dictionary, tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    plain = Encoder(weights["W_enc"], weights["b_enc"], subtract=weights["b_dec"])
    assert torch.equal(plain(activations())[0], dictionary.encode(activations(), "text"))


def test_streams_of_one_center_are_one_folder(tmp_path):
    center = torch.ones(D)
    base = made(streams=())
    both = replace(base, encoder=replace(base.encoder, centers=dict.fromkeys(STREAMS, center)))
    save_saelens(both, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
    assert load_dictionary(tmp_path).digest() == both.digest()
    expect_read_alike(both, tmp_path, "text")


def test_either_half_says_all_of_a_shared_dictionary_and_half_precision_keeps_its_centers(tmp_path):
    dictionary = made()
    save_saelens(dictionary, tmp_path, torch.float16)
    for stream in STREAMS:
        alone = load_dictionary(tmp_path, file=stream)
        for name in STREAMS:
            assert torch.equal(alone.encoder.centers[name], dictionary.encoder.centers[name])


def test_of_a_pair_each_half_is_folded_by_its_own_stream(tmp_path):
    pair = PairedDictionary(made(0), made(1))  # either has both centers
    save_saelens(pair, tmp_path)
    back = load_dictionary(tmp_path)
    assert isinstance(back, PairedDictionary) and back.digest() == pair.digest()
    for stream in STREAMS:
        expect_read_alike(pair.of(stream), tmp_path / stream, stream)
    lacking = PairedDictionary(made(0, streams=["text"]), made(1))
    with pytest.raises(VlmEditError, match="the stream here is 'image'"):
        save_saelens(lacking, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_saved_here_once_with_its_centers_beside_still_loads(tmp_path):
    dictionary = made(streams=())
    save_saelens(dictionary, tmp_path)
    centers = {stream: torch.randn(D) for stream in STREAMS}
    save_file(centers, tmp_path / "centers.safetensors")
    centred = replace(dictionary, encoder=replace(dictionary.encoder, centers=centers))
    assert load_dictionary(tmp_path).digest() == centred.digest()


def test_a_saved_config_says_that_it_is_of_version_6(tmp_path):
    save_saelens(made(streams=()), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["metadata"]["sae_lens_version"].startswith("6.")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tied_parameters_can_be_saved_in_either_precision(tmp_path, dtype):
    shared = torch.nn.Parameter(torch.randn(D, D))
    zeros = torch.zeros(D)
    save_saelens(Dictionary(Encoder(shared, zeros), shared, zeros), tmp_path, dtype)
    assert load_file(tmp_path / "sae_weights.safetensors")["W_enc"].dtype == dtype
    assert torch.equal(load_dictionary(tmp_path).decoder, shared.to(dtype).float())


def test_what_sae_lens_cannot_hold_is_not_saved(tmp_path):
    with pytest.raises(VlmEditError, match="no architecture for activation 'identity'"):
        save_saelens(Dictionary.identity(D), tmp_path)
    capped = Encoder(torch.zeros(D, M), torch.zeros(M), soft_cap=1.0)
    with pytest.raises(VlmEditError, match=r"nothing for soft_cap, which is 1\.0"):
        save_saelens(Dictionary(capped, torch.zeros(M, D), torch.zeros(D)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_others_may_read_a_dictionary_as_they_may_any_file_made_here(tmp_path):
    (tmp_path / "plain").touch()
    save_saelens(made(streams=()), tmp_path / "saved")
    modes = {file.stat().st_mode for file in (tmp_path / "saved").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


KINDS = {
    "old": lambda: made(2, streams=()),  # with centers.safetensors beside it
    "one": lambda: made(3, "topk", streams=()),
    "another": lambda: made(8, "topk", streams=()),
    "centred": lambda: made(4, streams=["image"]),
    "shared": lambda: made(5),
    "paired": lambda: PairedDictionary(made(6, streams=["image"]), made(7, streams=["text"])),
}


def place(kind, folder):
    save_saelens(KINDS[kind](), folder)
    if kind == "old":
        save_file({"image": torch.ones(D), "text": torch.zeros(D)}, folder / "centers.safetensors")


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", ["one", "centred", "shared", "paired"])
def test_saving_over_another_dictionary_leaves_nothing_of_it(tmp_path, before, after):
    place(before, tmp_path / "over")
    (tmp_path / "over" / "notes.md").write_text("mine")
    save_saelens(KINDS[after](), tmp_path / "over")
    save_saelens(KINDS[after](), tmp_path / "alone")
    assert load_dictionary(tmp_path / "over").digest() == KINDS[after]().digest()
    files = {
        name: {f.relative_to(tmp_path / name) for f in (tmp_path / name).rglob("*")}
        for name in ("over", "alone")
    }
    assert files["over"] - files["alone"] == {Path("notes.md")}
    assert (tmp_path / "over" / "notes.md").read_text() == "mine"


def test_a_strangers_dictionary_in_a_folder_image_stays(tmp_path):
    save_saelens(made(1, streams=()), tmp_path / "image")
    save_saelens(made(2, streams=()), tmp_path)
    assert load_dictionary(tmp_path / "image").digest() == made(1, streams=()).digest()


def in_process(code, **values):
    """What a fresh interpreter prints that runs code with what is defined here."""
    told = f"import sys; sys.path[:0] = {sys.path!r}\nfrom test_saving import *\n"
    told += "".join(f"{name} = {value!r}\n" for name, value in values.items()) + code
    done = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Children that end, as by a kill, at one of the moments when a file is moved or removed.
KILLED = """
import os

def end_at(moment):
    left = [moment]
    def hook(event, arguments):
        if event in ("os.rename", "os.remove"):
            left[0] -= 1
            if not left[0]:
                os._exit(9)
    sys.addaudithook(hook)

for before, after in changes:
    for moment in range(1, 40):
        folder = f"{root}/{before}-{after}/{moment}"
        place(before, Path(folder))
        new = KINDS[after]()
        child = os.fork()
        if not child:
            end_at(moment)
            save_saelens(new, folder)
            os._exit(0)
        if not os.waitpid(child, 0)[1]:
            break
"""


def test_killed_at_any_moment_a_saving_leaves_the_old_the_new_or_nothing(tmp_path):
    changes = [("old", "one"), ("old", "shared"), ("shared", "one"), ("paired", "shared"),
               ("another", "one"), ("shared", "paired")]  # fmt: skip
    in_process(KILLED, changes=changes, root=str(tmp_path))
    for before, after in changes:
        place(before, tmp_path / "whole" / before)
        known = {load_dictionary(tmp_path / "whole" / before).digest(), KINDS[after]().digest()}
        moments = list((tmp_path / f"{before}-{after}").iterdir())
        seen = set()
        for folder in moments:
            try:
                found = load_dictionary(folder).digest()
            except VlmEditError as error:
                assert "not of one saving" in str(error)
            else:
                assert found in known, folder
                seen.add(found)
        assert seen == known and len(moments) > 2


FULL = """
import resource, signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for before in (None, "one"):
    for room in (100, 1000):
        folder = Path(f"{root}/{before}-{room}")
        if before:
            place(before, folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, -1))
        try:
            save_saelens(KINDS["shared"](), folder)
        except VlmEditError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
"""


def test_without_room_it_says_so_in_one_line_and_what_was_there_stays(tmp_path):
    told = in_process(FULL, root=str(tmp_path)).splitlines()
    assert len(told) == 4
    for line, name in zip(told, ("None-100", "None-1000", "one-100", "one-1000"), strict=True):
        assert line.startswith(f"cannot write the dictionary to '{tmp_path / name}': ")
    assert {folder.name for folder in tmp_path.iterdir()} == {"one-100", "one-1000"}
    for folder in tmp_path.iterdir():
        assert load_dictionary(folder).digest() == KINDS["one"]().digest()
        assert len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_our_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VlmEditError, match="cannot write the dictionary to"):
        save_saelens(made(), tmp_path / "file" / "sae")


def test_files_of_two_savings_are_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        save_saelens(made(seed), tmp_path / name)
    (tmp_path / "a" / "text").rename(tmp_path / "a" / "was")
    with pytest.raises(VlmEditError, match="image and text in it are not of one saving"):
        load_dictionary(tmp_path / "a")
    (tmp_path / "b" / "text").rename(tmp_path / "a" / "text")
    with pytest.raises(VlmEditError, match="image and text in it are not of one saving"):
        load_dictionary(tmp_path / "a")
    (tmp_path / "a" / "image" / "cfg.json").replace(tmp_path / "a" / "text" / "cfg.json")
    with pytest.raises(VlmEditError, match=r"cfg\.json and sae_weights\.safetensors are not of"):
        load_dictionary(tmp_path / "a" / "text")


def test_weights_that_sae_lens_writes_over_ours_are_read_as_they_are(tmp_path):
    save_saelens(made(), tmp_path)
    folder = tmp_path / "image"  # sae-lens keeps what it does not know of cfg.json's metadata
    weights = load_file(folder / "sae_weights.safetensors")
    weights["b_dec"] += 1
    save_file(weights, folder / "sae_weights.safetensors")
    found = load_dictionary(folder)
    assert not found.encoder.centers and found.info == {}
    expect_read_alike(found, folder, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "are others than those that its header tells of"),
        ({"folded": "AAAA"}, "the header of sae_weights.safetensors is damaged"),
        ({"vlm_edit_saving": "0"}, "are not of one saving"),
        (None, "are not of one saving"),
    ],
)
def test_a_header_that_is_not_of_its_weights_or_is_damaged_is_refused(tmp_path, change, message):
    save_saelens(made(streams=["image"]), tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    with safe_open(file, framework="pt") as opened:
        told = json.loads(opened.metadata()["vlm_edit"])
    weights = load_file(file)
    weights["b_dec"] += change == {}
    text = "{" if change is None else json.dumps(told | change)
    save_file(weights, file, {"vlm_edit": text})
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)
