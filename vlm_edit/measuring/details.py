"""What a host and its processor are, in enough detail to name what has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vlm_edit.host import Host, host_checksums

Details = dict[str, dict[str, str]]

# Where it came from and who wrote it; neither changes what is computed.
_HARMLESS = {
    *("name_or_path", "_name_or_path", "processor_class", "transformers_version", "auto_map"),
    *("_commit_hash", "is_local", "local_files_only", "token", "cache_dir", "chat_template_file"),
    *("vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file", "tokenizer_object"),
    *("architectures", "added_tokens_decoder", "dtype", "torch_dtype", "revision", "subfolder"),
}
_PARTS = ("tokenizer", "image_processor", "video_processor", "feature_extractor")
_OF_TOKENIZERS = (
    *("padding_side", "truncation_side", "model_max_length", "model_input_names"),
    *("special_tokens_map", "split_special_tokens", "add_bos_token", "add_eos_token"),
)


def details(host: Host) -> Details:
    """List what must be the same for a measurement to go on, by kind and name, JSON-able.

    Every tensor of the host has its checksum, which says ``not read`` where it lies where it
    cannot be looked at; its config and the processor's settings are told one by one, and of a
    vocabulary and its rules a digest. A processor of another make is known by its class only.

    Args:
        host: With its processor.
    """
    tensors, reasons = host_checksums(host.root)
    config: dict[str, str] = _flat(_dict_of(getattr(host.root, "config", None)))
    for name, adapter in (getattr(host.model, "peft_config", None) or {}).items():
        config |= _flat(_dict_of(adapter), f"peft.{name}.")
    processor = _processor(host.processor)
    prompt = host.prompt
    if callable(prompt):
        processor["prepare"] = f"{prompt.__module__}.{getattr(prompt, '__qualname__', '?')}"
    return {
        "weights": tensors | {name: f"not read: {why}" for name, why in reasons.items()},
        "config": config,
        "processor": processor,
    }


def summed(details: Details) -> dict[str, Any]:
    """Digest each kind of details, and say what of the weights was not read."""
    digests: dict[str, Any] = {kind: _digest(values) for kind, values in details.items()}
    reasons = {n: why for n, why in details["weights"].items() if why.startswith("not read")}
    if reasons:
        name, why = next(iter(reasons.items()))
        digests["not_read"] = f"{len(reasons)} tensors of the host, the first {name} ({why[10:]})"
    return digests


def _processor(processor: Any) -> dict[str, str]:
    parts = {name: getattr(processor, name, None) for name in _PARTS}
    settings: dict[str, str] = {}
    for name, part in parts.items():
        if part is not None:
            settings |= _part(part, name)
    own = {k: v for k, v in _dict_of(processor).items() if k not in _PARTS}
    if not settings:  # a tokenizer or an image processor by itself, or none of transformers'
        return _part(processor, "processor")
    return settings | _flat(own, "processor.") | _template(processor, "processor")


def _part(part: Any, name: str) -> dict[str, str]:
    kind = {f"{name}.class": f"{type(part).__module__}.{type(part).__qualname__}"}
    if hasattr(part, "get_vocab"):
        return kind | _tokenizer(part, name) | _template(part, name)
    return kind | _flat(_dict_of(part), f"{name}.")


def _tokenizer(tokenizer: Any, name: str) -> dict[str, str]:
    """Describe a tokenizer by its attributes, and a digest of all it knows."""
    attributes = {key: getattr(tokenizer, key, None) for key in _OF_TOKENIZERS}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # Truncation and padding are those of a call.
        content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
    else:
        content = {
            "vocabulary": tokenizer.get_vocab(),
            "pieces": _pieces(tokenizer),
            "settings": _flat(getattr(tokenizer, "init_kwargs", {})),
        }
    return {**_flat(attributes, f"{name}."), f"{name}.vocabulary": _digest(content)}


def _pieces(tokenizer: Any) -> str | None:
    """Digest scores and rules of a SentencePiece model, which its vocabulary does not show."""
    model = getattr(tokenizer, "sp_model", None)
    if model is None:
        return None
    return hashlib.blake2b(model.serialized_model_proto(), digest_size=8).hexdigest()


def _template(part: Any, name: str) -> dict[str, str]:
    template = getattr(part, "chat_template", None)
    return {} if template is None else {f"{name}.chat_template": _digest(template)}


def _dict_of(thing: Any) -> dict[str, Any]:
    method = getattr(thing, "to_dict", None)
    if not callable(method):
        return {}
    content = method()
    return dict(content) if isinstance(content, Mapping) else {}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the leaves of nested mappings as text, by their paths."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if key in _HARMLESS:
            continue
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = str(list(value) if isinstance(value, tuple) else value)
    return leaves


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
