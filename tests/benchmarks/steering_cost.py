"""What a steering edit costs: the same vector added at the same layer, by several libraries.

Two measurements in one run, every method in turn, each round in another order:

- ``generate`` of a random LLaVA, as a ratio to the same round's plain run;
- one step alone: a model that does nothing but call its layers, whose time is what the edit adds.

    python tests/benchmarks/steering_cost.py

Libraries that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from vlm_edit import Host

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlm_edit import Adapter, Dictionary, Patch, Scale, Steer
from vlm_edit.dictionaries import Encoder
from vlm_edit.host import find_adapter
from vlm_edit.report import Table

Work = Callable[[nn.Module], Any]  # on a host
Edit = Callable[[Work], Any]  # does the work with the edit in force
Method = Callable[["Subject"], AbstractContextManager[Edit]]


@dataclass
class Subject:
    """A host, and the edit made to it.

    Attributes:
        host: Has layers at ``model.language_model.layers``.
        layer: Which of them is edited.
        vector: [d], added to every token.
        features: Of the dictionary of the methods that edit a feature instead.
        adapter: None for the one that belongs to the host.
    """

    host: nn.Module
    layer: int
    vector: Tensor
    features: int = 16384
    adapter: Adapter | None = None

    @property
    def path(self) -> str:
        """The edited layer's path."""
        return f"model.language_model.layers.{self.layer}"


@contextmanager
def plain(subject: Subject) -> Iterator[Edit]:
    """No edit."""
    yield lambda work: work(subject.host)


@contextmanager
def torch_hook(subject: Subject) -> Iterator[Edit]:
    """The least a hook can do; knows nothing of padding, dtype, phase, counts."""
    vector = subject.vector
    module = subject.host.get_submodule(subject.path)
    handle = module.register_forward_hook(lambda _m, _a, output: output + vector, prepend=True)
    try:
        yield lambda work: work(subject.host)
    finally:
        handle.remove()


@contextmanager
def ours(subject: Subject) -> Iterator[Edit]:
    """``Steer`` on a dictionary whose one feature is the vector."""
    width = len(subject.vector)
    encoder = Encoder(torch.zeros(width, 1), torch.zeros(1))
    dictionary = Dictionary(encoder, subject.vector[None], torch.zeros(width))
    patch = Patch(f"language.{subject.layer}", dictionary, Steer([0], 1.0))
    with patch.attach(Host.of(subject.host, adapter=subject.adapter)):
        yield lambda work: work(subject.host)


@contextmanager
def ours_feature(subject: Subject) -> Iterator[Edit]:
    """``Scale`` of one feature of a JumpReLU dictionary; another edit than the others'."""
    with feature_patch(subject).attach(Host.of(subject.host, adapter=subject.adapter)):
        yield lambda work: work(subject.host)


@contextmanager
def full_sae(subject: Subject) -> Iterator[Edit]:
    """The same feature's edit, encoding and decoding everything and keeping the error."""
    dictionary = jumprelu(len(subject.vector), subject.features)

    def hook(_module: nn.Module, _args: Any, hidden: Tensor) -> Tensor:
        codes = dictionary.encode(hidden)
        error = hidden - dictionary.decode(codes)
        codes[..., 7] *= 3.0
        return dictionary.decode(codes) + error

    module = subject.host.get_submodule(subject.path)
    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield lambda work: work(subject.host)
    finally:
        handle.remove()


@contextmanager
def nnsight(subject: Subject) -> Iterator[Edit]:
    """A stored edit, in force at every step. On a copy: the wrapped host stays slower."""
    library = importlib.import_module("nnsight")
    vector, host = subject.vector, copy.deepcopy(subject.host)
    with library.NNsight(host).edit() as (tracer, edited):
        for _step in tracer.iter[:]:
            layer = edited.get(subject.path)
            layer.output = layer.output + vector
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was never reached")  # how an open loop ends
        yield lambda work: edited.interleave(lambda: work(host))


@contextmanager
def steering_vectors(subject: Subject) -> Iterator[Edit]:
    """``SteeringVector.apply``."""
    library = importlib.import_module("steering_vectors")
    vector = library.SteeringVector({subject.layer: subject.vector})
    config = {"decoder_block": "model.language_model.layers.{num}"}
    with vector.apply(subject.host, layer_config=config):
        yield lambda work: work(subject.host)


