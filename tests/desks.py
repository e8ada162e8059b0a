"""Desks of the page that turns features: the zoo's hosts, measured on few pairs."""

from __future__ import annotations

from functools import cache
from typing import Any

from vlm_edit import Host, measure, zoo
from vlm_edit.app import Desk
from vlm_edit.app.acts import OWN, TURNED

QUESTION = "what colour is the background?"
YELLOW, GREEN = [342, 110, 49, 501], [49, 501, 482, 193]  # as docs/loops.md has them


@cache
def llava_desk() -> Desk:
    """The zoo's LLaVA at its first layer, measured on 64 pairs."""
    return _desk("zoo:emoji-llava", "language.0")


@cache
def clip_desk() -> Desk:
    """The zoo's CLIP at its joint embedding, likewise."""
    return _desk("zoo:emoji-clip", "joint")


def _desk(name: str, site: str) -> Desk:
    host, dictionary = Host.load(name, device="cpu"), zoo.load_dictionary(site)
    pairs = zoo.load_pairs().select(range(64))
    run = measure(host, pairs, dictionary, site, progress=False)
    return Desk(host, dictionary, site, run, pairs)


def controls(numbers: str = "342, 110, 49, 501", **changes: Any) -> list[Any]:
    """What the page's controls say, in their order; the patch that was loaded among them."""
    values = {
        "way": "number",
        "kind": "vision",
        "most": 4,
        "names": [],
        "numbers": numbers,
        "rule": "clamp",
        "amount": 8.0,
        "strength": 1.0,
        "tokens": "image",
        "phase": "both",
        "source": TURNED,
        "patch": None,
    }
    own = changes.pop("own", [changes.get("strength", 1.0)] * OWN)
    return [*(values | changes).values(), *own]
