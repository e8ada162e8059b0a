"""Members of families with other parts than the family is declared with: told by conventions."""

import pytest
import torch
from any_hosts import SECOND, build
from tiny_hosts import (
    CONTRASTIVE_TEXT,
    CONTRASTIVE_VISION,
    FAMILIES,
    IMAGE_TOKEN,
    TEXT,
    TINY,
    VISION,
    library,
)

from vlm_edit import Host, VlmEditError
from vlm_edit.host import find_adapter, registered_adapter
from vlm_edit.testing import check_adapter

IDS = torch.tensor([[1, 5, *[IMAGE_TOKEN] * 4, 6, 7]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def llava_with(vision, **options):
    config = library("LlavaConfig")(
        vision_config=vision,
        text_config=library("LlamaConfig")(**TEXT),
        image_token_index=IMAGE_TOKEN,
        **options,
    )
    return library("LlavaForConditionalGeneration")(config)


def with_pixtral():
    vision = library("PixtralVisionConfig")(**{**VISION, "patch_size": 4})
    ids = torch.tensor([[1, 5, *[IMAGE_TOKEN] * 16, 6, 7]])
    sizes = torch.tensor([[16, 16]])
    options = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    inputs = {"input_ids": ids, "pixel_values": PIXELS, "image_sizes": sizes}
    return llava_with(vision, **options), inputs


def with_dinov2():
    sizes = {"hidden_size": 24, "image_size": 16, "patch_size": 8}
    host = llava_with(library("Dinov2Config")(**TINY, **sizes), vision_feature_layer=-2)
    return host, {"input_ids": IDS, "pixel_values": PIXELS}


def classifier(name):
    config = library(f"{name}Config")(
        text_config=CONTRASTIVE_TEXT, vision_config=CONTRASTIVE_VISION, projection_dim=12
    )
    return library(f"{name}ForImageClassification")(config), {"pixel_values": PIXELS}


def tower_of(name):
    family = FAMILIES[name]
    inputs = family.inputs()
    patches = {"hidden_states": inputs["pixel_values"], "grid_thw": inputs["image_grid_thw"]}
    return family.make().model.visual, patches


def matching(model_type):
    host = build(model_type, SECOND[model_type])
    return host.model, host.inputs([[5, 6, "I"], [7, "I"]])


MEMBERS = {
    "LLaVA with Pixtral's tower": (with_pixtral, {"vision", "projector", "language"}),
    "LLaVA with DINOv2's tower": (with_dinov2, {"vision", "projector", "language"}),
    "CLIPForImageClassification": (lambda: classifier("CLIP"), {"vision"}),
    "SiglipForImageClassification": (lambda: classifier("Siglip"), {"vision"}),
    "Qwen2.5-VL's tower": (lambda: tower_of("qwen2_5_vl"), {"vision"}),
    "Qwen3-VL's tower": (lambda: tower_of("qwen3_vl"), {"vision"}),
    "BlipModel": (lambda: matching("blip"), {"joint", "vision", "text"}),
    "Blip2ForImageTextRetrieval": (lambda: matching("blip-2"), {"joint", "vision", "qformer"}),
    "LlamaForCausalLM": (
        lambda: (library("LlamaForCausalLM")(library("LlamaConfig")(**TEXT)), {"input_ids": IDS}),
        {"language"},
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_has_its_places_and_every_edit_acts(name):
    make, kinds = MEMBERS[name]
    torch.manual_seed(0)
    model, inputs = make()
    host = Host.of(model.eval())
    assert {site.split(".")[0] for site in host.sites} == kinds
    check_adapter(host, inputs)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "vocab_size": 32, "max_position_embeddings": 32}


def bert(**more):
    return library("BertConfig")(**SIZES, **more)


def reader_and_writer():
    config = library("EncoderDecoderConfig").from_encoder_decoder_configs(bert(), bert())
    config.decoder_start_token_id = config.pad_token_id = 0
    return library("EncoderDecoderModel")(config)


def whisper():
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "vocab_size": 64}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 8}
    sizes |= {"max_source_positions": 10, "max_target_positions": 16, "pad_token_id": 0}
    return library("WhisperForConditionalGeneration")(library("WhisperConfig")(**sizes))


def convnext():
    sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}
    return library("ConvNextModel")(library("ConvNextConfig")(**sizes))


OTHERS = {
    "BERT to BERT": (reader_and_writer, {"encoder": ("text",), "decoder": ("text",)}),
    # Sounds pass its encoder, which is no site.
    "Whisper": (whisper, {"decoder": ("text",)}),
    "BertModel": (lambda: library("BertModel")(bert()), {"language": ("text",)}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_passes_a_host_of_another_kind_is_called_what_it_is(name):
    make, kinds = OTHERS[name]
    sites = Host.of(make().eval()).sites
    found = {site.split(".")[0]: sites[site].streams for site in sites}
    assert found == kinds


def owl():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    config = library("OwlViTConfig")(
        text_config={**sizes, "vocab_size": 32, "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    return library("OwlViTForObjectDetection")(config)


def test_a_host_of_which_no_convention_tells_is_refused():
    with pytest.raises(VlmEditError, match=r"no adapter for ConvNextModel"):
        _ = Host.of(convnext().eval()).sites


def test_a_detector_has_the_layers_of_its_image_tower_alone():
    assert {site.split(".")[0] for site in Host.of(owl().eval()).sites} == {"vision"}


def test_what_a_host_tells_of_itself_is_read_once_and_anew_when_its_parts_are_others(monkeypatch):
    model = library("BertModel")(bert()).eval()
    first = find_adapter(model)
    with monkeypatch.context() as patch:
        patch.setattr("vlm_edit.host.adapters.read_conventions", lambda _: 1 / 0)
        assert find_adapter(model) is first
    model.stack = torch.nn.Module()
    model.stack.layer, model.encoder.layer = model.encoder.layer, torch.nn.Identity()
    del model.encoder
    assert find_adapter(model) != first


def test_a_member_that_fits_goes_by_what_is_declared():
    model = FAMILIES["llava"].make()
    assert find_adapter(model) is registered_adapter(model)
    other, _ = with_dinov2()
    assert find_adapter(other) != registered_adapter(other)
    assert Host.of(other).sites["vision.2"].dead, "the config says which layer goes on"
