"""Florence-2: a convolutional vision tower in stages, a projector, and an encoder and a decoder.

Images and the prompt share the encoder's sequence; the decoder's holds the answer. `generate` runs
the encoder on its own.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}.{j}",
            (
                TapRule(
                    ("model.vision_tower.blocks.{i}.{j}", "vision_tower.blocks.{i}.{j}"),
                    "image",
                    axis=1,
                ),
            ),
            width=("vision_config.embed_dim",),
        ),
        SiteRule(
            "projector",
            (TapRule(("model.multi_modal_projector", "multi_modal_projector"), "image"),),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "encoder.{i}",
            (
                TapRule(
                    (
                        "model.language_model.encoder.layers.{i}",
                        "language_model.encoder.layers.{i}",
                    ),
                    "mixed",
                ),
            ),
            width=("text_config.d_model",),
        ),
        SiteRule(
            "decoder.{i}",
            (
                TapRule(
                    (
                        "model.language_model.decoder.layers.{i}",
                        "language_model.decoder.layers.{i}",
                    ),
                    "text",
                ),
            ),
            width=("text_config.d_model",),
        ),
    ),
    image_token="image_token_id",
    calls=(
        "model.language_model.encoder",
        "model.language_model.decoder",
        "language_model.encoder",
        "language_model.decoder",
    ),
)
