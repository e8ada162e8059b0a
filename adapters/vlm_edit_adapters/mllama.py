"""Llama 3.2 Vision: language layers see images through cross-attention only.

There are two stacks of vision layers, and no image tokens in the sequence of the language layers,
which is text. The image layers that the config names go to the projector beside the last.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    (
                        "model.vision_model.transformer.layers.{i}",
                        "vision_model.transformer.layers.{i}",
                    ),
                    "image",
                ),
            ),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "global.{i}",
            (
                TapRule(
                    (
                        "model.vision_model.global_transformer.layers.{i}",
                        "vision_model.global_transformer.layers.{i}",
                    ),
                    "image",
                ),
            ),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "projector",
            (TapRule(("model.multi_modal_projector", "multi_modal_projector"), "image"),),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "language.{i}",
            (TapRule(("model.language_model.layers.{i}", "language_model.layers.{i}"), "text"),),
            width=("text_config.hidden_size",),
        ),
    ),
)
