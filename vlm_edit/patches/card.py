"""What a patch is, in words: for the screen, and as the card of a repository on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from vlm_edit.edits import Rule
from vlm_edit.ground.errors import line
from vlm_edit.ground.licences import UNKNOWN
from vlm_edit.host import unguarded
from vlm_edit.patches.binding import Binding

if TYPE_CHECKING:
    from vlm_edit.host import Host
    from vlm_edit.patches.patch import Patch

_KNOWN = {"site", "splice", "selection", "model_name", "dictionary", "reads", "across"}
LICENCE = "licence"  # in what is told of a dictionary, and of a host
_COLUMNS = ("site", "tokens", "rule", "features", "how many")
_TAGS = ["vlm-edit", "model-editing", "sparse-autoencoder"]


def rule_text(rule: Rule) -> str:
    """Say what a rule does, without its features.

    Example:
        >>> from vlm_edit import Scale
        >>> rule_text(Scale([3], 2.5, strength=0.5))
        'scale, factor 2.5, strength 0.5'
    """
    words = [rule.kind or type(rule).__name__]
    for item in fields(rule):
        value = getattr(rule, item.name)
        if item.name not in ("features", "strength") and value != item.default:
            words.append(f"{item.name} {_short(value)}")
    if rule.strength != 1.0:
        words.append(f"strength {rule.strength:g}")
    return ", ".join(words)


def features_text(features: Sequence[int], shown: int = 8) -> str:
    """List numbers of features, the first of them where there are many.

    Example:
        >>> features_text(range(12), shown=3)
        '0, 1, 2 and 9 more'
    """
    numbers = ", ".join(map(str, list(features)[:shown]))
    rest = len(features) - shown
    return f"{numbers} and {rest} more" if rest > 0 else numbers


def more_text(binding: Binding) -> str:
    """Say what else there is to an edit, such as a gate; empty for nothing."""
    extras = {item.name: getattr(binding, item.name) for item in further(binding, _KNOWN)}
    gate = getattr(binding.splice, "gate", None)
    if gate is not None:
        extras["gate"] = gate.least
    reads = [f"read at {', '.join(binding.reads)}"] if binding.reads else []
    return ", ".join([*reads, *(f"{name} {_short(value)}" for name, value in extras.items())])


def further(thing: Any, known: set[str]) -> list[Any]:
    """List a dataclass's fields, beside the known ones, that are not as they are by default."""
    items = []
    for item in fields(thing):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        value = getattr(thing, item.name)
        if item.init and item.name not in known and value is not default and value != default:
            items.append(item)
    return items


def dictionary_text(binding: Binding) -> str:
    """Say which dictionary an edit's features are of."""
    record = binding.told()
    if record is None:
        encoder = binding.splice.slice.encoder
        total = binding.splice.slice.n_features
        return f"{total} features, {encoder.activation}, norm {encoder.norm}; which is not known"
    told = {key: value for key, value in record["info"].items() if key != LICENCE}
    facts = [f"{key} {value}" for key, value in sorted(told.items())]
    kind = f"{record['features']} features, {record['activation']}, norm {record['norm']}"
    return "; ".join([kind, *facts, f"digest {record['digest']}"])


def host_text(host: Mapping[str, Any] | None) -> str:
    """Say which host a patch is for."""
    if host is None:
        return "not known yet"
    name = f"{host['name']}, " if host.get("name") else ""
    return f"{name}{host['architecture']}"


