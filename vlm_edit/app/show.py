"""What the page shows as HTML: every word of a file, a label or a caption is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vlm_edit.app.effect import Chances
from vlm_edit.ground.errors import line
from vlm_edit.report import FeatureSheet

_LISTED = 12  # features of a choice that are listed one by one


def heading(about: str) -> str:
    """Return the head of the page.

    Args:
        about: What is turned here, on a line.
    """
    return (
        "<header class='ve-head'><h1>Turn features, watch what changes</h1>"
        f"<p>{escape(line(about))}</p></header>"
    )


def hint(told: str) -> str:
    """Return a remark.

    Args:
        told: It.
    """
    return f"<p class='ve-hint'>{escape(line(told))}</p>"


def chosen(told: str, names: Sequence[str]) -> str:
    """Return which features were chosen.

    Args:
        told: How, in a sentence.
        names: One for each feature; the first twelve are listed.

    Example:
        >>> chosen("1 feature", ["3 <b>"])
        "<p class='ve-told'>1 feature</p><ul class='ve-list'><li>3 &lt;b&gt;</li></ul>"
    """
    items = "".join(f"<li>{escape(line(name))}</li>" for name in names[:_LISTED])
    more = len(names) - _LISTED
    items += f"<li>and {more:,} more</li>" if more > 0 else ""
    return f"<p class='ve-told'>{escape(line(told))}</p><ul class='ve-list'>{items}</ul>"


def report(edited: str, notes: Sequence[str] = ()) -> str:
    """Return what was really edited, and what a reader could overlook.

    Args:
        edited: The patch's report, a line for each site.
        notes: One a line.
    """
    rows = "".join(f"<li>{escape(line(row))}</li>" for row in edited.splitlines() if row.strip())
    rows += "".join(f"<li class='ve-note'>{escape(line(note))}</li>" for note in notes)
    return f"<div role='status'><ul class='ve-list'>{rows}</ul></div>" if rows else ""


def trouble(told: str) -> str:
    """Return a sentence of what went wrong; nothing for none.

    Args:
        told: It.
    """
    return f"<p class='ve-trouble' role='alert'>{escape(line(told))}</p>" if told else ""


def bars(chances: Chances, title: str = "features turned") -> str:
    """Return how likely each label is, before and after, as a table with bars.

    Args:
        chances: Of labels.
        title: What the second of each is called.
    """
    order = sorted(range(len(chances.labels)), key=lambda i: -chances.before[i])
    rows = "".join(
        f"<tr><th scope='row'>{escape(line(chances.labels[i]))}</th>"
        f"<td>{_bar(chances.before[i], 've-before')}{_bar(chances.after[i], 've-after')}</td></tr>"
        for i in order
    )
    return (
        "<table class='ve-bars'><caption>"
        "<span class='ve-key ve-before'></span> as it is "
        f"<span class='ve-key ve-after'></span> {escape(line(title))}</caption>"
        "<thead class='ve-unseen'><tr><th scope='col'>label</th>"
        f"<th scope='col'>as it is, then {escape(line(title))}</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def sheets(features: Sequence[FeatureSheet]) -> str:
    """Return where features fire, one beside the other.

    Args:
        features: A sheet of each.
    """
    return f"<div class='ve-sheets'>{''.join(one._repr_html_() for one in features)}</div>"


def _bar(share: float, kind: str) -> str:
    return (
        f"<div class='ve-row'><span class='ve-track'><span class='ve-bar {kind}' "
        f"style='width:{share:.2%}'></span></span><span class='ve-share'>{share:.1%}</span></div>"
    )
