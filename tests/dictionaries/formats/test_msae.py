"""The format of MSAE, with its formulas written here by hand."""

import pickle

import numpy as np
import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries.formats.source import Source

TAIL = "_cc3m_ViT-L~14_train_image_2905936_768.pth"
TOPK = "16_6_TopKReLU_4_False_False_0.0"


def write(folder, name=TOPK, d=6, m=16, model=None, **changes):
    """A file with the keys, the types and the name that ``train.py`` gives it."""
    g = torch.Generator().manual_seed(m)
    weights = {
        "pre_bias": torch.randn(d, generator=g),
        "encoder": torch.randn(d, m, generator=g),
        "latent_bias": torch.randn(m, generator=g),
        "decoder": torch.randn(m, d, generator=g),
        "latents_activation_frequency": torch.zeros(m, dtype=torch.int64),
    } | (model or {})
    found = {
        "model": {key: value for key, value in weights.items() if value is not None},
        "mean_center": torch.randn(d, generator=g) * 2,
        "scaling_factor": 0.37,
        "target_norm": np.sqrt(d),
    } | changes
    path = folder / (name + TAIL)
    torch.save({key: value for key, value in found.items() if value is not None}, path)
    return path, found


def by_hand(found, x, activation="topk", k=4, cap=0.0, norm=False):
    """Codes and reconstruction, in float64."""
    w = {key: value.double() for key, value in found["model"].items() if value is not None}
    mean, scale = found["mean_center"].double(), float(found["scaling_factor"])
    x, mu, std = (x.double() - mean) * scale, 0.0, 1.0
    if norm:
        mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x = (x - mu) / (std + 1e-5)
    hidden = (x - w["pre_bias"]) @ w["encoder"] + w["latent_bias"]
    if activation == "jumprelu":
        codes = hidden * (hidden > w["activation.log_threshold"].exp())
    elif activation in ("relu", "identity"):
        codes = hidden.relu() if activation == "relu" else hidden
    else:
        values, indices = hidden.topk(k)
        values = values.relu() if activation == "topk" else values
        codes = torch.zeros_like(hidden).scatter(-1, indices, values)
    if cap:
        codes = cap * (codes / cap).tanh()
    back = codes @ w.get("decoder", w["encoder"].T) + w["pre_bias"]
    return codes.float(), ((back * std + mu) / scale + mean).float()


def compare(path, found, told=None, **formula):
    d, told = len(found["mean_center"]), told or {}
    x = torch.randn(11, d, generator=torch.Generator().manual_seed(1)) * 3 + 1
    codes, back = by_hand(found, x, **formula)
    dictionary = load_dictionary(path, **told)
    assert int(codes.count_nonzero()) > 0
    torch.testing.assert_close(dictionary.encode(x), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dictionary.reconstruct(x), back, rtol=1e-4, atol=1e-3)
    part = load_dictionary(path, lazy=True, **told).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-4, atol=1e-4)
    assert torch.equal(part.decoder, dictionary.decoder[[5, 0]])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        (TOPK, {}),
        ("16_6_TopKReLU_13_False_False_0.0", {"k": 13}),
        ("16_6_TopKReLU_3_UW_False_False_0.0", {"k": 3}),
        ("16_6_TopK_13_False_False_0.0", {"activation": "topk_signed", "k": 13}),
        ("16_6_ReLU_003_False_False_0.0", {"activation": "relu"}),
        ("16_6_Identity_False_False_0.0", {"activation": "identity"}),
        ("16_6_ReLU_003_False_False_1.5", {"activation": "relu", "cap": 1.5}),
        ("16_6_TopKReLU_4_RW_False_False_2", {"cap": 2.0}),
    ],
)
def test_what_the_name_says_is_done(tmp_path, name, formula):
    compare(*write(tmp_path, name), **formula)


def test_the_penalty_in_a_name_is_no_k(tmp_path):
    path, found = write(tmp_path, "16_6_ReLU_003_False_False_0.0")
    with pytest.raises(VlmEditError, match="does not keep how many features stay: pass k="):
        load_dictionary(path, activation="topk")
    compare(path, found, {"activation": "topk", "k": 5}, k=5)


def test_a_square_one_is_read_the_right_way_round(tmp_path):
    compare(*write(tmp_path, "7_7_TopKReLU_4_False_False_0.0", 7, 7))
    path, found = write(tmp_path, "7_7_TopKReLU_5_True_False_0.0", 7, 7, {"decoder": None})
    compare(path, found, k=5)


def test_a_tied_decoder_is_the_encoder_with_its_scale_undone(tmp_path):
    compare(*write(tmp_path, "16_6_TopKReLU_4_True_False_0.0", model={"decoder": None}))


def test_a_jump_is_recognised_by_its_threshold(tmp_path):
    model = {"activation.log_threshold": torch.randn(16) * 0.3}
    path, found = write(tmp_path, "16_6_JumpReLU_16_False_False_0.0", model=model)
    compare(path, found, activation="jumprelu")
    compare(path.rename(tmp_path / "mine.pth"), found, activation="jumprelu")


def test_a_layer_norm_is_done_where_nothing_comes_before_it(tmp_path):
    plain = {"mean_center": torch.zeros(6), "scaling_factor": 1.0}
    compare(*write(tmp_path, "16_6_TopKReLU_4_False_True_0.0", **plain), norm=True)
    for changed in ({"mean_center": torch.ones(6)}, {"scaling_factor": 2.0}):
        path, _ = write(tmp_path, "16_6_TopKReLU_4_False_True_0.0", **(plain | changed))
        with pytest.raises(VlmEditError, match="a layer norm after a mean and a factor"):
            load_dictionary(path)


