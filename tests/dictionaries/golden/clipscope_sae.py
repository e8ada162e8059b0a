"""Checkpoints that clipscope 0.1.8 reads, with its own codes and reconstructions.

    python -m venv clipscope && clipscope/bin/pip install torch==2.13.0
    clipscope/bin/pip install numpy safetensors huggingface_hub
    clipscope/bin/pip install --no-deps clipscope==0.1.8
    clipscope/bin/python tests/dictionaries/golden/clipscope_sae.py

Shim: the package ``clipscope`` stands in empty, since its ``__init__`` imports a host and with it
transformers. The library reads and never writes: the files have the keys that it reads, and it
reads these very files, from disk instead of the hub, before it encodes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
from pathlib import Path

import torch
from pack import expect, files, pack

TARGET = Path(__file__).with_name("clipscope-0.1.8.zip")


def main() -> None:
    """Write the zip."""
    found = importlib.util.find_spec("clipscope")
    assert found is not None
    assert found.submodule_search_locations
    package = types.ModuleType("clipscope")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["clipscope"] = package
    sae = importlib.import_module("clipscope.sae")
    sae.hf_hub_download = lambda repo_id, filename, repo_type: filename  # noqa: ARG005
    with tempfile.TemporaryDirectory() as root:
        for seed, (d, m, k) in enumerate(((6, 16, 3), (6, 16, 14), (7, 7, 5))):
            g = torch.Generator().manual_seed(seed)
            case = f"{d}-{m}-{k}"
            folder = files(Path(root), case) / "22_resid"
            folder.mkdir()
            state = {
                "pre_b": torch.randn(d, generator=g),
                "enc": torch.randn(d, m, generator=g),
                "dec": torch.randn(m, d, generator=g),
            }
            written = {"model_state_dict": state, "k": k, "n_features": m, "d_in": d}
            torch.save(written, folder / "1200013184.pt")
            model = sae.TopKSAE.from_pretrained(str(folder / "1200013184.pt"), device="cpu")
            x = torch.randn(9, d, generator=g) * 2 + 1
            with torch.no_grad():
                out = model.forward_verbose(x)
            path = "22_resid/1200013184.pt"
            expect(Path(root), case, x, out["latent"], out["reconstruction"], path=path)
        pack(Path(root), TARGET)


if __name__ == "__main__":
    main()
