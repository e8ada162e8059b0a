"""Transcoders and crosscoders are measured where they read, and named by what they write."""

import pytest
import torch

from vlm_edit import (
    Ablate,
    Dictionary,
    Host,
    Patch,
    VlmEditError,
    load_dictionary,
    load_patch,
    zoo,
)
from vlm_edit.cli import main
from vlm_edit.dictionaries import Encoder, Transcoder, save_saelens
from vlm_edit.hooks import record
from vlm_edit.measuring import collect, load_measurement, loss_recovered, measure
from vlm_edit.measuring.firing import map_site, token_codes

SITE, READ = "language.2.mlp_out", "language.2.mlp_in"
M, D = 24, 192


@pytest.fixture(scope="module")
def host():
    return Host.load("zoo:emoji-llava", device="cpu")


@pytest.fixture(scope="module")
def pairs():
    return zoo.load_pairs().select(range(24))


@pytest.fixture(scope="module")
def transcoder(host, pairs):
    """One that was fitted: random features, and a decoder by least squares."""
    width = host.site(SITE).width
    g = torch.Generator().manual_seed(0)
    both = collect(host, pairs, f"{READ}+{SITE}", progress=False)
    x, y = torch.cat(list(both.values())).split(width, 1)
    encoder = Encoder(torch.randn(width, M, generator=g) / width**0.5, torch.zeros(M))
    codes = Dictionary(encoder, torch.zeros(M, width), torch.zeros(width)).encode(x)
    design = torch.cat([codes, torch.ones(len(codes), 1)], 1)
    solved = torch.linalg.lstsq(design, y).solution
    return Transcoder(
        Dictionary(encoder, solved[:-1].contiguous(), solved[-1]), "mlp_in", "mlp_out"
    )


def test_scores_are_those_of_the_same_codes_where_it_reads(host, pairs, transcoder):
    run = measure(host, pairs, transcoder, SITE, progress=False)
    same = Dictionary(transcoder.inner.encoder, transcoder.inner.decoder, torch.zeros(D))
    there = measure(host, pairs, same, READ, progress=False)
    assert run.site == SITE
    assert torch.equal(run.dominance.scores, there.dominance.scores)
    assert torch.equal(run.examples["image"].numbers, there.examples["image"].numbers)
    chosen = run.dominance.classes()
    assert sum(map(len, chosen.values())) <= M


def test_a_run_is_kept_and_its_features_are_edited_where_they_write(
    host, pairs, transcoder, tmp_path
):
    run = measure(host, pairs, transcoder, SITE, progress=False)
    run.save(tmp_path / "run")
    back = load_measurement(tmp_path / "run")
    patch = Patch(back.site, transcoder, Ablate([1, 2]), tokens="image")
    assert [binding.site for binding in patch.bindings] == [SITE]
    other = Transcoder(transcoder.inner, "mid", "mlp_out")
    assert other.digest() != transcoder.digest()


def test_activations_side_by_side_are_collected_and_checked(host, pairs, transcoder):
    both = collect(host, pairs, transcoder.places(SITE).both, progress=False)
    read, written = (collect(host, pairs, name, progress=False) for name in (READ, SITE))
    for stream in ("image", "text"):
        assert torch.equal(both[stream], torch.cat([read[stream], written[stream]], 1))
    report = transcoder.check(both["image"], "image", warn=False)
    y = written["image"].double()
    error = (y - transcoder.predict(read["image"]).double()).square().sum()
    expected = 1 - error / (y - y.mean(0)).square().sum()
    assert report.explained_variance == pytest.approx(float(expected), abs=1e-5)
    assert report.explained_variance > 0.1


