"""Checkpoints of OpenAI's sparse_autoencoder (commit 4965b94), with its own results.

    python -m venv openai && openai/bin/pip install torch==2.13.0
    openai/bin/pip install numpy safetensors
    git clone https://github.com/openai/sparse_autoencoder
    git -C sparse_autoencoder checkout 4965b941e9eb590b00b253a2c406db1e1b193942
    PYTHONPATH=sparse_autoencoder openai/bin/python tests/dictionaries/golden/openai_sae.py

No shim. PyPI has another library under this name.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from pack import expect, files, pack

TARGET = Path(__file__).with_name("openai_sae-4965b94.zip")


def main() -> None:
    """Write the zip."""
    from sparse_autoencoder.model import Autoencoder, TopK

    with tempfile.TemporaryDirectory() as root:
        seed = 0
        for d, m in ((6, 8), (7, 7)):
            for tied in (False, True):
                for name, activation in (
                    ("relu", torch.nn.ReLU()),
                    ("identity", torch.nn.Identity()),
                    ("topk", TopK(3)),
                    ("topk-signed", TopK(5, torch.nn.Identity())),
                ):
                    seed += 1
                    g = torch.Generator().manual_seed(seed)
                    normalize = name.startswith("topk")
                    model = Autoencoder(m, d, activation, tied, normalize).eval()
                    with torch.no_grad():
                        for parameter in model.parameters():
                            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.7)
                        x = torch.randn(9, d, generator=g) * 3 + 1
                        codes, info = model.encode(x)
                        back = model.decode(codes, info)
                    case = f"{name}-{'tied' if tied else 'untied'}-{d}"
                    torch.save(model.state_dict(), files(Path(root), case) / "8.pt")
                    expect(Path(root), case, x, codes, back, path="8.pt")
        pack(Path(root), TARGET)


if __name__ == "__main__":
    main()