@contextmanager
def repeng(subject: Subject) -> Iterator[Edit]:
    """``ControlModel.set_raw_control``."""
    import numpy

    if not hasattr(numpy, "float_"):
        numpy.float_ = numpy.float64  # type: ignore[attr-defined]  # repeng is of numpy 1
    library = importlib.import_module("repeng.control")
    model = library.ControlModel(
        SimpleNamespace(model=subject.host.get_submodule("model.language_model")), [subject.layer]
    )
    model.set_raw_control({subject.layer: subject.vector})
    try:
        yield lambda work: work(subject.host)
    finally:
        model.unwrap()


# What they are called in the table, and what pip calls those that may be missing.
SAME: dict[str, tuple[Method, str | None]] = {
    "plain": (plain, None),
    "bare torch hook": (torch_hook, None),
    "vlm-edit": (ours, None),
    "nnsight": (nnsight, "nnsight"),
    "steering-vectors": (steering_vectors, "steering-vectors"),
    "repeng": (repeng, "repeng"),
}
OTHER: dict[str, tuple[Method, str | None]] = {
    "vlm-edit, one JumpReLU feature": (ours_feature, None),
    "hook with the full JumpReLU": (full_sae, None),
}


def jumprelu(width: int, features: int) -> Dictionary:
    """A random JumpReLU dictionary."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(
        torch.randn(features, width, generator=generator), dim=-1
    )
    encoder = Encoder(
        decoder.T.contiguous(),
        torch.zeros(features),
        "jumprelu",
        threshold=torch.full((features,), 0.5),
    )
    return Dictionary(encoder, decoder, torch.zeros(width))


def feature_patch(subject: Subject) -> Patch:
    """Feature 7, three times as strong."""
    dictionary = jumprelu(len(subject.vector), subject.features)
    return Patch(f"language.{subject.layer}", dictionary, Scale([7], 3.0))


def make_llava(width: int, layers: int) -> LlavaForConditionalGeneration:
    """A random LLaVA without an end-of-sequence token."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.1,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=500, eos_token_id=None
    )
    return LlavaForConditionalGeneration(config).eval()


class Idle(nn.Module):
    """A layer that does nothing."""

    def forward(self, hidden: Tensor) -> Tensor:
        """What came in."""
        return hidden


class IdleHost(nn.Module):
    """A LLaVA's shape and arguments, and none of its work: what it costs is the edit."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.language_model = nn.Module()
        count = config.text_config.num_hidden_layers
        self.model.language_model.layers = nn.ModuleList(Idle() for _ in range(count))

    def forward(self, hidden: Tensor, **_others: Any) -> Tensor:
        """Call the layers, as one step of decoding would."""
        hidden = hidden.clone()  # some libraries edit in place
        for layer in self.model.language_model.layers:
            hidden = layer(hidden)
        return hidden

    def generate(self, input_ids: Tensor, attention_mask: Tensor, width: int, steps: int) -> Tensor:
        """The calls of a host's ``generate`` behind its prompt."""
        cache = DynamicCache()
        cache.update(*torch.zeros(2, 1, 1, input_ids.shape[1], 1), 0)
        step = {
            "input_ids": input_ids[:, :1],
            "attention_mask": attention_mask,
            "past_key_values": cache,
            "hidden": torch.ones(1, 1, width),
            "use_cache": True,
            "return_dict": True,
        }
        for _ in range(steps):
            output = self(**step)
        return output


def idle_steps(width: int, steps: int) -> Work:
    """Steps of decoding behind a prompt of eight tokens."""
    ids = torch.ones(1, 8, dtype=torch.long)
    return lambda host: host.generate(input_ids=ids, attention_mask=ids, width=width, steps=steps)


