"""FLAVA: two towers, and a third that reads both, its own cls token before image and words.

That cls token is neither's and goes with the text's special tokens; those of the towers go with
their image or their words. The joint embedding is part of what pretrains.
"""

from vlm_edit.host import Adapter, Layout, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "joint",
            (
                TapRule(("flava.image_projection",), "image"),
                TapRule(("flava.text_projection",), "text"),
            ),
            width=("projection_dim",),
            optional=True,
        ),
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("image_model.encoder.layer.{i}", "flava.image_model.encoder.layer.{i}"),
                    "image",
                    ends=("+output.dense",),
                ),
            ),
            width=("image_config.hidden_size",),
        ),
        SiteRule(
            "text.{i}",
            (
                TapRule(
                    ("text_model.encoder.layer.{i}", "flava.text_model.encoder.layer.{i}"),
                    "text",
                    ends=("+output.dense",),
                ),
            ),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "multimodal.{i}",
            (
                TapRule(
                    (
                        "multimodal_model.encoder.layer.{i}",
                        "flava.multimodal_model.encoder.layer.{i}",
                    ),
                    "mixed",
                    ends=("+output.dense",),
                ),
            ),
            width=("multimodal_config.hidden_size",),
        ),
    ),
    calls=("flava", "text_model", "flava.text_model"),
    layouts=(
        Layout(
            ("multimodal_model.encoder", "flava.multimodal_model.encoder"),
            ("image", "text"),
            ahead="multimodal_config.use_cls_token",
        ),
    ),
)
