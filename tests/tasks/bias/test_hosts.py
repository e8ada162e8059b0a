"""The same bench on hosts of other families, tiny and random: by their joint embedding alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_hosts import FAMILIES

from vlm_edit import Dictionary, Host, Pairs
from vlm_edit.tasks.bias import Bench, Evidence, Outcome, Questions, Study, edit, select
from vlm_edit.tasks.bias.baselines import difference_in_means, group_means


@pytest.mark.parametrize("name", ["siglip", "siglip2", "altclip", "chinese_clip"])
def test_groups_are_told_and_edited_in_every_contrastive_family(name: str) -> None:
    family = FAMILIES[name]
    host = family.make().eval()

    def prepare(_: Any, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Any]:
        pixels = [
            torch.tensor(np.array(i.resize((16, 16)))).permute(2, 0, 1).float() / 255
            for i in images
        ]
        ids = [[5 + sum(map(ord, text)) % 40, 6, 7] for text in texts]
        return family.encode(family, torch.stack(pixels), ids)

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 60, (24, 16, 16, 3), generator=generator).byte()
    noise[::2, :, :, 0] += 180  # one group is red
    pairs = Pairs(
        [Image.fromarray(x.numpy()) for x in noise],
        tuple(f"text {i}" for i in range(24)),
        {"colour": ("red", "grey") * 12},
    )
    asked = Questions("colour", {"red": ["red"], "grey": ["grey"]}, queries=["anything"])
    bench = Bench.read(Host.of(host, prompt=prepare), pairs, asked, batch_size=8)
    neurons = Dictionary.identity(bench.plain.image.shape[1])
    evidence = Evidence.gather(bench, neurons)
    assert Outcome.of(bench.plain, k=5).estimate("probe").value > 0.9
    for patch in (difference_in_means(bench.plain), edit(evidence, select(evidence), "difference")):
        kept = bench.edited(patch)
        assert apart(kept) < 0.3 * apart(bench.plain)
        with patch.attach(host):
            there = Bench.read(Host.of(host, prompt=prepare), pairs, asked, batch_size=8).plain
        torch.testing.assert_close(kept.image, there.image, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(kept.text, there.text, rtol=1e-3, atol=1e-3)


def apart(study: Study) -> float:
    """Distance of the groups' mean embeddings."""
    one, two = group_means(study, "image")
    return float((one - two).norm())
