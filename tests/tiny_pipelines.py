"""One tiny random pipeline of diffusers of every kind, and a call of it.

    kind = PIPELINES["sdxl"]
    pipeline = kind.make()
    kind.draw(pipeline, prompt="a cat", negative_prompt="a dog")  # always the same

Tokenizers know a few words; nothing is loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from PIL import Image
from torch import Tensor

WORDS = ("a", "cat", "dog", "red", "blue", "of", "on", "fast")
LENGTH = 12  # tokens of a prompt, padded
WIDTH, JOINT = 32, 16
LAYERS = 3


def clip_tokenizer() -> Any:
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    vocabulary |= {f"{word}</w>": i for i, word in enumerate(WORDS, 2)}
    letters = sorted({c for word in WORDS for c in word})
    for letter in letters:
        for end in ("", "</w>"):
            vocabulary.setdefault(letter + end, len(vocabulary))
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[-2], parts[-1]))
            parts[-2:] = [parts[-2] + parts[-1]]
            vocabulary.setdefault(parts[-1], len(vocabulary))
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=LENGTH
    )


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS)]
    return transformers.T5Tokenizer(
        vocab=[(piece, -1.0 if i > 2 else 0.0) for i, piece in enumerate(pieces)], extra_ids=0
    )


def text_encoder(projected: bool = False, layers: int = LAYERS, **more: Any) -> Any:
    config = transformers.CLIPTextConfig(
        **{"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 48},
        **{"num_hidden_layers": layers, "num_attention_heads": 2},
        **{"max_position_embeddings": LENGTH, "projection_dim": WIDTH},
        **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **more},
    )
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return strong(getattr(transformers, kind)(config))


def t5_encoder(width: int = WIDTH) -> Any:
    config = transformers.T5Config(
        **{"vocab_size": 64, "d_model": width, "d_kv": 8, "d_ff": 48},
        **{"num_layers": LAYERS, "num_heads": 2},
    )
    return strong(transformers.T5EncoderModel(config))


def image_encoder(joint: int = WIDTH) -> Any:
    config = transformers.CLIPVisionConfig(
        **{"hidden_size": 24, "intermediate_size": 32, "projection_dim": joint},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 2},
        **{"image_size": 16, "patch_size": 8},
    )
    return strong(transformers.CLIPVisionModelWithProjection(config))


def image_processor() -> Any:
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )


def siglip_encoder() -> Any:
    config = transformers.SiglipVisionConfig(
        **{"hidden_size": 24, "intermediate_size": 32, "image_size": 16, "patch_size": 8},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 2},
    )
    return strong(transformers.SiglipVisionModel(config))


def strong(model: Any) -> Any:
    """Weights large enough that every edit shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                scale = weight[0].numel() ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.eval()


def vae(latent: int = 4) -> Any:
    return diffusers.AutoencoderKL(
        **{"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": latent},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **{"shift_factor": 0.06, "scaling_factor": 1.5},
    ).eval()


def unet(cross: int = WIDTH, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **{"block_out_channels": (4, 8), "layers_per_block": 1, "sample_size": 8},
        **{"in_channels": 4, "out_channels": 4, "norm_num_groups": 2},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=2,
        **more,
    ).eval()


def scheduler(**more: Any) -> Any:
    return diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, **more
    )


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def stable_diffusion(**more: Any) -> Any:
    parts = {
        **{"vae": vae(), "text_encoder": text_encoder(), "tokenizer": clip_tokenizer()},
        **{"unet": unet(), "scheduler": scheduler()},
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    }
    return diffusers.StableDiffusionPipeline(**{**parts, **more})


