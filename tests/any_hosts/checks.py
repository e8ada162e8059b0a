"""What a built host must do: each property that it lacks, and how it shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from any_hosts.hosts import AnyHost, taken

Row = list[int | str]
Lacks = dict[str, str]

ROWS: list[Row] = [[5, 6, "I", 7, 8, 9], [10, "I", 11]]
SEVERAL: list[Row] = [[5, "I", 6, "I", 7], [8, "I"]]
WITHOUT: list[Row] = [[5, 6, 7], [8, "I", 9]]
TEXT: list[Row] = [[5, 6, 7], [8, 9]]
VIDEOS: list[Row] = [[5, "V", 6], [8, 9, "V"]]
BOTH: list[Row] = [[5, "V", 6], [8, "I", 9, "V"]]

CLOSE, SAME = 1e-3, 1e-5
ANOTHER = 77


def said(host: AnyHost, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What the host says of each row: its logits, or its embeddings where it has none."""
    more = {"use_cache": False} if "use_cache" in taken(host.model) else {}
    with torch.no_grad():
        output = host.model(**inputs, **more)
    embedded = ("image_embeds", "video_embeds", "text_embeds")
    names = ("logits",) if output.get("logits") is not None else embedded
    return {name: output[name].float() for name in names if output.get(name) is not None}


def lacking(host: AnyHost) -> Lacks:
    """Every property that the host lacks, of those that its kind can have.

    acts: A row's image shows in that row and in no other.
    alone: A row of a padded batch is what it is alone.
    speaks: ``generate`` runs.
    several, without, text: So it is with several images in a row, with none in one row, and it runs
        with none at all.
    videos, both: Videos act likewise, and it runs with an image and a video in one row.
    """
    found = steady("acts", host, ROWS) | alone(host) | speaks(host)
    if host.several:
        found |= steady("several", host, SEVERAL) | steady("without", host, WITHOUT)
        found |= runs("text", host, TEXT)
    if host.videos:
        found |= steady("videos", host, VIDEOS) | runs("both", host, BOTH)
    return found


def steady(name: str, host: AnyHost, rows: list[Row]) -> Lacks:
    """Another picture in one place must show in its row and in no other."""
    found = runs(name, host, rows)
    if found:
        return found
    answer = said(host, host.inputs(rows))
    owners = [i for i, row in enumerate(rows) for place in row if isinstance(place, str)]
    for picture, owner in enumerate(owners):
        numbers = [ANOTHER if i == picture else i for i in range(len(owners))]
        now = said(host, host.inputs(rows, numbers=numbers))
        for row in range(len(rows)):
            moved = any(not close(now[n][row], v[row], SAME) for n, v in answer.items())
            if moved != (row == owner):
                found[name] = f"picture {picture} {'acts' if moved else 'does not act'} on {row}"
    return found


def close(a: Tensor, b: Tensor, bound: float) -> bool:
    return bool(torch.allclose(a, b, atol=bound, rtol=0))


def alone(host: AnyHost, side: str | None = None) -> Lacks:
    """A row of a padded batch must be what it is alone."""
    found: Lacks = {}
    side = side or host.side
    answer = said(host, host.inputs(ROWS, side))
    for i, row in enumerate(ROWS):
        for name, value in said(host, host.inputs([row], side, [i])).items():
            together = answer[name][i : i + 1]
            if together.ndim == 3 and together.shape[1] != value.shape[1]:
                length = value.shape[1]
                together = together[:, -length:] if side == "left" else together[:, :length]
            if not close(together, value, CLOSE):
                gap = (together - value).abs().max().item()
                found["alone"] = f"{name} of row {i} differ by {gap:.2g}"
    return found


def runs(name: str, host: AnyHost, rows: list[Row]) -> Lacks:
    """The forward must take these rows and say something finite."""
    try:
        answer = said(host, host.inputs(rows))
    except Exception as error:
        return {name: f"{type(error).__name__}: {str(error)[:150]}"}
    unsaid = [output for output, value in answer.items() if not value.isfinite().all()]
    return {name: f"not finite: {unsaid}"} if unsaid else {}


def speaks(host: AnyHost) -> Lacks:
    if not host.generates:
        return {}
    try:
        with torch.no_grad():
            host.model.generate(**host.inputs(ROWS), max_new_tokens=3, do_sample=False)
    except Exception as error:
        return {"speaks": f"{type(error).__name__}: {str(error)[:150]}"}
    return {}
