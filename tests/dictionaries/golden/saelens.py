"""Write random dictionaries with sae-lens, or check with it the ones that we wrote.

The environment (sae-lens brings about 90 packages, so it is apart):

    python -m venv VENV
    VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install sae-lens==6.54.12

From there, in this folder's project, the golden file of version 6:

    PYTHONHASHSEED=0 VENV/bin/python tests/dictionaries/golden/saelens.py

The order of the keys in its JSON follows the hash seed. Versions 3 to 5 ran with the packages of
that same environment: of each, the wheel was unpacked and the package's ``__init__`` left out,
which imports what no longer installs. Nothing else was replaced.

    VENV/bin/pip download --no-deps sae-lens==5.11.0
    unzip -d OLD sae_lens-5.11.0-py3-none-any.whl
    VENV/bin/python tests/dictionaries/golden/saelens.py --old OLD --version 5.11.0

Written with torch 2.13.0 on the CPU and sae-lens 3.23.4, 5.11.0 and 6.54.12; 4.4.5 agreed too,
and its file, much the same as that of 5.11.0, is not kept. The other direction, with sae-lens
reading what ``save_saelens`` wrote, is test_read_by_sae_lens.py, which calls this script with
``--check``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import types
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack, refuse

HERE = Path(__file__).resolve().parent
NORMS = ("none", "layer_norm", "constant_norm_rescale")
_seeds = count()


def inputs(d: int) -> torch.Tensor:
    """Activations away from mean 0 and length 1."""
    return torch.randn(5, d) * 3 + 1


@torch.no_grad()
def randomise(sae: Any, decoder: float = 1.0) -> Any:
    """Numbers that are not what training starts from: every option then shows."""
    torch.manual_seed(next(_seeds))
    for name, value in sae.named_parameters():
        value.copy_(torch.randn_like(value))
        if name in ("threshold", "finetuning_scaling_factor"):
            value.abs_()
        elif name == "log_threshold":
            value.mul_(0.3)
        elif name == "W_dec":
            value.mul_(decoder * torch.rand(len(value), 1) + 0.2)
    return sae


def write(root: Path, case: str, sae: Any, **said: Any) -> None:
    """Save a dictionary, and say what it computes."""
    sae.save_model(str(files(root, case)))
    say(root, case, sae, **said)


@torch.no_grad()
def say(root: Path, case: str, sae: Any, heads: int = 0, scale: float = 1.0, **said: Any) -> None:
    """Say what a dictionary computes, of activations that are scaled before."""
    sae = sae.float()
    sae.dtype = torch.float32
    x = inputs(sae.cfg.d_in)
    given = x.unflatten(-1, (heads, -1)) if heads else x
    codes = sae.encode(given * scale)
    found = sae.decode(codes).reshape(x.shape) / scale
    expect(root, case, x, codes, found, **said)


def version_6(root: Path) -> None:
    """Every architecture with every option that its config class has."""
    from sae_lens import (
        GatedSAE,
        GatedSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )
    from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    classes = {
        "standard": (StandardSAE, StandardSAEConfig),
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "gated": (GatedSAE, GatedSAEConfig),
        "topk": (TopKSAE, TopKSAEConfig),
        "abstopk": (AbsTopKSAE, AbsTopKSAEConfig),
    }

    def make(name: str, d: int = 6, m: int = 8, **options: Any) -> Any:
        sae, config = classes[name]
        if "topk" in name:
            options = {"k": 3, **options}
        hook = options.pop("hook", "blocks.3.hook_resid_post")
        metadata = SAEMetadata(model_name="host", hook_name=hook)
        return randomise(sae(config(d_in=d, d_sae=m, metadata=metadata, **options)))

    for name in classes:
        for norm in NORMS:
            for apply in (True, False):
                m = 6 if norm == "none" else 8  # square too: no shape tells the orientation
                options = {"normalize_activations": norm, "apply_b_dec_to_input": apply}
                write(root, f"{name}-{norm}-{apply}", make(name, m=m, **options))
        if "topk" in name:
            make_it = {"rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"}
            write(root, f"{name}-rescaled", make(name, **make_it))
        folded = make(name, **({"rescale_acts_by_decoder_norm": True} if "topk" in name else {}))
        folded.fold_W_dec_norm()
        write(root, f"{name}-folded-decoder", folded)
        scaled = make(name, normalize_activations="expected_average_only_in")
        scaled.fold_activation_norm_scaling_factor(0.37)
        write(root, f"{name}-folded-scale", scaled)
        write(root, f"{name}-bfloat16", make(name, dtype="bfloat16"))
    hook = {"reshape_activations": "hook_z", "hook": "blocks.0.attn.hook_z"}
    write(root, "standard-hook_z", make("standard", **hook), heads=2)
    unfolded = make("standard", normalize_activations="expected_average_only_in")
    unfolded.save_model(str(files(root, "standard-scale-unknown")))
    refuse(root, "standard-scale-unknown", "expected_average_only_in.* not folded into these")
    training_6(root)
    refused_6(root)


def training_6(root: Path) -> None:
    """What sae-lens' own trainer saves: a checkpoint on the way, and the end for use."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        SAETrainer,
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAE

    classes = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 3}),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 3.0}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": 3.0, "matryoshka_widths": [3, 8]},
        ),
    }

    def data() -> Iterator[torch.Tensor]:
        while True:
            yield torch.randn(32, 6) * 3 + 1

    for name, (sae_class, config_class, extra) in classes.items():
        for rescale in (True, False):
            scaled = {"normalize_activations": "expected_average_only_in"} if rescale else {}
            options = {**extra, "rescale_acts_by_decoder_norm": rescale, **scaled}
            sae = randomise(sae_class(config_class(d_in=6, d_sae=8, **options)))
            case = f"trained-{name}-{'rescaled-scaled' if rescale else 'plain'}"
            under_way = files(root, f"{case}-checkpoint")
            cfg = SAETrainerConfig(
                total_training_samples=32 * 200,
                train_batch_size_samples=32,
                lr_end=3e-4,
                n_batches_for_norm_estimate=10,
                logger=LoggingConfig(log_to_wandb=False),
            )
            trainer = SAETrainer(cfg, sae, data())
            trainer.activation_scaler.scaling_factor = 0.31 if rescale else None
            for _ in range(150):
                trainer.step(next(trainer.data_provider))
            trainer.save_checkpoint(under_way.name, base_path=under_way.parent)
            (under_way / "trainer_state.pt").unlink()  # the optimiser's, nothing of the dictionary
            # What it is in use, by sae-lens' own conversion.
            with tempfile.TemporaryDirectory() as folder:
                sae.save_inference_model(folder)
                used = SAE.load_from_disk(folder)
            say(root, f"{case}-checkpoint", used, scale=0.31 if rescale else 1.0)
            trainer.cfg.total_training_samples = trainer.n_training_samples + 320
            sae = trainer.fit()
            folder = files(root, case)
            sae.save_inference_model(folder)
            say(root, case, SAE.load_from_disk(str(folder)))


