"""Files of saev, old and new, with its formulas written here by hand.

tests/dictionaries/golden has files that the library wrote, and what it computed of them.
"""

import io
import json

import pytest
import torch

from vlm_edit import VlmEditError, load_dictionary

D, M = 6, 12
OLD = {
    "d_vit": D,
    "exp_factor": 2,
    "sparsity_coeff": 0.0004,
    "n_reinit_samples": 524288,
    "ghost_grads": False,
    "remove_parallel_grads": True,
    "normalize_w_dec": True,
    "seed": 0,
}
PARAMS = {"key": "any", "sparsity": {}, "aux": {}}


def header(schema=5, activation="Relu", params=None, **cfg):
    """As schemas 2 to 5 and the later ones of schema 1 have it."""
    described = {"cls": activation, "params": {**PARAMS, **(params or {})}}
    sizes = {"d_model": D, "d_sae": M, "activation": described, "normalize_w_dec": True}
    return {"schema": schema, "cfg": {**sizes, **cfg}, "commit": "abc", "lib": "0.1.0"}


def early(cls="Relu", **cfg):
    """As schema 1 began."""
    sizes = {"d_vit": D, "exp_factor": 2, "seed": 0}
    return {"schema": 1, "cfg": {**sizes, **cfg}, "cls": cls, "commit": "abc", "lib": "0.1.0"}


def tensors(d=D, m=M, **change):
    g = torch.Generator().manual_seed(0)
    found = {
        "W_enc": torch.randn(d, m, generator=g),
        "b_enc": torch.randn(m, generator=g),
        "W_dec": torch.randn(m, d, generator=g),
        "b_dec": torch.randn(d, generator=g),
    }
    return {name: t for name, t in {**found, **change}.items() if t is not None}


def write(path, first, found):
    buffer = io.BytesIO()
    torch.save(found, buffer)
    line = first if isinstance(first, bytes) else json.dumps(first).encode()
    path.write_bytes(line + b"\n" + buffer.getvalue())
    return path


def activations(d=D):
    g = torch.Generator().manual_seed(9)
    return 2 * torch.randn(20, d, generator=g) + torch.linspace(-2, 3, d)


def check(path, found, select, subtract=False, **told):
    """Compare with the formula, whole and in part."""
    x = activations(found["W_enc"].shape[0])
    w = {name: t.double() for name, t in found.items()}
    codes = select((x.double() - w["b_dec"] * subtract) @ w["W_enc"] + w["b_enc"])
    assert 0 < int(codes.count_nonzero()) < codes.numel()
    dictionary = load_dictionary(path, **told)
    close(dictionary.encode(x), codes)
    close(dictionary.reconstruct(x), codes @ w["W_dec"] + w["b_dec"])
    part = load_dictionary(path, lazy=True, **told).slice([3, 0])
    close(part.codes(x)[0], codes[:, [3, 0]])
    assert torch.equal(part.decoder, found["W_dec"][[3, 0]])


def close(ours, theirs):
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def strongest(k):
    return lambda h: h * (h >= h.topk(k).values[:, -1:])


@pytest.mark.parametrize("factor", [2, 1])
def test_files_without_schema_subtract_the_decoders_bias(tmp_path, factor):
    found = tensors(m=D * factor)
    path = write(tmp_path / "sae.pt", {**OLD, "exp_factor": factor}, found)
    check(path, found, torch.relu, subtract=True)


@pytest.mark.parametrize("m", [M, D])
@pytest.mark.parametrize("schema", [2, 3, 4, 5])
def test_files_with_a_schema_subtract_nothing(tmp_path, schema, m):
    found = tensors(m=m)
    check(write(tmp_path / "sae.pt", header(schema, d_sae=m), found), found, torch.relu)


