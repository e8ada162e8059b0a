"""What is remembered of a host: enough to tell most others apart, not every one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vlm_edit.ground.errors import WrongHost
from vlm_edit.host.host import Host
from vlm_edit.host.pipelines import Model, PipelineHost
from vlm_edit.host.resolve import Site
from vlm_edit.host.weights import Sample, sample, spaced

PIPELINE = "pipeline"


def fingerprint(
    host: Host | Model, sites: Sequence[Site], like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the architecture and a few weights of each of the sites' modules, JSON-able.

    Of a host in pieces it holds what lies in this process, with its places; where weights cannot
    be read, why.

    Args:
        host: The host.
        sites: Sites of the host that a patch edits.
        like: An earlier fingerprint, to look at the same places as it did.
    """
    root = Host.of(host).root
    entries = (like or {}).get("sites", {})
    return {
        # Many pipelines share their encoders, which their weights tell.
        "architecture": PIPELINE if isinstance(root, PipelineHost) else _class_of(root).__name__,
        "model_type": getattr(getattr(root, "config", None), "model_type", None),
        "sites": {site.name: _site(root, site, entries.get(site.name, {})) for site in sites},
    }


def loaded_as(host: Host | Model) -> dict[str, Any]:
    """Return how a host was loaded, JSON-able: its dtype, quantization and revision.

    Args:
        host: The host.

    Returns:
        ``dtype`` of its floating weights, of the most of them first where they differ;
        ``quantization``, such as ``bitsandbytes 8bit``, and ``revision``, the commit of a
        repository, or None.

    Example:
        >>> from vlm_edit import zoo
        >>> loaded_as(zoo.load_host()[0])
        {'dtype': 'float32', 'quantization': None, 'revision': None}
    """
    root = Host.of(host).root
    counts: Counter[torch.dtype] = Counter()
    for weight in root.parameters():
        if weight.is_floating_point():
            counts[weight.dtype] += weight.numel()
    config = getattr(root, "config", None)
    commit = getattr(config, "_commit_hash", None)
    return {
        "dtype": " and ".join(str(kind).removeprefix("torch.") for kind, _ in counts.most_common()),
        "quantization": _quantization(getattr(config, "quantization_config", None)),
        "revision": commit if isinstance(commit, str) else None,
    }


def _quantization(config: Any) -> str | None:
    """Return the method and the bits of what transformers keeps of a quantization."""
    told = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(told, Mapping):
        return None
    method = told.get("quant_method", "quantized")
    bits = [f"{n}bit" for n in (4, 8) if told.get(f"load_in_{n}bit")]
    bits += [f"{told['bits']}bit"] if "bits" in told else []
    return " ".join([str(getattr(method, "value", method)), *bits])


