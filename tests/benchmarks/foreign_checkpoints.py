"""Checkpoints that other libraries write of random dictionaries, with those libraries' answers.

For ``read_by_us``, in the environment that ``.ci/peers`` makes. A library's own class is made, its
parameters are drawn at random, it is saved by the library's own means, and what it then computes of
random activations, in float32, is kept beside. Nothing of ``golden`` is used.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What a library raises that does not make, or cannot run, what it is asked for: that is no case.
UNMADE = (ValueError, AssertionError, NotImplementedError, TypeError, AttributeError, RuntimeError)
SIZES = {"wide": (6, 16), "square": (8, 8)}


@dataclass(frozen=True, eq=False)
class Case:
    """A checkpoint, and what its library makes of it.

    Attributes:
        name: Of what was written.
        path: What to load.
        x: [n, d] activations.
        codes: [n, m], the library's.
        output: [n, d], the library's reconstruction, or prediction of a transcoder.
        options: For ``load_dictionary``.
    """

    name: str
    path: Path
    x: Tensor
    codes: Tensor
    output: Tensor
    options: dict[str, Any] = field(default_factory=dict)


def activations(width: int, n: int = 11) -> Tensor:
    """Activations that are neither centred nor of one length."""
    return 2.5 * torch.randn(n, width) + torch.linspace(-2, 3, width)


@torch.no_grad()
def drawn(model: Any) -> Any:
    """The model with every parameter drawn anew, thresholds and factors above 0."""
    for name, value in model.named_parameters():
        value.copy_(torch.randn_like(value))
        if name in ("threshold", "finetuning_scaling_factor"):
            value.abs_().add_(0.05)
        elif name.startswith("log_") or name == "thresholds":
            value.mul_(0.3)
        elif name.endswith("W_dec"):
            value.mul_(torch.rand(len(value), 1) + 0.3)
    return model


def answered(sae: Any, x: Tensor, heads: int = 0) -> tuple[Tensor, Tensor]:
    """Codes and output of a model of sae-lens, in float32; of a transcoder its prediction."""
    sae = sae.float().eval()
    sae.dtype = torch.float32
    given = x.unflatten(-1, (heads, -1)) if heads else x
    codes = sae.encode(given)
    skips = "skip" in str(getattr(type(sae.cfg), "architecture", lambda: "")())
    output = sae(given) if skips else sae.decode(codes)
    return codes, output.reshape(len(x), -1)


def sae_lens_6(root: Path) -> Iterator[Case]:
    """All architectures for use, and all kinds under way and at their end."""
    yield from _lens_for_use(root)
    yield from _lens_trained(root)


def _lens_classes(stems: tuple[str, ...], kind: str) -> dict[str, tuple[Any, Any]]:
    library = importlib.import_module("sae_lens.saes")
    return {
        stem: (getattr(library, f"{stem}{kind}"), getattr(library, f"{stem}{kind}Config"))
        for stem in stems
    }


def _lens_for_use(root: Path) -> Iterator[Case]:
    from sae_lens import SAE

    saes = ("Standard", "JumpReLU", "Gated", "TopK", "AbsTopK", "MatchingPursuit", "Temporal")
    coders = ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder")
    norms = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in",
             "covariance_whitening")  # fmt: skip
    classes = _lens_classes(saes, "SAE") | _lens_classes(coders, "")
    options = product(classes, norms, (True, False), ("none", "hook_z"), ("float32", "bfloat16"))
    for number, (stem, norm, applies, reshape, dtype) in enumerate(options):
        told = {"d_in": 8, "d_sae": 16 if number % 3 else 8, "dtype": dtype,
                "normalize_activations": norm, "apply_b_dec_to_input": applies,
                "reshape_activations": reshape}  # fmt: skip
        told |= {"k": 3} if stem.endswith("TopK") else {}
        told |= {"d_out": 8} if stem in coders else {}
        if stem == "Temporal":
            told |= {"n_heads": 2, "bottleneck_factor": 1, "kval_topk": 3}
        sae_class, config = classes[stem]
        heads = 2 if reshape == "hook_z" and stem not in coders else 0
        name = f"{stem}-{norm}-{applies}-{reshape}-{dtype}"
        with contextlib.suppress(*UNMADE):
            sae = drawn(sae_class(config(**told)))
            sae.save_model(str(root / name))
            x = activations(8)
            loaded = SAE.load_from_disk(str(root / name))
            yield Case(name, root / name, x, *_lens_answer(loaded, stem, x, heads))


def _lens_answer(sae: Any, stem: str, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    if stem == "Temporal":  # codes of a token hang on those before: there is one answer, refused
        return torch.zeros(1, 1), torch.zeros(1, 1)
    return answered(sae, x, heads)


def _lens_trained(root: Path) -> Iterator[Case]:
    from sae_lens import SAE, SAETrainer
    from sae_lens.config import SAETrainerConfig

    stems = ("Standard", "JumpReLU", "Gated", "TopK", "AbsTopK", "BatchTopK",
             "MatryoshkaBatchTopK", "MatchingPursuit")  # fmt: skip
    classes = _lens_classes(stems, "TrainingSAE")
    for stem, scaled in product(stems, (False, True)):
        told: dict[str, Any] = {"d_in": 8, "d_sae": 16}
        told |= {"normalize_activations": "expected_average_only_in"} if scaled else {}
        told |= {"k": 3} if "TopK" in stem else {}
        told |= {"matryoshka_widths": [4, 16]} if stem.startswith("Mat") and "k" in told else {}
        sae = drawn(classes[stem][0](classes[stem][1](**told)))
        data = iter(lambda: activations(8, 64), None)
        trainer = SAETrainer(
            SAETrainerConfig(64 * 60, 64, lr_end=0.0, n_batches_for_norm_estimate=5), sae, data
        )
        name = f"{stem}-training-{scaled}"
        trainer.activation_scaler.scaling_factor = 0.4 if scaled else None
        with torch.enable_grad():
            for _ in range(40):
                trainer.step(next(data))
        trainer.save_checkpoint("under-way", base_path=root / name)
        (root / name / "under-way" / "trainer_state.pt").unlink()
        x, scale = activations(8), 0.4 if scaled else 1.0
        sae.save_inference_model(str(root / name / "now"))
        codes, output = answered(SAE.load_from_disk(str(root / name / "now")), x * scale)
        yield Case(f"{name}-under-way", root / name / "under-way", x, codes, output / scale)
        trainer.cfg.total_training_samples = trainer.n_training_samples + 64 * 20
        with torch.enable_grad():
            trainer.fit()
        sae.save_inference_model(str(root / name / "end"))
        loaded = SAE.load_from_disk(str(root / name / "end"))
        yield Case(f"{name}-end", root / name / "end", x, *answered(loaded, x))


def sae_lens_old(root: Path, folder: Path, version: str) -> Iterator[Case]:
    """Every option that versions 3 to 5 have; of an unpacked wheel, without its ``__init__``."""
    package = types.ModuleType("sae_lens")
    package.__path__ = [str(folder / "sae_lens")]
    package.__version__ = version  # type: ignore[attr-defined]
    package.logger = logging.getLogger("sae_lens")  # type: ignore[attr-defined]
    sys.modules["sae_lens"] = package
    library = importlib.import_module("sae_lens.sae")
    plain = {
        "d_in": 6, "context_size": 8, "model_name": "host", "hook_layer": 3,
        "hook_name": "blocks.3.hook_resid_post", "hook_head_index": None, "prepend_bos": True,
        "dataset_path": "none", "dataset_trust_remote_code": True, "device": "cpu",
        "sae_lens_training_version": version,
    }  # fmt: skip
    names = ("standard", "gated", "jumprelu") + (() if version.startswith("3") else ("topk",))
    norms = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
    options = product(
        names, ("relu", "tanh-relu", "topk"), norms, (True, False), ("float32", "bfloat16"),
        (False, True),
    )  # fmt: skip
    for number, (name, function, norm, applies, dtype, tuned) in enumerate(options):
        told = {"architecture": name, "activation_fn_str": function, "normalize_activations": norm,
                "apply_b_dec_to_input": applies, "dtype": dtype, "d_sae": 12 if number % 3 else 6,
                "finetuning_scaling_factor": tuned}  # fmt: skip
        told |= {"activation_fn_kwargs": {"k": 3}} if function == "topk" else {}
        case = "-".join(map(str, (name, function, norm, applies, dtype, tuned)))
        with contextlib.suppress(*UNMADE):
            sae = drawn(library.SAE(library.SAEConfig(**plain, **told)))
            sae.save_model(str(root / case))
            x = activations(6)
            yield Case(case, root / case, x, *answered(sae, x))


def sparsify(root: Path) -> Iterator[Case]:
    """Every option of eai-sparsify, transcoders and skips among them."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # which wants a card
    from sparsify import SparseCoder, SparseCoderConfig

    flags = (False, True)
    dtypes = (torch.float32, torch.bfloat16)
    options = product(("topk", "groupmax"), flags, flags, flags, SIZES, dtypes, (1, 4))
    for activation, unit, transcode, skip, size, dtype, k in options:
        d, m = SIZES[size]
        config = SparseCoderConfig(
            activation=activation, normalize_decoder=unit, num_latents=m, k=k,
            transcode=transcode, skip_connection=skip,
        )  # fmt: skip
        sae = drawn(SparseCoder(d, config, dtype=dtype))
        if unit:
            sae.set_decoder_norm_to_unit_norm()
        name = f"{activation}-{unit}-{transcode}-{skip}-{size}-{str(dtype)[6:]}-{k}"
        sae.save_to_disk(root / name / "layers.3")
        sae, x = sae.float(), activations(d)
        values, places, _ = sae.encode(x)
        codes = torch.zeros(len(x), m).scatter(-1, places, values)
        output = sae.decode(values, places)
        if skip:
            output = output + x @ sae.W_skip.mT
        yield Case(name, root / name / "layers.3", x, codes, output)


