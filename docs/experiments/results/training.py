"""Which way of training a dictionary gives what? Five seeds each, on emoji-clip's joint embedding.

    python docs/experiments results.training --pairs build/emoji --work build/training [--part 1/2]

Weights of the penalties, the mask's share, rates and temperatures were chosen on one seed by
zero-shot accuracy on drawings of the split hv-dev, which stand in no table.

`build/emoji` is what the zoo's pairs recipe rendered (`python docs/experiments recipes.pairs`, a
minute); `build/training` keeps each training's figures, so that the command goes on where it was,
and parts may run side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from results import common, ground_truth
from results.interpretability import judges
from vlm_edit import Dictionary, Host, zoo
from vlm_edit.dictionaries import PairedDictionary, TrainConfig, train_dictionary, train_paired
from vlm_edit.ground.statistics import auc
from vlm_edit.measures.interpretability import multimodal_monosemanticity_score
from vlm_edit.measures.probing import variance_explained
from vlm_edit.measuring import collect
from vlm_edit.report import Table

OPTIONS = " --pairs build/emoji --work build/training"
SEEDS = range(5)
BATCHES = 400  # of 128 pairs, as the zoo's dictionary had
PROMPT = "a picture of {}"
T_95 = {2: 4.303, 3: 3.182, 4: 2.776}  # Student's, by degrees of freedom
BASE = "TopK"

# What was compared was trained by the defaults of its time.
BARE = TrainConfig(
    n_features=512,
    steps=1000,
    batch_size=1024,
    lr=3e-3,
    norm="constant_norm_rescale",
    clip=None,
    dead_after=200,
)
SHARED = replace(BARE, k=16)
NCL = replace(BARE, kind="ncl")
WAYS: dict[str, TrainConfig | None] = {
    "ReLU + L1": replace(SHARED, kind="relu", target_l0=16),
    "JumpReLU": replace(SHARED, kind="jumprelu", target_l0=16),
    "TopK": replace(SHARED, kind="topk"),
    "BatchTopK": SHARED,
    "Matryoshka": replace(SHARED, kind="matryoshka"),
    "TopK + group (GSAE)": replace(SHARED, kind="topk", group=0.01),
    "TopK + group + mask (MGSAE)": replace(SHARED, kind="topk", group=0.01, mask=0.2),
    "separate + matched": replace(SHARED, kind="topk", batch_size=512),
    "NCL head, t = .1": NCL,
    "NCL head, t = .05": replace(NCL, temperature=0.05),
    "raw neurons": None,
}
FIGURES = {
    "explained": "explained variance",
    "l0": "L0",
    "dead": "dead",
    "zero_shot": "zero-shot",
    "cross": "cross-modal",
    "paired": "paired cross",
    "mms": "MMS",
    "vision-only": "AUC vision-only",
    "text-only": "AUC text-only",
    "shared": "AUC shared",
    "background": "background",
    "vendor": "vendor",
    "language": "language",
    "phrasing": "phrasing",
    "group": "group",
}
STREAM_OF = {
    "background": "image",
    "vendor": "image",
    "language": "text",
    "phrasing": "text",
    "group": "image",
}


@dataclass(frozen=True, eq=False)
class Data:
    """Joint embeddings of emoji-clip.

    Attributes:
        train: [n, d] per stream, of drawings that trained the host; row i of both a pair.
        held: [n, d] per stream, of the shipped pairs.
        labels: [1617, d], of all labels' prompts.
        truth: [n], the label of each shipped pair.
    """

    train: dict[str, Tensor]
    held: dict[str, Tensor]
    labels: Tensor
    truth: Tensor


def embeddings(folder: Path | None = None) -> Data:
    """Run the host over everything; without a folder the shipped pairs stand for the drawn ones."""
    from transformers import CLIPProcessor

    from recipes.batches import TrainingPairs
    from recipes.dictionaries import collect as collect_batches
    from recipes.dictionaries import plain
    from recipes.evaluate import embed_texts

    host, processor = zoo.load_host()
    assert isinstance(processor, CLIPProcessor)
    held = collect(Host.of(host, processor), zoo.load_pairs(), "joint", progress=False)
    names = zoo.load_labels()
    labels = embed_texts(host, processor, [PROMPT.format(name) for name in names]).clone()
    truth = torch.tensor([names.index(label) for label in zoo.load_pairs().columns["label"]])
    if folder is None:
        return Data(held, held, labels, truth)
    drawn = TrainingPairs(folder, processor.tokenizer, plain(), seed=1)
    train = {s: x.clone() for s, x in collect_batches(host, drawn, BATCHES)["joint"].items()}
    return Data(train, held, labels, truth)


def train(way: str, seed: int, data: Data) -> Dictionary | PairedDictionary[Dictionary]:
    """A dictionary trained in one of the ways."""
    config = WAYS[way]
    if config is None:
        return Dictionary.identity(data.labels.shape[1], "constant_norm_rescale")
    config = replace(config, seed=10 * seed)
    if way.startswith("separate"):
        return train_paired(data.train, config, progress=False)
    return train_dictionary(data.train, config, progress=False)


@torch.no_grad()
def figures(found: Dictionary | PairedDictionary[Dictionary], data: Data) -> dict[str, float]:
    """What a dictionary is worth, on the shipped pairs."""
    halves = {s: found.of(s) if isinstance(found, PairedDictionary) else found for s in data.held}
    codes = {s: half.encode(data.held[s], s) for s, half in halves.items()}
    live = sum((half.encode(data.train[s], s) != 0).any(0).long() for s, half in halves.items())
    explained = [h.explained_variance(data.held[s], s) for s, h in halves.items()]
    told = {
        "explained": statistics.mean(explained),
        "l0": statistics.mean(float((z != 0).sum(1).float().mean()) for z in codes.values()),
        "dead": float((torch.as_tensor(live) == 0).float().mean()),
        "zero_shot": _zero_shot(codes["image"], halves["text"].encode(data.labels, "text"), data),
    }
    dominance = common.dominance_of(codes)
    classes = dominance.classes("significant")
    alive = max(1, int((~dominance.dead).sum()))
    told["cross"] = len(classes["cross"]) / alive
    together = dominance.paired()
    told["paired"] = sum(bool(together[k]) for k in classes["cross"]) / alive
    names = judged()
    mms = multimodal_monosemanticity_score(codes["image"].abs(), names, codes["text"].abs(), names)
    told["mms"] = float(mms[~dominance.dead].nan_to_num(0.0).mean())
    told |= _recovered(codes, dominance)
    columns = zoo.load_pairs().columns
    for factor, stream in STREAM_OF.items():
        told[factor] = float(variance_explained(codes[stream].abs(), columns[factor]).max())
    return told


def _zero_shot(image: Tensor, labels: Tensor, data: Data) -> float:
    similar = F.normalize(image, dim=1) @ F.normalize(labels, dim=1).mT
    return float((similar.argmax(1) == data.truth).float().mean())


def _recovered(codes: dict[str, Tensor], dominance: Any) -> dict[str, float]:
    """AUC of MDS for what features are about."""
    subject: Any = SimpleNamespace(codes=codes)
    answers, live = ground_truth.truth(subject), ~dominance.dead
    score = dominance.scores
    asked = {"vision-only": score, "text-only": -score, "shared": -(score - 0.5).abs()}
    told = {}
    for question, values in asked.items():
        positive = answers[question][live]
        enough = ground_truth.FEWEST <= int(positive.sum()) < len(positive)
        told[question] = auc(values[live], positive) if enough else math.nan
    return told


@cache
def judged() -> Tensor:
    """The names of the shipped pairs, read by a sentence encoder."""
    return judges()["names"]


def run(data: Data, work: Path, part: tuple[int, int]) -> None:
    """Train and measure what has no figures yet."""
    work.mkdir(parents=True, exist_ok=True)
    jobs = [(way, seed) for seed in SEEDS for way in WAYS]
    for number, (way, seed) in enumerate(jobs):
        file = work / f"{number:03}.json"
        if number % part[1] != part[0] or file.exists():
            continue
        told = figures(train(way, seed, data), data)
        line = {"way": way, "seed": seed, **{k: common.rounded(v) for k, v in told.items()}}
        file.write_text(json.dumps(line), encoding="utf-8")
        print(line, flush=True)


def gather(work: Path) -> dict[str, Any]:
    """Figures of every training, by way."""
    result: dict[str, Any] = {way: [] for way in WAYS}
    for file in sorted(work.glob("*.json")):
        line = json.loads(file.read_text("utf-8"))
        result[line.pop("way")].append(line)
    return result


def spread(values: list[float]) -> str:
    """Mean of some seeds, with Student's 95 % interval."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = statistics.mean(known)
    if len(known) - 1 not in T_95 or len(set(known)) == 1:
        return _short(mean)
    half = T_95[len(known) - 1] * statistics.stdev(known) / len(known) ** 0.5
    return f"{_short(mean)} -+ {_short(half)}"