def test_the_loss_is_that_of_its_prediction_in_the_mlp_s_place(host, pairs, transcoder):
    some = pairs.select(range(8))
    loss = loss_recovered(host, transcoder, SITE, some)
    mlp = host.site(f"{READ[:-3]}").taps[0].module  # by hand: the module itself
    seen = {}

    def keep(_module, args):
        seen["x"] = args[0]

    def put(_module, _args, _output):
        return transcoder.predict(seen["x"])

    inner = host.root.model.language_model.layers[2].mlp
    assert mlp is inner
    handles = [inner.register_forward_pre_hook(keep), inner.register_forward_hook(put)]
    try:
        replaced = loss_recovered(host, transcoder, SITE, some)
    finally:
        for handle in handles:
            handle.remove()
    assert loss.reconstructed == pytest.approx(replaced.plain, rel=1e-5)
    assert loss.plain < loss.reconstructed


def test_where_a_feature_fires_is_told_token_by_token(host, pairs, transcoder):
    some = pairs.select(range(4))
    coded = list(token_codes(host, some, transcoder, SITE, progress=False))
    with record(host, READ) as recording:
        for one in range(4):
            inputs = host.inputs([some.open(one)], [some.texts[one]])
            with torch.no_grad():
                host(**inputs.values)
    for told, capture in zip(coded, recording.captures, strict=True):
        expected = transcoder.encode(capture.hidden[0])[capture.tokens.modality.at("image")[0]]
        torch.testing.assert_close(told.codes["image"].dense(), expected, atol=1e-4, rtol=1e-3)


def test_maps_of_a_tower_s_are_where_it_reads(pairs):
    clip, some = Host.load("zoo:emoji-clip", device="cpu"), pairs.select(range(3))
    width = clip.site("vision.1").width
    inner = Dictionary.identity(width)
    there = map_site(clip, some, inner, "vision.1.mlp_in", features=[0, 1], progress=False)
    mapped = map_site(
        *(clip, some, Transcoder(inner, "mlp_in", "mlp_out"), "vision.1.mlp_out"),
        features=[0, 1],
        progress=False,
    )
    assert len(mapped) == len(there) > 0
    assert torch.equal(mapped.features, there.features)
    assert torch.equal(mapped.values["image"], there.values["image"])
    torch.testing.assert_close(mapped.boxes[0], there.boxes[0], equal_nan=True)


def test_a_crosscoder_is_measured_over_its_layers(host, pairs):
    g = torch.Generator().manual_seed(1)
    encoder = Encoder(torch.randn(2 * D, M, generator=g) / 20, torch.zeros(M))
    inner = Dictionary(encoder, torch.randn(M, 2 * D, generator=g), torch.zeros(2 * D))
    crosscoder = Transcoder(inner, "", "", parts=2)
    run = measure(host, pairs, crosscoder, "language.1+language.3", progress=False)
    streams = collect(host, pairs, "language.1+language.3", progress=False)
    codes = crosscoder.encode(streams["image"])
    assert codes.shape[1] == len(run.dominance.scores) == M
    with pytest.raises(VlmEditError, match="is several sites side by side"):
        loss_recovered(host, crosscoder, "language.1+language.3", pairs)


def test_the_command_line_checks_measures_and_edits_one(host, transcoder, tmp_path, capsys):
    del host
    folder, run = tmp_path / "transcoder", tmp_path / "run"
    save_saelens(transcoder, folder)
    assert load_dictionary(folder).places(SITE) == transcoder.places(SITE)
    named = ["zoo:emoji-llava", "zoo:pairs", "--site", SITE, "--dictionary", str(folder)]
    assert main(["check", *named, "--most", "4"]) in (0, 1)
    shown = capsys.readouterr().out
    assert "explained variance" in shown
    assert main(["measure", *named, "--out", str(run)]) == 0
    assert load_measurement(run).site == SITE
    patch = tmp_path / "patch.safetensors"
    edit = ["edit", *named, "--features", "1,2", "--shown", "1", "--ask", "what is it?"]
    assert main([*edit, "--save", str(patch)]) == 0
    assert load_patch(patch).bindings[0].reads == (READ,)
    assert f"{SITE}" in capsys.readouterr().out
