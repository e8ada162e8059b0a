"""The SAELens format, versions 3 to 6: ``cfg.json`` beside ``sae_weights.safetensors``.

What we write is of version 6, see ``saving``. Its weights say in their header what was folded into
them, and which saving they are of. Earlier we left centers unfolded, in ``centers.safetensors``: a
vector per stream that is subtracted after the norm, which SAELens does not know.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from vlm_edit.dictionaries.formats.format import Format, Hints, Stored
from vlm_edit.dictionaries.formats.gated import gate_of
from vlm_edit.dictionaries.formats.places import one_layer, places_of, skip_of
from vlm_edit.dictionaries.formats.source import (
    Source,
    expect_flag,
    expect_matrix,
    expect_names,
    expect_scalar,
    expect_vector,
    parse_json,
    read_header,
)
from vlm_edit.dictionaries.formats.strangers import JACOBIAN, described
from vlm_edit.dictionaries.paired import STREAMS, PairedDictionary
from vlm_edit.dictionaries.stored import Rows, StoredDictionary, row_lengths
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName, VlmEditError
from vlm_edit.ground.files import HEADER

CONFIG, WEIGHTS, CENTERS = "cfg.json", "sae_weights.safetensors", "centers.safetensors"
SCALER = "activation_scaler.json"

# In the weights' header, in one text, since safetensors keeps no order of several: which saving
# they are of, as cfg.json says too; what they are the half of; and what was folded into the two
# biases that the mark is of.
SAVING, PART, FOLDED, MARK = "vlm_edit_saving", "part", "folded", "mark"
CENTER = "center."
# What a transcoder that was saved here reads and writes, in our words.
READS, WRITES = "vlm_edit_reads", "vlm_edit_writes"

# Those that a dictionary is saved as; the others below are read only.
ARCHITECTURES: dict[str, str] = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "topk_abs",
}
# Checkpoints of a training under way keep BatchTopK's one threshold by itself.
_READ: dict[str, str] = {
    **ARCHITECTURES,
    "gated": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
}
_TENSORS = {
    "jumprelu": {"threshold"},
    "gated": {"b_gate", "b_mag", "r_mag"},
    "batchtopk": {"topk_threshold"},
    "matryoshka_batchtopk": {"topk_threshold"},
}
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
_RESCALED = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
_NOT_DICTIONARIES = {
    "temporal": "its codes depend on the tokens before",
    "matching_pursuit": "its codes are searched for, one feature after another",
}
# Those that read one place and write another, by what their encoder is.
_TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
# What of a transcoder's config may name its layer.
_LAYERED = (
    *("hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out"),
    *("hook_layer", "hook_layer_out"),
)
NORMS: dict[str, str] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
    "expected_average_only_in": "none",
}
VERSION = "sae_lens_version"
_LAYER = re.compile(r"\.(\d+)(?:\.|$)")


def recognises(source: Source) -> bool:
    """Say whether a source is a folder in this format, or holds two that were saved together."""
    return source.has(CONFIG, WEIGHTS) or bool(halves(source.path))


def halves(root: Path) -> dict[Path, dict[str, str]]:
    """Return folders below one that are halves of what was saved there, with weights' headers."""
    headers = {root / stream: _told(root / stream / WEIGHTS) for stream in STREAMS}
    return {folder: header for folder, header in headers.items() if PART in header}


