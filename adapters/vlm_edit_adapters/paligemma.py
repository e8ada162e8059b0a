"""PaliGemma: a SigLIP tower, a linear projector, and Gemma."""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    (
                        "model.vision_tower.encoder.layers.{i}",
                        "model.vision_tower.vision_model.encoder.layers.{i}",
                        "vision_tower.encoder.layers.{i}",
                        "vision_tower.vision_model.encoder.layers.{i}",
                    ),
                    "image",
                ),
            ),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "projector",
            (
                TapRule(
                    ("model.multi_modal_projector", "multi_modal_projector"),
                    "image",
                    ends=("linear",),
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
