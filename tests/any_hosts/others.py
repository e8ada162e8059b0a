"""Types of other kinds: contrastive ones, encoders with decoders, images beside the text."""

from __future__ import annotations

from typing import Any

from any_hosts import finishing, pixels
from any_hosts.recipes import Recipe, merged, seen, text
from any_hosts.sizes import IMAGE, VIDEO, Config

END_OF_TEXT = 63
FLORENCE_WORDS = {
    **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    **{"forced_eos_token_id": None, "d_model": 32},
}
FLORENCE_SEEN = {
    **{"depths": [1, 2], "embed_dim": [16, 24], "num_heads": [2, 2], "num_groups": [2, 2]},
    **{"patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1]},
    **{"patch_prenorm": [False, True], "window_size": 2, "projection_dim": 32},
    **{"max_position_embeddings": 8, "max_temporal_embeddings": 4, "drop_path_rate": 0.0},
}
ALIGN_SEEN = {
    **{"image_size": 16, "kernel_sizes": [3, 3], "in_channels": [32, 16], "strides": [1, 2]},
    **{"out_channels": [16, 24], "num_block_repeats": [1, 1], "expand_ratios": [1, 6]},
    **{"hidden_dim": 16, "width_coefficient": 1.0, "depth_coefficient": 1.0},
}


def contrastive(config: Config | None = None, **changes: Any) -> Recipe:
    """A text and an image a row, the text closed by the token that it is pooled at."""
    entries: Config = text(eos_token_id=END_OF_TEXT)
    merged(entries, config or {})
    shared: dict[str, Any] = {"tokens": 0, "mixed": False, "side": "right", "several": False}
    return Recipe(**{**shared, "config": entries, "ending": (END_OF_TEXT,), **changes})


def beside(config: Config | None = None, **changes: Any) -> Recipe:
    """A text without an image's places, and one image a row."""
    shared: dict[str, Any] = {"tokens": 0, "mixed": False, "side": "right", "several": False}
    return Recipe(**{**shared, "config": config, **changes})


OTHERS: dict[str, Recipe] = {
    **dict.fromkeys(("clip", "clipseg", "metaclip_2", "altclip", "chinese_clip"), contrastive()),
    **dict.fromkeys(("siglip", "siglip2"), contrastive(ending=(), finish=finishing.full_texts)),
    "align": contrastive({"projection_dim": 24, **seen(**ALIGN_SEEN)}),
    "tipsv2": contrastive(
        {
            **text(hidden_size=24),
            **seen(
                **{"stage_names": ["stem", "stage1", "stage2", "stage3"]},
                **{"out_features": ["stage3"], "out_indices": [3]},
            ),
        },
        ending=(),
    ),
    "videoprism": contrastive(
        {
            **text(hidden_size=24),
            **seen(tubelet_size=[1, 4, 4], num_frames=2, num_temporal_layers=2),
        },
        pixels=pixels.clips,
        ending=(),
    ),
    "florence2": Recipe(
        {**text(**FLORENCE_WORDS), **seen(**FLORENCE_SEEN)}, side="right", finish=finishing.answered
    ),
    "blip": beside(),
    "git": beside(),
    "BlipModel": contrastive(),
    "Blip2ForImageTextRetrieval": contrastive(
        {
            "image_text_hidden_size": 12,
            "qformer_config": {"use_qformer_text_input": True},
        },
        ending=(),
    ),
    "blip-2": Recipe({"image_token_id": IMAGE, "image_token_index": IMAGE}),
    "instructblip": Recipe(
        {"image_token_index": IMAGE}, tokens=4, several=False, finish=finishing.asked_too
    ),
    "instructblipvideo": Recipe(
        {"video_token_index": VIDEO},
        tokens=8,
        several=False,
        shown=VIDEO,
        pixels=pixels.filmed,
        finish=finishing.asked_too,
    ),
    "kosmos-2.5": Recipe(
        seen(patch_embed_hidden_size=48, max_num_patches=16),
        pixels.flattened,
        4,
        finish=finishing.marked,
    ),
    "idefics": Recipe(tokens=1, pixels=pixels.nested, finish=finishing.attended),
    "fuyu": Recipe({"patch_size": 4}, pixels.rastered, 16),
    "pp_formulanet": beside(
        seen(
            **{"decoder_hidden_size": 32, "output_channels": 16, "post_conv_in_channels": 16},
            **{"post_conv_mid_channels": 16, "post_conv_out_channels": 16},
        ),
        finish=finishing.decoded,
    ),
    "vision-encoder-decoder": beside({"decoder_start_token_id": 1}, finish=finishing.decoded),
    "pix2struct": beside(
        seen(patch_embed_hidden_size=48, seq_len=16, hidden_size=32),
        pixels=pixels.flattened,
        finish=finishing.decoded,
    ),
    "t5gemma2": Recipe(side="right", finish=finishing.answered),
    "udop": beside({"decoder_start_token_id": 0}, finish=finishing.laid_out),
    "mllama": Recipe(
        {
            **text(cross_attention_layers=[1]),
            **seen(
                **{"max_num_tiles": 1, "intermediate_layers_indices": [0, 1]},
                **{"vision_output_dim": 72, "supported_aspect_ratios": [[1, 1]]},
            ),
        },
        pixels.one_tiled,
        tokens=1,
        finish=finishing.crossed,
    ),
    "phi4_multimodal": Recipe(
        {
            "audio_config": {
                **{"ext_pw_out_channel": 24, "depthwise_separable_out_channel": 24},
                **{"input_size": 16, "nemo_conv_channels": 16, "nemo_final_size": 2},
            },
            "original_max_position_embeddings": 128,
        },
        pixels.cropped,
        13,
    ),
    "pi0": Recipe(
        {
            **{"max_action_dim": 8, "max_state_dim": 8, "chunk_size": 4},
            "vlm_config": {"projection_dim": 32, **seen(projection_dim=32)},
        },
        pixels.tiled,
        16,
        finish=finishing.acted,
    ),
    "diffusion_gemma": Recipe(
        {
            **text(num_experts=4, top_k_experts=2, moe_intermediate_size=16),
            "canvas_length": 4,
        },
        pixels.placed,
        4,
        finish=finishing.canvas,
    ),
    "nemotron_h_omni": Recipe(
        {
            **text(n_groups=2, ssm_state_size=8, chunk_size=16),
            **seen(patch_dim=48, video_patch_dim=96, max_img_size=32),
            "vision_hidden_size": 24,
        },
        pixels.hw_packed,
        videos=pixels.tubelets,
        video_text="images",
    ),
    "molmo2": Recipe(
        {
            "adapter_config": {
                **{"vision_feature_layer": [-1, -2], "hidden_size": 24, "head_dim": 12},
            }
        },
        pixels.pooled,
        videos=pixels.pooled_videos,
        video_text="images",
    ),
}
