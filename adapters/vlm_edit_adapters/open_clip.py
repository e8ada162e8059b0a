"""OpenCLIP: a joint embedding, and two towers of layers.

`CLIP` keeps the text tower's parts in itself, and embeds text in a method; `CustomTextCLIP` has a
module for it. The vision tower is OpenCLIP's own or one of timm's.
"""

from vlm_edit.host import Tower, two_towers

adapter = two_towers(
    Tower(
        "image",
        layers=("visual.transformer.resblocks.{i}", "visual.trunk.blocks.{i}"),
        joint=("visual",),
        width=("visual.transformer.width", "visual.trunk.embed_dim"),
    ),
    Tower(
        "text",
        layers=("transformer.resblocks.{i}", "text.transformer.resblocks.{i}"),
        joint=("text", "encode_text()"),
        width=("transformer.width", "text.transformer.width"),
    ),
    width=("visual.output_dim", "text.output_dim", "visual.head.proj.out_features"),
)