def mark(b_enc: Tensor, b_dec: Tensor) -> str:
    """Return what tells biases as they lie in a file from others."""
    hasher = hashlib.blake2b(digest_size=16)
    for bias in (b_enc, b_dec):
        hasher.update(bias.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def read(source: Source, hints: Hints) -> Stored:
    """Read a folder in this format, or the two in it that were saved together.

    Raises:
        VlmEditError: A file is missing or not valid, an architecture or normalisation that is
            not supported, tensors that do not fit the config, or files of different savings.
    """
    del hints
    headers = halves(source.path).values()
    if source.has(CONFIG, WEIGHTS) or not headers:
        return _read_folder(source)
    savings = {(header[PART], header.get(SAVING)) for header in headers}
    if len(headers) < len(STREAMS) or len(savings) > 1:
        raise BadArgument(
            f"{source.path}: the folders {' and '.join(STREAMS)} in it are not of one saving: save "
            "the dictionary anew, or take one of them alone by file="
        )
    image, text = (_read_folder(Source(source.file(stream))) for stream in STREAMS)
    if isinstance(image, Transcoder) or isinstance(text, Transcoder):
        raise BadArgument(f"{source.path}: transcoders of two streams are not supported")
    # Of a shared dictionary either says all: only what SAELens makes of the two differs.
    return image if savings.pop()[0] == "shared" else PairedDictionary(image, text)


def _read_folder(source: Source) -> StoredDictionary | Transcoder[StoredDictionary]:
    path, config = source.path, source.json(CONFIG)
    header = _told(source.file(WEIGHTS))
    _expect_one_saving(path, config, header)
    tensors = source.tensors(WEIGHTS)
    if set(tensors) >= JACOBIAN:
        raise UnknownName(f"{path} {described(tensors)}")
    architecture, k, soft_cap = _read_architecture(path, config)
    named = str(config.get("architecture"))
    skip = _read_skip(path, tensors, named)
    _expect_tensors(path, tensors, architecture)
    weight, decoder = (expect_matrix(path, tensors, name) for name in ("W_enc", "W_dec"))
    decoder_bias = expect_vector(path, tensors, "b_dec")
    gain, bias, threshold = _read_encoder(path, tensors, architecture)
    factor = _read_factor(path, config, tensors)
    if architecture in _RESCALED and expect_flag(path, config, "rescale_acts_by_decoder_norm"):
        gain, bias, factor = _rescaled(path, decoder, bias, factor)
    norm, scale = _read_norm(source, config)
    stored = StoredDictionary(
        weight=Rows(weight.T, "W_enc", gain),
        bias=bias,
        decoder=Rows(decoder, "W_dec", factor),
        decoder_bias=decoder_bias,
        activation=_READ[architecture],
        threshold=threshold,
        k=k,
        subtract=decoder_bias if expect_flag(path, config, "apply_b_dec_to_input", True) else None,
        norm=norm,
        centers=_read_centers(source),
        soft_cap=soft_cap,
        info=_read_info(config),
    )
    _expect_sizes(path, config, stored)
    stored = _unfolded(path, stored, header, tensors)
    if named in _TRANSCODERS:
        return _transcoder(path, config, stored, skip, scale)
    return stored if scale is None else _of_unscaled(stored, scale)


def _rescaled(
    path: Path, decoder: Tensor, bias: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gain, bias and factor of features that compete by their decoder rows' norms too."""
    gain = row_lengths(decoder).clamp_min(1e-8)
    factor = torch.ones_like(gain) if factor is None else factor
    if not bias.shape == factor.shape == gain.shape:
        raise DamagedFile(
            f"{path}: W_dec is of {len(gain)} features, b_enc of {len(bias)} and the factor of "
            f"fine-tuning of {len(factor)}: the file is damaged"
        )
    return gain, bias * gain, factor / gain


def _expect_sizes(path: Path, config: Mapping[str, Any], stored: StoredDictionary) -> None:
    sizes = (config.get("d_in"), config.get("d_sae"))
    if sizes != (stored.width, stored.n_features):
        raise DamagedFile(
            f"{path}: cfg.json states d_in, d_sae = {sizes}, but W_enc is "
            f"{(stored.width, stored.n_features)}: the two files are not of one dictionary"
        )


def _read_skip(path: Path, tensors: dict[str, Tensor], architecture: str) -> Tensor | None:
    """Take what a skip transcoder adds of its input, [d_in, d_out], from its tensors."""
    if architecture not in _TRANSCODERS or "skip" not in architecture:
        return None
    if "W_skip" not in tensors:
        raise DamagedFile(f"{path}: a {architecture} needs W_skip, which {WEIGHTS} lacks")
    skip = skip_of(path, tensors, "W_skip")
    del tensors["W_skip"]
    return skip


def _transcoder(
    path: Path,
    config: Mapping[str, Any],
    stored: StoredDictionary,
    skip: Tensor | None,
    scale: float | None,
) -> Transcoder[StoredDictionary]:
    """Return what reads one place and writes another, which subtracts no bias of what it writes."""
    if scale is not None or stored.subtract is not None or stored.norm != "none":
        raise BadArgument(
            f"{path}: a transcoder that norms or scales its input, or subtracts its output's bias "
            "from it, is not supported"
        )
    d_out = config.get("d_out", stored.width)
    if d_out != stored.width:
        raise DamagedFile(f"{path}: cfg.json states d_out = {d_out}, W_dec has {stored.width}")
    metadata = config.get("metadata")
    told = {**config, **(metadata if isinstance(metadata, dict) else {})}
    reads, writes = places_of(told)
    if isinstance(told.get(READS), str) and isinstance(told.get(WRITES), str):
        reads, writes = told[READS], told[WRITES]
    layer = one_layer(path, {name: told.get(name) for name in _LAYERED})
    info = stored.info if layer is None else {"layer": layer, **stored.info}
    return Transcoder(replace(stored, info=info), reads, writes, skip=skip)


FORMAT = Format("saelens", f"{CONFIG} and {WEIGHTS}", recognises, read)


def _told(weights: Path) -> dict[str, str]:
    """Read what weights that were saved here say of themselves."""
    text = read_header(weights).get(HEADER)
    if text is None:
        return {}
    try:
        statements = parse_json(text, weights)
    except VlmEditError:
        return {SAVING: ""}  # of none
    return {name: value for name, value in statements.items() if isinstance(value, str)}


def _expect_one_saving(path: Path, config: dict[str, Any], header: Mapping[str, str]) -> None:
    """Refuse weights of one saving beside the config of another: that was stopped half-way."""
    metadata = config.get("metadata")
    saving = metadata.get(SAVING) if isinstance(metadata, dict) else None
    if SAVING in header and header[SAVING] != saving:
        raise DamagedFile(
            f"{path}: {CONFIG} and {WEIGHTS} are not of one saving, which was stopped half-way, or "
            "one of them is another's: save the dictionary anew"
        )


def _unfolded(
    path: Path, stored: StoredDictionary, header: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> StoredDictionary:
    """Return the dictionary from before ``save_saelens`` folded what SAELens has no place for."""
    if FOLDED not in header:
        return stored
    if header.get(MARK) != mark(tensors["b_enc"], tensors["b_dec"]):
        raise DamagedFile(
            f"{path}: b_enc or b_dec of {WEIGHTS} are others than those that its header tells of: "
            "write the file without that header (its metadata)"
        )
    try:
        originals = load(base64.b64decode(header[FOLDED], validate=True))
    except (ValueError, SafetensorError, RuntimeError) as error:
        raise DamagedFile(f"{path}: the header of {WEIGHTS} is damaged: {error}") from error
    centers = sorted(name for name in originals if name.startswith(CENTER))
    expect_names(path, originals, {"b_enc", "b_dec"}, {"subtract", *centers})
    vectors = {name: expect_vector(path, originals, name) for name in originals}
    return replace(
        stored,
        bias=vectors["b_enc"],
        decoder_bias=vectors["b_dec"],
        subtract=vectors.get("subtract"),
        centers={name.removeprefix(CENTER): vectors[name] for name in centers},
    )


def _read_architecture(path: Path, config: dict[str, Any]) -> tuple[str, int | None, float | None]:
    """Return its name, k where features compete, and the soft cap that ``tanh-relu`` is."""
    old = _is_old(config)
    name = config.get("architecture", "standard" if old else None)
    if isinstance(name, str) and name in _NOT_DICTIONARIES:
        raise UnknownName(
            f"{path}: architecture {name!r} is not supported: {_NOT_DICTIONARIES[name]}"
        )
    if isinstance(name, str) and name in _TRANSCODERS and not old:
        name = _TRANSCODERS[name]
    if not isinstance(name, str) or name not in _READ:
        raise UnknownName(
            f"{path}: architecture {name!r} is not supported; supported: {', '.join(_READ)}"
        )
    function = config.get("activation_fn_str", config.get("activation_fn"))
    if function is None or (not old and function in ("relu", name)):
        return name, _read_k(path, config) if "topk" in _READ[name] else None, None
    if old and function == "topk" and name in ("standard", "topk"):
        arguments = config.get("activation_fn_kwargs")
        if not isinstance(arguments, dict) or set(arguments) != {"k"}:
            raise DamagedFile(
                f"{path}: activation_fn_kwargs must have k alone, got {str(arguments)[:60]!r}"
            )
        return "topk", _read_k(path, arguments), None
    if old and function in ("relu", "tanh-relu") and name in ("standard", "jumprelu", "gated"):
        return name, None, 1.0 if function == "tanh-relu" else None
    raise UnknownName(
        f"{path}: architecture {name!r} with activation_fn {str(function)[:60]!r} is not "
        "supported; supported: relu, tanh-relu, and topk with the standard architecture"
    )


def _is_old(config: dict[str, Any]) -> bool:
    """Say whether SAELens before version 6 wrote it: those did not say their version."""
    metadata = config.get("metadata")
    version = config.get(VERSION) or (metadata if isinstance(metadata, dict) else {}).get(VERSION)
    return not re.match(r"([6-9]|[1-9]\d)(\D|$)", str(version))


def _read_k(path: Path, config: dict[str, Any]) -> int:
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool):
        raise BadArgument(f"{path}: a topk dictionary needs a whole number k, got {k!r}")
    return k


def _expect_tensors(path: Path, tensors: dict[str, Tensor], architecture: str) -> None:
    needed = {"W_enc", "W_dec", "b_dec", *_TENSORS.get(architecture, set())}
    if architecture != "gated":
        needed.add("b_enc")
    if architecture == "jumprelu" and "log_threshold" in tensors:  # of a training before version 6
        needed = needed - {"threshold"} | {"log_threshold"}
    expect_names(path, tensors, needed, set(_FACTORS))


def _read_encoder(
    path: Path, tensors: dict[str, Tensor], architecture: str
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Return gain, bias and threshold, [m] each."""
    if architecture == "gated":
        return gate_of(path, tensors)
    bias = expect_vector(path, tensors, "b_enc")
    if "topk_threshold" in tensors:
        threshold = expect_scalar(path, tensors, "topk_threshold")
        if threshold <= 0:
            raise BadArgument(
                f"{path}: topk_threshold is {threshold}: this BatchTopK checkpoint was saved "
                "before its first training step, and would be plain relu; take a later one"
            )
        return None, bias, torch.full_like(bias, threshold)
    if "log_threshold" in tensors:
        return None, bias, expect_vector(path, tensors, "log_threshold").exp()
    if architecture == "jumprelu":
        return None, bias, expect_vector(path, tensors, "threshold")
    return None, bias, None


def _read_factor(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor | None:
    """Return [m] that versions 3 to 5 multiplied codes by before decoding, from fine-tuning."""
    names = [name for name in _FACTORS if name in tensors]
    stated = bool(config.get("finetuning_scaling_factor"))
    if len(names) > 1:
        raise DamagedFile(f"{path}: has both {names[0]} and {names[1]}; remove the wrong one")
    if not names and stated:
        raise DamagedFile(
            f"{path}: cfg.json states a finetuning_scaling_factor and {WEIGHTS} has none; if it "
            "was never fine-tuned, set it to false in cfg.json"
        )
    factor = expect_vector(path, tensors, names[0]) if names else None
    if factor is None or torch.allclose(factor, torch.ones_like(factor)):
        return None  # early files of version 3 all have one, of ones
    if not stated:
        raise DamagedFile(
            f"{path}: has {names[0]}, and cfg.json says finetuning_scaling_factor "
            f"{config.get('finetuning_scaling_factor')!r}: set it to true if it is to be used"
        )
    return factor


def _read_norm(source: Source, config: dict[str, Any]) -> tuple[str, float | None]:
    """Return the norm, and the number that activations were scaled by where it is not folded in."""
    path, value = source.path, config.get("normalize_activations")
    if value is None or isinstance(value, bool):  # version 3
        value = "expected_average_only_in" if value else "none"
    if not isinstance(value, str) or value not in NORMS:
        raise BadArgument(
            f"{path}: normalize_activations {value!r} is not supported; "
            f"supported: {', '.join(NORMS)}; a scale or a whitening of a training under way is "
            "folded into the weights when SAELens ends it: take the final checkpoint"
        )
    reshape = config.get("reshape_activations")
    # SAELens joins the heads of hook_z to one axis; at a site here they are one axis already.
    if reshape not in ("none", "hook_z", None):
        raise UnknownName(f"{path}: reshape_activations {reshape!r} is not supported")
    if value != "expected_average_only_in":
        return NORMS[value], None
    scaler = source.json(SCALER) if source.has(SCALER) else {}
    if scaler.get("scaling_factor") is None:
        raise DamagedFile(
            f"{path}: normalize_activations 'expected_average_only_in' means that activations were "
            "multiplied by one number in training, and that it is not folded into these weights. "
            "Take SAELens' final checkpoint; or write the number, which is sqrt(d_in) over the "
            f'mean norm of the activations, beside it: {SCALER} with {{"scaling_factor": ...}}'
        )
    scale = expect_scalar(source.file(SCALER), scaler, "scaling_factor")
    if not 1e-12 < scale < 1e12:
        raise BadArgument(f"{path}: scaling_factor is {scale}; it must be a plausible scale")
    return "none", scale


def _of_unscaled(stored: StoredDictionary, scale: float) -> StoredDictionary:
    """Return the dictionary whose codes of x are this one's of ``scale * x``."""

    def times(rows: Rows, factor: float) -> Rows:
        gain = torch.ones(len(rows.tensor)) if rows.gain is None else rows.gain
        return replace(rows, gain=gain * factor)

    return replace(
        stored,
        weight=times(stored.weight, scale),
        subtract=None if stored.subtract is None else stored.subtract / scale,
        decoder=times(stored.decoder, 1 / scale),
        decoder_bias=stored.decoder_bias / scale,
    )


def _read_info(config: dict[str, Any]) -> dict[str, str]:
    """Return what it was trained on; before version 6 beside the rest, now below ``metadata``."""
    metadata = config.get("metadata")
    values = {
        "model_name": config.get("model_name"),
        "hook_name": config.get("hook_name", config.get("hook_point")),
        "layer": config.get("hook_layer", config.get("hook_point_layer")),
        "sae_lens_training_version": config.get("sae_lens_training_version"),
        **(metadata if isinstance(metadata, dict) else {}),
    }
    if isinstance(values["layer"], int) and not isinstance(values["layer"], bool):
        values["layer"] = str(values["layer"])
    ours = (VERSION, SAVING, READS, WRITES)
    info = {k: v for k, v in values.items() if isinstance(v, str) and k not in ours}
    hook = _LAYER.search(info.get("hook_name", ""))
    return info if hook is None else {"layer": hook[1], **info}


def _read_centers(source: Source) -> dict[str, Tensor]:
    if not source.has(CENTERS):
        return {}
    tensors = source.tensors(CENTERS)
    return {name: expect_vector(source.file(CENTERS), tensors, name) for name in tensors}
