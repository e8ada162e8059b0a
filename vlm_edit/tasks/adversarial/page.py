"""One HTML page with pictures: images, attacks, what differs, and which features moved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.ground.files import write_text
from vlm_edit.report import Table, address_of
from vlm_edit.tasks.adversarial.features import Features

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light}
body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;
color:#1f2328;background:#fff}
table{border-collapse:collapse;font-size:13px;margin:.5rem 0;display:block;overflow-x:auto}
td,th{padding:.2rem .6rem;border-bottom:1px solid #d0d7de;text-align:left;white-space:nowrap}
.note{color:#57606a;font-size:13px;max-width:70ch}
.case{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0;align-items:flex-start}
figure{margin:0;width:144px;font-size:12px}
img{width:144px;height:144px;object-fit:contain;image-rendering:pixelated;background:#eaeef2}
.bar{display:flex;gap:.4rem;align-items:center;font-size:12px;margin:1px 0}
.bar span{display:inline-block;height:8px;background:#1f6feb}
.bar .down{background:#cf222e}
"""


@dataclass(frozen=True, eq=False)
class Case:
    """One image, attacked.

    Attributes:
        name: Of the image.
        before: [3, h, w] in [0, 1].
        after: Likewise.
        was: What the host said before.
        now: What it says after.
        moved: Features and their change, largest first.
    """

    name: str
    before: Tensor
    after: Tensor
    was: str
    now: str
    moved: Sequence[tuple[str, float]] = ()


def drawn(n: int, shown: int, seed: int = 0) -> list[int]:
    """Which of n images are shown: drawn with a fixed seed, never picked."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:shown].tolist())


@torch.no_grad()
def most_moved(
    features: Features,
    before: Tensor,
    after: Tensor,
    classes: Mapping[str, Sequence[int]],
    count: int = 6,
) -> list[list[tuple[str, float]]]:
    """The features of each image that moved it most, as change times length of the decoder's row.

    Args:
        features: Of a host, a dictionary and a site; over tokens, the mean change.
        before: [n, 3, h, w].
        after: Likewise.
        classes: Features by class, named beside their number; may be empty.
        count: Features of each image.

    Returns:
        For each image, names with their change in the dictionary's space.
    """
    codes, _ = features(before)
    change = features(after)[0] - codes
    change = change.flatten(1, -2).mean(1) if change.ndim > 2 else change
    change = (change * features.on(change.device).decoder.norm(dim=1)).cpu()
    kind = {k: name for name, chosen in classes.items() for k in chosen}
    top = change.abs().topk(min(count, change.shape[1]), dim=1).indices.tolist()
    return [
        [(f"{k} {kind.get(k, '')}".strip(), float(row[k])) for k in chosen if float(row[k])]
        for row, chosen in zip(change, top, strict=True)
    ]


def write_page(
    path: str | os.PathLike[str],
    title: str,
    cases: Sequence[Case],
    tables: Sequence[Table] = (),
    note: str = "",
    gain: float = 16.0,
) -> None:
    """Write a page; it needs no other file and no network.

    Args:
        path: The file.
        title: Of the page.
        cases: Images to show, such as ``drawn`` chooses.
        tables: Shown as they are.
        note: Above the images.
        gain: By which the difference is multiplied, around grey.

    Raises:
        VlmEditError: A gain that is not above 0.

    Example:
        >>> import pathlib, tempfile, torch
        >>> image = torch.rand(3, 8, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = pathlib.Path(folder, "page.html")
        ...     write_page(page, "An attack", [Case("a", image, image, "cat", "dog")])
        ...     "before: cat" in page.read_text("utf-8")
        True
    """
    if not gain > 0:
        raise VlmEditError(f"gain is {gain}: differences are multiplied by a number above 0")
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        *(_table(table) for table in tables),
        f"<h2>Images</h2><p class='note'>{escape(note)}</p>",
        *(_case(case, gain) for case in cases),
    ]
    # A caption or a path may hold halves of characters that UTF-8 cannot write.
    write_text(path, "\n".join(parts), "page")


def to_image(pixels: Tensor) -> Image.Image:
    """A picture of pixels [3, h, w] in [0, 1], rounded to 8 bits."""
    rounded = (pixels.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
    return Image.fromarray(rounded.contiguous().numpy())


def _case(case: Case, gain: float) -> str:
    apart = 0.5 + gain * (case.after - case.before)
    figures = [
        (case.before, f"before: {case.was}"),
        (case.after, f"attacked: {case.now}"),
        (apart, f"difference, {gain:g} times"),
    ]
    shown = "".join(
        f"<figure><img alt='' src='{address_of(to_image(pixels))}'>"
        f"<figcaption>{escape(told)}</figcaption></figure>"
        for pixels, told in figures
    )
    most = max((abs(v) for _, v in case.moved), default=0.0) or 1.0
    bars = "".join(
        f"<div class='bar'><span class='{'down' if v < 0 else 'up'}' "
        f"style='width:{120 * abs(v) / most:.0f}px'></span>{escape(name)} {v:+.2f}</div>"
        for name, v in case.moved
    )
    moved = f"<div>features that moved most{bars}</div>" if bars else ""
    return f"<h3>{escape(case.name)}</h3><div class='case'>{shown}{moved}</div>"


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
