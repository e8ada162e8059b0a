"""Does deleting unimodal features close the modality gap? With centres it cannot, without it does.

    python docs/experiments results.unimodal

Dictionaries of emoji-clip's joint embedding, trained and scored on even pairs; the gap and the
retrieval are those of odd ones, edited by a patch, which keeps the dictionary's error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from results import common
from vlm_edit import Ablate, Dictionary, Host, Patch, zoo
from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.ground.statistics import Estimate, middle
from vlm_edit.measures.controls import norm_matched, random_features
from vlm_edit.measures.dominance import Dominance
from vlm_edit.measures.probing import hits
from vlm_edit.measuring import collect
from vlm_edit.report import Table

SITE = "joint"
SEEDS = (0, 1, 2)
DRAWS = 5  # of random features, for each dictionary
RESAMPLED = 2000
# Everything is said here, so that other defaults of the trainer change nothing.
PLAIN = TrainConfig(
    **{"kind": "batchtopk", "n_features": 512, "k": 16, "steps": 1500, "batch_size": 1024},
    **{"lr": 1e-3, "norm": "constant_norm_rescale", "center": False},
    **{"auxiliary": 1 / 32, "dead_after": 200, "clip": None},
)
KINDS = {"no centre": PLAIN, "a centre per stream": replace(PLAIN, center=True)}
MDS, ENERGY = "MDS", "energy"
CUTS = ((MDS, 0.4), (MDS, 0.2), (ENERGY, 0.4), (ENERGY, 0.2), (ENERGY, 0.05))
CONTROLS = ("size", "norm")


@dataclass(frozen=True, eq=False)
class Left:
    """What an edit leaves of the odd pairs.

    Attributes:
        image: [n, d] normalised embeddings.
        text: [n, d], likewise.
        right: [n], whether an image finds a text of its label.
    """

    image: Tensor
    text: Tensor
    right: Tensor

    def gap(self, weights: Tensor) -> Tensor:
        """Distance of the centroids, for weights [b, n] of the pairs."""
        return (weights @ (self.image - self.text)).norm(dim=1)

    def share(self, weights: Tensor) -> Tensor:
        """Share that is retrieved, for weights [b, n] of the pairs."""
        return weights @ self.right


def compute() -> dict[str, Any]:
    """Every dictionary's deletions, by kind."""
    model, processor = zoo.load_host()
    pairs = zoo.load_pairs()
    hidden = collect(Host.of(model, processor), pairs, SITE, progress=False)
    even, odd = ({s: x[first::2].clone() for s, x in hidden.items()} for first in (0, 1))
    labels = pairs.columns["label"][1::2]
    counts = _resamples(len(labels))

    def read(streams: dict[str, Tensor]) -> Left:
        image, text = (F.normalize(streams[s].double(), dim=1) for s in common.STREAMS)
        return Left(image, text, hits(image, text, labels, labels).double())

    raw = read(odd)
    result: dict[str, Any] = {"nothing": _line([raw], counts), "deleted": {}}
    for kind, config in KINDS.items():
        trained = [
            train_dictionary(even, replace(config, seed=10 * seed), progress=False)
            for seed in SEEDS
        ]
        result["deleted"][kind] = _deletions(trained, even, odd, read, counts)
    return result


def unimodal(found: Dominance, score: str, low: float) -> list[int]:
    """Live features whose score lies outside of ``low`` and ``1 - low``."""
    values = found.scores if score == MDS else found.modality_score(energy=True)
    return ((values < low) | (values > 1 - low)).nonzero().flatten().tolist()


def _deletions(
    trained: list[Dictionary],
    even: dict[str, Tensor],
    odd: dict[str, Tensor],
    read: Callable[[dict[str, Tensor]], Left],
    counts: Tensor,
) -> list[dict[str, Any]]:
    """A line per score and cut, over the dictionaries of one kind."""
    lines = []
    for score, low in CUTS:
        own: list[Left] = []
        random: dict[str, list[list[Left]]] = {control: [] for control in CONTROLS}
        sizes: dict[str, list[int]] = {name: [] for name in ("own", *CONTROLS)}
        for seed, dictionary in zip(SEEDS, trained, strict=True):
            codes = {s: dictionary.encode(x, s) for s, x in even.items()}
            found = common.dominance_of(codes)
            chosen = unimodal(found, score, low)
            live = (~found.dead).nonzero().flatten().tolist()
            both = torch.cat([codes[s] for s in common.STREAMS])
            own.append(read(deleted(dictionary, chosen, odd)))
            drawn = {
                "size": random_features(chosen, live, DRAWS, seed),
                "norm": norm_matched(chosen, live, both, dictionary.decoder, DRAWS, seed),
            }
            sizes["own"].append(len(chosen))
            for control, sets in drawn.items():
                random[control].append([read(deleted(dictionary, some, odd)) for some in sets])
                sizes[control] += [len(some) for some in sets]
        line = {"score": score, "cut": low, "features": sizes, **_line(own, counts)}
        line |= {c: _beside(own, random[c], counts) for c in CONTROLS}
        lines.append(line)
        print(line, flush=True)
    return lines


