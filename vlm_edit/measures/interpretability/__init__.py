"""What a feature responds to, and how much of one thing that is."""

from vlm_edit.measures.interpretability.bridge import BridgeAccumulator, bridge_score
from vlm_edit.measures.interpretability.monosemanticity import (
    SimilarityAccumulator,
    monosemanticity_score,
    multimodal_monosemanticity,
    multimodal_monosemanticity_score,
)
from vlm_edit.measures.interpretability.similarity import (
    ExampleSimilarity,
    SimilarityOfTop,
    SimilaritySummary,
    example_similarity,
)
from vlm_edit.measures.interpretability.top import TopExamples

__all__ = [
    "BridgeAccumulator",
    "ExampleSimilarity",
    "SimilarityAccumulator",
    "SimilarityOfTop",
    "SimilaritySummary",
    "TopExamples",
    "bridge_score",
    "example_similarity",
    "monosemanticity_score",
    "multimodal_monosemanticity",
    "multimodal_monosemanticity_score",
]
