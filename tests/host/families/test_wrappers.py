"""Hosts that another library has wrapped, offloaded, sharded or quantised, each by that library.

Eight-bit layers are bitsandbytes' own, which run on a CPU too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import accelerate
import bitsandbytes
import peft
import pytest
import torch
from conftest import random_dictionary
from tiny_hosts import FAMILIES
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vlm_edit import Patch, Scale, Steer, load_patch
from vlm_edit.host import find_sites, unwrap

LLAVA = FAMILIES["llava"]
RULES = [Scale(range(20), -2.0), Steer([25], 3.0)]


def patch() -> Patch:
    return Patch("vision.0", random_dictionary(24), RULES) + Patch(
        "language.1", random_dictionary(32), RULES, tokens="image"
    )


def lora() -> peft.LoraConfig:
    return peft.LoraConfig(target_modules=["q_proj", "linear_1"], init_lora_weights=False)


def with_lora(host: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return peft.get_peft_model(host, lora()).eval()


def with_lora_inside(host: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    # What ``host.add_adapter`` does, which transformers 5.24 refuses to any peft that is out.
    peft.inject_adapter_in_model(lora(), host)
    return host.eval()


def in_eight_bits(host: nn.Module) -> nn.Module:
    linears = {n: m for n, m in host.named_modules() if isinstance(m, nn.Linear)}
    for name, old in linears.items():
        if name == "lm_head":
            continue
        bias = old.bias is not None
        new = bitsandbytes.nn.Linear8bitLt(
            old.in_features, old.out_features, bias, has_fp16_weights=False
        )
        new.load_state_dict(old.state_dict())
        host.set_submodule(name, new.to("cpu"))  # the move quantises
    assert host.model.language_model.layers[1].mlp.up_proj.weight.dtype == torch.int8
    return host


def on_disk(host: nn.Module, folder: Path) -> nn.Module:
    places = {
        **{"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu"},
        **{"model.language_model": "disk", "lm_head": "cpu"},
    }
    return accelerate.dispatch_model(
        host, places, main_device="cpu", offload_dir=folder, force_hooks=True
    )


def sharded(host: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in host.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(host, mesh=mesh)


@pytest.fixture
def one_process(tmp_path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def holds(wrapped: nn.Module, same: bool = False) -> None:
    """Edits act in it as in a host of the same weights, and leave no bit behind.

    Args:
        wrapped: A llava as another library made it.
        same: Whether its weights are still those of a plain llava.
    """
    inputs = LLAVA.inputs()
    before = LLAVA.answers(wrapped, inputs)
    with patch().attach(wrapped):
        during = LLAVA.answers(wrapped, inputs)
    after = LLAVA.answers(wrapped, inputs)
    assert all((old != new).any() for old, new in zip(before, during, strict=True))
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    if same:
        plain = LLAVA.make()
        with patch().attach(plain):
            expected = LLAVA.answers(plain, inputs)
        for new, want in zip(during, expected, strict=True):
            assert torch.allclose(new, want, atol=1e-5)


def test_a_host_inside_peft_is_edited_with_its_lora():
    wrapped = with_lora(LLAVA.make())
    assert type(unwrap(wrapped)).__name__ == "LlavaForConditionalGeneration"
    assert find_sites(wrapped)["language.0"].taps[0].path == "model.language_model.layers.0"
    holds(wrapped)
    inputs = LLAVA.inputs()
    with patch().attach(wrapped):
        outside = LLAVA.answers(wrapped, inputs)
        inside = LLAVA.answers(unwrap(wrapped), inputs)
        with wrapped.disable_adapter():
            without = LLAVA.answers(wrapped, inputs)
    plain = LLAVA.make()
    with patch().attach(plain):
        expected = LLAVA.answers(plain, inputs)
    for a, b, c, d in zip(outside, inside, without, expected, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(c, d, atol=1e-5)
        assert not torch.allclose(a, c, atol=1e-2)


def test_a_host_with_lora_layers_put_inside_it_is_edited():
    holds(with_lora_inside(LLAVA.make()))


def test_a_language_model_wrapped_by_peft_inside_its_host_is_edited():
    host = LLAVA.make()
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    host.model.language_model = peft.get_peft_model(host.model.language_model, config).eval()
    holds(host)


def test_a_host_offloaded_by_accelerate_is_edited_while_its_weights_are_away():
    offloaded = accelerate.cpu_offload(LLAVA.make(), execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in offloaded.parameters()} == {"meta"}
    holds(offloaded, same=True)


def test_a_host_dispatched_by_accelerate_to_the_disk_is_edited(tmp_path):
    dispatched = on_disk(LLAVA.make(), tmp_path)
    assert {weight.device.type for weight in dispatched.parameters()} == {"cpu", "meta"}
    holds(dispatched, same=True)


WRAPPERS = {
    "peft": with_lora,
    "accelerate": lambda host: accelerate.cpu_offload(host, execution_device=torch.device("cpu")),
    "bitsandbytes": in_eight_bits,
    "DistributedDataParallel": DistributedDataParallel,
    "FSDP 1": lambda host: FullyShardedDataParallel(host, device_id=torch.device("cpu")),
    "FSDP 2": sharded,
}


@pytest.mark.parametrize(
    "wrap",
    [pytest.param(wrap, id=name) for name, wrap in WRAPPERS.items()],
)
@pytest.mark.usefixtures("one_process")
def test_a_patch_that_was_saved_for_a_plain_host_fits_it_wrapped(wrap, tmp_path):
    patch().save(tmp_path / "patch.safetensors", LLAVA.make())
    load_patch(tmp_path / "patch.safetensors").attach(wrap(LLAVA.make())).remove()


def test_a_host_with_layers_in_eight_bits_is_edited():
    holds(in_eight_bits(LLAVA.make()))


@pytest.mark.usefixtures("one_process")
def test_a_host_in_distributed_data_parallel_is_edited():
    holds(DistributedDataParallel(LLAVA.make()), same=True)


@pytest.mark.usefixtures("one_process")
def test_a_host_sharded_by_fsdp_two_is_edited():
    wrapped = sharded(LLAVA.make())
    assert type(wrapped).__name__ == "FSDPLlavaForConditionalGeneration"
    holds(wrapped, same=True)


@pytest.mark.usefixtures("one_process")
def test_a_host_sharded_by_fsdp_one_is_edited():
    host = LLAVA.make()
    wrapped = FullyShardedDataParallel(host, device_id=torch.device("cpu"))
    assert unwrap(wrapped) is host
    holds(wrapped, same=True)


def test_a_host_whose_language_model_is_compiled_is_edited():
    host = LLAVA.make()
    host.model.language_model = torch.compile(host.model.language_model, backend="eager")
    with torch.compiler.set_stance("force_eager"):
        holds(host, same=True)


@pytest.mark.usefixtures("one_process")
def test_wrappers_around_wrappers_are_seen_through():
    host = LLAVA.make()
    wrapped = torch.compile(DistributedDataParallel(with_lora(host)), backend="eager")
    assert unwrap(wrapped) is host
    with torch.compiler.set_stance("force_eager"):  # compiled code has its tests elsewhere
        holds(wrapped)
