"""Checkpoints that eai-sparsify 1.3.3 writes, with its own codes and reconstructions.

    python -m venv sparsify && sparsify/bin/pip install torch==2.13.0
    sparsify/bin/pip install eai-sparsify==1.3.3
    sparsify/bin/python tests/dictionaries/golden/sparsify.py

No shim.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path

import torch
from pack import expect, files, pack

TARGET = Path(__file__).with_name("sparsify-1.3.3.zip")


def main() -> None:
    """Write the zip."""
    from sparsify import SparseCoder, SparseCoderConfig

    with tempfile.TemporaryDirectory() as root:
        options = product(
            ("topk", "groupmax"), (True, False), ((6, 16), (8, 8)), (torch.float32, torch.bfloat16)
        )
        for seed, (activation, unit, (d, m), dtype) in enumerate(options):
            torch.manual_seed(seed)
            config = SparseCoderConfig(
                activation=activation, normalize_decoder=unit, num_latents=m, k=4
            )
            model = SparseCoder(d, config, dtype=dtype)
            for parameter in model.parameters():
                parameter.data = torch.randn_like(parameter)
            if unit:
                model.set_decoder_norm_to_unit_norm()
            case = f"{activation}-{'unit' if unit else 'free'}-{d}-{m}-{str(dtype)[6:]}"
            model.save_to_disk(files(Path(root), case) / "layers.3")
            model = model.float()  # the file's numbers, in the arithmetic that is compared
            x = torch.randn(9, d) * 2 + 1
            with torch.no_grad():
                values, places, _ = model.encode(x)
                codes = torch.zeros(len(x), m).scatter(-1, places, values)
                back = model.decode(values, places)
            expect(Path(root), case, x, codes, back, path="layers.3")
        pack(Path(root), TARGET)


if __name__ == "__main__":
    main()
