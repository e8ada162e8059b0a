"""Every activation, capped or not, by every door, against its formula row by row in float64."""

import math

import pytest
import torch
from conftest import make_clip

from vlm_edit import Ablate, Dictionary, Patch, record
from vlm_edit.dictionaries import Encoder

D, M, K = 24, 40, 20
ACTIVATIONS = (
    *("relu", "jumprelu", "topk", "topk_signed", "topk_abs", "topk_distance", "groupmax"),
    "identity",
)
FEW = [31, 4, 17]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(activation, cap=None):
    return Dictionary(
        Encoder(
            random(D, M) / D**0.5,
            random(M, seed=1) / 4 - 0.25,
            activation,
            threshold=random(M, seed=2) / 3 if activation == "jumprelu" else None,
            k=K if activation.startswith("topk") or activation == "groupmax" else None,
            subtract=random(D, seed=3) / 4,
            soft_cap=cap,
        ),
        random(M, D, seed=4) / D**0.5,
        random(D, seed=5),
    )


def code_by_hand(dictionary, x):
    """The code of one activation [d], as a list."""
    encoder = dictionary.encoder
    row = (x.double() - encoder.subtract.double()) @ encoder.weight.double()
    h = (row + encoder.bias.double()).tolist()
    kind, kept = encoder.activation, set(range(M))
    if kind in ("topk", "topk_signed", "topk_distance"):
        kept = set(sorted(kept, key=lambda i: -h[i])[:K])
    if kind == "topk_abs":
        kept = set(sorted(kept, key=lambda i: -abs(h[i]))[:K])
    if kind == "groupmax":
        size = M // K
        kept = {max(range(i, i + size), key=h.__getitem__) for i in range(0, M, size)}
    if kind == "jumprelu":
        kept = {i for i in kept if h[i] > float(encoder.threshold[i])}
    if kind == "topk_distance":
        h = [2 - math.sqrt(max(2 - 2 * value, 0)) for value in h]
    signed = kind in ("topk_signed", "topk_abs", "topk_distance", "identity")
    code = [value if i in kept and (signed or value > 0) else 0.0 for i, value in enumerate(h)]
    cap = encoder.soft_cap
    return code if cap is None else [cap * math.tanh(value / cap) for value in code]


def codes_by_hand(dictionary, x):
    rows = [code_by_hand(dictionary, row) for row in x.detach().reshape(-1, D)]
    return torch.tensor(rows).view(*x.shape[:-1], M)


def followed(dictionary, x):
    x = x.clone().requires_grad_()
    codes = dictionary.encode(x)
    assert codes.requires_grad
    return codes.detach()


DOORS = {
    "dense": lambda dictionary, x: dictionary.encode(x),
    "followed": followed,
    "sparse": lambda dictionary, x: dictionary.encode_sparse(x.view(-1, D)).dense().view(3, 5, M),
}


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("door", DOORS)
def test_codes_are_those_of_the_formula(door, activation, cap):
    dictionary, x = made(activation, cap), random(3, 5, D, seed=6)
    expected = codes_by_hand(dictionary, x)
    assert (expected != 0).any(-1).all()
    below = activation in ("topk_signed", "topk_abs", "identity")
    assert bool((expected < 0).any()) == below
    torch.testing.assert_close(DOORS[door](dictionary, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("features", [FEW[:1], FEW, list(range(M))], ids=len)
@pytest.mark.parametrize("gradients", [False, True])
def test_an_ablation_takes_out_just_what_the_formula_puts_in(activation, cap, features, gradients):
    """At rows of tokens, and at one token alone."""
    dictionary, clip = made(activation, cap), make_clip()
    patch = Patch("vision.1", dictionary, Ablate(features))
    with (
        torch.set_grad_enabled(gradients),
        record(clip, "vision.1") as before,
        patch.attach(clip),
        record(clip, "vision.1") as after,
    ):
        for images in (random(2, 3, 16, 16, seed=7), random(1, 3, 16, 16, seed=8)):
            clip.vision_model(pixel_values=images)
    seen = 0
    for a, b in zip(before.captures, after.captures, strict=True):
        assert b.hidden.requires_grad == gradients
        codes = codes_by_hand(dictionary, a.hidden)[..., features]
        expected = a.hidden - codes @ dictionary.decoder[features]
        torch.testing.assert_close(b.hidden, expected, rtol=1e-4, atol=1e-4)
        seen += int((codes != 0).sum())
    assert seen


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_token_alone_keeps_every_bit_where_the_touched_feature_is_silent(activation):
    dictionary, tokens = made(activation), random(40, D, seed=9)
    silent = torch.tensor([code_by_hand(dictionary, x)[FEW[0]] == 0 for x in tokens])
    assert silent.any() != (activation == "identity")
    splice = Patch("vision.1", dictionary, Ablate(FEW[:1])).bindings[0].splice
    for x, same in zip(tokens.split(1), silent, strict=True):
        assert torch.equal(splice(x), x) == bool(same)
