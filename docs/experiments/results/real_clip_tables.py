"""The figures of results.real_clip as tables, and what they come to."""

from __future__ import annotations

from typing import Any

from results import common
from vlm_edit.measures.dominance import CLASSES
from vlm_edit.report import Table

SOURCE = (
    "Figure_1_Modality_Gap/features_clip.npy of https://github.com/Weixin-Liang/Modality-Gap "
    "(MIT; Liang et al. 2022): CLIP ViT-B/16 on 500 pairs of COCO"
)
FOLDS = (
    "Mean of the folds [95 % t interval with the corrected variance of Nadeau and Bengio, 2003: "
    "folds share pairs, so that the plain one is 1.9 times too narrow; no exact one is known]."
)
ALL = "of all 500 pairs"
REAL, CROSS = "CLIP", "cross"
UNPAIRED = "Gaussians, unpaired"
FISHER = "as many by Fisher's p"
DRAWN = "CLIP, random directions as dictionary"
FROZEN = "CLIP, decoder of random directions, encoder trained"
CLOSE = 0.7  # cosine above which two seeds' features are called the same


def tables(result: dict[str, Any]) -> list[Table]:
    """The census, what holds on unseen pairs, deletions, the gap, seeds and halves."""
    return [
        _census(result),
        _held_out(result),
        *(_deletion(rule, lines) for rule, lines in result["deletion"].items()),
        _gap(result),
        _seeds(result),
        _halves(result),
    ]


def _census(result: dict[str, Any]) -> Table:
    rows = []
    for name, line in result["census"].items():
        for rule, sizes in line["classes"].items():
            cells = [common.cell(sizes[kind], 0) for kind in CLASSES]
            rows.append((name, rule, *cells, common.cell(line["paired"], 0)))
    return Table(
        "How many features each rule calls what, on CLIP and where there is nothing to find",
        ("embeddings", "rule", *CLASSES, "paired"),
        rows,
        "Mean [lowest, highest] of 5 dictionaries trained on the embeddings that they are scored "
        "on, TopK 256/8; Gaussians are drawn anew for each, and brought to length 1 as embeddings "
        "are. Gaussians, unpaired: each stream's own mean and covariance, image and text "
        "drawn apart. Joint Gaussian: the covariance of image and text together. Images beside "
        "other images: one half of the images called texts. Random directions: encoder and "
        "decoder of directions that no data chose, with the trained dictionary's centre and k. "
        "Encoder trained: the same, but for an encoder that learnt to write embeddings in such "
        "directions ([arXiv 2602.14111](https://arxiv.org/abs/2602.14111)). Paired: fires in both "
        "of a pair more than of shuffled ones.",
    )


def _held_out(result: dict[str, Any]) -> Table:
    rows = [
        (kind, common.cell(line["correlation"]), common.cell(line["features"], 0))
        for kind, line in result["held out"].items()
    ]
    return Table(
        "MDS of the same features on 400 pairs, and on 100 that nobody has seen",
        ("dictionary", "correlation", "features live in both [lowest, highest]"),
        rows,
        FOLDS,
    )


def _deletion(rule: str, lines: dict[str, Any]) -> Table:
    rows = [
        (
            name,
            f"{line['features'][0]:.0f} ({line['random'][0]:.0f})",
            *(common.cell(line[key]) for key in ("lost", "beyond", "more than cross")),
        )
        for name, line in lines.items()
    ]
    which = (
        "Cross, and the surest: so many of those on the class's side of the cuts as are shown, "
        "ranked by their intervals; all: those with the label."
        if rule == "interval"
        else "Cross: all with the label."
    )
    return Table(
        f"What retrieval loses on unseen pairs as features are deleted (rule {rule})",
        ("deleted", "features (random as far)", "R@1 lost", "beyond random", "more than cross"),
        rows,
        "Dictionary and scores of 400 pairs, features chosen there, R@1 of the other 100, both "
        "directions. Beyond random: than random live features whose deletion moves the "
        f"embeddings as far. More than cross: beyond random, fold by fold. {FOLDS} {which} Only "
        "rows that begin with cross or as many delete equal numbers.",
    )


def _gap(result: dict[str, Any]) -> Table:
    rows = [
        (
            kind,
            name,
            f"{line['features'][0]:.0f}" if line["features"][0] else "",
            *(
                common.cell(line.get(key))
                for what in ("gap", "R@1")
                for key in (what, f"{what} of unimodal, less this")
            ),
        )
        for kind, lines in result["gap"].items()
        for name, line in lines.items()
    ]
    return Table(
        "The gap and retrieval of unseen pairs, without unimodal features and without the means",
        ("dictionary", "taken away", "features", "gap", "unimodal less", "R@1", "unimodal less"),
        rows,
        "Unimodal: vision- and language-dominant by the rule in brackets, on 400 pairs. Means: "
        "of the same 400, which take no dictionary. Unimodal less: the figure without unimodal "
        f"features less the one without these, fold by fold. {FOLDS}",
    )


