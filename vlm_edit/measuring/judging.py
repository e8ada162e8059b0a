"""What a judge makes of features: Monosemanticity Scores, EmbSim, WinRate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_edit.measures.interpretability import (
    SimilarityAccumulator,
    TopExamples,
    example_similarity,
    multimodal_monosemanticity,
)
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.pairs import Pairs

EXAMPLES = (10, 20, 30, 50)
SEED = 0


def monosemanticity_scores(
    similarity: Mapping[str, SimilarityAccumulator], judge: Judge
) -> dict[str, Tensor]:
    """Compute MS of each stream, and MMS where both share the judge's space, by column."""
    scores = {f"ms_{stream}": sums.monosemanticity() for stream, sums in similarity.items()}
    if judge.shared:
        scores["mms_image_text"] = multimodal_monosemanticity(
            similarity["image"], similarity["text"]
        )
    return scores


def likeness_scores(
    examples: Mapping[str, TopExamples], judge: Judge, pairs: Pairs, skipped: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float, float]]]:
    """Compute EmbSim and WinRate of each stream, by column, and the likeness of random examples.

    Args:
        examples: Per stream.
        judge: Looks at them.
        pairs: Where they are.
        skipped: Numbers of pairs that cannot be read.
    """
    scores: dict[str, Tensor] = {}
    random: dict[str, tuple[float, float, float]] = {}
    for stream in judge.streams:
        values, bounds = _alike(examples[stream], judge, stream, pairs, skipped)
        scores |= values
        random |= bounds
    return scores, random


def _alike(
    top: TopExamples, judge: Judge, stream: str, pairs: Pairs, skipped: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float, float]]]:
    """Compute EmbSim and WinRate of one stream, by column, and the likeness of random examples."""
    left_out = set(skipped)
    readable = torch.tensor([i for i in pairs.numbers() if i not in left_out])
    sizes = [m for m in EXAMPLES if m <= min(top.keep, len(readable))]
    if not sizes:
        return {}, {}
    # Numbered without gaps, for random examples are drawn among those that can be read.
    places = torch.searchsorted(readable, top.numbers.clamp_min(0))
    dense = TopExamples(*top.numbers.shape)
    numbers = places.masked_fill(top.numbers < 0, -1)
    dense.load_state_dict({"values": top.values, "numbers": numbers})

    def embed(asked: Sequence[int]) -> Tensor:
        return judge.embed_pairs(stream, pairs, readable[list(asked)].tolist())

    similarity = example_similarity(dense, embed, len(readable), sizes, seed=SEED)
    scores, random = {}, {}
    for m, of_top in similarity.at.items():
        scores[f"embsim_{stream}_{m}"] = of_top.lift
        scores[f"embsim_p_{stream}_{m}"] = of_top.p
        scores[f"winrate_{stream}_{m}"] = of_top.win_rate
        estimate = of_top.random
        random[f"{stream}_{m}"] = (estimate.value, estimate.low, estimate.high)
    return scores, random
