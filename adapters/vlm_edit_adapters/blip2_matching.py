"""BLIP-2 that matches images and texts: its Q-Former reads the text too.

Queries stand first, the words behind them; or each in a pass of its own, to the joint embedding.
"""

from vlm_edit.host import Adapter, Layout, SiteRule, TapRule
from vlm_edit_adapters import blip2

adapter = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("vision_projection",), "image"), TapRule(("text_projection",), "text")),
            width=("image_text_hidden_size",),
        ),
        blip2.vision,
        blip2.reading,
    ),
    layouts=(
        Layout(("qformer",), ("image", "text"), images="query_length", cut="num_query_tokens"),
    ),
)
