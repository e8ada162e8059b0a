"""Every vision-language type that transformers knows builds tiny, and does what a host must."""

from __future__ import annotations

import pytest
from any_hosts import TYPES, NotBuilt, build
from any_hosts.checks import lacking

# Not tried yet.
LATER: set[str] = {
    "align",
    "apertus1p5",
    "blip",
    "blip-2",
    "chameleon",
    "cohere_compass",
    "deepseek_ocr2",
    "deepseek_vl_hybrid",
    "diffusion_gemma",
    "dots3_note",
    "emu3",
    "evolla",
    "fast_vlm",
    "fuyu",
    "gemma3n",
    "git",
    "granite4_vision",
    "granite_docling",
    "hunyuan_vl",
    "idefics",
    "inkling2",
    "inkling2_loop",
    "inkling_mm_model",
    "instructblip",
    "instructblipvideo",
    "janus",
    "kimi_k25",
    "kosmos-2",
    "kosmos-2.5",
    "llama4",
    "mistral4",
    "mllama",
    "molmo2",
    "nemotron_h_omni",
    "perception_lm",
    "phi4_multimodal",
    "pi0",
    "pix2struct",
    "pp_formulanet",
    "qwen4_exp",
    "step3p7",
    "t5gemma2",
    "tipsv2",
    "udop",
    "unlimited_ocr",
    "videoprism",
    "vision-encoder-decoder",
}

# What cannot be built here, and the host's own words on it.
NOT_BUILT: dict[str, str] = {}

# Properties that a host itself lacks, and why.
LACKS: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        ("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga"),
        {"both": "frames of a video take the image's placeholders, which are counted as images'"},
    ),
}


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - set(NOT_BUILT) - LATER))
def test_a_tiny_host_does_what_a_host_must(model_type: str) -> None:
    found = lacking(build(model_type))
    assert set(found) == set(LACKS.get(model_type, {})), found


@pytest.mark.parametrize("model_type", NOT_BUILT)
def test_what_cannot_be_built_says_why(model_type: str) -> None:
    with pytest.raises(NotBuilt) as refused:
        build(model_type)
    assert str(refused.value) == NOT_BUILT[model_type]