@pytest.mark.parametrize("sizes", [{"d_model": D, "exp_factor": 2}, {"d_vit": D, "exp_factor": 2}])
def test_the_size_may_be_stated_as_a_factor(tmp_path, sizes):
    first = header(2)
    del first["cfg"]["d_model"], first["cfg"]["d_sae"]
    first["cfg"] |= sizes
    assert load_dictionary(write(tmp_path / "sae.pt", first, tensors())).n_features == M
    first["cfg"]["exp_factor"] = 3
    with pytest.raises(VlmEditError, match="states 18 features of width 6, but W_enc"):
        load_dictionary(write(tmp_path / "sae.pt", first, tensors()))


def test_top_k_keeps_codes_below_zero(tmp_path):
    found = tensors(b_enc=torch.full((M,), -9.0))
    path = write(tmp_path / "sae.pt", header(5, "TopK", {"top_k": 3}), found)
    check(path, found, strongest(3))
    assert bool((load_dictionary(path).encode(activations()) < 0).any())


def test_top_k_of_more_than_all_is_all(tmp_path):
    path = write(tmp_path / "sae.pt", header(5, "TopK", {"top_k": 99}), tensors())
    assert load_dictionary(path).encoder.k == M


@pytest.mark.parametrize(("level", "floor"), [(1.5, 1.5), (0.0, 0.0), (-1.0, 0.0)])
def test_batch_top_k_has_its_threshold_in_use(tmp_path, level, floor):
    found = tensors(**{"activation.threshold": torch.tensor(level)})
    path = write(tmp_path / "sae.pt", header(5, "BatchTopK", {"top_k": 3, "momentum": 0.1}), found)
    check(path, found, lambda h: h * (h > floor))
    with pytest.raises(VlmEditError, match="own threshold or none: leave it out"):
        load_dictionary(path, threshold=2.0)


def test_a_code_equal_to_the_threshold_goes(tmp_path):
    found = tensors(m=D, W_enc=torch.eye(D), b_enc=torch.zeros(D))
    found["activation.threshold"] = torch.tensor(0.75)
    path = write(tmp_path / "sae.pt", header(5, "BatchTopK", d_sae=D), found)
    assert not load_dictionary(path).encode(torch.full((1, D), 0.75)).any()


def test_batch_top_k_of_before_its_threshold_was_kept_must_be_told(tmp_path):
    found = tensors()
    path = write(tmp_path / "sae.pt", header(3, "BatchTopK", {"top_k": 3}), found)
    check(path, found, lambda h: h * (h > 1.5), threshold=1.5)
    with pytest.raises(VlmEditError, match="say threshold="):
        load_dictionary(path)


@pytest.mark.parametrize(("name", "params"), [("Relu", {}), ("TopK", {"top_k": 2})])
def test_other_activations_have_no_threshold(tmp_path, name, params):
    path = write(tmp_path / "sae.pt", header(5, name, params), tensors())
    with pytest.raises(VlmEditError, match=f"{name} here has its own threshold or none"):
        load_dictionary(path, threshold=1.0)
    extra = tensors(**{"activation.threshold": torch.tensor(1.0)})
    with pytest.raises(VlmEditError, match="does not have: activation.threshold"):
        load_dictionary(write(path, header(5, name, params), extra))


@pytest.mark.parametrize(
    ("cls", "cfg", "select"), [("Relu", {}, torch.relu), ("TopK", {"top_k": 3}, strongest(3))]
)
def test_early_schema_1_is_read_only_where_its_two_meanings_agree(tmp_path, cls, cfg, select):
    path, found = tmp_path / "sae.pt", tensors(b_dec=torch.zeros(D))
    check(write(path, early(cls, **cfg), found), found, select)
    with pytest.raises(VlmEditError, match=r"schema 1 with a b_dec .*\(abc\).*layout="):
        load_dictionary(write(path, early(cls, **cfg), tensors()))


def test_late_schema_1_is_as_schema_2(tmp_path):
    found = tensors()
    first = {**header(1, "TopK", {"top_k": 3}), "cls": "SparseAutoencoderConfig"}
    check(write(tmp_path / "sae.pt", first, found), found, strongest(3))


