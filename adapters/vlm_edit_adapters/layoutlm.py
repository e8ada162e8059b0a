"""LayoutLMv3: the words of a page, then the patches of its picture, in one stack of layers.

The picture's own cls token is one of its tokens.
"""

from vlm_edit.host import Adapter, Layout, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "encoder.{i}",
            (TapRule(("encoder.layer.{i}", "layoutlmv3.encoder.layer.{i}"), "mixed"),),
            width=("hidden_size",),
        ),
    ),
    calls=("layoutlmv3",),
    layouts=(Layout(("encoder", "layoutlmv3.encoder"), ("text", "image")),),
)
