"""One patch by either engine: runs of a host, their bits, and what lies on its modules."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from conftest import IMAGE_TOKEN, make_llava, random_dictionary
from torch import Tensor, nn

from vlm_edit import Adapter, Host, Patch, Scale, Steer

Inputs = dict[str, Tensor]
Run = Callable[[nn.Module], Any]

LLAVA = make_llava()  # shared: every use leaves it as it was, which `compare` holds
NEW = 5


def patch_at(site: str = "language.1", tokens: Any = "image", width: int = 32, **chosen) -> Patch:
    rules = [Scale(range(30), 3.0), Steer([31], 2.0)]
    return Patch(site, random_dictionary(width), rules, tokens, **chosen)


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        return []
    return [tensor for value in values for tensor in tensors(value)]


@torch.no_grad()
def bits(host: nn.Module, run: Run) -> list[Tensor]:
    torch.manual_seed(3)
    found = tensors(run(host))
    assert found
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def compare(
    host: nn.Module,
    patch: Patch,
    run: Run,
    adapter: Adapter | None = None,
    *,
    acts: bool = True,
    **options: Any,
) -> Any:
    """Both engines' bits and reports are equal, and nothing stays; returns the report."""
    before, there = bits(host, run), Host.of(host, adapter=adapter)
    seen = []
    for via in ("hooks", "nnsight"):
        with warnings.catch_warnings(), patch.attach(there, via=via, **options) as attached:
            warnings.simplefilter("error")
            seen.append((bits(host, run), attached.report()))
        assert same(bits(host, run), before)
    (expected, report), (found, other) = seen
    assert same(found, expected)
    assert same(expected, before) != acts
    assert other == report
    return report


def generating(inputs: Inputs, **options: Any) -> Run:
    # A host that says its own placeholder cannot read what it said, patch or not.
    options = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "suppress_tokens": [IMAGE_TOKEN],
        "return_dict_in_generate": True,
        "output_logits": True,
        "use_cache": True,
    } | options

    def run(host: nn.Module) -> list[Tensor]:
        output = host.generate(**inputs, **options)
        return [output.sequences, *output.logits]

    return run


def row(inputs: Inputs, i: int = 0) -> Inputs:
    return {name: value[i : i + 1] for name, value in inputs.items()}


def embedded(inputs: Inputs) -> Inputs:
    embeds = LLAVA.get_input_embeddings()(inputs["input_ids"]).detach()
    return {"inputs_embeds": embeds} | {k: v for k, v in inputs.items() if k != "input_ids"}


MODES: dict[str, Callable[[Inputs], Run]] = {
    "forward": lambda inputs: lambda host: host(**inputs).logits,
    "greedy": lambda inputs: generating(row(inputs)),
    "left-padded batch": generating,
    "sampling": lambda inputs: generating(inputs, do_sample=True),
    "beams": lambda inputs: generating(inputs, num_beams=2),
    "several sequences": lambda inputs: generating(inputs, num_return_sequences=2, do_sample=True),
    "static cache": lambda inputs: generating(
        inputs, cache_implementation="static", disable_compile=True
    ),
    "no cache": lambda inputs: generating(inputs, use_cache=False),
    "prompt lookup": lambda inputs: generating(
        row(inputs), prompt_lookup_num_tokens=2, eos_token_id=-1
    ),
    "chunked prefill": lambda inputs: generating(row(inputs), prefill_chunk_size=3),
    "embeddings": lambda inputs: generating(embedded(inputs)),
}


def left(host: nn.Module) -> list[str]:
    """Everything that lies on the host's modules and is not its own, by module."""
    return [
        f"{name}: {type(value).__module__}.{type(value).__name__} {slot}"
        for name, module in host.named_modules()
        for slot, value in module.__dict__.items()
        if type(value).__module__.startswith("vlm_edit")
        or (slot.startswith("_forward") and slot.endswith("hooks") and value)
    ]
