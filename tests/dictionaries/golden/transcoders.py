"""Transcoders that sae-lens, sparsify and circuit-tracer write or read, with their predictions.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install sae-lens==6.54.12 eai-sparsify==1.3.3
    VENV/bin/pip install circuit-tracer==0.5.0 --no-deps
    SPARSIFY_DISABLE_TRITON=1 VENV/bin/python tests/dictionaries/golden/transcoders.py

What is compared as a reconstruction is what they predict of what is read. Files of Gemma Scope are
random ones laid as circuit-tracer's loaders read them. Of crosscoders of Gemma Scope 2 nobody's
code is here: their files are those of its cross-layer transcoders, by another name.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy
import torch
from pack import expect, files, pack
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
D, M, LAYERS = 6, 16, 3
HUB = "models--google--gemma-scope-2-1b-pt/snapshots/" + "a" * 40
FIRST = "models--google--gemma-scope-2b-pt-transcoders/snapshots/" + "a" * 40


def drawn(model: nn.Module) -> Any:
    """A model with every weight random, thresholds above 0."""
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn_like(parameter)
        if "threshold" in name:
            parameter.data = parameter.data.abs()
    return model


def seen(seed: int, *shape: int) -> Tensor:
    """Random activations, and weights from here on, by a seed."""
    torch.manual_seed(seed)
    return torch.randn(shape) * 2 + 1


@torch.no_grad()
def of_sae_lens(root: Path) -> None:
    """All four architectures, with hooks whose places are known and one whose is not."""
    import sae_lens

    hooks = {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    kinds = ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder")
    for seed, kind in enumerate(kinds):
        x = seen(seed, 9, D)
        config = getattr(sae_lens, f"{kind}Config")(
            d_in=D, d_out=D, d_sae=M, apply_b_dec_to_input=False
        )
        for key, value in hooks.items():
            config.metadata[key] = value
        model = drawn(getattr(sae_lens, kind)(config))
        case = f"sae-lens-{kind}"
        model.save_model(str(files(root, case)))
        info = {"hook_name": hooks["hook_name"], "layer": "3"}
        expect(root, case, x, model.encode(x), model(x), info=info)


@torch.no_grad()
def of_sparsify(root: Path) -> None:
    """With and without a skip."""
    from sparsify import SparseCoder, SparseCoderConfig

    options = product(("topk", "groupmax"), (False, True))
    for seed, (activation, skips) in enumerate(options, 10):
        x = seen(seed, 9, D)
        config = SparseCoderConfig(
            activation=activation, num_latents=M, k=4, transcode=True, skip_connection=skips
        )
        model = drawn(SparseCoder(D, config))
        case = f"sparsify-{activation}{'-skip' if skips else ''}"
        model.save_to_disk(files(root, case) / "layers.3.mlp")
        values, places, _ = model.encode(x)
        codes = torch.zeros(len(x), M).scatter(-1, places, values)
        expect(root, case, x, codes, model(x).sae_out, path="layers.3.mlp")


@torch.no_grad()
def of_one_layer(root: Path) -> None:
    """circuit-tracer's own files, with every part that one may have."""
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder

    config = 'model_name: "Qwen/Qwen3-4B"\nfeature_input_hook: "mlp.hook_in"\n'
    config += 'feature_output_hook: "hook_mlp_out"\n'
    for seed, (jumps, skips) in enumerate(product((False, True), (False, True)), 20):
        x = seen(seed, 9, D)
        function: Any = JumpReLU(torch.rand(M), 0.1) if jumps else nn.functional.relu
        model = SingleLayerTranscoder(D, M, function, 3, skip_connection=skips, dtype=torch.float32)
        drawn(model)
        case = f"circuit-tracer{'-jump' if jumps else ''}{'-skip' if skips else ''}"
        folder = files(root, case)
        model.to_safetensors(str(folder / "layer_3.safetensors"))
        (folder / "config.yaml").write_text(config)
        info = {"layer": "3", "model_name": "Qwen/Qwen3-4B", "hook_name": "mlp.hook_in"}
        expect(root, case, x, model.encode(x), model(x), path="layer_3.safetensors", info=info)


@torch.no_grad()
def of_layers(root: Path) -> None:
    """circuit-tracer's cross-layer transcoders, which skip nothing in its own files."""
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

    for seed, kind in enumerate(("relu", "jump_relu"), 30):
        x = seen(seed, LAYERS, 9, D)
        model = CrossLayerTranscoder(LAYERS, M, D, kind, lazy_decoder=False, dtype=torch.float32)
        drawn(model)
        case = f"circuit-tracer-layers-{kind}"
        model.to_safetensors(str(files(root, case)))
        several(root, case, x, model.encode(x), model(x), path=".", info={"layers": "0, 1, 2"})


