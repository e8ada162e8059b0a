"""InternVL: a vision tower, pixel shuffle and a projector, and a language model."""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("model.vision_tower.encoder.layer.{i}", "vision_tower.encoder.layer.{i}"),
                    "image",
                ),
            ),
            width=("vision_config.hidden_size",),
            consumed="vision_feature_layer",
        ),
        SiteRule(
            "projector",
            (
                TapRule(
                    ("model.multi_modal_projector", "multi_modal_projector"),
                    "image",
                    ends=("linear_2",),
                ),
            ),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "language.{i}",
            (TapRule(("model.language_model.layers.{i}", "language_model.layers.{i}"), "mixed"),),
            width=("text_config.hidden_size",),
        ),
    ),
    image_token="image_token_id",
)
