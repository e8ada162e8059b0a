"""Files in the formats of Gemma Scope, Qwen-Scope and Goodfire, with sae-lens's codes of them.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install sae-lens==6.54.12
    VENV/bin/python tests/dictionaries/golden/scope.py

Nobody published what wrote these files, so sae-lens's loaders are what they are held to: they read
random files that lie where the hub's would, as its cache lays them out. Shim: the three functions
of its loaders that ask the hub look there instead.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy
import torch
from huggingface_hub.errors import EntryNotFoundError
from pack import expect, files, pack
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
GEMMA, QWEN = "google/gemma-scope-2-4b-pt", "Qwen/SAE-Res-Qwen3-1.7B-Base-W{}K-L0_{}"
WIDTH = "layer_12_width_16k_l0_small"
_seeds = count()


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of few values, for large files must pack well."""
    return (torch.randint(-4, 5, shape) / 4).to(dtype)


class Hub:
    """A folder in the hub's place."""

    def __init__(self, root: Path) -> None:
        from sae_lens.loading import pretrained_sae_loaders as loaders

        self.root, self.case, self.loaders = root, "", loaders
        loaders.hf_hub_download = self.download
        loaders.get_safetensors_tensor_shapes = self.shapes

    def place(self, repository: str) -> Path:
        """The snapshot of a repository in this case's cache."""
        name = f"models--{repository.replace('/', '--')}"
        return self.root / self.case / "files" / name / "snapshots" / ("a" * 40)

    def download(
        self, repo_id: str, filename: str, subfolder: str = "", force_download: bool = False
    ) -> str:
        """As huggingface_hub's."""
        del force_download
        found = self.place(repo_id) / subfolder / filename
        if not found.is_file():
            raise EntryNotFoundError(str(found))
        return str(found)

    def shapes(self, repo_id: str, filename: str) -> dict[str, list[int]]:
        """As the library's."""
        with safe_open(self.download(repo_id, filename), "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    def plain(
        self, repository: str, folder: str, loader: Any, info: dict[str, str], **cfg: Any
    ) -> None:
        """What the library computes with what lies there, by a loader of whole configs."""
        from sae_lens import SAE

        def load(cfg_overrides: dict[str, Any], **asked: Any) -> Any:
            return loader(cfg_overrides=cfg_overrides | cfg, **asked)

        sae, _, _ = SAE.from_pretrained_with_cfg_and_sparsity(repository, folder, converter=load)
        x = torch.randn(6, sae.cfg.d_in) * 2 + 1
        codes = sae.encode(x)
        path = self.path(repository, folder)
        expect(self.root, self.case, x, codes, sae.decode(codes), path=path, info=info)

    def path(self, repository: str, folder: str) -> str:
        """What a case is to load."""
        return str((self.place(repository) / folder).relative_to(self.root / self.case / "files"))

    def say(self, repository: str, folder: str, loader: Any, n: int = 6, **sizes: int) -> None:
        """What the library computes with what lies there, and where it says it was trained."""
        from sae_lens import SAE

        def load(cfg_overrides: dict[str, Any], **asked: Any) -> Any:
            return loader(cfg_overrides=cfg_overrides | sizes, **asked)

        sae, _, _ = SAE.from_pretrained_with_cfg_and_sparsity(repository, folder, converter=load)
        x = torch.randn(n, sae.cfg.d_in) * 2 + 1
        codes = sae.encode(x)
        told = sae.cfg.metadata
        info = {"model_name": told["model_name"], "hook_name": told["hf_hook_name"]}
        path = self.path(repository, folder)
        expect(self.root, self.case, x, codes, sae.decode(codes), path=path, info=info)


def gemma(hub: Hub) -> None:
    """Every kind of place, with and without a config."""
    loader = hub.loaders.gemma_3_sae_huggingface_loader

    def lay(case: str, folder: str, d: int = 6, m: int = 16, **said: Any) -> None:
        hub.case = case
        files(hub.root, case)
        torch.manual_seed(next(_seeds))
        dtype = said.pop("dtype", torch.float32)
        place = hub.place(GEMMA) / folder
        place.mkdir(parents=True)
        weights = {
            "w_enc": torch.randn(d, m),
            "w_dec": torch.randn(m, d),
            "b_enc": torch.randn(m),
            "b_dec": torch.randn(d),
            "threshold": torch.randn(m) * 2,
        }
        weights = {name: w.to(dtype) for name, w in weights.items()}
        save_file(weights, place / "params.safetensors")
        if said:
            (place / "config.json").write_text(json.dumps(said))

    def told(hook: str, **more: Any) -> dict[str, Any]:
        config = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-pt", "l0": 20}
        return config | {"hf_hook_point_in": hook, "hf_hook_point_out": hook} | more

    hooks = {
        "resid_post": "model.layers.12.output",
        "attn_out": "model.layers.12.self_attn.o_proj.input",
        "mlp_out": "model.layers.12.post_feedforward_layernorm.output",
    }
    for part, hook in hooks.items():
        for config in (told(hook), {}):
            for d, m in ((6, 16), (8, 8)):
                case = f"gemma-{part}-{'config' if config else 'bare'}-{d}-{m}"
                lay(case, f"{part}/{WIDTH}", d, m, **config)
                hub.say(GEMMA, f"{part}/{WIDTH}", loader)
    lay("gemma-half", f"resid_post_all/{WIDTH}", dtype=torch.bfloat16)
    hub.say(GEMMA, f"resid_post_all/{WIDTH}", loader)
    small = told(hooks["resid_post"], model_name="gemma-v3-270m-pt")
    lay("gemma-small", f"resid_post/{WIDTH}", **small)
    hub.say(GEMMA, f"resid_post/{WIDTH}", loader)


