"""Measure: a host, a dictionary and pairs, to scores and examples of every feature."""

from vlm_edit.measuring.accumulator import MeasurementAccumulator
from vlm_edit.measuring.centring import centred, expect_centrable
from vlm_edit.measuring.collecting import collect
from vlm_edit.measuring.encoders import image_encoder, text_encoder
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.judging import EXAMPLES
from vlm_edit.measuring.pairs import IMAGE_ENDINGS as IMAGE_ENDINGS
from vlm_edit.measuring.pairs import IMAGE_FORMATS as IMAGE_FORMATS
from vlm_edit.measuring.pairs import Pairs, read_pairs
from vlm_edit.measuring.pairs import as_seen as as_seen
from vlm_edit.measuring.pairs import open_image as open_image
from vlm_edit.measuring.pairs import size_of as size_of
from vlm_edit.measuring.provenance import pairs_listing, provenance, texts_digest
from vlm_edit.measuring.reader import STREAMS, Batch, Reader
from vlm_edit.measuring.repeats import RepeatedPairs, Repeats
from vlm_edit.measuring.result import Measurement, class_of, load_measurement, save_runs
from vlm_edit.measuring.run import is_finished, measure, measure_part, merge_parts, was_measured

__all__ = [
    "Pairs",
    "image_encoder",
    "read_pairs",
    "text_encoder",
    "EXAMPLES",
    "STREAMS",
    "Batch",
    "Judge",
    "Measurement",
    "MeasurementAccumulator",
    "Reader",
    "RepeatedPairs",
    "Repeats",
    "centred",
    "expect_centrable",
    "class_of",
    "collect",
    "is_finished",
    "load_measurement",
    "measure",
    "measure_part",
    "merge_parts",
    "pairs_listing",
    "provenance",
    "save_runs",
    "texts_digest",
    "was_measured",
]
