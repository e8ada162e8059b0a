"""Search the strength of a patch, and one more number, for the front of target and utility."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast, get_args

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import Estimate
from vlm_edit.host import Host, Model
from vlm_edit.patches import Patch
from vlm_edit.tuning.result import Goal, Point, Tuning, pareto_front, value

Figure = Callable[[], Any] | Callable[[Any], Any]
Number = int | float
Place = tuple[float, Number | None]

logger = logging.getLogger(__name__)

_COARSE = 5  # strengths of the first grid, both ends included
_FEW = 3  # of strengths and of numbers where both are searched
_CLOSE = 0.02  # of target and utility: what lies so near on the front needs nothing between
_FINEST = 1 / 128  # of the range of strengths: nearer neighbours are not told apart


def tune(
    host: Host | Model,
    patch: Patch | Callable[[Any], Patch],
    objective: Figure,
    utility: Figure,
    *,
    budget: int = 16,
    strengths: tuple[float, float] = (0.0, 1.0),
    numbers: Sequence[Number] | None = None,
    goal: Goal = "raise",
    **options: Any,
) -> Tuning:
    """Evaluate a patch at strengths that are worth it, and keep what no other point beats.

    First the host as it is and a coarse grid; then, again and again, the middle of the widest gap
    between neighbours on the front, as target and utility see it; and where that has none, the
    middle of the widest gap between strengths, of most weight beside the front. The same figures
    give the same points. The host is left as it was, whatever happens.

    Args:
        host: The host.
        patch: A patch, or a function that makes one of a number, such as how many top features.
        objective: What is to change, measured while the patch is attached: a function of no
            argument, or of the host, that gives a number or an ``Estimate``.
        utility: What is to stay, likewise; the higher the better.
        budget: Evaluations at most, the one of the host as it is included.
        strengths: Weakest and strongest, as ``Patch.attach`` takes them; 1 is the patch as it was
            made, and beyond is linear.
        numbers: What the function may be given, at least two if it is one; the search goes by
            their order.
        goal: Whether the objective is to ``raise`` or to ``lower``.
        **options: For ``Patch.attach``, such as ``mask``.

    Returns:
        Points, front, the best for a utility that must be kept, a table and a picture.

    Raises:
        VlmEditError: A budget below 3, strengths that do not rise, a function without numbers or
            numbers without a function, or a figure that is not a finite number.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vlm_edit import Ablate, Adapter, Dictionary, Host, Patch
        >>> from vlm_edit.tuning import tune
        >>> model = nn.Sequential(nn.Identity())
        >>> host = Host.of(model, adapter=Adapter.of({"x": ("0", "image", 2)}))
        >>> patch = Patch("x", Dictionary.identity(2), Ablate([0]))
        >>> bias = lambda: float(model(torch.ones(1, 2))[0, 0])  # 1 - strength
        >>> skill = lambda: 1 - (1 - bias()) ** 2
        >>> tuning = tune(host, patch, bias, skill, goal="lower", budget=9)
        >>> tuning.best(utility_at_least=0.8).strength
        0.375
    """
    host = Host.of(host)
    space = _checked(patch, strengths, numbers, budget)
    if goal not in get_args(Goal):
        raise BadArgument(f"goal is {goal!r}: use one of {get_args(Goal)}")
    figures = {"objective": _callable(objective), "utility": _callable(utility)}
    patches: dict[Number | None, Patch] = {}

    def evaluate(place: Place) -> Point:
        strength, number = place
        if number not in patches and strength:
            patches[number] = patch if isinstance(patch, Patch) else patch(number)
        attachment = (
            patches[number].attach(host, strength=strength, **options)
            if strength
            else nullcontext()
        )
        with attachment:
            values = {name: _figure(ask(host.model), name, place) for name, ask in figures.items()}
        point = Point(strength, number, values["objective"], values["utility"])
        logger.info("%s", point)
        return point

    points = [evaluate((0.0, None))]
    for place in space.coarse():
        points.append(evaluate(place))
    while len(points) < budget:
        next_place = space.finer(points, goal)
        if next_place is None:
            break
        points.append(evaluate(next_place))
    return Tuning(tuple(points), goal)


@dataclass(frozen=True)
class _Space:
    """The strengths and numbers at which a patch can be evaluated.

    Attributes:
        low: Weakest strength.
        high: Strongest.
        numbers: Given to the factory; None alone where there is none.
        budget: Evaluations, the one without a patch included.
    """

    low: float
    high: float
    numbers: tuple[Number | None, ...]
    budget: int

    def coarse(self) -> list[Place]:
        """Return the first grid, without strength 0: strengths evenly, and numbers of all sizes."""
        numbers = self.numbers
        left = self.budget - 1
        if len(numbers) > 1:
            last, few = len(numbers) - 1, min(_FEW, len(numbers), left)
            numbers = tuple(numbers[round(i * last / (few - 1))] for i in range(few))
        steps = min(_FEW if len(numbers) > 1 else _COARSE - 1, left // len(numbers))
        ends = (self.high - self.low) / max(1, steps if self.low == 0 else steps - 1)
        strengths = [self.high - i * ends for i in reversed(range(steps))]
        return [(s, n) for n in numbers for s in strengths if s]

    def finer(self, points: Sequence[Point], goal: Goal) -> Place | None:
        """Say where to look next; None where nothing is left that could be told apart."""
        front = pareto_front(points, goal)
        wide = _spread(points)
        gaps = sorted(((_gap(a, b, wide), a, b) for a, b in pairwise(front)), key=lambda g: -g[0])
        candidates = [
            place for gap, a, b in gaps if gap > _CLOSE for place in self._between(a, b, points)
        ]
        candidates += self._around(front, points, wide)
        return next((place for place in candidates if self._is_new(place, points)), None)

    def _between(self, a: Point, b: Point, points: Sequence[Point]) -> list[Place]:
        """Return middles of two neighbours on the front, of which the second goes further."""
        one, other = (p.number if p.strength else q.number for p, q in ((a, b), (b, a)))
        if one == other:
            line = self._line(one, points)
            i, j = (line.index(p.strength) for p in (a, b))
            # What lies between them is on no front: look beside the two themselves.
            side = 1 if i < j else -1
            sides = [(line[j - side], line[j]), (line[i], line[i + side])]
            sides.sort(key=lambda ends: -abs(ends[1] - ends[0]))
            return [((x + y) / 2, one) for x, y in sides]
        strength = (a.strength + b.strength) / 2
        middle = self.numbers[(self.numbers.index(one) + self.numbers.index(other)) // 2]
        places = [(strength, n) for n in (middle, other, one)]
        return [*places, (b.strength, middle), (a.strength, middle)]

    def _around(
        self, front: Sequence[Point], points: Sequence[Point], wide: tuple[float, float]
    ) -> list[Place]:
        """Return middles of all neighbouring strengths, and numbers next to the front's.

        Wide gaps first, in strength and in what was found there; beside the front they count for
        more, so that it is known two halvings better than the rest.
        """
        candidates: list[tuple[float, Place]] = []
        for number in self.numbers:
            line = self._line(number, points)
            for x, y in pairwise(line):
                ends = [next(p for p in points if _is_at(p, s, number)) for s in (x, y)]
                worth = (y - x) * (1 + _gap(ends[0], ends[1], wide))
                candidates.append(
                    (worth * (4 if set(ends) & set(front) else 1), ((x + y) / 2, number))
                )
        for point in front:
            if point.strength:
                at = self.numbers.index(point.number)
                beside = self.numbers[max(0, at - 1) : at + 2]
                candidates += [((self.high - self.low) / 2, (point.strength, n)) for n in beside]
        return [place for _, place in sorted(candidates, key=lambda item: -item[0])]

    def _line(self, number: Number | None, points: Sequence[Point]) -> list[float]:
        """List the strengths known of a number, rising; 0 is known of every one."""
        return sorted({p.strength for p in points if p.number == number or not p.strength})

    def _is_new(self, place: Place, points: Sequence[Point]) -> bool:
        strength, number = place
        strengths = self._line(number, points)
        near = min(abs(strength - other) for other in strengths)
        return self.low <= strength <= self.high and near >= (self.high - self.low) * _FINEST


def _is_at(point: Point, strength: float, number: Number | None) -> bool:
    return point.strength == strength and (not strength or point.number == number)


def _spread(points: Sequence[Point]) -> tuple[float, float]:
    """Measure how far targets and utilities lie apart; 1 where they do not."""
    both = [[value(p.target) for p in points], [value(p.utility) for p in points]]
    target, utility = (max(figures) - min(figures) or 1.0 for figures in both)
    return target, utility


def _gap(a: Point, b: Point, wide: tuple[float, float]) -> float:
    across = (value(a.target) - value(b.target)) / wide[0]
    return math.hypot(across, (value(a.utility) - value(b.utility)) / wide[1])


def _checked(
    patch: object, strengths: tuple[float, float], numbers: Sequence[Number] | None, budget: int
) -> _Space:
    if budget < 3:
        raise BadArgument(f"budget is {budget}: it takes 3 evaluations at least")
    low, high = strengths
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise BadArgument(f"strengths are {strengths}: give a weaker and a stronger finite number")
    if isinstance(patch, Patch) != (numbers is None):
        raise BadArgument(
            "a patch needs no numbers, and a function that makes one needs them: pass a Patch, or "
            "a function and numbers=, such as [1, 2, 4, 8]"
        )
    choices: tuple[Number | None, ...] = (None,) if numbers is None else tuple(numbers)
    if not choices or len(set(choices)) < len(choices):
        raise BadArgument(f"numbers are {list(choices)}: give at least one, each once")
    return _Space(low, high, choices, budget)


def _callable(figure: Figure) -> Callable[[Model], Any]:
    """Return a function that asks a figure, whether or not it wants to be given the host."""
    needs = [
        p
        for p in inspect.signature(figure).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    ask = cast("Callable[..., Any]", figure)
    return (lambda model: ask(model)) if needs else (lambda _: ask())


def _figure(answer: Any, name: str, place: Place) -> float | Estimate:
    numbers = (answer.value, answer.low, answer.high) if isinstance(answer, Estimate) else (answer,)
    try:
        finite = all(math.isfinite(float(number)) for number in numbers)
    except (TypeError, ValueError, RuntimeError):
        finite = False
    if not finite:
        strength, number = place
        of = "" if number is None else f" and number {number:g}"
        raise BadArgument(
            f"{name} gives {answer!r} at strength {strength:.3g}{of}: it must give a finite number "
            "or an Estimate of finite ends"
        )
    return answer if isinstance(answer, Estimate) else float(answer)