def gemma_1(hub: Hub) -> None:
    """Every kind of place of the first Gemma Scope; embeddings are scaled."""
    loader = hub.loaders.gemma_2_sae_huggingface_loader
    model = {"pt": "google/gemma-2-2b", "it": "google/gemma-2-9b-it"}

    def lay(case: str, repository: str, folder: str, d: int = 6, m: int = 16) -> None:
        hub.case = case
        files(hub.root, case)
        torch.manual_seed(next(_seeds))
        place = hub.place(repository) / folder
        place.mkdir(parents=True)
        shapes = {"W_enc": (d, m), "W_dec": (m, d), "b_enc": (m,), "b_dec": (d,), "threshold": (m,)}
        arrays = {name: torch.randn(shape).numpy() for name, shape in shapes.items()}
        numpy.savez(place / "params.npz", **arrays)

    for kind, part, d, m in (
        *(("pt", "res", 6, 16), ("pt", "res", 8, 8), ("it", "res", 6, 16)),
        *(("pt", "mlp", 6, 16), ("pt", "att", 6, 16)),
    ):
        repository = f"google/gemma-scope-{'9b' if kind == 'it' else '2b'}-{kind}-{part}"
        folder = "layer_20/average_l0_71"
        lay(f"gemma-{kind}-{part}-{d}", repository, folder, d, m)
        hook = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}[part]
        info = {"model_name": model[kind], "hook_name": f"blocks.20.{hook}"}
        plain = {"reshape_activations": "none"} if part == "att" else {}
        hub.plain(repository, folder, loader, info, d_in=d, d_sae=m, **plain)
    repository, folder = "google/gemma-scope-2b-pt-res", "embedding/average_l0_6"
    lay("gemma-embedding", repository, folder)
    info = {"model_name": model["pt"], "hook_name": "hook_embed"}
    hub.plain(repository, folder, loader, info, d_in=6, d_sae=16)


def goodfire(hub: Hub) -> None:
    """Both files of Goodfire."""
    loader = hub.loaders.get_goodfire_huggingface_loader
    for model, layer, end in (("Llama-3.1-8B", 19, "pth"), ("Llama-3.3-70B", 50, "pt")):
        name = f"{model}-Instruct-SAE-l{layer}"
        for d, m in ((6, 16), (8, 8)):
            hub.case = f"{model}-{d}"
            files(hub.root, hub.case)
            torch.manual_seed(next(_seeds))
            place = hub.place(f"Goodfire/{name}")
            place.mkdir(parents=True)
            shapes = {"encoder": (m, d), "decoder": (d, m)}
            weights = {f"{k}_linear.weight": torch.randn(shape) for k, shape in shapes.items()}
            weights |= {f"{k}_linear.bias": torch.randn(shape[0]) for k, shape in shapes.items()}
            torch.save(weights, place / f"{name}.{end}")
            info = {"model_name": f"meta-llama/{model}-Instruct", "layer": str(layer)}
            hub.plain(f"Goodfire/{name}", f"{name}.{end}", loader, info, d_in=d, d_sae=m)


def qwen(hub: Hub) -> None:
    """Several k; k of the repository's name and k that is told."""
    loader = hub.loaders.qwen_scope_sae_huggingface_loader

    def lay(case: str, repository: str, d: int, m: int, dtype: torch.dtype = torch.float32) -> None:
        hub.case = case
        files(hub.root, case)
        torch.manual_seed(next(_seeds))
        weights = {
            "W_enc": numbers(m, d, dtype=dtype),
            "W_dec": numbers(d, m, dtype=dtype),
            "b_enc": numbers(m, dtype=dtype),
            "b_dec": numbers(d, dtype=dtype),
        }
        place = hub.place(repository)
        place.mkdir(parents=True)
        torch.save(weights, place / "layer7.sae.pt")

    for k, dtype in ((50, torch.float32), (100, torch.bfloat16)):
        lay(f"qwen-{k}", QWEN.format(1, k), 5, 1024, dtype)
        hub.say(QWEN.format(1, k), "layer7.sae.pt", loader, n=2, d_in=5)
    for k, (d, m) in ((3, (6, 16)), (2, (8, 8))):
        lay(f"qwen-told-{k}", QWEN.format(1, k), d, m)
        hub.say(QWEN.format(1, k), "layer7.sae.pt", loader, d_in=d, d_sae=m)
        rename(hub, QWEN.format(1, k), k)


def rename(hub: Hub, repository: str, k: int) -> None:
    """Lay a file where no name tells its k or its model."""
    folder = hub.root / hub.case
    (hub.place(repository) / "layer7.sae.pt").rename(folder / "files" / "layer7.sae.pt")
    for empty in (hub.place(repository), *hub.place(repository).parents[:2]):
        empty.rmdir()
    case = json.loads((folder / "case.json").read_text("utf-8"))
    case |= {"path": "layer7.sae.pt", "options": {"k": k}}
    del case["info"]["model_name"]
    (folder / "case.json").write_text(json.dumps(case, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    """Write all zips, or those whose functions are named."""
    names = {gemma: "gemma_scope", qwen: "qwen_scope", gemma_1: "gemma_scope_1", goodfire: ""}
    for write, name in names.items():
        if sys.argv[1:] and write.__name__ not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as root:
            write(Hub(Path(root)))
            pack(Path(root), HERE / f"{name or write.__name__}-sae-lens-6.54.12.zip")


if __name__ == "__main__":
    main()
