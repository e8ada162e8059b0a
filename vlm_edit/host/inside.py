"""Sites inside a layer: its attention, its MLP and what enters that, and single heads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import nn

from vlm_edit.host.resolve import Site, Tap, find_module

# What the library's layers call their parts; the first that is there is meant.
_ATTENTION = (
    *("self_attn", "self_attention", "attn", "attention", "linear_attn", "layer.0.SelfAttention"),
    "mixer",
)
_CROSSING = (
    *("cross_attn", "encoder_attn", "crossattention", "encoder_decoder_attention"),
    "layer.1.EncDecAttention",
)
_MLP = (
    *("mlp.DenseReluDense", "mlp", "feed_forward", "ffn", "layer.2.DenseReluDense"),
    *("layer.1.DenseReluDense", "mixer", "fc2", "output.dense", "output_query.dense"),
)
# What an MLP begins with, where its last part alone is a module of the layer.
_BEGINS = {"fc2": "fc1", "output.dense": "intermediate.dense"}
# What norms the stream before an MLP reads it; and what norms an MLP's output before it is added.
_NORM_BEFORE = (
    *("pre_feedforward_layernorm", "layer_norm2", "norm2", "ln_2", "layernorm_after"),
    "post_attention_layernorm",
)
_NORM_BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm")
_NORM_OF_ATTENTION = "post_self_attn_layernorm"
# What does a part of an MLP's work beside it, so that neither is all of it.
_BESIDE_MLP = ("experts", "output_query.dense")
_PROJECTIONS = (
    *("o_proj", "out_proj", "proj", "projection", "projection_layer", "output.dense", "output"),
    *("dense", "c_proj", "wo", "Wo", "o", "out_lin", "to_out.0", "attention.output"),
)
_SIZES = ("head_v_dim", "v_head_dim", "head_dim", "attention_head_size", "key_value_proj_dim")
_COUNTS = ("num_v_heads", "num_heads", "num_attention_heads", "n_heads", "n_head")
_LAYER = re.compile(r".+\.\d+")
_AROUND = ("mid", "mlp_in", "mlp_out")


def sites_inside(layer: Site) -> dict[str, Site]:
    """Return the sites inside a layer, by name.

    Args:
        layer: A site of one module, a layer of transformers.

    Returns:
        Of those that its module has: ``attention`` and ``mlp``, what they add to the layer's
        stream; ``cross_attention`` beside the layer's own; around the MLP ``mid``, the stream
        before the norm that the MLP reads it through, ``mlp_in``, what the MLP is called with, and
        ``mlp_out``, what is added: ``mlp`` after the norm behind it, where one is; ``head.0`` and
        on, [..., D_head], what each head gives to the output projection. Behind the layer's name.
        Nothing of a part whose place nobody can tell.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> found = sites_inside(Host.of(*zoo.load_host()).site("vision.1"))
        >>> list(found)[:3], found["vision.1.head.0"].width
        (['vision.1.attention', 'vision.1.mlp', 'vision.1.mid'], 32)
    """
    tap = layer.taps[0]
    if not _LAYER.fullmatch(layer.name) or len(layer.taps) > 1:
        return {}
    if tap.method is not None or tap.axis != -1 or tap.columns is not None:
        return {}
    return {site.name: site for site in _found(layer, tap)}


def some_inside(sites: Mapping[str, Site]) -> list[Site]:
    """Return the sites inside the last live layer of each kind of each stack, of heads the last.

    Of those around an MLP none: they are the MLP itself before and after a norm.

    Args:
        sites: All of a host, by name.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> found = some_inside(Host.of(*zoo.load_host()).sites)
        >>> [site.name for site in found][:3]
        ['vision.3.attention', 'vision.3.mlp', 'vision.3.head.5']
    """
    kinds: dict[tuple[str, type], Site] = {}
    for name, site in sites.items():
        if site.dead is None:
            kind = name.rstrip(".0123456789"), type(site.taps[0].module)
            kinds[kind] = site
    found: list[Site] = []
    for parts in map(sites_inside, kinds.values()):
        heads = [part for name, part in parts.items() if ".head." in name]
        whole = {name: part for name, part in parts.items() if ".head." not in name}
        found += [part for name, part in whole.items() if not name.endswith(_AROUND)] + heads[-1:]
    return found


def may_rest(site: Site) -> bool:
    """Return whether a forward may pass a site by: some calls bring nothing else to attend to."""
    return site.name.endswith(".cross_attention")


def _found(layer: Site, tap: Tap) -> Iterator[Site]:
    own, crossing = _part(tap.module, _ATTENTION, "Attention"), _part(tap.module, _CROSSING)
    attention = own or crossing
    projection = None if attention is None else _projection(tap.module, attention)
    width = layer.width if projection is None else _width(tap.module, projection)[1]
    if attention is not None:
        yield _site(layer, "attention", projection or attention, width)
    if own is not None and crossing is not None:
        path = _projection(tap.module, crossing) or crossing
        yield _site(layer, "cross_attention", path, width)
    mlp = _part(tap.module, _MLP, "MLP|Mlp|MoE")
    beside = [find_module(tap.module, name) for name in _BESIDE_MLP if name != mlp]
    if mlp is not None and all(part is None for part in beside):
        yield _site(layer, "mlp", mlp, width)
        yield from _around(layer, mlp, width)
    if attention is not None and projection is not None:
        yield from _heads(layer, attention, projection)


def _part(layer: nn.Module, names: tuple[str, ...], mixer: str = "") -> str | None:
    """Return the first name under which a layer has a part; a ``mixer`` is any kind of part."""
    for name in names:
        module = find_module(layer, name)
        if module is None or isinstance(module, nn.ModuleList):
            continue
        if name != "mixer" or re.search(mixer, type(module).__name__):
            return name
    return None


def _projection(layer: nn.Module, attention: str) -> str | None:
    """Return the path of an attention's output projection; None where its forward calls none."""
    module = layer.get_submodule(attention)
    if isinstance(module, nn.MultiheadAttention):  # reads the weights alone
        return None
    paths = [f"{attention}.{name}" for name in _PROJECTIONS]
    return next((path for path in paths if _width(layer, path) != (0, 0)), None)


