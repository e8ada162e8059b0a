"""Dictionaries that read some places and write others, held to their formulas in float64."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from vlm_edit import Dictionary, VlmEditError, load_dictionary
from vlm_edit.dictionaries import Encoder, Transcoder, save_saelens, written
from vlm_edit.dictionaries.formats.blocks import Block, BlockRows
from vlm_edit.dictionaries.formats.places import place_of
from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost

D, M = 6, 10


def made(seed=0, parts=1, activation="relu", skips=False, **options):
    g = torch.Generator().manual_seed(seed)
    width = D * parts
    encoder = Encoder(
        torch.randn(width, M, generator=g),
        torch.randn(M, generator=g),
        activation,
        k=3 if activation == "topk" else None,
    )
    inner = Dictionary(encoder, torch.randn(M, width, generator=g), torch.randn(width, generator=g))
    skip = torch.randn(width, width, generator=g) if skips else None
    ends = options.pop("ends", ("mlp_in", "mlp_out") if parts == 1 else ("", ""))
    return Transcoder(replace(inner, info=options), *ends, parts=parts, skip=skip)


@pytest.mark.parametrize("skips", [False, True])
def test_it_predicts_what_its_formula_does(skips):
    found, x = made(skips=skips), torch.randn(7, D)
    e, inner = found.inner.encoder, found.inner
    codes = (x.double() @ e.weight.double() + e.bias.double()).relu()
    expected = codes @ inner.decoder.double() + inner.decoder_bias.double()
    expected = expected + (x.double() @ found.skip.double() if skips else 0)
    torch.testing.assert_close(found.predict(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.encode(x).double(), codes, rtol=1e-5, atol=1e-5)


def test_its_places_are_named_by_what_it_writes():
    assert made().places("language.3.mlp_out") == (("language.3.mlp_in",), ("language.3.mlp_out",))
    assert made().read_at("language.3.mlp_out") == "language.3.mlp_in"
    both = made(parts=2).places("language.1+language.3")
    assert both.reads == both.writes == ("language.1", "language.3")
    crossing = made(parts=2, ends=("mid", "mlp_out"))
    assert crossing.read_at("text.0.mlp_out+text.1.mlp_out") == "text.0.mid+text.1.mid"


@pytest.mark.parametrize(
    ("transcoder", "site", "error", "message"),
    [
        (made(), "language.3", WrongHost, "name what it writes, such as 'language.3.mlp_out'"),
        (made(), "text.3.mlp", WrongHost, "is not at 'text.3.mlp': .* such as 'text.3.mlp_out'"),
        (made(parts=2), "language.3", WrongHost, "such as 'language.0\\+language.1'"),
        (made(parts=2), "language.3+language.1", WrongHost, "in the order of a forward"),
        (made(parts=2), "language.3+language.3", WrongHost, "names a site twice"),
        (made(parts=2, layers="1, 3"), "language.1+language.4", WrongHost, "at the layers 1, 3"),
        (made(layer="4"), "language.3.mlp_out", WrongHost, "trained at layer 4, not at"),
        (made(ends=(None, "mlp"), hook_name="blocks.3.ln2"), "a", CannotKnow, "'blocks.3.ln2' is"),
    ],
)
def test_another_place_is_refused_with_what_to_name(transcoder, site, error, message):
    with pytest.raises(error, match=message):
        transcoder.expect_site(site)


@pytest.mark.parametrize(
    ("info", "site", "message"),
    [
        ({"hook_name": "layers.3.mlp"}, "language.1.mlp_out", "at 'layers.3.mlp', not at 'langu"),
        ({"hook_name": "blocks.3.ln2.hook_normalized"}, "vision.1.mlp_out", "hook_normalized'"),
        ({"hook_name": "hook_resid_mid", "layer": "3"}, "language.1.mlp_out", "at layer 3 of"),
        ({"hook_name": "vision_tower.layers.3.mlp"}, "language.3.mlp_out", "vision_tower.layers"),
        ({"hook_name": "vision_tower.mlp"}, "language.3.mlp_out", "trained at 'vision_tower.mlp'"),
        ({"site": "language.3.mlp_out"}, "language.1.mlp_out", "at site 'language.3.mlp_out', not"),
        ({"hook_name": "layers.3.mlp"}, "text_encoder.text.1.mlp_out", "not at 'text_encoder"),
    ],
)
def test_whatever_says_its_layer_or_tower_is_held_to_the_site(info, site, message):
    with pytest.raises(WrongHost, match=message) as caught:
        made(**info).expect_site(site)
    assert str(caught.value).endswith("(transcoder.inner, info={})) lets it through")
    found = made(**info)
    replace(found, inner=replace(found.inner, info={})).expect_site(site)


@pytest.mark.parametrize(
    ("info", "site"),
    [
        ({"hook_name": "layers.3.mlp"}, "language.3.mlp_out"),
        ({"hook_name": "layers.3.mlp"}, "text_encoder.text.3.mlp_out"),
        ({"hook_name": "model.layers.3.pre_feedforward_layernorm.output"}, "language.3.mlp_out"),
        ({"hook_name": "vision_tower.layers.3.mlp"}, "vision.3.mlp_out"),
        ({"hook_name": "mlp.hook_in"}, "language.1.mlp_out"),
        ({"site": "language.3.mlp_out", "hook_name": "layers.7"}, "language.3.mlp_out"),
        ({"site": "text.3.mlp_out"}, "text_encoder.text.3.mlp_out"),
        ({"site": "language.3.mlp_in+language.3.mlp_out"}, "language.3.mlp_out"),
    ],
)
def test_the_site_that_it_says_passes(info, site):
    made(**info).expect_site(site)


def test_of_several_layers_the_tower_is_held_to_each_site_and_of_outputs_what_enters_is_before():
    both = made(parts=2, hook_name="vision_model.layers.5.mlp")
    both.expect_site("vision.1+vision.3")  # the number is of one layer
    with pytest.raises(WrongHost, match="not at 'vision.1\\+language.3'"):
        both.expect_site("vision.1+language.3")
    entering = made(ends=("", ""), hook_name="blocks.4.hook_resid_pre", layer="4")
    entering.expect_site("language.3")
    with pytest.raises(WrongHost, match="not at 'language.4'"):
        entering.expect_site("language.4")


def test_a_number_beside_no_hook_tells_nothing_of_a_joint_embedding():
    made(ends=("", ""), layer="4").expect_site("joint")


def test_what_does_not_fit_together_is_refused():
    inner = made().inner
    with pytest.raises(BadArgument, match="4 parts of one width are not 6 wide"):
        Transcoder(inner, "", "", parts=4)
    with pytest.raises(BadArgument, match=r"skip has shape \(3, 3\), expected \(6, 6\)"):
        Transcoder(inner, "a", "b", skip=torch.eye(3))
    normed = replace(inner, encoder=replace(inner.encoder, norm="layer_norm"))
    assert Transcoder(normed, "a", "b").width == D
    with pytest.raises(BadArgument, match="'layer_norm' is of one place, and this reads 2"):
        Transcoder(normed, "", "", parts=2)


def test_a_check_is_of_what_is_written():
    found, x = made(skips=True), torch.randn(300, D)
    y = found.predict(x) + torch.randn(300, D)
    report = found.check(torch.cat([x, y], 1))
    error = (y - found.predict(x)).double().square().sum()
    spread = (y.double() - y.double().mean(0)).square().sum()
    assert report.explained_variance == pytest.approx(float(1 - error / spread), abs=1e-6)
    assert report.l0 == pytest.approx(float((found.encode(x) != 0).float().sum(1).mean()))
    assert report.n == 300
    with pytest.warns(UserWarning, match="it was trained on another layer or host, or on other"):
        found.check(torch.cat([y, x], 1))
    with pytest.raises(BadArgument, match="give both end to end, 12 wide, not 6"):
        found.check(x)
    assert made(parts=2).check(torch.randn(50, 2 * D), warn=False).n == 50
    with pytest.raises(BadArgument, match="at least two"):
        found.check(torch.randn(1, 2 * D))
    with pytest.raises(BadArgument, match="all that is written is the same"):
        found.check(torch.cat([x, torch.ones(300, D)], 1))


def test_any_other_part_makes_another_digest():
    first = made(skips=True)
    others = [made(), made(1, skips=True), replace(first, reads="mid"), replace(first, parts=2)]
    others.append(replace(first, skip=first.skip + 1))
    digests = {found.digest() for found in [first, *others]}
    assert len(digests) == 6
    assert first.load().digest() == first.digest() == replace(first).digest()


def test_writing_leaves_the_other_places_as_they_are():
    both, x = made(parts=2, skips=True), torch.randn(4, 2 * D)
    last = both.writing(-1)
    assert torch.equal(last.encode(x), both.encode(x))
    whole, half = both.predict(x), last.predict(x)
    assert not half[:, :D].any()
    torch.testing.assert_close(half[:, D:], whole[:, D:])
    assert torch.equal(both.writing(0, 1).predict(x), whole)
    with pytest.raises(BadArgument, match=r"\(2,\) are no places of 2"):
        both.writing(2)


def test_what_is_on_another_device_can_write_some_places_alone(tmp_path):
    last = made(parts=2, skips=True).to("meta").writing(-1)
    assert {last.inner.decoder.device.type, last.skip.device.type} == {"meta"}
    save_saelens(made(skips=True), tmp_path)
    lazy = load_dictionary(tmp_path, lazy=True).to("meta").writing(0)  # its rows stay on disk
    assert (lazy.skip.device.type, lazy.inner.decoder_bias.device.type) == ("meta", "cpu")


def test_a_slice_is_cut_where_its_features_write_and_by_what_they_read():
    both = made(parts=3)
    weight, decoder = both.inner.encoder.weight.clone(), both.inner.decoder.clone()
    weight[D:, 4], decoder[4, :D] = 0, 0  # reads the first, writes the others
    weight[:D, 5], weight[2 * D :, 5], decoder[5, : 2 * D] = 0, 0, 0  # reads 2nd, writes 3rd
    inner = replace(both.inner, encoder=replace(both.inner.encoder, weight=weight), decoder=decoder)
    cuts = written(inner.slice([4, 5]), 3, coded=True, mixed=False)
    assert [(cut.part, cut.reads) for cut in cuts] == [(1, (0,)), (2, (0, 1))]
    x = torch.randn(8, 3 * D)
    codes = inner.encode(x)[:, [4, 5]]
    torch.testing.assert_close(cuts[1].slice.codes(x[:, : 2 * D])[0], codes)
    torch.testing.assert_close(cuts[0].slice.codes(x[:, :D])[0][:, 0], codes[:, 0])
    assert torch.equal(cuts[1].slice.decoder, decoder[[4, 5], 2 * D :])
    with pytest.raises(BadArgument, match="write at place 1 of 3 and read at place 2"):
        written(both.inner.slice([0]), 3, coded=True, mixed=False)
    assert [cut.reads for cut in written(both.inner.slice([0], codes=False), 3, False, False)] == [
        ()
    ] * 3


def test_where_features_compete_all_places_must_be_known():
    both = made(parts=2, activation="topk")
    weight = both.inner.encoder.weight.clone()
    weight[D:, 4] = 0
    inner = replace(both.inner, encoder=replace(both.inner.encoder, weight=weight))
    with pytest.raises(BadArgument, match="read at place 2"):
        written(inner.slice([4]), 2, coded=True, mixed=False)


def test_it_says_what_it_is():
    assert repr(made()) == "Transcoder(mlp_in to mlp_out, 10 features, width 6, relu)"
    assert "a layer of 2 layers" in repr(made(parts=2))
    assert "from" in made()._repr_html_()
    assert made().summary()["way"] == "mlp_in to mlp_out"


def test_what_needs_one_place_refuses_it():
    from vlm_edit import Host, zoo
    from vlm_edit.measuring import census
    from vlm_edit.selection import effects

    host = Host.of(*zoo.load_host())
    for act in (
        lambda: effects(host, {}, made(), lambda y: y, "text.0.mlp_out"),
        lambda: census(host, zoo.load_pairs(), made(), "text.0.mlp_out"),
    ):
        with pytest.raises(VlmEditError, match="is for dictionaries of one place; this is Trans"):
            act()


def test_blocks_of_rows_lie_where_they_are_said_to_and_take_factors():
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(3, 2, generator=g), torch.randn(2, 4, generator=g)
    whole = torch.zeros(5, 6)
    whole[:3, 2:4], whole[3:, :4] = first, second
    rows = BlockRows.of([Block(first, 2), Block(second, 0)], 6)
    assert torch.equal(rows.take(), whole)
    assert torch.equal(rows.take([4, 0, 3]), whole[[4, 0, 3]])
    gain, scale = torch.rand(5, generator=g) + 1, torch.tensor([1.0, 1, 1, 0, 0, 0])
    scaled = replace(rows, gain=gain, scale=scale)
    torch.testing.assert_close(scaled.take([1, 4]), (whole * gain[:, None] * scale)[[1, 4]])
    unit = replace(rows, unit=True).take().norm(dim=1)
    torch.testing.assert_close(unit, torch.ones(5))
    with pytest.raises(VlmEditError, match="does not fit 6 columns"):
        BlockRows.of([Block(first, 5)], 6)


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.3.mlp.hook_in", "mlp_in"),
        ("blocks.3.mlp.hook_out", "mlp"),
        ("blocks.3.hook_mlp_out", "mlp_out"),
        ("hook_resid_mid", "mid"),
        ("blocks.3.hook_resid_post", ""),
        ("model.layers.3.pre_feedforward_layernorm.output", "mlp_in"),
        ("model.layers.3.post_feedforward_layernorm.output", "mlp_out"),
        ("blocks.3.hook_mlp_in", None),
        (None, None),
    ],
)
def test_hooks_of_others_are_places_of_ours_where_that_is_sure(hook, place):
    assert place_of(hook) == place


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_what_is_saved_is_read_again(tmp_path, activation, skips):
    found = made(skips=skips, layer="4", model_name="owner/name")
    threshold = torch.rand(M) if activation == "jumprelu" else None
    options = {"activation": activation, "threshold": threshold, "subtract": torch.randn(D)}
    encoder = replace(found.inner.encoder, **options)
    found = replace(found, inner=replace(found.inner, encoder=encoder), writes="mlp")
    save_saelens(found, tmp_path)
    back, x = load_dictionary(tmp_path), torch.randn(9, D)
    torch.testing.assert_close(back.predict(x), found.predict(x), rtol=1e-5, atol=1e-5)
    assert (back.reads, back.writes) == ("mlp_in", "mlp")
    assert back.info == {"layer": "4", "model_name": "owner/name"}
    expected = f"{'jumprelu_' if activation == 'jumprelu' else ''}{'skip_' if skips else ''}"
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["architecture"] == f"{expected}transcoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": 2}, "no architecture that reads 2 layers"),
        ({"norm": "layer_norm"}, "no transcoder with activation 'relu' and norm 'layer_norm'"),
        ({"centers": {"image": torch.zeros(D), "text": torch.ones(D)}}, "have no centers"),
    ],
)
def test_what_sae_lens_has_no_transcoder_for_is_not_saved(tmp_path, change, message):
    found = made(parts=change.pop("parts", 1))
    encoder = replace(found.inner.encoder, **change)
    with pytest.raises(BadArgument, match=message):
        save_saelens(replace(found, inner=replace(found.inner, encoder=encoder)), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_four_tensors_of_a_layer_are_a_transcoder_only_where_something_says_so(tmp_path):
    tensors = {"W_enc": torch.randn(M, D), "W_dec": torch.randn(M, D)}
    tensors |= {"b_enc": torch.zeros(M), "b_dec": torch.zeros(D)}
    save_file(tensors, tmp_path / "layer_3.safetensors")
    with pytest.raises(VlmEditError, match="the format of .* is not known"):
        load_dictionary(tmp_path / "layer_3.safetensors")
    save_file(tensors | {"W_skip": torch.eye(D)}, tmp_path / "layer_4.safetensors")
    found = load_dictionary(tmp_path / "layer_4.safetensors")
    assert (found.reads, found.info["layer"]) == (None, "4")
    hooks = 'feature_input_hook: "hook_resid_mid"\nfeature_output_hook: "hook_mlp_out"\n'
    (tmp_path / "config.yaml").write_text(hooks)
    found = load_dictionary(tmp_path / "layer_3.safetensors")
    assert (found.reads, found.writes) == ("mid", "mlp_out")
    with pytest.raises(VlmEditError, match="say which with file=, such as 'layer_3.safetensors'"):
        load_dictionary(tmp_path)
