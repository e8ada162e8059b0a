"""Write what torchattacks finds on a small network, to compare our attacks with.

    python -m venv /tmp/attack && . /tmp/attack/bin/activate
    pip install torch==2.13.0 numpy safetensors && pip install --no-deps torchattacks==3.5.1
    python tests/tasks/adversarial/golden_attacks.py

torchattacks' PGD and PGDL2 start at the images, so that every pixel can be compared; its APGD and
Square draw their starts, so that the start is kept of the one and only shares of the other.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
EPS, EPS_L2, STEPS, APGD_STEPS, QUERIES, MANY = 8 / 255, 0.5, 10, 40, 300, 400


def network(weights: dict[str, Tensor] | None = None) -> nn.Module:
    """Three layers, 10 classes; random weights of seed 0, or given ones."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(6 * 25, 10)]
    made = nn.Sequential(*layers)
    if weights is None:
        with torch.no_grad():
            made[3].weight.mul_(8)
    else:
        made.load_state_dict(weights)
    return made.eval()


def data(model: nn.Module, n: int) -> tuple[Tensor, Tensor]:
    """Images of 3 x 12 x 12, and what the network says of them."""
    images = torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        return images, model(images).argmax(1)


def starts(shape: torch.Size, eps: float) -> Tensor:
    """The start that torchattacks' APGD draws after its seed."""
    torch.manual_seed(0)
    drawn = 2 * torch.rand(shape) - 1
    return eps * drawn / drawn.abs().flatten(1).amax(1).view(-1, 1, 1, 1)


def main() -> None:
    """Write attacks.safetensors beside this script."""
    import torchattacks as ta

    model = network()
    images, labels = data(model, 24)
    many, right = data(model, MANY)
    kept = {f"network.{name}": value for name, value in model.state_dict().items()}
    kept |= {"images": images, "labels": labels}
    pgd = ta.PGD(model, eps=EPS, alpha=EPS / 4, steps=STEPS, random_start=False)
    kept["pgd"] = pgd(images, labels)
    pgd2 = ta.PGDL2(model, eps=EPS_L2, alpha=EPS_L2 / 4, steps=STEPS, random_start=False)
    kept["pgd_l2"] = pgd2(images, labels)
    for loss in ("ce", "dlr"):
        apgd = ta.APGD(model, eps=EPS, steps=APGD_STEPS, seed=0, loss=loss)
        kept[f"apgd_{loss}"] = apgd(images, labels)
        kept[f"apgd_{loss}_broken"] = model(kept[f"apgd_{loss}"]).argmax(1) != labels
        broken = model(ta.APGD(model, eps=EPS / 4, steps=APGD_STEPS, loss=loss)(many, right))
        kept[f"apgd_{loss}_many"] = broken.argmax(1) != right
    square = ta.Square(model, eps=EPS / 2, n_queries=QUERIES, loss="margin")
    kept["square_many"] = model(square(many, right)).argmax(1) != right
    tensors = {k: v.detach().contiguous() for k, v in kept.items()}
    for name in ("apgd_ce_many", "apgd_dlr_many", "square_many", "apgd_ce_broken"):
        print(name, f"{tensors[name].float().mean():.3f}")
    told = {"torchattacks": ta.__version__, "torch": torch.__version__}
    save_file(tensors, HERE / "attacks.safetensors", told)


if __name__ == "__main__":
    sys.exit(main())
