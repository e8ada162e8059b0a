"""Patches that know their host again where its weights are in pieces, put away or quantised."""

import warnings
from pathlib import Path

import accelerate
import pytest
import torch
from conftest import make_llava, random_dictionary
from processes import run_together
from torch import nn

from vlm_edit import Patch, Scale, VlmEditError, find_sites, load_patch
from vlm_edit.host import expect_host, fingerprint

HERE = Path(__file__).parent
WAYS = ("fully_shard", "columns")
SCRIPT = """
import sys, warnings
sys.path[:0] = sys.argv[2:4]
import torch, torch.distributed as dist
from test_hosts_in_pieces import WAYS, changed, in_pieces, made
from conftest import make_llava
from vlm_edit import VlmEditError, load_patch
from vlm_edit.host import host_checksums
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
warnings.simplefilter("error", UserWarning)
for way in WAYS:
    host = in_pieces(make_llava(), way)
    made().save(f"{sys.argv[1]}/{way}-{rank}", host)
    for kept in (f"{sys.argv[1]}/plain", f"{sys.argv[1]}/{way}-{rank}"):
        load_patch(kept).attach(host).remove()
        try:
            load_patch(kept).attach(in_pieces(changed(), way)).remove()
        except VlmEditError as error:
            assert "differ from those of the host" in str(error)
        else:
            raise AssertionError(f"{kept} took another host, {way}")
    sums, unread = host_checksums(host)
    other = host_checksums(in_pieces(changed(), way))[0]
    assert not unread and sum(sums[name] != other[name] for name in sums) > 5
    told = [None, None]
    dist.all_gather_object(told, sums)
    assert told[0] == told[1]
dist.destroy_process_group()
"""


def made() -> Patch:
    return Patch("language.1", random_dictionary(32), Scale([3], 2.0))


def changed() -> nn.Module:
    """A host whose layer has other weights."""
    host = make_llava()
    for i, weight in enumerate(host.model.language_model.layers[1].parameters()):
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(i))
    return host


def in_pieces(host: nn.Module, way: str) -> nn.Module:
    """A host over all processes: by FSDP 2, or with the columns of its layers' matrices apart."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    if way == "fully_shard":
        for layer in host.model.language_model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(host, mesh=mesh)
    for module in host.model.language_model.layers.modules():
        if isinstance(module, nn.Linear):
            whole = distribute_tensor(module.weight.detach(), mesh, [Shard(1)])
            module.weight = nn.Parameter(whole, requires_grad=False)
    return host


def test_a_patch_saved_from_a_host_in_pieces_refuses_another_host(tmp_path):
    made().save(tmp_path / "plain", make_llava())
    for status, told in run_together(SCRIPT, tmp_path, HERE, HERE.parent):
        assert status == 0, told
    for way in WAYS:
        for rank in range(2):
            patch = load_patch(tmp_path / f"{way}-{rank}")
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                patch.attach(make_llava()).remove()
                patch.attach(make_llava().bfloat16()).remove()
            with pytest.raises(VlmEditError, match="differ from those of the host"):
                patch.attach(changed())


def put_away(host: nn.Module) -> nn.Module:
    return accelerate.cpu_offload(host, execution_device=torch.device("cpu"))


def test_a_host_that_accelerate_has_put_away_is_known_again(tmp_path):
    made().save(tmp_path / "patch", put_away(make_llava()))
    patch = load_patch(tmp_path / "patch")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for host in (make_llava(), put_away(make_llava())):
            patch.attach(host).remove()
    for host in (changed(), put_away(changed())):
        with pytest.raises(VlmEditError, match="differ from those of the host"):
            patch.attach(host)


def in_integers(host: nn.Module) -> nn.Module:
    """A host whose layers' matrices are whole numbers, as quantised ones are."""
    for module in host.model.language_model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().char(), requires_grad=False)
    return host


def test_a_patch_that_cannot_tell_its_host_says_so_when_saved_and_attached(tmp_path):
    with pytest.warns(UserWarning, match=r"samples of the host's weights at language.1 \(its weig"):
        made().save(tmp_path / "blind", in_integers(make_llava()))
    patch = load_patch(tmp_path / "blind")
    assert patch.host["sites"]["language.1"]["unread"] == {
        "model.language_model.layers.1": "its weights are quantised (int8)"
    }
    with pytest.warns(UserWarning, match="cannot be told at language.1 .in the host it was saved"):
        patch.attach(make_llava()).remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        patch.attach(make_llava(), check_host=False).remove()
    patch.save(tmp_path / "again")
    assert load_patch(tmp_path / "again").host == patch.host
    assert "is not told from its own" in patch.card()


def test_a_host_whose_weights_cannot_be_compared_is_let_in_with_a_warning(tmp_path):
    made().save(tmp_path / "patch", make_llava())
    with pytest.warns(UserWarning, match=r"language.1 \(in this host its weights are quantised"):
        load_patch(tmp_path / "patch").attach(in_integers(make_llava())).remove()


def test_what_two_patches_hold_of_one_host_is_compared_where_it_overlaps():
    site = [find_sites(make_llava())["language.1"]]
    whole = fingerprint(make_llava(), site)
    (path,) = whole["sites"]["language.1"]["weights"]
    values = whole["sites"]["language.1"]["weights"][path]
    size, places = 48 * 32, [i * (48 * 32 - 1) // 15 for i in range(16)]

    def pieces(at, values):
        held = {"of": size, "at": at, "values": values}
        told = {"width": 32, "weights": {path: None}, "held": {path: held}}
        return {**whole, "sites": {"language.1": told}}

    half = pieces(places[:8], values[:8])
    assert expect_host(whole, half) == expect_host(half, whole) == {}
    elsewhere = pieces([1, 2, 3], [0.0, 0.0, 0.0])
    assert "other pieces" in expect_host(whole, elsewhere)["language.1"]
    wrong = pieces(places[:8], [*values[:7], values[7] + 5.0])
    for a, b in ((whole, wrong), (wrong, whole), (half, wrong)):
        with pytest.raises(VlmEditError, match="differ from those"):
            expect_host(a, b)


@pytest.mark.parametrize(
    "held",
    [
        {"of": 9, "at": [0, 9], "values": [1.0, 2.0]},
        {"of": 9, "at": [-1], "values": [1.0]},
        {"of": 9, "at": [1, 2], "values": [1.0]},
        {"of": "9", "at": [1], "values": [1.0]},
        {"of": 9, "at": [1.5], "values": [1.0]},
        {"of": 9, "at": [1], "values": ["1"]},
        {"at": [1], "values": [1.0]},
        [1.0],
    ],
)
def test_a_file_whose_samples_are_of_no_tensor_is_refused(held, tmp_path):
    patch = made()
    host = fingerprint(make_llava(), [find_sites(make_llava())["language.1"]])
    host["sites"]["language.1"]["held"] = {"model.language_model.layers.1": held}
    Patch.joined(patch.bindings, host).save(tmp_path / "patch")
    with pytest.raises(VlmEditError, match=r"fingerprint (holds|samples)|header is damaged"):
        load_patch(tmp_path / "patch")
