"""How strong an edit should be: what it reaches against what it costs.

``tune`` evaluates a patch at several strengths, and of several sizes if a function makes it, and
keeps the trade-offs that no other beats (the Pareto front), as a table and as a picture.
"""

from vlm_edit.tuning.result import Point, Tuning
from vlm_edit.tuning.search import tune

__all__ = ["Point", "Tuning", "tune"]
