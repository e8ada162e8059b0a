"""What a tuning found: points, the front among them, and the best for a purpose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate
from vlm_edit.report import Table
from vlm_edit.tuning.picture import Axis, Mark, draw

Goal = Literal["raise", "lower"]


@dataclass(frozen=True)
class Point:
    """Hold one evaluation of a patch.

    Attributes:
        strength: Of the patch; 0 is the host without it.
        number: What the factory was given; None where there is none.
        target: What is to change.
        utility: What is to stay, the higher the better.
    """

    strength: float
    number: int | float | None
    target: float | Estimate
    utility: float | Estimate


@dataclass(frozen=True)
class Tuning:
    """Evaluations of a patch, and what can be had for how much.

    Attributes:
        points: In the order in which they were evaluated; the first is the host without a patch.
        goal: Whether the target is to ``raise`` or to ``lower``.

    Example:
        >>> tuning = Tuning((Point(0.0, None, 0.9, 0.8), Point(1.0, None, 0.1, 0.6)), "lower")
        >>> tuning.best(utility_at_least=0.5).strength
        1.0
        >>> print(tuning.table())
        Target against utility
        strength  target (lower)  utility  front
        --------  --------------  -------  -----
        0         .900            .800     yes
        1         .100            .600     yes
        Front: no other point is as good in both and better in one.
    """

    points: tuple[Point, ...]
    goal: Goal = "raise"

    @property
    def front(self) -> tuple[Point, ...]:
        """Return the points that no other is as good as in both and better in one.

        By falling utility, and by the values, whatever their intervals. Of points alike in both the
        weakest stays.
        """
        return pareto_front(self.points, self.goal)

    def best(self, utility_at_least: float, *, sure: bool = False) -> Point:
        """Return the point of the best target among those whose utility is high enough.

        Of equal targets the one of higher utility, then the weaker. It was chosen on the data it
        was measured on and looks better there than elsewhere: measure it again on others.

        Args:
            utility_at_least: What must be kept.
            sure: Whether the low end of the utility's interval must reach it, too.

        Raises:
            VlmEditError: No point's utility does; the message says which comes nearest.
        """

        def level(point: Point) -> float:
            utility = point.utility
            return utility.low if sure and isinstance(utility, Estimate) else value(utility)

        enough = [point for point in self.points if level(point) >= utility_at_least]
        if not enough:
            nearest = max(self.points, key=level)
            raise BadArgument(
                f"no point keeps a utility of {utility_at_least}: the nearest is "
                f"{shown(nearest.utility)} at strength {nearest.strength:.3g}; ask for less"
            )
        return min(enough, key=lambda point: _rank(point, self.goal))

    def table(self) -> Table:
        """Show all points, by number and strength, with what lies on the front."""
        numbered = any(point.number is not None for point in self.points)
        front = self.front
        rows = [
            (
                f"{point.strength:.4g}",
                *([_name(point.number)] if numbered else []),
                shown(point.target),
                shown(point.utility),
                "yes" if point in front else "",
            )
            for point in sorted(self.points, key=_place)
        ]
        columns = ("strength", *(["number"] if numbered else []))
        return Table(
            "Target against utility",
            (*columns, f"target ({self.goal})", "utility", "front"),
            rows,
            "Front: no other point is as good in both and better in one.",
        )

    def plot(
        self,
        path: str | os.PathLike[str],
        target: str = "target",
        utility: str = "utility",
    ) -> None:
        """Write a picture of all points, with intervals and the front as a line, as PNG.

        Args:
            path: The file, by custom ``*.png``; its folder must exist.
            target: What the horizontal axis is called.
            utility: What the vertical one is.

        Raises:
            VlmEditError: It cannot be written.
        """
        front = self.front
        marks = [
            Mark(_span(p.target), _span(p.utility), _label(p), p in front, p.strength == 0)
            for p in self.points
        ]
        draw(path, marks, Axis(target, better=self.goal), Axis(utility, better="raise"))

    def __str__(self) -> str:
        """Return the table as text."""
        return str(self.table())


def pareto_front(points: Sequence[Point], goal: Goal) -> tuple[Point, ...]:
    """Return points that no other is as good as in both and better in one, by falling utility."""
    front: list[Point] = []
    best = float("inf")
    order = sorted(points, key=lambda p: (-value(p.utility), *_rank(p, goal)))
    for point in order:
        target = _rank(point, goal)[0]
        if target < best:
            front.append(point)
            best = target
    return tuple(front)


def value(figure: float | Estimate) -> float:
    """Return the figure without its interval."""
    return figure.value if isinstance(figure, Estimate) else figure


def shown(figure: float | Estimate) -> str:
    """Return the figure as a table shows it."""
    if isinstance(figure, Estimate):
        return str(figure)
    text = f"{figure:.3f}" if abs(figure) < 100 else f"{figure:.4g}"
    return text[1:] if text.startswith("0.") else text.replace("-0.", "-.")


def _rank(point: Point, goal: Goal) -> tuple[float, float, float, float]:
    """Rank a point, less is better: by target, utility, strength, number."""
    target = value(point.target)
    number = 0.0 if point.number is None else float(point.number)
    sign = -1 if goal == "raise" else 1
    return sign * target, -value(point.utility), abs(point.strength), number


def _place(point: Point) -> tuple[float, float]:
    return (float("-inf") if point.number is None else float(point.number), point.strength)


def _span(figure: float | Estimate) -> tuple[float, float, float]:
    if isinstance(figure, Estimate):
        return figure.low, figure.value, figure.high
    return figure, figure, figure


def _name(number: int | float | None) -> str:
    return "" if number is None else f"{number:g}"


def _label(point: Point) -> str:
    if point.strength == 0:
        return "unedited"
    number = "" if point.number is None else f"{_name(point.number)} at "
    return f"{number}{point.strength:.3g}"
