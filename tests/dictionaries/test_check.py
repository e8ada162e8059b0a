"""Checks of dictionaries: numbers by brute force, and causes found on bundled ones broken here."""

import warnings
from dataclasses import replace
from itertools import islice

import pytest
import torch

from recipes.language import activations, shipped_inputs
from vlm_edit import Dictionary, VlmEditError, record, zoo
from vlm_edit.dictionaries import Encoder, TrainConfig, train_dictionary
from vlm_edit.ground.modality import Mixed

ELSEWHERE = "probably come from another layer or another host"


@pytest.fixture(scope="module")
def captured():
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs().select(range(256))
    images = [pairs.open(i) for i in range(len(pairs))]
    inputs = processor(text=list(pairs.texts), images=images, return_tensors="pt", padding=True)
    with torch.no_grad(), record(host, "joint", "vision.2") as recording:
        host(**inputs)
    found = {("joint", s): recording.last("joint", s).hidden for s in ("image", "text")}
    found["vision.2", "image"] = recording.last("vision.2", "image").hidden.flatten(0, -2)[:3000]
    model, processor = zoo.load_llava()
    sites = ["language.0", "language.2"]
    for site, streams in activations(model, sites, islice(shipped_inputs(processor), 1)).items():
        found |= {(site, stream): x[:3000] for stream, x in streams.items()}
    return found


def broken(site, **change):
    dictionary = zoo.load_dictionary(site)
    return replace(dictionary, encoder=replace(dictionary.encoder, **change))


def wants(dictionary, mean, scale):
    """The dictionary whose codes of (x - mean) / scale are this one's of x."""
    scale = torch.as_tensor(scale).expand(dictionary.width)
    encoder = dictionary.encoder
    return replace(
        dictionary,
        encoder=replace(
            encoder,
            weight=encoder.weight * scale[:, None],
            subtract=(encoder.subtract - mean) / scale,
        ),
        decoder=dictionary.decoder / scale,
        decoder_bias=(dictionary.decoder_bias - mean) / scale,
    )


def causes(dictionary, x, stream="image"):
    return dictionary.check(x, stream, warn=False).warnings


@pytest.mark.parametrize(
    ("site", "stream"),
    [
        ("joint", "image"),
        ("joint", "text"),
        ("vision.2", "image"),
        ("language.0", "image"),
        ("language.0", "text"),
        ("language.2", "image"),
        ("language.2", "text"),
    ],
)
@pytest.mark.parametrize("n", [100, 3000])
def test_an_intact_dictionary_warns_of_nothing(captured, site, stream, n):
    x = captured[site, stream][:n]
    dictionary = zoo.load_dictionary(site)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dictionary.check(x, stream)
    assert found.warnings == ()
    assert found.explained_variance == pytest.approx(dictionary.explained_variance(x, stream), 1e-4)
    assert found.explained_variance > 0.7 and found.n == len(x)


@pytest.mark.parametrize(
    ("site", "change", "named"),
    [
        ("joint", {"norm": "none"}, "with norm 'constant_norm_rescale' it would be 0.7"),
        ("language.0", {"norm": "none"}, "with norm 'constant_norm_rescale' it would be 0.8"),
        ("vision.2", {"norm": "layer_norm"}, "with norm 'none' it would be 0.9"),
        ("vision.2", {"norm": "constant_norm_rescale"}, "with norm 'none' it would be 0.9"),
        ("vision.2", {"subtract": None}, "with the decoder's bias subtracted before the encoder"),
        ("language.0", {"centers": {}}, "with the mean of the activations subtracted it would be"),
    ],
)
def test_what_was_read_wrongly_is_named(captured, site, change, named):
    found = causes(broken(site, **change), captured[site, "image"])
    assert len(found) == 1 and named in found[0]


def test_a_bias_that_is_subtracted_and_should_not_be_is_named(captured):
    dictionary, x = zoo.load_dictionary("vision.2"), captured["vision.2", "image"]
    encoder = dictionary.encoder
    bias = encoder.bias - encoder.subtract @ encoder.weight
    without = replace(dictionary, encoder=replace(encoder, subtract=None, bias=bias))
    assert causes(without, x) == ()
    read = replace(without, encoder=replace(without.encoder, subtract=dictionary.decoder_bias))
    assert "with nothing subtracted before the encoder it would be 0.9" in causes(read, x)[0]


