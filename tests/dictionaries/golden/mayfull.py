"""Checkpoints of Mayfull's CLIP_TopKSAE and its kin, with the codes of the classes that wrote them.

    python -m venv mayfull && mayfull/bin/pip install torch==2.13.0
    mayfull/bin/pip install transformers==5.24.0 einops==0.8.2
    git clone https://github.com/JiH00nKw0n/lvlm_hallucination
    git -C lvlm_hallucination checkout b09bd42
    PYTHONPATH=lvlm_hallucination mayfull/bin/python tests/dictionaries/golden/mayfull.py

Shim: the packages ``src`` and ``src.models`` stand in empty, since their own ``__init__`` import
trainers and hosts. ``weight_tie=True`` is not here: transformers refuses to save such a model.

A batch of BatchTopK's ``forward`` competes for its codes: it is given one token at a time, which is
what its authors' own tests of CLIP do.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pack import expect, files, pack, refuse
from torch import Tensor

TARGET = Path(__file__).with_name("mayfull-b09bd42.zip")
_seeds = count()


def library() -> tuple[Any, Any, Any]:
    """The modules of models, of their configs, and of the one with a decoder per stream."""
    root = next(Path(p) for p in sys.path if (Path(p) / "src/models/modeling_sae.py").is_file())
    for name in ("src", "src.models"):
        module = types.ModuleType(name)
        module.__path__ = [str(root / name.replace(".", "/"))]
        sys.modules[name] = module
    names = ("modeling_sae", "configuration_sae", "shared_enc_sae")
    modeling, configuration, shared = (importlib.import_module(f"src.models.{n}") for n in names)
    return modeling, configuration, shared


@torch.no_grad()
def moved(model: Any) -> Any:
    """The model with every parameter at random."""
    torch.manual_seed(next(_seeds))
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return model


def dense(values: Tensor, places: Tensor, m: int) -> Tensor:
    """[n, k] values and their places as [n, m] codes."""
    return torch.zeros(len(values), m).scatter(-1, places, values)


def main() -> None:
    """Write the zip."""
    modeling, configuration, shared = library()
    root = Path(tempfile.mkdtemp())

    def build(name: str, d: int = 6, m: int = 16, k: int = 4, **options: Any) -> Any:
        config = getattr(configuration, f"{name}Config")
        made = getattr(modeling, name)(config(hidden_size=d, latent_size=m, k=k, **options))
        return moved(made).eval()

    def save(case: str, model: Any, **options: Any) -> None:
        model.save_pretrained(files(root, case), **options)
        model.float()  # the file's numbers, in the arithmetic that is compared

    @torch.no_grad()
    def one(case: str, model: Any, *, k: int | None = None, **options: Any) -> None:
        """A dictionary for any stream."""
        save(case, model, **options)
        x = torch.randn(9, model.hidden_size) * 2 + 1
        model.cfg.k = k or model.cfg.k
        values, places = model.encode(x[:, None])
        codes = dense(values[:, 0], places[:, 0], model.latent_size)
        told = {} if k is None else {"k": k}
        expect(root, case, x, codes, model.decode(values, places)[:, 0], **told)
        outputs = torch.cat([model(token[None, None]).output[0] for token in x])
        torch.testing.assert_close(outputs, model.decode(values, places)[:, 0])

    @torch.no_grad()
    def split(case: str, model: Any, **options: Any) -> None:
        """A dictionary whose features belong to image, both or text."""
        save(case, model, **options)
        x, image = torch.randn(12, model.hidden_size) * 2 + 1, torch.arange(12) % 2 == 0
        found = [model(x[i, None, None], visual_mask=image[i, None, None]) for i in range(12)]
        values, places = (
            torch.cat([getattr(f, name)[0] for f in found])
            for name in ("latent_activations", "latent_indices")
        )
        codes = dense(values, places, model.latent_size)
        expect(root, case, x, codes, torch.cat([f.output[0] for f in found]), image=image)

    for name in ("TopKSAE", "BatchTopKSAE"):
        for d, m in ((6, 16), (8, 8)):
            one(f"{name}-{d}-{m}", build(name, d, m, normalize_decoder=m == d))
        one(f"{name}-other-k", build(name, multi_topk=True), k=7)
        one(f"{name}-half", build(name).to(torch.bfloat16))
    one("TopKSAE-expansion", build("TopKSAE", 6, 0, expansion_factor=3))
    one("TopKSAE-shards", build("TopKSAE"), max_shard_size=400)
    one("MatryoshkaSAE", build("MatryoshkaSAE", group_sizes=[4, 12]))
    one("MatryoshkaSAE-no-size", build("MatryoshkaSAE", m=0, group_sizes=[5, 8]))
    for ratio in (None, [2, 12, 2], [6, 4, 6], [4, 8, 4], [1, 1, 3]):
        label = "default" if ratio is None else "-".join(map(str, ratio))
        split(f"VLTopKSAE-{label}", build("VLTopKSAE", vl_split_ratio=ratio))
        split(f"VLBatchTopKSAE-{label}", build("VLBatchTopKSAE", vl_split_ratio=ratio))
    split("VLTopKSAE-square", build("VLTopKSAE", 8, 8, 2))
    split("VLTopKSAE-uneven", build("VLTopKSAE", 6, 13, 3, vl_split_ratio=[2, 3, 2]))
    split("VLTopKSAE-all", build("VLTopKSAE", k=14))  # more than either stream has
    split("VLTopKSAE-shards", build("VLTopKSAE"), max_shard_size=400)
    split("VLTopKSAE-half", build("VLTopKSAE").to(torch.bfloat16))
    groups = {"group_sizes": [4, 12], "shared_group_sizes": [3, 5]}
    split("VLMatryoshkaSAE", build("VLMatryoshkaSAE", **groups))

    save("VLTopKSAE-blocks", build("VLTopKSAE", block_top_k=[1, 3]))
    refuse(root, "VLTopKSAE-blocks", "block_top_k")
    for name in ("MatryoshkaSAE", "VLMatryoshkaSAE"):
        case = f"{name}-prefix"
        save(case, build(name, group_sizes=[4, 12], active_groups=1))
        refuse(root, case, "active_groups")

    sides(root, build, save)
    decoders(root, shared, save)
    pack(root, TARGET)


@torch.no_grad()
def sides(root: Path, build: Any, save: Any) -> None:
    """Two dictionaries in one file, one per stream."""
    for name in ("TwoSidedTopKSAE", "TwoSidedBatchTopKSAE"):
        for d, m in ((6, 16), (8, 16)):
            model, case = build(name, d, m, 3), f"{name}-{d}-{m}"
            save(case, model)
            x, image = torch.randn(12, d) * 2 + 1, torch.arange(12) % 2 == 0
            codes, back = torch.zeros(12, m // 2), torch.zeros(12, d)
            for side, rows in ((model.image_sae, image), (model.text_sae, ~image)):
                values, places = side.encode(x[rows, None])
                codes[rows] = dense(values[:, 0], places[:, 0], m // 2)
                back[rows] = side.decode(values, places)[:, 0]
            expect(root, case, x, codes, back, image=image)


@torch.no_grad()
def decoders(root: Path, shared: Any, save: Any) -> None:
    """One encoder, and a decoder per stream."""
    for d, m in ((6, 16), (8, 8)):
        config = shared.SharedEncSAEConfig(hidden_size=d, latent_size=m, k=3)
        model, case = moved(shared.SharedEncSAE(config)).eval(), f"SharedEncSAE-{d}-{m}"
        save(case, model)
        x, image = torch.randn(12, d) * 2 + 1, torch.arange(12) % 2 == 0
        found = model(image_embeds=x, text_embeds=x)
        back = torch.where(image[:, None], found.image_output, found.text_output)
        expect(root, case, x, found.latent_image, back, image=image)


if __name__ == "__main__":
    main()
