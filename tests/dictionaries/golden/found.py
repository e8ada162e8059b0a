"""Files of libraries that save in a way of their own, with those libraries' codes of them.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 safetensors numpy einops tqdm
    VENV/bin/pip install pydantic jaxtyping scikit-learn scipy pillow huggingface_hub
    VENV/bin/pip install --no-deps overcomplete==0.3.0 visaebench==0.1.0 hypothesaes==2.0.1
    VENV/bin/pip install --no-deps sparse_autoencoder==1.4.0
    VENV/bin/python tests/dictionaries/golden/found.py

Ran in Python 3.11. A package whose own first module asks for more than its autoencoder needs (of
hosts, pictures and services) is stood in for by a bare module that finds its parts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack, refuse
from safetensors.torch import save_file

SIZES = {"wide": (6, 16), "square": (8, 8)}


def part(name: str) -> Any:
    """A module inside of a package whose own first modules do not run."""
    parents = name.split(".")[:-1]
    for i in range(len(parents)):
        whole = ".".join(parents[: i + 1])
        if whole in sys.modules:
            continue
        bare = types.ModuleType(whole)
        bare.__path__ = list(importlib.util.find_spec(whole).submodule_search_locations)
        sys.modules[whole] = bare
    return importlib.import_module(name)


def activations(width: int, n: int = 12) -> torch.Tensor:
    """Far from normalised, and not about zero."""
    return 2 * torch.randn(n, width) + torch.linspace(-2, 3, width)


def moved(model: Any) -> Any:
    """The model with every parameter at random."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return model


def visaebench(root: Path) -> None:
    """Both kinds of names, each activation, in torch's files and in safetensors."""
    generic = part("visaebench.hub.sae_wrapper").GenericSAE
    for kind in ("topk", "batchtopk", "jumprelu"):
        for own in (True, False):
            for size, (d, m) in SIZES.items():
                case = f"{kind}-{'own' if own else 'overcomplete'}-{size}"
                torch.manual_seed(len(case))
                names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
                if not own:
                    block = "encoder.final_block.0."
                    names = (f"{block}weight", f"{block}bias", "dictionary._weights",
                             "dictionary.multiplier")  # fmt: skip
                last = torch.randn(d) if own else torch.tensor(0.3)
                tensors = (torch.randn(m, d), torch.randn(m), torch.randn(m, d), last)
                state = dict(zip(names, tensors, strict=True))
                config: dict[str, Any] = {"input_dim": d, "hidden_dim": m}
                config["activation" if own else "sae_type"] = kind if own else kind.upper()
                if kind == "topk":
                    config["k"] = 3
                elif kind == "jumprelu":
                    state["jump_thresholds" if own else "thresholds"] = torch.rand(m) * 3
                elif own:
                    config["threshold"] = 1.25
                else:
                    state["_running_threshold"] = torch.tensor(1.25)
                folder = files(root, case)
                (folder / "config.json").write_text(json.dumps(config))
                if size == "wide":
                    torch.save(state, folder / "sae.pt")
                else:
                    save_file(state, folder / "model.safetensors")
                sae = generic(config, state)
                x = activations(d)
                codes = sae.encode(x)
                expect(root, case, x, codes, sae.decode(codes))
    folder = files(root, "batchtopk-no-threshold")
    (folder / "config.json").write_text(json.dumps({"activation": "batchtopk", "input_dim": 6}))
    torch.save({n: torch.randn(4, 6) if "w" in n else torch.randn(4)
                for n in ("encoder.weight", "encoder.bias", "decoder.weight")},
               folder / "sae.pt")  # fmt: skip
    refuse(root, "batchtopk-no-threshold", "say threshold=0 to do as it does")


def hypothesaes(root: Path) -> None:
    """TopK and BatchTopK, saved by the library itself."""
    library = part("hypothesaes.sae")
    for batch in (False, True):
        for size, (d, m) in SIZES.items():
            case = f"{'batchtopk' if batch else 'topk'}-{size}"
            torch.manual_seed(len(case))
            sae = moved(library.SparseAutoencoder(d, m, 3, use_batch_topk=batch, device="cpu"))
            sae.threshold.fill_(1.25)
            sae.eval()
            sae.save(str(files(root, case) / "SAE_M=16_K=3.pt"))
            x = activations(d)
            back, told = sae(x)
            expect(root, case, x, told["activations"], back)


def dncbm(root: Path) -> None:
    """With an axis of one place, as DN-CBM trains, without it, and with two."""
    library = part("sparse_autoencoder.autoencoder.model")
    for places in (None, 1, 2):
        for size, (d, m) in SIZES.items():
            case = f"places-{places}-{size}"
            torch.manual_seed(len(case))
            sae = library.SparseAutoencoder(d, m, n_components=places)
            sae.tied_bias.data = torch.randn_like(sae.tied_bias)
            sae.pre_encoder_bias._bias_reference = sae.tied_bias
            sae.post_decoder_bias._bias_reference = sae.tied_bias
            sae.decoder.constrain_weights_unit_norm()
            folder = files(root, case)
            torch.save(sae.state_dict(), folder / "sparse_autoencoder_final.pt")
            if places == 2:
                refuse(root, case, "holds dictionaries of 2 places")
                continue
            x = activations(d)
            codes, back = sae(x if places is None else x[:, None])
            expect(root, case, x, codes.reshape(len(x), m), back.reshape(len(x), d))


def archetypal(root: Path) -> None:
    """Both archetypal classes of overcomplete, after steps of training; and one not evaluated."""
    library = part("overcomplete.sae.rasae")
    for kind, size in ((k, s) for k in ("RATopKSAE", "RAJumpSAE") for s in SIZES):
        d, m = SIZES[size]
        case = f"{kind}-{size}"
        torch.manual_seed(len(case))
        told = {"top_k": 3} if kind == "RATopKSAE" else {}
        sae = getattr(library, kind)(d, m, points=torch.randn(3 * m, d), **told)
        adam = torch.optim.Adam(sae.parameters(), 1e-2)
        for _ in range(20):
            adam.zero_grad()
            x = activations(d, 64)
            (sae(x)[2] - x).square().mean().backward()
            adam.step()
        early = files(root, f"{case}-training")
        torch.save(sae.state_dict(), early / "sae.pt")
        options = {"k": 3} if told else {}
        refuse(root, f"{case}-training", r"call model.eval\(\)", **options)
        sae.eval()
        torch.save(sae.state_dict(), files(root, case) / "sae.pt")
        x = activations(d)
        _, codes = sae.encode(x)
        expect(root, case, x, codes, sae.decode(codes), **options)


def main() -> None:
    """Write a zip for each library."""
    here = Path(__file__).resolve().parent
    for write, version in (
        (visaebench, "visaebench-0.1.0"),
        (hypothesaes, "hypothesaes-2.0.1"),
        (dncbm, "sparse_autoencoder-1.4.0"),
        (archetypal, "archetypal-overcomplete-0.3.0"),
    ):
        with tempfile.TemporaryDirectory() as root, torch.no_grad():
            torch.set_grad_enabled(write is archetypal)
            write(Path(root))
            pack(Path(root), here / f"{version}.zip")


if __name__ == "__main__":
    main()