def stable_diffusion_2() -> Any:
    """OpenCLIP's text encoder, without its last layer, and a denoiser that predicts velocities."""
    return stable_diffusion(
        text_encoder=text_encoder(hidden_act="gelu", layers=LAYERS - 1),
        unet=unet(use_linear_projection=True),
        scheduler=scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def ip_adapter() -> Any:
    pipeline = diffusers.StableDiffusionPipeline(
        **{**stable_diffusion().components, "image_encoder": image_encoder()},
        requires_safety_checker=False,
    )
    pipeline.feature_extractor = image_processor()
    pipeline.unet._load_ip_adapter_weights([ip_weights(pipeline.unet)])
    return pipeline


def ip_weights(model: Any, tokens: int = 4) -> dict[str, dict[str, Tensor]]:
    """Random weights of an IP-Adapter, as its files have them."""
    width = model.config.cross_attention_dim
    layers = {}
    crossing = [name for name in model.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(crossing):
        inner = model.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for key in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{key}.weight"] = torch.randn(inner, width)
    return {
        "image_proj": {
            "proj.weight": torch.randn(tokens * width, WIDTH),
            "proj.bias": torch.zeros(tokens * width),
            "norm.weight": torch.ones(width),
            "norm.bias": torch.zeros(width),
        },
        "ip_adapter": layers,
    }


def sdxl(kind: str = "StableDiffusionXLPipeline", **more: Any) -> Any:
    model = unet(
        2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=model,
        scheduler=diffusers.EulerDiscreteScheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
        **more,
    )


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        **{"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4},
        **{"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 4},
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=flow(),
        vae=vae(),
        text_encoder=text_encoder(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=text_encoder(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        **{"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1},
        **{"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)},
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
    )
    return diffusers.FluxPipeline(
        scheduler=flow(),
        vae=vae(latent=1),
        text_encoder=text_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
    )


def stable_unclip_img2img() -> Any:
    return diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(),
        image_encoder=image_encoder(),
        image_normalizer=StableUnCLIPImageNormalizer(WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=text_encoder(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        scheduler=scheduler(),
        vae=vae(),
    )


def prior() -> Any:
    model = diffusers.PriorTransformer(
        **{"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1},
        embedding_dim=WIDTH,
        num_embeddings=LENGTH,
        additional_embeddings=4,
    )
    model.clip_std.data.fill_(1.0)  # zeros, which its output is multiplied by
    return model.eval()


def prior_scheduler() -> Any:
    return diffusers.UnCLIPScheduler(
        variance_type="fixed_small_log",
        prediction_type="sample",
        clip_sample=True,
        clip_sample_range=5.0,
        num_train_timesteps=1000,
    )


def kandinsky_prior(kind: str = "KandinskyV22PriorPipeline") -> Any:
    return getattr(diffusers, kind)(
        prior=prior(),
        image_encoder=image_encoder(),
        text_encoder=text_encoder(projected=True),
        tokenizer=clip_tokenizer(),
        scheduler=prior_scheduler(),
        image_processor=image_processor(),
    )


def stable_unclip() -> Any:
    return diffusers.StableUnCLIPPipeline(
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=text_encoder(projected=True),
        prior=prior(),
        prior_scheduler=prior_scheduler(),
        image_normalizer=StableUnCLIPImageNormalizer(WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=text_encoder(),
        unet=unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        scheduler=scheduler(),
        vae=vae(),
    )


def karlo() -> Any:
    # Where it lies depends on the version.
    text_proj = vars(inspect.getmodule(diffusers.UnCLIPPipeline))["UnCLIPTextProjModel"]
    time = 16
    decoder = diffusers.UNet2DConditionModel(
        **{"block_out_channels": (4, 8), "layers_per_block": 1, "sample_size": 16},
        **{"in_channels": 3, "out_channels": 6, "norm_num_groups": 2},
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    refine = {
        **{"block_out_channels": (4, 8), "layers_per_block": 1, "sample_size": 32},
        **{"in_channels": 6, "out_channels": 3, "norm_num_groups": 2},
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
    }
    steps = {"prediction_type": "epsilon", "num_train_timesteps": 1000}
    return diffusers.UnCLIPPipeline(
        prior=prior(),
        decoder=decoder.eval(),
        text_encoder=text_encoder(projected=True),
        tokenizer=clip_tokenizer(),
        text_proj=text_proj(
            clip_embeddings_dim=WIDTH, time_embed_dim=time, cross_attention_dim=WIDTH
        ),
        super_res_first=diffusers.UNet2DModel(**refine).eval(),
        super_res_last=diffusers.UNet2DModel(**refine).eval(),
        prior_scheduler=prior_scheduler(),
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range", **steps),
        super_res_scheduler=diffusers.UnCLIPScheduler(variance_type="fixed_small_log", **steps),
    )


@dataclass(frozen=True)
class Kind:
    """A tiny pipeline and how it is called.

    Attributes:
        build: Makes the pipeline.
        live: One site of each encoder whose edit must reach the image.
        call: Arguments of its call besides the prompts.
        output: The field of its output with what was drawn.
        negative: Whether its call takes a negative prompt.
    """

    build: Callable[[], Any]
    live: tuple[str, ...]
    call: Mapping[str, Any] = field(default_factory=dict)
    output: str = "images"
    negative: bool = True

    def make(self) -> Any:
        torch.manual_seed(0)
        pipeline = self.build()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def draw(self, pipeline: Any, prompt: Any = "a cat", **more: Any) -> Tensor:
        """What it draws, always from the same noise."""
        torch.manual_seed(0)
        drawn = pipeline(
            prompt=prompt, generator=torch.Generator().manual_seed(0), **{**self.call, **more}
        )
        return torch.as_tensor(drawn[self.output])


SMALL = {"num_inference_steps": 2, "output_type": "pt", "height": 16, "width": 16}


def picture(colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (16, 16), colour)
    image.paste("yellow", (4, 4, 9, 12))
    return image


PIPELINES: dict[str, Kind] = {
    "sd": Kind(stable_diffusion, ("text_encoder.text.2",), SMALL),
    "sd2": Kind(stable_diffusion_2, ("text_encoder.text.0", "text_encoder.text.1"), SMALL),
    "ip_adapter": Kind(
        ip_adapter,
        ("text_encoder.text.1", "image_encoder.vision.1", "image_encoder.joint"),
        {**SMALL, "ip_adapter_image": picture()},
    ),
    "sdxl": Kind(
        sdxl,
        ("text_encoder.text.1", "text_encoder_2.text.1", "text_encoder_2.text.2",
         "text_encoder_2.joint"),
        SMALL,
    ),
    "sd3": Kind(
        sd3,
        ("text_encoder.text.1", "text_encoder.joint", "text_encoder_2.text.1",
         "text_encoder_3.encoder.1"),
        {**SMALL, "max_sequence_length": LENGTH},
    ),
    "flux": Kind(
        flux,
        ("text_encoder.text.2", "text_encoder_2.encoder.2"),
        {**SMALL, "max_sequence_length": LENGTH, "true_cfg_scale": 4.0},
    ),
    "stable_unclip_img2img": Kind(
        stable_unclip_img2img,
        ("text_encoder.text.2", "image_encoder.vision.2", "image_encoder.joint"),
        {**SMALL, "image": picture()},
    ),
    "kandinsky_prior": Kind(
        kandinsky_prior,
        ("text_encoder.text.2", "text_encoder.joint"),
        {"num_inference_steps": 2, "output_type": "pt"},
        output="image_embeds",
    ),
    "kandinsky_2_1_prior": Kind(
        lambda: kandinsky_prior("KandinskyPriorPipeline"),
        ("text_encoder.text.2", "text_encoder.joint"),
        {"num_inference_steps": 2, "output_type": "pt"},
        output="image_embeds",
    ),
    "stable_unclip": Kind(
        stable_unclip,
        ("prior_text_encoder.text.2", "prior_text_encoder.joint", "text_encoder.text.2"),
        {**SMALL, "prior_num_inference_steps": 2},
    ),
    "karlo": Kind(
        karlo,
        ("text_encoder.text.2", "text_encoder.joint"),
        {
            "prior_num_inference_steps": 2,
            "decoder_num_inference_steps": 2,
            "super_res_num_inference_steps": 2,
            "output_type": "pt",
        },
        negative=False,
    ),
}  # fmt: skip
