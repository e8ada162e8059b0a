"""How often the intervals of few cases hold the truth: 1,000 simulations of each kind.

    python docs/experiments results.coverage --run 1000  # some five minutes
    python docs/experiments results.coverage             # prints what is stored

Cases are drawn from what is known, so that the truth is; intervals ask for 95 %.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from statistics import NormalDist, median
from typing import Any

import torch
from torch import Tensor

from results import common
from vlm_edit.ground.statistics import (
    Estimate,
    auc_difference,
    auc_estimate,
    drawn_difference,
    mean_estimate,
    ratio_estimate,
    share_difference,
)
from vlm_edit.report import Table

OPTIONS = " --run 1000"
SIZES = (4, 5, 6, 10, 30)
POSITIVES = (5, 10, 30)
IMAGES = (5, 10, 30)
CAPTIONS = 5

Case = tuple[str, str, float, Callable[[], Estimate]]


class Drawn:
    """Random numbers of one seed, float64."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        """Between 0 and 1."""
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        """Of mean 0 and standard deviation 1."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def captions(self, images: int) -> Tensor:
        """A value of each caption, half of whose variance is the image's."""
        return self.normal(images).repeat_interleave(CAPTIONS) + self.normal(images * CAPTIONS)


def means(drawn: Drawn) -> Iterator[Case]:
    """Means of few values, skewed ones too."""
    kinds: dict[str, tuple[float, Callable[[int], Tensor]]] = {
        "uniform": (0.5, drawn.uniform),
        "normal": (0.0, drawn.normal),
        "exponential": (1.0, lambda n: -drawn.uniform(n).log()),
        "lognormal, sigma 1": (math.exp(0.5), lambda n: drawn.normal(n).exp()),
        "lognormal, sigma 1.5": (math.exp(1.125), lambda n: (1.5 * drawn.normal(n)).exp()),
        "hits, .9": (0.9, lambda n: drawn.uniform(n) < 0.9),
    }
    for kind, (truth, draw) in kinds.items():
        for n in SIZES:
            yield f"mean, {kind}", str(n), truth, lambda draw=draw, n=n: mean_estimate(draw(n))


def areas(drawn: Drawn) -> Iterator[Case]:
    """Areas under the curve of few positives among ten times as many cases, and two of them."""

    def scores(positive: Tensor, *truths: float) -> list[Tensor]:
        one, other = drawn.normal(2, len(positive))
        both = (one, 0.7 * one + math.sqrt(0.51) * other)
        ahead = [math.sqrt(2) * NormalDist().inv_cdf(truth) for truth in truths]
        return [x + a * positive for x, a in zip(both, ahead, strict=False)]

    for truth in (0.7, 0.9, 0.97):
        for yes in POSITIVES:
            positive = torch.arange(10 * yes) < yes

            def alone(positive: Tensor = positive, truth: float = truth) -> Estimate:
                return auc_estimate(scores(positive, truth)[0], positive)

            def apart(positive: Tensor = positive, truth: float = truth) -> Estimate:
                return auc_difference(*scores(positive, truth, truth - 0.1), positive)

            yield f"area, {truth}", str(yes), truth, alone
            yield f"areas apart, {truth} and .1 less", str(yes), 0.1, apart


def others(drawn: Drawn) -> Iterator[Case]:
    """Ratios, paired shares and differences over draws."""

    def ratio(n: int) -> Estimate:
        below = 1 + drawn.uniform(n)
        return ratio_estimate(0.5 * below + 0.3 * drawn.normal(n), below)

    def paired(n: int) -> Estimate:
        luck = drawn.uniform(n)
        other = torch.where(drawn.uniform(n) < 0.7, luck, drawn.uniform(n))
        return share_difference(luck < 0.9, other < 0.7)

    def draws(n: int) -> Estimate:
        one = drawn.normal(n) + 0.5 * drawn.normal(1, n)
        return drawn_difference(one, 0.3 * drawn.normal(5, 1) + 0.5 * drawn.normal(5, n))

    for n in (5, 10, 30):
        yield "ratio", str(n), 0.5, lambda n=n: ratio(n)
        yield "paired shares, .9 and .7", str(n), 0.2, lambda n=n: paired(n)
        yield "one draw less five random ones", str(n), 0.0, lambda n=n: draws(n)


def grouped(drawn: Drawn) -> Iterator[Case]:
    """Five captions of each image, told which is whose or not."""
    ahead = 2 * NormalDist().inv_cdf(0.8)
    share = NormalDist().cdf(0.8 / math.sqrt(2))
    for images in IMAGES:
        n, groups = images * CAPTIONS, torch.arange(images).repeat_interleave(CAPTIONS)
        positive = groups % 3 == 0

        def mean(known: bool, groups: Tensor = groups, images: int = images) -> Estimate:
            return mean_estimate(drawn.captions(images), groups if known else None)

        def hits(known: bool, groups: Tensor = groups, images: int = images) -> Estimate:
            return mean_estimate(drawn.captions(images) < 0.8, groups if known else None)

        def area(
            known: bool, groups: Tensor = groups, images: int = images, positive: Tensor = positive
        ) -> Estimate:
            scores = drawn.captions(images) + ahead * positive
            return auc_estimate(scores, positive, groups if known else None)

        size = f"{images} x {CAPTIONS} = {n}"
        for known, told in ((True, "by image"), (False, "images not told")):
            yield f"mean, {told}", size, 0.0, lambda known=known, f=mean: f(known)
            yield f"hits, {told}", size, share, lambda known=known, f=hits: f(known)
            yield f"area, .8, {told}", size, 0.8, lambda known=known, f=area: f(known)


def simulated(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Say of every case how often its interval holds the truth, and how wide it is."""
    rows = []
    for kind in (means, areas, others, grouped):
        for name, size, truth, estimate in kind(Drawn(seed)):
            found = [estimate() for _ in range(count)]
            held = sum(e.low <= truth <= e.high for e in found)
            width = common.rounded(median(e.high - e.low for e in found))
            rows.append({"of": name, "cases": size, "held": held, "width": width})
    return rows


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures with their Monte Carlo error."""
    rows, count = result["rows"], result["simulations"]
    cells = []
    for row in rows:
        share = row["held"] / count
        error = math.sqrt(share * (1 - share) / count)
        cells.append(
            (row["of"], row["cases"], f"{share:.3f} +- {error:.3f}", f"{row['width']:.2f}")
        )
    note = (
        f"Shares of {count} simulations whose 95 % interval holds the truth, +- one Monte Carlo "
        "standard error; median width. Areas: positives among ten times as many cases."
    )
    columns = ("interval", "cases", "holds the truth", "width")
    return [Table("How often intervals of few cases hold the truth", columns, cells, note)]


def main() -> None:
    """Simulate if asked, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=int, metavar="N", help="simulate N times and store it")
    count = parser.parse_args().run
    if count:
        common.save("coverage", {"simulations": count, "rows": simulated(count)})
    for table in tables(common.load("coverage")):
        print(common.markdown(table))


if __name__ == "__main__":
    main()