def generation(tokens: int) -> Work:
    """Greedy decoding behind an image and a few words."""
    ids = torch.tensor([[1, 5, *[500] * 16, 6, 7, 8]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return lambda host: host.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@dataclass
class Timing:
    """Seconds of each round."""

    cpu: list[float]
    wall: list[float]


def in_turn(
    subject: Subject, work: Work, methods: dict[str, Method], rounds: int
) -> dict[str, Timing]:
    """Time the methods in turn; each round begins with another."""
    found = {name: Timing([], []) for name in methods}
    order = list(methods)
    for number in range(-1, rounds):  # the first warms up
        for name in order[number % len(order) :] + order[: number % len(order)]:
            with methods[name](subject) as edit:
                cpu, wall = time.process_time(), time.perf_counter()
                edit(work)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number >= 0:
                found[name].cpu.append(cpu)
                found[name].wall.append(wall)
    return found


def expect_same(
    subject: Subject, work: Work, methods: dict[str, Method], read: Callable[[Any], Tensor]
) -> dict[str, float]:
    """Largest difference of each method from the bare hook.

    Raises:
        AssertionError: A method does another edit, or the edit changes nothing.
    """
    results = {}
    for name, method in methods.items():
        with method(subject) as edit, torch.no_grad():
            results[name] = read(edit(work)).clone()
    expected = results["bare torch hook"]
    if bool((results["plain"] == expected).all()):
        raise AssertionError("the edit changes nothing")
    off = {name: float((found - expected).abs().max()) for name, found in results.items()}
    scale = float(expected.abs().max())
    wrong = [name for name, by in off.items() if name != "plain" and by > 1e-4 * scale]
    if wrong:
        raise AssertionError(f"{', '.join(wrong)}: not the edit of the bare hook")
    return off


def available(methods: dict[str, tuple[Method, str | None]]) -> dict[str, Method]:
    """Those whose library is installed; the others are named on the screen."""
    found = {}
    for name, (method, package) in methods.items():
        try:
            if package is not None:
                importlib.metadata.version(package)
            found[name] = method
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is left out: it is not installed")
    return found


def measure(args: argparse.Namespace) -> None:
    """Check that all do the same, time them, print the tables."""
    torch.set_num_threads(1)
    same, other = available(SAME), available(OTHER)
    host = make_llava(args.width, args.layers)
    vector = torch.randn(args.width, generator=torch.Generator().manual_seed(2))
    subject = Subject(host, args.layers // 2, vector, args.features)
    adapter = find_adapter(host)
    language = tuple(rule for rule in adapter.sites if rule.name.startswith("language"))
    idle = Subject(
        IdleHost(host.config),
        subject.layer,
        vector,
        args.features,
        replace(adapter, sites=language),
    )
    steps, alone = generation(args.tokens), idle_steps(args.width, args.steps)
    everything = same | other

    with torch.no_grad():
        expect_same(idle, alone, same, lambda output: output)
        off = expect_same(subject, steps, same, lambda output: torch.cat(output.logits))
        isolated = in_turn(idle, alone, everything, args.rounds)
        whole = in_turn(subject, steps, everything, args.rounds)

    packages = ["torch", "transformers", *(p for n, (_, p) in SAME.items() if p and n in same)]
    told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    print(f"{told}; Python {platform.python_version()}, {os.cpu_count()} cores, one thread")
    print(
        f"A random LLaVA: width {args.width}, {args.layers} layers, float32, batch 1; the edit is "
        f"at layer {subject.layer}. {args.rounds} rounds.\n"
    )
    print(isolated_table(isolated, args.steps))
    print()
    print(whole_table(whole, off, args.tokens))


def isolated_table(found: dict[str, Timing], steps: int) -> Table:
    """Microseconds a step that each method adds."""
    base = found["plain"]
    added = {
        name: statistics.median(
            (mine - other) / steps * 1e6 for mine, other in zip(t.cpu, base.cpu, strict=True)
        )
        for name, t in found.items()
    }
    rows = [
        [name, f"{added[name]:.1f}", f"{added[name] / added['vlm-edit']:.1f}"]
        for name in found
        if name != "plain"
    ]
    title = f"One step alone: layers that do nothing, one token; {steps} steps a round"
    return Table(title, ["method", "adds us of CPU a step", "times vlm-edit's"], rows)


def whole_table(found: dict[str, Timing], off: dict[str, float], tokens: int) -> Table:
    """Ratios to plain within each round."""
    base = found["plain"]
    rows = []
    for name, timing in found.items():
        cpu = ratios(timing.cpu, base.cpu)
        wall = ratios(timing.wall, base.wall)
        milliseconds = statistics.median(timing.cpu) / tokens * 1e3
        change = f"{off[name]:.0e}" if name in off and name != "plain" else ""
        rows.append([name, f"{milliseconds:.2f}", told(cpu), told(wall), change])
    titles = [
        "method",
        "ms of CPU a token",
        "CPU, times plain",
        "wall, times plain",
        "logits off by",
    ]
    title = f"generate: {tokens} new tokens behind an image and five words"
    note = "Medians of the rounds' ratios to plain, and their middle halves."
    return Table(title, titles, rows, note)


def ratios(mine: list[float], plain: list[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(mine, plain, strict=True)]


def told(values: list[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What a steering edit costs.")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens a run of generate")
    parser.add_argument("--steps", type=int, default=300, help="steps a round, one step alone")
    parser.add_argument("--features", type=int, default=16384, help="of the JumpReLU dictionary")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args(given)


if __name__ == "__main__":
    measure(parse())
