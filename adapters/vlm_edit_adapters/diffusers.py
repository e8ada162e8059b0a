"""Pipelines of diffusers: the encoders they are conditioned on, each by its own adapter.

A site is the pipeline's name for the encoder, then the encoder's own for the site. What encodes a
negative prompt is told apart, by the names that diffusers' methods and arguments have.
"""

from dataclasses import replace

from vlm_edit.sites import Encoder, PipelineAdapter

METHODS = ("encode_prompt", "_encode_prompt", "_encode_prior_prompt")

adapter = PipelineAdapter(
    encoders=(
        Encoder("text_encoder", "tokenizer", ("prompt",)),
        Encoder("text_encoder_2", "tokenizer_2", ("prompt_2", "prompt")),
        Encoder("text_encoder_3", "tokenizer_3", ("prompt_3", "prompt")),
        Encoder("prior_text_encoder", "prior_tokenizer", ("prompt",)),
        Encoder("image_encoder"),
        Encoder("prior_image_encoder"),
    ),
    methods=METHODS,
)

# Both read `hidden_states[-2]`; of the second, SDXL also reads what is pooled behind its last.
sdxl = replace(
    adapter,
    encoders=(
        Encoder("text_encoder", "tokenizer", ("prompt",), read=-2),
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

# The zoo's own: led away from zeros, which no encoder gives.
unclip = PipelineAdapter(encoders=(Encoder("clip"),))