def card(
    patch: Patch,
    *,
    file: str = "patch.safetensors",
    repository: str = "owner/name",
    effect: Mapping[str, Any] | None = None,
    cost: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Write the model card of a patch, as ``Patch.card`` says."""
    parts = [
        _metadata(patch, license),
        f"# {_plain(patch.info.get('title') or _title(repository, file))}",
        "An edit of features of a vision-language model, made and attached with `vlm-edit`: no "
        "weight of the model changes, and taken off it leaves the model bit for bit as it was.",
        _use(repository, file),
        "## What it edits",
        _table(_COLUMNS, [row for binding in patch.bindings for row in binding_rows(binding)]),
        f"Host: {_plain(host_text(patch.host))}. A host of another architecture, or "
        "another width at these sites, is refused; so is one in which any of 16 weights of each "
        "module there, evenly spaced in its largest parameter, differs by more than 2 % of the "
        "greatest of them. Other weights are not compared. `check_host=False` attaches it all the "
        "same." + _untold(patch.host),
        "Dictionaries:\n\n"
        + "\n".join(
            f"- `{b.site}`: {_plain(dictionary_text(b))}" for b in _distinct(patch.bindings)
        ),
        "## How it was chosen",
        _listing(patch.info, "Its maker does not say."),
        "## What it does",
        _listing(effect or {}, "No effect is stated: measure it before you rely on it."),
        "## What it costs",
        _listing(cost or {}, "No cost is stated."),
        "## Licence",
        _licence(license),
        _licences(patch, patch.host or {}),
    ]
    if patch.versions:
        versions = ", ".join(f"{name} {version}" for name, version in patch.versions.items())
        parts.append(f"Written with {_plain(versions)}.")
    return "\n\n".join(parts) + "\n"


def baked_card(patch: Patch, host: Host) -> str:
    """Write the model card of a host that a patch was folded into, in Markdown with metadata.

    The licences of the host and of the dictionaries stand in it; which one the edited weights may
    be given under it does not say.
    """
    name = host.hub_name or host.kind.__name__
    metadata: dict[str, Any] = {"tags": _TAGS}
    if host.hub_name:
        metadata |= {"base_model": host.hub_name, "base_model_relation": "finetune"}
    known = {**(patch.host or {}), "name": host.hub_name, LICENCE: host.licence}
    parts = [
        _front(metadata),
        f"# {_plain(patch.info.get('title') or f'{name}, edited')}",
        f"The weights of {_plain(name)} with an edit of its features by `vlm-edit` in them: it "
        "needs no patch and no hook.",
        "## What was edited",
        _table(_COLUMNS, [row for binding in patch.bindings for row in binding_rows(binding)]),
        "## How it was chosen",
        _listing(patch.info, "Its maker does not say."),
        "## Licences",
        "The weights are the host's, changed along directions of the dictionary; the licences of "
        "both apply.\n\n" + _licences(patch, known),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(patch: Patch, license: str | None) -> str:
    """Return the front matter of a patch's card."""
    metadata: dict[str, Any] = {"library_name": "vlm-edit", "tags": _TAGS}
    if license is not None:
        metadata["license"] = license
    base = (patch.host or {}).get("name")
    if base:
        metadata |= {"base_model": base, "base_model_relation": "adapter"}
    return _front(metadata)


def _front(metadata: Mapping[str, Any]) -> str:
    """Write metadata; JSON's strings and lists are YAML's."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()]
    return "\n".join(["---", *lines, "---"])


def _untold(host: Mapping[str, Any] | None) -> str:
    """Say where a patch has no samples of its host's weights, and what follows."""
    blind = {} if host is None else unguarded(host)
    if not blind:
        return ""
    sites = ", ".join(f"`{_plain(site)}` ({_plain(why)})" for site, why in blind.items())
    return f" Of these no weights are known, and another host is not told from its own: {sites}."


def _use(repository: str, file: str) -> str:
    only = "" if file == "patch.safetensors" else f', file="{file}"'
    return (
        "```python\nfrom vlm_edit import load_patch\n\n"
        f'patch = load_patch("{repository}"{only})\n'
        "with patch.attach(model) as attached:\n"
        "    ...  # the model as ever, edited\n"
        "print(attached.report())\n```"
    )


def binding_rows(binding: Binding) -> list[tuple[str, ...]]:
    """Return site, tokens, rule, features and their number, of each of an edit's rules."""
    extra = more_text(binding)
    tokens = str(binding.selection) + (f", {extra}" if extra else "")
    return [
        (
            binding.site,
            tokens,
            rule_text(rule),
            features_text(rule.features),
            str(len(rule.features)),
        )
        for rule in binding.splice.rules
    ]


def _distinct(bindings: Sequence[Binding]) -> list[Binding]:
    """Return the first binding of each site and dictionary."""
    return list({(b.site, dictionary_text(b)): b for b in reversed(bindings)}.values())[::-1]


def _listing(values: Mapping[str, Any], otherwise: str) -> str:
    return "\n".join(f"- {_plain(k)}: {_plain(v)}" for k, v in values.items()) or otherwise


def _licence(license: str | None) -> str:
    stated = "Not stated." if license is None else f"{_plain(license)}."
    return (
        f"{stated} The file holds weights of the dictionary it was cut from, whose licence applies "
        "to them."
    )


def _licences(patch: Patch, host: Mapping[str, Any]) -> str:
    """List the licences of a patch's host and its dictionaries, as far as they are known."""
    name = host.get("name")
    lines = [f"- the host{f', {_plain(name)}' if name else ''}: {_known(host.get(LICENCE))}"]
    for binding in _distinct(patch.bindings):
        info = (binding.told() or {"info": {}})["info"]
        lines.append(f"- the dictionary of `{binding.site}`: {_known(info.get(LICENCE))}")
    return "\n".join(lines)


def _known(licence: object) -> str:
    return _plain(licence) if licence else UNKNOWN


def _title(repository: str, file: str) -> str:
    return repository if file == "patch.safetensors" else f"{repository}: {file}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_plain(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: object) -> str:
    """Return a text of one line that is nothing but text in Markdown."""
    text = line(value)
    return "".join(f"\\{c}" if c in "\\`*[]<|$" else c for c in text)


def _short(value: object) -> str:
    """Write a value of a rule; of many numbers only how many."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 4:
        return f"of {len(value)} numbers"
    return str(value)
