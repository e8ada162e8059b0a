"""One tiny random host of every family, and inputs for it.

    family = FAMILIES["llava"]
    host = family.make()
    host(**family.inputs())  # a batch of two, padded
    host(**family.inputs(rows=(1,)))  # the second alone, without padding

Two samples, each with its own image; the second text is shorter, so a batch of both is padded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import modeling_outputs

IMAGE_TOKEN = 60
VOCABULARY = 64

# Shared by every tower: a family's own sizes come after.
TINY = {"intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {
    **TINY,
    "hidden_size": 32,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
VISION = {**TINY, "hidden_size": 24, "image_size": 16, "patch_size": 8}

# Texts around the image's place, the second shorter.
WORDS = ((5, 6, 7, 8), (9, 10))

IMAGE, TEXT_ONLY, BOTH = ("image",), ("text",), ("image", "text")

Expected = dict[str, tuple[int, tuple[str, ...]]]


def filled(host: nn.Module) -> nn.Module:
    """A host in eval mode, with weights large enough that everything acts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in host.parameters():
            if weight.ndim > 1:
                scale = weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            elif weight.numel() == 1:
                weight.fill_(0.5)  # gates begin at zero
    return host.eval()


def stack(name: str, width: int, streams: tuple[str, ...], layers: int = 3) -> Expected:
    """Width and streams of ``name.0``, ``name.1``, ..."""
    return {f"{name}.{i}": (width, streams) for i in range(layers)}