def test_a_way_that_explains_hardly_more_is_not_named(captured):
    x = captured["joint", "image"]
    read, own = (broken("joint", norm=n) for n in ("layer_norm", "constant_norm_rescale"))
    better = own.explained_variance(x, "image") - read.explained_variance(x, "image")
    assert 0.002 < better < 0.01 and causes(read, x) == ()


def test_layer_norm_is_named_where_activations_have_means(captured):
    x = captured["joint", "image"]
    x = x + 5 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(0))
    assert causes(broken("joint", norm="layer_norm"), x) == ()
    for norm in ("none", "constant_norm_rescale"):
        assert "with norm 'layer_norm' it would be 0.7" in causes(broken("joint", norm=norm), x)[0]


@pytest.mark.parametrize("factor", [0.01, 0.1, 0.5, 2.0, 10.0])
def test_activations_of_another_scale_are_named(captured, factor):
    found = causes(zoo.load_dictionary("vision.2"), captured["vision.2", "image"] * factor)
    assert "scale" in found[0] and "it would be 0.9" in found[0]
    assert "see Dictionary.standardised" in found[0]
    told = float(found[0].split("multiplied by about ")[1].split()[0])
    assert told == pytest.approx(1 / factor, rel=0.3)


@pytest.mark.slow
def test_how_activations_were_prepared_is_named(captured):
    dictionary, x = zoo.load_dictionary("vision.2"), captured["vision.2", "image"]
    zero, mean, norm = torch.zeros(192), x.mean(0), x.norm(dim=1).mean()
    for (shift, scale), named in {
        (zero, norm / 192**0.5): "activations scaled to norm sqrt(192)",
        (zero, norm): "activations scaled to norm 1 ",
        (mean, (x - mean).std()): "the mean subtracted and activations scaled to deviation 1",
        (mean, x.std(0)): "each dimension brought to mean 0 and deviation 1",
        (mean, 1.0): "the mean of the activations subtracted",
    }.items():
        prepared = wants(dictionary, shift, scale)
        torch.testing.assert_close(
            prepared.standardised(shift, torch.as_tensor(scale)).encode(x[:50]),
            dictionary.encode(x[:50]),
            rtol=1e-3,
            atol=1e-2,
        )
        found = causes(prepared, x)
        assert f"with {named}" in found[0] and "it would be 0.9" in found[0]
        assert "see Dictionary.standardised" in found[0]


def test_a_dimension_that_never_moves_does_not_hide_that_activations_were_standardised(captured):
    dictionary, x = zoo.load_dictionary("vision.2"), captured["vision.2", "image"].clone()
    x[:, 5] = x[0, 5]
    scale = x.std(0)
    scale[5] = 1.0
    found = causes(wants(dictionary, x.mean(0), scale), x)
    assert "each dimension brought to mean 0 and deviation 1" in found[0]


@pytest.mark.parametrize(
    ("site", "stream", "other"),
    [
        ("joint", "text", "image"),
        ("joint", "image", "text"),
        ("language.0", "text", "image"),
        ("language.2", "image", "text"),
    ],
)
def test_the_other_stream_is_named(captured, site, stream, other):
    found = causes(zoo.load_dictionary(site), captured[site, stream], other)
    assert f"with stream={stream!r} it would be" in found[0]


@pytest.mark.slow
@pytest.mark.parametrize("turned", ["encoder", "decoder", "encoder and decoder"])
def test_matrices_the_other_way_round_are_named(turned):
    g = torch.Generator().manual_seed(0)
    codes = torch.rand(4000, 24, generator=g) * (torch.rand(4000, 24, generator=g) < 0.1)
    x = codes @ torch.randn(24, 24, generator=g)
    config = TrainConfig(n_features=24, k=3, steps=600, batch_size=256)
    dictionary = train_dictionary({"image": x}, config, progress=False)
    assert causes(dictionary, x) == ()
    if "encoder" in turned:
        weight = dictionary.encoder.weight.T.contiguous()
        dictionary = replace(dictionary, encoder=replace(dictionary.encoder, weight=weight))
    if "decoder" in turned:
        dictionary = replace(dictionary, decoder=dictionary.decoder.T.contiguous())
    assert (
        f"with {'the ' if turned != 'encoder and decoder' else ''}{turned} transposed"
        in (causes(dictionary, x)[0])
    )


