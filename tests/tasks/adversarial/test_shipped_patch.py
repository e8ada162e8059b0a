"""The zoo's patch against attacks, on images that nothing was tuned on."""

from __future__ import annotations

import pytest
import torch

from vlm_edit import Host, load_patch, zoo
from vlm_edit.tasks.adversarial import Defence, Strength, ZeroShot, withstand

COUNT = 64


@pytest.mark.slow
def test_the_shipped_patch_lets_more_images_stand_and_keeps_what_is_right() -> None:
    model, processor = zoo.load_host()
    pairs, labels = zoo.load_pairs(), zoo.load_labels()
    choose = ZeroShot.of(Host.of(model, processor), [f"a picture of {name}" for name in labels])
    rows = range(1, 2 * COUNT, 2)  # it was tuned on even ones
    images = choose.host.pixels.read([pairs.open(i) for i in rows])
    right = torch.tensor([labels.index(pairs.columns["label"][i]) for i in rows])
    strength = Strength(steps=10, queries=0, batch_size=COUNT)
    found = {}
    for name, patch in {
        "none": None,
        "patch": load_patch(zoo.patch_file("robust-emoji-clip")),
    }.items():
        with Defence(name, patch).on(model):
            found[name] = withstand(choose, images, right, 2 / 255, strength)
    none, own = found["none"], found["patch"]
    assert own.after["clean"].value > none.after["clean"].value - 0.06
    assert own.robust.value > none.robust.value + 0.05
