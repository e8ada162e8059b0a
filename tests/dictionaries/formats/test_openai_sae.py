"""The format of OpenAI's sparse_autoencoder, with its formulas written here by hand."""

from collections import OrderedDict

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary


def write(folder, activation="TopK", d=6, m=16, tied=False, k=5, after="ReLU", **changes):
    """A file as ``torch.save(autoencoder.state_dict())`` of the library writes it."""
    g = torch.Generator().manual_seed(d)
    found = {
        "pre_bias": torch.randn(d, generator=g),
        "latent_bias": torch.randn(m, generator=g),
        "stats_last_nonzero": torch.zeros(m, dtype=torch.long),
        "latents_activation_frequency": torch.ones(m),
        "latents_mean_square": torch.zeros(m),
        "encoder.weight": torch.randn(m, d, generator=g),
        "activation": activation,
        "activation_state_dict": OrderedDict(),
    }
    if tied:
        found["decoder.linear.weight"] = found["encoder.weight"]
    else:
        found["decoder.weight"] = torch.randn(d, m, generator=g)
    if activation == "TopK":
        found |= {"activation.k": k, "activation.postact_fn": after}
        found["activation_state_dict"] = OrderedDict(k=k, postact_fn=after)
    found = {key: value for key, value in (found | changes).items() if value is not None}
    torch.save(OrderedDict(found), folder / "8.pt")
    return {k: v.double() for k, v in found.items() if isinstance(v, torch.Tensor)}


def by_hand(w, x, activation, k, after):
    """Codes and reconstruction, in float64."""
    x, mu, std = x.double(), 0.0, 1.0
    if activation == "TopK":
        mu, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x = (x - mu) / (std + 1e-5)
    hidden = (x - w["pre_bias"]) @ w["encoder.weight"].T + w["latent_bias"]
    codes = hidden.relu() if activation == "ReLU" else hidden
    if activation == "TopK":
        values, indices = hidden.topk(k)
        values = values.relu() if after == "ReLU" else values
        codes = torch.zeros_like(hidden).scatter(-1, indices, values)
    rows = w["decoder.weight"].T if "decoder.weight" in w else w["encoder.weight"]
    return codes.float(), ((codes @ rows + w["pre_bias"]) * std + mu).float()


@pytest.mark.parametrize(("d", "m"), [(6, 16), (7, 7)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("activation", "k", "after"),
    [("ReLU", 0, ""), ("Identity", 0, ""), ("TopK", 5, "ReLU"), ("TopK", 6, "Identity")],
)
def test_codes_and_reconstruction_are_those_of_the_library(
    tmp_path, activation, k, after, tied, d, m
):
    w = write(tmp_path, activation, d, m, tied, k, after)
    x = torch.randn(11, d, generator=torch.Generator().manual_seed(1)) * 3 + 1
    codes, back = by_hand(w, x, activation, k, after)
    for name in (".", "8.pt"):
        dictionary = load_dictionary(tmp_path / name)
        torch.testing.assert_close(dictionary.encode(x), codes, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dictionary.reconstruct(x), back, rtol=1e-4, atol=1e-4)
    part = load_dictionary(tmp_path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-4, atol=1e-4)
    assert torch.equal(part.decoder, dictionary.decoder[[5, 0]])


def test_a_file_without_an_activation_is_relu_as_in_the_library(tmp_path):
    write(tmp_path, "ReLU", activation_state_dict=None)
    found = torch.load(tmp_path / "8.pt", weights_only=True)
    del found["activation"]
    torch.save(found, tmp_path / "8.pt")
    encoder = load_dictionary(tmp_path).encoder
    assert (encoder.activation, encoder.norm) == ("relu", "none")


def test_only_the_two_halves_that_a_topk_must_say_are_needed(tmp_path):
    write(tmp_path, **{"activation.k": None, "activation.postact_fn": None})
    assert load_dictionary(tmp_path).encoder.k == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "Tanh"}, "activation 'Tanh' is not supported; supported: ReLU, Identity, "),
        ({"after": "TopK"}, "postact_fn 'TopK' is not supported; supported: ReLU, Identity$"),
        ({"after": ["ReLU"]}, r"postact_fn \"\['ReLU'\]\" is not supported"),
        ({"k": 0}, "k must be a whole number above 0, got '0'"),
        ({"k": 17}, "k is 17; it must lie between 1 and the 16 features"),
        ({"activation.k": 4}, "activation_state_dict and activation.k differ"),
        ({"activation.postact_fn": "Identity"}, "activation_state_dict and .*postact_fn differ"),
        ({"activation_state_dict": None}, "activation_state_dict is missing"),
        ({"activation_state_dict": {"k": 5}}, "tensors missing: postact_fn"),
        ({"latents_mean": torch.zeros(16)}, "does not have: latents_mean"),
        ({"decoder.linear.weight": torch.zeros(16, 6)}, "does not have: decoder.weight"),
        ({"decoder.weight": torch.zeros(16, 6)}, "the decoder of 6 and 16"),
        ({"latent_bias": torch.zeros(6)}, "encoder bias has shape"),
    ],
)
def test_contents_that_do_not_fit_are_refused(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_without_a_decoder_it_is_not_this_format(tmp_path):
    write(tmp_path, **{"decoder.weight": None})
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(tmp_path)
    with pytest.raises(VlmEditError, match=r"tensors missing: decoder\.weight"):
        load_dictionary(tmp_path, format="openai")


@pytest.mark.parametrize(("tied", "name"), [(False, "decoder.weight"), (True, "decoder.linear")])
def test_a_damaged_decoder_is_called_what_the_file_calls_it(tmp_path, tied, name):
    shape = (16, 6) if tied else (6, 16)
    key = "decoder.linear.weight" if tied else "decoder.weight"
    write(tmp_path, tied=tied, **{key: torch.full(shape, torch.nan)})
    with pytest.raises(VlmEditError, match=f"{name}.* holds NaN or infinity"):
        load_dictionary(tmp_path)
