"""The scores of a measurement as a histogram, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_edit.ground.errors import BadArgument, VlmEditError, expect_kind
from vlm_edit.measures.dominance import CLASSES, Cut, Dominance, null_histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# As on the page; the darker ones tell the classes apart without colour too.
_COLOURS = {"language": "#1f5fbf", "cross": "#00897a", "vision": "#d9661f", "undecided": "#c3c7ce"}
_NAMES = {"language": "language-dominant", "cross": "cross-modal", "vision": "vision-dominant"}
_RULES = "#3a3f47"


def plot(dominance: Dominance, rule: Cut, bins: int, axes: Axes | None) -> Axes:
    """Draw the scores, stacked by class, with the cuts; as ``Measurement.plot`` does."""
    expect_kind("bins", bins, int, "a number of bins, such as 40")
    if bins < 1:
        raise BadArgument(f"bins is {bins}; draw at least 1")
    axes = _blank() if axes is None else axes
    members = dominance.classes(rule)
    shown = [name for name in _COLOURS if name in CLASSES and members[name]]
    edges = [i / bins for i in range(bins + 1)]
    axes.hist(
        [dominance.scores[members[name]].numpy() for name in shown],
        bins=edges,
        stacked=True,
        color=[_COLOURS[name] for name in shown],
        label=[f"{_NAMES.get(name, name)} ({len(members[name]):,})" for name in shown],
        edgecolor="white",
        linewidth=0.5,
    )
    axes.stairs(
        null_histogram(dominance, bins),
        edges,
        color=_RULES,
        linewidth=1.2,
        label="if modality had no effect",
    )
    for cut in dominance.cuts(rule):
        axes.axvline(cut, color=_RULES, linewidth=1, linestyle=(0, (4, 3)))
    dead = len(members["dead"])
    axes.set_xlim(0, 1)
    axes.set_xlabel("Modality Dominance Score (0 text only, 1 image only)")
    axes.set_ylabel("features" + (f" ({dead:,} dead ones left out)" if dead else ""))
    axes.spines[["top", "right"]].set_visible(False)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(
        frameon=False, ncols=3, fontsize="small", columnspacing=1.5, handlelength=1.2, **place
    )
    return axes


def _blank() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise VlmEditError(
            "plots are drawn with matplotlib, which is not installed: pip install 'vlm-edit[plots]'"
        ) from error
    return pyplot.subplots(figsize=(7.4, 4.0), dpi=120, layout="constrained")[1]
