"""What attention and MLP of a layer add is all it adds, and its heads are all that attention has.

Neither is asked of the code that finds them: with both at zero a layer must give out what it was
given, and with every head at zero it must do what it does with its attention at its bias.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from any_hosts import TYPES, AnyHost, NotBuilt, build
from any_hosts.checks import ROWS
from torch import Tensor, nn

from vlm_edit import Host
from vlm_edit.hooks import Tokens, attach
from vlm_edit.host import Site

CLOSE = 1e-3  # norms behind the sum add their epsilon

# Layers that do more than add attention and MLP to a stream, and what.
MORE: dict[str, str] = {
    "AlignVisionBlock": "a convolution",
    "InklingVisionEncoderLayer": "a convolution",
    "Florence2VisionBlock": "two blocks, each with attention and MLP of its own",
    "DiffusionGemmaEncoderTextLayer": "experts beside the MLP",
    "DiffusionGemmaDecoderTextLayer": "experts beside the MLP",
    "Gemma3nTextDecoderLayer": "mixes residual streams, and an embedding of the ids",
    "Gemma4TextDecoderLayer": "an embedding of the ids for every layer",
    "Glm5NextTextDecoderLayer": "mixes residual streams",
    "Inkling2SlidingDecoderLayer": "convolutions behind both",
    "Inkling2LoopSlidingDecoderLayer": "convolutions behind both",
    "Inkling2LoopSlidingLoopDecoderLayer": "convolutions behind both",
    "Inkling2LoopFullDecoderLayer": "convolutions behind both",
    "Lfm3VlVisionLayer": "a convolution in the place of attention",
    "Lfm3DecoderLayer": "a convolution in the place of attention",
    "MuseSparkTextDecoderLayer": "gates on the stream",
    "NemotronHBlock": "a state space",
    "InstructBlipQFormerLayer": "an MLP for queries and one for words",
    "InstructBlipVideoQFormerLayer": "an MLP for queries and one for words",
    "FastVitStage": "several blocks",
    "Sequential": "several blocks",
}


def layers(host: Host) -> dict[type, list[Site]]:
    """The live layers of each class."""
    found: dict[type, list[Site]] = {}
    for name, site in host.sites.items():
        is_layer = re.search(r"\.\d+$", name) and not name.startswith(("deepstack", "audio"))
        if is_layer and not site.dead and site.taps[0].method is None:
            found.setdefault(type(site.taps[0].module), []).append(site)
    return found


@torch.no_grad()
def passing(host: AnyHost, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """What a layer is given and what it gives, the first time."""
    seen: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        seen.append(args[0] if args else next(iter(named.values())))
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(look, with_kwargs=True)
    try:
        host.model(**host.inputs(ROWS))
    finally:
        handle.remove()
    return seen[0], seen[1]


def under(
    ours: Host, sites: Sequence[Site], edit: Callable[[Tensor], Tensor], act: Callable[[], Any]
) -> Any:
    def callback(hidden: Tensor, _: Tokens) -> Tensor:
        return edit(hidden)

    handles = [attach(ours, site, callback) for site in sites]
    try:
        return act()
    finally:
        for handle in handles:
            handle.remove()


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=CLOSE)


def bias_of(projection: nn.Module) -> Tensor | float:
    bias = getattr(getattr(projection, "linear", projection), "bias", None)
    return 0.0 if bias is None else bias.detach()


@pytest.mark.parametrize("model_type", TYPES)
def test_attention_and_mlp_are_all_that_a_layer_adds(model_type: str) -> None:
    try:
        host = build(model_type)
    except NotBuilt as reason:
        pytest.skip(str(reason))
    ours = Host.of(host.model)
    for kind, sites in layers(ours).items():
        is_all = [adds_no_more(host, ours, site) for site in sites]
        assert all(is_all) != (kind.__name__ in MORE), kind.__name__
        for site in sites:
            heads_are_all(host, ours, site)


def adds_no_more(host: AnyHost, ours: Host, layer: Site) -> bool:
    """Whether a layer with its parts at zero gives out what it was given."""
    added = [part for name, part in ours.inside(layer.name).items() if ".head." not in name]
    act = functools.partial(passing, host, layer.taps[0].module)
    return close(*under(ours, added, torch.zeros_like, act))


def heads_are_all(host: AnyHost, ours: Host, layer: Site) -> None:
    """With all heads at zero a layer must do what it does with its attention at its bias."""
    parts = ours.inside(layer.name)
    heads = [part for name, part in parts.items() if ".head." in name]
    if not heads:
        return
    attention = parts[f"{layer.name}.attention"]
    bias = bias_of(attention.taps[0].module)
    act = functools.partial(passing, host, layer.taps[0].module)
    without = under(ours, heads, torch.zeros_like, act)[1]
    expected = under(ours, [attention], lambda x: torch.zeros_like(x) + bias, act)[1]
    assert close(without, expected), f"{layer.name}: heads are not all that attention has"


@pytest.mark.parametrize(
    "model_type", ["llava", "qwen2_vl", "gemma3", "gemma4", "mllama", "llama4", "clip", "siglip"]
)
def test_there_are_as_many_heads_as_the_config_says(model_type: str) -> None:
    host = Host.of(build(model_type).model)
    parts = {"vision": "vision_config", "language": "text_config", "text": "text_config"}
    for name in host.sites:
        told = getattr(host.root.config, parts.get(name.partition(".")[0], ""), None)
        if told is None:
            continue
        count = getattr(told, "num_attention_heads", None) or told.num_heads
        found = list(host.inside(name))
        assert {f"{name}.attention", f"{name}.mlp"} <= set(found)
        assert found[-1] == f"{name}.head.{count - 1}"
