"""Write golden files with saev (OSU-NLP-Group), the version on PyPI or a newer one.

    python3.11 -m venv /tmp/saev0 && . /tmp/saev0/bin/activate
    pip install torch==2.13.0 numpy beartype einops jaxtyping safetensors
    pip install --no-deps saev==0.1.0
    python tests/dictionaries/golden/saev.py 0.1.0
    deactivate

    git clone https://github.com/OSU-NLP-Group/saev /tmp/saev && git -C /tmp/saev checkout 3d73f1f
    python3.12 -m venv /tmp/saev5 && . /tmp/saev5/bin/activate
    pip install torch==2.13.0 numpy scipy beartype einops jaxtyping orjson tyro safetensors
    PYTHONPATH=/tmp/saev/src python tests/dictionaries/golden/saev.py 3d73f1f

Ran with saev 0.1.0, beartype 0.23.1 and jaxtyping 0.3.11 in Python 3.11, and with commit
3d73f1f of the repository, which calls itself 0.1.0 too but writes schema 5, in Python 3.12; both
with torch 2.13.0. ``saev.nn`` alone is imported, which needs no stand-in for anything.

Every parameter is moved at random, so that each one matters; the BatchTopK's threshold comes from
the library's own forward in training.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack

SIZES = {"wide": (6, 12), "square": (6, 6)}


def activations(width: int, n: int = 16) -> torch.Tensor:
    """Not about zero."""
    return 2 * torch.randn(n, width) + torch.linspace(-2, 3, width)


def moved(sae: Any) -> Any:
    """The model with every parameter at random."""
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return sae


def write_oldest(root: Path, nn: Any) -> None:
    """Relu of the input less b_dec."""
    config = importlib.import_module("saev.config")
    for label, (d, m) in SIZES.items():
        sae = moved(nn.SparseAutoencoder(config.SparseAutoencoder(d_vit=d, exp_factor=m // d)))
        nn.dump(str(files(root, label) / "sae.pt"), sae)
        x = activations(d)
        found, codes, _ = sae(x)
        expect(root, label, x, codes, found)


def write_newest(root: Path, nn: Any) -> None:
    """Every activation."""
    modeling = importlib.import_module("saev.nn.modeling")
    for label, (d, m) in SIZES.items():
        for name, activation in (
            ("relu", modeling.Relu()),
            ("top-k", modeling.TopK(top_k=5)),
            ("top-k-of-all", modeling.TopK(top_k=100)),
            ("batch-top-k", modeling.BatchTopK(top_k=2)),
            ("batch-top-k-untrained", modeling.BatchTopK(top_k=2)),
        ):
            case = f"{name}-{label}"
            config = nn.SparseAutoencoderConfig(d_model=d, d_sae=m, activation=activation)
            sae, x = moved(nn.SparseAutoencoder(config)), activations(d)
            if name == "batch-top-k":
                for _ in range(40):
                    sae(x)
            sae.eval()
            nn.dump(files(root, case) / "sae.pt", sae)
            again = nn.load(root / case / "files" / "sae.pt").eval()
            # Matryoshka's prefixes end with all features: that is its reconstruction.
            codes = again.encode(x).f_x
            whole = again.decode(codes, prefixes=torch.tensor([2, m]))[:, -1]
            expect(root, case, x, codes, whole)
        run = {"train_data": {"shards": "/shards/abc", "layer": 13}, "lr": 4e-4}
        (root / f"relu-{label}" / "files" / "config.json").write_text(json.dumps(run))


def main() -> None:
    """Write the zip."""
    torch.manual_seed(0)
    version, root, nn = sys.argv[1], Path(tempfile.mkdtemp()), importlib.import_module("saev.nn")
    (write_oldest if version == "0.1.0" else write_newest)(root, nn)
    pack(root, Path(__file__).with_name(f"saev-{version}.zip"))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
