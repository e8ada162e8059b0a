"""One HTML page with pictures, self-contained: it opens from disk, without a network."""

from __future__ import annotations

import base64
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.resources import files

from markupsafe import Markup

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.files import write_bytes
from vlm_edit.measures.nulls import Census
from vlm_edit.measuring import Measurement, Pairs
from vlm_edit.report.overview import Overview, notes
from vlm_edit.report.payload import Examples, Payload, to_json
from vlm_edit.report.picture import Picture
from vlm_edit.report.sprites import Sprites, pack
from vlm_edit.report.table import Table
from vlm_edit.report.tables import census_table, halves_table
from vlm_edit.report.templates import template

_SCRIPTS = ("core.js", "charts.js", "browser.js", "detail.js", "main.js")
_PACKAGE, _WEB = "vlm_edit.report", "web"

# What a picture takes beside itself: digits of its place.
_PER_PICTURE = 6
_SLACK = 4000


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
    budget: int = 24_000_000,
) -> None:
    """Write a page that shows a measurement and lets one look at every feature.

    It has the distribution of the scores beside the one expected without an effect of modality,
    the classes by each rule, a plane of all features, a table of them that searches and sorts,
    features drawn at random, the strongest of each class, and the given tables, examples and
    pictures. The file holds all it needs: figures, thumbnails, and plotly.js, which draws. Pages
    are read in browsers of 2023 and later.

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
        budget: Bytes of the file. What does not fit are thumbnails: the most active features have
            theirs first, others show captions only, and the page says so.

    Raises:
        VlmEditError: plotly is not installed, or examples name pairs that are not there.

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
    if recurring is None and census is not None and census.halves is not None:
        recurring = census.halves.recurring
    payload = Payload(measurement, pairs, examples, shown, seed, recurring)
    scripts = _scripts()
    about = Overview.of(measurement, pairs, seed)
    render = partial(
        template("page.html.jinja").render,
        title=title,
        measurement=measurement,
        pairs=pairs,
        overview=about,
        tables=tables,
        examples=examples,
        pictures=[(p, p.address) for p in pictures],
        census=None if census is None else census_table(census),
        halves=None if census is None or census.halves is None else halves_table(census.halves),
        recurring=recurring,
        seed=seed,
        csp=_policy(scripts.values()),
        style=Markup((files(_PACKAGE) / _WEB / "page.css").read_text("utf-8")),
        scripts={name: Markup(script) for name, script in scripts.items()},
    )

    def page(sprites: Sprites) -> bytes:
        data = Markup(to_json(payload.data(sprites)))
        text: str = render(data=data, sheets=sprites.sheets, notes=notes(measurement, sprites))
        # A caption may hold halves of characters that UTF-8 cannot write.
        return text.encode("utf-8", "replace")

    numbers = list(dict.fromkeys(payload.pictures()))
    bare = len(page(Sprites())) + _PER_PICTURE * len(numbers) + _SLACK
    write_bytes(path, page(pack(pairs, numbers, budget - bare)), "page")


def _scripts() -> dict[str, str]:
    web = files(_PACKAGE) / _WEB
    code = "\n".join((web / name).read_text("utf-8") for name in _SCRIPTS)
    return {
        "early": (web / "early.js").read_text("utf-8"),
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


def _policy(scripts: Iterable[str]) -> str:
    """Let only our own scripts run, and load nothing from anywhere."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
