"""Damaged checkpoints of every format: nothing but a VlmEditError comes out, and at once.

    VLM_EDIT_FUZZ=10000 python -m pytest tests/dictionaries/formats/test_fuzz_formats.py

damages that many files of each library, and of each format that no library's file is here of;
without the variable some tens.
"""

import json
import os
import random
import resource
import shutil
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, Layout, PairedDictionary, save_saelens
from vlm_edit.dictionaries.formats import FORMATS

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden").glob("*.zip"))
FILES = int(os.environ.get("VLM_EDIT_FUZZ", "60"))
SLOWEST = 5.0  # seconds; a load takes some milliseconds


def damage(data: bytes, rng: random.Random) -> bytes:
    """What disks, downloads and enemies do: bytes changed, lost, added, moved, numbers grown."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) or 1)
        length = rng.randint(1, 24)
        kind = rng.randrange(6)
        if kind == 0:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del found[at : at + length]
        elif kind == 2:
            found[at:at] = bytes(rng.randrange(256) for _ in range(length))
        elif kind == 3:
            del found[at:]
        elif kind == 4:
            other = rng.randrange(len(found) or 1)
            found[at : at + length] = found[other : other + length]
        else:
            found[at : at + 8] = b"\xff" * 8
    return bytes(found)


def tensors(d=6, m=16):
    """A plain dictionary's, under names of gytdau's."""
    g = torch.Generator().manual_seed(d)
    sizes = {"encoder.weight": (m, d), "enc_bias": (m,), "decoder.weight": (d, m), "dec_bias": (d,)}
    return {name: torch.randn(*size, generator=g) for name, size in sizes.items()}


def layout(**options):
    """Of such tensors, as ``case.json`` keeps it."""
    plain = {
        "encoder": "encoder.weight",
        "decoder": "decoder.weight",
        "encoder_order": "md",
        "decoder_order": "dm",
        "encoder_bias": "enc_bias",
        "decoder_bias": "dec_bias",
        "subtract_decoder_bias": True,
        "activation": "relu",
    }
    return {"format": "state_dict", "layout": plain | options}


def files_of(root, case):
    folder = root / case / "files"
    folder.mkdir(parents=True)
    return folder


def say(root, case, path=".", **options):
    text = json.dumps({"path": path, "options": options})
    (root / case / "case.json").write_text(text, encoding="utf-8")


def gytdau(root):
    for d, m in ((6, 16), (8, 8)):
        torch.save(tensors(d, m), files_of(root, f"{d}") / "sparse_autoencoder_128.pth")
        say(root, f"{d}")


def state_dict(root):
    found = tensors()
    torch.save({"step": 3, "model": found}, files_of(root, "torch") / "sae.pt")
    names = {"encoder": "model.encoder.weight", "decoder": "model.decoder.weight"}
    biases = {"encoder_bias": "model.enc_bias", "decoder_bias": "model.dec_bias"}
    say(root, "torch", "sae.pt", k=3, **layout(activation="topk_abs", **names, **biases))
    save_file(found, files_of(root, "safetensors") / "sae.safetensors")
    say(root, "safetensors", "sae.safetensors", **layout(norm="layer_norm"))
    gates = {"gate": torch.randn(16), "gain": torch.randn(16), "height": torch.rand(())}
    save_file(found | gates, files_of(root, "gated") / "sae.safetensors")
    gate = {"gate_bias": "gate", "gate_gain": "gain", "unread": ("height",)}
    say(root, "gated", "sae.safetensors", **layout(soft_cap=3.0, unit_decoder_rows=True, **gate))
    torch.save(found | gates, files_of(root, "jumprelu") / "sae.pt")
    jumps = {"activation": "jumprelu", "threshold": "height", "unread": ("gate", "gain")}
    say(root, "jumprelu", "sae.pt", **layout(**jumps))


def parts(root):
    """Safetensors with an index."""
    folder, places = files_of(root, "parts"), {}
    for i, (name, tensor) in enumerate(tensors().items()):
        places[name] = f"sae-0000{i}-of-00004.safetensors"
        save_file({name: tensor}, folder / places[name])
    index = folder / "sae.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    say(root, "parts", index.name, **layout())


def streams(root):
    """What is saved here: with centers, and a dictionary for each stream."""
    g = torch.Generator().manual_seed(0)
    centers = {name: torch.randn(6, generator=g) for name in ("image", "text")}
    encoder = Encoder(torch.randn(6, 8, generator=g), torch.ones(8), "topk", k=3, centers=centers)
    one = Dictionary(encoder, torch.randn(8, 6, generator=g), torch.ones(6))
    for case, dictionary in (("centred", one), ("paired", PairedDictionary(one, one))):
        save_saelens(dictionary, files_of(root, case))
        say(root, case)


def plain(d=6, m=16):
    """Under the names of many libraries."""
    sizes = {"W_enc": (d, m), "W_dec": (m, d), "b_enc": (m,), "b_dec": (d,)}
    return {name: torch.randn(*size) for name, size in sizes.items()}


def patchsae(root):
    torch.save({"cfg": {"d_in": 6}, "state_dict": plain()}, files_of(root, "plain") / "out.pt")
    say(root, "plain")


def crosscoder(root):
    axes = {"W_enc": (2, 6, 8), "W_dec": (8, 2, 6), "b_enc": (8,), "b_dec": (2, 6)}
    found = {name: torch.randn(*size) for name, size in axes.items()}
    torch.save(found, files_of(root, "torch") / "0.pt")
    say(root, "torch", "0.pt")
    save_file(found, files_of(root, "safetensors") / "0.safetensors")
    say(root, "safetensors", "0.safetensors")


def bussmann(root):
    folder = files_of(root, "topk")
    torch.save(plain(), folder / "sae.pt")
    config = {"sae_type": "topk", "act_size": 6, "dict_size": 16, "top_k": 3}
    (folder / "config.json").write_text(json.dumps(config))
    say(root, "topk")


def llama_scope(root):
    folder, w = files_of(root, "jumprelu"), plain()
    (folder / "checkpoints").mkdir()
    names = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"]}
    names |= {"decoder.weight": w["W_dec"].T, "decoder.bias": w["b_dec"]}
    contents = {name: tensor.contiguous() for name, tensor in names.items()}
    save_file(contents, folder / "checkpoints" / "final.safetensors")
    config = {"d_model": 6, "d_sae": 16, "jump_relu_threshold": 0.5, "hook_point_in": "a"}
    config |= {"hook_point_out": "a", "dataset_average_activation_norm": {"in": 2.0, "out": 3.0}}
    (folder / "hyperparams.json").write_text(json.dumps(config))
    say(root, "jumprelu")


def lm_saes(root):
    folder, w = files_of(root, "jumprelu"), plain()
    names = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"]}
    names |= {"decoder.weight": w["W_dec"].T, "decoder.bias": w["b_dec"]}
    names |= {"log_jumprelu_threshold": w["b_enc"] / 3}
    names |= {"dataset_average_activation_norm.a": torch.tensor(2.0)}
    contents = {name: tensor.contiguous() for name, tensor in names.items()}
    save_file(contents, folder / "sae_weights.safetensors")
    config = {"d_model": 6, "d_sae": 16, "act_fn": "jumprelu"}
    config |= {"hook_point_in": "a", "hook_point_out": "a"}
    (folder / "config.json").write_text(json.dumps(config))
    say(root, "jumprelu")


OWN = (gytdau, state_dict, parts, streams, patchsae, bussmann, llama_scope, crosscoder, lm_saes)


def told_of(case):
    """What of a case's files to load, and with which options."""
    told = json.loads((case / "case.json").read_text("utf-8"))
    options = dict(told["options"])
    if "layout" in options:
        options["layout"] = Layout(**options["layout"])
    return told["path"], options