def _short(value: float) -> str:
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}".replace("0.", ".", 1)


def tables(result: dict[str, Any]) -> list[Table]:
    """What each way gives, and how far its zero-shot accuracy is from TopK's."""
    first = ("explained", "l0", "dead", "zero_shot", "cross", "paired", "mms")
    second = tuple(name for name in FIGURES if name not in first)
    base = {line["seed"]: line["zero_shot"] for line in result[BASE]}

    def rows(names: tuple[str, ...]) -> list[list[str]]:
        return [
            [way, *(spread([line[name] for line in lines]) for name in names)]
            for way, lines in result.items()
        ]

    ahead = [
        spread([line["zero_shot"] - base[line["seed"]] for line in lines])
        for lines in result.values()
    ]
    return [
        Table(
            "What each way of training gives",
            ("dictionary", *(FIGURES[name] for name in first), f"zero-shot above {BASE}"),
            [[*row, more] for row, more in zip(rows(first), ahead, strict=True)],
            "Mean of five seeds -+ Student's 95 % interval, on the 1,024 shipped pairs. Explained "
            "variance: mean of both streams. Dead: active on none of 51,200 training pairs. "
            "Zero-shot: cosine of the image's code and of the codes of 1,617 labels' prompts; the "
            "embeddings themselves reach the last row's. Cross-modal: share of live features, rule "
            "significant; paired cross: those that also fire together on matched pairs more than "
            "on shuffled ones. MMS: images with texts, over live features, 0 where a feature "
            "never fires in one of the two; names judged by a sentence encoder.",
        ),
        Table(
            "What is recovered of the known factors",
            ("dictionary", *(FIGURES[name] for name in second)),
            rows(second),
            "AUC of MDS as in the section on the truth (over the seeds with at least "
            f"{ground_truth.FEWEST} such features). Background to group: the largest share of "
            "variance (eta^2) that the factor explains of any one feature's code: 1 if a feature "
            "is the factor. Language and phrasing of captions, the rest of images.",
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", default="1/1")
    options = parser.parse_args()
    torch.set_num_threads(1)
    number, count = map(int, options.part.split("/"))
    run(embeddings(options.pairs), options.work, (number - 1, count))
    found = gather(options.work)
    if all(len(lines) == len(SEEDS) for lines in found.values()):
        common.save("training", found)
        print("\n\n".join(str(table) for table in tables(found)))
