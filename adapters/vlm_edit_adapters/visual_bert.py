"""VisualBERT: words, then what a detector has seen, in one stack of layers."""

from vlm_edit.host import VISUAL_INPUTS, Adapter, Layout, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "encoder.{i}",
            (TapRule(("encoder.layer.{i}", "visual_bert.encoder.layer.{i}"), "mixed"),),
            width=("hidden_size",),
        ),
    ),
    visual_inputs=(*VISUAL_INPUTS, "visual_embeds"),
    calls=("visual_bert",),
    layouts=(Layout(("encoder", "visual_bert.encoder"), ("text", "image")),),
)
