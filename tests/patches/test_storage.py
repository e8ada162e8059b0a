"""Patch files: everything comes back bit for bit, and damage raises nothing but our error."""

import json
import pickle
import random
import resource
import struct
import tracemalloc

import pytest
import torch
from conftest import make_clip, random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlm_edit import (
    Ablate,
    Clamp,
    Dictionary,
    Patch,
    Project,
    Scale,
    Steer,
    VlmEditError,
    load_patch,
)
from vlm_edit.dictionaries import Encoder, save_saelens

CLIP = make_clip()


def make(activation="relu", norm="none", centers=False, seed=0, tokens="all", site="joint"):
    g = torch.Generator().manual_seed(seed)
    bias = torch.randn(12, generator=g)
    encoder = Encoder(
        torch.randn(12, 20, generator=g),
        torch.randn(20, generator=g),
        activation,
        threshold=torch.rand(20, generator=g) if activation == "jumprelu" else None,
        k=3 if activation == "topk" else None,
        subtract=bias,
        norm=norm,
        centers={s: torch.randn(12, generator=g) for s in ("image", "text")} if centers else {},
    )
    dictionary = Dictionary(encoder, torch.randn(20, 12, generator=g), bias)
    rules = [Ablate([7, 3]), Scale([3, 9], 2.5, strength=0.5), Clamp([1], -1.0), Steer([9], 0.1)]
    patch = Patch(site, dictionary, rules, tokens, {"why": "a test, with ünicode"})
    return patch + Patch(site, dictionary, Steer([2], 1.0), tokens)


@settings(max_examples=40, deadline=None)
@given(
    activation=st.sampled_from(["relu", "jumprelu", "topk", "identity"]),
    norm=st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]),
    centers=st.booleans(),
    tokens=st.sampled_from(["all", "image", "text", "text+special"]),
)
def test_a_patch_comes_back_bit_for_bit(tmp_path_factory, activation, norm, centers, tokens):
    file = tmp_path_factory.mktemp("patch") / "p.safetensors"
    patch = make(activation, norm, centers, tokens=tokens)
    patch.save(file, CLIP)
    back = load_patch(file)
    hidden = torch.randn(5, 12, generator=torch.Generator().manual_seed(9))
    for a, b in zip(patch.bindings, back.bindings, strict=True):
        assert (a.site, a.selection, a.splice.rules) == (b.site, b.selection, b.splice.rules)
        assert torch.equal(a.splice(hidden, stream="text"), b.splice(hidden, stream="text"))
    assert back.info == patch.info
    first = file.read_bytes()
    back.save(file)
    assert file.read_bytes() == first
    assert [f.name for f in file.parent.iterdir()] == ["p.safetensors"]


