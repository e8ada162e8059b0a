"""A metric as features of a class are deleted, beside controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.ground.statistics import Estimate, drawn_difference, mean_estimate
from vlm_edit.measures.controls.features import (
    activity,
    expect_choice,
    expect_known,
    norm_matched,
    orders,
)

Metric = Callable[[list[int]], Tensor | Sequence[float] | Sequence[bool]]

FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """A metric as the features of a class are deleted, strongest first, beside random controls.

    Attributes:
        fractions: Of the class, rising.
        counts: Features of the class deleted at each.
        values: [f, n] float64, the metric of each case at each fraction.
        controls: Per control the same, [draws, f, n].
        control_counts: Per control the features deleted, [draws, f] int64.
    """

    fractions: tuple[float, ...]
    counts: tuple[int, ...]
    values: Tensor
    controls: Mapping[str, Tensor]
    control_counts: Mapping[str, Tensor]

    def area(self, control: str, groups: Tensor | None = None) -> Estimate:
        """Measure the area between a control's curve and the class's: the mean loss beyond it.

        Positive where deleting the class costs more. By the trapezoid rule over the fractions, a
        share of the whole width. Cases and the control's draws vary apart, as in
        ``drawn_difference``: few draws widen the interval.

        Args:
            control: A key of ``controls``.
            groups: [n] int, which image each case is of.

        Raises:
            VlmEditError: An unknown control, or groups of other cases.
        """
        if control not in self.controls:
            raise UnknownName(f"no control {control!r}: there are {sorted(self.controls)}")
        x = torch.tensor(self.fractions, dtype=torch.float64)
        leads = self.controls[control] - self.values
        areas = torch.trapezoid(leads, x, dim=1) / (x[-1] - x[0])
        return drawn_difference(areas, torch.zeros_like(areas[:1]), groups)

    def rows(self) -> list[dict[str, float | int | Estimate]]:
        """Return one row per fraction: the metric of the class and of each control.

        The class's interval is over cases; a control's ends are its lowest and
        highest draw, and its ``n`` the number of draws.
        """
        rows: list[dict[str, float | int | Estimate]] = []
        for i, (fraction, count) in enumerate(zip(self.fractions, self.counts, strict=True)):
            row: dict[str, float | int | Estimate] = {"fraction": fraction, "features": count}
            row["class"] = mean_estimate(self.values[i])
            for name, values in self.controls.items():
                means = values[:, i].mean(1)
                ends = float(means.min()), float(means.max())
                row[name] = Estimate(float(means.mean()), *ends, len(means))
                row[f"{name} features"] = float(self.control_counts[name][:, i].double().mean())
            rows.append(row)
        return rows

    def __str__(self) -> str:
        """Lay out an aligned table, and under it the areas."""
        rows = self.rows()
        names = ["class", *self.controls]
        lines = [["fraction", "features", *names]]
        for row in rows:
            cells = [str(row["class"])]
            cells += [f"{row[n]} ({row[f'{n} features']:.0f})" for n in self.controls]
            lines.append([f"{row['fraction']:g}", str(row["features"]), *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        areas = [f"area between {name} and class: {self.area(name)}" for name in self.controls]
        return "\n".join([*text, *areas])


def deletion_curve(
    metric: Metric,
    features: Sequence[int],
    live: Sequence[int],
    codes: Tensor | SparseCodes,
    decoder: Tensor | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 5,
    seed: int = 0,
) -> DeletionCurve:
    """Ask any metric as features of a class are deleted, strongest first, beside random controls.

    At every fraction stand as many random features (``size``) and random features that move the
    hidden states as far (``norm``). Within one draw the sets grow, as the class's do.

    Args:
        metric: From deleted features (none at fraction 0) to one value per case, [n]: whether a
            pair is retrieved, a probe is right, an answer is correct. Called once per set.
        features: The class.
        live: Features that controls choose from.
        codes: [n, m], for the order of deletion (by mean |code|) and the norms.
        decoder: [m, d]; without it there is no ``norm`` control.
        fractions: Of the class, rising from 0 to 1.
        draws: Of each control.
        seed: Of those.

    Raises:
        VlmEditError: An empty class, fractions that do not rise within [0, 1], or a metric whose
            number of cases changes.

    Example:
        >>> import torch
        >>> curve = deletion_curve(
        ...     lambda deleted: [float(0 not in deleted), float(1 not in deleted)],
        ...     features=[0, 1],
        ...     live=range(8),
        ...     codes=torch.ones(1, 8),
        ...     fractions=(0, 0.5, 1),
        ... )
        >>> curve.values
        tensor([[1., 1.],
                [0., 1.],
                [0., 0.]], dtype=torch.float64)
        >>> curve.area("size").value
        0.4
    """
    _expect_fractions(features, fractions)
    expect_choice(features, live, draws)
    sparse = SparseCodes.of(codes)
    expect_known([*features, *live], sparse.n_features)
    strength = activity(sparse)[list(features)]
    order = [features[i] for i in strength.argsort(descending=True, stable=True).tolist()]
    counts = [round(fraction * len(features)) for fraction in fractions]
    controls: dict[str, list[list[list[int]]]] = {
        "size": [[o[:c].tolist() for c in counts] for o in orders(live, draws, seed)]
    }
    if decoder is not None:
        sets: list[list[list[int]]] = [
            norm_matched(order[:count], live, sparse, decoder, draws, seed) for count in counts
        ]
        controls["norm"] = [list(series) for series in zip(*sets, strict=True)]
    reader = _Reader(metric)
    return DeletionCurve(
        tuple(float(fraction) for fraction in fractions),
        tuple(counts),
        torch.stack([reader(order[:count]) for count in counts]),
        {
            name: torch.stack([torch.stack([reader(part) for part in draw]) for draw in series])
            for name, series in controls.items()
        },
        {
            name: torch.tensor([[*map(len, draw)] for draw in series])
            for name, series in controls.items()
        },  # fmt: skip
    )


class _Reader:
    """Ask a metric once per set of features, and hold it to its number of cases."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.known: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, features: Sequence[int]) -> Tensor:
        key = tuple(sorted(features))
        if key not in self.known:
            values = torch.as_tensor(self.metric(list(key))).double().cpu()
            first = next(iter(self.known.values()), values)
            if values.ndim != 1 or values.shape != first.shape or not len(values):
                raise BadArgument(
                    "the metric must give one value per case, of the same cases each time, got "
                    f"{tuple(values.shape)} after {tuple(first.shape)}"
                )
            if not bool(values.isfinite().all()):
                raise BadArgument(f"the metric is not finite with {len(key)} features deleted")
            self.known[key] = values
        return self.known[key]


def _expect_fractions(features: Sequence[int], fractions: Sequence[float]) -> None:
    if not len(features):
        raise BadArgument("the class has no feature: there is nothing to delete")
    rising = all(a < b for a, b in zip(fractions, fractions[1:], strict=False))
    if len(fractions) < 2 or not rising or fractions[0] < 0 or fractions[-1] > 1:
        raise BadArgument(f"fractions must rise within [0, 1], two at least, got {fractions}")
