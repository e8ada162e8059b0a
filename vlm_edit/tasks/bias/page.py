"""One HTML page with pictures: groups before and after an edit, and what queries find."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from vlm_edit.ground.errors import BadArgument
from vlm_edit.report import PER_ROW, PER_SHEET, SIDE, Sprites, Table, pack, write_plain
from vlm_edit.tasks.bias.metrics import accuracy_by_group
from vlm_edit.tasks.bias.skews import max_skew, shares
from vlm_edit.tasks.bias.study import Study

_COLOURS = ("#1f6feb", "#d29922", "#8250df", "#1a7f37", "#cf222e", "#57606a")
_BUDGET = 12_000_000


def write_page(
    path: str | os.PathLike[str],
    studies: Mapping[str, Study],
    title: str,
    tables: Sequence[Table] = (),
    *,
    first: int = 10,
    shown: int = 8,
    seed: int = 0,
    back: str | None = None,
) -> None:
    """Write a page: how well each group is told, and the first images of some queries.

    Args:
        path: The file; it needs no other and no network.
        studies: The same images unedited and edited, by what was done.
        title: Of the page.
        tables: Shown as they are.
        first: Images of each query.
        shown: Queries, drawn at random.
        seed: Of the draw.
        back: A page it leads back to, such as a run's, as seen from this one.

    Raises:
        VlmEditError: No study, or studies of different images.

    Example:
        >>> import pathlib, tempfile
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.tasks.bias import Bench, Questions
        >>> asked = Questions(
        ...     "gender",
        ...     {"man": ["a picture of man"], "woman": ["a picture of woman"]},
        ...     queries=["a picture of pilot"],
        ... )
        >>> host = Host.of(*zoo.load_host())
        >>> bench = Bench.read(host, zoo.load_pairs().select(range(64)), asked)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = pathlib.Path(folder, "page.html")
        ...     write_page(page, {"nothing": bench.plain}, "Gender")
        ...     "a picture of pilot" in page.read_text("utf-8")
        True
    """
    if not studies:
        raise BadArgument("a page shows at least one study")
    plain = next(iter(studies.values()))
    if {len(study.pairs) for study in studies.values()} != {len(plain.pairs)}:
        raise BadArgument("the studies of a page are of the same images")
    queries = _drawn(list(plain.questions.queries), shown, seed)
    first_of = {name: _first(study, queries, first) for name, study in studies.items()}
    numbers = [i for rows in first_of.values() for row in rows for i in row]
    sprites = pack(plain.pairs, numbers, _BUDGET)
    colours, target = _colours(plain), shares(plain.asked_groups)
    write_plain(
        path,
        "groups.html.jinja",
        __package__,
        back=back,
        title=title,
        tables=tables,
        side=SIDE,
        sheets=sprites.sheets,
        attribute=plain.questions.attribute,
        chance=1 / len(plain.questions.values),
        bars=list(_bars(studies, colours)),
        asked=len(plain.questions.queries),
        seed=seed,
        key=[(group, colour, target[group]) for group, colour in colours.items()],
        queries=[
            {
                "text": query,
                "rows": [_row(name, rows[at], plain, sprites) for name, rows in first_of.items()],
            }
            for at, query in enumerate(queries)
        ],
    )


def _drawn(queries: list[str], shown: int, seed: int) -> list[str]:
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed)).tolist()
    return [queries[i] for i in sorted(order[:shown])]


def _first(study: Study, queries: Sequence[str], first: int) -> list[list[int]]:
    """Return numbers of each query's first images, of those that are told apart."""
    if not queries:
        return []
    near = study.similarity(queries)[study.told_apart].mT
    order = near.argsort(dim=1, descending=True, stable=True)[:, :first].tolist()
    return [[study.told_apart[i] for i in row] for row in order]


def _bars(studies: Mapping[str, Study], colours: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield a bar for each study and group."""
    for name, study in studies.items():
        for group, share in accuracy_by_group(study.named_right(), study.asked_groups).items():
            yield {
                "name": f"{name}: {group} ({share.n})",
                "value": 100 * share.value,
                "low": 100 * share.low,
                "high": 100 * share.high,
                "colour": colours[group],
                "words": str(share),
            }


def _row(name: str, numbers: Sequence[int], plain: Study, sprites: Sprites) -> dict[str, Any]:
    """Show the first images of a query, as one study has them."""
    groups = [plain.groups[i] for i in numbers]
    colours = _colours(plain)
    return {
        "name": name,
        "skew": max_skew(groups, len(groups), shares(plain.asked_groups)),
        "tiles": [
            _tile(sprites.places.get(i), colours[group], f"{plain.pairs.describe(i)}: {group}")
            for i, group in zip(numbers, groups, strict=True)
        ],
    }


def _tile(place: int | None, colour: str, title: str) -> dict[str, str]:
    if place is None:
        return {"shape": "t", "style": f"border-color:{colour}", "title": title}
    sheet, inside = divmod(place, PER_SHEET)
    x, y = inside % PER_ROW * SIDE, inside // PER_ROW * SIDE
    style = f"border-color:{colour};background-position:-{x}px -{y}px"
    return {"shape": f"t s{sheet}", "style": style, "title": title}


def _colours(study: Study) -> dict[str, str]:
    return {
        group: _COLOURS[i % len(_COLOURS)]
        for i, group in enumerate(sorted(set(study.asked_groups)))
    }
