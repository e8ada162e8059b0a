"""Draw docs/draw.png: what the first pairs of ``generation.py`` take from their references.

python docs/results/drawings.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import generation
import torch
from PIL import Image
from torch import Tensor

from vlm_edit import zoo
from vlm_edit.tasks.generation import Row, grid

OUT = Path(__file__).resolve().parents[1] / "draw.png"
SHOWN, STEPS = 2, 20  # pairs; the random draw of pairs chose them, nobody else


def main() -> None:
    """Draw and write."""
    torch.set_num_threads(1)
    options = argparse.Namespace(device="cpu", pairs=SHOWN, steps=STEPS, half=False)
    one = generation.Subject(options)
    pairs = zoo.load_pairs()
    source, reference = (one.hidden["image"][rows] for rows in (one.source, one.reference))
    plain = one.draw(source)
    pages = []
    for n in range(SHOWN):
        rows = []
        for name, edit in generation.edits(one, "image").items():
            if name.startswith("random, as far") or "significant" in name:
                continue
            drawn = [plain] + [
                one.draw(edit(source, reference, s)) for s in generation.STRENGTHS[1:]
            ]
            images = [picture(batch[n]) for batch in drawn]
            rows.append(Row(name.replace(", ", ",\n"), pairs.open(one.reference[n]), images))
        label = one.columns["label"][one.source[n]]
        pages.append(grid(rows, generation.STRENGTHS, f"source: {label}", side=64))
    sheet = Image.new("RGB", (sum(p.width for p in pages), max(p.height for p in pages)), "white")
    left = 0
    for page in pages:
        sheet.paste(page, (left, 0))
        left += page.width
    sheet.quantize(255).save(OUT, optimize=True)


def picture(drawing: Tensor) -> Image.Image:
    """A drawing [3, h, w] in [0, 1]."""
    return Image.fromarray((drawing.permute(1, 2, 0) * 255).round().byte().numpy())


if __name__ == "__main__":
    main()