def test_the_layer_is_taken_from_the_config_beside(tmp_path):
    write(tmp_path / "sae.pt", header(), tensors())
    assert load_dictionary(tmp_path).info == {}
    (tmp_path / "config.json").write_text('{"train_data": {"layer": 13}}')
    assert load_dictionary(tmp_path).info == {"layer": "13"}
    assert load_dictionary(tmp_path / "sae.pt").info == {}
    for other in ('"all"', "true", "null"):
        (tmp_path / "config.json").write_text(f'{{"train_data": {{"layer": {other}}}}}')
        assert load_dictionary(tmp_path).info == {}


def test_a_file_may_have_another_name(tmp_path):
    path = write(tmp_path / "sae_24K_x64.pt", OLD, tensors())
    assert load_dictionary(path).n_features == M


@pytest.mark.parametrize(
    ("first", "change", "message"),
    [
        (header(6), {}, "schema 6 is not known; known are 1 to 5"),
        (header(True), {}, "schema True is not known"),
        (header(5, "Gelu"), {}, "Gelu.* is not known; known classes: Relu, TopK, BatchTopK"),
        (header(activation=None), {}, "is not known; known classes"),
        ({**header(), "cfg": [1]}, {}, "cfg is missing or is not an object"),
        ({**header(), "scale": 2.0}, {}, "header has scale, which no known version"),
        (header(scale=2.0), {}, "header has scale, which no known version"),
        (header(params={"scale": 2}), {}, "header has scale, which no known version"),
        ({**OLD, "scale": 2.0}, {}, "header has scale, which no known version"),
        (early(scale=2.0), {}, "header has scale, which no known version"),
        (header(5, "TopK"), {}, "top_k must be a whole number above 0, got 'None'"),
        (header(d_sae=0), {}, "d_sae must be a whole number above 0"),
        (header(d_sae=13), {}, r"states 13 features of width 6, but W_enc is \(6, 12\)"),
        (header(), {"W_dec": torch.zeros(D, M)}, r"W_dec is \(6, 12\), expected \(12, 6\)"),
        (header(), {"W_enc": torch.zeros(M, D)}, r"W_enc is \(12, 6\), expected \(6, 12\)"),
        (header(), {"b_enc": torch.zeros(M + 1)}, "encoder bias has shape"),
        (header(), {"b_dec": None}, "tensors missing: b_dec"),
        (header(), {"mean": torch.zeros(D)}, "does not have: mean"),
        (
            header(5, "BatchTopK"),
            {"activation.threshold": torch.tensor(float("nan"))},
            "activation.threshold is nan",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, first, change, message):
    path = write(tmp_path / "sae.pt", first, tensors(**change))
    with pytest.raises(VlmEditError, match=message):
        load_dictionary(path)


def test_something_else_than_tensors_by_name_is_refused(tmp_path):
    path = write(tmp_path / "sae.pt", header(), [1, 2])
    with pytest.raises(VlmEditError, match="holds a list"):
        load_dictionary(path)


@pytest.mark.parametrize(
    "first", [b"", b"{", b"[1]", b"{}", b'{"schema": 5}', b'{"a": "\xff"}', b'{"a": ' + b"[" * 9999]
)
def test_another_first_line_is_not_this_format(tmp_path, first):
    path = write(tmp_path / "sae.pt", first, tensors())
    with pytest.raises(VlmEditError, match="sae.pt is not a readable torch file"):
        load_dictionary(path)
    with pytest.raises(VlmEditError):
        load_dictionary(path, format="saev")


def test_a_header_without_a_zip_behind_is_not_this_format(tmp_path):
    path = tmp_path / "sae.pt"
    path.write_text(json.dumps(OLD) + "\nmore")
    with pytest.raises(VlmEditError, match="sae.pt is not a torch file"):
        load_dictionary(path)
    with pytest.raises(VlmEditError, match="sae.pt cannot be read"):
        load_dictionary(tmp_path / "..", format="saev")


@pytest.mark.parametrize("size", [10, 200, 1500, 2500])
def test_a_file_cut_short_is_refused(tmp_path, size):
    path = write(tmp_path / "sae.pt", header(), tensors())
    assert path.stat().st_size > size
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(VlmEditError):
        load_dictionary(path, format="saev")
