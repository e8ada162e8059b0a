"""Every vision-language type that transformers knows builds tiny, and does what a host must."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from any_hosts import SECOND, TYPES, NotBuilt, build
from any_hosts.checks import lacking

WANT_TIMM = ("fast_vlm", "gemma3n", "perception_lm")  # which the second environment has
TIMM = "TimmWrapperModel requires the timm library but it was not found in your environment"

# What cannot be built here, and the host's own words on it.
NOT_BUILT: dict[str, str] = {
    **({} if find_spec("timm") else dict.fromkeys(WANT_TIMM, TIMM)),
    "evolla": "EvollaForProteinText2Text takes no images",
    "mistral4": "Mistral4ForCausalLM takes no images",
}

# Properties that a host itself lacks, and why.
LACKS: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        ("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga", "nemotron_h_omni"),
        {"both": "frames of a video take the image's placeholders, which are counted as images'"},
    ),
    **dict.fromkeys(("blip-2", "idefics", "kosmos-2"), {"text": "its forward demands an image"}),
    "pi0": {"text": "without images it awaits the cache of an earlier pass"},
    "molmo2": {"both": "it refuses images and videos in one batch"},
    "hunyuan_vl": {"alone": "it numbers the images through all rows of a batch"},
    "udop": {"alone": "the image's patches follow the padding, farther from the words"},
    "diffusion_gemma": {
        "alone": "its canvas sees padding unless it has a mask, which generate makes itself"
    },
}


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - set(NOT_BUILT)))
def test_a_tiny_host_does_what_a_host_must(model_type: str) -> None:
    found = lacking(build(model_type))
    assert set(found) == set(LACKS.get(model_type, {})), found


@pytest.mark.parametrize("model_type", SECOND)
def test_so_does_its_class_that_matches_images_and_texts(model_type: str) -> None:
    host = build(model_type, SECOND[model_type])
    assert type(host.model).__name__ == SECOND[model_type]
    assert lacking(host) == {}


@pytest.mark.parametrize("model_type", NOT_BUILT)
def test_what_cannot_be_built_says_why(model_type: str) -> None:
    with pytest.raises(NotBuilt) as refused:
        build(model_type)
    assert str(refused.value) == NOT_BUILT[model_type]
