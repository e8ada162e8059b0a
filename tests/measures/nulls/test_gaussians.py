"""Gaussian nulls, against moments worked out apart."""

import pytest
import torch
from torch import Tensor

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.nulls import joint_gaussian, unpaired_gaussians


def pairs(n: int = 40) -> dict[str, Tensor]:
    """Correlated streams that are far from Gaussian, and off the origin."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(n, 3, generator=generator).exp()
    mix = torch.randn(3, 6, generator=generator)
    noise = torch.randn(n, 6, generator=generator)
    return {"image": common @ mix + 2, "text": common @ mix.flip(0) + 0.3 * noise - 1}


def test_each_stream_has_the_mean_and_covariance_of_its_own() -> None:
    streams = pairs()
    drawn = unpaired_gaussians(streams, n=200_000)
    for name, x in streams.items():
        scale = x.std(0).max()
        assert torch.allclose(drawn[name].mean(0), x.mean(0), atol=0.02 * float(scale))
        assert torch.allclose(torch.cov(drawn[name].T), torch.cov(x.T), atol=0.03 * float(scale**2))
        skew = ((drawn[name] - drawn[name].mean(0)) / drawn[name].std(0)).pow(3).mean(0)
        assert float(skew.abs().max()) < 0.05


def test_only_the_joint_gaussian_keeps_the_covariance_across_streams() -> None:
    streams = pairs()
    wanted = torch.cov(torch.cat(list(streams.values()), 1).T)[:6, 6:]
    across = []
    for null in (unpaired_gaussians, joint_gaussian):
        drawn = null(streams, n=200_000)
        across.append(torch.cov(torch.cat(list(drawn.values()), 1).T)[:6, 6:])
    size = float(wanted.abs().max())
    assert float(across[0].abs().max()) < 0.03 * size
    assert torch.allclose(across[1], wanted, atol=0.03 * size)


def test_with_fewer_rows_than_dimensions_draws_lie_in_the_span_of_the_rows() -> None:
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4
    drawn = unpaired_gaussians({"image": x}, n=50_000)["image"].double()
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:4]
    inside = drawn - x.mean(0)
    assert float((inside - inside @ basis.T @ basis).abs().max()) < 1e-5
    assert torch.allclose(torch.cov(drawn.T), torch.cov(x.T), atol=0.1)


def test_draws_are_of_norm_one_where_the_rows_are_unless_it_is_said_otherwise() -> None:
    x = pairs()["image"]
    sphere = torch.nn.functional.normalize(x, dim=1)
    drawn = joint_gaussian({"image": sphere, "text": x})
    assert torch.allclose(drawn["image"].norm(dim=1), torch.ones(40), atol=1e-5)
    assert float(drawn["text"].norm(dim=1).std()) > 0.1
    loose = joint_gaussian({"image": sphere}, unit=False)["image"]
    assert float((loose.norm(dim=1) - 1).abs().max()) > 1e-3
    bound = unpaired_gaussians({"image": x}, unit=True)["image"]
    assert torch.allclose(bound.norm(dim=1), torch.ones(40), atol=1e-5)


def test_a_seed_draws_the_same_again_and_another_something_else() -> None:
    streams = pairs()
    first, again, other = (joint_gaussian(streams, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first["text"], again["text"])
    assert not torch.equal(first["text"], other["text"])
    assert first["text"].shape == streams["text"].shape
    assert first["text"].dtype == torch.float32


def test_what_has_no_gaussian_is_refused() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(VlmEditError, match="two rows or more"):
        unpaired_gaussians({"image": x[:1]})
    with pytest.raises(VlmEditError, match="n is 0"):
        unpaired_gaussians({"image": x}, n=0)
    with pytest.raises(VlmEditError, match="no streams"):
        joint_gaussian({})
    with pytest.raises(VlmEditError, match="NaN"):
        joint_gaussian({"image": x / 0})
    with pytest.raises(VlmEditError, match="one pair"):
        joint_gaussian({"image": x, "text": x[:3]})


def test_draws_do_not_turn_with_the_last_digits_of_rows_that_span_less_than_the_space() -> None:
    generator = torch.Generator().manual_seed(1)
    flat = torch.randn(60, 5, generator=generator) @ torch.randn(5, 12, generator=generator)
    streams = {"image": flat[:, :8], "text": flat[:, 4:]}
    noisy = {s: x + 1e-6 * torch.randn(x.shape, generator=generator) for s, x in streams.items()}
    one, other = (joint_gaussian(some, seed=2) for some in (streams, noisy))
    for stream, x in one.items():
        assert float((x - other[stream]).abs().max()) < 1e-2 * float(x.abs().max())
