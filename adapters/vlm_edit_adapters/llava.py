"""LLaVA, LLaVA-NeXT, LLaVA-OneVision: a vision tower, a projector, and a language model.

The config says which of the tower's hidden states goes on; layers behind it are dead. LLaVA-NeXT
and OneVision cut an image into tiles, which are rows of the vision layers' batch, and put a learned
embedding between rows of patches: it is no site, but it stands at an image token.
"""

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
    video_token="video_token_id",
)
