"""Checkpoints of MSAE (commit c0bf439), with its own codes and reconstructions.

    python -m venv msae && msae/bin/pip install torch==2.13.0
    msae/bin/pip install numpy safetensors tqdm
    git clone https://github.com/WolodjaZ/MSAE
    git -C MSAE checkout c0bf4397fd8fdf6cf1d45b3089b03d7bbf614479
    PYTHONPATH=MSAE msae/bin/python tests/dictionaries/golden/msae_models.py

No shim. The files are saved with the keys and the names of its ``train.py``, which cannot be called
without a data set, and with the mean and the factor that its data set measures. It opens its own
files only with ``weights_only=False``.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack, refuse
from torch import Tensor

TARGET = Path(__file__).with_name("msae-c0bf439.zip")


def write(root: Path, case: str, name: str, seed: int, **options: Any) -> tuple[Path, Tensor]:
    """A file as its ``train.py`` saves it, and an input."""
    import numpy as np
    from sae import Autoencoder, MatryoshkaAutoencoder
    from utils import SAEDataset

    m, d, activation, *rest = name.split("_")
    g = torch.Generator().manual_seed(seed)
    data = (torch.randn(50, int(d), generator=g) * 3 + 1).numpy()
    raw = root / f"raw_50_{d}.npy"
    np.memmap(raw, dtype="float32", mode="w+", shape=data.shape)[:] = data
    standard = options.pop("standard", True)
    target = None if standard else 0.0
    measured = SAEDataset(str(raw), mean_center=standard, target_norm=target)
    # The measured factor is tiny for so small a set; codes should not all hang on the biases.
    if standard:
        measured.scaling_factor *= 4
    raw.unlink()
    matryoshka = options.pop("matryoshka", False)
    if matryoshka:
        nesting = [int(rest[0]), int(m)]
        model = MatryoshkaAutoencoder(int(m), int(d), activation, nesting_list=nesting, **options)
    else:
        whole = f"{activation}_{rest[0]}" if "TopK" in activation or "Jump" in activation else ""
        model = Autoencoder(int(m), int(d), whole or activation, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.7)
    path = files(root, case) / f"{name}_clip_train_{len(data)}_{d}.pth"
    torch.save(
        {
            "model": model.state_dict(),
            "mean_center": measured.mean,
            "scaling_factor": measured.scaling_factor,
            "target_norm": measured.target_norm,
        },
        path,
    )
    return path, torch.randn(9, int(d), generator=g) * 3 + 1


def main() -> None:
    """Write the zip."""
    import sae

    sae.torch.load = functools.partial(torch.load, weights_only=False)  # noqa: TID251
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("16_6_TopKReLU_4_False_False_0.0", {}, -1),
        ("7_7_TopKReLU_4_False_False_0.0", {}, -1),
        ("16_6_TopKReLU_12_UW_False_False_0.0", {"matryoshka": True}, -1),
        ("16_6_TopKReLU_4_RW_False_False_0.0", {"matryoshka": True}, 7),
        ("16_6_ReLU_003_False_False_0.0", {}, -1),
        ("16_6_ReLU_003_False_False_0.0", {}, 3),
        ("16_6_TopK_13_False_False_0.0", {}, -1),
        ("16_6_TopKReLU_4_True_False_0.0", {"tied": True}, -1),
        ("7_7_ReLU_003_True_False_0.0", {"tied": True}, -1),
        ("16_6_TopKReLU_4_False_False_1.5", {"latent_soft_cap": 1.5}, -1),
        ("16_6_ReLU_003_False_True_0.0", {"normalize": True, "standard": False}, -1),
        ("16_6_TopKReLU_4_False_True_2.0", {"normalize": True, "standard": False,
                                            "latent_soft_cap": 2.0}, -1),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for seed, (name, options, kept) in enumerate(cases):
            case = f"{name}-{kept}" if kept > 0 else name
            options = {"latent_soft_cap": 0.0, **options}
            path, x = write(root, case, name, seed, **options)
            wrapped = sae.SAE(str(path)).eval()
            with torch.no_grad():
                sparse, full = wrapped.encode(x, topk=kept)
                codes = full if kept > 0 else sparse
                info = wrapped.model.preprocess(wrapped.preprocess(x))[1]
                back = wrapped.postprocess(wrapped.model.decode(codes, info))
            told = {"activation": "topk", "k": kept} if kept > 0 else {}
            expect(root, case, x, codes, back, **told)
        whole = "16_6_TopKReLU_4_False_False_0.0"
        path, x = write(root, "all-features", whole, 50, latent_soft_cap=0.0)
        with torch.no_grad():
            back, _, codes = sae.SAE(str(path)).eval()(x)
        expect(root, "all-features", x, codes, back, activation="relu")
        write(root, "batch", "16_6_BatchTopKReLU_4_False_False_0.0", 51, latent_soft_cap=0.0)
        refuse(root, "batch", "depend on its batch")
        pack(root, TARGET)


if __name__ == "__main__":
    main()