def _seeds(result: dict[str, Any]) -> Table:
    names = {
        "cosine": "mean cosine of matched directions",
        "share close": "share of them above .7",
        "MDS, all": "correlation of MDS, all",
        "MDS, close": "correlation of MDS, those above .7",
    }
    for rule in result["deletion"]:
        names[f"kappa ({rule}), all"] = f"kappa of the classes ({rule}), all"
        names[f"kappa ({rule}), close"] = f"kappa of the classes ({rule}), those above .7"
        names[f"share in all ({rule})"] = (
            f"share that recurs in all, above .7 and of one class ({rule})"
        )
    stored = result["seeds"]
    return Table(
        "How much of a dictionary comes again with another seed",
        ("", "mean [lowest, highest]"),
        [(told, common.cell(stored[name])) for name, told in names.items()],
        f"The {stored['cosine'][3]} couples of 5 dictionaries with a centre per stream, {ALL}, "
        "features matched by the directions of their decoders. Kappa: agreement beyond chance. "
        "What recurs in all is a share of the first dictionary's features.",
    )


def _halves(result: dict[str, Any]) -> Table:
    stored = result["halves"]
    names = {"MDS": "correlation of MDS"}
    for rule in result["deletion"]:
        names |= {
            f"share ({rule})": f"share of features of the same class ({rule})",
            f"kappa ({rule})": f"kappa of the classes ({rule})",
            f"decided ({rule})": f"share vision, language or cross in both halves ({rule})",
            f"conflicts ({rule})": f"of those, share with another class ({rule})",
        }
    return Table(
        "How much of the scores comes again with the other half of the pairs",
        ("", "mean [lowest, highest]"),
        [(told, common.cell(stored[name])) for name, told in names.items()],
        f"The same 5 dictionaries, {stored['MDS'][3]} draws in all of two halves of 250 pairs.",
    )


def notes(result: dict[str, Any]) -> str:
    """What the page says besides, and where the embeddings are from."""
    census, seeds, halves = (result[name] for name in ("census", "seeds", "halves"))
    rule = result["rule"]
    sizes = {
        name: ", ".join(
            f"{line['classes'][rule][kind][0]:.0f}" for kind in ("vision", "language", "cross")
        )
        for name, line in census.items()
    }
    few = census["images beside other images"]["classes"]["significant"]
    paired = {name: f"{line['paired'][0]:.0f}" for name, line in census.items()}
    fisher = result["deletion"][rule][FISHER]["more than cross"]
    kept = result["held out"]["a centre per stream"]["correlation"]
    against = common.figure(halves[f"conflicts ({rule})"][0])
    points = (
        f"By labels that are earned, CLIP has {sizes[REAL]} features (vision, language, cross); "
        f"unpaired Gaussians {sizes[UNPAIRED]}, a joint Gaussian {sizes['joint Gaussian']}.",
        "The test by swapping does its work: of images beside other images it calls "
        f"{few['vision'][0]:.0f} features vision-dominant and {few['language'][0]:.0f} "
        "language-dominant. But Gaussians have modalities too, and so many features of each.",
        f"Directions that no data chose have {sizes[DRAWN]}, and {paired[DRAWN]} that fire "
        f"together; with an encoder that is trained, {sizes[FROZEN]}, and {paired[FROZEN]}.",
        f"Pairs show in co-firing: {paired[REAL]} features fire together on matched pairs more "
        f"than on shuffled ones, of unpaired Gaussians {paired[UNPAIRED]}, of a joint Gaussian, "
        f"which has the pairs' covariance, {paired['joint Gaussian']}.",
        f"Fold by fold features chosen by Fisher's test cost {common.cell(fisher)} more than as "
        "many cross-modal ones.",
        f"Scores hold on unseen pairs (correlation {common.cell(kept)}); of labels that two "
        f"halves of the pairs both earn a share of {against} contradict each other, kappa "
        f"{common.figure(halves[f'kappa ({rule})'][0])}. Features do not come again: with another "
        f"seed a share of {common.figure(seeds['share close'][0])} has a partner of a cosine above "
        f".7, and the classes agree by a kappa of "
        f"{common.figure(seeds[f'kappa ({rule}), all'][0])}.",
        f"The embeddings are {SOURCE}. They are not in this repository; the file's SHA-256 is "
        f"`{result['sha256']}`.",
    )
    return "\n".join(f"- {point}" for point in points)
