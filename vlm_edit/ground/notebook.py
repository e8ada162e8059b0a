"""How things show themselves: on one line of a prompt, and as a small table of a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import Environment

from vlm_edit.ground.errors import line

# Fewer characters than a line of most screens.
WIDEST = 118

# No colours of its own: text and rules take the notebook's, light or dark.
_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
{% set cell = "text-align:left;padding:.1em 1em .1em 0" %}
<div style="max-width:60em;overflow-x:auto"><b>{{ title }}</b>
{% if facts %}
<table style="margin:.3em 0;border-collapse:collapse">
{% for name, value in facts.items() %}
<tr><th scope="row" style="{{ cell }};font-weight:normal;opacity:.7">{{ name }}</th>\
<td style="{{ cell }}">{{ value }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% if rows %}
<table style="margin:.3em 0;border-collapse:collapse">
<thead><tr style="border-bottom:1px solid">{% for name in columns %}\
<th style="{{ cell }}">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for value in row %}<td style="{{ cell }}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if note %}<div style="opacity:.7;white-space:pre-line">{{ note }}</div>{% endif %}
</div>
""")


def card(
    title: str,
    facts: Mapping[str, object] | None = None,
    columns: Sequence[str] = (),
    rows: Sequence[Sequence[object]] = (),
    note: str = "",
) -> str:
    """Return a small piece of HTML for a notebook; it escapes everything and loads nothing.

    Args:
        title: What it is.
        facts: Names and values, one below the other.
        columns: Headings of a table below them.
        rows: Its cells.
        note: A sentence at the end.

    Example:
        >>> "&lt;script&gt;" in card("Pairs", {"from": "<script>"})
        True
    """
    return (
        _TEMPLATE.render(title=title, facts=facts or {}, columns=columns, rows=rows, note=note)
        .encode("utf-8", "replace")
        .decode("utf-8")
    )  # a caption may hold halves of characters


def one_line(text: str) -> str:
    r"""Return text on one line of at most ``WIDEST`` characters, cut in the middle of what is long.

    Example:
        >>> one_line("Pairs(\n3)")
        'Pairs( 3)'
        >>> len(one_line("x" * 500))
        118
    """
    text = line(text)
    if len(text) <= WIDEST:
        return text
    end = 18
    return f"{text[: WIDEST - end - 3]}...{text[-end:]}"


def several(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> several(1, "pair"), several(12000, "pair")
        ('1 pair', '12,000 pairs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
