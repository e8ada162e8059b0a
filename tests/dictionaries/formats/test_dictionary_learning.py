"""dictionary_learning's seven classes: files written here, formulas written by hand in float64."""

import json
import time

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary

SIZES = [(6, 10), (8, 8)]
CLASSES = [
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
]
COUNTED = CLASSES[4:]
K, HEIGHT = 3, 1.7


def tensors(kind, d=6, m=10):
    """A state dict of a class, in the order of its buffers and parameters."""
    torch.manual_seed(d)
    encoder, decoder = torch.randn(m, d), torch.randn(d, m)
    of_m, of_d = torch.randn(m), 2 * torch.randn(d)
    linear = {"encoder.weight": encoder, "encoder.bias": of_m, "decoder.weight": decoder}
    plain = {"W_enc": encoder.T.clone(), "b_enc": of_m, "W_dec": decoder.T.clone(), "b_dec": of_d}
    counted = {
        "k": torch.tensor(K, dtype=torch.int),
        "threshold": torch.tensor(HEIGHT),
    }
    return {
        "AutoEncoder": linear | {"bias": of_d},
        "AutoEncoderNew": linear | {"decoder.bias": of_d},
        "GatedAutoEncoder": {
            "decoder_bias": of_d,
            "encoder.weight": encoder,
            "r_mag": torch.randn(m),
            "gate_bias": torch.randn(m),
            "mag_bias": of_m,
            "decoder.weight": decoder,
        },
        "JumpReluAutoEncoder": plain | {"threshold": 2 * torch.rand(m)},
        "AutoEncoderTopK": counted | linear | {"b_dec": of_d},
        "BatchTopKSAE": counted | linear | {"b_dec": of_d},
        "MatryoshkaBatchTopKSAE": counted | {"group_sizes": torch.tensor([2, m - 2])} | plain,
    }[kind]


def write(folder, kind, state=None, name="ae.pt", trainer=None, d=6, m=10):
    """A training's folder, as ``trainSAE`` leaves it."""
    state = tensors(kind, d, m) if state is None else state
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / name)
    told = {
        "trainer_class": "ATrainer",
        "dict_class": kind,
        "activation_dim": d,
        "dict_size": m,
        "layer": 11,
        "lm_name": "owner/host",
        "submodule_name": "resid_post_layer_11",
    }
    told |= {"k": K} if kind in COUNTED else {}
    (folder / "config.json").write_text(json.dumps({"trainer": told | (trainer or {})}))
    return folder


def topk(h):
    kept = h.argsort(dim=-1, descending=True)[..., :K]
    return h.clamp(min=0) * torch.zeros_like(h).scatter(-1, kept, 1.0)


def formula(kind, s, x):
    """Codes and reconstruction in float64."""
    s = {name: t.double() for name, t in s.items()}
    x = x.double()
    if kind == "GatedAutoEncoder":
        h = torch.einsum("nd,md->nm", x - s["decoder_bias"], s["encoder.weight"])
        magnitude = h * s["r_mag"].exp() + s["mag_bias"]
        z = magnitude.clamp(min=0) * (h + s["gate_bias"] > 0)
        return z, torch.einsum("nm,dm->nd", z, s["decoder.weight"]) + s["decoder_bias"]
    if "W_enc" in s:
        given = x if kind == "JumpReluAutoEncoder" else x - s["b_dec"]
        h = torch.einsum("nd,dm->nm", given, s["W_enc"]) + s["b_enc"]
        z = (h * (h > s["threshold"])).clamp(min=0)
        return z, torch.einsum("nm,md->nd", z, s["W_dec"]) + s["b_dec"]
    center = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
    given = x if kind == "AutoEncoderNew" else x - s[center]
    h = torch.einsum("nd,md->nm", given, s["encoder.weight"]) + s["encoder.bias"]
    z = h.clamp(min=0)
    if kind == "AutoEncoderTopK":
        z = topk(h)
    if kind == "BatchTopKSAE":
        z = z * (z > s["threshold"])
    return z, torch.einsum("nm,dm->nd", z, s["decoder.weight"]) + s[center]


def some(d, n=40):
    return 3 * torch.randn(n, d, generator=torch.Generator().manual_seed(9)) + 1


