"""Tables of generation.py."""

from __future__ import annotations

from typing import Any

from results import common
from vlm_edit.report import Table

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
RANDOM = 5  # draws of random features
# What is drawn from, and what is taken from; "own" takes nothing.
KINDS = {
    "image": ("image", "image"),
    "text": ("text", "image"),
    "captions": ("text", "text"),
    "own": ("image", "image"),
}
READ = {
    "reference background": "takes the reference's background",
    "reference vendor": "takes the reference's vendor",
    "reference label": "shows the reference's label",
    "reference label by host": "the same, by emoji-clip",
    "source background": "keeps the source's background",
    "source vendor": "keeps the source's vendor",
    "source label": "keeps the source's label",
    "source label by host": "the same, by emoji-clip",
    "reference near": "cosine with the reference",
    "reference like": "looks like the reference",
    "source near": "cosine with the source",
    "source like": "looks like the source",
    "stays background": "background as without the edit",
    "stays vendor": "vendor as without the edit",
}
FACTORS = ("reference background", "reference vendor", "reference label", "source label")
SHOWN = {
    "image": (
        "Drawn from an image, features taken from another image at strength 1",
        (*FACTORS, "source label by host", "reference near", "reference like"),
    ),
    "text": (
        "Drawn from a caption, features taken from an image at strength 1",
        (*FACTORS, "source label by host", "reference near", "reference like"),
    ),
    "captions": (
        "Drawn from a caption, features taken from another caption at strength 1",
        ("reference label", "reference label by host", "source label", "source label by host",
         "stays background", "stays vendor", "reference near"),
    ),
    "own": (
        "Drawn from an image with more or less of its own features",
        ("source background", "source vendor", "source label", "source label by host",
         "source near", "source like"),
    ),
}  # fmt: skip


def tables(result: dict[str, Any]) -> list[Table]:
    """A table by kind at full strength, whether more does more, and what other noises change."""
    return [
        *(_kind_table(result, kind) for kind in KINDS),
        _trend_table(result),
        _seed_table(result),
    ]


def _kind_table(result: dict[str, Any], kind: str) -> Table:
    title, keys = SHOWN[kind]
    rows = [
        [name, *(common.cell(line[key][:4]) for key in keys)] for name, line in result[kind].items()
    ]
    note = _note(result["about"]) if kind == "image" else "As above."
    if kind == "captions":
        note += (
            " Captions say nothing of background and vendor; the last but one columns tell whether "
            "those of the drawing stay. The whole embedding of the other caption is its prompt."
        )
    if kind == "own":
        note += " Scale by 0 leaves features out, by 2 doubles them; keep deletes all others."
    return Table(
        title, ("changed" if kind == "own" else "taken", *(READ[k] for k in keys)), rows, note
    )


def _note(about: dict[str, Any]) -> str:
    return (
        f"{about['pairs']} sources with a reference each, another label, group, background and "
        f"vendor, each drawn from {about['seeds']} noises; {about['steps']} steps, on "
        f"{about['device']}. Classes by mean -+ sd, where not said otherwise; the strongest tenth: "
        "of vision. Shares and means with 95 % bootstrap intervals over pairs (Wilson where none "
        f"shows it, or each); random: mean [lowest, highest] of {RANDOM} draws of live features, "
        "each from one noise. Label and vendor by an independent classifier, background by the "
        "colour of the edge; looks like: cosine of that classifier's features."
    )


def _trend_table(result: dict[str, Any]) -> Table:
    rows = []
    for kind in ("image", "text", "captions"):
        keys = ("reference label", "source label") if kind == "captions" else FACTORS
        for edit, line in result[kind].items():
            for key in keys if "trend" in line else ():
                trend = line["trend"][key]
                means = [f"{mean:.2f}" for mean in trend["means"]]
                name = {"text": "caption", "captions": "two captions"}.get(kind, kind)
                rows.append([name, edit, READ[key], *means, common.cell(trend["monotony"])])
    return Table(
        "Whether more takes more",
        ("from", "taken", "drawings that", *(f"{s:g}" for s in STRENGTHS), "Spearman"),
        rows,
        "Shares by strength from the first noise, and their rank correlation with it [95 % "
        "bootstrap over pairs].",
    )


def _seed_table(result: dict[str, Any]) -> Table:
    keys = (*FACTORS, "reference near", "reference like")
    rows = [
        [name, *(f"{line[key][4]:.3f} to {line[key][5]:.3f}" for key in keys)]
        for name, line in result["image"].items()
        if len(line[keys[0]]) > 4
    ]
    return Table(
        "What another noise changes",
        ("taken", *(READ[key] for key in keys)),
        rows,
        f"Drawn from an image, strength 1: lowest and highest mean of the "
        f"{result['about']['seeds']} noises.",
    )


def examples(result: dict[str, Any]) -> str:
    """What some ways do, in Markdown."""
    told = {
        "nothing": "nothing",
        "vision": "vision-dominant, mean -+ sd",
        "vision, significant": "vision-dominant, significant",
        "vision, strongest tenth": "vision-dominant, mean -+ sd, the strongest tenth",
        "cross": "cross-modal, mean -+ sd",
        "cross, significant": "cross-modal, significant",
        "language": "language-dominant, mean -+ sd",
        "language, significant": "language-dominant, significant",
        "random, as many as vision": "random",
        "random, as many as cross": "random",
        "whole embedding": "the whole embedding",
    }
    about = result["about"]
    rows = [
        f"| {about['pairs']} pairs, strength 1 | {' | '.join(READ[key] for key in FACTORS)} |",
        "| --- " * (1 + len(FACTORS)) + "|",
    ]
    for name, line in result["image"].items():
        plain, _, count = name.partition(" (")
        if plain in told:
            # Draws of random features differ by more than their mean tells.
            shown = [line[key][:3] if "random" in name else line[key][:1] for key in FACTORS]
            cells = " | ".join(_range([f"{x:.2f}".removeprefix("0") for x in v]) for v in shown)
            number = f" ({count}" if count else ""
            rows.append(f"| {told[plain]}{number} | {cells} |")
    return "\n".join(rows) + "\n"


def _range(told: list[str]) -> str:
    mean, *ends = told
    return f"{mean} [{', '.join(ends)}]" if ends else mean
