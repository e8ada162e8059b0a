"""Chinese-CLIP: CLIP's vision tower, and a Chinese BERT."""

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
            (TapRule(("text_model.encoder.layer.{i}",), "text"),),
            width=("text_config.hidden_size",),
        ),
    ),
    calls=("text_model",),
)

vision = Adapter(
    sites=(
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
            "text.{i}",
            (TapRule(("encoder.layer.{i}",), "text"),),
            width=("hidden_size",),
        ),
    ),
)
