"""Pipelines of diffusers: the encoders they are conditioned on, each by its own adapter.

A site is the pipeline's name for the encoder, then the encoder's own for the site. What encodes a
negative prompt is told apart, by the names that diffusers' methods and arguments have.
"""

from dataclasses import replace

from vlm_edit.host import PipelineAdapter, PipelineEncoder

METHODS = ("encode_prompt", "_encode_prompt", "_encode_prior_prompt")

adapter = PipelineAdapter(
    encoders=(
        PipelineEncoder("text_encoder", "tokenizer", ("prompt",)),
        PipelineEncoder("text_encoder_2", "tokenizer_2", ("prompt_2", "prompt")),
        PipelineEncoder("text_encoder_3", "tokenizer_3", ("prompt_3", "prompt")),
        PipelineEncoder("prior_text_encoder", "prior_tokenizer", ("prompt",)),
        PipelineEncoder("image_encoder"),
        PipelineEncoder("prior_image_encoder"),
    ),
    methods=METHODS,
)

# Both read `hidden_states[-2]`; of the second, SDXL also reads what is pooled behind its last.
sdxl = replace(
    adapter,
    encoders=(
        PipelineEncoder("text_encoder", "tokenizer", ("prompt",), read=-2),
        *adapter.encoders[1:],
    ),
)

# Of the images for an IP-Adapter it reads `hidden_states[-2]` and nothing else.
sd3 = replace(
    adapter,
    encoders=tuple(
        replace(encoder, read=-2, unread=("joint",)) if encoder.name == "image_encoder" else encoder
        for encoder in adapter.encoders
    ),
)

kandinsky_prior = replace(adapter, appended=True)

# By class; what is not named goes by the nearest that it inherits from.
pipelines = {
    "diffusers.DiffusionPipeline": adapter,
    "diffusers.StableDiffusionXLPipeline": sdxl,
    "diffusers.StableDiffusionXLImg2ImgPipeline": sdxl,
    "diffusers.StableDiffusionXLInpaintPipeline": sdxl,
    "diffusers.StableDiffusionXLInstructPix2PixPipeline": sdxl,
    "diffusers.StableDiffusionXLAdapterPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetImg2ImgPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetInpaintPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetUnionPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetUnionInpaintPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetXSPipeline": sdxl,
    "diffusers.StableDiffusionXLPAGPipeline": sdxl,
    "diffusers.StableDiffusionXLPAGImg2ImgPipeline": sdxl,
    "diffusers.StableDiffusionXLPAGInpaintPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetPAGPipeline": sdxl,
    "diffusers.StableDiffusionXLControlNetPAGImg2ImgPipeline": sdxl,
    "diffusers.StableDiffusion3Pipeline": sd3,
    "diffusers.StableDiffusion3Img2ImgPipeline": sd3,
    "diffusers.StableDiffusion3InpaintPipeline": sd3,
    "diffusers.StableDiffusion3ControlNetPipeline": sd3,
    "diffusers.StableDiffusion3ControlNetInpaintingPipeline": sd3,
    "diffusers.StableDiffusion3PAGPipeline": sd3,
    "diffusers.StableDiffusion3PAGImg2ImgPipeline": sd3,
    "diffusers.KandinskyPriorPipeline": kandinsky_prior,
    "diffusers.KandinskyV22PriorPipeline": kandinsky_prior,
    "diffusers.KandinskyV22PriorEmb2EmbPipeline": kandinsky_prior,
}

# The zoo's own: led away from zeros, which no encoder gives.
unclip = PipelineAdapter(encoders=(PipelineEncoder("clip"),))
