"""Kosmos-2 and Kosmos-2.5: latent queries read the image, and stand where the caller says.

Their ids are those of words too, so an argument marks the places.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("vision_model.model.encoder.layers.{i}", "vision_model.encoder.layer.{i}"),
                    "image",
                ),
            ),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "projector",
            (TapRule(("image_to_text_projection",), "image"),),
            width=("text_config.embed_dim",),
        ),
        SiteRule(
            "language.{i}",
            (TapRule(("text_model.model.layers.{i}",), "mixed"),),
            width=("text_config.embed_dim",),
        ),
    ),
    calls=("text_model",),
    places="image_embeds_position_mask",
)
