"""Read from a model of transformers itself where its places are, as all of them promise alike.

No family is known here by name. What is read: ``get_decoder`` and ``get_encoder``, the lists of
layers below them, the towers by the names that the library keeps for them, and the config's ids of
placeholders. An adapter that is declared for a family wins over this.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, cast

from torch import nn

from vlm_edit.host.declare import VISUAL_INPUTS, Adapter, SiteRule, Stream, TapRule

TOWERS = {
    "image": (
        *("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower"),
        *("image_encoder", "video_model"),
    ),
    "audio": ("audio_tower", "audio_encoder", "speech_encoder", "audio_model"),
}
PLACEHOLDERS = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
    "audio": ("audio_token_id", "audio_token_index"),
}
_FEATURE_LAYERS = ("vision_feature_layer", "vision_feature_layers")
_GRIDS = ("grid_thw", "image_grid_thw")
_PIXELS = re.compile(r"pixel_values|flattened_patches")
_CARRIER = re.compile(
    r"pixel_values|flattened_patches|(image|video|visual|audio|speech)_(embeds|feats|features)"
    r"|^images$|^input_(features|values)$"
)
_PROJECTOR = re.compile(
    r"(projector|projection|connector|aligner|merger|resampler(_model)?|embed_vision"
    r"|visual_embeddings_table|vision_embed_tokens)$"
)
_NO_PROJECTOR = re.compile(
    r"text|output|patch_(projection|embed)|generation|deepstack|lm_head|audio|speech"
)
_DEEPSTACK = re.compile(r"deepstack\w*|merger_list")
_DEPTHS = ("decoder_layers", "num_hidden_layers", "num_layers")
_NO_LAYER = re.compile(r"(Attention|Norm|Linear|Embedding|Conv[12]d|FFN|FeedForward|M(LP|lp))$")
_List = nn.ModuleList | nn.Sequential
_Stack = tuple[str, _List]
_CROSSING = re.compile(r"cross|encoder_attn|EncDecAttention", re.IGNORECASE)


def read_conventions(root: nn.Module) -> Adapter | None:
    """Return the adapter that a model of transformers gives of itself; None where it gives none.

    Args:
        root: The model, unwrapped; its weights may lie on the meta device.

    Returns:
        Its sites by the names that declared families have: ``vision.{i}``, ``projector``,
        ``language.{i}``, or ``encoder.{i}`` and ``decoder.{i}`` where it has both; of two towers
        that meet ``joint``, ``vision.{i}`` and ``text.{i}``.

    Example:
        >>> from vlm_edit import zoo
        >>> model = zoo.load_llava()[0]
        >>> [rule.name for rule in read_conventions(model).sites]
        ['vision.{i}', 'projector', 'language.{i}']
    """
    if not hasattr(root, "config") or not callable(getattr(root, "get_decoder", None)):
        return None
    parts = _Parts(root)
    if not parts.keeps_them:
        return None
    rules = list(parts.of_two_towers() if parts.contrasts else parts.of_one_sequence())
    if not rules:
        return None
    ids = parts.placeholders if parts.is_mixed else {}
    return Adapter(
        tuple(rules),
        image_token=ids.get("image"),
        visual_inputs=parts.carriers,
        calls=parts.calls,
        grid=parts.grid,
        video_token=ids.get("video"),
        audio_token=ids.get("audio"),
    )


class _Parts:
    """The parts of a model by what the library calls them, each at its path."""

    def __init__(self, root: nn.Module) -> None:
        self.root, self.config = root, cast("Any", root).config
        self.paths: dict[int, str] = {id(module): path for path, module in root.named_modules()}
        self.speaker = self._innermost("get_decoder")
        self.reader = self._innermost("get_encoder") if self._has_both else None
        self.towers = {kind: self._tower(names) for kind, names in TOWERS.items()}
        if self.reader is not None:
            takes = inspect.signature(self._first("get_encoder").forward).parameters
            if self.towers["image"] is None and any(map(_PIXELS.search, takes)):
                self.towers["image"] = None if "input_ids" in takes else self.reader
            if "input_ids" not in takes:  # it reads no text
                self.reader = None

    @property
    def keeps_them(self) -> bool:
        """Whether it is of a kind that conventions tell all of: they say little of the rest.

        That are two towers that meet, models that generate, an image tower, and texts alone.
        """
        reads_alone = "input_ids" in self.takes and not self._has_both and not self.sees
        told = self.contrasts or self._speaks or self._is_tower_alone
        return told or reads_alone or self.towers["image"] is not None

    @cached_property
    def takes(self) -> tuple[str, ...]:
        """Return the names of what its forward takes."""
        return tuple(inspect.signature(self.root.forward).parameters)

    @cached_property
    def contrasts(self) -> bool:
        """Whether two towers meet in an embedding, and nothing is said."""
        both = all(hasattr(self.root, f"get_{kind}_features") for kind in ("text", "image"))
        return (both or hasattr(self.root, "get_video_features")) and not self._speaks

    @property
    def _speaks(self) -> bool:
        return hasattr(self.root, "generate") or hasattr(self.root, "get_placeholder_mask")

    @cached_property
    def _has_both(self) -> bool:
        configs = (self.config, getattr(self.speaker, "config", None), _text_config(self.config))
        base = getattr(self.root, "base_model", self.root)
        parts = all(isinstance(getattr(base, p, None), nn.Module) for p in ("encoder", "decoder"))
        return parts or any(getattr(config, "is_encoder_decoder", False) for config in configs)

    @cached_property
    def placeholders(self) -> dict[str, str]:
        """Return the config's attributes with ids of placeholders, by modality."""
        pairs = ((kind, _held(self.config, names)) for kind, names in PLACEHOLDERS.items())
        return {kind: name for kind, name in pairs if name is not None}

    @cached_property
    def has_places(self) -> bool:
        """Whether images take places in a sequence, as the host itself knows."""
        return self._marks or any(kind in self.placeholders for kind in ("image", "video"))

    @cached_property
    def _marks(self) -> bool:
        """Whether a part of it says where it puts features."""
        return any(hasattr(module, "get_placeholder_mask") for module in self.root.modules())

    @cached_property
    def sees(self) -> bool:
        """Whether images reach it at all."""
        brings = any(name in self.takes for name in self.carriers)
        return self.has_places or self.towers["image"] is not None or brings

    @property
    def is_mixed(self) -> bool:
        """Whether images and text share a sequence."""
        return self._stream() == "mixed" or self.reader is not None

    def _stream(self) -> Stream:
        """Return whose tokens pass the layers that speak."""
        stack = self.stack(self.speaker)
        if stack is None or self._is_tower_alone:
            return "image"
        if self._has_both:
            return "text"
        if not self._marks and _crosses(self.speaker):
            return "text"
        return "mixed" if self.sees else "text"

    @property
    def _is_tower_alone(self) -> bool:
        packed = self.takes[:1] == ("hidden_states",) and any(g in self.takes for g in _GRIDS)
        sees = packed or any(map(_PIXELS.search, self.takes))
        return sees and not (self._has_both or self._speaks or "input_ids" in self.takes)

    @cached_property
    def carriers(self) -> tuple[str, ...]:
        """Return the arguments that bring images."""
        own = (n for n in self.takes if _CARRIER.search(n) and not n.endswith(("mask", "sizes")))
        return tuple(dict.fromkeys((*VISUAL_INPUTS, *own)))

    @property
    def grid(self) -> str | None:
        """Return the tower's argument that tells apart the images packed into one sequence."""
        tower = self.towers["image"] or (self.root if self._is_tower_alone else None)
        takes = () if tower is None else inspect.signature(tower.forward).parameters
        return next((name for name in _GRIDS if name in takes), None)

    @property
    def calls(self) -> tuple[str, ...]:
        """Return what the model's own code calls with a sequence of its own."""
        called = [self.towers["image"]] if self.grid else []
        if self.contrasts:
            called.append(self.speaker)
        elif self._has_both:
            called += [self.reader, self.speaker]
        elif self.is_mixed and not self.has_places:  # what it makes of its ids, it hands on there
            called.append(self.speaker)
        elif "generate" in vars(type(self.root)):  # runs its language model, not itself
            called.append(self._first("get_decoder"))
        paths = (self.path(module) for module in called if module is not None)
        return tuple(path for path in paths if path)

    def path(self, module: nn.Module) -> str:
        """Return where a module of the model is."""
        return self.paths[id(module)]

    def of_two_towers(self) -> Iterator[SiteRule]:
        """Yield the sites of towers that meet in a joint embedding."""
        towers = {"vision": self.towers["image"], "text": self.speaker}
        streams: dict[str, Stream] = {"vision": "image", "text": "text"}
        ends = {name: self._end_of(name, tower) for name, tower in towers.items()}
        widths = {_width_of(end) for end in ends.values() if end is not None}
        if None not in ends.values() and len(widths) == 1:
            taps = (TapRule((self.path(cast("nn.Module", ends[n])),), streams[n]) for n in towers)
            yield SiteRule("joint", tuple(taps), (cast("int", widths.pop()),))
        for name, tower in towers.items():
            yield from self._layers(name, tower, streams[name])

    def of_one_sequence(self) -> Iterator[SiteRule]:
        """Yield the sites of a model whose layers read one sequence, whatever is in it."""
        if self._is_tower_alone:
            tower = self.towers["image"] or self.root
            end = self._end_of("vision", tower)
            if end is not None:
                yield _rule("joint", self.path(end), "image", _width_of(end))
            yield from self._layers("vision", tower, "image")
            return
        yield from self._layers("vision", self.towers["image"], "image")
        if self.towers["image"] is not None and not self._speaks:
            return  # how it reads texts, no convention tells
        yield from self._deepstack()
        projector = self._projector() if self.sees else None
        if projector is not None:
            width, path = self._projected_width(projector), self.path(projector)
            tap = TapRule((path,), "image", field=_field_of(projector))
            yield SiteRule("projector", (tap,), () if width is None else (width,))
        if self._has_both:
            if self.reader is not None:
                stream: Stream = "mixed" if self.sees else "text"
                yield from self._layers("encoder", self.reader, stream)
            yield from self._layers("decoder", self.speaker, "text")
        else:
            yield from self._layers("language", self.speaker, self._stream())
        yield from self._layers("audio", self.towers["audio"], "audio")

    def stack(self, base: nn.Module | None) -> _Stack | None:
        """Return the layers below a module: as many as its config says, else the longest list."""
        if base is None:
            return None
        says = base is self.speaker or base is self.reader
        depth = _held(_text_config(self.config), _DEPTHS) if says else None
        said = getattr(_text_config(self.config), depth) if depth else -1
        others = [t for t in self.towers.values() if t is not None and t is not base]
        beside = [self.path(tower) for tower in others if _holds(base, tower)]
        lists = self._lists(base, nn.ModuleList, beside)
        if not lists and base is self.towers["image"]:  # of another library, its stages in a row
            lists = self._lists(base, nn.Sequential, beside)
        return max(lists, key=lambda found: (len(found[1]) == said, len(found[1])), default=None)

    def _lists(self, base: nn.Module, kind: type[_List], beside: list[str]) -> list[_Stack]:
        """Return the outermost lists of layers below a module, but for those beside it."""
        lists: list[_Stack] = []
        for name, module in base.named_modules():
            path = ".".join(filter(None, (self.path(base), name)))
            inner = any(_below(path, other) for other in (*beside, *(p for p, _ in lists)))
            if isinstance(module, kind) and _are_layers(module) and not inner:
                lists.append((path, module))
        return lists

    def _layers(self, name: str, base: nn.Module | None, stream: Stream) -> Iterator[SiteRule]:
        stack = self.stack(base)
        if stack is None:
            return
        path, layers = stack
        widths = [_width_of(layer) for layer in layers]
        streams = getattr(_text_config(self.config), "hc_count", None)
        if streams and base is self.speaker and self.width:  # hyper-connections, side by side
            widths = [streams * self.width for _ in layers]
        if None in widths or (stream == "image" and any(map(_is_stage, layers))):
            return
        axis = 1 if all(map(_is_convolution, layers)) else -1
        read = next((n for n in _FEATURE_LAYERS if getattr(self.config, n, None) is not None), None)
        consumed = read if name == "vision" else None
        if len(set(widths)) == 1:
            yield _rule(f"{name}.{{i}}", f"{path}.{{i}}", stream, widths[0], axis, consumed)
            return
        for i, width in enumerate(widths):
            yield _rule(f"{name}.{i}", f"{path}.{i}", stream, width, axis)

    def _deepstack(self) -> Iterator[SiteRule]:
        lists = [
            (path, module)
            for path, module in self.root.named_modules()
            if isinstance(module, nn.ModuleList) and _DEEPSTACK.fullmatch(path.rpartition(".")[2])
        ]
        if len(lists) == 1 and len(lists[0][1]):
            path, mergers = lists[0]
            yield _rule("deepstack.{i}", f"{path}.{{i}}", "image", _width_of(mergers[0]))

    def _projector(self) -> nn.Module | None:
        """Return what brings images into the width of the text, by its name; None if nothing."""
        tower = self.towers["image"]
        beside = (p for p in (self.speaker, self.reader, self.towers["audio"]) if p is not None)
        parts = [part for part in beside if tower is None or not _holds(part, tower)]
        shut = [self.path(part) for part in parts if part is not self.root]
        stacks = (self.stack(part) for part in (tower, self.speaker))
        shut += [stack[0] for stack in stacks if stack is not None]
        found: list[tuple[str, nn.Module]] = []
        for path, module in self.root.named_modules():
            inner = any(_below(path, other) for other in (*shut, *(p for p, _ in found)))
            name = path.rpartition(".")[2]
            fits = _PROJECTOR.search(name) and not _NO_PROJECTOR.search(path)
            fits = fits and not isinstance(module, nn.Conv2d)  # whose width is another axis
            if fits and not inner and self._projected_width(module) is not None:
                found.append((path, module))
        fitting = [module for _, module in found if self._projected_width(module) == self.width]
        others = fitting or [module for _, module in found]
        return others[-1] if others else None

    @property
    def width(self) -> int | None:
        """Return the width of the text's stream, as the config says."""
        return getattr(_text_config(self.config), "hidden_size", None)

    def _projected_width(self, module: nn.Module) -> int | None:
        """Return a projector's width: that of the text if anything in it leads there."""
        ends = {part.out_features for part in module.modules() if isinstance(part, nn.Linear)}
        ends |= {weight.shape[-1] for weight in module.parameters(recurse=False)}
        return self.width if self.width in ends else _width_of(module)

    def _end_of(self, name: str, tower: nn.Module | None) -> nn.Module | None:
        """Return where a tower ends in the joint embedding."""
        words = {"vision": ("visual", "vision", "image"), "text": ("text",)}[name]
        for word in words:
            for kind in ("projection", "proj"):
                end = getattr(self.root, f"{word}_{kind}", None)
                if isinstance(end, nn.Module):
                    return end
        end = getattr(tower, "head", None) if self.contrasts else None
        return end if isinstance(end, nn.Module) else None

    def _tower(self, names: Iterable[str]) -> nn.Module | None:
        base = getattr(self.root, "base_model", self.root)
        for name in names:
            for holder in (self.root, base, self.speaker):
                tower = getattr(holder, name, None)
                if isinstance(tower, nn.Module) and id(tower) in self.paths:
                    return tower
        return None

    def _first(self, method: str) -> nn.Module:
        found = getattr(self.root, method)()
        return found if id(found) in self.paths else self.root

    def _innermost(self, method: str) -> nn.Module:
        """Ask each part for its own decoder (or encoder), until one is its own."""
        module, seen = self.root, [self.root]
        while callable(getattr(module, method, None)):
            inner = getattr(module, method)()
            known = id(inner) in self.paths and not isinstance(inner, nn.Linear)
            if not known or any(inner is other for other in seen):
                break
            module = inner
            seen.append(module)
        return module


