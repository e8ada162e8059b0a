"""Crosscoders in one file, held to their formula, and files that are none."""

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries.formats import crosscoder
from vlm_edit.dictionaries.formats.format import Hints
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.ground.errors import VlmEditWarning

D, M = 6, 10


def test_a_crosscoder_s_file_is_its_formula_and_says_what_it_does_not_tell(tmp_path):
    g = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, D, M, generator=g), torch.randn(M, 2, D, generator=g)
    b_enc, b_dec = torch.randn(M, generator=g), torch.randn(2, D, generator=g)
    for names, rows in (
        (("W_enc", "W_dec", "b_enc", "b_dec"), decoder),
        (
            ("encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias"),
            decoder.permute(1, 0, 2).contiguous(),
        ),
    ):
        path = tmp_path / "0.pt"
        torch.save(dict(zip(names, (encoder, rows, b_enc, b_dec), strict=True)), path)
        with pytest.warns(VlmEditWarning, match="is a crosscoder of 2 places, which its file"):
            found = load_dictionary(path)
        x = torch.randn(7, 2, D)
        codes = (torch.einsum("bnd,ndm->bm", x, encoder) + b_enc).relu()
        written_ = torch.einsum("bm,mnd->bnd", codes, decoder) + b_dec
        torch.testing.assert_close(found.encode(x.flatten(1)), codes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found.predict(x.flatten(1)), written_.flatten(1), rtol=1e-5, atol=1e-5
        )
    torch.save({"W_enc": encoder, "W_dec": decoder[:3], "b_enc": b_enc, "b_dec": b_dec}, path)
    with pytest.raises(VlmEditError, match="are not of one crosscoder"):
        load_dictionary(path)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda t: t.to_sparse(), "{} is not a plain tensor in memory .torch.sparse_coo"),
        (lambda t: torch.empty_like(t, device="meta"), "{} is not a plain tensor .*meta"),
        (lambda t: torch.nested.nested_tensor(list(t)), "{} is not a plain tensor .*nested"),
        (lambda t: torch.zeros(1).expand(t.shape), "{} claims shape .* more numbers than the file"),
        (lambda t: t[..., None], "{} has shape .*, expected . axes"),
        (lambda t: t.to(torch.complex64), "{} is torch.complex64, expected floating-point"),
        (lambda _: "a word", "{} is missing or is not a tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_crosscoder_of_tensors_that_are_no_plain_ones_is_refused(tmp_path, name, odd, message):
    tensors = {"W_enc": torch.randn(2, D, M), "W_dec": torch.randn(M, 2, D)}
    tensors |= {"b_enc": torch.zeros(M), "b_dec": torch.zeros(2, D)}
    torch.save(tensors | {name: odd(tensors[name])}, tmp_path / "0.pt")
    read = crosscoder.read  # by its name: an encoder of other axes is of no format that is known
    with pytest.raises(VlmEditError, match=message.format(name)):
        read(Source(tmp_path / "0.pt"), Hints())


def test_a_crosscoder_whose_numbers_lie_in_another_order_is_read_alike(tmp_path):
    encoder, decoder = torch.randn(2, M, D).mT, torch.randn(2, M, D).permute(1, 0, 2)
    biases = {"b_enc": torch.randn(M), "b_dec": torch.randn(2, D)}
    torch.save({"W_enc": encoder, "W_dec": decoder, **biases}, tmp_path / "0.pt")
    with pytest.warns(VlmEditWarning, match="is a crosscoder"):
        found = load_dictionary(tmp_path / "0.pt")
    torch.testing.assert_close(found.inner.encoder.weight, encoder.flatten(0, 1))
    torch.testing.assert_close(found.inner.decoder, decoder.flatten(1))