# Module, trainer, dictionary where it is not the trainer's default.
_TRAINERS = (
    ("standard", "StandardTrainer", ""),
    ("standard", "StandardTrainerAprilUpdate", "AutoEncoderNew"),
    ("p_anneal", "PAnnealTrainer", ""),
    ("gated_anneal", "GatedAnnealTrainer", ""),
    ("gdm", "GatedSAETrainer", ""),
    ("jumprelu", "JumpReluTrainer", ""),
    ("top_k", "TopKTrainer", ""),
    ("batch_top_k", "BatchTopKTrainer", ""),
    ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", ""),
)


def _learning(module: str, name: str, other: str, size: tuple[int, int]) -> Any:
    """A trainer of dictionary-learning after some steps."""
    library = importlib.import_module(f"dictionary_learning.trainers.{module}")
    told: dict[str, Any] = {
        "steps": 40, "activation_dim": size[0], "dict_size": size[1], "layer": 1,
        "lm_name": "host", "device": "cpu", "seed": 3,
    }  # fmt: skip
    if "top_k" in module:
        told |= {"k": 3, "threshold_start_step": -1, "threshold_beta": 0.9, "warmup_steps": 2}
        told |= {"group_fractions": [0.25, 0.75]} if "matryoshka" in module else {}
    else:
        told |= {"warmup_steps": 2, "sparsity_warmup_steps": 2}
    if "anneal" in module:
        told["anneal_start"] = 10
    if other:
        told["dict_class"] = getattr(
            importlib.import_module("dictionary_learning.dictionary"), other
        )
    trainer = getattr(library, name)(**told)
    for step in range(30):
        trainer.update(step, activations(size[0], 64) / 6)
    return trainer