def fuzz(name, cases, tmp_path):
    """Load damaged copies of cases; how many were refused."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for seed in range(FILES):
        rng = random.Random(f"{name} {seed}")
        case = rng.choice(cases)
        path, options = told_of(case)
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(case / "files", work)
        file = rng.choice(sorted(path for path in work.rglob("*") if path.is_file()))
        file.write_bytes(damage(file.read_bytes(), rng))
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_dictionary(work / path, **options)
        except VlmEditError:
            refused += 1
        assert time.perf_counter() - start < SLOWEST, (name, seed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"{grown} KiB more than before"
    print(f"{name}: {refused} of {FILES} refused, {grown} KiB more than before")
    return refused


@pytest.mark.parametrize("archive", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_damaged_files_are_refused_or_read_and_nothing_else(archive, tmp_path):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "all")
    cases = sorted((tmp_path / "all").iterdir())
    assert fuzz(archive.stem, cases, tmp_path) > FILES / 3


@pytest.mark.parametrize("write", OWN, ids=[write.__name__ for write in OWN])
def test_so_are_damaged_files_of_formats_without_a_library(write, tmp_path):
    write(tmp_path / "all")
    cases = sorted((tmp_path / "all").iterdir())
    for case in cases:  # whole ones are read
        path, options = told_of(case)
        load_dictionary(case / "files" / path, **options)
    assert fuzz(write.__name__, cases, tmp_path) > FILES / 4


def test_every_format_is_damaged():
    names = " ".join([path.stem for path in GOLDEN] + [write.__name__ for write in OWN])
    told = names.replace("sae-lens", "saelens").replace("openai_sae", "openai")
    told = told.replace("sparse_autoencoder", "dncbm")  # whose library it is
    assert [known.name for known in FORMATS if known.name not in told] == []
