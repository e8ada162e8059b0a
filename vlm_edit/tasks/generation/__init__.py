"""Control of what is drawn by classes of features: style, content or wording of a reference.

``draw`` draws, ``read_reference`` reads what passes a site, ``take`` some of its features into what
is drawn, ``scale`` or ``keep`` some of what it is drawn from, ``interpolate`` as the baseline;
``Trend`` tells whether more does more, ``grid`` shows it.
"""

from vlm_edit.tasks.generation.control import Stream as Stream
from vlm_edit.tasks.generation.control import interpolate, keep, read_reference, scale, take
from vlm_edit.tasks.generation.drawing import draw
from vlm_edit.tasks.generation.grid import Row, grid
from vlm_edit.tasks.generation.trend import Trend
from vlm_edit.tasks.generation.trend import spearman as spearman

__all__ = [
    "Row",
    "Trend",
    "draw",
    "grid",
    "interpolate",
    "keep",
    "read_reference",
    "scale",
    "take",
]
