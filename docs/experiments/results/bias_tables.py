"""Tables of bias.py."""

from __future__ import annotations

from typing import Any

from results import common
from vlm_edit.ground.statistics import Estimate
from vlm_edit.report import Table
from vlm_edit.tasks.bias.outcome import BELOW
from vlm_edit.tasks.bias.probing import CONTROLS

VALUES = ("man", "woman")
NUMBERS = (8, 16, 32)
BASELINE = "difference in means"
CHANCE = (f"ablate {NUMBERS[0]} random", f"difference of {NUMBERS[0]} random")
COMPARED = ("read", "probe", "MaxSkew", "recognised", "kept", "R@1")
DEALT = "genders permuted"
BY_CHANCE = ("nothing", f"ablate {NUMBERS[0]} features", BASELINE, "BEND-VLM (queries only)")
K = 20
DRAWS = 10
QUESTION = "what is it?"
SAID = ("man", "woman", "neither")


def tables(result: dict[str, Any]) -> list[Table]:
    """As they stand on the page."""
    return [
        prompt_table(result["prompts"]),
        way_table(result["ways"], "effect", result["chance"]),
        way_table(result["ways"], "cost"),
        way_table(result["ways"], "ahead"),
        more_table(result["more"]),
        deleted_table(result["deletions"]),
        leaning_table(result["leanings"]),
        said_table(result["captions"]),
    ]


def prompt_table(found: dict[str, Any]) -> Table:
    """How well prompts tell gender."""
    rows = [
        (
            name,
            *(f"{common.cell(line[g])} of {line[g][3]}" for g in VALUES),
            common.cell(line["read"]),
        )
        for name, line in found.items()
    ]
    return Table(
        "Gender by prompts, nothing edited",
        ("prompts", *VALUES, "both alike"),
        rows,
        "Share of images nearer to the prompt of their own gender [95 % Wilson, both alike "
        "put together of it]. The last row compares the labels of the image's concept, such as man "
        "biking and woman biking.",
    )


HEADINGS = {
    "effect": {
        **{"read": "read by prompts", "man": "man", "woman": "woman", "probe": "read by a probe"},
        **{"MaxSkew": f"MaxSkew@{K}", "KL": f"KL@{K}", "NDKL": f"NDKL@{K}"},
    },
    "cost": {
        **{"recognised": "people's concept", "gap": "gap man, woman", "worst": "worse of both"},
        **{"kept": "all concepts", "R@1": "R@1", "R@5": "R@5"},
    },
    "ahead": {
        **{"read": "read by prompts", "probe": "read by a probe", "MaxSkew": f"MaxSkew@{K}"},
        **{"recognised": "people's concept", "kept": "all concepts", "R@1": "R@1"},
    },
}
TITLES = {
    "effect": "Gender taken out: what is left of it",
    "cost": "Gender taken out: what it costs",
    "ahead": f"Each way less the {BASELINE}, on the same images",
}
NOTES = {
    "effect": "206 people of 48 concepts. Read by prompts: the mean of man's and woman's share "
    "that three prompts tell right; chance is .5. Read by a probe: trained on the edited "
    "embeddings of the half tested on (five folds). Skews: of men and women among the first "
    f"{K} images that a role's name without gender finds, means over the roles of each half "
    "[95 % interval over images and roles, both drawn anew]. Genders permuted: the same genders "
    "dealt to the same images 1,000 times, mean [middle 95 %], and how often that makes a skew "
    "as high as the edit's. Below chance: by the whole interval, so that the genders are told by "
    "taking each for the other. "
    f"Random: mean [lowest, highest] of {DRAWS} draws.",
    "cost": "People's concept: nearest of 699 labels is one of the image's concept, 206 people. "
    "All concepts: likewise, 1,024 images. R@1, R@5: an image finds a caption of its concept among "
    "its half's.",
    "ahead": "Paired differences on the same cases [95 % interval: of shares Tango's score, of "
    "skews over images and roles]. Below 0 is better in the "
    "first three columns, above 0 in the others. *: apart from 0 by Holm's method over the table.",
}


def way_table(
    found: dict[str, Any], kind: str, chance_of: dict[str, dict[str, Any]] | None = None
) -> Table:
    """Every way by one kind of figures, and first what chance would give some of the ways."""
    columns = HEADINGS[kind]

    def line_of(name: str) -> dict[str, Any]:
        return found[name]["ahead"] if kind == "ahead" else found[name]

    drawn = {chance: [n for n in found if n.startswith(f"{chance} ")] for chance in CHANCE}
    shown = [n for n in found if not any(n in names for names in drawn.values())]
    if kind == "ahead":
        shown = [name for name in shown if name != BASELINE]
    rows = [
        (f"{DEALT}: {name}", *(_dealt(line.get(c)) for c in columns))
        for name, line in (chance_of or {}).items()
    ]
    keys = [(name, column) for name in shown for column in columns] if kind == "ahead" else []
    told = common.apart([line_of(name)[column] for name, column in keys])
    held = {key for key, one in zip(keys, told, strict=True) if one}
    rows += [
        (name, *(_cell(line_of(name)[c], c, kind) + "*" * ((name, c) in held) for c in columns))
        for name in shown
    ]
    for chance, names in drawn.items():
        cells = []
        for column in columns:
            values = [line_of(name)[column][0] for name in names]
            spread = Estimate(sum(values) / len(values), min(values), max(values), len(values))
            cells.append(spread.text(3))
        rows.append((f"{chance} features", *cells))
    return Table(TITLES[kind], ("edit", *columns.values()), rows, NOTES[kind])


