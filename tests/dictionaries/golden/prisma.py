"""Checkpoints of ViT-Prisma 2.0.0 (commit aa5ff6a), with its own codes and reconstructions.

    python -m venv prisma && prisma/bin/pip install torch==2.13.0
    prisma/bin/pip install einops numpy safetensors tqdm line_profiler
    git clone https://github.com/Prisma-Multimodal/ViT-Prisma
    git -C ViT-Prisma checkout aa5ff6ad7c2d596fb78b473a6e33f39d6b872063
    PYTHONPATH=ViT-Prisma/src prisma/bin/python tests/dictionaries/golden/prisma.py

PyPI's newest, vit-prisma 0.1.4, has no autoencoders. Shim: the packages ``vit_prisma`` and
``vit_prisma.sae`` stand in empty, since their own ``__init__`` import trainers, datasets and plots
that this does not need.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack, refuse

TARGET = Path(__file__).with_name("prisma-2.0.0.zip")


def empty(name: str, place: Path) -> Path:
    """Register a package without running its ``__init__``."""
    module = types.ModuleType(name)
    module.__path__ = [str(place)]
    sys.modules[name] = module
    return place


def library() -> tuple[Any, Any]:
    """The library's autoencoders, and the class of its config."""
    found = importlib.util.find_spec("vit_prisma")
    assert found is not None
    assert found.submodule_search_locations
    root = empty("vit_prisma", Path(found.submodule_search_locations[0]))
    empty("vit_prisma.sae", root / "sae")
    empty("vit_prisma.configs", root / "configs")
    empty("vit_prisma.prisma_tools", root / "prisma_tools")
    config = importlib.import_module("vit_prisma.sae.config")
    return importlib.import_module("vit_prisma.sae.sae"), config.VisionModelSAERunnerConfig


def build(sae: Any, config_class: Any, seed: int, **options: Any) -> Any:
    """An autoencoder of the library with random numbers in every parameter."""
    config = config_class(_device="cpu", **options)
    if config.is_transcoder:
        kind = importlib.import_module("vit_prisma.sae.transcoder").Transcoder
        return drawn(kind(config).eval(), seed)
    kinds = {"standard": sae.StandardSparseAutoencoder, "gated": sae.GatedSparseAutoencoder}
    return drawn(kinds[config.architecture](config).eval(), seed)


def drawn(model: Any, seed: int) -> Any:
    """A model with random numbers in every parameter."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.6)
    return model


def combinations() -> Iterator[tuple[dict[str, int], str | None, str, str]]:
    """Every option once, and again where d equals m."""
    wide, square = {"d_in": 6, "expansion_factor": 3}, {"d_in": 7, "expansion_factor": 1}
    for architecture, names in (
        ("standard", ("relu", "tanh-relu", "topk")),
        ("gated", ("relu", "tanh-relu")),
    ):
        for name in names:
            for norm in (None, "layer_norm", "constant_norm_rescale"):
                yield wide, norm, architecture, name
        yield wide, "none", architecture, "relu"
        yield square, "layer_norm", architecture, "relu"
        yield square, None, architecture, "relu"


def transcoders(sae: Any, config_class: Any) -> None:
    """Write the zip of transcoders, with what they predict in a reconstruction's place."""
    with tempfile.TemporaryDirectory() as root:
        options = product((None, "layer_norm"), (False, True), ("relu", "topk"))
        for seed, (norm, skips, name) in enumerate(options, 300):
            model = build(
                *(sae, config_class, seed),
                is_transcoder=True,
                transcoder_with_skip_connection=skips,
                activation_fn_str=name,
                activation_fn_kwargs={"k": 5} if name == "topk" else {},
                normalize_activations=norm,
                model_name="openai/clip-vit-base-patch32",
                hook_point_layer=3,
                out_hook_point_layer=3,
                **{"d_in": 6, "d_out": 6, "expansion_factor": 3},
            )
            model.cfg.return_out_only = True
            case = f"transcoder-{name}-{norm}{'-skip' if skips else ''}"
            folder = files(Path(root), case)
            model.cfg.save_config(str(folder / "config.json"))
            torch.save(model.state_dict(), folder / "n_images_2600058.pt")
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(9, 6, generator=g) * 3 + 1
            with torch.no_grad():
                codes, back = model.encode(x)[1], model(x, x)
            info = {"layer": "3", "hook_name": "blocks.3.ln2.hook_normalized"}
            expect(Path(root), case, x, codes, back, info=info)
        pack(Path(root), TARGET.with_name(f"transcoders-{TARGET.name}"))


def main() -> None:
    """Write the zips."""
    sae, config_class = library()
    transcoders(sae, config_class)
    with tempfile.TemporaryDirectory() as root:
        for seed, (shape, norm, architecture, name) in enumerate(combinations()):
            model = build(
                sae,
                config_class,
                seed,
                architecture=architecture,
                activation_fn_str=name,
                activation_fn_kwargs={"k": 5} if name == "topk" else {},
                normalize_activations=norm,
                **shape,
            )
            case = f"{architecture}-{name}-{norm}-{shape['d_in']}"
            folder = files(Path(root), case)
            model.cfg.save_config(str(folder / "config.json"))
            torch.save(model.state_dict(), folder / "n_images_2600058.pt")
            g = torch.Generator().manual_seed(100 + seed)
            x = torch.randn(9, shape["d_in"], generator=g) * 3 + 1
            with torch.no_grad():
                codes = model.encode(x)[1]
                back = model.decode(codes)
            expect(Path(root), case, x, codes, back)
        model = build(sae, config_class, 99, d_in=6, activation_fn_str="relu")
        folder = files(Path(root), "old-form")
        model.save_model(str(folder / "n_images_2600058.pt"))
        refuse(Path(root), "old-form", "older form, which keeps its config as an object")
        pack(Path(root), TARGET)


if __name__ == "__main__":
    main()