def _width(layer: nn.Module, path: str) -> tuple[int, int]:
    """Return how many numbers a linear layer, or what wraps one, takes and gives; else zeros."""
    module: Any = find_module(layer, path)
    inners: tuple[Any, ...] = (module, getattr(module, "linear", None))
    for inner in inners:
        if type(inner).__name__ == "Conv1D":
            return cast("tuple[int, int]", tuple(inner.weight.shape))
        takes, gives = (getattr(inner, f"{way}_features", None) for way in ("in", "out"))
        if isinstance(takes, int) and isinstance(gives, int):
            return takes, gives
    return 0, 0


def _site(layer: Site, name: str, path: str, width: int) -> Site:
    tap = layer.taps[0]
    module = tap.module.get_submodule(path)
    inner = replace(tap, path=f"{tap.path}.{path}", module=module, ends=None, field=None)
    return replace(layer, name=f"{layer.name}.{name}", taps=(inner,), width=width)


def _around(layer: Site, mlp: str, width: int) -> Iterator[Site]:
    """Yield the sites before and behind an MLP; none where it is the layer's one part."""
    module = layer.taps[0].module
    if mlp == "mixer":
        return
    before = next((name for name in _NORM_BEFORE if find_module(module, name) is not None), None)
    behind = next((name for name in _NORM_BEHIND if find_module(module, name) is not None), None)
    own = find_module(module, _NORM_OF_ATTENTION) is not None
    if behind is not None and before == _NORM_BEFORE[-1] and not own:
        before = None  # it norms what attention adds: the MLP reads the stream as it is
    begins = next((mlp.removesuffix(e) + b for e, b in _BEGINS.items() if mlp.endswith(e)), mlp)
    if before is not None:
        yield _entering(layer, "mid", before, width)
    if find_module(module, begins) is not None:
        yield _entering(layer, "mlp_in", begins, width)
    yield _site(layer, "mlp_out", behind or mlp, width)


def _entering(layer: Site, name: str, path: str, width: int) -> Site:
    """Return the site of what a module inside a layer is called with."""
    site = _site(layer, name, path, width)
    return replace(site, taps=(replace(site.taps[0], columns=(0, width)),))


def _heads(layer: Site, attention: str, projection: str) -> Iterator[Site]:
    module = layer.taps[0].module
    width = _width(module, projection)[0]
    count = _count(module.get_submodule(attention), width)
    if count is None:
        return
    size = width // count
    for head in range(count):
        site = _site(layer, f"head.{head}", projection, size)
        columns = (head * size, (head + 1) * size)
        yield replace(site, taps=(replace(site.taps[0], columns=columns),))


def _count(attention: nn.Module, width: int) -> int | None:
    """Return how many heads lie side by side in what is projected; None where nobody can tell.

    The size of a head and their number are looked for in the attention, in its parts and in its
    config; where both are known they must agree.
    """
    holders = [attention, *attention.children(), getattr(attention, "config", None)]
    size, count = _number(holders, _SIZES), _number(holders, _COUNTS)
    by_size = width // size if size and width % size == 0 else None
    if size and (by_size is None or count not in (None, by_size)):
        return None
    return by_size or (count if count and width % count == 0 else None)


def _number(holders: list[object], names: tuple[str, ...]) -> int | None:
    values = (getattr(holder, name, None) for holder in holders for name in names)
    return next((v for v in values if isinstance(v, int) and v > 0), None)
