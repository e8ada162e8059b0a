"""How often intervals hold the truth where `until_width` ends the reading: simulated features.

    python docs/experiments scale.until_width  # 15 seconds

Each of 2,000 features is a measurement of its own, which stops at the first look at which its 90 %
interval is narrow enough. The width is the median that such features have at a look, so that half
of them stop there and the others at the next one, which is where luck chooses most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_edit.measures.dominance import DominanceAccumulator

FEATURES, PAIRS, CUT = 2000, 4096, 512
LOOKS = (512, 1024, 2048, 4096)
KINDS: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {
    "anything, evenly": (0.5, lambda u, _: u),
    "0 or 1, half of each": (0.5, lambda u, _: (u < 0.5).double()),
    "0 or 1, .9 of them 1": (0.9, lambda u, _: (u < 0.9).double()),
    "0 or 1, .98 of them 1": (0.98, lambda u, _: (u < 0.98).double()),
    "1, but for .02 anything": (0.99, lambda u, v: torch.where(u < 0.02, v, 1.0)),
}


class Seen(NamedTuple):
    """What a look shows: the width of each interval, and whether it holds the truth."""

    widths: Tensor
    held: Tensor


def looks(kind: str, fires: float) -> Iterator[Seen]:
    """Draw pairs, and look at their doubling prefixes."""
    truth, ratio = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    gathered = DominanceAccumulator(FEATURES)
    for first in range(0, PAIRS, CUT):
        u, v, w = torch.rand(3, CUT, FEATURES, generator=generator, dtype=torch.float64)
        image, active = ratio(u, v), w < fires
        gathered.update(image * active, (1 - image) * active)
        if first + CUT in LOOKS:
            low, high = gathered.compute().intervals(0.9)
            widths = (high - low).nan_to_num(nan=1.0)
            yield Seen(widths, (low <= truth) & (truth <= high))


def stopped(seen: list[Seen], width: float) -> tuple[float, float]:
    """Return the share that stops, and of those the share whose interval holds the truth."""
    done = held = torch.zeros(FEATURES, dtype=torch.bool)
    for look in seen:
        now = (look.widths <= width) & ~done
        done, held = done | now, held | (now & look.held)
    return float(done.double().mean()), float(held.sum() / done.sum())


def main() -> None:
    """Simulate, and print a table."""
    print("| ratios | fires in | half stop at | held there | width | stopped | held at the stop |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        for fires in (0.3, 0.03):
            seen = list(looks(kind, fires))
            for at in (0, 1, 2):
                width = float(seen[at].widths.median())
                done, held = stopped(seen, width)
                fixed = float(seen[at].held.double().mean())
                cells = f"{LOOKS[at]:,} | {fixed:.3f} | {width:.3f} | {done:.2f} | {held:.3f}"
                print(f"| {kind} | {fires:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
