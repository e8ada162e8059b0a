"""Measure: a host, a dictionary and pairs, to dominance and examples of every feature."""

from vlm_edit.measurement.measurement import Measurement, MeasurementAccumulator, measure
from vlm_edit.measurement.reader import STREAMS, Batch, Prepare, Reader

__all__ = [
    "STREAMS",
    "Batch",
    "Measurement",
    "MeasurementAccumulator",
    "Prepare",
    "Reader",
    "measure",
]