def refused_6(root: Path) -> None:
    """Architectures that are not dictionaries of one site, and what is not folded."""
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig

    sizes = {"d_in": 6, "d_sae": 8}
    said = {
        "matching_pursuit": MatchingPursuitSAE(MatchingPursuitSAEConfig(**sizes)),
        "temporal": TemporalSAE(
            TemporalSAEConfig(**sizes, n_heads=1, bottleneck_factor=1, kval_topk=3)
        ),
    }
    for name, sae in said.items():
        randomise(sae).save_model(str(files(root, name)))
        refuse(root, name, f"architecture '{name}' is not supported")
    config = StandardSAEConfig(d_in=6, d_sae=8, normalize_activations="covariance_whitening")
    randomise(StandardSAE(config)).save_model(str(files(root, "whitening")))
    refuse(root, "whitening", "'covariance_whitening' is not supported")


def old_versions(root: Path) -> None:
    """What versions 3 to 5 have: one class, an activation's name, a factor of fine-tuning."""
    from sae_lens.sae import SAE, SAEConfig

    def make(**options: Any) -> Any:
        config = {
            **{"architecture": "standard", "d_in": 6, "d_sae": 8, "activation_fn_str": "relu"},
            **{"apply_b_dec_to_input": True, "finetuning_scaling_factor": False},
            **{"context_size": 8, "model_name": "host", "hook_name": "blocks.3.hook_resid_post"},
            **{"hook_layer": 3, "hook_head_index": None, "prepend_bos": True},
            **{"dataset_path": "none", "dataset_trust_remote_code": True, "dtype": "float32"},
            **{"normalize_activations": "none", "device": "cpu"},
            "sae_lens_training_version": sys.modules["sae_lens"].__version__,
        }
        return randomise(SAE(SAEConfig(**(config | options))))

    for name in ("standard", "jumprelu", "gated"):
        for function in ("relu", "tanh-relu"):
            for norm, m in zip(NORMS, (6, 8, 8), strict=True):
                sae = make(
                    architecture=name,
                    activation_fn_str=function,
                    normalize_activations=norm,
                    d_sae=m,
                    apply_b_dec_to_input=norm != "layer_norm",
                )
                write(root, f"{name}-{function}-{norm}", sae)
        folded = make(architecture=name)
        folded.fold_W_dec_norm()
        write(root, f"{name}-folded-decoder", folded)
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}
    write(root, "topk", make(**topk))
    if not sys.modules["sae_lens"].__version__.startswith("3."):
        write(root, "topk-named", make(architecture="topk", **topk))
    write(root, "finetuned", make(finetuning_scaling_factor=True))
    write(root, "hook_z", make(hook_name="blocks.0.attn.hook_z"), heads=2)
    scaled = make(normalize_activations="expected_average_only_in")
    scaled.fold_activation_norm_scaling_factor(0.37)
    write(root, "folded-scale", scaled)
    with_sparsity = files(root, "with-sparsity")
    sae = make()
    sae.save_model(str(with_sparsity), torch.zeros(8))
    say(root, "with-sparsity", sae)
    make(normalize_activations="expected_average_only_in").save_model(
        str(files(root, "scale-unknown"))
    )
    refuse(root, "scale-unknown", "expected_average_only_in.* not folded into these")


