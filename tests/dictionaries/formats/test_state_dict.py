"""Plain state dicts that a layout explains, with every formula written here by hand."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vlm_edit import VlmEditError
from vlm_edit.dictionaries import Layout, load_dictionary
from vlm_edit.dictionaries.formats import Format, state_dict
from vlm_edit.dictionaries.formats.format import Hints
from vlm_edit.dictionaries.formats.source import Source

D, M = 6, 8
PLAIN = Layout(
    encoder="enc",
    decoder="dec",
    encoder_order="dm",
    decoder_order="md",
    encoder_bias="b_enc",
    decoder_bias="b_dec",
    subtract_decoder_bias=True,
    activation="relu",
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Else what a test draws depends on those before it."""
    torch.manual_seed(0)


def make(seed=0, m=M, **more):
    """Random tensors of a dictionary [d, m], [m, d] that nothing is 0 or 1 in."""
    g = torch.Generator().manual_seed(seed)
    return {
        "enc": torch.randn(D, m, generator=g),
        "dec": torch.randn(m, D, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "b_dec": torch.randn(D, generator=g),
        **more,
    }


def save(path, tensors):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path


def read(path, layout=PLAIN, **told):
    return load_dictionary(path, "state_dict", layout=layout, **told)


def close(found, expected):
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def by_hand(tensors, x, layout, k=None, threshold=None):
    """Codes and reconstruction in float64."""
    t, x, out = {n: v.double() for n, v in tensors.items()}, x.double(), lambda y: y
    if layout.norm == "layer_norm":
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x, out = (x - mean) / (std + 1e-5), lambda y: y * std + mean
    if layout.norm == "constant_norm_rescale":
        factor = D**0.5 / x.norm(dim=-1, keepdim=True)
        x, out = x * factor, lambda y: y / factor
    m = t["b_enc"].numel()
    hidden = (x - t["b_dec"] * layout.subtract_decoder_bias) @ t["enc"]
    if layout.gate_bias is not None:
        codes = (hidden * t["gain"].exp() + t["b_enc"]).relu() * (hidden + t["gate"] > 0)
    elif layout.activation == "jumprelu":
        codes = (hidden + t["b_enc"]).relu() * (hidden + t["b_enc"] > threshold)
    elif layout.activation == "topk":
        hidden = hidden + t["b_enc"]
        values, indices = hidden.topk(k, dim=-1)
        codes = torch.zeros_like(hidden).scatter(-1, indices, values.relu())
    else:
        codes = (hidden + t["b_enc"]).relu()
    if layout.soft_cap is not None:
        codes = layout.soft_cap * (codes / layout.soft_cap).tanh()
    decoder = t["enc"].T if layout.decoder is None else t["dec"]
    if layout.unit_decoder_rows:
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
    assert codes.shape[-1] == m
    return codes, out(codes @ decoder + t["b_dec"])


@settings(max_examples=80, deadline=None)
@given(
    orders=st.tuples(st.sampled_from(["dm", "md"]), st.sampled_from(["dm", "md"])),
    m=st.sampled_from([D, M]),  # square too: no shape tells the orientation
    activation=st.sampled_from(["relu", "topk", "jumprelu", "gated"]),
    norm=st.sampled_from(["none", "layer_norm", "constant_norm_rescale"]),
    subtract=st.booleans(),
    cap=st.sampled_from([None, 1.5]),
    unit=st.booleans(),
    tied=st.booleans(),
    nested=st.sampled_from(["", "state_dict.", "a.model_state."]),
)
def test_codes_and_reconstruction_are_those_that_the_layout_says(
    tmp_path_factory, orders, m, activation, norm, subtract, cap, unit, tied, nested
):
    tensors = make(m=m)
    written = {k: v.T if k in ("enc", "dec") else v for k, v in tensors.items()}
    file = {
        "enc": tensors["enc"] if orders[0] == "dm" else written["enc"],
        "dec": tensors["dec"] if orders[1] == "md" else written["dec"],
        **{k: tensors[k] for k in ("b_enc", "b_dec")},
    }
    if tied:
        del file["dec"]
    layout = Layout(
        encoder=f"{nested}enc",
        decoder=None if tied else f"{nested}dec",
        encoder_order=orders[0],
        decoder_order="md" if tied else orders[1],
        encoder_bias=f"{nested}b_enc",
        decoder_bias=f"{nested}b_dec",
        subtract_decoder_bias=subtract,
        activation="relu" if activation == "gated" else activation,
        norm=norm,
        soft_cap=cap,
        unit_decoder_rows=unit,
    )
    told, threshold = {}, None
    if activation == "topk":
        told = {"k": 3}
    if activation == "jumprelu":
        threshold = 0.4
        told = {"threshold": 0.4}
    if activation == "gated":
        extra = {"gate": torch.randn(m), "gain": torch.randn(m)}
        tensors, file = tensors | extra, file | extra
        layout = replace(layout, gate_bias=f"{nested}gate", gate_gain=f"{nested}gain")
    path = tmp_path_factory.mktemp("sd") / ("d.pt" if nested else "d.safetensors")
    if nested:
        state: dict = OrderedDict(file)
        for name in reversed(nested[:-1].split(".")):
            state = {name: state, "epoch": 3}
        torch.save(state, path)
    else:
        save(path, file)
    x = torch.randn(7, D) * 3 + 1
    codes, found = by_hand(tensors, x, layout, told.get("k"), threshold)
    ours = read(path, layout, **told)
    close(ours.encode(x), codes)
    torch.testing.assert_close(ours.reconstruct(x), found.float(), rtol=1e-4, atol=1e-4)
    part = read(path, layout, lazy=True, **told).slice([4, 0])
    close(part.codes(x)[0], codes[:, [4, 0]])
    assert torch.equal(part.decoder, ours.decoder[[4, 0]])


@pytest.mark.parametrize("activation", ["topk_signed", "topk_abs", "groupmax"])
def test_the_other_activations_keep_the_k_that_is_told(tmp_path, activation):
    path = save(tmp_path / "d.safetensors", make())
    layout = replace(PLAIN, activation=activation)
    codes = read(path, layout, k=4).encode(torch.randn(50, D))
    assert int((codes != 0).sum(-1).max()) == 4
    assert bool((codes < 0).any()) == (activation != "groupmax")


def test_biases_that_a_file_lacks_are_zero(tmp_path):
    tensors = make()
    path = save(tmp_path / "d.safetensors", {k: tensors[k] for k in ("enc", "dec")})
    layout = replace(PLAIN, encoder_bias=None, decoder_bias=None, subtract_decoder_bias=False)
    x = torch.randn(5, D)
    codes = (x.double() @ tensors["enc"].double()).relu()
    close(read(path, layout).encode(x), codes)
    close(read(path, layout).reconstruct(x), codes @ tensors["dec"].double())


def test_a_gate_without_gain_has_the_gain_one(tmp_path):
    gate = torch.randn(M)
    tensors = make(gate=gate)
    path = save(tmp_path / "d.safetensors", tensors)
    x = torch.randn(50, D)
    layout = replace(PLAIN, gate_bias="gate")
    expected = by_hand(tensors | {"gain": torch.zeros(M)}, x, layout)[0]
    close(read(path, layout).encode(x), expected)


@pytest.mark.parametrize("value", [torch.rand(M), torch.tensor(0.3), torch.tensor([0.3])])
def test_a_threshold_may_be_one_number_or_one_per_feature(tmp_path, value):
    path = save(tmp_path / "d.safetensors", make(t=value))
    layout = replace(PLAIN, activation="jumprelu", threshold="t")
    x = torch.randn(50, D)
    close(read(path, layout).encode(x), by_hand(make(), x, layout, threshold=value)[0])


def test_it_is_never_recognised(tmp_path):
    path = save(tmp_path / "d.safetensors", make())
    assert isinstance(state_dict.FORMAT, Format)
    assert not state_dict.FORMAT.recognises(Source(path))
    with pytest.raises(VlmEditError, match="say it with layout=Layout"):
        load_dictionary(path, "state_dict")


def test_a_layout_is_of_no_use_to_a_format_that_knows_its_own(tmp_path):
    with pytest.raises(VlmEditError, match="saelens keeps layout itself"):
        load_dictionary(tmp_path, "saelens", layout=PLAIN)


def test_a_folder_needs_the_name_of_the_file(tmp_path):
    save(tmp_path / "d.safetensors", make())
    with pytest.raises(VlmEditError, match=r"name the file in it with file=; it has: d\.safe"):
        read(tmp_path)
    assert read(tmp_path, file="d.safetensors").n_features == M


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "W_enc"}, r"layout's encoder is 'W_enc', and the file has no tensor so named"),
        ({"decoder_bias": "sd.b_dec"}, "layout's decoder_bias is 'sd.b_dec', and the file has no"),
        ({"encoder": "b_enc", "unread": ("enc",)}, "b_enc has shape"),
        ({"encoder_bias": "dec", "unread": ("b_*",)}, "dec has shape"),
        ({"encoder_bias": "b_dec", "unread": ("b_enc",)}, "encoder bias has shape"),
        ({"encoder_order": "md"}, "encoder is of 6 features and width 8"),
        ({"decoder": None}, "does not name dec: .* put what does not change them in Layout.unread"),
    ],
)
def test_what_a_file_does_not_have_is_said_with_what_it_has(tmp_path, change, message):
    path = save(tmp_path / "d.safetensors", make())
    with pytest.raises(VlmEditError) as caught:
        read(path, replace(PLAIN, **change))
    assert str(path) in str(caught.value)
    with pytest.raises(VlmEditError, match=message):
        read(path, replace(PLAIN, **change))
    for part in ("tensors in the file", "b_dec [6]", "b_enc [8]", "dec [8, 6]", "enc [6, 8]"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        ({"activation": "topk"}, {}, "activation 'topk' needs k="),
        ({}, {"k": 3}, "activation 'relu' has no k"),
        ({}, {"threshold": 0.1}, "'relu' takes no threshold"),
        ({"threshold": "b_enc"}, {}, "'relu' takes no threshold"),
        ({"activation": "jumprelu"}, {}, "takes one threshold, .* given 0 times"),
        ({"activation": "jumprelu", "threshold": "t"}, {"threshold": 1.0}, "it is given 2 times"),
        ({"activation": "topk"}, {"k": 9}, "k is 9"),
        ({"activation": "jumprelu"}, {"threshold": float("nan")}, "threshold holds NaN"),
        ({"soft_cap": -1.0}, {}, "soft_cap is -1.0"),
    ],
)
def test_what_the_layout_does_not_say_must_be_told_and_only_that(tmp_path, change, told, message):
    path = save(tmp_path / "d.safetensors", make())
    with pytest.raises(VlmEditError, match=message):
        read(path, replace(PLAIN, **change), **told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_order": "mn"}, "encoder_order is 'mn': say 'dm'"),
        ({"decoder_order": None}, "decoder_order is None: say 'dm'"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"decoder_bias": None}, "subtract_decoder_bias needs the name of the decoder_bias"),
        ({"gate_gain": "r"}, "gate_gain needs gate_bias"),
        ({"gate_bias": "b", "activation": "jumprelu"}, "gated encoder has activation 'relu'"),
        ({"decoder": None, "decoder_order": "dm"}, "tied to the encoder has decoder_order 'md'"),
    ],
)
def test_a_layout_that_contradicts_itself_cannot_be_made(change, message):
    with pytest.raises(VlmEditError, match=message):
        replace(PLAIN, **change)


