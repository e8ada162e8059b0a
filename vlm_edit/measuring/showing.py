"""How a measurement shows itself: a plot, a page, and features in a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlm_edit.dictionaries import expect_features
from vlm_edit.ground.plugs import plugged
from vlm_edit.measures.dominance import Cut, Dominance
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.plot import plot
from vlm_edit.measuring.table import expect_measured, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlm_edit.measuring.firing.maps import Maps


class Shown:
    """Show what was measured; ``Measurement`` is one."""

    dominance: Dominance
    site: str
    provenance: Mapping[str, Any]

    def plot(self, *, rule: Cut = "interval", bins: int = 40, axes: Axes | None = None) -> Axes:
        """Draw how many features have which score, by class, beside what chance would give.

        Args:
            rule: Of the classes, whose cuts are drawn dashed.
            bins: Of the histogram.
            axes: Where to draw; by default a new figure of ``matplotlib.pyplot``.

        Returns:
            The axes; ``axes.figure.savefig("scores.png")`` writes a file.

        Raises:
            VlmEditError: matplotlib is not installed, an unknown rule, or no bins.
        """
        return plot(self.dominance, rule, bins, axes)

    def page(
        self,
        path: str | os.PathLike[str],
        pairs: Pairs | Iterable[Any],
        title: str | None = None,
        **options: Any,
    ) -> None:
        """Write a page to browse every feature in, by ``vlm_edit.report.write_page``.

        Args:
            path: The file, such as ``features.html``; it needs no network.
            pairs: Those that were measured, whose images it shows.
            title: Of the page; by default its site and host.
            options: As for ``write_page``.

        Raises:
            VlmEditError: plotly is not installed, it cannot be written, or these are other pairs.
        """
        pairs = Pairs.of(pairs)
        expect_measured(self.provenance, pairs)
        plugged("page")(path, self, pairs, title or title_of(self.site, self.provenance), **options)

    def browse(self, pairs: Pairs | Iterable[Any], maps: Maps | None = None, **options: Any) -> Any:
        """Return the page for a notebook's cell, by ``vlm_edit.report.browse``.

        Args:
            pairs: Those that were measured, whose images it shows.
            maps: Where features fire in them, by ``map_examples``.
            options: ``title``, ``height`` of the frame in pixels, and as for ``write_page``.

        Raises:
            VlmEditError: plotly is not installed, or these are other pairs.

        Example:
            >>> from vlm_edit import Host, measure, zoo
            >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(16))
            >>> measurement = measure(host, pairs, zoo.load_dictionary("joint"), progress=False)
            >>> "<iframe" in measurement.browse(pairs)._repr_html_()
            True
        """
        pairs = Pairs.of(pairs)
        expect_measured(self.provenance, pairs)
        title = options.pop("title", None) or title_of(self.site, self.provenance)
        return plugged("browse")(self, pairs, title, maps, **options)

    def show(
        self, feature: int, pairs: Pairs | Iterable[Any], maps: Maps | None = None, **options: Any
    ) -> Any:
        """Return a feature with its examples, for a notebook's cell, by ``report.feature_sheet``.

        Args:
            feature: Its number.
            pairs: Those that were measured, whose images it shows.
            maps: Where features fire in them, by ``map_examples``.
            options: ``side``, of a picture in pixels.

        Raises:
            VlmEditError: No such feature, or these are other pairs.

        Example:
            >>> from vlm_edit import Host, measure, zoo
            >>> from vlm_edit.measuring import map_examples
            >>> host, pairs = Host.of(*zoo.load_llava()), zoo.load_pairs().select(range(8))
            >>> what = host, pairs, zoo.load_dictionary("language.2")
            >>> measurement = measure(*what, "language.2", progress=False)
            >>> maps = map_examples(*what, measurement, progress=False)
            >>> sheet = measurement.show(measurement.top("vision", 1)[0], pairs, maps)
            >>> "<svg" in sheet._repr_html_()
            True
        """
        pairs = Pairs.of(pairs)
        expect_measured(self.provenance, pairs)
        expect_features([feature], len(self.dominance.scores))
        return plugged("sheet")(self, feature, pairs, maps, **options)
