"""One HTML page with pictures, self-contained: it opens from disk, without a network."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from markupsafe import Markup

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.files import write_bytes
from vlm_edit.measures.nulls import Census
from vlm_edit.measuring import Measurement, Pairs
from vlm_edit.report.details import Bundles, Details, bundles
from vlm_edit.report.folders import without_folders
from vlm_edit.report.overview import Overview, notes
from vlm_edit.report.payload import Examples, Payload, to_json
from vlm_edit.report.picture import Picture
from vlm_edit.report.runs import Run, runs_table
from vlm_edit.report.sprites import Sprites, pack
from vlm_edit.report.table import Table
from vlm_edit.report.tables import census_table, halves_table
from vlm_edit.report.templates import policy, style, template, web

_SCRIPTS = (
    *("core.js", "theme.js", "pictures.js", "address.js", "notes.js", "browser.js", "export.js"),
    *("heat.js", "charts.js", "detail.js", "main.js"),
)

_BUDGET = 24_000_000
# Beyond so many features, each one more may take so many bytes more.
_MANY, _EACH = 32_768, 300
# What a picture takes beside itself: digits of its two places and of its shape.
_PER_PICTURE = 18
_SLACK = 6000
# The larger pictures: pixels of a side, and how many in a row.
_LARGE, _LARGE_ROW = 224, 6


def has_plotly() -> bool:
    """Return whether plotly is installed, without which no page can be written."""
    return importlib.util.find_spec("plotly") is not None


def write_page(
    path: str | os.PathLike[str],
    measurement: Measurement,
    pairs: Pairs,
    title: str,
    tables: Sequence[Table] = (),
    examples: Sequence[Examples] = (),
    pictures: Sequence[Picture] = (),
    census: Census | None = None,
    recurring: Sequence[int] | None = None,
    shown: int = 6,
    seed: int = 0,
    budget: int | None = None,
    details: Details | None = None,
    runs: Sequence[Run] = (),
    progress: bool = False,
) -> None:
    """Write a page that shows a measurement and lets one look at every feature.

    It begins with a table of all features that searches, filters and sorts. Below are the
    distribution of the scores beside the one expected without an effect of modality, the classes
    by each rule, a plane of all features, features drawn at random, the strongest of each class,
    and the given tables, examples and pictures. The file holds all it needs: figures, pictures,
    and plotly.js, which draws. What is searched and opened stands in the page's address. Pages
    are read in browsers of May 2023 and later.

    Facts of a feature in ``details`` are mappings, of which every key may be missing:

    - ``name``: ``name``, and ``score``, ``low``, ``high``, ``held`` (examples it was scored on) and
      ``words``.
    - ``effects``: ``up`` and ``down``, lists of a word (or label) with a figure.
    - ``near``: ``decoder`` and ``examples``, lists of a feature with its cosine, or with the share
      of examples in common.
    - ``maps``: ``image``, a list of ``pair``, ``boxes`` (left, top, right, bottom as shares of the
      image) and ``values``; ``text``, a list of ``pair``, ``words`` and ``values``.

    Args:
        path: The file.
        measurement: What was measured.
        pairs: The pairs it was measured on; images that cannot be opened are shown as captions.
        title: Of the page.
        tables: Shown as they are.
        examples: Pairs shown on their own, such as before and after an edit.
        pictures: Shown whole, such as grids of drawings.
        census: Shown below the sizes of the classes: those of nulls.
        recurring: Features that came again, as ``vlm_edit.measures.stability`` finds them; a box
            then shows those alone. None for those of the census, where it has any.
        shown: Features per class, and drawn at random.
        seed: Of the random features.
        budget: Bytes of the file; by default 24 million, and 300 more for each feature beyond
            32,768. Figures and captions are always there. Of what is left heat maps have a
            quarter, then come thumbnails, then larger pictures: the most active features have
            theirs first, and the page says what did not fit.
        details: Facts of single features, by feature, or what returns them for one.
        runs: Pages of all runs that stand side by side, this one among them: the page then
            leads to the others and compares the sizes of classes.
        progress: Whether to show bars, where standard error is a terminal.

    Raises:
        VlmEditError: plotly is not installed, examples name pairs that are not there, or details
            are not of their form.

    Example:
        >>> import pathlib, tempfile
        >>> from vlm_edit import Host, measure, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> pairs = zoo.load_pairs().select(range(64))
        >>> dictionary = zoo.load_dictionary("joint")
        >>> measurement = measure(host, pairs, dictionary, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = pathlib.Path(folder, "page.html")
        ...     write_page(page, measurement, pairs, "Features of emoji-clip")
        ...     page.stat().st_size < 24_000_000
        True
    """
    halves = None if census is None else census.halves
    recurring = halves.recurring if recurring is None and halves is not None else recurring
    payload = Payload(measurement, pairs, examples, shown, seed, recurring)
    scripts = _scripts()
    render = partial(
        template("page.html.jinja").render,
        title=title,
        measurement=measurement,
        name=without_folders(pairs.name),
        overview=Overview.of(measurement, pairs, seed),
        tables=tables,
        examples=examples,
        pictures=[(p, p.address) for p in pictures],
        census=None if census is None else census_table(census),
        halves=None if halves is None else halves_table(halves),
        recurring=recurring,
        runs=runs,
        beside=runs_table(runs) if len(runs) > 1 else None,
        seed=seed,
        blocks=payload.blocks(),
        csp=policy(scripts.values()),
        style=style(),
        scripts={name: Markup(script) for name, script in scripts.items()},
    )

    def page(small: Sprites, large: Sprites, facts: Bundles) -> bytes:
        text: str = render(
            data=Markup(to_json(payload.data(small, large, facts))),
            small=small.sheets,
            large=large.sheets,
            bundles=facts.texts,
            notes=notes(measurement, pairs, small, facts),
        )
        # A caption may hold halves of characters that UTF-8 cannot write.
        return text.encode("utf-8", "replace")

    features = len(measurement.dominance.scores)
    whole = budget or _BUDGET + _EACH * max(0, features - _MANY)
    facts_in = partial(bundles, details, payload.order(), features)
    write_bytes(path, _filled(page, whole, facts_in, pairs, payload.pictures(), progress), "page")


def _filled(
    page: Callable[[Sprites, Sprites, Bundles], bytes],
    whole: int,
    facts_in: Callable[[int], Bundles],
    pairs: Pairs,
    pictures: Iterable[int],
    progress: bool,
) -> bytes:
    """Return the page with as many facts, thumbnails and larger pictures as fit so many bytes."""
    numbers = list(dict.fromkeys(pictures))
    room = whole - len(page(Sprites(), Sprites(), Bundles())) - _PER_PICTURE * len(numbers) - _SLACK
    facts = facts_in(room // 4)
    room -= facts.size + len(to_json([facts.at, facts.left_out, facts.names]).encode())
    small = pack(pairs, numbers, room, progress=progress)
    # Larger pictures of some would not make up for thumbnails that others lack.
    wanted = numbers if not small.left_out else []
    large = pack(pairs, wanted, room - small.size, _LARGE, _LARGE_ROW, progress=progress)
    return page(small, large, facts)


def _scripts() -> dict[str, str]:
    code = "\n".join(web(name) for name in _SCRIPTS)
    return {
        "early": web("early.js"),
        "code": f'"use strict";\n{code}',
        "plotly": _plotly(),
        "late": "drawCharts();",
    }


def _plotly() -> str:
    """Return the source of plotly.js."""
    if not has_plotly():
        raise VlmEditError(
            "the page is drawn with plotly, which is not installed: pip install 'vlm-edit[report]'"
        )
    # The parser of HTML turns line ends into \n before it hashes a script.
    source = (
        str(importlib.import_module("plotly.offline").get_plotlyjs())
        .replace("\r\n", "\n")
        .replace("\r", "\n")
    )
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
