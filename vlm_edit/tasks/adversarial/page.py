"""One HTML page with pictures: images, attacks, what differs, and which features moved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.report import Table, address_of, write_plain
from vlm_edit.tasks.adversarial.features import Features


@dataclass(frozen=True, eq=False)
class Case:
    """One image that was attacked.

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
    """Draw which of n images are shown, with a fixed seed; never pick them."""
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
    """List the features that moved each image most, as change times the decoder row's length.

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
    kind = {k: name for name, numbers in classes.items() for k in numbers}
    top = change.abs().topk(min(count, change.shape[1]), dim=1).indices.tolist()
    return [
        [(f"{k} {kind.get(k, '')}".strip(), float(row[k])) for k in numbers if float(row[k])]
        for row, numbers in zip(change, top, strict=True)
    ]


def write_page(
    path: str | os.PathLike[str],
    title: str,
    cases: Sequence[Case],
    tables: Sequence[Table] = (),
    note: str = "",
    gain: float = 16.0,
    back: str | None = None,
) -> None:
    """Write a page; it needs no other file and no network.

    Args:
        path: The file.
        title: Of the page.
        cases: Images to show, such as ``drawn`` chooses.
        tables: Shown as they are.
        note: Above the images.
        gain: By which the difference is multiplied, around grey.
        back: A page it leads back to, such as a run's, as seen from this one.

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
        raise BadArgument(f"gain is {gain}: differences are multiplied by a number above 0")
    write_plain(
        path,
        "attack.html.jinja",
        __package__,
        back=back,
        title=title,
        tables=tables,
        note=note,
        cases=[_shown(case, gain) for case in cases],
    )


def to_image(pixels: Tensor) -> Image.Image:
    """Make a picture of pixels [3, h, w] in [0, 1], rounded to 8 bits."""
    rounded = (pixels.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
    return Image.fromarray(rounded.contiguous().numpy())


def _shown(case: Case, gain: float) -> dict[str, Any]:
    apart = 0.5 + gain * (case.after - case.before)
    figures = [
        (case.before, f"before: {case.was}"),
        (case.after, f"attacked: {case.now}"),
        (apart, f"difference, {gain:g} times"),
    ]
    most = max((abs(change) for _, change in case.moved), default=0.0) or 1.0
    return {
        "name": case.name,
        "figures": [(address_of(to_image(pixels)), caption) for pixels, caption in figures],
        "moved": [(name, change, round(120 * abs(change) / most)) for name, change in case.moved],
    }
