"""Stand-ins: methods of one instance, given back as they were."""

import copy
import gc
import inspect
import weakref

import pytest
import torch
from torch import nn

from vlm_edit import Host, Patch, Scale, VlmEditError, record
from vlm_edit.dictionaries import Dictionary
from vlm_edit.hooks import StandIn
from vlm_edit.host import Adapter


class Counter(nn.Module):
    """Counts with a weight of its own."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def count(self, number: float, *, twice: bool = False) -> float:
        """A number times the factor."""
        return self.factor.item() * number * (2 if twice else 1)


def plus_one(original, args, kwargs):
    return original(*args, **kwargs) + 1


def test_a_stand_in_runs_around_the_method_of_one_instance_only():
    host, other = Counter(), Counter()
    stand_in = StandIn(host, "count", plus_one)
    assert host.count(3) == 7
    assert host.count(3, twice=True) == 13
    assert other.count(3) == 6
    stand_in.remove()
    stand_in.remove()
    assert host.count(3) == 6
    assert "count" not in vars(host)


def test_it_looks_like_the_method():
    host = Counter()
    expected = inspect.signature(host.count)
    stand_in = StandIn(host, "count", plus_one)
    assert inspect.signature(host.count) == expected
    assert (host.count.__name__, host.count.__doc__) == ("count", Counter.count.__doc__)
    stand_in.remove()


@pytest.mark.parametrize("first_out", [0, 1])
def test_stand_ins_over_each_other_may_go_in_any_order(first_out):
    host = Counter()
    stand_ins = [StandIn(host, "count", plus_one), StandIn(host, "count", plus_one)]
    assert host.count(3) == 8
    stand_ins.pop(first_out).remove()
    assert host.count(3) == 7
    stand_ins.pop().remove()
    assert host.count(3) == 6
    assert "count" not in vars(host)


def test_a_wrapper_of_others_below_and_above_stays():
    host = Counter()
    below = lambda number: 100 + number  # noqa: E731
    host.count = below
    stand_in = StandIn(host, "count", plus_one)
    assert host.count(3) == 104
    ours = host.count
    host.count = lambda number: -ours(number)
    assert host.count(3) == -104
    stand_in.remove()
    assert host.count(3) == -103
    host.count = ours
    assert host.count(3) == 103


def test_a_copy_of_the_host_has_no_stand_in_and_counts_with_its_own_weights():
    host = Counter()
    stand_in = StandIn(host, "count", plus_one)
    other = copy.deepcopy(host)
    assert "count" not in vars(other)
    other.factor.data.fill_(10)
    assert (host.count(3), other.count(3)) == (7, 30)
    stand_in.remove()
    assert (host.count(3), other.count(3)) == (6, 30)


def test_a_copy_keeps_the_wrapper_of_others_that_a_stand_in_lay_over():
    host = Counter()
    host.count = lambda number: 100 + number
    stand_ins = [StandIn(host, "count", plus_one), StandIn(host, "count", plus_one)]
    other = copy.deepcopy(host)
    assert (host.count(3), other.count(3)) == (105, 103)
    assert other.count is stand_ins[0].below()


def test_a_stand_in_in_a_copy_that_is_being_made_passes_calls_on():
    """Whoever hands ``deepcopy`` a memo holds it longer than that one copy."""
    host, memo = Counter(), {}
    StandIn(host, "count", plus_one)
    other = copy.deepcopy(host, memo)
    other.factor.data.fill_(10)
    assert (host.count(3), other.count(3)) == (7, 30)
    memo.clear()
    assert "count" not in vars(other)


def test_a_host_that_is_dropped_while_it_is_stood_in_for_is_gone():
    host = Counter()
    stand_in = StandIn(host, "count", plus_one)
    gone = weakref.ref(host)
    del host
    gc.collect()
    assert gone() is None
    stand_in.remove()


def test_a_copy_of_a_patched_llava_generates_as_the_plain_one(llava, llava_inputs):
    options = {"max_new_tokens": 3, "do_sample": False}
    patch = Patch("language.1", Dictionary.identity(32), Scale(range(8), -2.0), phase="decode")
    plain = llava.generate(**llava_inputs, **options)
    with patch.attach(llava) as attached:
        assert "generate" in vars(llava)
        llava.generate(**llava_inputs, **options)
        other = copy.deepcopy(llava)
        assert torch.equal(other.generate(**llava_inputs, **options), plain)
        with torch.no_grad():
            other.lm_head.weight.neg_()
        assert not torch.equal(other.generate(**llava_inputs, **options), plain)
    assert attached.report().edited_tokens == 2 * 2
    assert "generate" not in vars(llava)
    assert torch.equal(llava.generate(**llava_inputs, **options), plain)


class Encoder(nn.Module):
    """A host whose text embedding is no module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 4)
        self.projection = nn.Parameter(
            torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        )

    def encode_text(self, ids, normalize=False):
        embedding = self.tokens(ids).mean(1) @ self.projection
        return nn.functional.normalize(embedding, dim=-1) if normalize else embedding

    def forward(self, ids):
        return self.encode_text(ids, normalize=True)


ADAPTER = Adapter.of({"joint": ("encode_text()", "text", 3)})


@torch.no_grad()
def test_a_method_is_a_site_before_it_normalises():
    host, ids = Encoder(), torch.tensor([[1, 2], [3, 4]])
    plain = host.encode_text(ids)
    patch = Patch("joint", Dictionary.identity(3), Scale([0], 3.0))
    expected = plain * torch.tensor([3.0, 1.0, 1.0])
    with (
        patch.attach(Host.of(host, adapter=ADAPTER)),
        record(Host.of(host, adapter=ADAPTER), "joint") as recording,
    ):
        assert torch.equal(host.encode_text(ids), expected)
        assert torch.equal(host(ids), nn.functional.normalize(expected, dim=-1))
        assert torch.equal(host.encode_text(ids, True), nn.functional.normalize(expected, dim=-1))
    assert all(torch.equal(capture.hidden, expected) for capture in recording.captures)
    assert torch.equal(host.encode_text(ids), plain)
    assert "encode_text" not in vars(host)


def test_an_error_in_generate_ends_the_generation(llava, llava_inputs):
    patch = Patch("language.1", Dictionary.identity(32), Scale([0], 2.0), phase="decode")
    with patch.attach(llava):
        with pytest.raises(ValueError, match="features and image tokens"):
            llava.generate(**llava_inputs | {"pixel_values": llava_inputs["pixel_values"][:1]})
        hidden = torch.randn(1, 2, 32)
        with pytest.raises(VlmEditError, match="prompt was not seen in one call"):
            llava.model.language_model(inputs_embeds=hidden)
