"""Idefics 3 and SmolVLM: a SigLIP tower, a connector that shuffles pixels, and a Llama.

Tiles of an image are rows of the vision layers' batch.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("model.vision_model.encoder.layers.{i}", "vision_model.encoder.layers.{i}"),
                    "image",
                    ends=("+mlp.fc2",),
                ),
            ),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "projector",
            (
                TapRule(
                    ("model.connector", "connector"), "image", ends=("modality_projection.proj",)
                ),
            ),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "language.{i}",
            (TapRule(("model.text_model.layers.{i}", "text_model.layers.{i}"), "mixed"),),
            width=("text_config.hidden_size",),
        ),
    ),
    image_token="image_token_id",
)
