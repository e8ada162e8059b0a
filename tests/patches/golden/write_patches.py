"""Patch files of every format there was, each with what it does to a plain host.

Every change of the format adds a folder here, written by the last code of the former version,
before the change. In a checkout of it:

    python tests/patches/golden/write_patches.py tests/patches/golden/version-N

writes a patch file for each case, and ``expected.safetensors``: the host's weights, its inputs and
what comes out with each patch attached. Nothing in a folder is ever written again:
``test_golden_patches.py`` holds that each file still loads and gives the same numbers. Cases for
what the new version can are added to ``cases`` when it is about to become a former one.

The host is plain PyTorch, so that no other library's next release changes what is expected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm_edit import Ablate, Adapter, Clamp, Dictionary, Host, Keep, Patch, Project, Scale, Steer
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Blend, Cap, Detect

FOLDER = Path(__file__).resolve().parent
WIDTH, FEATURES, IMAGE = 6, 12, 9


class Cache:
    """Remembers how many tokens came, which is all a call needs to know."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length


class Plain(nn.Module):
    """Two language layers over merged image tokens, and a joint embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.visual, self.textual = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - the hooks read it
        pixel_values: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Any:
        """Every layer's output, and the cache."""
        x, hidden = self.embed(input_ids), []
        if pixel_values is not None:
            x = x.masked_scatter((input_ids == IMAGE).unsqueeze(-1), pixel_values)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
            hidden.append(x)
        before = 0 if past_key_values is None else past_key_values.length
        cache = Cache(before + input_ids.shape[1])
        return SimpleNamespace(hidden=torch.cat(hidden, -1), past_key_values=cache)

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, answer: Tensor
    ) -> Tensor:
        """[B, P + A, 2 D], of a prompt and an answer that is given, a token at a time."""
        found = self(input_ids, attention_mask, pixel_values)
        hidden = [found.hidden]
        for token in answer.split(1, dim=1):
            attention_mask = torch.cat([attention_mask, torch.ones_like(token)], 1)
            found = self(token, attention_mask, past_key_values=found.past_key_values)
            hidden.append(found.hidden)
        return torch.cat(hidden, 1)


ADAPTER = Adapter.of(
    {
        "joint": [("visual", "image", WIDTH), ("textual", "text", WIDTH)],
        "language.{i}": ("layers.{i}", "mixed", WIDTH),
    },
    image_token=IMAGE,
)


def run(host: Plain, inputs: dict[str, Tensor]) -> Tensor:
    """[B, P + A + 2, 2 D]: what ``generate`` sees, then the joint embedding of image and text."""
    known = {k: inputs[k] for k in ("input_ids", "attention_mask", "pixel_values", "answer")}
    with torch.no_grad():
        pooled = inputs["pooled"]
        joint = torch.stack([host.visual(pooled), host.textual(pooled)], 1)
        return torch.cat([host.generate(**known), joint.repeat(1, 1, 2)], 1)


def make_inputs() -> dict[str, Tensor]:
    """Two prompts, the second left-padded, with two image tokens each, and answers of three."""
    g = torch.Generator().manual_seed(1)
    ids = torch.tensor([[1, IMAGE, IMAGE, 2, 3], [0, 4, IMAGE, IMAGE, 5]])
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randn(4, WIDTH, generator=g),
        "answer": torch.tensor([[6, 7, 8], [3, 2, 1]]),
        "pooled": torch.randn(2, WIDTH, generator=g),
    }


def make_dictionary(activation: str = "relu", seed: int = 0, **options: Any) -> Dictionary:
    """A random dictionary, about half of whose features are active."""
    g = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    weight, bias, subtract = some(WIDTH, FEATURES), some(FEATURES) * 0.1, some(WIDTH) * 0.1
    decoder = some(FEATURES, WIDTH) / WIDTH**0.5
    competing = {"topk": 4, "topk_signed": 4, "topk_abs": 4, "groupmax": 4}
    encoder = Encoder(
        weight,
        bias,
        activation,  # type: ignore[arg-type]
        threshold=torch.full((FEATURES,), 0.3) if activation == "jumprelu" else None,
        k=competing.get(activation),
        **{"subtract": subtract, **options},
    )
    return Dictionary(encoder, decoder, subtract)