def test_the_file_holds_only_tensors_and_a_json_header(tmp_path):
    make().save(tmp_path / "p", CLIP)
    with safe_open(tmp_path / "p", "pt") as file:
        header = json.loads(file.metadata()["vlm_edit"])
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.offset_keys()}
    assert header["version"] == 3
    assert header["host"]["architecture"] == "CLIPModel"
    assert shapes["0.weight"] == (12, 4)  # of the touched features alone
    assert shapes["0.decoder"] == (4, 12)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "p"
    make().save(file, CLIP)
    old = file.read_bytes()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, before[1]))
    try:
        with pytest.raises(VlmEditError, match="cannot write the patch to .*File too large"):
            make(seed=1).save(file, CLIP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(VlmEditError, match="cannot write the patch to .*nowhere"):
        make().save(tmp_path / "nowhere" / "p", CLIP)


def test_a_patch_without_a_host_is_not_saved(tmp_path):
    with pytest.raises(VlmEditError, match=r"call patch.save\(path, host\)"):
        make().save(tmp_path / "p")
    wrong = Patch("joint", random_dictionary(13), Ablate([1]))
    with pytest.raises(VlmEditError, match="13 wide"):
        wrong.save(tmp_path / "p", CLIP)
    assert not list(tmp_path.iterdir())


def rewrite(path, change, tensors=None):
    """The file with another header."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["vlm_edit"])
    changed = change(header)
    header = changed if isinstance(changed, list) else header
    save_file(load_file(path) | (tensors or {}), path, metadata={"vlm_edit": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(version=5), "has patch format 5, this version reads 1 to 4: update"),
        (lambda h: h.pop("host"), "header is damaged .KeyError: 'host'"),
        (lambda h: h.update(bindings=[]), "tensors that no edit uses|edits the sites"),
        (lambda h: h.update(bindings=h["bindings"][:1]), "tensors that no edit uses: 1.bias"),
        (lambda h: h["host"].update(sites={}), r"edits the sites \['joint'\], its host has \[\]"),
        (lambda h: h["bindings"][0].update(site="text.0"), "edits the sites .*'text.0'"),
        (lambda h: h["bindings"][0].update(tokens="some"), "tokens is 'some'"),
        (lambda h: h["bindings"][0].update(features=[1, 3, 7]), "shapes do not fit 3 features"),
        (lambda h: h["bindings"][0].update(features=[1, 3, 9, 7]), "are not rising numbers"),
        (lambda h: h["bindings"][0].update(features=[1, 3, 7, 99]), "rising numbers below 20"),
        (lambda h: h["bindings"][0].update(features=[1.0, 3, 7, 9]), "must be whole numbers"),
        (lambda h: h["bindings"][0].update(n_features=1e400), "Infinity is not a number"),
        (lambda h: h["bindings"][0].update(activation="topk", k=2), "shapes do not fit"),
        (lambda h: h["bindings"][0].update(activation="sin"), "unknown activation 'sin'"),
        (lambda h: h["bindings"][0].update(norm=None), "unknown norm None"),
        (lambda h: h["bindings"][0]["rules"][0].update(kind="run"), "unknown rule 'run'"),
        (lambda h: h["bindings"][0]["rules"][0].update(features=[2]), "header is damaged"),
        (lambda h: h["bindings"][0]["rules"][1].update(factor="1"), "must be a finite number"),
        (lambda h: h["host"]["sites"]["joint"].update(width="12"), "host's width is '12'"),
        (
            lambda h: h["host"]["sites"]["joint"]["weights"].update(text_projection=["x"]),
            "something else than numbers",
        ),
        (
            lambda h: h["host"]["sites"]["joint"]["weights"].update(text_projection=[float("nan")]),
            "NaN is not a number",
        ),
        (lambda _: [1], "has no 'vlm_edit' header"),
    ],
)
def test_a_header_that_does_not_hold_together_is_refused(tmp_path, change, message):
    file = tmp_path / "p"
    make().save(file, CLIP)
    rewrite(file, change)
    with pytest.raises(VlmEditError, match=message):
        load_patch(file)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.extra": torch.zeros(1)}, "tensors of unknown use: extra"),
        ({"5.weight": torch.zeros(1)}, "tensors that no edit uses: 5.weight"),
        ({"0.center.sound": torch.zeros(12)}, "center of unknown stream 'sound'"),
        ({"0.threshold": torch.zeros(4)}, "threshold goes with"),
        ({"0.decoder": torch.zeros(4, 12).half()}, "decoder is torch.float16"),
        ({"0.weight": torch.zeros(12, 4).int()}, "encoder weight is torch.int32"),
    ],
)
def test_tensors_that_do_not_belong_are_refused(tmp_path, tensors, message):
    file = tmp_path / "p"
    make().save(file, CLIP)
    rewrite(file, lambda h: h, tensors)
    with pytest.raises(VlmEditError, match=message):
        load_patch(file)


NUMBERS = [float("nan"), float("inf"), -float("inf")]


def everything(file):
    """A patch with every tensor that a file can hold, under their names."""
    patch = make("jumprelu", centers=True)
    dictionary = Dictionary(
        Encoder(torch.rand(12, 20), torch.rand(20)), torch.rand(20, 12), torch.rand(12)
    )
    (patch + Patch("joint", dictionary, Project([1, 2]), gate=0.1)).save(file, CLIP)
    return list(load_file(file))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_tensor_with_nan_or_infinity_is_refused_by_its_name(tmp_path, number):
    names = everything(tmp_path / "whole")
    assert {"0.threshold", "0.center.text", "2.gate.decoder", "2.gate.bias"} <= set(names)
    for name in names:
        file = tmp_path / "p"
        everything(file)
        tensor = load_file(file)[name]
        tensor.view(-1)[-1] = number
        rewrite(file, lambda h: h, {name: tensor})
        with pytest.raises(VlmEditError, match="holds NaN or infinity") as raised:
            load_patch(file, verify=False)
        told = str(raised.value)
        assert str(file) in told
        words = name.replace("_", " ").split(".")[1:]
        assert all(word in told for word in words), (name, told)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("rule", [Ablate([3, 4]), Project([3, 4]), Steer([3], 1.0)])
def test_a_patch_is_not_made_of_a_dictionary_with_nan_or_infinity(number, rule):
    decoder = torch.rand(20, 12)
    decoder[3, 5] = number
    dictionary = Dictionary(Encoder(torch.rand(12, 20), torch.rand(20)), decoder, torch.rand(12))
    with pytest.raises(VlmEditError, match="the decoder of features 3.* holds NaN or infinity"):
        Patch("joint", dictionary, rule)
    Patch("joint", dictionary, Ablate([2]))  # of which nothing is touched


def test_files_that_are_no_patches_are_refused(tmp_path):
    file = tmp_path / "p"
    with pytest.raises(VlmEditError, match="no patch at .*: the file does not exist"):
        load_patch(file)
    with pytest.raises(VlmEditError, match="no patch at"):
        load_patch(tmp_path)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(VlmEditError, match="is a safetensors file but not a patch"):
        load_patch(file)
    for data in (b"", b"\0" * 8, b"\xff" * 100, struct.pack("<Q", 2) + b"{}"):
        file.write_bytes(data)
        with pytest.raises(VlmEditError):
            load_patch(file)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = tmp_path / "p"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(VlmEditError, match="not a readable safetensors file"):
        load_patch(file)
    assert not (tmp_path / "ran").exists()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage of the kinds that disks, downloads and enemies do, in a header whose length fits."""
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.3:
        raw = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw) + 1)])])
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.6:
        inner = json.loads(header["__metadata__"]["vlm_edit"])
        damage(inner, rng)
        header["__metadata__"]["vlm_edit"] = json.dumps(inner)
    else:
        damage(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


VALUES = [
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1e400, -0.5, float("nan"), "", "x", "F64", "F4",
    "BOOL", [], {}, [1], {"a": 1}, ["x"], [[]], "[" * 3000, [2**62, 2**62], 10**400,
]  # fmt: skip


def damage(tree, rng: random.Random) -> None:
    """Replace, drop or add one value somewhere in a JSON tree."""
    spots = []

    def walk(node) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(tree)
    node, key = rng.choice(spots)
    kind = rng.randrange(4)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(["0.weight", "x", "features", str(key) + "x"])] = node.pop(key)
    else:
        node[key] = rng.choice(VALUES)


