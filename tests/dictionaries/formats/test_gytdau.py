"""The format of gytdau/clip-sae-128, with its formula written here by hand."""

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary

FILE = "sparse_autoencoder_128.pth"


def write(folder, d=6, m=16, **tensors):
    """A file as the state dict of its model is saved."""
    g = torch.Generator().manual_seed(d)
    weights = {
        "enc_bias": torch.randn(m, generator=g),
        "dec_bias": torch.randn(d, generator=g),
        "encoder.weight": torch.randn(m, d, generator=g),
        "decoder.weight": torch.randn(d, m, generator=g),
    } | tensors
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    torch.save(weights, folder / FILE)
    return {name: tensor.double() for name, tensor in weights.items()}


def by_hand(w, x):
    """Codes and reconstruction, in float64."""
    codes = (x.double() @ w["encoder.weight"].T + w["enc_bias"]).relu()
    return codes.float(), (codes @ w["decoder.weight"].T + w["dec_bias"]).float()


@pytest.mark.parametrize(("d", "m"), [(6, 16), (7, 7)])
@pytest.mark.parametrize("name", [".", FILE])
def test_codes_are_relu_of_the_encoder_alone(tmp_path, d, m, name):
    weights = write(tmp_path, d, m)
    x = torch.randn(11, d) * 3 + 1
    dictionary = load_dictionary(tmp_path / name)
    codes, back = by_hand(weights, x)
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    torch.testing.assert_close(dictionary.encode(x), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.reconstruct(x), back, rtol=1e-5, atol=1e-4)
    part = load_dictionary(tmp_path / name, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]], rtol=1e-5, atol=1e-5)
    assert torch.equal(part.decoder, dictionary.decoder[[5, 0]])


def test_a_file_with_another_tensor_is_not_this_format(tmp_path):
    write(tmp_path, extra=torch.zeros(2))
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(tmp_path)
    with pytest.raises(VlmEditError, match="does not have: extra"):
        load_dictionary(tmp_path, format="gytdau")
    write(tmp_path, enc_bias=None)
    with pytest.raises(VlmEditError, match="tensors missing: enc_bias"):
        load_dictionary(tmp_path, format="gytdau")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"encoder.weight": torch.zeros(16)}, r"encoder.weight has shape \(16,\), expected 2"),
        ({"decoder.weight": torch.zeros(16, 6)}, "the decoder of 6 and 16"),
        ({"enc_bias": torch.zeros(6)}, "encoder bias has shape"),
        ({"dec_bias": torch.full((6,), torch.nan)}, "dec_bias holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, tensors, message):
    write(tmp_path, **tensors)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(tmp_path)


def test_it_takes_no_options(tmp_path):
    write(tmp_path)
    with pytest.raises(VlmEditError, match="the format gytdau keeps k itself or has none"):
        load_dictionary(tmp_path, k=3)