@dataclass(frozen=True)
class Family:
    """A tiny host and its inputs.

    Attributes:
        build: Makes the host, with the weights its library gives it.
        encode: Images [n, 3, size, size] and texts (ids with the image's place) to the host's
            inputs; texts may be of different length.
        sites: Width and streams of every site, in the adapter's order.
        dead: Sites that the host never reads.
        output: Fields of the host's output that hold all it says.
        side: Where texts are padded.
        size: Of the images.
        tokens: Places an image takes in a text.
        generates: Whether the host has ``generate``.
        image_token: Id of an image's place; None where the host has no mixed sequence.
    """

    build: Callable[[], nn.Module]
    encode: Callable[[Family, Tensor, list[list[int]]], dict[str, Any]]
    sites: Expected
    dead: tuple[str, ...] = ()
    output: tuple[str, ...] = ("logits",)
    side: str = "left"
    size: int = 16
    tokens: int = 4
    generates: bool = True
    image_token: int | None = IMAGE_TOKEN

    def make(self) -> nn.Module:
        """The host in eval mode, with weights large enough that every edit shows."""
        torch.manual_seed(0)
        return filled(self.build())

    def inputs(self, rows: Sequence[int] = (0, 1), padded: bool = True) -> dict[str, Any]:
        """A batch of the samples ``rows``; not ``padded``, all texts are as long as the first."""
        images = []
        for row in rows:
            generator = torch.Generator().manual_seed(row)
            images.append(torch.randn(3, self.size, self.size, generator=generator))
        texts = [self.text(row, padded) for row in rows]
        return self.encode(self, torch.stack(images), texts)

    def text(self, row: int, padded: bool = True) -> list[int]:
        """A sample's ids."""
        words = list(WORDS[row % 2])
        if not padded:
            words += [11] * (len(WORDS[0]) - len(words))
        return [1, words[0], *[IMAGE_TOKEN] * self.tokens, *words[1:]]

    def batched(self, texts: list[list[int]]) -> dict[str, Tensor]:
        """Ids and attention mask, padded on the family's side."""
        longest = max(map(len, texts))
        padding = [[0] * (longest - len(text)) for text in texts]
        pairs = zip(texts, padding, strict=True)
        left = self.side == "left"
        ids = torch.tensor([pad + text if left else text + pad for text, pad in pairs])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def answers(self, host: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        """What the host says of each sample, padding left out, without a graph."""
        with torch.no_grad():
            output = host(**inputs)
        said = torch.cat([output[name] for name in self.output], -1)
        real = inputs.get("attention_mask")
        if real is None or said.shape[:2] != real.shape:
            return list(said)
        return [row[keep.bool()] for row, keep in zip(said, real, strict=True)]


def library(name: str) -> Any:
    """A class of transformers by name, imported only when its host is made."""
    return getattr(importlib.import_module("transformers"), name)


def plain(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    return {**family.batched(texts), "pixel_values": images}


def only_images(_: Family, images: Tensor, __: list[list[int]]) -> dict[str, Any]:
    return {"pixel_values": images}


# Contrastive hosts.

CONTRASTIVE_TEXT = {
    **TINY,
    "hidden_size": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 24,
    "bos_token_id": 1,
    "eos_token_id": 63,
    "pad_token_id": 0,
    "projection_size": 24,
    "projection_dim": 12,
}
CONTRASTIVE_VISION = {**VISION, "projection_dim": 12}
SIGLIP2_VISION = {**TINY, "hidden_size": 24, "patch_size": 4, "num_patches": 16}


def contrastive(name: str, vision: dict[str, Any] | None = None, **text: Any) -> nn.Module:
    config = library(f"{name}Config")(
        text_config=CONTRASTIVE_TEXT | text,
        vision_config=vision or CONTRASTIVE_VISION,
        projection_dim=12,
    )
    return library(f"{name}Model")(config)


def tower(name: str, sizes: dict[str, Any]) -> nn.Module:
    known = library(f"{name.removesuffix('WithProjection').removesuffix('Model')}Config")
    return library(name)(known(**sizes))


def ended(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    """Texts without an image's place, closed by the token that CLIP pools at."""
    closed = [[i for i in text if i != IMAGE_TOKEN] + [63] for text in texts]
    return plain(family, images, closed)


def ended_texts(family: Family, _: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    return family.batched([[i for i in text if i != IMAGE_TOKEN] + [63] for text in texts])


def full_texts(_: Family, __: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    """Texts padded to one length, of which SigLIP reads the last token whatever it is."""
    words = [[i for i in text if i != IMAGE_TOKEN] for text in texts]
    return {"input_ids": torch.tensor([text + [0] * (6 - len(text)) for text in words])}


def siglip(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    return {**full_texts(family, images, texts), "pixel_values": images}


def siglip2_images(_: Family, images: Tensor, __: list[list[int]]) -> dict[str, Any]:
    """Patches of 4 x 4, flattened; every image fills its 16 places."""
    n = len(images)
    patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(n, 16, 48)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(n, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * n),
    }


def siglip2(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    return {**full_texts(family, images, texts), **siglip2_images(family, images, texts)}


# Generative hosts.


def tied(config: str, model: str, **parts: Any) -> nn.Module:
    """A host whose config takes ``image_token_id`` and a text config's ids."""
    made = library(config)(image_token_id=IMAGE_TOKEN, **parts)
    return library(model)(made)


def llava(model: str = "LlavaForConditionalGeneration") -> nn.Module:
    return tied(
        "LlavaConfig",
        model,
        vision_config=library("CLIPVisionConfig")(**VISION),
        text_config=library("LlamaConfig")(**TEXT),
        vision_feature_layer=-2,
        image_seq_length=4,
    )


def llava_next() -> nn.Module:
    return tied(
        "LlavaNextConfig",
        "LlavaNextForConditionalGeneration",
        vision_config=library("CLIPVisionConfig")(**VISION),
        text_config=library("LlamaConfig")(**TEXT),
        vision_feature_layer=-2,
        image_grid_pinpoints=[[16, 16], [32, 16]],
        image_seq_length=4,
    )


def llava_onevision() -> nn.Module:
    return tied(
        "LlavaOnevisionConfig",
        "LlavaOnevisionForConditionalGeneration",
        vision_config=library("SiglipVisionConfig")(**VISION, vision_use_head=False),
        text_config=library("Qwen2Config")(**TEXT),
        vision_feature_layer=-1,
        image_grid_pinpoints=[[16, 16], [32, 16]],
        video_token_id=61,
        image_token_index=IMAGE_TOKEN,
        video_token_index=61,
    )


def tiles(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    """Every image once as a whole and once as its only tile."""
    return {
        **family.batched(texts),
        "pixel_values": torch.stack([images, images.flip(-1)], 1),
        "image_sizes": torch.tensor([[16, 16]] * len(images)),
    }


ROPE = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
QWEN_IDS = {"image_token_id": IMAGE_TOKEN, "video_token_id": 61, "vision_start_token_id": 58}


def qwen(name: str, model: str, vision: dict[str, Any]) -> nn.Module:
    text = {**TEXT, "head_dim": 16, "rope_scaling": ROPE, "rope_parameters": ROPE}
    shared = {"patch_size": 4, "temporal_patch_size": 1, "spatial_merge_size": 2}
    config = library(f"{name}Config")(
        text_config=text,
        vision_config={**shared, **vision},
        vision_end_token_id=59,
        **QWEN_IDS,
    )
    return library(model)(config)


QWEN2_VISION = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 1, "hidden_size": 32}
QWEN25_VISION = {
    **{"depth": 3, "hidden_size": 40, "num_heads": 2, "intermediate_size": 32},
    **{"out_hidden_size": 32, "window_size": 8, "fullatt_block_indexes": [1]},
}
QWEN3_VISION = {
    **{"depth": 3, "hidden_size": 24, "num_heads": 2, "intermediate_size": 32},
    **{"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
}


def packed(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    """Patches of 4 x 4 of all images in one sequence, blocks of 2 x 2 patches together."""
    n = len(images)
    # rows: block y, y in block, pixel; columns alike
    cut = images.reshape(n, 3, 2, 2, 4, 2, 2, 4).permute(0, 2, 5, 3, 6, 1, 4, 7)
    ids = [[t[0], 58, *t[2:]] for t in texts]
    inputs = family.batched(ids)
    return {
        **inputs,
        "pixel_values": cut.reshape(n * 16, 48),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * n),
        "mm_token_type_ids": (inputs["input_ids"] == IMAGE_TOKEN).long(),
    }


def qwen3_vl_moe() -> nn.Module:
    text = {**TEXT, "head_dim": 16, "rope_scaling": ROPE, "rope_parameters": ROPE}
    experts = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    shared = {"patch_size": 4, "temporal_patch_size": 1, "spatial_merge_size": 2}
    config = library("Qwen3VLMoeConfig")(
        text_config={**text, **experts},
        vision_config={**shared, **QWEN3_VISION},
        vision_end_token_id=59,
        **QWEN_IDS,
    )
    return library("Qwen3VLMoeForConditionalGeneration")(config)


def llama4() -> nn.Module:
    # transformers 5.24 asks its language model's output for this, and raises without it.
    output = modeling_outputs.MoeCausalLMOutputWithPast
    if not hasattr(output, "image_outputs"):
        output.image_outputs = None
    experts = {"num_local_experts": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 32}
    chunks = {"attention_chunk_size": 64, "attn_temperature_tuning": False, "head_dim": 16}
    sizes = {
        **{"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"intermediate_size": 96, "vision_output_dim": 48, "image_size": 16, "patch_size": 4},
        **{"projector_input_dim": 48, "projector_output_dim": 48},
    }
    config = library("Llama4Config")(
        text_config=library("Llama4TextConfig")(**{**TEXT, **experts, **chunks}),
        vision_config=library("Llama4VisionConfig")(**sizes, pixel_shuffle_ratio=0.5),
        image_token_index=IMAGE_TOKEN,
        boi_token_index=58,
        eoi_token_index=59,
    )
    return library("Llama4ForConditionalGeneration")(config)


def paligemma() -> nn.Module:
    return tied(
        "PaliGemmaConfig",
        "PaliGemmaForConditionalGeneration",
        vision_config=library("SiglipVisionConfig")(**VISION, vision_use_head=False),
        text_config=library("GemmaConfig")(**TEXT, head_dim=16),
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )


def gemma3() -> nn.Module:
    text = {**TEXT, "head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16}
    return tied(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        vision_config=library("SiglipVisionConfig")(**VISION, vision_use_head=False),
        text_config=library("Gemma3TextConfig")(**text),
        image_token_index=IMAGE_TOKEN,
        mm_tokens_per_image=4,
        boi_token_index=58,
        eoi_token_index=59,
    )


def typed(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    inputs = plain(family, images, texts)
    return {**inputs, "token_type_ids": (inputs["input_ids"] == IMAGE_TOKEN).long()}


def internvl() -> nn.Module:
    vision = {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}
    return tied(
        "InternVLConfig",
        "InternVLForConditionalGeneration",
        vision_config=library("InternVLVisionConfig")(**vision),
        text_config=library("Qwen2Config")(**TEXT),
        image_seq_length=4,
        downsample_ratio=0.5,
    )


def idefics3(name: str = "Idefics3") -> nn.Module:
    return tied(
        f"{name}Config",
        f"{name}ForConditionalGeneration",
        vision_config=library(f"{name}VisionConfig")(**VISION),
        text_config=library("LlamaConfig")(**TEXT),
        scale_factor=1,
        pad_token_id=0,
    )


def nested(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    """An axis for the images of one text."""
    return {**family.batched(texts), "pixel_values": images[:, None]}


def mllama() -> nn.Module:
    text = {**TEXT, "cross_attention_layers": [1], "vocab_size": VOCABULARY}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    sizes = {
        **{"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3},
        **{"attention_heads": 2, "num_global_layers": 2, "image_size": 16, "patch_size": 8},
        **{"max_num_tiles": 1, "intermediate_layers_indices": [0, 1], "vision_output_dim": 72},
        "supported_aspect_ratios": [[1, 1]],
    }
    config = library("MllamaConfig")(
        vision_config=sizes,
        text_config={**text, "rope_scaling": rope, "rope_parameters": rope},
        image_token_index=IMAGE_TOKEN,
    )
    return library("MllamaForConditionalGeneration")(config)


def crossed(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    """One tile for each image; the image's token stands in the text, its features do not."""
    inputs = family.batched(texts)
    n, length = inputs["input_ids"].shape
    return {
        **inputs,
        "pixel_values": images[:, None, None],
        "aspect_ratio_ids": torch.ones(n, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(n, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(n, length, 1, 1, dtype=torch.long),
    }


OPT = {
    **{"model_type": "opt", "hidden_size": 32, "ffn_dim": 32, "word_embed_proj_dim": 32},
    **{"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 64},
    **{"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0},
}
T5 = {
    **{"model_type": "t5", "d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 3, "num_heads": 2},
    **{"vocab_size": VOCABULARY, "eos_token_id": 2, "pad_token_id": 0},
    "decoder_start_token_id": 0,
}


def blip2(text: dict[str, Any] = OPT) -> nn.Module:
    former = {**TINY, "hidden_size": 16, "encoder_hidden_size": 24, "vocab_size": VOCABULARY}
    config = library("Blip2Config")(
        vision_config={**VISION},
        qformer_config={**former, "cross_attention_frequency": 2},
        text_config={**text},
        num_query_tokens=4,
        image_token_index=IMAGE_TOKEN,
        image_token_id=IMAGE_TOKEN,
    )
    return library("Blip2ForConditionalGeneration")(config)


def florence2() -> nn.Module:
    text = {
        **{"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 3, "decoder_layers": 3},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32},
        **{"decoder_ffn_dim": 32, "max_position_embeddings": 64, "pad_token_id": 0},
        **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
        **{"forced_eos_token_id": None, "forced_bos_token_id": None},
    }
    vision = {
        **{"depths": [1, 2], "embed_dim": [16, 24], "num_heads": [2, 2], "num_groups": [2, 2]},
        **{"patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1]},
        **{"patch_prenorm": [False, True], "window_size": 2, "projection_dim": 32},
        **{"max_position_embeddings": 8, "max_temporal_embeddings": 4},
    }
    config = library("Florence2Config")(
        text_config={"model_type": "bart", **text},
        vision_config=vision,
        image_token_id=IMAGE_TOKEN,
        is_encoder_decoder=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    return library("Florence2ForConditionalGeneration")(config)


def two_texts(family: Family, images: Tensor, texts: list[list[int]]) -> dict[str, Any]:
    inputs = plain(family, images, texts)
    n = len(images)
    return {**inputs, "decoder_input_ids": torch.tensor([[2, 5, 6]]).expand(n, 3)}


def clip_like(
    build: Callable[[], nn.Module],
    encode: Callable[[Family, Tensor, list[list[int]]], dict[str, Any]],
    sites: Expected,
    *output: str,
) -> Family:
    fields = output or ("image_embeds", "text_embeds")
    return Family(build, encode, sites, (), fields, side="right", generates=False, image_token=None)


def towers(vision: int = 24, text: int = 16, joint: int = 12) -> Expected:
    return {
        "joint": (joint, BOTH),
        **stack("vision", vision, IMAGE),
        **stack("text", text, TEXT_ONLY),
    }


def speaking(vision: int = 24) -> Expected:
    return {
        **stack("vision", vision, IMAGE),
        "projector": (32, IMAGE),
        **stack("language", 32, BOTH),
    }


PROMPT_T5 = {
    **{"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2},
    **{"vocab_size": VOCABULARY, "pad_token_id": 0},
}
PROJECTED_IMAGE = {"joint": (12, IMAGE)} | stack("vision", 24, IMAGE)
PROJECTED_TEXT = {"joint": (12, TEXT_ONLY)} | stack("text", 16, TEXT_ONLY)
IMAGE_LAYERS, TEXT_LAYERS = stack("vision", 24, IMAGE), stack("text", 16, TEXT_ONLY)
POOLED_IMAGE = {"joint": (24, IMAGE)} | IMAGE_LAYERS
POOLED_TEXT = {"joint": (24, TEXT_ONLY)} | TEXT_LAYERS

FAMILIES: dict[str, Family] = {
    "clip": clip_like(lambda: contrastive("CLIP"), ended, towers()),
    "siglip": clip_like(lambda: contrastive("Siglip"), siglip, towers(joint=24)),
    "siglip2": clip_like(lambda: contrastive("Siglip2", SIGLIP2_VISION), siglip2, towers(joint=24)),
    "altclip": clip_like(lambda: contrastive("AltCLIP", project_dim=14), ended, towers()),
    "chinese_clip": clip_like(lambda: contrastive("ChineseCLIP"), ended, towers()),
    "llava": Family(llava, plain, speaking(), ("vision.2",)),
    "llava_next": Family(llava_next, tiles, speaking(), ("vision.2",), tokens=10),
    "llava_onevision": Family(llava_onevision, tiles, speaking(), tokens=10),
    "qwen2_vl": Family(
        lambda: qwen("Qwen2VL", "Qwen2VLForConditionalGeneration", QWEN2_VISION),
        packed,
        speaking(32),
    ),
    "qwen2_5_vl": Family(
        lambda: qwen("Qwen2_5_VL", "Qwen2_5_VLForConditionalGeneration", QWEN25_VISION),
        packed,
        speaking(40),
    ),
    "qwen3_vl": Family(
        lambda: qwen("Qwen3VL", "Qwen3VLForConditionalGeneration", QWEN3_VISION),
        packed,
        {
            **stack("vision", 24, IMAGE),
            **stack("deepstack", 32, IMAGE, 2),
            "projector": (32, IMAGE),
            **stack("language", 32, BOTH),
        },
    ),
    "paligemma": Family(paligemma, typed, speaking()),
    "gemma3": Family(gemma3, typed, speaking()),
    "internvl": Family(internvl, plain, speaking(), size=32),
    "idefics3": Family(idefics3, nested, speaking()),
    "smolvlm": Family(lambda: idefics3("SmolVLM"), nested, speaking()),
    "mllama": Family(
        mllama,
        crossed,
        {
            **stack("vision", 24, IMAGE),
            **stack("global", 24, IMAGE, 2),
            "projector": (32, IMAGE),
            **stack("language", 32, TEXT_ONLY),
        },
        tokens=1,
        image_token=None,
    ),
    "blip2": Family(
        blip2,
        plain,
        {
            **stack("vision", 24, IMAGE),
            **stack("qformer", 16, IMAGE),
            "projector": (32, IMAGE),
            **stack("language", 32, BOTH),
        },
    ),
    "blip2_t5": Family(
        lambda: blip2(T5),
        two_texts,
        {
            **stack("vision", 24, IMAGE),
            **stack("qformer", 16, IMAGE),
            "projector": (32, IMAGE),
            **stack("encoder", 32, BOTH),
            **stack("decoder", 32, TEXT_ONLY),
        },
    ),
    "florence2": Family(
        florence2,
        two_texts,
        {
            **{"vision.0.0": (16, IMAGE), "vision.1.0": (24, IMAGE), "vision.1.1": (24, IMAGE)},
            "projector": (32, IMAGE),
            **stack("encoder", 32, BOTH),
            **stack("decoder", 32, TEXT_ONLY),
        },
        side="right",
        tokens=17,
    ),
    # Without the language model's head.
    "llava_headless": Family(
        lambda: llava("LlavaModel"),
        plain,
        speaking(),
        ("vision.2",),
        ("last_hidden_state",),
        generates=False,
    ),
    "qwen2_5_vl_headless": Family(
        lambda: qwen("Qwen2_5_VL", "Qwen2_5_VLModel", QWEN25_VISION),
        packed,
        speaking(40),
        (),
        ("last_hidden_state",),
        generates=False,
    ),
    # Towers on their own.
    "clip_vision_model": clip_like(
        lambda: tower("CLIPVisionModel", CONTRASTIVE_VISION),
        only_images,
        IMAGE_LAYERS,
        "last_hidden_state",
    ),
    "clip_vision_projected": clip_like(
        lambda: tower("CLIPVisionModelWithProjection", CONTRASTIVE_VISION),
        only_images,
        PROJECTED_IMAGE,
        "image_embeds",
    ),
    "clip_text_model": clip_like(
        lambda: tower("CLIPTextModel", CONTRASTIVE_TEXT),
        ended_texts,
        TEXT_LAYERS,
        "last_hidden_state",
    ),
    "clip_text_projected": clip_like(
        lambda: tower("CLIPTextModelWithProjection", CONTRASTIVE_TEXT),
        ended_texts,
        PROJECTED_TEXT,
        "text_embeds",
    ),
    "siglip_vision_model": clip_like(
        lambda: tower("SiglipVisionModel", VISION), only_images, POOLED_IMAGE, "pooler_output"
    ),
    "siglip_text_model": clip_like(
        lambda: tower("SiglipTextModel", CONTRASTIVE_TEXT),
        full_texts,
        POOLED_TEXT,
        "pooler_output",
    ),
    "siglip2_vision_model": clip_like(
        lambda: tower("Siglip2VisionModel", SIGLIP2_VISION),
        siglip2_images,
        POOLED_IMAGE,
        "pooler_output",
    ),
    "siglip2_text_model": clip_like(
        lambda: tower("Siglip2TextModel", CONTRASTIVE_TEXT),
        full_texts,
        POOLED_TEXT,
        "pooler_output",
    ),
    "altclip_vision_model": clip_like(
        lambda: tower("AltCLIPVisionModel", VISION), only_images, IMAGE_LAYERS, "last_hidden_state"
    ),
    "altclip_text_model": clip_like(
        lambda: tower("AltCLIPTextModel", {**CONTRASTIVE_TEXT, "project_dim": 14}),
        ended_texts,
        TEXT_LAYERS,
        "last_hidden_state",
    ),
    "chinese_clip_vision_model": clip_like(
        lambda: tower("ChineseCLIPVisionModel", VISION),
        only_images,
        IMAGE_LAYERS,
        "last_hidden_state",
    ),
    "chinese_clip_text_model": clip_like(
        lambda: tower("ChineseCLIPTextModel", CONTRASTIVE_TEXT),
        ended_texts,
        TEXT_LAYERS,
        "last_hidden_state",
    ),
    "t5": clip_like(
        lambda: library("T5EncoderModel")(library("T5Config")(**PROMPT_T5)),
        ended_texts,
        stack("encoder", 16, TEXT_ONLY),
        "last_hidden_state",
    ),
    "umt5": clip_like(
        lambda: library("UMT5EncoderModel")(library("UMT5Config")(**PROMPT_T5)),
        ended_texts,
        stack("encoder", 16, TEXT_ONLY),
        "last_hidden_state",
    ),
}

# Hosts of no shipped adapter, whose blocks of experts lay the tokens of all rows end to end.
WITH_EXPERTS: dict[str, Family] = {
    "llama4": Family(llama4, plain, {}),
    "qwen3_vl_moe": Family(qwen3_vl_moe, packed, {}),
}
