"""A bench on people of the zoo, and one of vectors whose groups are known."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlm_edit import Pairs, zoo
from vlm_edit.tasks.bias import Bench, Questions, Study


@pytest.fixture(scope="session")
def bench() -> Bench:
    """The zoo's host on its first 300 pairs."""
    pairs = zoo.load_pairs().select(range(300))
    people = {c for c, g in zip(*(pairs.columns[k] for k in ("concept", "gender")), strict=True)
              if g in ("man", "woman")}  # fmt: skip
    roles = sorted(people)[:6]
    asked = Questions(
        "gender",
        {value: [value, f"a picture of {value}"] for value in ("man", "woman")},
        queries=[f"a picture of {role}" for role in roles],
        label="concept",
        labels={f"a picture of {c}": c for c in sorted(set(pairs.columns["concept"]))},
        variants={
            f"a picture of {role}": {v: f"a picture of {v} {role}" for v in ("man", "woman")}
            for role in roles
        },
    )
    return Bench.read(*zoo.load_host(), pairs, asked, batch_size=100)


@pytest.fixture
def planted() -> Study:
    """Forty images in 12 dimensions: the first is the group, the second the label."""
    generator = torch.Generator().manual_seed(0)
    n = 40
    image = 0.1 * torch.randn(n, 12, generator=generator)
    group = ["man" if i % 2 else "woman" for i in range(n)]
    label = ["cook" if i % 4 < 2 else "pilot" for i in range(n)]
    image[:, 0] += torch.tensor([1.0 if g == "man" else -1.0 for g in group])
    image[:, 1] += torch.tensor([1.0 if x == "cook" else -1.0 for x in label])
    image[:, 2] += 2.0
    axes = torch.eye(12)
    shared = axes[2]
    text = {
        "a man": axes[0] + shared,
        "a woman": -axes[0] + shared,
        "anybody": 0.3 * axes[0] + shared,
        "a cook": 0.2 * axes[0] + axes[1] + shared,
        "a pilot": 0.2 * axes[0] - axes[1] + shared,
        "a male cook": 0.9 * axes[0] + axes[1] + shared,
        "a female cook": -0.9 * axes[0] + axes[1] + shared,
    }
    asked = Questions(
        "gender",
        {"man": ["a man"], "woman": ["a woman"]},
        queries=["anybody", "a cook"],
        label="job",
        labels={"a cook": "cook", "a pilot": "pilot"},
        variants={"a cook": {"man": "a male cook", "woman": "a female cook"}},
    )
    pairs = Pairs(
        [Image.new("RGB", (8, 8))] * n,
        tuple(f"caption {i}" for i in range(n)),
        {"gender": tuple(group), "job": tuple(label)},
    )
    rows = torch.stack([text[t] for t in asked.texts()])
    return Study(asked, pairs, image, image.clone(), rows)
