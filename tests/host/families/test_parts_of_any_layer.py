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
from vlm_edit.hooks import Tokens, attach, record
from vlm_edit.host import Site

ADD = (".attention", ".cross_attention", ".mlp")
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

# Layers whose output is not what stood before the MLP and what that adds, and why.
BESIDES: dict[str, str] = {
    "GraniteDoclingTextDecoderLayer": "a factor behind the MLP",
    "HyperCLOVAXDecoderLayer": "a factor behind the MLP",
    "InternVLVisionLayer": "a factor behind the MLP",
    "QianfanOCRVisionLayer": "a factor behind the MLP",
    "Step3p7VisionEncoderLayer": "a factor behind the MLP",
    "MllamaCrossAttentionDecoderLayer": "a gate behind the MLP",
    "MllamaVisionEncoderLayer": "a gate behind the MLP, in some",
    "MuseSparkTextDecoderLayer": "a gate behind the MLP",
    "InklingDecoderLayer": "a convolution behind the MLP",
    "Inkling2FullDecoderLayer": "a convolution behind the MLP",
    "Inkling2SlidingDecoderLayer": "a convolution behind the MLP",
    "Inkling2LoopFullDecoderLayer": "a convolution behind the MLP",
    "Inkling2LoopSlidingDecoderLayer": "a convolution behind the MLP",
    "Inkling2LoopSlidingLoopDecoderLayer": "a convolution behind the MLP",
    "Inkling2VisionEncoderLayer": "a convolution behind the MLP",
    "Gemma4TextDecoderLayer": "an embedding of the ids behind the MLP",
    "Glm5NextTextDecoderLayer": "several residual streams",
    "HYV4VLDecoderLayer": "several residual streams",
}
# MLPs that are called with more than the stream.
MORE_THAN_THE_STREAM = {"Ernie4_5_VLMoeDecoderLayer", "Blip2QFormerLayer"}


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


def built(model_type: str) -> AnyHost:
    try:
        return build(model_type)
    except NotBuilt as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("model_type", TYPES)
def test_attention_and_mlp_are_all_that_a_layer_adds(model_type: str) -> None:
    host = built(model_type)
    ours = Host.of(host.model)
    for kind, sites in layers(ours).items():
        is_all = [adds_no_more(host, ours, site) for site in sites]
        assert all(is_all) != (kind.__name__ in MORE), kind.__name__
        for site in sites:
            heads_are_all(host, ours, site)


def adds_no_more(host: AnyHost, ours: Host, layer: Site) -> bool:
    """Whether a layer with its parts at zero gives out what it was given."""
    added = [part for name, part in ours.inside(layer.name).items() if name.endswith(ADD)]
    act = functools.partial(passing, host, layer.taps[0].module)
    return close(*under(ours, added, torch.zeros_like, act))


@pytest.mark.parametrize("model_type", TYPES)
def test_an_mlp_reads_and_adds_what_the_places_around_it_say(model_type: str) -> None:
    host = built(model_type)
    ours = Host.of(host.model)
    for kind, sites in layers(ours).items():
        states = [around(host, ours, site) for site in sites]
        sums = [s["mid"] + s["mlp_out"] for s in states if "mid" in s and same_shape(s)]
        outputs = [s[""] for s in states if "mid" in s and same_shape(s)]
        whole = [close(a, b) for a, b in zip(sums, outputs, strict=True)]
        if any("mid" in s for s in states):
            is_whole = bool(whole) and all(whole)
            assert is_whole != (kind.__name__ in BESIDES), kind.__name__
        for site, s in zip(sites, states, strict=True):
            mlp = ours.inside(site.name).get(f"{site.name}.mlp")
            if mlp is None or kind.__name__ in MORE_THAN_THE_STREAM or begins_later(ours, site):
                continue
            with torch.no_grad():
                again = mlp.taps[0].module(s["mlp_in"])
            again = again[0] if isinstance(again, tuple) else again
            assert close(again.reshape(s["mlp"].shape), s["mlp"]), site.name


def around(host: AnyHost, ours: Host, layer: Site) -> dict[str, Tensor]:
    """What passes around the MLP of a layer, and what the layer gives out under no name."""
    names = [f"{layer.name}{part}" for part in ("", ".mid", ".mlp_in", ".mlp", ".mlp_out")]
    there = {layer.name, *ours.inside(layer.name)}
    with torch.no_grad(), record(ours, *(name for name in names if name in there)) as recording:
        host.model(**host.inputs(ROWS))
    captures = reversed(recording.captures)  # the first of each is what counts
    return {c.site.removeprefix(layer.name).lstrip("."): c.hidden for c in captures}


def same_shape(states: dict[str, Tensor]) -> bool:
    return states["mid"].shape == states["mlp_out"].shape == states[""].shape


def begins_later(ours: Host, layer: Site) -> bool:
    """Whether the MLP is two modules of the layer, of which each site has one."""
    parts = ours.inside(layer.name)
    ends = [parts.get(f"{layer.name}.{name}") for name in ("mlp_in", "mlp")]
    return None in ends or len({site.taps[0].module for site in ends if site}) > 1


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