@pytest.mark.parametrize(("d", "m"), SIZES)
@pytest.mark.parametrize("kind", CLASSES)
def test_codes_and_reconstruction_follow_the_classs_formula(tmp_path, kind, d, m):
    write(tmp_path, kind, d=d, m=m)
    x = some(d)
    codes, back = formula(kind, tensors(kind, d, m), x)
    dictionary = load_dictionary(tmp_path)
    torch.testing.assert_close(dictionary.encode(x), codes.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dictionary.reconstruct(x), back.float(), rtol=1e-4, atol=1e-4)
    assert (dictionary.width, dictionary.n_features) == (d, m)
    assert 0 < int((codes == 0).sum()) < codes.numel()
    part = load_dictionary(tmp_path, lazy=True).slice([m - 1, 0, 4])
    torch.testing.assert_close(
        part.codes(x)[0], codes[:, [m - 1, 0, 4]].float(), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(part.decoder, dictionary.decoder[[m - 1, 0, 4]])


@pytest.mark.parametrize("kind", [k for k in CLASSES if k not in COUNTED[:2]])
def test_a_file_alone_is_told_by_its_tensors(tmp_path, kind):
    torch.save(tensors(kind), tmp_path / "ae.pt")
    x = some(6)
    for path in (tmp_path, tmp_path / "ae.pt"):
        codes = load_dictionary(path).encode(x)
        torch.testing.assert_close(codes, formula(kind, tensors(kind), x)[0].float())


def test_the_forks_spelling_and_empty_names_are_read(tmp_path):
    empty = {"lm_name": "", "layer": "", "submodule_name": ""}
    kind = "MatryoshkaBatchTopKSAE"
    write(tmp_path, kind, trainer=empty | {"dict_class": "MatroyshkaBatchTopKSAE"})
    dictionary = load_dictionary(tmp_path)
    x = some(6)
    torch.testing.assert_close(dictionary.encode(x), formula(kind, tensors(kind), x)[0].float())
    assert dictionary.info == {"k": "3"}


def test_what_it_was_trained_on_is_carried(tmp_path):
    origin = {"model_name": "owner/host", "hook_name": "resid_post_layer_11", "layer": "11"}
    assert load_dictionary(write(tmp_path, "AutoEncoder")).info == origin
    write(tmp_path, "AutoEncoder", trainer={"submodule_name": None, "layer": 0})
    assert load_dictionary(tmp_path).info == {"model_name": "owner/host", "layer": "0"}


def test_a_topk_and_a_batch_topk_have_the_same_tensors_and_must_be_told_apart(tmp_path):
    torch.save(tensors("BatchTopKSAE"), tmp_path / "ae.pt")
    with pytest.raises(VlmEditError, match="could be of AutoEncoderTopK or BatchTopKSAE, whose"):
        load_dictionary(tmp_path)
    x, state = some(6), tensors("BatchTopKSAE")
    for activation, kind in (("topk", "AutoEncoderTopK"), ("jumprelu", "BatchTopKSAE")):
        codes = load_dictionary(tmp_path, activation=activation).encode(x)
        torch.testing.assert_close(codes, formula(kind, state, x)[0].float())
    with pytest.raises(VlmEditError, match=r"has activation 'jumprelu' .* not 'relu'"):
        load_dictionary(tmp_path, activation="relu")


@pytest.mark.parametrize("kind", COUNTED)
def test_the_other_way_of_choosing_codes_may_be_asked_for(tmp_path, kind):
    write(tmp_path, kind)
    codes = load_dictionary(tmp_path, activation="topk").encode(some(6))
    assert int((codes > 0).sum(1).max()) == K
    high = load_dictionary(tmp_path, activation="jumprelu").encode(some(6))
    assert float(high[high > 0].min()) > HEIGHT and int((high > 0).sum(1).max()) > K


@pytest.mark.parametrize("kind", COUNTED[1:])
def test_a_threshold_that_was_never_calibrated_is_refused(tmp_path, kind):
    state = tensors(kind) | {"threshold": torch.tensor(-1.0)}
    write(tmp_path, kind, state)
    with pytest.raises(VlmEditError, match=r"threshold of this .* is -1.0: it was never calib"):
        load_dictionary(tmp_path)
    with pytest.raises(VlmEditError, match="threshold of this .* is -1.0"):
        load_dictionary(tmp_path, threshold=-1.0)
    assert load_dictionary(tmp_path, activation="topk").encoder.k == K
    found = load_dictionary(tmp_path, threshold=0.5).encoder.threshold
    assert found.tolist() == [0.5] * 10
    assert load_dictionary(tmp_path, threshold=0.0).encoder.threshold.tolist() == [0.0] * 10


def test_a_threshold_of_zero_was_calibrated(tmp_path):
    state = tensors("BatchTopKSAE") | {"threshold": torch.tensor(0.0)}
    write(tmp_path, "BatchTopKSAE", state)
    assert float(load_dictionary(tmp_path).encoder.threshold.max()) == 0.0


def test_a_threshold_that_the_file_keeps_or_that_nobody_reads_may_not_be_given(tmp_path):
    write(tmp_path, "BatchTopKSAE")
    with pytest.raises(VlmEditError, match=r"ae.pt keeps its threshold, 1.7\d*: leave it out"):
        load_dictionary(tmp_path, threshold=0.5)
    with pytest.raises(VlmEditError, match="activation 'topk' has no threshold: leave it out"):
        load_dictionary(tmp_path, activation="topk", threshold=0.5)


def test_first_files_without_buffers_take_k_from_the_config_or_the_user(tmp_path):
    state = {k: v for k, v in tensors("AutoEncoderTopK").items() if k not in ("k", "threshold")}
    write(tmp_path, "AutoEncoderTopK", state)
    assert load_dictionary(tmp_path).encoder.k == K
    (tmp_path / "config.json").unlink()
    with pytest.raises(VlmEditError, match="neither ae.pt nor config.json keeps k: pass k="):
        load_dictionary(tmp_path, activation="topk")
    assert load_dictionary(tmp_path, activation="topk", k=2).encoder.k == 2
    with pytest.raises(VlmEditError, match="threshold of this BatchTopKSAE is missing"):
        load_dictionary(tmp_path, activation="jumprelu")


def test_k_that_differs_between_its_places_is_refused(tmp_path):
    write(tmp_path, "AutoEncoderTopK", trainer={"k": 4})
    with pytest.raises(VlmEditError, match=r"k differs \(ae.pt 3, config.json 4\)"):
        load_dictionary(tmp_path)
    write(tmp_path, "AutoEncoderTopK")
    with pytest.raises(VlmEditError, match=r"k differs \(ae.pt 3, .* the argument 5\)"):
        load_dictionary(tmp_path, k=5)


@pytest.mark.parametrize("kind", CLASSES[:4])
def test_classes_without_k_may_not_be_told_anything(tmp_path, kind):
    write(tmp_path, kind)
    with pytest.raises(VlmEditError, match=f"{kind} keeps k itself or has none: leave it out"):
        load_dictionary(tmp_path, k=3)


def test_a_trainers_config_says_autoencoder_of_the_new_class_too(tmp_path):
    write(tmp_path, "AutoEncoder", tensors("AutoEncoderNew"))
    x = some(6)
    expected = formula("AutoEncoderNew", tensors("AutoEncoderNew"), x)[0].float()
    torch.testing.assert_close(load_dictionary(tmp_path).encode(x), expected)


def test_the_folder_of_a_training_gives_its_final_file(tmp_path):
    write(tmp_path, "AutoEncoder", {**tensors("AutoEncoder"), "bias": torch.ones(6)})
    write(tmp_path, "AutoEncoder", name="checkpoints/ae_5.pt")
    assert load_dictionary(tmp_path).decoder_bias.tolist() == [1.0] * 6


@pytest.mark.parametrize("inside", [".", "checkpoints", "checkpoints/ae_5.pt"])
def test_a_checkpoint_is_read_with_the_config_above_it(tmp_path, inside):
    write(tmp_path, "BatchTopKSAE", name="checkpoints/ae_5.pt")
    assert load_dictionary(tmp_path, file=inside).encoder.activation == "jumprelu"
    assert load_dictionary(tmp_path, file=inside).info["layer"] == "11"


@pytest.mark.parametrize("inside", [".", "checkpoints"])
def test_of_several_checkpoints_one_must_be_named(tmp_path, inside):
    for step in (5, 10):
        write(tmp_path, "AutoEncoder", name=f"checkpoints/ae_{step}.pt")
    with pytest.raises(VlmEditError, match=r"2 checkpoints \(.*ae_10.pt, .*ae_5.pt\): say which"):
        load_dictionary(tmp_path, file=inside)
    assert load_dictionary(tmp_path, file="checkpoints/ae_10.pt").width == 6


def test_a_backup_of_a_training_under_way_is_refused(tmp_path):
    backup = {
        "step": 7,
        "ae": tensors("AutoEncoder"),
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 0.1}]},
        "config": {"dict_class": "AutoEncoder"},
        "norm_factor": 12.5,
    }
    write(tmp_path, "AutoEncoder", backup)
    with pytest.raises(VlmEditError, match=r"backup of a training under way.*let it end and load"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class 'CrossCoder' is not supported; supported: Auto"),
        ({"dict_class": 3}, "dict_class '3' is not supported"),
        ({"dict_class": "GatedAutoEncoder"}, "tensors missing: decoder_bias, gate_bias, mag_bias"),
        ({"activation_dim": 7}, "states activation_dim = 7, the tensors of ae.pt have 6"),
        ({"dict_size": 11}, "states dict_size = 11, the tensors of ae.pt have 10"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(tmp_path, trainer, message):
    write(tmp_path, "AutoEncoder", trainer=trainer)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_a_config_of_something_else_is_refused(tmp_path):
    write(tmp_path, "AutoEncoder")
    (tmp_path / "config.json").write_text('{"trainer": "Adam"}')
    with pytest.raises(VlmEditError, match="'trainer' is not an object"):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("AutoEncoder", {"bias": torch.randn(7)}, r"(decoder bias|subtract) has shape \(7,\)"),
        ("AutoEncoder", {"extra": torch.randn(7)}, "does not have: extra"),
        ("AutoEncoder", {"decoder.weight": torch.randn(10, 6)}, "the encoder is of 10 features"),
        ("GatedAutoEncoder", {"r_mag": torch.full((10,), 1e3)}, "no finite vectors of one size"),
        ("GatedAutoEncoder", {"gate_bias": torch.zeros(9)}, "no finite vectors of one size"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([2, 7])}, "do not sum to the 10"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([12, -2])}, "do not sum to the 10"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor(10)}, "do not sum to the 10"),
        ("BatchTopKSAE", {"k": torch.tensor(0)}, "k must be a whole number above 0"),
        ("BatchTopKSAE", {"threshold": torch.randn(2)}, r"threshold has shape \(2,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, kind, change, message):
    write(tmp_path, kind, tensors(kind) | change)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path, format="dictionary_learning")


