"""A run's page in the cell of a notebook."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlm_edit.ground.notebook import one_line
from vlm_edit.measuring import Maps, Measurement, Pairs
from vlm_edit.report.facts import facts_of
from vlm_edit.report.page import write_page


@dataclass(frozen=True, eq=False, repr=False)
class Browser:
    """Hold a run's page, which shows itself in a notebook.

    Attributes:
        title: Of the page.
        html: The page.
        height: Of its frame, in pixels.
    """

    title: str
    html: str
    height: int

    def __repr__(self) -> str:
        """Say on a line which page it is."""
        return one_line(f"Browser({self.title}: {len(self.html.encode()) / 1e6:.1f} MB)")

    def _repr_html_(self) -> str:
        """Show it in a frame of its own, which reaches nothing of the notebook."""
        frame = Markup(
            '<iframe srcdoc="{}" title="{}" width="100%" height="{}" '
            'sandbox="allow-scripts allow-downloads allow-modals" '
            'style="border:1px solid rgba(128,128,128,.4)"></iframe>'
        )
        return str(frame.format(self.html, self.title, self.height))


def browse(
    measurement: Measurement,
    pairs: Pairs,
    title: str,
    maps: Maps | None = None,
    height: int = 760,
    **options: Any,
) -> Browser:
    """Return a run's page for the cell of a notebook.

    Args:
        measurement: What was measured.
        pairs: The pairs that were measured.
        title: Of the page.
        maps: Where features fire in them.
        height: Of the frame, in pixels.
        options: As for ``write_page``.

    Raises:
        VlmEditError: As ``write_page``.
    """
    if maps is not None:
        options = {"details": facts_of(maps), **options}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        write_page(page, measurement, pairs, title, **options)
        return Browser(title, page.read_text("utf-8"), height)
