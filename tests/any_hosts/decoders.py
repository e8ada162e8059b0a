"""Types whose language model reads images among the words, and what is particular to each."""

from __future__ import annotations

from dataclasses import replace

from any_hosts import finishing, pixels
from any_hosts.recipes import Recipe, seen, text
from any_hosts.sizes import IMAGE

SECTIONS = {"mrope_section": [2, 3, 3]}
HALF = {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
ANY_RESOLUTION = Recipe(
    {"image_grid_pinpoints": [[16, 16], [32, 16]], **seen(patch_size=8)}, pixels.tiles
)
VQ = {
    **{"base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1},
    **{"latent_channels": 8, "embed_dim": 8, "num_embeddings": 16, "attn_resolutions": [2]},
}
SAM = {
    **{"image_size": 32, "output_channels": 16, "window_size": 2},
    **{"global_attn_indexes": [1], "intermediate_size": 32},
}
INDEXER = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
    **{"indexer_budget": 32, "indexer_compress_ratio": 4, "hc_lowrank": 8},
}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e4}
LLAMA4_SEEN = {
    **{"intermediate_size": 96, "vision_output_dim": 48},
    **{"projector_input_dim": 48, "projector_output_dim": 48},
}
MINICPM = Recipe(
    {"patch_size": 4, "insert_layer_id": 1, **seen(image_size=32, insert_layer_id=1)},
    pixels.one_strip,
    size=32,
    videos=pixels.strip_of_videos,
    video_text="framed",
)
# Towers of timm: convolutions in stages, the same with attention between them, a transformer.
FASTVIT = {
    **{"layers": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 32], "inference_mode": True},
    "layer_scale_init_value": 0.5,
}
MOBILENET = {
    **{"channel_multiplier": 0.01, "stem_size": 8, "msfa_output_resolution": 2},
    "layer_scale_init_value": 0.5,
}
PERCEPTION = {
    **{"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2},
    **{"ref_feat_shape": [4, 4], "global_pool": ""},
}
CROP_IDS = {
    **{"image_start_id": 58, "image_end_id": 59, "slice_start_id": 56, "slice_end_id": 57},
    "newline_id": 53,
}

DECODERS: dict[str, Recipe] = {
    **dict.fromkeys(
        ("glm4v", "glm46v", "glm_ocr", "glmga"),
        Recipe(text(rope_parameters=SECTIONS), video_text="images"),
    ),
    "qwen2_5_vl": Recipe(text(rope_parameters=SECTIONS)),
    "glm4v_moe": Recipe(text(rope_parameters=HALF), video_text="images"),
    "glm5_next": Recipe(video_text="images"),
    **dict.fromkeys(
        ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "cosmos3_edge", "cosmos3_omni"),
        Recipe(video_text="framed"),
    ),
    "qwen2_vl": Recipe({**text(rope_parameters=SECTIONS), **seen(hidden_size=32)}),
    **dict.fromkeys(
        ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"),
        Recipe(
            {**text(rope_parameters=SECTIONS), "vision_start_token_id": 58},
            around=([58], [59]),
            finish=finishing.timed,
        ),
    ),
    "vipllava": Recipe({"vision_feature_layers": [-2, -3]}),
    "muse_glimmer": Recipe({"out_hidden_size": 96, **seen(patch_temporal=1)}),
    "muse_spark": Recipe(
        {
            **{"out_hidden_size": 96, "audio_config": {"hidden_sizes": [16, 16, 16]}},
            **seen(patch_temporal=1),
        }
    ),
    "granite_docling": Recipe(
        {"image_seq_length": 4, **seen(scale_factor=2, deepstack_visual_indexes=[0, 1, 2])},
        pixels.tiled,
    ),
    "janus": Recipe(
        {
            **seen(projection_dim=32),
            "vq_config": {**VQ, "projection_dim": 32, "image_token_embed_dim": 32},
        }
    ),
    "kosmos-2": Recipe(tokens=4, finish=finishing.marked),
    "inkling2": Recipe(pixels=pixels.blocks),
    "inkling2_loop": Recipe(
        text(loop_layer_index_start=1, loop_layer_index_end=2, n_layers_per_attn_res_block=1),
        pixels.blocks,
    ),
    "inkling_mm_model": Recipe(seen(patch_size=8, temporal_patch_size=2), pixels.doubled),
    "hunyuan_vl": Recipe(
        text(head_dim=16, rope_parameters={"mrope_section": [2, 2, 2, 2]}),
    ),
    "step3p7": Recipe({**text(sliding_window=64), **seen(image_size=32)}, size=32),
    **dict.fromkeys(
        ("got_ocr2", "pp_chart2table"), Recipe(seen(image_size=32, output_channels=16), size=32)
    ),
    "qwen4_exp": Recipe(text(rope_parameters=SECTIONS, **INDEXER), video_text="framed"),
    "cohere_compass": Recipe(
        text(rope_parameters={"full_attention": {**DEFAULT_ROPE, **SECTIONS}}), video_text="framed"
    ),
    "chameleon": Recipe(
        {
            "vocabulary_map": {
                "<image>": IMAGE,
                **{f"IMGIMG{c}Z": 30 + i for i, c in enumerate("ABCDEFGHIJ")},
            },
            "vq_config": {**VQ, "num_embeddings": 10, "resolution": 16},
        },
        pixels.plain,
    ),
    "emu3": Recipe(
        {
            "vocabulary_map": {
                **{"<image>": IMAGE, "<|extra_200|>": 59},
                **{f"<|visual token {i:06d}|>": 30 + i for i in range(16)},
            },
            "vq_config": {**VQ, "codebook_size": 16},
        },
        prepare=finishing.crowded,
    ),
    "apertus1p5": Recipe(
        {
            **{"image_token_offset": 30, "audio_token_offset": 46},
            **seen(**VQ, codebook_size=16, spatial_scale_factor=8),
            "audio_config": {
                **{"codebook_size": 4, "num_filters": 4, "decoder_num_layers": 1},
                **{"upsampling_ratios": [2, 2], "decoder_hidden_size": 32},
                **{"decoder_intermediate_size": 32, "num_lstm_layers": 1, "codebook_dim": 24},
            },
        }
    ),
    "granite4_vision": Recipe(
        {
            # Each of five projectors adds to a layer of its own.
            **{"deepstack_layer_map": [[-2, 0]], "spatial_target_layers": [1, 2, 3, 4]},
            **{"downsample_rate": "1/2", "text_config": {"num_hidden_layers": 5}},
            **{"image_grid_pinpoints": [[16, 16], [32, 16]]},
            **{"qformer_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 64}},
        },
        pixels.tiles,
        10,
    ),
    "unlimited_ocr": Recipe(
        seen(
            sam_config={**SAM, "downsample_channels": [16, 24]},
            encoder_config={"image_size": 32, "patch_size": 16},
        ),
        size=32,
    ),
    "deepseek_ocr2": Recipe(
        {
            **text(
                **{"mlp_layer_types": ["dense", "sparse", "sparse"], "n_group": 1, "topk_group": 1},
                **{"num_experts_per_tok": 2, "max_position_embeddings": 512},
            ),
            **seen(
                sam_config={**SAM, "downsample_channels": [16, 24]},
            ),
        },
        size=32,
    ),
    "dots3_note": Recipe({"audio_config": {"feature_size": 16}}),
    "deepseek_vl_hybrid": Recipe(
        {
            "high_res_vision_config": {**SAM, "scale": 96, "num_pos_feats": 12},
        },
        pixels.doubly_sized,
    ),
    "llava": Recipe({"image_seq_length": 16}),
    "paligemma": Recipe(
        {"projection_dim": 32, "vocab_size": 64, **seen(projection_dim=32, vocab_size=64)}
    ),
    "aria": Recipe({"projector_patch_to_query_dict": {16: 4}}),
    "llama4": Recipe(seen(**LLAMA4_SEEN), tokens=4, prepare=finishing.repaired),
    "llava_next": ANY_RESOLUTION,
    **dict.fromkeys(
        ("llava_next_video", "llava_onevision"), replace(ANY_RESOLUTION, videos=pixels.clips)
    ),
    "video_llava": Recipe(videos=pixels.clips),
    **dict.fromkeys(
        ("gemma4", "gemma4_unified"), Recipe(videos=pixels.placed_videos, video_text="framed")
    ),
    "kimi_k25": Recipe(pixels=pixels.unflattened, videos=pixels.unflattened_videos),
    "paddleocr_vl": Recipe(text(rope_parameters=SECTIONS), pixels.unflattened),
    "video_llama_3": Recipe(pixels=pixels.unmerged, videos=pixels.merged_videos),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6"), MINICPM),
    "minicpmv4_7": replace(MINICPM, config={**(MINICPM.config or {}), **CROP_IDS}),
    "ernie4_5_vl_moe": Recipe(
        text(rope_parameters={"mrope_section": [2, 2, 4]}), finish=finishing.routed
    ),
    "fast_vlm": Recipe(seen(hidden_size=64, model_args=FASTVIT), size=64),
    "gemma3n": Recipe(
        {
            # Ids from 59 on are embedded by the towers' own embedders.
            **text(vocab_size_per_layer_input=59),
            **seen(hidden_size=2048, model_args=MOBILENET, vocab_offset=59, vocab_size=2),
            "audio_config": {"vocab_offset": 61, "vocab_size": 3},
            "vision_soft_tokens_per_image": 4,
        },
        size=64,
    ),
    "perception_lm": Recipe(
        {
            "projector_pooling_ratio": 2,
            **seen(architecture="vit_pe_lang_large_patch14_448", model_args=PERCEPTION),
        },
        pixels.one_crop,
        videos=pixels.clips,
    ),
}
