"""How names of sites are put together: sites inside a layer, and several side by side."""

from __future__ import annotations

import re

# Between the names of sites that are read as one.
BESIDE = "+"
_INSIDE = re.compile(r"(.+)\.(?:attention|cross_attention|mid|mlp_in|mlp|mlp_out|head\.\d+)")


def layer_of(name: str) -> str:
    """Return the name of the layer that a site lies inside; of any other site its own.

    Example:
        >>> layer_of("language.3.mlp_out"), layer_of("language.3")
        ('language.3', 'language.3')
    """
    inside = _INSIDE.fullmatch(name)
    return inside[1] if inside else name
