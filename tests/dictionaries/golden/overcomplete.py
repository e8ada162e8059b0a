"""Write golden files with overcomplete 0.3.0 (KempnerInstitute), its own classes and encoders.

    python3 -m venv /tmp/oc && . /tmp/oc/bin/activate
    pip install torch==2.13.0 numpy einops tqdm safetensors pillow scipy scikit-learn
    pip install --no-deps overcomplete==0.3.0
    python tests/dictionaries/golden/overcomplete.py

Ran with overcomplete 0.3.0 and torch 2.13.0 in Python 3.11. Modules of names alone stand in for
what no case needs: its image models (which want torchvision and timm) and its pictures
(which want opencv, scikit-image and an older matplotlib).

Every parameter is moved at random, so that each one matters. The library is then switched to
``eval()``, which brings the dictionary's rows to length 1, and its state dict is saved; the cases
named ``training`` are saved before, a step away from that.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack, refuse

VERSION = "0.3.0"
SIZES = {"wide": (6, 8), "square": (8, 8)}
THRESHOLD = 1.25


def activations(width: int, n: int = 16) -> torch.Tensor:
    """Far from normalised, and not about zero."""
    return 2 * torch.randn(n, width) + torch.linspace(-2, 3, width)


def library() -> Any:
    """Its room of sparse autoencoders."""
    for name in ("overcomplete.models", "overcomplete.visualization"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__getattr__ = lambda _: None
    return importlib.import_module("overcomplete.sae")


def moved(sae: Any) -> Any:
    """The model with every parameter and statistic at random."""
    with torch.no_grad():
        for label, tensor in sae.state_dict().items():
            if label.endswith("multiplier"):
                if isinstance(sae.dictionary.multiplier, torch.nn.Parameter):
                    tensor.fill_(0.4)
            elif label.endswith("running_var"):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
            elif tensor.is_floating_point():
                tensor += 0.5 * torch.randn_like(tensor)
    return sae


def save(root: Path, case: str, sae: Any, **beside: Any) -> None:
    """Write the state dict, under ``model_state`` if something stands beside it."""
    state = sae.state_dict()
    torch.save({"model_state": state, **beside} if beside else state, files(root, case) / "sae.pt")


def answer(root: Path, case: str, sae: Any, told: dict[str, Any], beside: dict[str, Any]) -> None:
    """Save a model in use, and what it computes."""
    if hasattr(sae, "running_threshold"):
        sae.running_threshold = torch.tensor(THRESHOLD)
    sae.eval()
    save(root, case, sae, **beside)
    x = activations(sae.dictionary.in_dimensions)
    _, codes = sae.encode(x)
    expect(root, case, x, codes, sae.decode(codes), path="sae.pt", **told)


def models(oc: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """How each class is made, and what must be told of it."""
    return {
        "SAE": (oc.SAE, {"activation": "relu"}),
        "TopKSAE": (lambda *a, **o: oc.TopKSAE(*a, top_k=3, **o), {"k": 3}),
        "BatchTopKSAE": (oc.BatchTopKSAE, {"threshold": THRESHOLD}),
        "JumpSAE": (oc.JumpSAE, {}),
    }


def write(root: Path, oc: Any) -> None:
    """Every class with every encoder that is one matrix."""
    for name, (make, told) in models(oc).items():
        for label, (d, m) in SIZES.items():
            options = {"dictionary_params": {"use_multiplier": label == "square"}}
            case = f"{name}-{label}"
            answer(root, case, moved(make(d, m, **options)), told, {})
            if name != "JumpSAE" and label == "wide":
                save(root, f"{case}-untold", moved(make(d, m)).eval())
                refuse(root, f"{case}-untold", "SAE, TopKSAE or BatchTopKSAE", path="sae.pt")
            norm = moved(make(d, m, encoder_module="mlp_bn_1", **options))
            answer(root, f"{case}-batch-norm", norm, told, {})
            for bias in (True, False) if name in ("TopKSAE", "JumpSAE") else ():
                end = "bias" if bias else "no-bias"
                sae = moved(make(d, m, **options).tied(bias=bias))
                answer(root, f"{case}-tied-{end}", sae, told, {})
                sae = moved(make(d, m, **options).untied(bias=bias))
                answer(root, f"{case}-untied-{end}", sae, told, {})
    sae = moved(oc.TopKSAE(6, 8, top_k=3))
    answer(root, "model_state-k", sae, {}, {"k": 3, "epoch": 2})
    answer(root, "model_state", sae, {"k": 3}, {"epoch": 2, "logs": {"r2": [0.5]}})


def write_while_training(root: Path, oc: Any) -> None:
    """Save after a step of the optimiser, as training scripts do."""
    sae = moved(oc.TopKSAE(6, 8, top_k=3))
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    x = activations(6)
    for _ in range(3):
        optimiser.zero_grad()
        (sae(x)[2] - x).square().mean().backward()
        optimiser.step()
    save(root, "training", sae, k=3, optimizer_state=optimiser.state_dict())
    sae.eval()
    _, codes = sae.encode(x)
    expect(root, "training", x, codes, sae.decode(codes), path="sae.pt")


def write_refused(root: Path, oc: Any) -> None:
    """Models that no encoder matrix and no rows can stand for."""
    told = {"path": "sae.pt"}
    for case, sae, message in (
        ("mlp_ln_1", oc.SAE(6, 8, encoder_module="mlp_ln_1"), "layer norm"),
        ("mlp_bn_3", oc.SAE(6, 8, encoder_module="mlp_bn_3"), "layers before the last"),
        ("attention", oc.SAE((4, 8), 8, encoder_module="attention_1b"), "mixes tokens"),
        ("resnet", oc.SAE((6, 4, 4), 8, encoder_module="resnet_1b"), "mixes positions"),
        ("QSAE", oc.QSAE(6, 8), "QSAE"),
        ("MpSAE", oc.MpSAE(6, 8, k=2), "MpSAE"),
        ("OMPSAE", oc.OMPSAE(6, 8, k=2), "OMPSAE"),
        *(
            (f"normalization-{name}", oc.SAE(6, 8, dictionary_params={"normalization": name}), "l2")
            for name in ("max_l2", "l1", "max_l1", "identity")
        ),
    ):
        sae.eval()
        save(root, case, moved(sae) if case == "normalization-identity" else sae)
        refuse(root, case, message, **told)
    torch.save(oc.TopKSAE(6, 8, top_k=3), files(root, "whole-module") / "sae.pt")
    refuse(root, "whole-module", r"save its state_dict\(\) alone", **told)


def main() -> None:
    """Write the zip."""
    torch.manual_seed(0)
    oc, root = library(), Path(tempfile.mkdtemp())
    write(root, oc)
    write_while_training(root, oc)
    write_refused(root, oc)
    pack(root, Path(__file__).with_name(f"overcomplete-{VERSION}.zip"))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