def _dealt(stored: list[float] | None) -> str:
    """What chance gives of a skew, and how often it gives as much as there is."""
    if stored is None:
        return ""
    return f"{common.cell(stored[:4])}, p {common.figure(stored[4], 3)}"


def _cell(stored: list[float], column: str, kind: str) -> str:
    """A figure, and whether it is read less often than a guess would be, by its whole interval."""
    below = kind == "effect" and column in ("read", "probe") and stored[2] < 1 / len(VALUES)
    return common.cell(stored) + (BELOW if below else "")


def more_table(found: dict[str, Any]) -> Table:
    """The same on more people."""
    rows = [
        (
            f"{kind} ({line['probe'][3]})",
            name.replace(" 0", " features"),
            *(common.cell(line[key]) for key in ("read", "few", "probe")),
            "" if name == BASELINE else common.cell(line["ahead"]),
            common.cell(line["recognised"]),
        )
        for kind, lines in found.items()
        for name, line in lines.items()
    ]
    columns = ("people", "edit", "read by prompts", "by a probe, 103 people", "by a probe, all")
    return Table(
        "More people, drawings that do not ship",
        (*columns, f"less the {BASELINE}", "people's concept"),
        rows,
        "Edits learned from the 206 shipped people. Seen drawings: emoji-clip was trained on them. "
        "By a probe of 103 people: as many as a half of the shipped pairs has; mean [lowest, "
        "highest] of 20 draws. Others [95 % bootstrap over images; people's concept: Wilson].",
    )


def deleted_table(found: list[dict[str, Any]]) -> Table:
    """What deleting a class does to each gender."""
    rows = [
        (
            f"{one['kind']} ({one['features']})",
            {"read": "prompts", "probe": "probe"}[one["metric"]],
            f"{one['group']} ({one['after'][3]})",
            *(common.cell(one[key]) for key in ("before", "after", "loss")),
            *(common.cell(one["beyond"][c]) for c in CONTROLS),
            f"{one['control_features']['norm']:.0f}",
        )
        for one in found
    ]
    columns = ("deleted", "read by", "images", "before", "after", "loss", "beyond as many random")
    return Table(
        "Which class of features carries gender: deletion, by gender",
        (*columns, "beyond random that move as far", "of these"),
        rows,
        "Share told right [95 % Wilson], all features of a class (rule significant) deleted in "
        "images and texts. Loss: image by image [95 %, Tango's score]. Beyond: how much more is "
        "lost than by deleting random live features "
        f"[95 % interval over images and {DRAWS} draws].",
    )


def leaning_table(found: list[dict[str, Any]]) -> Table:
    """Where the features of each gender stand."""
    rows = [
        (
            {"image": "images", "text": "captions"}[one["stream"]],
            one["group"],
            str(one["features"]),
            ", ".join(f"{n} {kind}" for kind, n in one["classes"].items() if n),
            *(common.cell(one[key]) for key in ("score", "random", "apart")),
        )
        for one in found
    ]
    return Table(
        "Where the features of women and of men stand",
        ("compared by", "fire more for", "features", "of class", "MDS", "random", "woman less man"),
        rows,
        "Features that fire more for one gender (rank test, false discovery rate .05). MDS: mean "
        "[95 % interval over features], 1 is vision. Random: mean [lowest, highest] of 100 draws "
        "of other features as active.",
    )


def said_table(found: dict[str, Any]) -> Table:
    """Gender words of captions."""
    rows = []
    for name, line in found.items():
        for group in VALUES:
            rows.append(
                (
                    name,
                    f"{group} ({line[group]['man'][3]})",
                    *(common.cell(line[group][kind]) for kind in SAID),
                    common.cell(line["words"]) if group == VALUES[0] else "",
                )
            )
    return Table(
        f'emoji-llava asked "{QUESTION}" about people: gender words of its answers',
        ("edit", "images of", *(f"says {kind}" for kind in SAID), "other words"),
        rows,
        "Edits at image tokens of `language.0` and at text tokens of `language.3`, the last layer. "
        "Shares of answers [95 % Wilson] with a word of men, of women, of neither. Other words: F1 "
        "with the right name, words of gender left out [95 % interval], of all 206. Random: as "
        "many live features, three draws, each with its interval.",
    )
