"""Write golden files with dictionary_learning 0.1.0, its own classes and trainers.

    python3 -m venv /tmp/dl && . /tmp/dl/bin/activate
    pip install torch==2.13.0 numpy einops tqdm safetensors
    pip install --no-deps dictionary-learning==0.1.0
    git clone https://github.com/ExplainableML/sae-for-vlm /tmp/sae-for-vlm
    python tests/dictionaries/golden/dictionary_learning.py /tmp/sae-for-vlm

Ran with dictionary-learning 0.1.0, torch 2.13.0 and numpy 2.4.6 in Python 3.11, and with commit
69e211d of sae-for-vlm, whose copy of the library spells a class its own way. The package pins
nnsight below 0.4, which its data buffers alone use: an empty module of that name stands in for it.

Each trainer takes some steps on activations divided by their norm. Then every parameter is moved
at random, so that each one matters, and files are written as ``trainSAE`` writes them.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
import types
from pathlib import Path

import torch
from pack import expect, files, pack, refuse

VERSION = "0.1.0"
SIZES = {"wide": (6, 8), "square": (8, 8)}
# class, trainer's module, trainer, what it must be told beside the common arguments
TRAINERS = (
    ("AutoEncoder", "standard", "StandardTrainer", {"warmup_steps": 1}),
    ("AutoEncoderNew", "standard", "StandardTrainerAprilUpdate", {"warmup_steps": 1}),
    ("GatedAutoEncoder", "gdm", "GatedSAETrainer", {"warmup_steps": 1}),
    ("JumpReluAutoEncoder", "jumprelu", "JumpReluTrainer", {"warmup_steps": 1}),
    ("AutoEncoderTopK", "top_k", "TopKTrainer", {"k": 3}),
    ("BatchTopKSAE", "batch_top_k", "BatchTopKTrainer", {"k": 3}),
    ("MatryoshkaBatchTopKSAE", "matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer", {"k": 3}),
)
FORK = (
    "MatroyshkaBatchTopKSAE",
    "matroyshka_batch_top_k",
    "MatroyshkaBatchTopKTrainer",
    {"k": 3, "lm_name": "", "layer": "", "submodule_name": ""},
)


def activations(width: int, n: int = 64) -> torch.Tensor:
    """Far from normalised, and not about zero."""
    return 4 * torch.randn(n, width) + torch.linspace(-3, 5, width)


def trained(
    entry: tuple[str, str, str, dict[str, object]], width: int, size: int, calibrated: bool
):
    """A trainer after some steps, with its dictionary ready to be saved."""
    kind, module, name, told = entry
    library = importlib.import_module(f"dictionary_learning.trainers.{module}")
    arguments = {
        "steps": 30,
        "activation_dim": width,
        "dict_size": size,
        "layer": 11,
        "lm_name": "owner/some-clip",
        "submodule_name": "resid_post_layer_11",
        "device": "cpu",
    } | told
    if module in ("standard", "gdm", "jumprelu"):
        arguments["sparsity_warmup_steps"] = None
    else:
        arguments["lr"] = 0.01
    if "k" in told:
        start = -1 if calibrated else 1000
        arguments |= {"threshold_beta": 0.9, "threshold_start_step": start, "warmup_steps": 1}
    if "atr" in module:  # Matryoshka, in either spelling
        arguments["group_fractions"] = [0.25, 0.75]
    if kind == "AutoEncoderNew":
        arguments["dict_class"] = importlib.import_module(
            "dictionary_learning.dictionary"
        ).AutoEncoderNew
    trainer = getattr(library, name)(**arguments)
    data = activations(width)
    scales = hasattr(trainer.ae, "scale_biases")  # if not, it is trained without normalising
    factor = float(data.square().sum(1).mean().sqrt()) if scales else 1.0
    for step in range(30):
        trainer.update(step, data / factor)
    with torch.no_grad():
        for label, parameter in trainer.ae.named_parameters():
            parameter += 0.2 * torch.randn_like(parameter)
            if label == "threshold":
                parameter.abs_()
        if scales:
            trainer.ae.scale_biases(factor)
    return trainer


def save(trainer, folder: Path, *names: str) -> None:
    """Write what ``trainSAE`` writes."""
    (folder / "config.json").write_text(json.dumps({"trainer": trainer.config}, indent=4))
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        torch.save({k: v.cpu() for k, v in trainer.ae.state_dict().items()}, folder / name)


def write(root: Path, entry: tuple[str, str, str, dict[str, object]]) -> None:
    """Every case of one class."""
    kind = entry[0]
    for label, (width, size) in SIZES.items():
        trainer = trained(entry, width, size, True)
        x, ae = activations(width, 16), trainer.ae
        case = f"{kind}-{label}"
        save(trainer, files(root, case), "ae.pt")
        codes = ae.encode(x)
        expect(root, case, x, codes, ae.decode(codes))
        if label == "square":
            continue
        if kind == "AutoEncoder":
            name = "checkpoints/ae_20.pt"
            save(trainer, files(root, f"{case}-checkpoint"), "ae.pt", name)
            expect(root, f"{case}-checkpoint", x, codes, ae.decode(codes), path=name)
        save(trainer, files(root, f"{case}-bare"), "ae.pt")
        (root / f"{case}-bare" / "files" / "config.json").unlink()
        if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
            refuse(root, f"{case}-bare", "could be of AutoEncoderTopK or BatchTopKSAE")
        else:
            expect(root, f"{case}-bare", x, codes, ae.decode(codes))
        if kind == "AutoEncoderTopK":
            codes = ae.encode(x, use_threshold=True)
            save(trainer, files(root, f"{case}-threshold"), "ae.pt")
            expect(root, f"{case}-threshold", x, codes, ae.decode(codes), activation="jumprelu")
        elif "k" in entry[3]:
            save(
                trained(entry, width, size, False),
                files(root, f"{case}-uncalibrated"),
                "ae.pt",
            )
            refuse(root, f"{case}-uncalibrated", "never calibrated")


def main() -> None:
    """Write the zip."""
    torch.manual_seed(0)
    sys.modules["nnsight"] = types.ModuleType("nnsight")
    sys.modules["nnsight"].LanguageModel = object
    root = Path(tempfile.mkdtemp())
    for entry in TRAINERS:
        write(root, entry)
    for name in [name for name in sys.modules if name.split(".")[0] == "dictionary_learning"]:
        del sys.modules[name]
    sys.path.insert(0, sys.argv[1])
    write(root, FORK)
    pack(root, Path(__file__).with_name(f"dictionary_learning-{VERSION}.zip"))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