def _site(host: nn.Module, site: Site, like: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is remembered of a site.

    It has ``held`` and ``unread`` only where weights are not plain.
    """
    weights: dict[str, list[float] | None] = {}
    pieces: dict[str, dict[str, Any]] = {}
    unread: dict[str, str] = {}
    paths = list(like.get("weights", ()))
    for number, tap in enumerate(site.taps):
        piece = like.get("held", {}).get(paths[number]) if number < len(paths) else None
        reading = sample(tap.module, piece and piece["at"], host, tap.path)
        weights[tap.path] = None
        if isinstance(reading, str):
            unread[tap.path] = reading
        elif reading.whole:
            weights[tap.path] = list(reading.values.values())
        else:
            entry = {"at": list(reading.values), "values": list(reading.values.values())}
            pieces[tap.path] = {"of": reading.of, **entry}
    entry = {"width": site.width, "weights": weights}
    return entry | ({"held": pieces} if pieces else {}) | ({"unread": unread} if unread else {})


def unguarded(host: Mapping[str, Any]) -> dict[str, str]:
    """Return the sites of a fingerprint that say nothing of their weights, with the reason."""
    causes = {}
    for name, site in host["sites"].items():
        if not any(site["weights"].values()) and not site.get("held"):
            reasons = [*site.get("unread", {}).values()]
            causes[name] = reasons[0] if reasons else "its weights could not be read"
    return causes


def expect_host(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> dict[str, str]:
    """Refuse a host that is not the one a patch was made for.

    Weights are compared to 2 % of their scale, so that a host in half precision passes; weights
    that cannot be read (quantised, put away, in another process) are passed over.

    Returns:
        Sites whose weights could not be compared at all, with the reason.

    Raises:
        VlmEditError: Another architecture, width or other weights.
    """
    mend = "attach it to the host it was made for, or pass check_host=False"
    for key in ("architecture", "model_type"):
        if expected[key] != actual[key]:
            raise WrongHost(
                f"the patch was made for a host with {key} {expected[key]!r}, this one has "
                f"{actual[key]!r}: {mend}"
            )
    blind = {}
    for name, site in expected["sites"].items():
        actual_site = actual["sites"][name]
        if site["width"] != actual_site["width"]:
            raise WrongHost(
                f"site {name!r} is {site['width']} wide in the patch's host, "
                f"{actual_site['width']} in this one: {mend}"
            )
        if len(site["weights"]) != len(actual_site["weights"]):
            raise WrongHost(
                f"site {name!r} is {len(site['weights'])} modules in the patch's host, "
                f"{len(actual_site['weights'])} in this one: {mend}"
            )
        verdicts = same_weights(site, actual_site)
        for path, same in verdicts.items():
            if same is False:
                raise WrongHost(
                    f"the weights at {path} differ from those of the host this patch was made "
                    f"for: {mend}"
                )
        if not any(verdicts.values()):
            blind[name] = _why_blind(site, actual_site)
    return blind


def same_weights(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return by path whether samples of a site's modules agree to 2 % of their scale.

    None where nothing of a module is known on both sides.
    """
    verdicts: dict[str, bool | None] = {}
    for path, actual_path in zip(expected["weights"], actual["weights"], strict=False):
        a, b = _sample_at(expected, path), _sample_at(actual, actual_path)
        verdicts[path] = None if a is None or b is None else _alike(a, b)
    return verdicts


def _alike(a: Sample, b: Sample) -> bool | None:
    size = a.of or b.of
    if a.of and b.of and a.of != b.of:
        return False
    if size:
        a, b = (s if s.of else Sample(size, _placed(s, size)) for s in (a, b))
    elif len(a.values) != len(b.values):
        return False
    shared = [place for place in a.values if place in b.values]
    if not shared:
        return None
    x, y = (torch.tensor([s.values[place] for place in shared]) for s in (a, b))
    scale = torch.tensor(list(a.values.values())).abs().max()
    return bool(((x - y).abs() <= 0.02 * scale).all())


def _sample_at(site: Mapping[str, Any], path: str) -> Sample | None:
    """Return a module's sample; of size 0 where only its values are known, evenly spaced."""
    piece = site.get("held", {}).get(path)
    if piece:
        return Sample(piece["of"], dict(zip(piece["at"], piece["values"], strict=True)))
    values = site["weights"][path]
    return Sample(0, dict(enumerate(values))) if values else None


def _placed(found: Sample, size: int) -> dict[int, float]:
    places = spaced(size)
    return dict(zip(places, found.values.values(), strict=False))


def _why_blind(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    expected_reasons, actual_reasons = (
        [*site.get("unread", {}).values()] for site in (expected, actual)
    )
    if actual_reasons:
        return f"in this host {actual_reasons[0]}"
    if expected_reasons:
        return f"in the host it was saved for {expected_reasons[0]}"
    return "this process holds other pieces of its weights than the one that saved the patch"


def _class_of(host: nn.Module) -> type:
    """Return the host's class, behind one that FSDP has made of it."""
    classes = type(host).__mro__
    return next(c for c in classes if not c.__module__.startswith("torch.distributed"))
