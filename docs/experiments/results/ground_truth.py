"""Which score finds out what a feature is about? The zoo's factors are known, so it can be told.

python docs/experiments results.ground_truth
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from results import common
from results.common import Subject
from vlm_edit import zoo
from vlm_edit.ground.statistics import Estimate, auc, auc_difference, auc_estimate
from vlm_edit.measures.interpretability import bridge_score
from vlm_edit.measures.probing import variance_explained
from vlm_edit.report import Table
from vlm_edit.tasks.demo.factors import TEXT_ONLY, VISION_ONLY

CARRIES = 0.1  # share of variance from which on a feature is about a factor
SHARED = 0.05  # the same for the group of the concept, of which single features carry less
FEWEST = 5  # features that must be about a factor for an AUC to mean something
ALIKE = 0.5  # correlation of what a feature says of the groups in images and in texts

QUESTIONS = ("vision-only", "text-only", "shared")
LEADER = "MDS"


def truth(subject: Subject) -> dict[str, Tensor]:
    """Which features are about a factor of one modality, and which about one of both, [m] bool.

    A factor of one modality is looked for in the codes of both streams. The shared one is asked of
    images of even pairs and texts of odd ones, so that no score profits from the pairing.
    """
    columns = zoo.load_pairs().columns
    codes = {stream: z.abs() for stream, z in subject.codes.items()}

    def carries(factors: tuple[str, ...]) -> Tensor:
        shares = [variance_explained(z, columns[f]) for f in factors for z in codes.values()]
        return torch.stack(shares).amax(0) > CARRIES

    groups = columns["group"]
    even, odd = torch.arange(0, len(groups), 2), torch.arange(1, len(groups), 2)
    image, seen = _profile(codes["image"][even], [groups[i] for i in even])
    text, said = _profile(codes["text"][odd], [groups[i] for i in odd])
    centred = [p - p.mean(0) for p in (image, text)]
    lengths = centred[0].norm(dim=0) * centred[1].norm(dim=0)
    alike = (centred[0] * centred[1]).sum(0) / lengths.clamp_min(1e-12)
    return {
        "vision-only": carries(VISION_ONLY),
        "text-only": carries(TEXT_ONLY),
        "shared": (seen > SHARED) & (said > SHARED) & (alike > ALIKE),
    }


def _profile(codes: Tensor, groups: list[str]) -> tuple[Tensor, Tensor]:
    """Mean code of each group, and the share of variance between them."""
    names = sorted(set(zoo.load_pairs().columns["group"]))
    member = torch.tensor([[g == name for name in names] for g in groups]).float()
    means = member.T @ codes / member.sum(0).clamp_min(1)[:, None]
    return means, variance_explained(codes, groups)


def scores(subject: Subject) -> dict[str, dict[str, Tensor]]:
    """Every score as an answer to each question: larger is more so, [m]."""
    found = subject.dominance
    sided = {
        "MDS": found.scores,
        "MDS, zeros as half": common.dominance_of(subject.codes, "half").scores,
        "MDS, epsilon": common.dominance_of(subject.codes, "epsilon").scores,
        "ModalityScore": found.modality_score(),
        "ModalityScore, energy": found.modality_score(energy=True),
        "firing rates alone": _rates(subject),
        "probe for the modality": _probe(subject),
    }
    matched, shuffled = found.cofiring()
    bridge = bridge_score(
        subject.codes["image"].abs(),
        subject.codes["text"].abs(),
        torch.nn.functional.normalize(subject.dictionary.decoder, dim=1),
        full=False,
    )
    both = {name: -(score - 0.5).abs() for name, score in sided.items()}
    both |= {
        "BridgeScore, own": bridge,
        "co-firing": matched,
        "co-firing over chance": (matched + 1e-3).log() - (shuffled + 1e-3).log(),
        "co-firing, Fisher's p": -found.cofiring_test(),
        "correlation": found.correlation(),
        "mutual information with modality": -found.mutual_information(),
    }
    return {
        "vision-only": sided,
        "text-only": {name: -score for name, score in sided.items()},
        "shared": both,
    }


def _rates(subject: Subject) -> Tensor:
    image, text = subject.dominance.image_active.double(), subject.dominance.text_active.double()
    return image / (image + text)


def _probe(subject: Subject) -> Tensor:
    """How well one feature alone tells images from texts: the area under its ROC curve."""
    n = len(subject.codes["image"])
    seen = torch.arange(2 * n) < n
    both = torch.cat([subject.codes[s].abs() for s in common.STREAMS])
    return torch.tensor([auc(both[:, k], seen) for k in range(both.shape[1])])


def compute(subjects: list[Subject]) -> dict[str, Any]:
    """AUC of every score for every question, and how far the best is from MDS."""
    result: dict[str, Any] = {}
    for subject in subjects:
        live, answers = ~subject.dominance.dead, truth(subject)
        part: dict[str, Any] = {"live": int(live.sum())}
        for question, found in scores(subject).items():
            positive = answers[question][live]
            areas: dict[str, Any] = {}
            for name, score in found.items():
                if int(positive.sum()) < FEWEST:
                    areas[name] = [None, None]
                    continue
                known = score[live].double()
                # Where a score is undefined it says least.
                known = known.where(~known.isnan(), known[~known.isnan()].min())
                area = auc_estimate(known, positive)
                ahead: Estimate | None = None
                if name != LEADER:
                    ahead = auc_difference(known, found[LEADER][live], positive)
                areas[name] = [common.told(area), None if ahead is None else common.told(ahead)]
            part[question] = {"positive": int(positive.sum()), "scores": areas}
        result[subject.name] = part
    return result


def tables(result: dict[str, Any]) -> list[Table]:
    """A table per question: scores down, dictionaries across."""
    shown = []
    for question in QUESTIONS:
        names = list(next(iter(result.values()))[question]["scores"])
        best = {
            subject: max(
                (areas[0][0] for areas in part[question]["scores"].values() if areas[0]),
                default=math.nan,
            )
            for subject, part in result.items()
        }
        differences = {
            (name, subject): part[question]["scores"][name][1]
            for name in names
            for subject, part in result.items()
            if part[question]["scores"][name][1] is not None
        }
        held = dict(zip(differences, common.apart(list(differences.values())), strict=True))
        rows = []
        for name in names:
            row = [name]
            for subject, part in result.items():
                area, ahead = part[question]["scores"][name]
                text = common.cell(area)
                if area is not None and area[0] == best[subject]:
                    text = f"**{text}**"
                if held.get((name, subject)):
                    text += " +" if ahead[0] > 0 else " -"
                row.append(text)
            rows.append(row)
        counts = [f"{part[question]['positive']} of {part['live']}" for part in result.values()]
        rows.append(["features that are", *counts])
        shown.append(
            Table(
                f"AUC for: is this feature about a {question} factor?",
                ("score", *(name.removeprefix("emoji-") for name in result)),
                rows,
                "[95 % interval over features]; bold: the highest; + or -: apart from MDS on the "
                f"same features, by Holm's method over the table's {len(held)} comparisons. Empty: "
                f"fewer than {FEWEST} features are.",
            )
        )
    return shown


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute(common.of_zoo())
    common.save("ground_truth", found)
    print("\n\n".join(str(table) for table in tables(found)))
