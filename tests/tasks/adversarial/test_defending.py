"""Defences, adaptive attacks on them, and what gives masked gradients away."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm_edit import Ablate, Host, Patch, VlmEditError, load_patch, zoo
from vlm_edit.tasks.adversarial import (
    Defence,
    Hardening,
    Strength,
    ZeroShot,
    fooling,
    harden_features,
    harden_gains,
    predict,
    suspicions,
    withstand,
)
from vlm_edit.tasks.adversarial.baselines import Jpeg, LowPass, Noise

QUICK = Strength(steps=8, queries=40, batch_size=64)
RADIUS = 2 / 255


@pytest.fixture(scope="module")
def plain() -> ZeroShot:
    model, processor = zoo.load_host()
    return ZeroShot.of(
        Host.of(model, processor), [f"a picture of {n}" for n in zoo.load_labels()[::16]]
    )


@pytest.fixture(scope="module")
def images(plain: ZeroShot) -> Tensor:
    pairs = zoo.load_pairs()
    return plain.host.pixels.read([pairs.open(i) for i in range(1, 25, 2)])


@pytest.fixture(scope="module")
def labels(plain: ZeroShot, images: Tensor) -> Tensor:
    return predict(plain, images)


def test_nothing_stands_better_than_the_images_that_are_right(
    plain: ZeroShot, images: Tensor, labels: Tensor
) -> None:
    wrong = labels.clone()
    wrong[:4] = (wrong[:4] + 1) % len(plain.texts)
    found = withstand(plain, images, wrong, RADIUS, QUICK, surrogate=plain)
    rates = [e.value for e in found.after.values()]
    assert rates[0] == pytest.approx(2 / 3) and rates == sorted(rates, reverse=True)
    assert list(found.after) == ["clean", "PGD", "APGD-CE", "APGD-DLR", "surrogate", "Square"]
    assert torch.equal(predict(plain, found.images) == wrong, found.standing)
    assert found.robust.value == float(found.standing.double().mean())


def test_a_defence_that_hides_its_gradient_is_found_out(
    plain: ZeroShot, images: Tensor, labels: Tensor
) -> None:
    """Its logits are steps, so that gradients say nothing; it is no harder to fool."""

    def stepped(x: Tensor) -> Tensor:
        logits = plain(x)
        return (logits * 8).round() + 0 * x.sum()

    found = withstand(stepped, images, labels, 4 / 255, QUICK, surrogate=plain)
    assert found.broken_by("surrogate")[0] > 5
    signs = suspicions([found])
    assert any("surrogate breaks" in sign for sign in signs)
    assert any("does not rise" in sign for sign in signs)


@pytest.mark.slow
def test_the_host_as_it_is_raises_no_suspicion(
    plain: ZeroShot, images: Tensor, labels: Tensor
) -> None:
    found = [withstand(plain, images, labels, e / 255, QUICK, surrogate=plain) for e in (1, 4)]
    huge = withstand(plain, images, labels, 64 / 255, QUICK)
    assert suspicions(found, huge) == []


def test_a_defence_is_in_force_in_its_block_and_gone_after_it(
    plain: ZeroShot, images: Tensor
) -> None:
    patch = Patch("joint", zoo.load_dictionary("joint"), Ablate(range(0, 512, 2)), "image")
    with torch.no_grad():
        before = plain(images)
        defence = Defence("half", patch, edits={"vision.1": lambda h: h.clamp(-3, 3)})
        with defence.on(plain.host.host):
            during = plain(images)
        assert torch.equal(plain(images), before) and not torch.equal(during, before)


def test_a_random_defence_is_judged_on_new_draws(
    plain: ZeroShot, images: Tensor, labels: Tensor
) -> None:
    defence = Defence("noise", before=Noise(0.05), samples=4)
    found = withstand(
        defence.classifier(plain), images, labels, RADIUS, QUICK, random=defence.random
    )
    assert "APGD-DLR" not in found.after
    assert defence.random and not Defence("none").random


def test_centring_takes_the_means_from_both_sides(plain: ZeroShot, images: Tensor) -> None:
    with torch.no_grad():
        unit = torch.nn.functional.normalize(plain.host(images), dim=1)
        classifier = Defence("centred", centre=unit.mean(0)).classifier(plain)
        one = torch.nn.functional.normalize(unit - unit.mean(0), dim=1)
        texts = plain.texts - plain.texts.mean(0)
        expected = plain.scale * one @ torch.nn.functional.normalize(texts, dim=1).T
        assert torch.allclose(classifier(images), expected, atol=1e-3)


def test_images_made_to_fool_go_past_the_border(
    plain: ZeroShot, images: Tensor, labels: Tensor
) -> None:
    far = fooling(plain, images, labels, 4 / 255, steps=10)
    assert float((predict(plain, far) == labels).float().mean()) < 0.2
    assert float((far - images).abs().max()) <= 4 / 255 + 1e-6


@pytest.mark.parametrize("quality", [20, 75, 95])
def test_jpeg_is_nearly_pillows(quality: int, images: Tensor) -> None:
    def through_pillow(x: Tensor) -> Tensor:
        array = (x * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(array).save(file, "jpeg", quality=quality, subsampling=0)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255

    whole = (images * 255).round() / 255
    ours = Jpeg(quality)(whole)
    theirs = torch.stack([through_pillow(x) for x in whole])
    assert float((ours - theirs).abs().mean()) < 0.5 / 255
    assert float((ours - theirs).abs().mean()) < 0.3 * float((theirs - whole).abs().mean())


def test_jpeg_passes_a_gradient_through_its_rounding() -> None:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(Jpeg(50)(x)[0, 0, 3, 3], x)
    assert float(gradient[0, 0, 3, 3]) > 0.5


def test_a_low_pass_takes_a_checkerboard_away_and_leaves_a_plain_image() -> None:
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    image = board.float().expand(1, 3, 16, 16)
    assert torch.allclose(LowPass(8)(image), torch.full_like(image, 0.5))
    assert torch.allclose(LowPass(8)(torch.full_like(image, 0.3)), torch.full_like(image, 0.3))


def test_noise_is_as_wide_as_it_says_and_never_the_same() -> None:
    noise, image = Noise(0.1), torch.full((4, 3, 32, 32), 0.5)
    first, second = noise(image), noise(image)
    assert float((first - image).std()) == pytest.approx(0.1, rel=0.05)
    assert not torch.equal(first, second)
    assert torch.equal(Noise(0.1)(image), first)


HOW = Hardening(steps=8, batch_size=12, varied=False, rate=0.02, attack_steps=2, eps=4 / 255)


@pytest.mark.parametrize("kind", ["gains", "features"])
def test_hardening_lowers_its_loss_and_its_patch_file_does_the_same(
    kind: str, plain: ZeroShot, images: Tensor, tmp_path: Any
) -> None:
    host = plain.host
    if kind == "gains":
        found = harden_gains(
            host, images, {"joint": zoo.load_dictionary("joint")}, replace(HOW, rate=0.1)
        )
    else:
        found = harden_features(host, images, ["vision.1"], HOW, features=8)
    assert float(found.curve[-2:].mean()) < 0.97 * float(found.curve[:2].mean())
    assert all(p.requires_grad for p in host.host.root.parameters())
    found.patch.save(tmp_path / "patch.safetensors", host.host)
    with torch.no_grad():
        before = host(images)
        with found.patch.attach(host.host):
            made = host(images)
        with load_patch(tmp_path / "patch.safetensors").attach(host.host):
            read = host(images)
        assert torch.equal(host(images), before)
    assert torch.equal(made, read) and not torch.equal(made, before)


def test_hardening_starts_from_the_host_as_it_is(plain: ZeroShot, images: Tensor) -> None:
    """With a rate of next to nothing the patch changes next to nothing."""
    still = Hardening(steps=1, batch_size=8, rate=1e-9, attack_steps=1)
    with torch.no_grad():
        before = plain.host(images)
    for found in (
        harden_gains(plain.host, images, {"vision.2": zoo.load_dictionary("vision.2")}, still),
        harden_features(plain.host, images, ["vision.0"], still, features=4),
    ):
        with torch.no_grad(), found.patch.attach(plain.host.host):
            assert torch.allclose(plain.host(images), before, atol=1e-4)


def test_what_cannot_be_done_is_refused(plain: ZeroShot, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(VlmEditError, match="12 images but 3 labels"):
        withstand(plain, images, labels[:3], RADIUS, QUICK)
    with pytest.raises(VlmEditError, match="0 sites"):
        harden_gains(plain.host, images, {})
    with pytest.raises(VlmEditError, match="sigma is 0"):
        Noise(0)
    with pytest.raises(VlmEditError, match="quality is 0"):
        Jpeg(0)
