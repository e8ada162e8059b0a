"""SigLIP and SigLIP 2: each tower ends in a head, whose output is the joint embedding."""

from vlm_edit.sites import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "joint",
            (
                TapRule(("vision_model.head",), "image", ends=("+mlp.fc2",)),
                TapRule(("text_model.head",), "text"),
            ),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "vision.{i}",
            (TapRule(("vision_model.encoder.layers.{i}",), "image", ends=("+mlp.fc2",)),),
            width=("vision_config.hidden_size",),
        ),
        SiteRule(
            "text.{i}",
            (TapRule(("text_model.encoder.layers.{i}",), "text", ends=("+mlp.fc2",)),),
            width=("text_config.hidden_size",),
        ),
    ),
    calls=("text_model",),
)

vision = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("head", "vision_model.head"), "image", ends=("+mlp.fc2",)),),
            width=("hidden_size",),
            optional=True,
        ),
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("encoder.layers.{i}", "vision_model.encoder.layers.{i}"),
                    "image",
                    ends=("+mlp.fc2",),
                ),
            ),
            width=("hidden_size",),
        ),
    ),
)

text = Adapter(
    sites=(
        SiteRule(
            "joint",
            (TapRule(("head", "text_model.head"), "text"),),
            width=("projection_size",),
        ),
        SiteRule(
            "text.{i}",
            (
                TapRule(
                    ("encoder.layers.{i}", "text_model.encoder.layers.{i}"),
                    "text",
                    ends=("+mlp.fc2",),
                ),
            ),
            width=("hidden_size",),
        ),
    ),
)
