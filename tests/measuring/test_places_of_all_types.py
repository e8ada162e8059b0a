"""Every type of transformers that sees images: boxes that tile the picture, or why there are none.

The pictures of these hosts are laid out by hand (``any_hosts.pixels``), 16 pixels a side.
"""

from __future__ import annotations

import re

import pytest
import torch
from any_hosts import TYPES, NotBuilt, build
from placed_hosts import of_any_type
from torch import Tensor

from vlm_edit import Host, VlmEditError
from vlm_edit.measuring import PlacesFinder

SIDE = 64  # points along a side at which it is asked which boxes hold them
NOBODY = (
    "each of its tokens looks at the whole picture",
    "no token shows anything of the picture before tokens look at one another",
    "its tokens are chosen from a codebook, and show nothing by halves",
    "one vector stands for the whole picture",
    "what one place of the picture shows reaches ",
    "the host fails while its layers are bypassed: TypeError",  # its decoder reads their cache
    "the images have ",
    "tokens='image': ",
)
ROWS = re.compile(r"\d+ rows pass for 1 picture, and nobody can tell whose")


def holders(boxes: Tensor) -> Tensor:
    """How many boxes hold each point of the picture, [SIDE, SIDE]."""
    points = (torch.arange(SIDE) + 0.5) / SIDE
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    across = (left <= points) & (points < right)
    down = (top <= points) & (points < bottom)
    return torch.einsum("tx,ty->yx", across.float(), down.float())


def read(host: Host) -> list[str]:
    """One site of each kind that images pass."""
    kinds = {re.sub(r"[.\d]+$", "", name): name for name in host.sites}
    return [name for name in kinds.values() if "image" in host.site(name).streams]


@pytest.mark.parametrize("model_type", TYPES)
def test_boxes_cover_the_picture_evenly_or_it_is_said_why_there_are_none(model_type: str) -> None:
    try:
        host = of_any_type(build(model_type))
        sites = read(host)
    except (NotBuilt, VlmEditError) as reason:
        pytest.skip(str(reason))
    for site in sites:
        places = PlacesFinder(host, site).of((64, 48))
        if places.boxes is None:
            assert places.why.startswith(NOBODY) or ROWS.fullmatch(places.why), places.why
            continue
        placed = places.boxes[~places.boxes.isnan().any(1)]
        assert (placed[:, :2] < placed[:, 2:]).all()
        counts = holders(placed)
        assert counts.min() == counts.max() >= 1, site