def fuzz(folder, seeds) -> int:
    """How many of the damaged files were refused; any other exception comes through."""
    refused = 0
    sources = []
    for activation in ("relu", "topk", "jumprelu"):
        make(activation, centers=True).save(folder / activation, CLIP)
        sources.append((folder / activation).read_bytes())
    work = folder / "work"
    for seed in seeds:
        rng = random.Random(seed)
        work.write_bytes(mutate(rng.choice(sources), rng))
        try:
            load_patch(work)
        except VlmEditError:
            refused += 1
    return refused


def test_damaged_files_raise_nothing_but_our_error_and_allocate_little(tmp_path):
    tracemalloc.start()
    refused = fuzz(tmp_path, range(500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 250 < refused <= 500
    assert peak < 20 << 20


def test_others_may_read_a_patch_as_they_may_any_file_made_here(clip, dictionary, tmp_path):
    (tmp_path / "plain").touch()
    Patch("joint", dictionary(12), Ablate([1])).save(tmp_path / "p.safetensors", clip)
    assert (tmp_path / "p.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_weights_of_a_dictionary_are_no_patch_whatever_version(tmp_path):
    save_saelens(random_dictionary(12), tmp_path)
    with pytest.raises(VlmEditError, match="is no patch: its header names no edits"):
        load_patch(tmp_path / "sae_weights.safetensors")
