"""Files in the formats of Gemma Scope 2 and Qwen-Scope, with sae-lens's codes of them.

    python -m venv VENV && VENV/bin/pip install torch==2.13.0
    VENV/bin/pip install sae-lens==6.54.12
    VENV/bin/python tests/dictionaries/golden/scope.py

Nobody published what wrote these files, so sae-lens's loaders are what they are held to: they read
random files that lie where the hub's would, as its cache lays them out. Shim: the three functions
of its loaders that ask the hub look there instead.
"""

from __future__ import annotations

import json
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError
from pack import expect, files, pack, refuse
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
    """Every kind of place, with and without a config; and what is no dictionary of one place."""
    loader = hub.loaders.gemma_3_sae_huggingface_loader

    def lay(case: str, folder: str, d: int = 6, m: int = 16, **said: Any) -> None:
        hub.case = case
        files(hub.root, case)
        torch.manual_seed(next(_seeds))
        dtype, extra = said.pop("dtype", torch.float32), said.pop("extra", {})
        place = hub.place(GEMMA) / folder
        place.mkdir(parents=True)
        weights = {
            "w_enc": torch.randn(d, m),
            "w_dec": torch.randn(m, d),
            "b_enc": torch.randn(m),
            "b_dec": torch.randn(d),
            "threshold": torch.randn(m) * 2,
        }
        weights = {name: w.to(dtype) for name, w in (weights | extra).items()}
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

    ends = {"hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output"}
    before = told("model.layers.12.pre_feedforward_layernorm.output", **ends)
    skip = {"affine_skip_connection": torch.randn(6, 6)}
    for case, folder, config, extra in (
        ("config", f"transcoder/{WIDTH}", before, {}),
        ("bare", f"transcoder_all/{WIDTH}", {}, {}),
        ("affine", f"transcoder/{WIDTH}_affine", before | {"affine_connection": True}, skip),
        ("affine-bare", f"transcoder/{WIDTH}_affine", {}, skip),
    ):
        lay(f"gemma-transcoder-{case}", folder, extra=extra, **config)
        refuse(hub.root, hub.case, "is a transcoder", path=hub.path(GEMMA, folder))


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
    """Write both zips."""
    for write in (gemma, qwen):
        with tempfile.TemporaryDirectory() as root:
            write(Hub(Path(root)))
            pack(Path(root), HERE / f"{write.__name__}_scope-sae-lens-6.54.12.zip")


if __name__ == "__main__":
    main()
