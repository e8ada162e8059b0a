"""Draw docs/rules.svg: what each rule makes of a code, and where moves take a hidden state.

    python docs/experiments results.pictures

Every curve is computed by the rule itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vlm_edit import Ablate, Clamp, Dictionary, Keep, Project, Scale, Steer
from vlm_edit.edits import Blend, Cap, Detect, Rule, Splice

OUT = Path(__file__).resolve().parents[2] / "rules.svg"
SIDE, GAP, COLUMNS = 150, 54, 5
RULES: dict[str, tuple[Rule, ...]] = {
    "Ablate([k])": (Ablate([0]),),
    "Scale([k], 0.5)": (Scale([0], 0.5),),
    "Clamp([k], 2)": (Clamp([0], 2.0),),
    "Steer([k], 1)": (Steer([0], 1.0),),
    "Cap([k], 1.5)": (Cap([0], 1.5),),
    "Blend([k], [2], .5 of it)": (Blend([0], [2.0], strength=0.5),),
    "Keep([others])": (Keep([1]),),
    "Project([k])": (Project([0]),),
    "Steer([k], .4, relative)": (Steer([0], 0.4, relative=True),),
    "Detect([k], v, above 1)": (Detect([0], [0.5, 2.5], threshold=1.0),),
}
MOVES = ("Project", "Detect", "relative")


def place(x: float, y: float, left: float, top: float) -> str:
    """A point of a panel whose axes go from -0.5 to 3."""
    at = (left + (x + 0.5) / 3.5 * SIDE, top + SIDE - (y + 0.5) / 3.5 * SIDE)
    return f"{at[0]:.1f},{at[1]:.1f}"


def curve(rules: tuple[Rule, ...], left: float, top: float) -> list[str]:
    """The code after, over the code before."""
    before = torch.linspace(0, 3, 61)
    after = before
    for rule in rules:
        after = rule(after[:, None])[:, 0]
    both = [(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True) if b <= 3]
    points = " ".join(place(a, b, left, top) for a, b in both)
    same = " ".join(place(v, v, left, top) for v in (0.0, 3.0))
    return [
        f'<polyline class="plain" points="{same}"/>',
        f'<polyline class="edited" points="{points}"/>',
    ]


def arrows(rules: tuple[Rule, ...], left: float, top: float) -> list[str]:
    """Where hidden states of two dimensions go; the feature's direction is across."""
    splice = Splice.of(Dictionary.identity(2), rules)
    drawn = []
    for a in (0.4, 1.3, 2.2):
        for b in (0.4, 1.3, 2.2):
            end: Tensor = splice(torch.tensor([a, b]))
            x1, y1 = place(a, b, left, top).split(",")
            x2, y2 = place(*end.tolist(), left, top).split(",")
            drawn += [
                f'<circle class="dot" cx="{x1}" cy="{y1}" r="2.5"/>',
                f'<line class="edited" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" '
                'marker-end="url(#tip)"/>',
            ]
    return drawn


def panel(name: str, rules: tuple[Rule, ...], number: int) -> list[str]:
    """Axes, a title, and what the rule does."""
    left = GAP + number % COLUMNS * (SIDE + GAP)
    top = GAP + number // COLUMNS * (SIDE + 2 * GAP)
    moves = any(word in name for word in MOVES)
    names = ("along the feature", "across") if moves else ("code", "code'")
    zero = place(0, 0, left, top).split(",")
    return [
        f'<text class="title" x="{left}" y="{top - 8}">{name}</text>',
        f'<line class="axis" x1="{left}" y1="{zero[1]}" x2="{left + SIDE}" y2="{zero[1]}"/>',
        f'<line class="axis" x1="{zero[0]}" y1="{top}" x2="{zero[0]}" y2="{top + SIDE}"/>',
        f'<text x="{left + SIDE}" y="{top + SIDE + 12}" text-anchor="end">{names[0]}</text>',
        f'<text x="{left - 4}" y="{top + 10}" text-anchor="end" '
        f'transform="rotate(-90 {left - 4} {top + 10})">{names[1]}</text>',
        *(arrows if moves else curve)(rules, left, top),
    ]


def picture() -> str:
    """The whole picture, as SVG."""
    rows = -(-len(RULES) // COLUMNS)
    width, height = GAP + COLUMNS * (SIDE + GAP), rows * (SIDE + 2 * GAP)
    style = (
        "text{font:11px sans-serif;fill:#444}.title{font:bold 11px monospace;fill:#111}"
        ".axis{stroke:#aaa}.plain{stroke:#bbb;stroke-dasharray:4 3;fill:none}"
        ".edited{stroke:#1f6feb;stroke-width:2;fill:none}.dot{fill:#888}"
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" '
        'markerHeight="5" orient="auto"><path d="M0 0L8 4L0 8z" fill="#1f6feb"/></marker></defs>'
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f"<style>{style}</style>{tip}",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, (name, rules) in enumerate(RULES.items()):
        lines += panel(name, rules, number)
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    OUT.write_text(picture(), encoding="utf-8")
