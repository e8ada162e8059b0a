"""Attacks on hosts of other families, through patches, on tiny random models."""

from __future__ import annotations

import pytest
import torch
from tiny_hosts import FAMILIES

from vlm_edit import Ablate, Dictionary, Host, Patch
from vlm_edit.tasks.adversarial import Away, Features, ImageHost, Pixels, movement, pgd

CONTRASTIVE = ("clip", "siglip", "altclip", "chinese_clip")


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_an_attack_moves_a_hosts_embedding_through_its_patch(name: str) -> None:
    host = FAMILIES[name].make().eval()
    pixels = Pixels(None, (0.5, 0.4, 0.3), (0.3, 0.3, 0.3))
    seen = ImageHost(Host.of(host), pixels)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    neurons = Dictionary.identity(Host.of(host).site("vision.0").width)
    patch = Patch("vision.0", neurons, Ablate(range(4)), "image")
    with torch.no_grad():
        plain = seen(images)
    with patch.attach(host):
        with torch.no_grad():
            true = seen(images)
        found = pgd(Away(seen, true), images, 8 / 255, steps=5)
        noise = pgd(Away(seen, true), images, 8 / 255, steps=1, step_size=1e-9)
        moved = movement(
            Features(seen, neurons, "vision.0"), images, found.images, {"cut": range(4)}
        )
    assert not torch.equal(true, plain)
    assert bool((found.loss > noise.loss).all())
    assert float(moved.whole.min()) > 0 and float(moved.parts["cut"].max()) == 0
    with torch.no_grad():
        assert torch.equal(seen(images), plain)
