"""VL-SAE's files, and the norm that its encoder alone reads by; golden files hold the codes."""

import pytest
import torch
from conftest import make_clip

from vlm_edit import (
    Ablate,
    Adapter,
    Dictionary,
    Host,
    Patch,
    Steer,
    VlmEditError,
    load_dictionary,
    record,
)
from vlm_edit.dictionaries import (
    Encoder,
    PairedDictionary,
    TrainConfig,
    save_saelens,
    stored,
    train_dictionary,
)
from vlm_edit.edits import Splice

D, M, K = 12, 48, 7


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(**changes):
    sides = ("vision_decoder", "text_decoder")
    tensors = {f"{side}.weight": random(D, M, seed=i) for i, side in enumerate(sides)}
    tensors |= {f"{side}.bias": random(D, seed=i) for i, side in enumerate(sides)}
    return tensors | {"encoder": random(M, D, seed=5)} | changes


def saved(folder, name="openclip_ViT-B-32_VL_SAE_7_4_best.pth", **changes):
    torch.save(state(**changes), folder / name)
    return folder / name


def codes_by_hand(x):
    """Row by row and feature by feature, in float64."""
    unit = torch.nn.functional.normalize
    rows = unit(state()["encoder"].double(), dim=1)
    codes = []
    for token in unit(x.detach().double().reshape(-1, D), dim=1):
        near = [2 - float((token - row).norm()) for row in rows]
        least = sorted(near)[-K]
        codes.append([value if value >= least else 0.0 for value in near])
    return torch.tensor(codes).float().view(*x.shape[:-1], M)


def test_numbers_of_twice_the_bits_are_read_alike(tmp_path):
    (tmp_path / "wide").mkdir()
    wide = {name: tensor.double() for name, tensor in state().items()}
    x, found = random(5, D), load_dictionary(saved(tmp_path / "wide", **wide))
    torch.testing.assert_close(found.encode(x, "image"), codes_by_hand(x), rtol=1e-4, atol=1e-4)


def test_an_edit_takes_out_of_a_token_what_the_decoder_of_its_stream_writes(tmp_path):
    """The length of the activation changes nothing of what the decoder writes."""
    clip, features = make_clip(), [1, 17, 30]
    found = load_dictionary(saved(tmp_path))
    assert isinstance(found, PairedDictionary)
    patch = Patch("joint", found, Ablate(features))
    patch.save(tmp_path / "patch.safetensors", clip)
    pixels, ids = 9 * random(5, 3, 16, 16, seed=7), torch.randint(3, 60, (5, 7))
    with record(clip, "joint") as before, patch.attach(clip), record(clip, "joint") as after:
        clip(pixel_values=pixels, input_ids=ids)
    seen = set()
    for a, b in zip(before.captures, after.captures, strict=True):
        side = {"image": "vision", "text": "text"}[str(a.tokens.modality)]
        codes = codes_by_hand(a.hidden)[:, features]
        assert codes.any()
        rows = state()[f"{side}_decoder.weight"].T[features]
        torch.testing.assert_close(b.hidden, a.hidden - codes @ rows, rtol=1e-4, atol=1e-4)
        seen.add(side)
    assert seen == {"vision", "text"}


def test_reconstructions_are_as_long_as_what_the_decoder_writes(tmp_path):
    half = load_dictionary(saved(tmp_path)).image
    x = 5 * random(200, D, seed=6)
    back = codes_by_hand(x) @ half.decoder + half.decoder_bias
    torch.testing.assert_close(half.reconstruct(x), back, rtol=1e-4, atol=1e-4)
    assert torch.equal(half.normalise(x), x)
    explained = float(1 - (x - back).square().sum() / (x - x.mean(0)).square().sum())
    assert half.explained_variance(x) == pytest.approx(explained, abs=1e-4)
    assert half.check(x, warn=False).explained_variance == pytest.approx(explained, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 5, 1000])
