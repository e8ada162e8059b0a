"""Draw what the first pairs of ``generation.py`` take, and what they keep: two pictures of docs.

python docs/experiments results.drawings
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from results import generation
from results.generation_tables import KINDS, STRENGTHS
from vlm_edit import Keep, zoo
from vlm_edit.edits import Splice
from vlm_edit.tasks.generation import Row, grid

DOCS = Path(__file__).resolve().parents[2]
TAKEN, KEPT = DOCS / "draw.png", DOCS / "keep.png"
SHOWN, STEPS = 2, 20  # pairs; the random draw of pairs chose them, nobody else


def main() -> None:
    """Draw and write."""
    torch.set_num_threads(1)
    options = ["--pairs", str(SHOWN), "--seeds", "1", "--steps", str(STEPS)]
    one = generation.Subject(generation.parse(options))
    source = one.hidden["image"][one.source]
    plain = one.draw(source)
    write(one, taken(one, source, plain), TAKEN)
    write(one, kept(one, source, plain), KEPT)


def taken(
    one: generation.Subject, source: Tensor, plain: Tensor
) -> dict[str, tuple[bool, list[Tensor]]]:
    """By what is taken from the references: drawings by strength, and that references show."""
    reference = one.hidden["image"][one.reference]
    found = {}
    for name, (edit, *_) in generation.edits(one, KINDS["image"]).items():
        if name.startswith("random, as far") or "significant" in name:
            continue
        edited = [edit(source, reference, s) for s in STRENGTHS[1:]]
        found[name] = (True, [plain, *map(one.draw, edited)])
    return found


def kept(
    one: generation.Subject, source: Tensor, plain: Tensor
) -> dict[str, tuple[bool, list[Tensor]]]:
    """By what alone is kept of the sources: drawings by strength."""
    found = {}
    for name, (features, *_) in generation.groups(one).items():
        rules = [Keep(features, strength=s) for s in STRENGTHS[1:]]
        edited = [Splice.of(one.dictionary, [rule])(source, None, "image") for rule in rules]
        found[name] = (False, [plain, *map(one.draw, edited)])
    return found


def write(
    one: generation.Subject, drawn: dict[str, tuple[bool, Sequence[Tensor]]], out: Path
) -> None:
    """A sheet with a grid for each pair."""
    pairs, pages = zoo.load_pairs(), []
    for n in range(SHOWN):
        rows = [
            Row(
                name.replace(", ", ",\n"),
                pairs.open(one.reference[n]) if with_reference else None,
                [picture(batch[n]) for batch in batches],
            )
            for name, (with_reference, batches) in drawn.items()
        ]
        label = one.columns["label"][one.source[n]]
        pages.append(grid(rows, STRENGTHS, f"source: {label}", side=64))
    sheet = Image.new("RGB", (sum(p.width for p in pages), max(p.height for p in pages)), "white")
    left = 0
    for page in pages:
        sheet.paste(page, (left, 0))
        left += page.width
    sheet.quantize(255).save(out, optimize=True)


def picture(drawing: Tensor) -> Image.Image:
    """A drawing [3, h, w] in [0, 1]."""
    return Image.fromarray((drawing.permute(1, 2, 0) * 255).round().byte().numpy())


if __name__ == "__main__":
    main()