def test_other_tensors_where_they_lie_must_be_named_as_unread(tmp_path):
    more = {"steps": torch.tensor(3), "vision.w": torch.ones(2), "vision.b": torch.ones(2)}
    path = save(tmp_path / "d.safetensors", make(**more))
    with pytest.raises(VlmEditError, match=r"does not name .*vision\.w"):
        read(path)
    with pytest.raises(VlmEditError, match="does not name steps:"):
        read(path, replace(PLAIN, unread=("vision.*",)))
    assert read(path, replace(PLAIN, unread=("vision.*", "steps"))).n_features == M


def test_what_lies_beside_a_nested_state_dict_is_none_of_its_business(tmp_path):
    path = tmp_path / "d.pt"
    torch.save({"model_state": make(), "optimizer": {"momentum": torch.ones(3)}}, path)
    names = ("encoder", "decoder", "encoder_bias", "decoder_bias")
    nested = {name: f"model_state.{getattr(PLAIN, name)}" for name in names}
    assert read(path, replace(PLAIN, **nested)).n_features == M
    with pytest.raises(VlmEditError, match=r"no tensor so named.*optimizer\.momentum \[3\]"):
        read(path)


def test_a_name_that_means_two_tensors_is_refused(tmp_path):
    path = tmp_path / "d.pt"
    torch.save({"a": make(), "a.enc": torch.randn(D, M)}, path)
    names = ("encoder", "decoder", "encoder_bias", "decoder_bias")
    nested = {name: f"a.{getattr(PLAIN, name)}" for name in names}
    with pytest.raises(VlmEditError, match="is 'a.enc', and the file has 2 tensors so named"):
        read(path, replace(PLAIN, **nested))


