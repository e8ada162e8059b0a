"""An activation and a norm of one's own, each one class: every door takes them by their names.

Only the classes below know what they do; the codes are worked out by hand, token by token.
"""

import pytest
import torch
from conftest import make_clip
from safetensors.torch import save_file

from vlm_edit import Ablate, Dictionary, Patch, VlmEditError, load_dictionary, load_patch, record
from vlm_edit.dictionaries import (
    Activation,
    Encoder,
    Layout,
    Norm,
    StoredDictionary,
    activations,
    check,
    norms,
    register_activation,
    register_norm,
    save_saelens,
    stored,
)

D, M, K = 24, 40, 7
FEW = [31, 4, 17]


class Shrunk(Activation):
    """What a pre-activation is above its threshold; features do not compete."""

    name = "shrunk"
    takes = ("threshold",)

    def dense(self, hidden):
        return (hidden - self.threshold).relu()


class Contest(Activation):
    """The same of the k largest in relation to their thresholds."""

    name = "contest"
    takes = ("k", "threshold")
    competes = True

    def dense(self, hidden):
        above = (hidden - self.threshold).relu()
        return torch.where(above >= above.topk(self.k, dim=-1).values[..., -1:], above, 0.0)


class Sifted(Contest):
    """The same, whose rows without a touched feature above 0 may be passed over."""

    name = "sifted"
    sifts = True


class Loudest(Norm):
    """Divides by the largest absolute value, and takes away a number."""

    name = "loudest"

    def __call__(self, x):
        scale = x.abs().amax(-1, keepdim=True)
        return (x - 1.0) / scale, scale

    def restore(self, normed, x):
        return super().restore(normed, x) + 1.0


@pytest.fixture(autouse=True)
def registered():
    for kind in (Shrunk, Contest, Sifted):
        register_activation(kind)
    register_norm(Loudest)
    yield
    for kind in (Shrunk, Contest, Sifted):
        activations.ACTIVATIONS.remove(kind.name)
    norms.NORMS.remove("loudest")


ACTIVATIONS = pytest.mark.parametrize("activation", ["shrunk", "contest", "sifted"])
NORMS = pytest.mark.parametrize("norm", ["none", "loudest"])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(activation, norm="none"):
    encoder = Encoder(
        random(D, M) / D**0.5,
        random(M, seed=1) / 4,
        activation,
        threshold=random(M, seed=2).abs() / 3,
        k=None if activation == "shrunk" else K,
        norm=norm,
    )
    return Dictionary(encoder, random(M, D, seed=4) / D**0.5, random(D, seed=5))


def codes_by_hand(dictionary, x):
    encoder, rows = dictionary.encoder, []
    for token in x.detach().double().reshape(-1, D):
        if encoder.norm == "loudest":
            token = (token - 1) / max(abs(value) for value in token.tolist())
        hidden = (token @ encoder.weight.double() + encoder.bias.double()).tolist()
        code = [max(h - t, 0.0) for h, t in zip(hidden, encoder.threshold.tolist(), strict=True)]
        if encoder.k is not None:
            least = sorted(code)[-K]
            code = [value if value >= least else 0.0 for value in code]
        rows.append(code)
    return torch.tensor(rows, dtype=torch.float64).float().view(*x.shape[:-1], M)


@NORMS
@ACTIVATIONS
def test_it_encodes_densely_sparsely_and_with_gradients(activation, norm):
    dictionary, x = made(activation, norm), random(3, 5, D, seed=6)
    expected = codes_by_hand(dictionary, x)
    assert (expected > 0).sum() > 60
    torch.testing.assert_close(dictionary.encode(x), expected)
    flat = dictionary.encode_sparse(x.view(-1, D))
    assert len(flat.values) == int((expected > 0).sum())
    torch.testing.assert_close(flat.dense().view(expected.shape), expected)
    followed = dictionary.encode(x.clone().requires_grad_())
    assert followed.requires_grad
    torch.testing.assert_close(followed.detach(), expected)


@NORMS
@ACTIVATIONS
@pytest.mark.parametrize("gradients", [False, True])
def test_it_is_edited_in_a_host_and_comes_back_from_a_patch_file(
    activation, norm, gradients, tmp_path
):
    dictionary, clip = made(activation, norm), make_clip()
    patch = Patch("vision.1", dictionary, Ablate(FEW))
    patch.save(tmp_path / "patch.safetensors", clip)
    loaded = load_patch(tmp_path / "patch.safetensors")
    for which in (patch, loaded):
        with (
            torch.set_grad_enabled(gradients),
            record(clip, "vision.1") as before,
            which.attach(clip),
            record(clip, "vision.1") as after,
        ):
            clip.vision_model(pixel_values=random(2, 3, 16, 16, seed=7))
            clip.vision_model(pixel_values=random(1, 3, 16, 16, seed=8))
        for a, b in zip(before.captures, after.captures, strict=True):
            codes = codes_by_hand(dictionary, a.hidden)[..., FEW]
            assert (codes != 0).any()
            change = codes @ dictionary.decoder[FEW]
            if norm == "loudest":
                change = change * a.hidden.abs().amax(-1, keepdim=True)
            torch.testing.assert_close(b.hidden, a.hidden - change, rtol=1e-4, atol=1e-4)
    assert activation in loaded.card() and f"norm {norm}" in loaded.card()


