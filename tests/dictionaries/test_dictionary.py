"""Codes against a formula in float64, written from the formats' papers and not from the code."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Ablate, Dictionary, VlmEditError
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Splice
from vlm_edit.ground.modality import Mixed

D, M = 6, 20
ACTIVATIONS = ("relu", "jumprelu", "topk", "identity")
NORMS = ("none", "layer_norm", "constant_norm_rescale")


def make(activation="relu", norm="none", centers=(), subtract=True, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    encoder = Encoder(
        torch.randn(D, M, generator=g),
        torch.randn(M, generator=g),
        activation,
        threshold=torch.randn(M, generator=g) if activation == "jumprelu" else None,
        k=14 if activation == "topk" else None,
        subtract=torch.randn(D, generator=g) * scale if subtract else None,
        norm=norm,
        centers={stream: torch.randn(D, generator=g) * scale for stream in centers},
    )
    return Dictionary(encoder, torch.randn(M, D, generator=g), torch.randn(D, generator=g))


def expected_codes(dictionary, x, center=None):
    """The formula, in float64: norm, center, subtract, product, bias, activation."""
    e, x = dictionary.encoder, x.double()
    if e.norm == "layer_norm":
        mean = x.sum(-1, keepdim=True) / D
        std = ((x - mean).pow(2).sum(-1, keepdim=True) / (D - 1)).sqrt()
        x = (x - mean) / (std + 1e-5)
    elif e.norm == "constant_norm_rescale":
        x = x * D**0.5 / x.pow(2).sum(-1, keepdim=True).sqrt()
    if center is not None:
        x = x - center.double()
    if e.subtract is not None:
        x = x - e.subtract.double()
    h = torch.einsum("...d,dm->...m", x, e.weight.double()) + e.bias.double()
    if e.activation == "identity":
        return h
    z = h.clamp(min=0)
    if e.activation == "jumprelu":
        z = z * (h > e.threshold.double())
    if e.activation == "topk":
        kept = h.argsort(dim=-1, descending=True)[..., : e.k]
        z = z * torch.zeros_like(z).scatter(-1, kept, 1.0)
    return z


@settings(max_examples=60, deadline=None)
@given(
    activation=st.sampled_from(ACTIVATIONS),
    norm=st.sampled_from(NORMS),
    subtract=st.booleans(),
    stream=st.sampled_from([None, "image", "text", "mixed"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_codes_follow_the_formula(activation, norm, subtract, stream, dtype, seed):
    centers = ("image", "text") if stream else ()
    dictionary = make(activation, norm, centers, subtract, seed)
    x = torch.randn(3, 5, D, generator=torch.Generator().manual_seed(seed)).to(dtype)
    image = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) > 0.5
    center = None
    if stream == "mixed":
        center = torch.where(
            image[..., None],
            dictionary.encoder.centers["image"],
            dictionary.encoder.centers["text"],
        )
    elif stream:
        center = dictionary.encoder.centers[stream]
    codes = dictionary.encode(x, Mixed.of(image=image) if stream == "mixed" else stream)
    assert codes.dtype == torch.float32
    expected = expected_codes(dictionary, x, center).float()
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_factor_brings_a_change_of_a_normed_activation_back(activation, norm):
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(3)) * 5 + 2
    dictionary = make(activation, norm)
    normed, scale = dictionary.encoder.normalise(x)
    coded = dictionary.encoder(x)[1]
    if norm == "none":
        assert coded is scale is None
        assert normed is x
        return
    assert torch.equal(coded, scale)
    mean = x.mean(-1, keepdim=True) if norm == "layer_norm" else 0.0
    torch.testing.assert_close(normed * scale + mean, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_slice_gives_the_codes_of_its_features(activation, norm):
    dictionary = make(activation, norm, ("image",))
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    features = [11, 3, 19]
    part = dictionary.slice(features)
    whole = dictionary.encode(x, "image")
    codes, _ = part.codes(x, "image")
    torch.testing.assert_close(codes, whole[:, features])
    assert torch.equal(part.decoder, dictionary.decoder[features])
    assert part.n_features == M
    assert part.encoder.weight.shape[1] == (M if activation == "topk" else 3)


def test_large_means_are_subtracted_before_the_product_and_cost_no_digits():
    dictionary = make("identity", subtract=True, scale=1e4)
    x = dictionary.encoder.subtract + torch.randn(8, D, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        dictionary.encode(x), expected_codes(dictionary, x).float(), rtol=1e-5, atol=1e-5
    )


def test_autocast_changes_neither_encoding_nor_decoding():
    dictionary = make()
    x = torch.randn(4, D)
    codes = dictionary.encode(x)
    decoded = dictionary.decode(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dictionary.encode(x), codes)
        assert torch.equal(dictionary.decode(codes), decoded)


def test_a_code_at_its_threshold_is_zero_and_negative_thresholds_let_nothing_negative_pass():
    encoder = Encoder(
        torch.eye(3), torch.zeros(3), "jumprelu", threshold=torch.tensor([0.5, 0.5, -2.0])
    )
    code, _ = encoder(torch.tensor([[0.5, 0.75, -1.0]]))
    assert code.tolist() == [[0.0, 0.75, 0.0]]


@pytest.mark.parametrize("door", ["encode", "followed", "sparse", "slice", "edit"])
def test_a_code_at_its_threshold_is_zero_by_whatever_door(door):
    threshold = torch.tensor([0.5, 0.5, 0.25])
    encoder = Encoder(torch.eye(3), torch.zeros(3), "jumprelu", threshold=threshold)
    dictionary = Dictionary(encoder, torch.eye(3), torch.zeros(3))
    x = torch.tensor([[0.5, 0.75, 0.25]])
    if door == "encode":
        code = dictionary.encode(x)
    elif door == "followed":
        code = dictionary.encode(x.requires_grad_()).detach()
    elif door == "sparse":
        code = dictionary.encode_sparse(x).dense()
    elif door == "slice":
        code = dictionary.slice([0, 1, 2]).codes(x)[0]
    else:
        code = x - Splice.of(dictionary, [Ablate([0, 1, 2])])(x)
    assert code.tolist() == [[0.0, 0.75, 0.0]]


def test_a_zero_activation_has_a_finite_code_under_every_norm():
    for norm in NORMS:
        assert make(norm=norm).encode(torch.zeros(1, D)).isfinite().all()


def test_raw_neurons_are_themselves():
    x = torch.randn(5, D)
    neurons = Dictionary.identity(D)
    assert torch.equal(neurons.encode(x), x)
    assert torch.equal(neurons.decode(x), x)
    assert (neurons.width, neurons.n_features) == (D, D)


def test_explained_variance_is_one_for_neurons_and_follows_its_formula_otherwise():
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(0)) + 3
    assert Dictionary.identity(D).explained_variance(x) == pytest.approx(1.0)
    dictionary = make(centers=("text",))
    z = (x - dictionary.encoder.centers["text"]).double()
    error = z - (
        expected_codes(dictionary, x, dictionary.encoder.centers["text"])
        @ dictionary.decoder.double()
        + dictionary.decoder_bias
    )
    expected = 1 - error.pow(2).sum() / (z - z.mean(0)).pow(2).sum()
    assert dictionary.explained_variance(x, "text") == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stream", [None, "image", "text", "mixed"])
def test_a_reconstruction_has_norm_and_center_put_back(norm, stream):
    dictionary = make(norm=norm, centers=("image", "text") if stream else ())
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(2)) * 3 + 1
    image = torch.arange(7) % 3 == 0
    found = dictionary.reconstruct(x, Mixed.of(image=image) if stream == "mixed" else stream)
    for i, row in enumerate(x.double()):
        own = ("image" if image[i] else "text") if stream == "mixed" else stream
        center = dictionary.encoder.centers[own].double() if own else torch.zeros(D).double()
        code = expected_codes(dictionary, x[i], center)
        decoded = code @ dictionary.decoder.double() + dictionary.decoder_bias.double() + center
        mean = row.mean() if norm == "layer_norm" else 0.0
        scale = {
            "none": 1.0,
            "layer_norm": float((row - row.mean()).norm()) / (D - 1) ** 0.5,
            "constant_norm_rescale": float(row.norm()) / D**0.5,
        }[norm]
        expected = (decoded * scale + mean).float()
        torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-3)


def test_a_standardised_dictionary_has_the_codes_of_standardised_activations():
    dictionary, x = make(), torch.randn(9, D, generator=torch.Generator().manual_seed(3)) * 5 + 2
    mean, scale = torch.linspace(-2, 2, D), torch.linspace(0.5, 4, D)
    for by in (scale, 0.5):
        z = (x - mean) / by
        moved = dictionary.standardised(mean, by)
        torch.testing.assert_close(
            moved.encode(x), expected_codes(dictionary, z).float(), rtol=1e-3, atol=1e-3
        )
        expected = dictionary.reconstruct(z) * by + mean
        torch.testing.assert_close(moved.reconstruct(x), expected, rtol=1e-3, atol=1e-3)
    for wrong in (0.0, scale * torch.tensor([1.0, 1, 1, 0, 1, 1]), -scale):
        with pytest.raises(VlmEditError, match="every scale must be above 0"):
            dictionary.standardised(mean, wrong)


@pytest.mark.parametrize("feature", [-1, M])
def test_a_feature_that_does_not_exist_is_refused(feature):
    with pytest.raises(VlmEditError, match=rf"feature {feature} is not .* features 0 to {M - 1}"):
        make().slice([0, feature])


def test_a_wrong_width_is_refused_with_both_widths():
    with pytest.raises(VlmEditError, match=rf"width {D + 1} meet a dictionary of width {D}"):
        make().encode(torch.zeros(2, D + 1))


def test_centers_need_to_know_the_stream():
    dictionary = make(centers=("image", "text"))
    with pytest.raises(VlmEditError, match=r"the stream here is None: pass stream='image'"):
        dictionary.encode(torch.zeros(1, D))
    with pytest.raises(VlmEditError, match=r"the stream here is 'mixed': pass stream='image'"):
        dictionary.encode(torch.zeros(1, D), "mixed")
    with pytest.raises(VlmEditError, match=r"it has \['image'\]"):
        make(centers=("image",)).encode(torch.zeros(1, D), "text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(D)}, r"encoder weight must be \[d, m\], got \(6,\)"),
        ({"weight": torch.zeros(D, M).int()}, r"encoder weight is torch.int32; dictionaries are"),
        ({"bias": torch.zeros(M + 1)}, r"encoder bias has shape \(21,\), expected \(20,\)"),
        ({"bias": torch.zeros(M).half()}, r"bias is torch.float16; dictionaries are float32"),
        ({"subtract": torch.zeros(M)}, r"subtract has shape \(20,\), expected \(6,\)"),
        ({"centers": {"sound": torch.zeros(D)}}, "unknown stream 'sound'"),
        ({"centers": {"text": torch.zeros(M)}}, "center of the text stream has shape"),
        ({"norm": "batch_norm"}, "unknown norm 'batch_norm'"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"activation": "jumprelu"}, "threshold goes with"),
        ({"threshold": torch.zeros(M)}, "threshold goes with"),
        ({"activation": "jumprelu", "threshold": torch.zeros(1)}, "threshold has shape"),
        ({"activation": "topk"}, "k goes with"),
        ({"k": 3}, "k goes with"),
        ({"activation": "topk", "k": 0}, "k is 0; it must lie between 1 and the 20 features"),
        ({"activation": "topk", "k": M + 1}, "k is 21"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0; it must be a number above 0"),
        ({"soft_cap": float("inf")}, "soft_cap is inf"),
        ({"soft_cap": float("nan")}, "soft_cap is nan"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(change, message):
    with pytest.raises(VlmEditError, match=message):
        Encoder(**({"weight": torch.zeros(D, M), "bias": torch.zeros(M)} | change))


@pytest.mark.parametrize("activation", ["topk", "topk_signed", "topk_abs", "groupmax"])
def test_where_all_features_stay_none_competes(activation):
    encoder = Encoder(torch.eye(3), torch.zeros(3), activation, k=3)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    signed = activation in ("topk_signed", "topk_abs")
    code = Dictionary(encoder, torch.eye(3), torch.zeros(3)).encode(x)
    assert code.tolist() == [[1.0, -2.0 if signed else 0.0, 0.5]]


@pytest.mark.parametrize(
    "name", ["weight", "bias", "threshold", "subtract", "image", "text", "decoder", "decoder_bias"]
)
def test_a_digest_tells_every_number(name):
    one, other = (make("jumprelu", centers=("image", "text")) for _ in range(2))
    assert one.digest() == other.digest()
    spoiled = other if name.startswith("decoder") else other.encoder
    tensor = other.encoder.centers.get(name)
    tensor = getattr(spoiled, name) if tensor is None else tensor
    tensor.view(-1)[-1] += 1e-3
    assert one.digest() != other.digest()


@pytest.mark.parametrize(
    "change", [{"k": 3}, {"norm": "layer_norm"}, {"soft_cap": 2.0}, {"activation": "topk_abs"}]
)
def test_a_digest_tells_every_option(change):
    one = make("topk")
    assert replace(one, encoder=replace(one.encoder, **change)).digest() != one.digest()


def test_halves_of_different_shapes_are_refused():
    encoder = make().encoder
    with pytest.raises(VlmEditError, match=r"decoder has shape \(6, 20\), expected \(20, 6\)"):
        Dictionary(encoder, torch.zeros(D, M), torch.zeros(D))
    with pytest.raises(VlmEditError, match=r"decoder bias has shape \(20,\)"):
        Dictionary(encoder, torch.zeros(M, D), torch.zeros(M))
