"""What Iso-Energy alignment does to the codes of pairs whose truth is known.

    OMP_NUM_THREADS=1 python tests/benchmarks/aligned_pairs.py [--seeds 3]

4,000 pairs of width 24 have one code of about 2 of 16 concepts, and each side says a concept by a
direction of which a part is common to both sides. TopK dictionaries of 64 features, k 3, are
trained in 800 steps of 256 on both streams, centred apart. Of 1,000 other pairs: the mean cosine of
the two sides' codes, explained variance of the images, and the share of living features active on
both sides of more than 30 % of the pairs that they are active in at all.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.report import Table

WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)


def sides(count: int, seed: int) -> dict[str, Tensor]:
    """Pairs with one code, each side in directions of its own beside a common part."""
    known, g = torch.Generator().manual_seed(5), torch.Generator().manual_seed(seed)
    both, *apart = F.normalize(torch.randn(3, 16, 24, generator=known), dim=2)
    codes = (torch.rand(count, 16, generator=g) < 2 / 16) * (
        0.5 + torch.rand(count, 16, generator=g)
    )
    names = ("image", "text")
    return {name: codes @ (both + 1.2 * own) for name, own in zip(names, apart, strict=True)}


def figures(align: float, seed: int) -> tuple[float, float, float]:
    """What a dictionary does on other pairs."""
    # A mask of next to nothing makes batches of pairs without alignment, too.
    config = TrainConfig(
        64, 3, 800, 256, kind="topk", align=align, mask=1e-9, seed=seed, dead_after=200
    )  # fmt: skip
    found = train_dictionary(sides(4000, 0), config, progress=False)
    pairs = sides(1000, 1)
    image, text = (found.encode(x, name) > 0 for name, x in pairs.items())
    codes = [found.encode(x, name) for name, x in pairs.items()]
    living = (image | text).any(0)
    common = ((image & text).sum(0) / (image | text).sum(0).clamp_min(1))[living]
    alike = float(F.cosine_similarity(*codes).mean())
    explained = found.explained_variance(pairs["image"], "image")
    return alike, explained, float((common > 0.3).double().mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for align in WEIGHTS:
        values = zip(*(figures(align, seed) for seed in range(options.seeds)), strict=True)
        cells = [
            f"{statistics.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in values
        ]
        rows.append([f"{align:g}", *cells])
        print(rows[-1], flush=True)
    columns = ("align", "cosine of codes", "explained variance", "features of both sides")
    print(Table(f"Mean of {options.seeds} seeds", columns, rows, "The least and the most."))


if __name__ == "__main__":
    main()