def several(root: Path, case: str, x: Tensor, codes: Tensor, written: Tensor, **said: Any) -> None:
    """Expect what is of several layers, [L, n, d], end to end."""
    flat = (value.permute(1, 0, 2).flatten(1) for value in (x, codes, written))
    expect(root, case, *flat, **said)


def weights(count: int | None = None, skips: bool = False) -> dict[str, Tensor]:
    """Random ones, as Gemma Scope 2 spells them."""
    decoder = (M, D) if count is None else (M, count, D)
    shapes = {"w_enc": (D, M), "w_dec": decoder, "b_enc": (M,), "b_dec": (D,)}
    shapes |= {"affine_skip_connection": (D, D)} if skips else {}
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    return made | {"threshold": torch.rand(M)}


@torch.no_grad()
def of_gemma_scope_2(root: Path) -> None:
    """One layer, with and without a skip, as circuit-tracer reads it."""
    from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_2_transcoder

    for seed, skips in enumerate((False, True), 40):
        x, name = seen(seed, 9, D), f"layer_3_width_16k_l0_small{'_affine' if skips else ''}"
        case, path = f"gemma-scope-2{'-skip' if skips else ''}", f"{HUB}/transcoder_all/{name}"
        folder = files(root, case) / path
        folder.mkdir(parents=True)
        save_file(weights(skips=skips), folder / "params.safetensors")
        model = load_gemma_scope_2_transcoder(
            str(folder / "params.safetensors"), 3, device=torch.device("cpu")
        )
        expect(root, case, x, model.encode(x), model(x), path=path, info={"layer": "3"})


@torch.no_grad()
def of_gemma_scope_1(root: Path) -> None:
    """One layer of the first, as circuit-tracer reads it."""
    from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_transcoder

    x, path = seen(42, 9, D), f"{FIRST}/layer_3/average_l0_71"
    folder = files(root, "gemma-scope-1") / path
    folder.mkdir(parents=True)
    arrays = {name.replace("w_", "W_"): value.numpy() for name, value in weights().items()}
    numpy.savez(folder / "params.npz", **arrays)
    model = load_gemma_scope_transcoder(str(folder / "params.npz"), 3, device=torch.device("cpu"))
    # It is given what Gemma's norm makes of the stream before its weight.
    normed = x * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6).float()
    expect(root, "gemma-scope-1", x, model.encode(normed), model(normed), path=path)


@torch.no_grad()
def of_gemma_scope_layers(root: Path) -> None:
    """Several layers, as circuit-tracer reads them."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt

    for seed, (part, name) in enumerate(
        (("clt", "width_262k_l0_medium"), ("crosscoder", "layer_7_13_17_width_262k_l0_medium")), 43
    ):
        x, case, path = seen(seed, LAYERS, 9, D), f"gemma-scope-2-{part}", f"{HUB}/{part}/{name}"
        folder = files(root, case) / path
        folder.mkdir(parents=True)
        paths = {i: str(folder / f"params_layer_{i}.safetensors") for i in range(LAYERS)}
        for number, file in paths.items():
            made = weights(LAYERS)
            made["w_dec"][:, :number] = 0  # no layer before the one that is read
            save_file(made, file)
        # Its loader takes as many files as the largest number, which is one less.
        model = load_gemma_scope_2_clt(
            paths | {LAYERS: ""}, device=torch.device("cpu"), dtype=torch.float32
        )
        layers = "0, 1, 2" if part == "clt" else "7, 13, 17"
        info = {"layers": layers, "model_name": "google/gemma-3-1b-pt"}
        several(root, case, x, model.encode(x), model(x), path=path, info=info)


def main() -> None:
    """Write all zips."""
    tracer = "circuit-tracer-0.5.0"
    for write, name in {
        of_sae_lens: "transcoders-sae-lens-6.54.12",
        of_sparsify: "transcoders-sparsify-1.3.3",
        of_one_layer: "circuit_tracer-0.5.0",
        of_layers: "circuit_tracer_layers-0.5.0",
        of_gemma_scope_2: f"gemma_scope-{tracer}",
        of_gemma_scope_1: f"gemma_scope_1-{tracer}",
        of_gemma_scope_layers: f"gemma_scope_layers-{tracer}",
    }.items():
        with tempfile.TemporaryDirectory() as root:
            write(Path(root))
            pack(Path(root), HERE / f"{name}.zip")


if __name__ == "__main__":
    main()
