"""OpenCLIP: a joint embedding, and two towers of layers.

`CLIP` keeps the text tower's parts in itself, and embeds text in a method; `CustomTextCLIP` has a
module for it. The vision tower is OpenCLIP's own or one of timm's.
"""

from vlm_edit.sites import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("visual",), "image"), TapRule(("text", "encode_text()"), "text")),
            width=("visual.output_dim", "text.output_dim", "visual.head.proj.out_features"),
        ),
        SiteRule(
            "vision.{i}",
            (TapRule(("visual.transformer.resblocks.{i}", "visual.trunk.blocks.{i}"), "image"),),
            width=("visual.transformer.width", "visual.trunk.embed_dim"),
        ),
        SiteRule(
            "text.{i}",
            (TapRule(("transformer.resblocks.{i}", "text.transformer.resblocks.{i}"), "text"),),
            width=("transformer.width", "text.transformer.width"),
        ),
    ),
)