def dictionary_learning(root: Path) -> Iterator[Case]:
    """All nine trainers: at the end, under way, and without the config beside."""
    if "nnsight" not in sys.modules:  # which it wants below 0.4, for its buffers alone
        sys.modules["nnsight"] = types.ModuleType("nnsight")
        sys.modules["nnsight"].LanguageModel = object  # type: ignore[attr-defined]
    for (module, name, other), size in product(_TRAINERS, SIZES):
        with torch.enable_grad():
            trainer = _learning(module, name, other, SIZES[size])
        ae = trainer.ae
        for label, value in ae.named_parameters():
            value += 0.2 * torch.randn_like(value)
            if label == "threshold":
                value.abs_()
        if hasattr(ae, "scale_biases"):
            ae.scale_biases(6.0)
        x = activations(SIZES[size][0])
        codes = ae.encode(x)
        answer = (x, codes, ae.decode(codes))
        for way in ("end", "checkpoints/ae_30.pt", "bare"):
            folder = root / f"{name}-{size}-{way.split('/')[0]}"
            file = folder / (way if way.endswith(".pt") else "ae.pt")
            file.parent.mkdir(parents=True)
            torch.save(ae.state_dict(), file)
            if way != "bare":
                text = json.dumps({"trainer": trainer.config}, default=str)
                (folder / "config.json").write_text(text)
            told = {"activation": "topk", "k": 3} if module == "top_k" and way == "bare" else {}
            yield Case(folder.name, file if "/" in way else folder, *answer, told)