def test_dicts_that_hold_each_other_end(tmp_path):
    state = make()
    for name in ("a", "b", "c"):
        state[name] = state
    torch.save(state, tmp_path / "d.pt")
    assert read(tmp_path / "d.pt").n_features == M
    with pytest.raises(VlmEditError, match="'x', and the file has no"):
        read(tmp_path / "d.pt", replace(PLAIN, encoder="x"))


@pytest.mark.parametrize("name", ["d.pt", "d.bin", "d", "d.sae"])
def test_a_torch_file_is_known_by_its_content(tmp_path, name):
    torch.save(make(), tmp_path / name)
    assert read(tmp_path / name).n_features == M


@pytest.mark.parametrize("name", ["d.pt", "d.safetensors"])
@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\0" * 64])
def test_a_damaged_file_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VlmEditError, match="is (not a|empty|cut off)"):
        read(tmp_path / name)


@pytest.mark.parametrize("held", [[torch.ones(2)], torch.ones(2), 3])
def test_a_file_of_something_else_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "d.pt")
    with pytest.raises(VlmEditError, match=r"holds a \w+, expected a state dict"):
        read(tmp_path / "d.pt")


def test_a_whole_module_is_refused_with_the_mend(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "d.pt")
    with pytest.raises(VlmEditError, match=r"save its state_dict\(\) alone"):
        read(tmp_path / "d.pt")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    for name in ("enc", "dec", "b_enc", "b_dec"):
        tensors = make()
        tensors[name].view(-1)[3] = float("nan")
        path = save(tmp_path / f"{name}.safetensors", tensors)
        with pytest.raises(VlmEditError, match=f"{name} holds NaN or infinity"):
            read(path)


def test_only_what_it_asks_may_be_told():
    assert state_dict.FORMAT.takes == {"layout", "k", "threshold"}
    assert state_dict.FORMAT.takes < {f.name for f in Hints.__dataclass_fields__.values()}