def test_activations_of_another_layer_or_host_are_named(captured):
    mixed = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    for site, x in (
        ("vision.2", captured["vision.2", "image"][:, mixed]),
        ("vision.2", captured["joint", "image"]),
        ("vision.2", captured["language.0", "image"]),
        ("joint", captured["joint", "image"][:, mixed]),
        ("joint", captured["vision.2", "image"]),
    ):
        assert ELSEWHERE in causes(zoo.load_dictionary(site), x)[0]


def test_a_threshold_that_was_never_calibrated_is_named(captured):
    lost = broken("joint", threshold=torch.full((512,), -1.0))
    found = causes(lost, captured["joint", "image"])
    assert len(found) == 1 and "every threshold is -1: it was never calibrated" in found[0]
    learnt = -torch.rand(512)
    assert causes(broken("joint", threshold=learnt), captured["joint", "image"]) == ()


@pytest.mark.parametrize(("k", "warned"), [("16", False), ("5", True), ("60", True), ("x", False)])
def test_l0_is_compared_with_the_k_that_the_file_names(captured, k, warned):
    dictionary = replace(zoo.load_dictionary("joint"), info={"k": k})
    found = causes(dictionary, captured["joint", "image"])
    assert bool(found) is warned
    if warned:
        assert f"and the dictionary was trained for {k}" in found[0]


def test_codes_that_are_dense_or_empty_are_named():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([torch.eye(6), -torch.eye(6)], 1)
    exact = Dictionary(Encoder(weight, torch.zeros(12)), weight.T.contiguous(), torch.zeros(6))
    assert exact.check(x).warnings == ()
    dense = replace(exact, encoder=replace(exact.encoder, bias=torch.full((12,), 0.3)))
    assert "codes are not sparse" in causes(dense, x, None)[0]
    empty = replace(exact, encoder=replace(exact.encoder, bias=torch.full((12,), -1e6)))
    found = empty.check(x, warn=False)
    assert "no feature is active on any of 300 activations" in found.warnings
    assert (found.l0, found.dead) == (0.0, 1.0)


def test_a_large_dead_share_is_named_only_where_the_batch_is_large():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 2, generator=g).abs()
    weight = torch.zeros(2, 60)
    weight[:, :2] = torch.eye(2)
    few = Dictionary(Encoder(weight, torch.zeros(60)), weight.T.contiguous(), torch.zeros(2))
    assert "active on none of 4000 activations" in causes(few, x, None)[0]
    found = few.check(x[:500])
    assert found.warnings == () and found.dead == pytest.approx(58 / 60)


def test_raw_neurons_are_never_wrong(captured):
    x = captured["joint", "image"]
    found = Dictionary.identity(192).check(x)
    assert (found.explained_variance, found.l0, found.dead) == (1.0, 192.0, 0.0)
    assert found.warnings == ()


@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("stream", ["text", "mixed"])
def test_numbers_are_those_of_a_formula_in_float64(dictionary, norm, stream, monkeypatch):
    monkeypatch.setattr("vlm_edit.dictionaries.check._CODES", 40 * 7)  # seven rows at a time
    g = torch.Generator().manual_seed(2)
    x = torch.randn(5, 9, 6, generator=g) * 3 + 100
    image = torch.rand(5, 9, generator=g) > 0.5
    made = dictionary(6)
    centers = {s: torch.randn(6, generator=g) for s in ("image", "text")}
    made = replace(made, encoder=replace(made.encoder, norm=norm, centers=centers))
    found = made.check(x, Mixed.of(image=image) if stream == "mixed" else stream, warn=False)
    z = x.double().reshape(-1, 6)
    if norm == "layer_norm":
        z = (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-5)
    if norm == "constant_norm_rescale":
        z = z * 6**0.5 / z.norm(dim=1, keepdim=True)
    center = torch.where(image.reshape(-1, 1), centers["image"], centers["text"])
    z = z - (center if stream == "mixed" else centers["text"]).double()
    codes = (z - made.encoder.subtract) @ made.encoder.weight.double() + made.encoder.bias
    codes = codes.clamp(min=0)
    error = z - codes @ made.decoder.double() - made.decoder_bias
    explained = 1 - error.pow(2).sum() / (z - z.mean(0)).pow(2).sum()
    assert found.explained_variance == pytest.approx(float(explained), rel=1e-3)
    assert found.l0 == pytest.approx(float((codes > 0).sum(1).double().mean()), abs=0.1)
    assert found.dead == pytest.approx(float((codes == 0).all(0).double().mean()), abs=0.03)
    assert found.n == 45


