"""The format of clipscope, with its formula written here by hand."""

import warnings

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary


def write(folder, d=6, m=16, k=13, **changes):
    """A file with the keys that clipscope 0.1.8 reads."""
    g = torch.Generator().manual_seed(d)
    state = {
        "pre_b": torch.randn(d, generator=g),
        "enc": torch.randn(d, m, generator=g),
        "dec": torch.randn(m, d, generator=g),
    } | changes.pop("state", {})
    found = {"model_state_dict": state, "k": k, "n_features": m, "d_in": d} | changes
    path = folder / "22_resid" / "1200013184.pt"
    path.parent.mkdir(exist_ok=True)
    torch.save({key: value for key, value in found.items() if value is not None}, path)
    return path, {name: tensor.double() for name, tensor in state.items()}


def load(path, **options):
    with pytest.warns(UserWarning, match="standardised activations"):
        return load_dictionary(path, **options)


@pytest.mark.parametrize(("d", "m", "k"), [(6, 16, 3), (6, 16, 13), (7, 7, 6)])
def test_codes_are_the_k_largest_with_those_below_zero(tmp_path, d, m, k):
    path, w = write(tmp_path, d, m, k)
    x = torch.randn(11, d) * 3 + 1
    hidden = (x.double() - w["pre_b"]) @ w["enc"]
    values, indices = hidden.topk(k)
    codes = torch.zeros_like(hidden).scatter(-1, indices, values)
    back = (codes @ w["dec"] + w["pre_b"]).float()
    assert k == 3 or bool((codes < 0).any())
    for name in (path, path.parent):
        dictionary = load(name)
        torch.testing.assert_close(dictionary.encode(x), codes.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dictionary.reconstruct(x), back, rtol=1e-5, atol=1e-4)
    part = load(path, lazy=True).slice([5, 0])
    torch.testing.assert_close(part.codes(x)[0], codes[:, [5, 0]].float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(part.decoder, dictionary.decoder[[5, 0]])


def test_it_says_that_it_needs_standardised_activations_and_where_it_was_trained(tmp_path):
    path, _ = write(tmp_path)
    dictionary = load(path)
    expected = {"needs": "standardised activations", "hook_name": "22_resid", "layer": "22"}
    assert dictionary.info == load(path.parent).info == expected
    other = path.rename(tmp_path / "1200013184.pt")
    assert load(other).info == {"needs": "standardised activations"}


def test_the_warning_points_at_who_loads(tmp_path):
    path, _ = write(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_dictionary(path)
    assert [w.filename for w in caught] == [__file__]


def test_the_mend_it_names_gives_codes_of_raw_activations(tmp_path):
    path, _ = write(tmp_path)
    dictionary, x = load(path), torch.randn(50, 6) * torch.rand(6) * 9 + 5
    mean, deviation = x.mean(0), x.std(0)
    moved = dictionary.standardised(mean, deviation)
    expected = dictionary.encode((x - mean) / deviation)
    torch.testing.assert_close(moved.encode(x), expected, rtol=1e-3, atol=1e-3)


def test_the_state_of_training_beside_it_is_passed_over(tmp_path):
    path, _ = write(tmp_path, optimizer_state_dict={}, step=3)
    assert load(path).n_features == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": None}, "k must be a whole number above 0, got 'None'"),
        ({"k": 17}, "k is 17; it must lie between 1 and the 16 features"),
        ({"d_in": 7}, r"states d_in, n_features = \(7, 16\), but enc is \(6, 16\)"),
        ({"state": {"b_enc": torch.zeros(16)}}, "does not have: b_enc"),
        ({"state": {"dec": torch.zeros(6, 16)}}, "the decoder of 6 and 16"),
        ({"state": {"pre_b": torch.zeros(16)}}, "decoder bias has shape"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_contents_that_do_not_fit_are_refused(tmp_path, changes, message):
    path, _ = write(tmp_path, **changes)
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path)


def test_another_file_is_not_this_format(tmp_path):
    path, _ = write(tmp_path, model_state_dict=None)
    with pytest.raises(VlmEditError, match="is not known"):
        load_dictionary(path)
    with pytest.raises(VlmEditError, match="model_state_dict is missing"):
        load_dictionary(path, format="clipscope")
