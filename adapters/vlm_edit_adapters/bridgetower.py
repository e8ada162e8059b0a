"""BridgeTower: two towers, and above them pairs of layers, one for words and one for patches.

The layers of its vision tower have the tokens before the batch, and are no sites.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("itc_image_head",), "image"), TapRule(("itc_text_head",), "text")),
            width=("contrastive_hidden_size",),
            optional=True,
        ),
        SiteRule(
            "text.{i}",
            (
                TapRule(
                    ("text_model.encoder.layer.{i}", "bridgetower.text_model.encoder.layer.{i}"),
                    "text",
                ),
            ),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "multimodal.{i}",
            (
                TapRule(
                    ("cross_modal_image_layers.{i}", "bridgetower.cross_modal_image_layers.{i}"),
                    "image",
                ),
                TapRule(
                    ("cross_modal_text_layers.{i}", "bridgetower.cross_modal_text_layers.{i}"),
                    "text",
                ),
            ),
            width=("hidden_size",),
        ),
    ),
    calls=("bridgetower",),
)