def test_a_mixed_streams_means_are_taken_apart(captured):
    x = torch.cat([captured["language.0", s][:800] for s in ("image", "text")])
    image = torch.arange(len(x)) < 800
    intact = zoo.load_dictionary("language.0").check(x, Mixed.of(image=image))
    assert intact.warnings == ()
    zeros = {s: torch.zeros(192) for s in ("image", "text")}
    found = broken("language.0", centers=zeros).check(x, Mixed.of(image=image), warn=False)
    told = found.warnings[0].split("with the mean of the activations subtracted it would be ")[1]
    assert float(told[:4]) == pytest.approx(intact.explained_variance, abs=0.02)


def test_half_precision_gives_about_the_same(captured):
    x, dictionary = captured["joint", "text"], zoo.load_dictionary("joint")
    full, half = (dictionary.check(x.to(t), "text") for t in (torch.float32, torch.bfloat16))
    assert half.explained_variance == pytest.approx(full.explained_variance, abs=0.01)


def test_a_check_warns_once_unless_told_not_to_and_prints_itself(captured):
    dictionary, x = zoo.load_dictionary("vision.2"), captured["joint", "image"]
    with pytest.warns(UserWarning, match=ELSEWHERE) as caught:
        found = dictionary.check(x, "image")
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dictionary.check(x, "image", warn=False) == found
    lines = str(found).splitlines()
    assert lines[0] == (
        f"explained variance {found.explained_variance:.3f}, L0 {found.l0:.1f}, "
        f"{found.dead:.1%} of features dead (256 activations)"
    )
    assert lines[1:] == [f"warning: {text}" for text in found.warnings]


@pytest.mark.parametrize(
    ("x", "image", "message"),
    [
        (torch.randn(1, 6), None, "at least two activations that differ, all finite; got 1"),
        (torch.ones(9, 6), None, "at least two activations that differ"),
        (torch.full((2, 6), float("nan")), None, "all finite"),
        (torch.randn(9, 7), None, r"shape \(9, 7\) meet a dictionary of width 6"),
        (torch.tensor(1.0), None, r"shape \(\) meet a dictionary of width 6"),
        (torch.randn(9, 6), torch.ones(8).bool(), r"has shape \(8,\), expected \(9,\)"),
    ],
)
def test_what_cannot_be_checked_is_refused(dictionary, x, image, message):
    with pytest.raises(VlmEditError, match=message):
        dictionary(6).check(x, None if image is None else Mixed.of(image=image))


def test_the_variance_of_activations_far_from_the_origin_keeps_its_digits():
    x = (torch.randint(-3, 4, (500, 4), generator=torch.Generator().manual_seed(0)) + 1e7).float()
    constant = Dictionary(
        Encoder(torch.zeros(4, 2), torch.zeros(2)), torch.zeros(2, 4), torch.full((4,), 1e7 + 2)
    )
    away = x.double() - x.double().mean(0)
    expected = 1 - (x.double() - 1e7 - 2).square().sum() / away.square().sum()
    found = constant.check(x, warn=False).explained_variance
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_a_contrastive_head_is_not_blamed_for_what_it_does_not_explain():
    g = torch.Generator().manual_seed(0)
    streams = {name: torch.randn(200, 64, generator=g) for name in ("image", "text")}
    config = TrainConfig(n_features=6, kind="ncl", steps=20, batch_size=64)
    found = train_dictionary(streams, config, {"site": "joint"}, progress=False)
    assert found.info == {"kind": "ncl", "site": "joint"}

    def told(dictionary):
        return " ".join(dictionary.check(streams["image"], "image", warn=False).warnings)

    assert "explained variance" not in told(found)
    assert "explained variance is" in told(replace(found, info={}))