RULES = [Ablate([7, 3]), Scale([3, 9], 2.5, strength=0.5), Clamp([1], -1.0), Steer([9], 0.75)]


def cases() -> dict[str, Callable[[], Patch]]:
    """A patch for each thing that a file can say."""
    at, made = Patch, make_dictionary
    centers = {"image": torch.full((WIDTH,), 0.4), "text": torch.full((WIDTH,), -0.3)}
    found: dict[str, Callable[[], Patch]] = {
        "two": lambda: (
            at("language.0", made(), RULES, info={"why": "gölden"})
            + at("language.1", made(seed=1), RULES, "text")
        ),
        "joint": lambda: at("joint", made(), RULES, "image") + at("joint", made(seed=1), RULES),
        "neurons": lambda: at("joint", Dictionary.identity(WIDTH), [Ablate([0]), Scale([2], 3.0)]),
        "steer": lambda: at("language.0", made(), [Steer([2, 5], 1.5), Steer([5], -0.25)]),
        "centers": lambda: at("language.0", made(centers=centers), RULES),
        "centers-joint": lambda: at("joint", made("topk", centers=centers), RULES),
        "soft-cap": lambda: at("language.1", made(soft_cap=0.5), RULES),
        "no-subtract": lambda: at("language.1", made(subtract=None), RULES),
        "positions": lambda: at("language.0", made(), RULES, "text", positions=[-1, 0]),
        "steps": lambda: at("language.0", made(), RULES, steps=(1, 3)),
        "decode": lambda: at("language.0", made(), RULES, phase="decode", steps=(1, None)),
        "prompt": lambda: at("language.1", made(), RULES, "image", phase="prompt"),
    }
    # Of format 2 and later.
    whole = [0.2] * WIDTH
    rules = {
        "cap": [Cap([3, 9], 0.2)],
        "blend": [Blend([1, 7], [0.5, 0.0], strength=0.75)],
        "keep": [Keep([1, 2, 3])],
        "project": [Project([4, 8])],
        "detect": [Detect([1, 5], whole, threshold=0.2)],
        "detect-add": [Ablate([3]), Detect([1, 5], whole, mode="add"), Scale([9], 2.0)],
        "relative": [Steer([2, 6], 0.5, relative=True)],
    }
    for name, chosen in rules.items():
        found[name] = lambda of=chosen: at("language.0", made(), of)
    found["schedule"] = lambda: at("language.0", made(), RULES, schedule=[0.5, 2.0])
    found["gate"] = lambda: at("language.1", made(), RULES, gate=-4.0)
    for activation in ("jumprelu", "topk", "topk_signed", "topk_abs", "groupmax", "identity"):
        found[activation] = lambda of=activation: at("language.0", made(of), RULES)
    for norm in ("layer_norm", "constant_norm_rescale"):
        found[norm] = lambda of=norm: at("language.0", made(norm=of), RULES)
    return found


def main(folder: Path) -> None:
    """Write a version's folder, which must not be there."""
    folder.mkdir()
    torch.manual_seed(0)
    host, inputs = Plain().eval(), make_inputs()
    tensors = {f"host.{name}": value for name, value in host.state_dict().items()}
    tensors |= {f"inputs.{name}": value for name, value in inputs.items()}
    tensors["output.nothing"] = run(host, inputs)
    for name, make in cases().items():
        patch = make()
        patch.save(folder / f"{name}.safetensors", Host.of(host, adapter=ADAPTER))
        with patch.attach(Host.of(host, adapter=ADAPTER)):
            tensors[f"output.{name}"] = run(host, inputs)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
    sizes = [file.stat().st_size for file in folder.iterdir()]
    print(f"{folder}: {len(sizes)} files, {sum(sizes)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
