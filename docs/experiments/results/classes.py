"""How many features each rule calls what, what chance would, and how conventions move the score.

python docs/experiments results.classes
"""

from __future__ import annotations

from typing import Any, get_args

import torch

from results import common
from results.common import Subject
from vlm_edit.ground.statistics import mean_estimate
from vlm_edit.measures.dominance import CLASSES, Cut, Zeros
from vlm_edit.report import Table

DRAWS = 200


def compute(subjects: list[Subject]) -> dict[str, Any]:
    """Class counts with their null, and MDS under every convention."""
    result: dict[str, Any] = {}
    for subject in subjects:
        found = subject.dominance
        rules: dict[str, Any] = {}
        for rule in get_args(Cut):
            counts = {name: len(members) for name, members in found.classes(rule).items()}
            null = found.expected_classes(rule, draws=DRAWS)
            paired = set(found.paired().nonzero().flatten().tolist())
            rules[rule] = {
                "cuts": [common.rounded(cut) for cut in found.cuts(rule)],
                "counts": counts,
                "expected": {name: common.told(null[name]) for name in CLASSES},
                "paired": len(paired & set(found.classes(rule)["cross"])),
            }
        live = ~found.dead
        matched, shuffled = found.cofiring()
        cross = torch.as_tensor(found.classes("significant")["cross"], dtype=torch.long)
        result[subject.name] = {
            "rules": rules,
            "scores": _conventions(subject),
            "gap": common.rounded(subject.found.gap),
            "paired": int(found.paired().sum()),
            "live": int(live.sum()),
            "cofiring of cross": [
                common.told(mean_estimate(values[cross])) if len(cross) else None
                for values in (matched, shuffled)
            ],
            "warnings": found.warnings(),
        }
    return result


def _conventions(subject: Subject) -> dict[str, Any]:
    found, told = subject.dominance, {}
    live = ~found.dead
    scores = {
        f"MDS, zeros={zeros}": common.dominance_of(subject.codes, zeros).scores
        for zeros in get_args(Zeros)
    } | {
        "ModalityScore": found.modality_score(),
        "ModalityScore, energy": found.modality_score(energy=True),
    }
    for name, values in scores.items():
        beside = torch.stack([values[live], found.scores[live]])
        told[name] = [
            common.rounded(float(values[live].mean())),
            common.rounded(float(values[live].std())),
            common.rounded(float(torch.corrcoef(beside)[0, 1])),
        ]
    return told


def tables(result: dict[str, Any]) -> list[Table]:
    """Counts beside their null; conventions."""
    rows = []
    for name, part in result.items():
        for rule, told in part["rules"].items():
            cells = []
            for kind in CLASSES:
                value, low, high, _ = told["expected"][kind]
                cells.append(f"{told['counts'][kind]} ({value:.0f} [{low:.0f}, {high:.0f}])")
            cuts = ", ".join(f"{cut:.2f}" for cut in told["cuts"])
            rows.append((name, rule, cuts, *cells, str(told["paired"])))
    counts = Table(
        "Features of each class, and in brackets how many chance would call so",
        ("dictionary", "rule", "cuts", *CLASSES, "paired cross"),
        rows,
        f"In brackets: mean of {DRAWS} draws [95 % of them] in which image and text were swapped "
        "at random inside each pair, so that modality has no effect. Paired cross: cross-modal, "
        "and firing together on matched pairs significantly more than on shuffled ones (Fisher, "
        "Benjamini-Hochberg at .05).",
    )
    rows = []
    for name, part in result.items():
        matched, shuffled = part["cofiring of cross"]
        rows.append(
            (
                name,
                str(part["live"]),
                f"{part['gap']:.3f}",
                *(f"{mean:.3f} ({sd:.3f})" for mean, sd, _ in part["scores"].values()),
                str(part["paired"]),
                common.cell(matched),
                common.cell(shuffled),
            )
        )
    names = list(next(iter(result.values()))["scores"])
    conventions = Table(
        "Mean (sd) of each score over live features; the gap; and what fires together",
        ("dictionary", "live", "gap", *names, "paired", "cross: matched", "cross: shuffled"),
        rows,
        "Paired counts features of any class. Matched and shuffled: mean co-firing of the "
        "cross-modal features (rule significant), 95 % intervals over features.",
    )
    return [counts, conventions]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute(common.of_zoo())
    common.save("classes", found)
    print("\n\n".join(str(table) for table in tables(found)))