def deleted(
    dictionary: Dictionary, features: list[int], streams: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Embeddings as a patch leaves them that ablates features."""
    splice = Patch(SITE, dictionary, Ablate(features)).bindings[0].splice
    return {stream: splice(x, stream=stream) for stream, x in streams.items()}


def _resamples(n: int) -> Tensor:
    """Weights of the pairs: all alike in the first row, resampled in the others."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (RESAMPLED, n), generator=generator)
    counts = torch.zeros(RESAMPLED, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return torch.cat([torch.ones(1, n, dtype=torch.float64), counts]) / n


def _line(own: list[Left], counts: Tensor) -> dict[str, Any]:
    told = {}
    for name, figure in FIGURES.items():
        each = torch.stack([figure(one, counts) for one in own])
        told[name] = common.told(_estimate(each.mean(0), counts.shape[1]))
        told[f"{name} by seed"] = [common.rounded(float(v)) for v in each[:, 0]]
    return told


def _beside(own: list[Left], random: list[list[Left]], counts: Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, figure in FIGURES.items():
        mine = torch.stack([figure(one, counts) for one in own])
        drawn = torch.stack([torch.stack([figure(r, counts) for r in some]) for some in random])
        first = drawn[..., 0]
        ends = float(first.mean()), float(first.min()), float(first.max())
        told[name] = common.told(Estimate(*ends, first.numel()))
        ahead = (mine - drawn.mean(1)).mean(0)
        told[f"{name} ahead"] = common.told(_estimate(ahead, counts.shape[1]))
    return told


def _estimate(values: Tensor, n: int) -> Estimate:
    """The first value, and where the middle 95 % of the others lie."""
    return Estimate(float(values[0]), *middle(values[1:]), n)


FIGURES: dict[str, Callable[[Left, Tensor], Tensor]] = {"gap": Left.gap, "R@1": Left.share}


def tables(result: dict[str, Any]) -> list[Table]:
    """Every deletion, beside random ones."""
    rows = [("", "nothing", "", common.cell(_spread(result["nothing"], "gap")), *[""] * 4,
             common.cell(_spread(result["nothing"], "R@1")), *[""] * 4)]  # fmt: skip
    for kind, lines in result["deleted"].items():
        for line in lines:
            low, sizes = line["cut"], line["features"]
            cells = []
            for name in FIGURES:
                cells.append(common.cell(_spread(line, name)))
                for control in CONTROLS:
                    beside = line[control]
                    cells += [common.cell(beside[name]), common.cell(beside[f"{name} ahead"])]
            count = f"{_mean(sizes['own'])} ({_mean(sizes['norm'])})"
            rows.append((kind, f"{line['score']}: {low:g}, {1 - low:g}", count, *cells))
    each = ("", ", as many random", ", more", ", random as far", ", more")
    return [
        Table(
            "The gap of pairs that chose nothing, without the features of one modality",
            (
                "dictionary",
                "unimodal by",
                "deleted (as far)",
                *(f"{name}{what}" for name in FIGURES for what in each),
            ),
            rows,
            f"{len(SEEDS)} dictionaries each, BatchTopK, {PLAIN.n_features} features, k "
            f"{PLAIN.k}, {PLAIN.steps} steps, learning rate {PLAIN.lr:g}, trained and scored on "
            "512 even pairs; 512 odd pairs edited by a patch, with the dictionary's error. "
            "Unimodal: features of a score (MDS; energy: E zI^2 / (E zI^2 + E zT^2)) outside of "
            "the two cuts. Gap and R@1: mean [lowest, highest] of the dictionaries; random: of "
            f"{DRAWS} draws for each, as many live features, or as many as move the hidden states "
            "as far (their number in brackets). More: than the random ones before it, mean over "
            "dictionaries [95 % bootstrap over the pairs, the same for all].",
        )
    ]


def _mean(counts: list[int]) -> str:
    return f"{sum(counts) / len(counts):.0f}"


def _spread(line: dict[str, Any], name: str) -> list[float]:
    each = line[f"{name} by seed"]
    return [sum(each) / len(each), min(each), max(each), len(each)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute()
    common.save("unimodal", found)
    print("\n\n".join(str(table) for table in tables(found)))
