"""State dicts of overcomplete 0.3.0, with its formulas written here by hand.

tests/dictionaries/golden has files that the library wrote, and what it computed of them.
"""

import collections
import itertools
import math
import struct

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary

D, M = 6, 8
ROWS, MULTIPLIER = "dictionary._weights", "dictionary.multiplier"
LAST = "encoder.final_block.0"
NORM = "encoder.final_block.1"


def state(seed=0, d=D, m=M, multiplier=0.0, **tensors):
    """A state dict after ``eval()``; a tensor told as None is left out."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(m, d, generator=g)
    found = {
        f"{LAST}.weight": torch.randn(m, d, generator=g),
        f"{LAST}.bias": torch.randn(m, generator=g),
        ROWS: rows / rows.norm(dim=1, keepdim=True),
        MULTIPLIER: torch.tensor(multiplier),
    }
    for name, tensor in tensors.items():
        found[name] = tensor
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def write(path, found):
    torch.save(found, path)
    return path


def activations(d=D):
    g = torch.Generator().manual_seed(9)
    return 2 * torch.randn(20, d, generator=g) + torch.linspace(-2, 3, d)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", [M, D])
@pytest.mark.parametrize(
    ("told", "select"),
    [
        ({"activation": "relu"}, lambda a: a),
        ({"k": 3}, lambda a: a * (a >= a.topk(3).values[:, -1:])),
        ({"k": 3, "activation": "topk"}, lambda a: a * (a >= a.topk(3).values[:, -1:])),
        ({"threshold": 1.5}, lambda a: a * (a >= 1.5)),
        ({"threshold": 1.5, "activation": "jumprelu"}, lambda a: a * (a >= 1.5)),
        ({"threshold": 0.0}, lambda a: a),
    ],
)
def test_codes_and_reconstruction_follow_the_formula(tmp_path, m, told, select):
    found = state(m=m, multiplier=0.3)
    path = write(tmp_path / "sae.pt", found)
    dictionary, x = load_dictionary(path, **told), activations()
    w = {name: tensor.double() for name, tensor in found.items()}
    codes = select((x.double() @ w[f"{LAST}.weight"].T + w[f"{LAST}.bias"]).relu())
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    close(dictionary.encode(x), codes)
    unit = w[ROWS] / w[ROWS].norm(dim=1, keepdim=True)
    close(dictionary.reconstruct(x), codes @ unit * math.exp(0.3))
    part = load_dictionary(path, lazy=True, **told).slice([m - 1, 0])
    assert torch.equal(part.decoder, dictionary.decoder[[m - 1, 0]])
    close(part.codes(x)[0], codes[:, [m - 1, 0]])


def test_rows_a_step_away_from_length_1_are_brought_back(tmp_path):
    found = state()
    found[ROWS] *= torch.linspace(0.95, 1.05, M)[:, None]
    dictionary = load_dictionary(write(tmp_path / "sae.pt", found), k=2)
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(M))


@pytest.mark.parametrize(("row", "factor"), [(0, 0.8), (M - 1, 1.2), (3, 0.0)])
def test_rows_of_another_length_are_refused_with_the_mend(tmp_path, row, factor):
    found = state()
    found[ROWS][row] *= factor
    path = write(tmp_path / "sae.pt", found)
    with pytest.raises(VlmEditError, match=r"lengths from .* to .*model\.eval\(\).*layout="):
        load_dictionary(path, k=2)


def test_a_file_from_before_the_multiplier_is_read(tmp_path):
    dictionary = load_dictionary(write(tmp_path / "sae.pt", state(**{MULTIPLIER: None})), k=2)
    torch.testing.assert_close(dictionary.decoder, state()[ROWS])


def test_half_precision_is_read_as_float32(tmp_path):
    found = {name: tensor.half() for name, tensor in state().items()}
    dictionary = load_dictionary(write(tmp_path / "sae.pt", found), k=2)
    assert dictionary.decoder.dtype == torch.float32
    torch.testing.assert_close(dictionary.encoder.weight.T, found[f"{LAST}.weight"].float())


@pytest.mark.parametrize("thresholds", [True, False])
def test_a_code_equal_to_the_threshold_stays(tmp_path, thresholds):
    level = float(torch.tensor(0.25).exp())
    found = state(**{f"{LAST}.weight": torch.eye(D), f"{LAST}.bias": torch.zeros(D)}, m=D)
    if thresholds:
        found["thresholds"] = torch.full((D,), 0.25)
    told = {} if thresholds else {"threshold": level}
    dictionary = load_dictionary(write(tmp_path / "sae.pt", found), **told)
    x = torch.full((1, D), level)
    assert torch.equal(dictionary.encode(x), x)
    lower = torch.nextafter(x, torch.zeros(1))
    assert torch.equal(dictionary.encode(lower), torch.zeros(1, D))


def test_a_jump_sae_keeps_its_thresholds_as_logarithms(tmp_path):
    found = state(thresholds=torch.linspace(-1, 1, M))
    x = activations()
    dictionary = load_dictionary(write(tmp_path / "sae.pt", found))
    a = (x.double() @ found[f"{LAST}.weight"].double().T + found[f"{LAST}.bias"].double()).relu()
    close(dictionary.encode(x), a * (a >= found["thresholds"].double().exp()))


def test_k_beside_a_jump_sae_changes_nothing(tmp_path):
    path = write(tmp_path / "sae.pt", {"model_state": state(thresholds=torch.zeros(M)), "k": 2})
    assert load_dictionary(path).encoder.k is None


def test_another_state_dict_is_not_this_format(tmp_path):
    path = write(tmp_path / "sae.pt", {"decoder._weights": torch.eye(D)})
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(path)


def test_a_threshold_beyond_all_numbers_keeps_its_feature_silent(tmp_path):
    path = write(tmp_path / "sae.pt", state(thresholds=torch.tensor([1000.0] + [-9.0] * (M - 1))))
    codes = load_dictionary(path).encode(activations())
    assert (codes > 0).any(0).tolist() == [False] + [True] * (M - 1)


@pytest.mark.parametrize("told", [{"k": 2}, {"threshold": 1.0}, {"activation": "jumprelu"}])
def test_a_jump_sae_is_told_nothing(tmp_path, told):
    path = write(tmp_path / "sae.pt", state(thresholds=torch.zeros(M)))
    with pytest.raises(VlmEditError, match=f"leave out {next(iter(told))}"):
        load_dictionary(path, **told)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"activation": "topk"},
        {"activation": "jumprelu"},
        {"activation": "topk_signed", "k": 2},
        {"activation": "relu", "k": 2},
        {"activation": "relu", "threshold": 1.0},
        {"k": 2, "threshold": 1.0},
        {"k": 2, "activation": "jumprelu"},
        {"threshold": 1.0, "activation": "topk"},
    ],
)
def test_what_the_file_does_not_keep_must_be_told_and_fit(tmp_path, told):
    path = write(tmp_path / "sae.pt", state())
    with pytest.raises(VlmEditError, match="SAE, TopKSAE or BatchTopKSAE, whose files are alike"):
        load_dictionary(path, **told)


def batch_norm(m=M):
    g = torch.Generator().manual_seed(5)
    return {
        f"{NORM}.weight": torch.randn(m, generator=g),
        f"{NORM}.bias": torch.randn(m, generator=g),
        f"{NORM}.running_mean": torch.randn(m, generator=g),
        f"{NORM}.running_var": torch.linspace(0, 3, m),
        f"{NORM}.num_batches_tracked": torch.tensor(7),
    }


def test_a_batch_norm_behind_the_product_is_folded(tmp_path):
    found = state(**batch_norm())
    w = {name: tensor.double() for name, tensor in found.items()}
    x = activations()
    h = x.double() @ w[f"{LAST}.weight"].T + w[f"{LAST}.bias"]
    h = (h - w[f"{NORM}.running_mean"]) / (w[f"{NORM}.running_var"] + 1e-5).sqrt()
    h = h * w[f"{NORM}.weight"] + w[f"{NORM}.bias"]
    path = write(tmp_path / "sae.pt", found)
    close(load_dictionary(path, activation="relu").encode(x), h.relu())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{NORM}.running_var": torch.full((M,), -1.0)}, "running_var is below 0"),
        ({f"{NORM}.running_mean": torch.zeros(M + 1)}, "batch norm is of 9 features, not 8"),
        ({f"{NORM}.running_var": None}, "tensors missing: .*running_var"),
        ({"encoder.bias": torch.zeros(M)}, "does not have: encoder.bias"),
    ],
)
def test_a_batch_norm_that_does_not_fit_is_refused(tmp_path, tensors, message):
    path = write(tmp_path / "sae.pt", state(**{**batch_norm(), **tensors}))
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path, activation="relu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_without_block_may_be_tied(tmp_path, tied, bias):
    found = state(multiplier=0.2, **{f"{LAST}.weight": None, f"{LAST}.bias": None})
    weight = found[ROWS].double() * math.exp(0.2)
    if tied:
        found |= {f"encoder.tied_to.{n}": found[f"dictionary.{n}"] for n in ("_weights",)}
        found["encoder.tied_to.multiplier"] = found[MULTIPLIER]
    else:
        found["encoder.weight"] = torch.randn(M, D)
        weight = found["encoder.weight"].double()
    shift = torch.linspace(-1, 2, M) if bias else torch.zeros(M)
    if bias:
        found["encoder.bias"] = shift
    x, dictionary = activations(), load_dictionary(write(tmp_path / "sae.pt", found), k=3)
    h = (x.double() @ weight.T + shift).relu()
    close(dictionary.encode(x), h * (h >= h.topk(3).values[:, -1:]))


@pytest.mark.parametrize("part", ["_weights", "multiplier"])
def test_an_encoder_tied_to_another_dictionary_is_refused(tmp_path, part):
    found = state(**{f"{LAST}.weight": None, f"{LAST}.bias": None})
    found |= {f"encoder.tied_to.{n}": found[f"dictionary.{n}"] for n in ("_weights", "multiplier")}
    path = write(tmp_path / "sae.pt", found)
    assert load_dictionary(path, k=2).n_features == M
    found[f"encoder.tied_to.{part}"] = found[f"encoder.tied_to.{part}"] + 0.5
    with pytest.raises(VlmEditError, match="tied to another dictionary than its own"):
        load_dictionary(write(path, found), k=2)


@pytest.mark.parametrize("name", ["k", "top_k"])
def test_k_may_stand_beside_the_state(tmp_path, name):
    path = write(tmp_path / "sae.pt", {"model_state": state(), name: 3, "epoch": 4, "logs": {}})
    dictionary = load_dictionary(path)
    assert (dictionary.encoder.activation, dictionary.encoder.k) == ("topk", 3)
    assert load_dictionary(path, k=3).encoder.k == 3
    assert load_dictionary(path, threshold=1.0).encoder.activation == "jumprelu"
    assert load_dictionary(path, activation="relu").encoder.activation == "relu"
    with pytest.raises(VlmEditError, match="says k=3, but it was told k=2"):
        load_dictionary(path, k=2)


def test_a_checkpoint_without_k_needs_it_told(tmp_path):
    path = write(tmp_path / "sae.pt", {"model_state": state(), "optimizer_state": {"lr": 1.0}})
    assert load_dictionary(path, k=3).encoder.k == 3
    with pytest.raises(VlmEditError, match="told nothing"):
        load_dictionary(path)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"mean": torch.zeros(D)}, r"beside model_state stands mean.*\['model_state'\] alone"),
        ({"k": 3, "top_k": 4}, "k is 3 but top_k is 4"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"model_state": [1]}, "not known"),
    ],
)
def test_a_checkpoint_with_more_than_is_understood_is_refused(tmp_path, beside, message):
    path = write(tmp_path / "sae.pt", {"model_state": state(), **beside})
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"Q": torch.ones(4)}, "QSAE"),
        ({"encoder.mlp_blocks.0.0.weight": torch.eye(D)}, "layers before the last"),
        ({"encoder.attention_blocks.0.norm1.bias": torch.ones(D)}, "mixes tokens"),
        ({"encoder.resnet_blocks.0.conv1.weight": torch.ones(1)}, "mixes positions"),
        ({"dictionary.C": torch.eye(D), "dictionary.Relax": torch.eye(D)}, "missing: dictionary.W"),
        ({f"{NORM}.weight": torch.ones(M), f"{NORM}.bias": torch.ones(M)}, "layer norm"),
        ({f"{LAST}.weight": None, f"{LAST}.bias": None}, "MpSAE and OMPSAE"),
        ({f"{LAST}.bias": None}, "tensors missing: encoder.final_block.0.bias"),
        ({"b_dec": torch.zeros(D)}, "does not have: b_dec"),
        ({f"{LAST}.weight": torch.zeros(D, M)}, r"\(6, 8\), .* is \(8, 6\): they must be equal"),
        ({f"{LAST}.bias": torch.zeros(M + 1)}, "bias is of 9 features, not of 8"),
        ({f"{LAST}.bias": torch.full((M,), math.nan)}, "NaN or infinity"),
        ({f"{LAST}.weight": torch.full((M, D), math.nan)}, "NaN or infinity"),
        ({ROWS: torch.zeros(0, D)}, "is empty"),
        ({ROWS: torch.zeros(M, D, dtype=torch.int64)}, "expected floating-point"),
        ({MULTIPLIER: torch.tensor(1000.0)}, "not finite"),
        ({MULTIPLIER: torch.zeros(2)}, "expected a number"),
        ({"thresholds": torch.full((M,), math.nan)}, "thresholds holds NaN or infinity"),
    ],
)
def test_a_state_that_is_not_one_matrix_and_rows_is_refused(tmp_path, tensors, message):
    path = write(tmp_path / "sae.pt", state(**tensors))
    told = {} if "thresholds" in tensors else {"k": 2}
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path, **told)


def test_a_shape_that_nothing_fills_allocates_nothing(tmp_path):
    wide = torch.empty(10**13, 0)
    path = write(tmp_path / "sae.pt", state(**{f"{LAST}.weight": wide}))
    with pytest.raises(VlmEditError):
        load_dictionary(path, k=2)
    with pytest.raises(VlmEditError):
        load_dictionary(write(path, state(**{ROWS: wide, f"{LAST}.weight": wide})), k=2)


def test_a_folder_with_one_file_is_that_file(tmp_path):
    write(tmp_path / "sae.pt", state())
    assert load_dictionary(tmp_path, k=2).n_features == M
    write(tmp_path / "b.pt", state())
    with pytest.raises(VlmEditError, match=r"2 torch files: name one with file= \(b.pt, sae.pt\)"):
        load_dictionary(tmp_path, k=2)
    assert load_dictionary(tmp_path, file="b.pt", k=2).n_features == M


def test_a_log_that_weights_only_refuses_names_the_mend(tmp_path):
    logs = collections.defaultdict(list)
    logs["r2"].append(0.5)
    path = write(tmp_path / "sae.pt", {"model_state": state(), "logs": logs})
    with pytest.raises(VlmEditError, match=r"save its state_dict\(\) alone"):
        load_dictionary(path, k=2)


def test_another_pickle_that_weights_only_refuses_is_not_this_format(tmp_path):
    path = write(tmp_path / "sae.pt", {"count": itertools.count()})
    with pytest.raises(VlmEditError, match="holds more than tensors and plain values"):
        load_dictionary(path, k=2)
    (tmp_path / "text.pt").write_bytes(b"dictionary._weights overcomplete.sae")
    with pytest.raises(VlmEditError, match="is not a torch file"):
        load_dictionary(tmp_path / "text.pt", k=2)


def test_a_zip_that_ends_too_early_is_not_this_format(tmp_path):
    path = write(tmp_path / "sae.pt", {"count": itertools.count()})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # the index's first, the pickle's, and its two sizes
    data[entry + 20 : entry + 28] = struct.pack("<II", 10**6, 10**6)
    path.write_bytes(data)
    with pytest.raises(VlmEditError, match="claims more bytes than it has"):
        load_dictionary(path, k=2)
