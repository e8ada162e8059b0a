"""The config of any host, cut to a tiny size by the names of its entries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

LAYERS, HEADS, HEAD, WORDS = 3, 2, 16, 64
TEXT_WIDTH, VISION_WIDTH = 32, 24
IMAGE, VIDEO, AUDIO = 60, 61, 62
START, END, VIDEO_START, VIDEO_END = 58, 59, 56, 57

Config = dict[str, Any]

LAYER_COUNTS = (
    *("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers"),
    *("num_decoder_layers", "n_layers", "layers", "num_spatial_layers", "conf_num_hidden_layers"),
)

# The same in every part of a config.
SIZES: Config = {
    **dict.fromkeys(LAYER_COUNTS, LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), HEADS),
    **dict.fromkeys(("attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "decoder_num_attention_heads"), HEADS),
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), HEADS),
    **dict.fromkeys(("num_sliding_attention_heads", "index_n_heads", "indexer_n_heads"), HEADS),
    **dict.fromkeys(("mamba_num_heads", "linear_num_heads", "linear_num_key_heads"), HEADS),
    **dict.fromkeys(("resampler_heads", "resampler_n_heads"), HEADS),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("downsample_hidden_size", "alignment_intermediate_size"), 16),
    **dict.fromkeys(
        ("projection_hidden_size", "adapter_in_dim", "adapter_input_size", "codebook_dim"),
        VISION_WIDTH,
    ),
    **dict.fromkeys(("projection_intermediate_size", "projection_hidden_dim"), 32),
    **dict.fromkeys(("moe_hidden_size", "max_image_size", "max_img_size"), 32),
    **dict.fromkeys(("min_image_size", "img_max_token_num", "mm_posemb_size"), 16),
    **dict.fromkeys(("max_vit_seq_len", "position_embedding_size"), 64),
    "pooling_kernel_size": 2,
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "swa_head_dim", "global_head_dim"), HEAD),
    **dict.fromkeys(("qk_head_dim", "index_head_dim", "indexer_head_dim"), HEAD),
    **dict.fromkeys(("linear_head_dim", "mamba_head_dim", "rotary_dim"), HEAD),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("resampler_dim_head", "resampler_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "query_pre_attn_scalar"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("d_ff", "mlp_dim", "intermediate_size_mlp", "dense_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "projector_hidden_size"), 32),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("shared_experts_intermediate_size", "share_expert_dim"), 16),
    "moe_shared_expert_intermediate_size": 16,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "moe_num_experts": 4,
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "mlp_ratio", "resampler_ff_mult"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), WORDS),
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("max_position_embeddings", "max_2d_position_embeddings"), 128),
    "original_max_position_embeddings": 64,
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "sliding_window_size"), 64),
    **dict.fromkeys(("image_size", "crop_size"), 16),
    **dict.fromkeys(("num_position_embeddings", "num_patches"), 16),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), 4),
    "patch_size": 4,
    "window_size": 8,
    "projection_size": VISION_WIDTH,
    **dict.fromkeys(("temporal_patch_size", "num_kv_shared_layers"), 1),
    "projection_dim": 12,
    "project_dim": 14,
    **dict.fromkeys(("num_query_tokens", "latent_query_num", "resampler_n_latents"), 4),
    **dict.fromkeys(("image_seq_length", "num_image_tokens", "mm_tokens_per_image"), 4),
    **dict.fromkeys(("resampler_num_latents", "hc_count", "hc_mult"), 4),
    **dict.fromkeys(("resampler_depth", "num_global_layers", "num_blocks"), 2),
    "encoder_hidden_size": VISION_WIDTH,
}

# What a projector gives, or a part of the config reads of the language model.
GIVEN_TO_TEXT = (
    *("out_hidden_size", "text_hidden_size", "output_dim", "output_proj_dims", "adapter_out_dim"),
    *("word_embed_proj_dim", "projector_output_dim", "mm_embed_dim", "lm_hidden_size"),
)
WIDTHS = ("hidden_size", "d_model", "embed_dim")

IDS: Config = {
    **dict.fromkeys(("image_token_id", "image_token_index", "image_patch_id"), IMAGE),
    **dict.fromkeys(("video_token_id", "video_token_index"), VIDEO),
    **dict.fromkeys(("audio_token_id", "audio_token_index"), AUDIO),
    **dict.fromkeys(("vision_start_token_id", "image_start_token_id", "image_start_id"), START),
    **dict.fromkeys(("boi_token_id", "boi_token_index", "image_bos_token_id"), START),
    **dict.fromkeys(("vision_end_token_id", "image_end_token_id", "image_end_id"), END),
    **dict.fromkeys(("eoi_token_id", "eoi_token_index"), END),
    "im_start_id": START,
    "im_end_id": END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
    **dict.fromkeys(("audio_start_token_id", "audio_bos_token_id", "boa_token_id"), 54),
    **dict.fromkeys(("audio_end_token_id", "eoa_token_id", "eoa_token_index"), 55),
    **dict.fromkeys(("sep_token_id", "eod_token_id", "mask_token_id"), 51),
    **{"frame_start_token_id": 52, "frame_end_token_id": 53},
    "low_res_image_start_token_id": START,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}

NEEDED = ("image_token_id", "video_token_id", "pad_token_id")

# Lists of layers that something is done at.
LAYER_INDEXES: Config = {
    "deepstack_visual_indexes": [0, 1],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "intermediate_layers_indices": [0, 1],
    "cross_attention_layers": [1],
    "full_attn_idxs": [1],
    "extract_layers": [0, 1, 2],
    "mlp_only_layers": [],
}


def whole(model_type: str) -> PretrainedConfig:
    """The default config, with every part of it that sees or reads."""
    config = CONFIG_MAPPING[model_type]()
    for name, part in config.sub_configs.items():
        if getattr(config, name, None) is None and "audio" not in name:
            setattr(config, name, part())
    return config


def kept_layers(config: Config) -> tuple[int, list[int]]:
    """The number of layers and which of them stay, so that every kind of layer does."""
    counts = [config[name] for name in LAYER_COUNTS if isinstance(config.get(name), int)]
    if not counts or counts[0] <= LAYERS:
        return 0, []
    lists = [v for v in config.values() if isinstance(v, (list, tuple)) and len(v) == counts[0]]
    special = config.get("per_layer_config") or {}
    kinds = [repr([v[i] for v in lists] + [layer(special, i)]) for i in range(counts[0])]
    first = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]][:LAYERS]
    others = [i for i in range(counts[0]) if i not in first]
    return counts[0], sorted([*first, *others][:LAYERS])


def layer(special: Config, index: int) -> Config | None:
    """What is particular to one layer, whose number may be written as a word."""
    return special.get(index, special.get(str(index)))  # type: ignore[call-overload]


def rope(parameters: Config, head: int) -> Config:
    """Rotary parameters whose sections fill a head of ``head``."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {k: rope(v, head) if v else v for k, v in parameters.items()}
    made = dict(parameters)
    if made.get("partial_rotary_factor", 1.0) < 1.0:
        made["partial_rotary_factor"] = 0.5
    if "original_max_position_embeddings" in made:
        made["original_max_position_embeddings"] = 64
    if "mrope_section" in made:
        parts = len(made["mrope_section"])
        pairs = int(head * made.get("partial_rotary_factor", 1.0)) // 2
        made["mrope_section"] = [(pairs + i) // parts for i in range(parts)]
    return made


def shrunk(config: Config, role: str = "text") -> Config:
    """``config`` with every size that its name gives away made small."""
    made = dict(config)
    layers, kept = kept_layers(config)
    for name, value in config.items():
        if name == "per_layer_config" and value:
            particular = {i: layer(value, old) for i, old in enumerate(kept)}
            made[name] = {i: shrunk(v, role) for i, v in particular.items() if v}
        elif isinstance(value, dict) and is_part(name, value):
            made[name] = shrunk(value, part_role(name, role))
        elif name in ("rope_parameters", "rope_scaling") and value:
            made[name] = rope(value, 8 if made.get("qk_rope_head_dim") else HEAD)
        elif name in LAYER_INDEXES and value is not None:
            made[name] = LAYER_INDEXES[name]
        elif name in IDS:
            made[name] = IDS[name] if value is not None or name in NEEDED else None
        elif isinstance(value, (list, tuple)):
            made[name] = shorter(name, list(value), layers, kept)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            made[name] = type(value)(size(name, value, role))
    if config.get("head_dim") and config.get("head_dim") == config.get("qk_rope_head_dim"):
        made["head_dim"] = made["qk_rope_head_dim"]
    return made


def shorter(name: str, values: list[Any], layers: int, kept: list[int]) -> list[Any]:
    """A list of a value a layer for the layers that stay; sizes in a list made small."""
    if layers and len(values) == layers:
        return [values[i] for i in kept]
    return [SIZES[name]] * len(values) if name in SIZES and name not in LAYER_COUNTS else values


def is_part(name: str, value: Config) -> bool:
    return name.endswith("_config") or name in ("encoder", "decoder") or "model_type" in value


def size(name: str, value: Any, role: str) -> Any:
    """A number of the config in the tiny host, itself where its name says nothing."""
    if name in WIDTHS:
        return {"text": TEXT_WIDTH, "former": 16}.get(role, VISION_WIDTH)
    if name in GIVEN_TO_TEXT:
        return TEXT_WIDTH
    if name == "head_dim" and role == "vision":
        return VISION_WIDTH // HEADS
    return SIZES.get(name, value) if value else value  # what is turned off stays off


def part_role(name: str, role: str) -> str:
    """What a part of the config describes: seeing, reading, hearing or what lies between."""
    for word, kind in {"vision": "vision", "image": "vision", "audio": "audio"}.items():
        if word in name:
            return kind
    if "qformer" in name or "perceiver" in name:
        return "former"
    return "text" if name in ("text_config", "vlm_config") else role


def tiny(model_type: str, change: Callable[[Config], Config | None]) -> PretrainedConfig:
    """The tiny config of a type, ``change`` made to its entries before the library reads them."""
    config = whole(model_type)
    entries = shrunk(copy.deepcopy(config.to_dict()))
    return type(config).from_dict(change(entries) or entries)
