"""Tables of adversarial.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from results.common import cell
from vlm_edit.ground.statistics import holm, mcnemar
from vlm_edit.report import Table


def tables(result: dict[str, Any]) -> list[Table]:
    """Those whose part was run."""
    made = {
        "attacks": _attacks, "movements": _movements, "restricted": _restricted,
        "defences": _defences, "detectors": _detectors, "typographic": _typographic,
        "captions": _captions, "paired": _paired,
    }  # fmt: skip
    return [t for name, make in made.items() if name in result for t in make(result[name], result)]


def _ran(result: dict[str, Any]) -> str:
    return (
        f"{result['images']} images of odd pairs, {result['steps']} steps, on "
        f"{result['device']}; 95 % intervals"
    )


def _attacks(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    kinds = [k for k in rows[0] if k != "eps"]
    return [
        Table(
            "Images that emoji-clip misreads among 1,617 labels, under attack",
            ("radius", *kinds),
            [(f"{r['eps']}/255", *(cell(r[k], 2) for k in kinds)) for r in rows],
            f"{_ran(result)}. Untargeted unless it says targeted, which must reach one label drawn "
            "at random. l2: the radius is what half of all values moved by eps would have. Away, "
            "no text: as far from the image's own embedding as can be.",
        )
    ]


def _movements(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    def made(kind: str) -> Table:
        some = [r for r in rows if r["kind"] == kind]
        classes = list(dict.fromkeys(r["class"] for r in some))
        radii = list(dict.fromkeys(r["eps"] for r in some))
        at = {(r["eps"], r["class"]): r for r in some}
        lines = [
            (name, str(at[radii[0], name]["features"] or ""),
             *(cell(at[eps, name]["share"], 2) for eps in radii),
             *(cell(at[eps, name]["alone"], 2) for eps in radii))
            for name in classes
        ]  # fmt: skip
        moved = ", ".join(f"{cell(at[e, classes[0]]['length'], 2)} at {e}/255" for e in radii)
        heads = [f"share at {e}/255" for e in radii] + [f"alone misreads at {e}/255" for e in radii]
        what = "PGD" if kind == "PGD" else "plus or minus the radius at random"
        return Table(
            f"What {what} moves in the joint embedding, by class of features",
            ("class", "features", *heads),
            lines,
            f"{_ran(result)}. Share: squared length of what the class's change decodes to, over "
            "the whole change's; classes that work against each other sum to more than 1. Alone: "
            "misread if the true embedding is given the class's change and nothing else. The whole "
            f"change's squared length, over the embedding's: {moved}. Residual: what no feature "
            "explains.",
        )

    return [made(kind) for kind in ("PGD", "noise")]


def _restricted(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    radii = list(dict.fromkeys(r["eps"] for r in rows))
    names = list(dict.fromkeys(r["class"] for r in rows))
    at = {(r["eps"], r["class"]): r for r in rows}
    kinds = ("through", "host", "held")
    lines = [
        (name, str(at[radii[0], name]["features"]),
         *(cell(at[e, name][k], 2) for k in kinds for e in radii))
        for name in names
    ]  # fmt: skip
    titles = {"through": "through it", "host": "in the host", "held": "all else held"}
    return [
        Table(
            "Attacks that are to move one class of features only: images misread",
            ("class", "features", *(f"{titles[k]}, {e}/255" for k in kinds for e in radii)),
            lines,
            f"{_ran(result)}. Through it: APGD on the loss of the true embedding with the class's "
            "codes as the attacked image has them, judged so; in the host: the same images, judged "
            "by the host. All else held: APGD on the host's loss less a penalty, and only images "
            "count of which everything else moved by less than 1 % of the squared length.",
        )
    ]


def _defences(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    result = result | result.get("defended", {})
    radii = list(rows[0]["robust"])
    base = rows[0]["seconds"]
    lines = [
        (r["name"], cell(r["clean"], 2), *(cell(r["robust"][e], 2) for e in radii),
         f"{r['seconds'] / base:.1f}")
        for r in rows
    ]  # fmt: skip
    middle = min(1, len(radii) - 1)
    names = list(rows[0]["after"][middle])
    second = [
        (r["name"], *(f"{r['after'][middle].get(n, float('nan')):.2f}" for n in names),
         "; ".join(r["suspicions"]) or "none found")
        for r in rows
    ]  # fmt: skip
    return [
        Table(
            "Images still read rightly when the attacker knows the defence",
            ("defence", "no attack", *(f"{e}/255" for e in radii), "cost"),
            lines,
            f"{_ran(result)}. An image counts only if it stands PGD, APGD-CE, APGD-DLR, PGD along "
            "the undefended host's gradient, images that fool the undefended host, and Square "
            f"Attack with {result['queries']} queries, all through the defence. Cost: time per "
            "image over that of the plain host, same device.",
        ),
        Table(
            f"The same at {radii[middle]}/255, attack after attack: are gradients masked?",
            ("defence", *names, "signs of masked gradients"),
            second,
            "Share still right after each attack, which meets only what stood the ones before. "
            "Those from `surrogate` on do not need the defence's gradient and should break next "
            "to nothing more. Signs are looked for at all radii, and at 64/255, where nothing may "
            "stand.",
        ),
    ]


def _paired(part: dict[str, Any], result: dict[str, Any]) -> list[Table]:
    stood = {
        name: {eps: torch.tensor([c == "1" for c in row]) for eps, row in rows.items()}
        for name, rows in part["stood"].items()
    }
    base = stood.pop("none")
    tests = {
        (name, eps): mcnemar(rows[eps], base[eps]) for name, rows in stood.items() for eps in base
    }
    chances = holm(torch.tensor([test.p for test in tests.values()], dtype=torch.float64)).tolist()
    held = {key: replace(test, p=p) for (key, test), p in zip(tests.items(), chances, strict=True)}
    lines = [(name, *(str(held[name, eps]) for eps in base)) for name in stood]
    ran = _ran(result | {key: part[key] for key in ("images", "steps")})
    return [
        Table(
            "Images that stand behind a defence alone, and behind nothing alone",
            ("defence", *(f"{eps}/255" for eps in base)),
            lines,
            f"{ran.split(';')[0]}: the same images under the same attacks as in the table of "
            f"defences; p: McNemar's exact test of the two counts, by Holm's method over all "
            f"{len(held)}.",
        )
    ]


def _detectors(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    kinds = ("noise", "least", "far", "unseen, blind", "unseen, adaptive")
    lines = [
        (r["detector"], f"{r['eps']}/255", *(cell(r[k], 2) for k in kinds),
         cell(r["false alarms"], 2))
        for r in _by(rows, "detector")
    ]  # fmt: skip
    return [
        Table(
            "Detectors of attacked images",
            ("detector", "radius", "AUC: noise", "AUC: barely fooled", "AUC: as far as can be",
             "misread and unseen: does not know it", "knows it", "false alarms"),
            lines,
            f"{_ran(result)}. AUC against the true images. The detector passes 95 % of even pairs' "
            "images; misread and unseen: share of all images that are read rightly before, wrongly "
            "after, and pass. Who knows the detector takes its excess off the loss.",
        )
    ]  # fmt: skip


def _typographic(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    kinds = list(dict.fromkeys(r["drawn"] for r in rows))
    at = {(r["defence"], r["drawn"]): r for r in rows}
    lines = [
        (name, *(cell(at[name, k]["right"], 2) for k in kinds),
         *(cell(at[name, k]["word"]) for k in kinds))
        for name in dict.fromkeys(r["defence"] for r in rows)
    ]  # fmt: skip
    heads = [f"right: {k}" for k in kinds] + [f"the word's label: {k}" for k in kinds]
    return [
        Table(
            "Another label's word drawn on the image",
            ("defence", *heads),
            lines,
            f"{_ran(result)}. Scrambled: the same letters in another order; strip: the white strip "
            "alone. A host that reads would go to the word's label; emoji-clip has hardly seen "
            "letters.",
        )
    ]


def _captions(rows: list[dict[str, Any]], result: dict[str, Any]) -> list[Table]:
    lines = [
        (r["attack"], f"{r['eps']}/255" if r["eps"] else "",
         *(cell(r[k], 2) for k in ("right", "as before", "as wanted")))
        for r in _by(rows, "attack")
    ]  # fmt: skip
    return [
        Table(
            "emoji-llava, asked what it is",
            ("attack", "radius", "right", "answers as before", "answers as wanted"),
            lines,
            f"{_ran(result)}. Greedy answers, word for word. Wanted: the answer to another image, "
            "drawn at random. emoji-llava has emoji-clip's tower, so that the second attack "
            "crosses the decoder, and no other tower.",
        )
    ]


def _by(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows grouped by a key, in the order in which its values come."""
    order = list(dict.fromkeys(r[key] for r in rows))
    return sorted(rows, key=lambda r: order.index(r[key]))