def _rule(
    name: str,
    path: str,
    stream: Stream,
    width: int | None,
    axis: int = -1,
    consumed: str | None = None,
) -> SiteRule:
    widths = () if width is None else (width,)
    return SiteRule(name, (TapRule((path,), stream, axis),), widths, consumed)


def _width_of(module: nn.Module) -> int | None:
    """Return the width of what a module gives, by the last of its weights that shows one.

    Norms of a layer stand in its stream, whatever stands behind them.
    """
    for child in module.children():
        weight = getattr(child, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 1 and "Norm" in type(child).__name__:
            own = weight.shape[0]
            if not isinstance(module, nn.Sequential) and _is_layer(module):
                return own
    width = None
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(part, nn.Linear):
            width = part.out_features
        elif isinstance(part, nn.Embedding):
            width = part.embedding_dim
        elif isinstance(weight, nn.Parameter) and weight.ndim in (1, 4):
            width = weight.shape[0]
    return width


def _are_layers(modules: _List) -> bool:
    """Return whether each is a layer of its own, and none a part that layers have."""
    return len(modules) > 0 and all(
        next(module.parameters(), None) is not None and not _NO_LAYER.search(type(module).__name__)
        for module in modules
    )


def _is_layer(module: nn.Module) -> bool:
    return bool(re.search(r"Layer|Block", type(module).__name__))


def _is_convolution(layer: nn.Module) -> bool:
    """Return whether a layer gives [B, D, H, W], as what ends in a convolution does."""
    parts = [part for part in layer.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    return bool(parts) and isinstance(parts[-1], nn.Conv2d)


def _is_stage(layer: nn.Module) -> bool:
    """Return whether it holds layers of its own, of which each may be as wide as it likes."""
    inner = (part for part in layer.modules() if isinstance(part, nn.ModuleList))
    return not isinstance(layer, nn.Sequential) and any(map(_are_layers, inner))


def _field_of(module: nn.Module) -> str | None:
    """Return under what name a projector gives the features that go on, where it gives several."""
    given = str(inspect.signature(module.forward).return_annotation)
    return "pooler_output" if "WithPooling" in given else None


def _crosses(speaker: nn.Module) -> bool:
    """Return whether any of its layers looks at images from aside, so that none is among them."""
    return any(_CROSSING.search(name) for name, _ in speaker.named_modules())


def _text_config(config: Any) -> Any:
    ask = getattr(config, "get_text_config", None)
    return ask() if callable(ask) else getattr(config, "text_config", config)


def _held(config: Any, names: Iterable[str]) -> str | None:
    """Return the first name under which a config holds a number."""
    return next((name for name in names if type(getattr(config, name, None)) is int), None)


def _holds(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def _below(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.")
