"""What a built host must do: each property that it lacks, and how it shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from any_hosts.hosts import AnyHost, taken

Row = list[int | str]
ROWS: list[Row] = [[5, 6, "I", 7, 8, 9], [10, "I", 11]]
CLOSE = 1e-3
OUTPUTS = (
    "logits",
    "logits_per_image",
    "video_embeds",
    "text_embeds",
    "image_embeds",
    "last_hidden_state",
)

Lacks = dict[str, str]


def said(host: AnyHost, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The host's outputs that have a row for each row of the batch."""
    more = {"use_cache": False} if "use_cache" in taken(host.model) else {}
    with torch.no_grad():
        output = host.model(**inputs, **more)
    given = {name: output[name] for name in OUTPUTS if output.get(name) is not None}
    if "text_embeds" in given:
        given.pop("logits_per_image", None)  # mixes the rows
    return {name: value.float() for name, value in given.items()}


def lacking(host: AnyHost) -> Lacks:
    """Every property that the host lacks."""
    answer = said(host, host.inputs(ROWS))
    found: Lacks = {}
    for name, value in answer.items():
        if not value.isfinite().all():
            found["finite"] = name
    found |= moved(host, answer) | alone(host, answer) | speaks(host)
    return found | without(host) | several(host) | videos(host)


def moved(host: AnyHost, answer: dict[str, Tensor]) -> Lacks:
    """Another image for one row must show in that row ("acts") and in no other ("apart")."""
    found: Lacks = {}
    for row in range(len(ROWS)):
        now = said(host, host.inputs(ROWS, numbers=[7 if i == row else i for i in range(2)]))
        acted = [any(not same(now[n][i], v[i]) for n, v in answer.items()) for i in (0, 1)]
        if not acted[row]:
            found["acts"] = f"not the image of row {row}"
        if acted[1 - row]:
            found["apart"] = f"the image of row {row} acts on the other row"
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, atol=1e-5))


def alone(host: AnyHost, answer: dict[str, Tensor]) -> Lacks:
    """A row of a padded batch must be what it is alone ("alone")."""
    found: Lacks = {}
    for i, row in enumerate(ROWS):
        for name, value in said(host, host.inputs([row], numbers=[i])).items():
            together = answer[name][i : i + 1]
            if together.ndim == 3 and together.shape[1] != value.shape[1]:
                length = value.shape[1]
                left = host.side == "left"
                together = together[:, -length:] if left else together[:, :length]
            gap = (together - value).abs().max().item()
            if not gap < CLOSE:
                found["alone"] = f"{name} of row {i} by {gap:.2g}"
    return found


def attempted(name: str, host: AnyHost, rows: list[Row], speak: bool = False) -> Lacks:
    """A run on these rows; it must not raise and be finite."""
    try:
        inputs = host.inputs(rows)
        if speak:
            with torch.no_grad():
                host.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        elif not all(v.isfinite().all() for v in said(host, inputs).values()):
            return {name: "not finite"}
    except Exception as error:
        return {name: f"{type(error).__name__}: {str(error)[:150]}"}
    return {}


def speaks(host: AnyHost) -> Lacks:
    return attempted("speaks", host, ROWS, speak=True) if host.generates else {}


def without(host: AnyHost) -> Lacks:
    """A text without an image ("without"), where a text can be so."""
    return attempted("without", host, [[5, 6, 7], [8, "I", 9]]) if host.several else {}


def several(host: AnyHost) -> Lacks:
    """Two images in a row ("several")."""
    return attempted("several", host, [[5, "I", 6, "I", 7], [8, "I"]]) if host.several else {}


def videos(host: AnyHost) -> Lacks:
    """Videos ("videos"), and beside an image in the same batch ("both")."""
    if not host.videos:
        return {}
    only = attempted("videos", host, [[5, "V", 6], [8, 9, "V"]])
    return only | attempted("both", host, [[5, "V", 6], [8, "I", 9, "V"]])
