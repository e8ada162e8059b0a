"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the patches of all images in one packed sequence.

Qwen3-VL also adds features of early vision layers to the first language layers, each through a
merger of its own: `deepstack.{i}`.
"""

from vlm_edit.host import Adapter, SiteRule, TapRule

adapter = Adapter(
    sites=(
        SiteRule(
            "vision.{i}",
            (
                TapRule(
                    ("model.visual.blocks.{i}", "visual.blocks.{i}"),
                    "image",
                    ends=("+mlp.fc2", "+mlp.down_proj", "+mlp.linear_fc2"),
                ),
            ),
            width=("vision_config.embed_dim", "vision_config.hidden_size"),
        ),
        SiteRule(
            "deepstack.{i}",
            (
                TapRule(
                    ("model.visual.deepstack_merger_list.{i}", "visual.deepstack_merger_list.{i}"),
                    "image",
                    ends=("linear_fc2",),
                ),
            ),
            width=("text_config.hidden_size",),
            optional=True,
        ),
        SiteRule(
            "projector",
            (
                TapRule(
                    ("model.visual.merger", "visual.merger"), "image", ends=("mlp.2", "linear_fc2")
                ),
            ),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "language.{i}",
            (TapRule(("model.language_model.layers.{i}", "language_model.layers.{i}"), "mixed"),),
            width=("text_config.hidden_size",),
        ),
        SiteRule(
            "audio.{i}",
            (TapRule(("model.audio_tower.layers.{i}", "audio_tower.layers.{i}"), "audio"),),
            width=("audio_config.d_model", "audio_config.hidden_size"),
            optional=True,
        ),
    ),
    image_token="image_token_id",
    video_token="video_token_id",
    audio_token="audio_token_id",
    calls=("model.visual", "visual"),
    grid="grid_thw",
)
