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
DRAWN = "CLIP, random directions as dictionary"


def tables(result: dict[str, Any]) -> list[Table]:
    """The census, what holds on unseen pairs, deletions, the gap, and seeds."""
    return [
        _census(result),
        _held_out(result),
        *(_deletion(rule, lines) for rule, lines in result["deletion"].items()),
        _gap(result),
        _seeds(result),
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
        "on, TopK 256/8; Gaussians are drawn anew for each. Gaussians, unpaired: each stream's "
        "own mean and covariance, image and text drawn apart. Joint Gaussian: the covariance of "
        "image and text together. Images beside other images: one half of the images called "
        "texts. Random directions: encoder and decoder of directions that no data chose, with "
        "the trained dictionary's centre and k. Paired: fires in both of a pair more than of "
        "shuffled ones.",
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
    return Table(
        f"What retrieval loses on unseen pairs as features are deleted (rule {rule})",
        ("deleted", "features (random as far)", "R@1 lost", "beyond random", "more than cross"),
        rows,
        "Dictionary and scores of 400 pairs, features chosen there, R@1 of the other 100, both "
        "directions. Beyond random: than random live features whose deletion moves the "
        f"embeddings as far. More than cross: beyond random, fold by fold. {FOLDS} Only rows that "
        "begin with cross or as many delete equal numbers.",
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
    stored = result["seeds"]
    for rule in result["deletion"]:
        names[f"kappa ({rule}), all"] = f"kappa of the classes ({rule}), all"
        names[f"kappa ({rule}), close"] = f"kappa of the classes ({rule}), those above .7"
    rows = [(told, common.cell(stored[name])) for name, told in names.items()]
    return Table(
        "How much of a dictionary comes again with another seed",
        ("", "mean [lowest, highest]"),
        rows,
        f"The {stored['cosine'][3]} couples of 5 dictionaries with a centre per stream, {ALL}, "
        "features matched by the directions of their decoders. Kappa: agreement beyond chance.",
    )


def notes(result: dict[str, Any]) -> str:
    """What the page says besides, and where the embeddings are from."""
    random = result["census"][DRAWN]["classes"]["significant"]
    few = result["census"]["images beside other images"]["classes"]["significant"]
    paired = {name: f"{line['paired'][0]:.0f}" for name, line in result["census"].items()}
    fisher = result["deletion"]["significant"]["as many by Fisher's p"]["more than cross"]
    kept = result["held out"]["a centre per stream"]["correlation"]
    seeds = result["seeds"]
    points = (
        "The test by swapping does its work: of images beside other images it calls "
        f"{few['vision'][0]:.0f} features vision-dominant and {few['language'][0]:.0f} "
        "language-dominant. But Gaussians have modalities too, and so many features of each.",
        f"Directions that no data chose find less: {random['vision'][0]:.0f}, "
        f"{random['language'][0]:.0f}, and {paired[DRAWN]} that fire together.",
        f"Pairs show in co-firing: {paired['CLIP']} features fire together on matched pairs more "
        f"than on shuffled ones, of unpaired Gaussians {paired['Gaussians, unpaired']}, of a "
        f"joint Gaussian, which has the pairs' covariance, {paired['joint Gaussian']}.",
        "That Fisher's test chooses better than MDS is not shown: fold by fold its features cost "
        f"{common.cell(fisher)} more.",
        f"Scores hold on unseen pairs (correlation {common.cell(kept)}). Features do not come "
        f"again: with another seed a share of {common.figure(seeds['share close'][0])} has a "
        "partner of a cosine above .7, and the classes agree by a kappa of "
        f"{common.figure(seeds['kappa (significant), all'][0])}.",
        f"The embeddings are {SOURCE}. They are not in this repository; the file's SHA-256 is "
        f"`{result['sha256']}`.",
    )
    return "\n".join(f"- {point}" for point in points)