def overcomplete(root: Path) -> Iterator[Case]:
    """Nine classes, with encoders and dictionaries of each sort."""
    oc = importlib.import_module("overcomplete.sae")
    ra = importlib.import_module("overcomplete.sae.rasae")
    made: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
        "SAE": (oc.SAE, {}, {"activation": "relu"}),
        "TopKSAE": (oc.TopKSAE, {"top_k": 3}, {"k": 3}),
        "BatchTopKSAE": (oc.BatchTopKSAE, {"top_k": 30}, {"threshold": 0.75}),
        "JumpSAE": (oc.JumpSAE, {}, {}),
        "QSAE": (oc.QSAE, {}, {"activation": "relu"}),
        "MpSAE": (oc.MpSAE, {"k": 2}, {}),  # with an encoder, which it does not use, its file is as
        "OMPSAE": (oc.OMPSAE, {"k": 2}, {}),  # TopKSAE's: who says k= says that it is one
        "RATopKSAE": (ra.RATopKSAE, {"top_k": 3}, {"k": 3}),
        "RAJumpSAE": (ra.RAJumpSAE, {}, {}),
    }
    encoders = ("linear", "mlp_bn_1", "mlp_ln_1", "mlp_bn_3", "identity", "tied", "untied")
    norms = ("l2", "max_l2", "l1", "max_l1", "identity")
    for name, encoder, norm, size in product(made, encoders, norms, SIZES):
        make, given, told = made[name]
        d, m = SIZES[size]
        archetypal = name.startswith("RA")
        if archetypal:
            if norm != "l2":
                continue  # whose dictionary has no such choice
            given = {**given, "points": torch.randn(20, d)}
        else:
            params = {"normalization": norm, "use_multiplier": size == "wide"}
            given = {**given, "dictionary_params": params}
        case = f"{name}-{encoder}-{norm}-{size}"
        with contextlib.suppress(*UNMADE):
            if encoder in ("tied", "untied"):
                sae = getattr(make(d, m, **given), encoder)(bias=size == "wide")
            else:
                sae = make(d, m, encoder_module=encoder, **given)
            yield _of_overcomplete(sae, root / case, d, told)


def _of_overcomplete(sae: Any, folder: Path, d: int, told: dict[str, Any]) -> Case:
    for label, tensor in sae.state_dict().items():
        if tensor.is_floating_point() and not label.endswith(("running_var", ".C", ".W")):
            tensor += 0.4 * torch.randn_like(tensor)
    if hasattr(sae, "running_threshold"):
        sae.running_threshold = torch.tensor(0.75)
    sae.eval()
    x = activations(d)
    codes = sae.encode(x)[1]
    case = Case(folder.name, folder / "sae.pt", x, codes, sae.decode(codes), told)
    folder.mkdir()
    torch.save(sae.state_dict(), case.path)
    return case


def saev(root: Path) -> Iterator[Case]:
    """What its first release writes."""
    nn, config = importlib.import_module("saev.nn"), importlib.import_module("saev.config")
    for factor, unit, parallel in product((1, 2, 4), (False, True), (False, True)):
        given = config.SparseAutoencoder(
            d_vit=6, exp_factor=factor, normalize_w_dec=unit, remove_parallel_grads=parallel
        )
        sae = drawn(nn.SparseAutoencoder(given))
        sae.normalize_w_dec()
        name = f"{factor}-{unit}-{parallel}"
        nn.dump(str(root / name / "sae.pt"), sae)
        x = activations(6)
        output, codes, _ = nn.load(str(root / name / "sae.pt"))(x)
        yield Case(name, root / name, x, codes, output)


def visaebench(root: Path) -> Iterator[Case]:
    """Its class in use of files as its hub's repositories have them, of both sorts of names."""
    from safetensors.torch import save_file
    from visaebench.hub.sae_wrapper import GenericSAE

    own = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    block = "encoder.final_block.0."
    theirs = (f"{block}weight", f"{block}bias", "dictionary._weights", "dictionary.multiplier")
    for kind, names, size in product(("topk", "batchtopk", "jumprelu"), (own, theirs), SIZES):
        for safe in (False, True):
            d, m = SIZES[size]
            last = torch.randn(d) if names is own else torch.tensor(0.2)
            tensors = (torch.randn(m, d), torch.randn(m), torch.randn(m, d), last)
            state = dict(zip(names, tensors, strict=True))
            config: dict[str, Any] = {"activation": kind, "input_dim": d, "hidden_dim": m}
            config |= {"topk": {"k": 3}, "batchtopk": {"threshold": 1.1}}.get(kind, {})
            if kind == "jumprelu":
                state["jump_thresholds" if names is own else "thresholds"] = 2 * torch.rand(m)
            name = f"{kind}-{'own' if names is own else 'overcomplete'}-{size}-{safe}"
            (root / name).mkdir()
            (root / name / "config.json").write_text(json.dumps(config))
            if safe:
                save_file(state, root / name / "model.safetensors")
            else:
                torch.save(state, root / name / "sae.pt")
            sae, x = GenericSAE(config, state), activations(d)
            codes = sae.encode(x)
            yield Case(name, root / name, x, codes, sae.decode(codes))