def test_the_codes_of_all_features_may_be_asked_for(tmp_path):
    for name in (TOPK, "16_6_BatchTopKReLU_4_False_False_0.0"):
        compare(*write(tmp_path, name), {"activation": "relu"}, activation="relu")


def test_another_k_may_be_asked_for_where_the_library_gives_it(tmp_path):
    told = {"activation": "topk", "k": 7}
    for name in ("16_6_ReLU_003_False_False_0.0", "16_6_BatchTopKReLU_4_False_False_0.0"):
        compare(*write(tmp_path, name), told, k=7)
    compare(*write(tmp_path, "16_6_TopKReLU_4_UW_False_False_0.0"), {"k": 7}, k=7)
    compare(*write(tmp_path), {"k": 4})
    with pytest.raises(VlmEditError, match="k=7 was passed, but the name says 4"):
        load_dictionary(write(tmp_path)[0], k=7)


@pytest.mark.parametrize("activation", ["relu", "topk", "topk_signed", "identity"])
def test_a_renamed_file_is_told_its_activation(tmp_path, activation):
    path, found = write(tmp_path)
    path = path.rename(tmp_path / "mine.pth")
    told = {"activation": activation} | ({"k": 4} if "topk" in activation else {})
    compare(path, found, told, activation=activation)
    compare(tmp_path, found, told, activation=activation)
    with pytest.raises(VlmEditError, match="its name does not say .* pass activation='relu', or"):
        load_dictionary(path)
    with pytest.raises(VlmEditError, match="does not keep how many features stay: pass k="):
        load_dictionary(path, activation="topk")


@pytest.mark.parametrize(
    ("name", "told", "message"),
    [
        ("16_6_TopKabs_4_False_False_0.0", {}, "TopKabs codes are absolute values"),
        ("16_6_BatchTopKReLU_4_False_False_0.0", {}, "codes of one example depend on its batch"),
        ("16_6_GELU_False_False_0.0", {}, "activation GELU is not known"),
        ("16_6_JumpReLU_16_False_False_0.0", {}, "log_threshold is missing: damaged"),
        ("16_6_TopK_4_False_False_0.0", {"activation": "relu"}, "'relu' does not go with TopK"),
        (TOPK, {"activation": "groupmax"}, "'groupmax' does not go with TopKReLU"),
        (TOPK, {"activation": "relu", "k": 4}, "k=4 goes with activation='topk', not 'relu'"),
        ("8_6_TopKReLU_4_False_False_0.0", {}, r"says 8 features of width 6, but .* \(6, 16\)"),
        ("16_6_TopKReLU_4_True_False_0.0", {}, "says tied True, but the decoder is there"),
        ("16_6_TopKReLU_17_False_False_0.0", {}, "k is 17; it must lie between 1 and"),
    ],
)
def test_a_name_that_cannot_be_followed_is_refused(tmp_path, name, told, message):
    path, _ = write(tmp_path, name)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path, **told)


def test_a_decoder_that_only_the_name_says_is_there_is_refused(tmp_path):
    path, _ = write(tmp_path, model={"decoder": None})
    with pytest.raises(VlmEditError, match="says tied False, but the decoder is missing"):
        load_dictionary(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"threshold": torch.zeros(16)}}, "does not have: threshold"),
        ({"model": {"decoder": torch.zeros(6, 16)}}, r"encoder is \(6, 16\) and decoder \(6, 16\)"),
        ({"model": {"pre_bias": torch.zeros(6, 2)}}, "pre_bias has shape"),
        ({"model": {"pre_bias": torch.zeros(1)}}, r"pre_bias has shape \(1,\), expected \(6,\)"),
        ({"model": {"pre_bias": torch.zeros(16)}}, r"pre_bias has shape \(16,\)"),
        ({"mean_center": torch.zeros(1)}, r"mean_center has shape \(1,\), expected \(6,\)"),
        ({"mean_center": 0.0}, "mean_center is missing or is not a tensor"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0.0, expected a number above 0"),
        ({"scaling_factor": -1.0}, "scaling_factor is -1.0, expected a number above 0"),
        ({"scaling_factor": "1"}, "scaling_factor must be a number"),
    ],
)
def test_contents_that_do_not_fit_are_refused(tmp_path, changes, message):
    path, _ = write(tmp_path, **changes)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path)


def test_a_file_without_one_of_its_keys_is_not_this_format(tmp_path):
    path, _ = write(tmp_path, target_norm=None)
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(path)
    with pytest.raises(VlmEditError, match="tensors missing: target_norm"):
        load_dictionary(path, format="msae")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numbers_of_numpy_are_read_without_numpy(tmp_path, kind):
    path, found = write(tmp_path, scaling_factor=kind(2), target_norm=np.float32(3))
    compare(path, found)


class Swapped:
    """Pickles as the number 2 of a machine that keeps the high byte first."""

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (np.dtype(">f8"), np.array(2, ">f8").tobytes())


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    path, found = write(tmp_path, scaling_factor=Swapped())
    compare(path, found | {"scaling_factor": 2})


def test_more_of_numpy_than_a_number_is_refused(tmp_path):
    for hostile in (np.zeros(3), np.str_("x"), np.complex128(1)):
        path, _ = write(tmp_path, target_norm=hostile)
        with pytest.raises(VlmEditError, match="holds more than tensors|not a readable torch"):
            load_dictionary(path, format="msae")


class Greedy:
    """Pickles as a numpy scalar that would reserve two gigabytes."""

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (np.dtype("S2000000000"),)


def test_a_number_that_claims_gigabytes_reserves_none(tmp_path):
    path, _ = write(tmp_path, target_norm=Greedy())
    assert b"S2000000000" in pickle.dumps(Greedy())
    with pytest.raises(VlmEditError, match="is not a readable torch file"):
        load_dictionary(path, format="msae")
    assert Source(path).peek_torch() is None