def test_more_groups_than_features_are_refused_before_they_are_summed(tmp_path):
    many = torch.ones(1, dtype=torch.int64).expand(1 << 35)  # a view: eight bytes in the file
    kind = "MatryoshkaBatchTopKSAE"
    write(tmp_path, kind, tensors(kind) | {"group_sizes": many})
    start = time.perf_counter()
    with pytest.raises(VlmEditError, match="do not sum to the 10"):
        load_dictionary(tmp_path)
    assert time.perf_counter() - start < 5


def test_tensors_of_no_class_are_refused_by_name(tmp_path):
    torch.save({"enc": torch.zeros(2, 3)}, tmp_path / "ae.pt")
    with pytest.raises(VlmEditError, match="is not known; known formats"):
        load_dictionary(tmp_path)
    with pytest.raises(VlmEditError, match="no class of dictionary_learning has the tensors enc"):
        load_dictionary(tmp_path, format="dictionary_learning")
    torch.save([1], tmp_path / "ae.pt")
    with pytest.raises(VlmEditError, match="holds a list, expected a state dict"):
        load_dictionary(tmp_path, format="dictionary_learning")
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(VlmEditError, match="neither ae.pt nor checkpoints/ae_N.pt"):
        load_dictionary(tmp_path, format="dictionary_learning")


@pytest.mark.parametrize("kind", ["AutoEncoderNew", "JumpReluAutoEncoder"])
def test_names_that_others_use_too_are_recognised_only_under_the_formats_own_file_name(
    tmp_path, kind
):
    torch.save(tensors(kind), tmp_path / "weights.pt")
    with pytest.raises(VlmEditError, match="is not known; known formats"):
        load_dictionary(tmp_path / "weights.pt")
    assert load_dictionary(tmp_path / "weights.pt", format="dictionary_learning").width == 6
    write(tmp_path, kind, name="weights.pt")
    assert load_dictionary(tmp_path / "weights.pt").width == 6
