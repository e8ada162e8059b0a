"""BLIP-2: a vision tower, a Q-Former whose queries read the image, and OPT or T5.

`generate` calls the language model, never the host.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

vision = SiteRule(
    "vision.{i}",
    (TapRule(("vision_model.encoder.layers.{i}",), "image", ends=("+mlp.fc2",)),),
    width=("vision_config.hidden_size",),
)
# Of a Q-Former that reads words beside its queries.
reading = SiteRule(
    "qformer.{i}",
    (TapRule(("qformer.encoder.layer.{i}",), "mixed"),),
    width=("qformer_config.hidden_size",),
)
adapter = Adapter(
    sites=(
        vision,
        SiteRule(
            "qformer.{i}",
            (TapRule(("qformer.encoder.layer.{i}",), "image", tokens="num_query_tokens"),),
            width=("qformer_config.hidden_size",),
        ),
        SiteRule(
            "projector",
            (TapRule(("language_projection",), "image"),),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "language.{i}",
            (
                TapRule(
                    (
                        "language_model.model.decoder.layers.{i}",
                        "language_model.model.layers.{i}",
                    ),
                    "mixed",
                ),
            ),
            width=("text_config.hidden_size",),
            optional=True,
        ),
        SiteRule(
            "encoder.{i}",
            (TapRule(("language_model.encoder.block.{i}",), "mixed"),),
            width=("text_config.hidden_size",),
            optional=True,
        ),
        SiteRule(
            "decoder.{i}",
            (TapRule(("language_model.decoder.block.{i}",), "text"),),
            width=("text_config.hidden_size",),
            optional=True,
        ),
    ),
    image_token="image_token_id",
    calls=("language_model", "language_model.encoder", "language_model.decoder"),
)