def test_on_disk_it_encodes_part_after_part_to_the_same(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(stored, "_PART", rows * D)
    x = random(9, D, seed=6)
    lazy = load_dictionary(saved(tmp_path), lazy=True)
    assert torch.equal(lazy.image.normalise(x), x)
    for half in (lazy.image, lazy.text):
        codes = half.encode_sparse(x).dense()
        torch.testing.assert_close(codes, codes_by_hand(x), rtol=1e-5, atol=1e-5)
        assert not half.encode_sparse(torch.zeros(2, D)).values.numel()


@pytest.mark.parametrize(
    ("name", "options", "changes", "message"),
    [
        ("own.pth", {}, {}, "say it with k="),
        ("openclip_ViT-B-32_VL_SAE_7_8_best.pth", {}, {}, r"12 \* 8 features and it holds 48"),
        ("own.pth", {"k": 48}, {}, "k is 48; topk_distance of 48 features needs a smaller one"),
        ("own.pth", {"k": 7}, {"encoder": torch.full((M, D), torch.nan)}, "NaN or infinity"),
        ("own.pth", {"k": 7}, {"text_decoder.bias": torch.zeros(3)}, "decoder bias has shape"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, options, changes, message):
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(saved(tmp_path, name, **changes), **options)


def test_one_of_a_layer_behind_an_auxiliary_autoencoder_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="an auxiliary autoencoder"):
        found = load_dictionary(saved(tmp_path, "llava_7_4_best.pth"))
    assert found.image.encoder.k == K
    found.expect_site("language.30")


def test_an_open_clip_s_is_of_the_joint_embedding(tmp_path):
    found = load_dictionary(saved(tmp_path))
    found.expect_site("joint")
    with pytest.raises(VlmEditError, match="not at 'vision.3'"):
        found.expect_site("vision.3")


def made(**options):
    encoder = Encoder(random(D, M), torch.zeros(M), "relu", norm="unit_read", **options)
    return Dictionary(encoder, random(M, D), torch.zeros(D))


def test_a_norm_of_what_is_read_alone_goes_with_no_centers_and_no_training(tmp_path):
    with pytest.raises(VlmEditError, match="norm 'unit_read' has no centers"):
        made(centers={"image": torch.zeros(D)})
    with pytest.raises(VlmEditError, match="norm 'unit_read' is read from files"):
        config = TrainConfig(n_features=8, k=2, steps=1, norm="unit_read")
        train_dictionary({"image": random(64, D)}, config, progress=False)
    with pytest.raises(VlmEditError, match="normalize_activations for norm 'unit_read'"):
        save_saelens(made(), tmp_path / "sae")


def test_a_dictionary_with_centers_is_checked_without_trying_that_norm():
    centred = Encoder(random(D, M), torch.zeros(M), centers={"image": torch.zeros(D)})
    Dictionary(centred, random(M, D), torch.zeros(D)).check(random(90, D), "image", warn=False)


def test_steering_by_it_is_the_same_for_every_token_and_can_be_baked():
    layer = torch.nn.Linear(4, D)
    host = Host.of(torch.nn.Sequential(layer), adapter=Adapter.of({"joint": ("0", "image", D)}))
    patch, x = Patch("joint", made(), Steer([3], 2.0)), random(5, 4, seed=2)
    steered = layer(x) + 2.0 * random(M, D)[3]
    with patch.attach(host), torch.no_grad():
        torch.testing.assert_close(layer(x), steered)
    assert patch.bake(host).weights == ("0.bias",)
    torch.testing.assert_close(layer(x), steered)


def test_a_gate_compares_what_is_decoded_with_activations_as_long_as_they_are():
    dictionary, x = made(), 20 * random(40, D, seed=3)
    codes = dictionary.encode(x)
    left = (x - codes @ dictionary.decoder).square().sum(-1) / x.square().sum(-1)
    least, most = left.sort().values[19:21]
    least_explained = 1 - float(least + most) / 2
    spliced = Splice.of(dictionary, [Ablate(range(M))], gate=least_explained)(x)
    assert torch.equal((spliced == x).all(-1), left >= most)
