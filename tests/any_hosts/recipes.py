"""What the sizes and the signature alone do not say of a type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from any_hosts import pixels
from any_hosts.sizes import Config

Change = Callable[[Config], None]


def merged(entries: Config, changes: Config) -> None:
    """Write ``changes`` over ``entries``, part by part."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(entries.get(name), dict) and value:
            merged(entries[name], value)
        else:
            entries[name] = value


@dataclass(frozen=True)
class Recipe:
    """How a type differs from what its names say.

    Attributes:
        config: Entries written over the shrunk config.
        pixels: How it takes images; None: as its forward's arguments say.
        tokens: Placeholders of an image; None: as many as it makes features of one.
        around: Ids before and after an image's placeholders; None: the config's.
        size: Of its images.
        side: Where its texts are padded.
        finish: Changes the made inputs: gets the config and them.
        parts: Sub-configs of other types than the default ones.
        several: Whether a row may have several images.
        videos: How it takes videos; None: as its forward's arguments say.
        video_text: How a video stands in a text: its frames' placeholders "together", each frame
            between an image's ids ("framed"), or as an image each between the video's ids
            ("images").
        mixed: Whether images stand in its texts.
        ending: Ids that close every text.
    """

    config: Config | None = None
    pixels: pixels.Packing | None = None
    tokens: int | None = None
    around: tuple[list[int], list[int]] | None = None
    size: int = 16
    side: str = "left"
    finish: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None
    parts: Callable[[Any], None] | None = None
    several: bool = True
    mixed: bool = True
    videos: pixels.Packing | None = None
    video_text: str = "together"
    ending: tuple[int, ...] = ()


END_OF_TEXT = 63
SECTIONS = {"mrope_section": [2, 3, 3]}
HALF = {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}


def text(**entries: Any) -> Config:
    return {"text_config": entries}


def seen(**entries: Any) -> Config:
    return {"vision_config": entries}


def full_texts(_: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Texts of one length whatever they say, without a mask, as SigLIP was trained on."""
    ids = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    return {
        "input_ids": ids.new_zeros(len(ids), 12).index_put_(where(ids), ids.flatten()),
        **inputs,
    }


def where(ids: Any) -> tuple[Any, Any]:
    rows, columns = ids.shape
    return ids.new_tensor(range(rows)).repeat_interleave(columns), ids.new_tensor(
        range(columns)
    ).repeat(rows)


def contrastive(**changes: Any) -> Recipe:
    """A text and an image a row, the text closed by the token that it is pooled at."""
    config = merged_copy(text(eos_token_id=END_OF_TEXT), changes.pop("config", {}))
    shared: dict[str, Any] = {"tokens": 0, "mixed": False, "side": "right", "several": False}
    return Recipe(**{**shared, "config": config, "ending": (END_OF_TEXT,), **changes})


def merged_copy(entries: Config, changes: Config) -> Config:
    made = {k: dict(v) if isinstance(v, dict) else v for k, v in entries.items()}
    merged(made, changes)
    return made


TWO_TEXTS = [[2, 5, 6]]


def answered(_: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The beginning of an answer for the decoder."""
    n = len(inputs["input_ids"])
    return {**inputs, "decoder_input_ids": inputs["input_ids"].new_tensor(TWO_TEXTS).expand(n, 3)}


def timed(_: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A second for every grid of a video."""
    if "video_grid_thw" in inputs:
        ones = inputs["pixel_values_videos"].new_ones(len(inputs["video_grid_thw"]))
        return {**inputs, "video_second_per_grid": ones}
    return inputs


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
ANY_RESOLUTION = Recipe(
    {"image_grid_pinpoints": [[16, 16], [32, 16]], **seen(patch_size=8)}, pixels.tiles
)
LLAMA4_SEEN = {
    **{"intermediate_size": 96, "vision_output_dim": 48},
    **{"projector_input_dim": 48, "projector_output_dim": 48},
}

RECIPES: dict[str, Recipe] = {
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
            finish=timed,
        ),
    ),
    "vipllava": Recipe({"vision_feature_layers": [-2, -3]}),
    **dict.fromkeys(
        ("muse_glimmer", "muse_spark"), Recipe({"out_hidden_size": 96, **seen(patch_temporal=1)})
    ),
    "llava": Recipe({"image_seq_length": 16}),
    "paligemma": Recipe(
        {"projection_dim": 32, "vocab_size": 64, **seen(projection_dim=32, vocab_size=64)}
    ),
    "aria": Recipe({"projector_patch_to_query_dict": {16: 4}}),
    "llama4": Recipe(seen(**LLAMA4_SEEN), tokens=4),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), ANY_RESOLUTION),
    "florence2": Recipe(
        {**text(**FLORENCE_WORDS), **seen(**FLORENCE_SEEN)}, side="right", finish=answered
    ),
    "kimi_k25": Recipe(pixels=pixels.unflattened, videos=pixels.unflattened_videos),
    "paddleocr_vl": Recipe(text(rope_parameters=SECTIONS), pixels.unflattened),
    "video_llama_3": Recipe(pixels=pixels.unmerged, videos=pixels.merged_videos),
    **dict.fromkeys(
        ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"),
        Recipe(
            {"patch_size": 4, "insert_layer_id": 1, **seen(image_size=32, insert_layer_id=1)},
            pixels.one_strip,
            size=32,
        ),
    ),
    **dict.fromkeys(("clip", "clipseg", "metaclip_2", "altclip", "chinese_clip"), contrastive()),
    **dict.fromkeys(("siglip", "siglip2"), contrastive(ending=(), finish=full_texts)),
    "ernie4_5_vl_moe": Recipe(text(rope_parameters={"mrope_section": [2, 2, 4]})),
}
