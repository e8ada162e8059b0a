"""CLIP: a joint embedding with one projection per stream, and two towers of layers."""

from vlm_edit.sites import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("visual_projection",), "image"), TapRule(("text_projection",), "text")),
            width=("projection_dim",),
        ),
        SiteRule(
            "vision.{i}",
            (TapRule(("vision_model.encoder.layers.{i}",), "image"),),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "text.{i}",
            (TapRule(("text_model.encoder.layers.{i}",), "text"),),
            width=("text_config.hidden_size",),
        ),
    ),
)
