"""Phi-4 multimodal: a SigLIP and a sound encoder inside the embedding of ids.

The config says which of the tower's hidden states goes on; layers behind it are dead.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

_EYE = "model.embed_tokens_extend.image_embed"
_EAR = "model.embed_tokens_extend.audio_embed.encoder"

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (TapRule((f"{_EYE}.img_processor.encoder.layers.{{i}}",), "image"),),
            width=("vision_config.hidden_size",),
            consumed="vision_config.feature_layer",
        ),
        SiteRule(
            "projector",
            (TapRule((f"{_EYE}.img_projection_down",), "image"),),
            width=("hidden_size",),
        ),
        SiteRule(
            "language.{i}", (TapRule(("model.layers.{i}",), "mixed"),), width=("hidden_size",)
        ),
        SiteRule(
            "audio.{i}",
            (TapRule((f"{_EAR}.encoders.{{i}}",), "audio"),),
            width=("audio_config.hidden_size",),
            optional=True,
        ),
    ),
    image_token="vision_config.image_token_id",
    visual_inputs=("image_pixel_values", "audio_input_features"),
    audio_token="audio_config.audio_token_id",
)
