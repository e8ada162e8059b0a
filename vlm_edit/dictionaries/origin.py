"""Compare where a dictionary was trained, as its file says, with where it is used.

Files name places in many ways. What is understood is compared, and what is not is let through.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm_edit.dictionaries.inside import inside_of
from vlm_edit.ground.errors import VlmEditWarning, WrongHost

_MEND = "dataclasses.replace(dictionary, info={}) lets it through"
_INNER = (
    "dataclasses.replace(transcoder, inner=dataclasses.replace(transcoder.inner, info={})) lets it "
    "through"
)
_LAYER = {"layers", "layer", "blocks", "block", "resblocks", "resblock", "h"}
_RESIDUAL = {"resid", "residual", "res"}
_HARMLESS = {"hook", "output", "outputs", "out", "post", "hidden", "state", "states"}
_BEFORE = {"pre", "input", "inputs", "in"}
_PARTS = {"mlp", "attn", "attention", "mid"}
_TOWERS = {
    "vision": {"vision", "visual", "image", "vit"},
    "text": {"text", "language", "llm", "lm"},
}
_SITES_OF = {"vision": {"vision"}, "text": {"text", "language", "encoder", "decoder"}}
_SITES = {"joint", *_SITES_OF["vision"], *_SITES_OF["text"]}
_PREFIXES = ("https://huggingface.co/", "hf-hub:", "open-clip:", "open_clip:", "timm:", "timm/")
_WORDS = re.compile(r"[a-z]+|\d+")
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Open_clip's names, as some files put them together: an architecture, then whose weights.
_OPEN_CLIP = re.compile(r"(vit|coca|convnext|eva\d*)[-_].*|rn\d+.*", re.IGNORECASE)


@dataclass(frozen=True)
class _Place:
    """What a file says of the place it was trained at.

    Attributes:
        layer: Number of the layer whose output it is; -1 for what goes into the first.
        part: Whether it is a part inside of that layer.
        joint: Whether it is the joint embedding.
        tower: ``vision`` or ``text``, where the name says.
    """

    layer: int | None = None
    part: bool = False
    joint: bool = False
    tower: str | None = None


def expect_origin(
    info: Mapping[str, str],
    site: str,
    model_name: str | None = None,
    other: tuple[str, str] | None = None,
) -> None:
    """Refuse a site or a host that a dictionary says it was not trained on.

    Our sites are outputs of layers: ``vision.9`` is ``blocks.9.hook_resid_post``,
    ``blocks.10.hook_resid_pre``, ``encoder.layers.9`` and ``resid_post_layer_9``.

    Args:
        info: Of a dictionary: ``site``, ``hook_name``, ``layer`` and ``model_name`` are looked at.
        site: The site's name.
        model_name: The host's name on the hub, if it has one.
        other: As for ``expect_model``.

    Raises:
        VlmEditError: Another site, layer or tower, a place that is no site, or another host.

    Example:
        >>> expect_origin({"hook_name": "model.layers.24"}, "language.24")
        >>> expect_origin({"hook_name": "model.layers.24"}, "language.23")
        Traceback (most recent call last):
        ...
        vlm_edit.ground.errors.WrongHost: the dictionary was trained at 'model.layers.24', ...
    """
    expect_site(info, site)
    expect_model(info.get("model_name"), model_name, other)


def expect_site(info: Mapping[str, str], site: str) -> None:
    """Refuse another site than the one that a dictionary says it was trained at.

    Raises:
        VlmEditError: As ``expect_origin``.
    """
    trained, whole = info.get("site"), site
    site = _own(site)
    if trained is not None:
        if trained not in (whole, site):
            raise WrongHost(
                f"the dictionary was trained at site {trained!r}, not at {whole!r}, where its "
                f"features mean nothing; {_MEND}"
            )
        return
    hook = info.get("hook_name")
    place = _place(hook) if isinstance(hook, str) else _Place()
    name = repr(hook)
    if place.layer is None and not place.joint and not place.part:
        layer = _number(str(info.get("layer", "")))
        # A training that has no layer to name writes any number.
        if layer is not None and site != "joint":
            place, name = _Place(layer, tower=place.tower), f"layer {layer}"
    inside = inside_of(hook)
    if inside is not None:
        layer, part = inside
        own = site.removesuffix(f".{part}")
        elsewhere = own == site or not own.endswith(f".{layer}")
        if elsewhere or _differs(_Place(layer, tower=place.tower), own):
            tower = "vision" if place.tower == "vision" else "language"
            raise WrongHost(
                f"the dictionary was trained at {name}, a site such as '{tower}.{layer}.{part}', "
                f"not at {whole!r}, where its features mean nothing; {_MEND}"
            )
        return
    if place.part:
        raise WrongHost(
            f"the dictionary was trained at {name}, a part inside of a layer; site {whole!r} is a "
            f"layer's output, where its features mean nothing; {_MEND}"
        )
    if _differs(place, site):
        raise WrongHost(
            f"the dictionary was trained at {name}, not at {whole!r}, where its features mean "
            f"nothing; {_MEND}"
        )


def expect_layers(
    info: Mapping[str, str], sites: Sequence[str], layers: Sequence[str], output: bool
) -> None:
    """Refuse other sites than what reads and writes several places says it was trained at.

    Which place inside of a layer is meant is not asked: it says that by itself.

    Args:
        info: As for ``expect_origin``.
        sites: Names that mean it: of what it writes, first, and of what it reads besides.
        layers: The names of the layers that they are of.
        output: Whether it is read at layers' outputs, as which ``hook_resid_pre`` of a layer is
            that of the one before.

    Raises:
        VlmEditError: Another site, layer or tower.
    """
    trained, hook = info.get("site"), info.get("hook_name")
    if trained is not None:
        if trained not in {*sites, *map(_own, sites)}:
            raise WrongHost(
                f"the transcoder was trained at site {trained!r}, not at {sites[0]!r}, where its "
                f"features mean nothing; {_INNER}"
            )
        return
    place, name = _place(hook) if isinstance(hook, str) else _Place(), repr(hook)
    layer = place.layer if output and not place.part else layer_said(hook)
    if layer is None and "joint" not in layers:
        layer = _number(str(info.get("layer", "")))
        said = f" of {hook!r}" if isinstance(hook, str) else ""
        name = name if layer is None else f"layer {layer}{said}"
    known = _Place(layer if len(layers) == 1 else None, tower=place.tower)
    if any(_differs(known, _own(each)) for each in layers):
        raise WrongHost(
            f"the transcoder was trained at {name}, not at {sites[0]!r}, where its features mean "
            f"nothing; {_INNER}"
        )


def layer_said(hook: object) -> int | None:
    """Return the number of the layer that a hook's name says, whatever of the layer is meant.

    Example:
        >>> layer_said("blocks.3.ln2.hook_normalized"), layer_said("hook_resid_mid")
        (3, None)
    """
    words = _WORDS.findall(hook.lower()) if isinstance(hook, str) else []
    at = _layer_at(words)
    return None if at is None else int(words[at])


def expect_model(
    trained: str | None, model_name: str | None, other: tuple[str, str] | None = None
) -> None:
    """Refuse another host than the one that a dictionary says it was trained on.

    Only names of the hub are compared: a folder may hold any model, and is warned of where even
    its family is another.

    Args:
        trained: The name of the host it was trained on.
        model_name: This host's.
        other: The families of both, where they differ, as ``host.other_family`` tells.

    Raises:
        VlmEditError: Both are ``owner/name``, and they differ.
    """
    ours, theirs = _hub_name(trained), _hub_name(model_name)
    if ours and theirs and ours != theirs:
        raise WrongHost(
            f"the dictionary was trained on {trained!r}, and this host is {model_name!r}, whose "
            f"features differ; if it has the same weights, {_MEND}"
        )
    if other is not None and not (ours and theirs):
        warnings.warn(
            f"the dictionary says that it was trained on {trained!r} ({other[0]}), and this host "
            f"is of another family ({other[1]}), where its features mean nothing: take the host "
            f"that it was trained on; if it is this one, {_MEND} without this warning",
            VlmEditWarning,
            stacklevel=3,
        )


def _place(hook: str) -> _Place:
    words = _WORDS.findall(hook.lower())
    terms = set(words)
    towers = [tower for tower, names in _TOWERS.items() if terms & names]
    tower = towers[0] if len(towers) == 1 else None
    at = _layer_at(words)
    if at is None:
        joint = "joint" in terms or "embeds" in terms
        joint = joint or ("projection" in terms and "language" not in terms)
        return _Place(joint=joint, tower=None if joint else tower)
    layer, rest = int(words[at]), set(words[at + 1 :])
    if terms & _RESIDUAL:
        part = bool(terms & {"mid", "attn", "attention"})
    else:
        part = bool(terms & _PARTS or rest - _HARMLESS - _BEFORE)
    entering = terms & {"pre"} or rest & _BEFORE or words[at - 1] in ("states", "state")
    return _Place(layer - 1 if entering else layer, part, False, tower)


def _layer_at(words: list[str]) -> int | None:
    """Return where the one number of a layer stands among words."""
    numbers = [i for i, word in enumerate(words) if word.isdecimal()]
    after = [i for i in numbers if i and words[i - 1] in _LAYER]
    if not after and len(numbers) == 1:
        before = words[: numbers[0]]
        known = set(words) & _RESIDUAL or before[-2:] in (["hidden", "states"], ["hidden", "state"])
        ours = len(words) == 2 and words[0] in ("vision", "text", "language", "encoder", "decoder")
        after = numbers if known or ours else []
    if len(after) != 1:
        return None
    staged = after[0] + 1 < len(words) and words[after[0] + 1].isdecimal()
    return None if staged or len(words[after[0]]) > 4 else after[0]


def _own(site: str) -> str:
    """Return the name in its own host of a pipeline's site: text.3 for text_encoder.text.3."""
    inner = site.partition(".")[2]
    return inner if inner.split(".")[0] in _SITES else site


def _differs(place: _Place, site: str) -> bool:
    """Say whether a place is understood and is not this site."""
    name, *numbers = site.split(".")
    if place.joint:
        return bool(numbers)
    if place.tower and any(
        name in sites for tower, sites in _SITES_OF.items() if tower != place.tower
    ):
        return True
    if place.layer is None:
        return False
    if len(numbers) == 1 and numbers[0].isdecimal():
        return int(numbers[0]) != place.layer
    return site in ("joint", "projector")


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= 4 else None


def _hub_name(name: str | None) -> str | None:
    """Return ``owner/name`` of the hub, in lower case; None for anything else."""
    if not isinstance(name, str):
        return None
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if not _HUB.fullmatch(name) or _OPEN_CLIP.match(name) or os.path.exists(name):
        return None
    return name.lower()