def without_init(folder: Path, version: str) -> None:
    """Let an old version's modules be imported without its ``__init__``."""
    package = types.ModuleType("sae_lens")
    package.__path__ = [str(folder / "sae_lens")]
    package.__version__ = version
    package.logger = logging.getLogger("sae_lens")
    sys.modules["sae_lens"] = package


@torch.no_grad()
def check(root: Path) -> None:
    """Compare what sae-lens makes of folders with what their writer expects.

    Raises:
        SystemExit: There is none, or one differs.
    """
    from sae_lens import SAE
    from safetensors.torch import load_file

    wrong, cases = [], sorted(file.parent for file in root.glob("*/case.json"))
    for case in cases:
        told = json.loads((case / "case.json").read_text(encoding="utf-8"))
        expected = load_file(case / "expected.safetensors")
        sae = SAE.load_from_disk(str(case / "files"))
        codes = sae.encode(expected["x"])
        skips = hasattr(sae, "W_skip")  # a transcoder that adds something of what it reads
        output = sae(expected["x"]) if skips else sae.decode(codes)
        for name, found in (("codes", codes), ("reconstruction", output)):
            scale = float(expected[name].abs().max())
            difference = float((found - expected[name]).abs().max()) / scale
            print(f"{case.name} {name}: {difference:.1e}")
            if not difference <= told["tolerance"]:
                wrong.append(f"{case.name} {name}")
    if wrong or not cases:
        raise SystemExit(f"of {len(cases)} cases, these differ: {', '.join(wrong)}")
    print(f"{len(cases)} cases agree")


def main() -> None:
    """Write a golden file, or check."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="of cases that we wrote")
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="an unpacked wheel")
    parser.add_argument("--version", default="6.54.12", help="of sae-lens, for the zip's name")
    arguments = parser.parse_args()
    if arguments.check:
        check(arguments.check)
        return
    torch.manual_seed(0)
    if arguments.old:
        without_init(arguments.old, arguments.version)
    with tempfile.TemporaryDirectory() as folder:
        (old_versions if arguments.old else version_6)(Path(folder))
        pack(Path(folder), HERE / f"sae-lens-{arguments.version}.zip")


if __name__ == "__main__":
    main()
