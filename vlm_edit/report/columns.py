"""What the page knows of each feature, column by column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_edit.measures.dominance import Dominance
from vlm_edit.measuring import Measurement

Format = Literal["count", "score", "times", "p", "size"]


@dataclass(frozen=True, eq=False)
class Column:
    """One figure of every feature, a column of the page's table.

    Attributes:
        name: Short and stable, such as ``mds``.
        title: Its heading.
        values: [m]; NaN where undefined.
        explanation: What it says, in a sentence or two.
        format: How it is printed; ``times`` and ``p`` are drawn on a logarithmic axis.
        shown: Whether the table shows it before anybody asks.
    """

    name: str
    title: str
    values: Tensor
    explanation: str
    format: Format = "score"
    shown: bool = True


def columns(measurement: Measurement) -> list[Column]:
    """List everything measured of the features, in the order of the table.

    Args:
        measurement: What was measured.

    Returns:
        Columns with values [m], without the feature's number and class.
    """
    return [
        *_scores(measurement.dominance),
        *_pairing(measurement.dominance),
        *_interpretability(measurement),
        *_variants(measurement.dominance),
        Column(
            "strength",
            "Strength",
            measurement.strength().double(),
            f"Mean activation of its {measurement.examples['image'].keep} strongest examples, "
            "of images or of texts, whichever is more; 0 for those that it lacks.",
            "size",
            shown=False,
        ),
        *_sizes(measurement),
    ]


def _sizes(measurement: Measurement) -> Iterator[Column]:
    """Say how large activations of single tokens are, of those that activate a feature."""
    for stream, sizes in measurement.sizes.items():
        values = {
            "mean": ("mean", sizes.mean),
            "median": ("median", sizes.quantile(0.5)),
            "q99": ("99 % below", sizes.quantile(0.99)),
            "max": ("largest", torch.where(sizes.active > 0, sizes.largest.double(), torch.nan)),
        }
        for name, (title, figures) in values.items():
            yield Column(
                f"{stream}_{name}",
                f"{stream.capitalize()} size, {title}",
                figures,
                f"Of activations by single {stream} tokens, those alone that activate it; "
                "undefined where it is below a sixteenth of the largest.",
                "size",
                shown=False,
            )


def _scores(dominance: Dominance) -> Iterator[Column]:
    low, high = dominance.intervals()
    yield Column(
        "mds",
        "MDS",
        dominance.scores,
        "Modality Dominance Score: the mean over pairs of the image's share of the activation; "
        "1 is image only, 0 is text only.",
    )
    yield Column("mds_low", "MDS, low", low, "Lower end of its 95 % interval.", shown=False)
    yield Column("mds_high", "MDS, high", high, "Upper end of its 95 % interval.", shown=False)
    yield Column(
        "mds_width",
        "95 % interval",
        high - low,
        "Interval of the mean share over the active pairs; sorted by its width.",
    )
    yield Column(
        "swap_p",
        "Swap p",
        dominance.swap_test(),
        "Chance of a score as far from 1/2 if image and text are swapped at random inside pairs, "
        "for this feature alone. The rule 'significant' corrects for their number.",
        "p",
    )
    yield Column(
        "active",
        "Active pairs",
        dominance.active.double(),
        "Pairs in which the feature is active in the image, the text or both.",
        "count",
    )


def _pairing(dominance: Dominance) -> Iterator[Column]:
    matched, shuffled = dominance.cofiring()
    yield Column(
        "cofiring",
        "Co-firing",
        matched,
        "Of its active pairs, the share in which image and text both activate it.",
    )
    yield Column(
        "chance",
        "Co-firing by chance",
        shuffled,
        "The same with images and texts paired at random.",
        shown=False,
    )
    yield Column(
        "lift",
        "Over chance",
        torch.where(shuffled > 0, matched / shuffled, torch.nan),
        "Co-firing divided by co-firing by chance: 1 says that the pairing plays no part.",
        "times",
    )
    yield Column(
        "cofiring_p",
        "Co-firing p",
        dominance.cofiring_test(),
        "Chance that shuffled pairs fire together at least as often (Fisher's exact test).",
        "p",
        shown=False,
    )
    yield Column(
        "correlation",
        "Correlation",
        dominance.correlation(),
        "Pearson correlation, over all pairs, of its activation by the image and by the text.",
    )


def _variants(dominance: Dominance) -> Iterator[Column]:
    for name, title, values, explanation in (
        ("modality_score", "Ratio of means", dominance.modality_score(), "Image's share of all "
         "activation: unlike MDS it weighs strong pairs more."),
        ("modality_score_energy", "Ratio of energies", dominance.modality_score(energy=True),
         "The same with squared activations."),
        ("mutual_information", "Information", dominance.mutual_information(), "Bits that its being "
         "active tells about whether it sees an image or a text."),
    ):  # fmt: skip
        yield Column(name, title, values, explanation, shown=False)
    for name, count in (("image", dominance.image_active), ("text", dominance.text_active)):
        yield Column(
            f"{name}_active",
            f"Active {name}s",
            count.double(),
            f"{name.capitalize()}s that activate it.",
            "count",
            shown=False,
        )


_KINDS = {
    "ms": ("MS", "Monosemanticity Score: how alike what activates it is, in another encoder"),
    "mms": ("MMS", "Multimodal Monosemanticity Score: how alike the images and the texts are that "
            "activate it"),
    "embsim": ("EmbSim", "Mean similarity of its strongest examples in another encoder, less that "
               "of random ones"),
    "embsim_p": ("EmbSim p", "Chance of examples as alike among random ones"),
    "winrate": ("WinRate", "Share of pairs of its strongest examples that are more alike than "
                "random ones"),
}  # fmt: skip


def _interpretability(measurement: Measurement) -> Iterator[Column]:
    for name, values in measurement.interpretability.items():
        kind = name[:8] if name.startswith("embsim_p_") else name.split("_")[0]
        title, explanation = _KINDS.get(kind, (kind, "A score of interpretability"))
        words = name[len(kind) + 1 :].split("_")
        many = words.pop() if words and words[-1].isdigit() else ""
        rest = f" {'-'.join(words)}" + (f", top {many}" if many else "")
        yield Column(
            name,
            title + rest,
            values.double(),
            f"{explanation}.",
            "p" if kind == "embsim_p" else "score",
            shown=not many or (many == "20" and kind == "embsim"),
        )
