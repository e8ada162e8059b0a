"""Random transcoders, and what a tiny LLaVA says under patches of them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlm_edit import Dictionary
from vlm_edit.dictionaries import Encoder, Transcoder

M = 12
LAYERS = "model.language_model.layers"


def made(width=32, seed=0, parts=1, ends=("mlp_in", "mlp_out"), **zeros):
    """A random transcoder; ``zeros`` empties blocks of its encoder and decoder."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(width * parts, M, generator=g) / width**0.5
    decoder = torch.randn(M, width * parts, generator=g) / 2
    for matrix, name in ((weight, "unread"), (decoder.T, "unwritten")):
        for place, features in zeros.get(name, {}).items():
            matrix[place * width : (place + 1) * width, features] = 0
    encoder = Encoder(weight, torch.randn(M, generator=g))
    inner = Dictionary(encoder, decoder, torch.zeros(width * parts))
    return Transcoder(inner, *ends, parts=parts)


@torch.no_grad()
def logits(host, inputs, **more):
    return host(**inputs, use_cache=False, **more).logits


def by_hand(host, layers, change):
    """Put what ``change`` makes of an MLP's input and output in that output's place."""
    handles = []
    for layer in layers:
        mlp = host.get_submodule(f"{LAYERS}.{layer}.mlp")

        def hook(_module, args, output, layer=layer):
            return change(layer, args[0], output)

        handles.append(mlp.register_forward_hook(hook))
    return handles


@contextmanager
def adding_in_place(host, layer: int) -> Iterator[None]:
    """Have a layer add to the stream that it is given, instead of to a copy."""

    def forward(self, hidden_states, **more):
        stream = hidden_states
        stream.add_(self.self_attn(hidden_states=self.input_layernorm(stream), **more)[0])
        stream.add_(self.mlp(self.post_attention_layernorm(stream)))
        return stream

    module = host.get_submodule(f"{LAYERS}.{layer}")
    module.forward = types.MethodType(forward, module)
    try:
        yield
    finally:
        del module.forward
