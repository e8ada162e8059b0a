"""Measure: a host, a dictionary and pairs, to scores and examples of every feature."""

from vlm_edit.measurement.accumulator import MeasurementAccumulator
from vlm_edit.measurement.centring import centred, expect_centrable
from vlm_edit.measurement.collecting import collect
from vlm_edit.measurement.judge import Judge
from vlm_edit.measurement.judging import EXAMPLES
from vlm_edit.measurement.provenance import pairs_listing, provenance, texts_digest
from vlm_edit.measurement.reader import STREAMS, Batch, Reader
from vlm_edit.measurement.repeats import RepeatedPairs, Repeats
from vlm_edit.measurement.result import Measurement, class_of, load_measurement, save_runs
from vlm_edit.measurement.run import is_finished, measure, measure_part, merge_parts, was_measured

__all__ = [
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
