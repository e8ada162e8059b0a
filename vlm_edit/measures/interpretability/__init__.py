"""What a feature responds to, and how much of one thing that is."""

from vlm_edit.measures.interpretability.bridge import BridgeAccumulator as BridgeAccumulator
from vlm_edit.measures.interpretability.bridge import bridge_score
from vlm_edit.measures.interpretability.drawn import DrawnExamples as DrawnExamples
from vlm_edit.measures.interpretability.monosemanticity import (
    SimilarityAccumulator as SimilarityAccumulator,
)
from vlm_edit.measures.interpretability.monosemanticity import (
    monosemanticity_score,
    multimodal_monosemanticity_score,
)
from vlm_edit.measures.interpretability.monosemanticity import (
    multimodal_monosemanticity as multimodal_monosemanticity,
)
from vlm_edit.measures.interpretability.similarity import ExampleSimilarity as ExampleSimilarity
from vlm_edit.measures.interpretability.similarity import SimilarityOfTop as SimilarityOfTop
from vlm_edit.measures.interpretability.similarity import SimilaritySummary as SimilaritySummary
from vlm_edit.measures.interpretability.similarity import example_similarity
from vlm_edit.measures.interpretability.top import TopExamples as TopExamples

__all__ = [
    "bridge_score",
    "example_similarity",
    "monosemanticity_score",
    "multimodal_monosemanticity_score",
]
