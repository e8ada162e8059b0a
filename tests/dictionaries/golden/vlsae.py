"""Checkpoints of VL-SAE, with the codes and reconstructions of the class that wrote them.

    python -m venv vlsae && vlsae/bin/pip install torch==2.13.0 safetensors numpy
    git clone https://github.com/ssfgunner/VL-SAE && git -C VL-SAE checkout 2d4a675
    PYTHONPATH=VL-SAE/cvlms/sae_trainer vlsae/bin/python tests/dictionaries/golden/vlsae.py

It was run with that commit's ``sae_model.py`` alone. One encoder row is zeros, at a distance of 1
from all. No activation is: rounding would decide which features stay, all of them being equal.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import torch
from pack import expect, files, pack, refuse

TARGET = Path(__file__).with_name("vlsae-2d4a675.zip")
MODEL = "openclip_ViT-B-32_VL_SAE"


def main() -> None:
    """Write the zip."""
    library = importlib.import_module("sae_model")
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        root = Path(temporary)
        for d, ratio, k in ((6, 3, 5), (8, 1, 3), (5, 4, 6)):
            torch.manual_seed(d)
            model = library.VL_SAE(d, d * ratio, topk=k)
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
            x = 3 * torch.randn(14, d) + torch.linspace(-2, 3, d)
            model.encoder[3] = 0
            image = torch.arange(14) % 2 == 1
            back = torch.empty_like(x)
            back[image], _, of_images, _ = model(vision_embeddings=x[image])
            _, back[~image], _, of_texts = model(text_embeddings=x[~image])
            codes = torch.empty(14, d * ratio)
            codes[image], codes[~image] = of_images, of_texts
            for name, options in (
                (f"{MODEL}_{k}_{ratio}_best", {}),
                ("own", {"k": k}),
            ):
                case = f"{'told' if options else 'named'}-{d}x{d * ratio}"
                torch.save(model.state_dict(), files(root, case) / f"{name}.pth")
                expect(root, case, x, codes, back, image=image, **options)
        torch.save(
            model.state_dict(),
            files(root, "other-ratio") / f"{MODEL}_6_3_best.pth",
        )
        refuse(root, "other-ratio", r"tells of 5 \* 3 features and it holds 20")
        torch.save(model.state_dict(), files(root, "no-k") / "own.pth")
        refuse(root, "no-k", "say it with k=")
        pack(root, TARGET)


if __name__ == "__main__":
    main()
