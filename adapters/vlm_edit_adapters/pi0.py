"""Pi-zero, a policy for robots: a PaliGemma, whose cache the layers that act look at.

Those layers have no words and no image, so they are no site.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (TapRule(("model.vlm.vision_tower.encoder.layers.{i}",), "image"),),
            width=("vlm_config.vision_config.hidden_size",),
        ),
        SiteRule(
            "projector",
            (TapRule(("model.vlm.multi_modal_projector",), "image"),),
            width=("vlm_config.text_config.hidden_size",),
        ),
        SiteRule(
            "language.{i}",
            (TapRule(("model.vlm.language_model.layers.{i}",), "mixed"),),
            width=("vlm_config.text_config.hidden_size",),
            consumed=-2,  # of the last layer only keys and values are looked at
        ),
    ),
    image_token="vlm_config.image_token_id",
    calls=("model.vlm",),
)
