"""CLIP: a joint embedding with one projection per stream, and two towers of layers.

The towers also stand alone, with or without their projection.
"""

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
            (TapRule(("vision_model.encoder.layers.{i}",), "image", ends=("+mlp.fc2",)),),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "text.{i}",
            (TapRule(("text_model.encoder.layers.{i}",), "text", ends=("+mlp.fc2",)),),
            width=("text_config.hidden_size",),
        ),
    ),
    calls=("text_model",),
)

vision = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("visual_projection",), "image"),),
            width=("projection_dim",),
            optional=True,
        ),
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("encoder.layers.{i}", "vision_model.encoder.layers.{i}"),
                    "image",
                    ends=("+mlp.fc2",),
                ),
            ),
            width=("hidden_size",),
        ),
    ),
)

text = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("text_projection",), "text"),),
            width=("projection_dim",),
            optional=True,
        ),
        SiteRule(
            "text.{i}",
            (
                TapRule(
                    ("encoder.layers.{i}", "text_model.encoder.layers.{i}"),
                    "text",
                    ends=("+mlp.fc2",),
                ),
            ),
            width=("hidden_size",),
        ),
    ),
)
