"""InstructBLIP: BLIP-2, whose Q-Former reads the instruction beside its queries.

Queries stand first; frames of a video have queries each.
"""

from dataclasses import replace

from vlm_edit.host import Layout
from vlm_edit_adapters import blip2

_sites = tuple(
    blip2.reading if rule.name == blip2.reading.name else rule for rule in blip2.adapter.sites
)
adapter = replace(blip2.adapter, sites=_sites, layouts=(Layout(("qformer",), ("image", "text")),))
video = replace(adapter, image_token=None, video_token="video_token_id")
