"""ViLT: words, then the patches of an image, in one stack of layers.

The image's own cls token is one of its tokens; patches that only fill up a smaller image are
padding.
"""

from vlm_edit.host import Adapter, Layout, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "encoder.{i}",
            (
                TapRule(
                    ("encoder.layer.{i}", "vilt.encoder.layer.{i}"),
                    "mixed",
                    ends=("+output.dense",),
                ),
            ),
            width=("hidden_size",),
        ),
    ),
    calls=("vilt",),
    layouts=(Layout(("encoder", "vilt.encoder"), ("text", "image")),),
)