def file_of(dictionary, folder):
    encoder = dictionary.encoder
    tensors = {"in": encoder.weight, "in_bias": encoder.bias, "level": encoder.threshold}
    tensors |= {"out": dictionary.decoder, "out_bias": dictionary.decoder_bias}
    save_file(tensors, folder / "sae.safetensors")
    layout = Layout(
        encoder="in",
        decoder="out",
        encoder_order="dm",
        decoder_order="md",
        encoder_bias="in_bias",
        decoder_bias="out_bias",
        subtract_decoder_bias=False,
        activation=encoder.activation,
        norm=encoder.norm,
        threshold="level",
    )
    options = {"format": "state_dict", "layout": layout, "k": encoder.k}
    return folder / "sae.safetensors", options


@NORMS
@ACTIVATIONS
@pytest.mark.parametrize("rows", [3, 16, 100])
def test_it_is_read_from_a_file_and_encodes_part_after_part(
    activation, norm, rows, tmp_path, monkeypatch
):
    dictionary, x = made(activation, norm), random(9, D, seed=6)
    path, options = file_of(dictionary, tmp_path)
    monkeypatch.setattr(stored, "_PART", rows * D)
    lazy = load_dictionary(path, lazy=True, **options)
    assert isinstance(lazy, StoredDictionary)
    expected = codes_by_hand(dictionary, x)
    torch.testing.assert_close(lazy.encode_sparse(x).dense(), expected)
    torch.testing.assert_close(lazy.load().encode(x), expected)
    assert lazy.digest() == lazy.load().digest() == dictionary.digest()
    part = lazy.slice(FEW)
    assert part.encoder.weight.shape[1] == (len(FEW) if activation == "shrunk" else M)
    with torch.no_grad():
        torch.testing.assert_close(part.codes(x)[0], expected[:, FEW])


@ACTIVATIONS
def test_a_slice_keeps_no_more_than_it_needs(activation):
    part = made(activation).slice(FEW)
    assert part.encoder.weight.shape[1] == (len(FEW) if activation == "shrunk" else M)


def test_a_norm_is_put_back_by_its_own_rule():
    x = random(4, D, seed=6)
    neurons = Dictionary.identity(D, norm="loudest")
    torch.testing.assert_close(neurons.reconstruct(x), x)
    with pytest.raises(VlmEditError, match="without norm"):
        neurons.standardised(torch.zeros(D), 1.0)


def test_a_check_tries_it_where_another_norm_explains_little():
    batch = check._flat(made("shrunk"), random(300, D, seed=6), None)
    tried = {trial.what: trial.encoder for trial in check._trials(made("shrunk"), batch)}
    assert tried["norm 'loudest'"].norm == "loudest"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"activation": "shrunk", "threshold": torch.zeros(M)},
            "no architecture for activation 'shrunk'",
        ),
        ({"activation": "relu", "norm": "loudest"}, "normalize_activations for norm 'loudest'"),
    ],
)
def test_a_format_that_cannot_say_it_refuses_it(options, words, tmp_path):
    encoder = Encoder(random(D, M), torch.zeros(M), **options)
    with pytest.raises(VlmEditError, match=words):
        save_saelens(Dictionary(encoder, random(M, D), torch.zeros(D)), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_it_is_not_baked():
    clip = make_clip()
    patch = Patch("joint", Dictionary.identity(12, norm="loudest"), Ablate([1]))
    with pytest.raises(VlmEditError, match="norm loudest is not linear"):
        patch.bake(clip)


def test_options_go_with_the_activations_that_take_them():
    names = "jumprelu, shrunk, contest, sifted"
    with pytest.raises(VlmEditError, match=f"threshold goes with activations {names}, and only"):
        Encoder(random(D, M), torch.zeros(M), "shrunk")
    with pytest.raises(VlmEditError, match="k goes with activations topk,.* contest, sifted, and"):
        Encoder(random(D, M), torch.zeros(M), "contest", threshold=torch.zeros(M))
    with pytest.raises(VlmEditError, match="k is 41; it must lie between 1 and the 40 features"):
        Encoder(random(D, M), torch.zeros(M), "contest", threshold=torch.zeros(M), k=41)


def test_a_name_is_taken_once_and_a_class_without_one_is_refused():
    with pytest.raises(VlmEditError, match="an activation 'shrunk' is there already"):
        register_activation(type("Other", (Activation,), {"name": "shrunk"}))
    with pytest.raises(VlmEditError, match="the name of a norm must be a word, got ''"):
        register_norm(type("Nameless", (Norm,), {}))


def test_a_patch_of_an_activation_that_nobody_registered_is_refused_by_its_name(tmp_path):
    patch, clip = Patch("vision.1", made("shrunk"), Ablate(FEW)), make_clip()
    patch.save(tmp_path / "patch.safetensors", clip)
    kind = activations.ACTIVATIONS.find("shrunk")
    activations.ACTIVATIONS.remove("shrunk")
    try:
        with pytest.raises(
            VlmEditError, match="unknown activation 'shrunk'; known activations: relu"
        ):
            load_patch(tmp_path / "patch.safetensors")
    finally:
        register_activation(kind)
