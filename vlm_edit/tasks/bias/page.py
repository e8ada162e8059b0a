"""One HTML page with pictures: groups before and after an edit, and what queries find."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape

import torch

from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.ground.files import write_text
from vlm_edit.report import PER_ROW, PER_SHEET, SIDE, Sprites, Table, pack
from vlm_edit.tasks.bias.metrics import accuracy_by_group, max_skew, shares
from vlm_edit.tasks.bias.study import Study

_COLOURS = ("#1f6feb", "#d29922", "#8250df", "#1a7f37", "#cf222e", "#57606a")
_BUDGET = 12_000_000
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = f"""
:root{{color-scheme:light}}
body{{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;
color:#1f2328;background:#fff}}
table{{border-collapse:collapse;font-size:13px;margin:.5rem 0;display:block;overflow-x:auto}}
td,th{{padding:.2rem .6rem;border-bottom:1px solid #d0d7de;text-align:left;white-space:nowrap}}
.note{{color:#57606a;font-size:13px;max-width:70ch}}
.bar{{display:flex;align-items:center;gap:.5rem;margin:.15rem 0;font-size:13px}}
.bar b{{width:14rem;font-weight:400;text-align:right}}
.line{{position:relative;width:20rem;height:12px;background:#eaeef2}}
.fill{{position:absolute;top:0;bottom:0;left:0}}
.span{{position:absolute;top:5px;height:2px;background:#1f2328}}
.row{{display:flex;flex-wrap:wrap;gap:3px;align-items:center;margin:.2rem 0}}
.row b{{width:14rem;font-weight:400;font-size:13px}}
.t{{width:{SIDE}px;height:{SIDE}px;border-bottom:5px solid}}
.key{{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .8em}}
"""


def write_page(
    path: str | os.PathLike[str],
    studies: Mapping[str, Study],
    title: str,
    tables: Sequence[Table] = (),
    *,
    first: int = 10,
    shown: int = 8,
    seed: int = 0,
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
        raise VlmEditError("the studies of a page are of the same images")
    queries = _drawn(list(plain.questions.queries), shown, seed)
    found = {name: _first(study, queries, first) for name, study in studies.items()}
    numbers = [i for rows in found.values() for row in rows for i in row]
    sprites = pack(plain.pairs, numbers, _BUDGET)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}{_sheets(sprites)}</style>",
        f"<h1>{escape(title)}</h1>",
        _groups(studies),
        *_queries(queries, found, plain, sprites, seed),
        *(_table(table) for table in tables),
    ]
    # A caption or a path may hold halves of characters that UTF-8 cannot write.
    write_text(path, "\n".join(parts), "page")


def _drawn(queries: list[str], shown: int, seed: int) -> list[str]:
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed)).tolist()
    return [queries[i] for i in sorted(order[:shown])]


def _first(study: Study, queries: Sequence[str], first: int) -> list[list[int]]:
    """Numbers of each query's first images, of those that are told apart."""
    if not queries:
        return []
    near = study.similarity(queries)[study.told_apart].mT
    order = near.argsort(dim=1, descending=True, stable=True)[:, :first].tolist()
    return [[study.told_apart[i] for i in row] for row in order]


def _groups(studies: Mapping[str, Study]) -> str:
    """A bar for each study and group."""
    plain = next(iter(studies.values()))
    lines = [
        f"<h2>{escape(plain.questions.attribute)} told by prompts</h2>",
        f"<p class='note'>Share of each group's images that are nearer to their own prompts; "
        f"chance is {1 / len(plain.questions.values):.2f}. The line is the 95 % interval.</p>",
    ]
    colours = _colours(plain)
    for name, study in studies.items():
        for group, told in accuracy_by_group(study.named_right(), study.asked_groups).items():
            low, high = 100 * told.low, 100 * told.high
            lines.append(
                f"<div class='bar'><b>{escape(name)}: {escape(group)} ({told.n})</b>"
                f"<div class='line'><div class='fill' style='width:{100 * told.value:.1f}%;"
                f"background:{colours[group]}'></div><div class='span' style='left:{low:.1f}%;"
                f"width:{high - low:.1f}%'></div></div>{told}</div>"
            )
    return "\n".join(lines)


def _queries(
    queries: Sequence[str],
    found: Mapping[str, list[list[int]]],
    plain: Study,
    sprites: Sprites,
    seed: int,
) -> list[str]:
    if not queries:
        return []
    colours, wanted = _colours(plain), shares(plain.asked_groups)
    key = "".join(
        f"<span class='key' style='background:{colour}'></span>{escape(group)} "
        f"({wanted[group]:.0%} of the images)"
        for group, colour in colours.items()
    )
    lines = [
        "<h2>What queries find first</h2>",
        f"<p class='note'>{len(queries)} of {len(plain.questions.queries)} queries, drawn with "
        f"seed {seed}.{key}</p>",
    ]
    for at, query in enumerate(queries):
        lines.append(f"<h3>{escape(query)}</h3>")
        for name, rows in found.items():
            groups = [plain.groups[i] for i in rows[at]]
            skew = max_skew(groups, len(groups), wanted)
            tiles = "".join(
                _tile(i, plain.groups[i], colours, sprites, plain.pairs.describe(i))
                for i in rows[at]
            )
            lines.append(f"<div class='row'><b>{escape(name)}, skew {skew:.2f}</b>{tiles}</div>")
    return lines


def _tile(i: int, group: str, colours: Mapping[str, str], sprites: Sprites, name: str) -> str:
    place, style = sprites.places.get(i), f"border-color:{colours[group]}"
    shape = "t"
    if place is not None:
        sheet, inside = divmod(place, PER_SHEET)
        x, y = inside % PER_ROW * SIDE, inside // PER_ROW * SIDE
        shape, style = f"t s{sheet}", f"{style};background-position:-{x}px -{y}px"
    told = escape(f"{name}: {group}", quote=True)
    return f"<div class='{shape}' style='{style}' title=\"{told}\"></div>"


def _sheets(sprites: Sprites) -> str:
    return "".join(
        f".s{i}{{background-image:url(data:image/webp;base64,{sheet})}}"
        for i, sheet in enumerate(sprites.sheets)
    )


def _colours(study: Study) -> dict[str, str]:
    return {
        group: _COLOURS[i % len(_COLOURS)]
        for i, group in enumerate(sorted(set(study.asked_groups)))
    }


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return (
        f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>"
        f"<p class='note'>{escape(table.note)}</p>"
    )
