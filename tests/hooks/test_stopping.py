"""Forwards that end behind what is read: when they do, when not, and what they leave behind."""

from __future__ import annotations

import contextvars
import copy
import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import nnsight
import peft
import pytest
import torch
import transformers
from tiny_pipelines import PIPELINES
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vlm_edit import Adapter, Dictionary, Host, Patch, Scale, record
from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.hooks import EarlyStop, OnHost, attach
from vlm_edit.hooks.tracker import CallTracker
from vlm_edit.host import unwrap

SITE = "language.1"
ENDED = None


def read(early: EarlyStop, host: Any, inputs: dict[str, Any], *names: str) -> list[Tensor]:
    """What passes at some sites while a forward is run."""
    with torch.no_grad(), record(host, *(names or (SITE,))) as recording:
        early.run(inputs, rows=2)
    return [capture.hidden for capture in recording.captures]


def whole(host: Any, inputs: dict[str, Any], *names: str) -> list[Tensor]:
    with torch.no_grad(), record(host, *(names or (SITE,))) as recording:
        Host.of(host).run(inputs)
    return [capture.hidden for capture in recording.captures]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def learnt(host: Any, inputs: dict[str, Any], *names: str) -> EarlyStop:
    """One that has seen a whole forward of these inputs."""
    early = EarlyStop(host, *(names or (SITE,)))
    read(early, host, inputs, *names)
    return early


def patch(site: str = SITE, width: int = 32) -> Patch:
    return Patch(site, Dictionary.identity(width), Scale(range(8), -2.0))


def ours_on(host: nn.Module) -> list[Any]:
    """What of ours lies on a host."""
    tables = [(m._forward_hooks, m._forward_pre_hooks, vars(m)) for m in host.modules()]
    return [v for three in tables for one in three for v in one.values() if isinstance(v, OnHost)]


class Runs:
    """Counts the calls of a module, from inside it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: nn.Module) -> None:
        self.count, forward = 0, type(module).forward

        def counted(this: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.count += this is module
            return forward(this, *args, **kwargs)

        monkeypatch.setattr(type(module), "forward", counted)


def test_what_lies_behind_the_site_does_not_run_from_the_second_forward_on(
    llava, llava_inputs, monkeypatch
):
    layers = llava.model.language_model.layers
    runs = Runs(monkeypatch, layers[2])
    early = EarlyStop(llava, SITE)
    assert "first forward" in str(early.reason)
    expected = whole(llava, llava_inputs)
    counts = []
    for _ in range(3):
        before = runs.count
        assert equal(read(early, llava, llava_inputs), expected)
        counts.append(runs.count - before)
    assert counts == [1, 0, 0]
    assert early.reason is ENDED


def test_the_forward_goes_on_to_the_last_of_several_sites(llava, llava_inputs, monkeypatch):
    runs = Runs(monkeypatch, llava.model.language_model.layers[2])
    names = ("language.1", "vision.0", "language.0.mlp")
    early = learnt(llava, llava_inputs, *names)
    before = runs.count
    assert equal(read(early, llava, llava_inputs, *names), whole(llava, llava_inputs, *names))
    assert early.reason is ENDED
    assert runs.count == before + 1  # the whole one's


def test_both_sides_of_a_joint_embedding_are_awaited(clip, clip_inputs):
    early = learnt(clip, clip_inputs, "joint")
    assert equal(read(early, clip, clip_inputs, "joint"), whole(clip, clip_inputs, "joint"))
    assert early.reason is ENDED


def test_inputs_of_another_kind_run_whole_first(clip, clip_inputs):
    early = learnt(clip, clip_inputs, "vision.1")
    read(early, clip, clip_inputs, "vision.1")
    assert early.reason is ENDED
    other = {**clip_inputs, "position_ids": torch.arange(5)[None]}
    read(early, clip, other, "vision.1")
    assert "first forward" in str(early.reason)
    read(early, clip, other, "vision.1")
    assert early.reason is ENDED


def test_a_site_must_be_named_and_known(llava):
    with pytest.raises(BadArgument, match="no site is named"):
        EarlyStop(llava)
    with pytest.raises(UnknownName, match=r"no site 'language.7'"):
        EarlyStop(llava, "language.7")


class Looped(nn.Module):
    """A tower that is called once per image, behind it a layer."""

    def __init__(self, careful: bool = False) -> None:
        super().__init__()
        self.tower, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.careful, self.heard = careful, 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = torch.cat([self.tower(one[None]) for one in pixel_values])
        try:
            return self.head(self.layer(hidden))
        except Exception:
            if not self.careful:
                raise
            self.heard += 1
            return hidden


LOOPED = Adapter.of({"tower": ("tower", "image", 4), "layer": ("layer", "image", 4)})


def test_a_tower_that_is_called_for_each_image_is_not_left_at_the_first():
    host = Host.of(Looped().eval(), adapter=LOOPED)
    one, three = {"pixel_values": torch.randn(1, 4)}, {"pixel_values": torch.randn(3, 4)}
    early = EarlyStop(host, "tower")
    for _ in range(2):
        early.run(one, rows=1)
    assert early.reason is ENDED  # of one image it is known
    for _ in range(2):
        with record(host, "tower") as recording:
            early.run(three, rows=3)
        assert len(recording.captures) == 3
    assert early.reason == "'tower' passes 3 times in a forward"
    behind = EarlyStop(host, "layer")
    for _ in range(2):
        behind.run(three, rows=3)
    assert behind.reason is ENDED


def test_a_site_that_does_not_pass_is_waited_for_in_vain_and_named(llava, llava_inputs):
    text = {name: llava_inputs[name][:1, :1] for name in ("input_ids", "attention_mask")}
    early = EarlyStop(llava, "vision.1")
    for _ in range(2):
        assert read(early, llava, text, "vision.1") == []
        assert str(early.reason).endswith("passes 0 times in a forward")


def test_what_the_host_does_with_exceptions_does_not_keep_it_running():
    host = Host.of(Looped(careful=True).eval(), adapter=LOOPED)
    early = EarlyStop(host, "layer")
    for _ in range(2):
        early.run({"pixel_values": torch.randn(2, 4)}, rows=2)
    assert early.reason is ENDED
    assert host.model.heard == 0


def test_an_error_of_the_host_comes_through_and_takes_the_hooks_off(llava, llava_inputs):
    early = learnt(llava, llava_inputs)
    with pytest.raises(ValueError, match="tokens"):
        early.run({**llava_inputs, "pixel_values": llava_inputs["pixel_values"][:1]}, rows=2)
    assert not ours_on(llava)


def test_a_module_in_anothers_place_is_learnt_anew(llava, llava_inputs):
    early = learnt(llava, llava_inputs)
    layers = llava.model.language_model.layers
    layers[1] = copy.deepcopy(layers[1])
    read(early, llava, llava_inputs)
    assert "first forward" in str(early.reason)
    read(early, llava, llava_inputs)
    assert early.reason is ENDED


class Late(nn.Module):
    """Says which tokens are image only when its first layer has run."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.last = nn.Embedding(9, 4), nn.Identity(), nn.Identity()

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        hidden = self.layer(self.embed(input_ids))
        self.get_placeholder_mask(input_ids, image_features=pixel_values)
        return self.last(hidden)

    def get_placeholder_mask(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        assert image_features is not None
        return (input_ids > 6)[..., None].expand(*input_ids.shape, 4)


def test_a_forward_that_says_later_whose_tokens_passed_is_not_ended_before():
    adapter = Adapter.of(
        {"layer": ("layer", "mixed", 4), "last": ("last", "mixed", 4)}, image_token=8
    )
    host = Host.of(Late().eval(), adapter=adapter)
    ids = torch.tensor([[1, 8, 2], [8, 3, 4]])
    inputs = {"input_ids": ids, "pixel_values": torch.ones(2, 4)}
    for site in ("layer", "last"):
        early = EarlyStop(host, site)
        for _ in range(2):
            with record(host, site) as recording:
                early.run(inputs, rows=2)
            assert torch.equal(recording.captures[0].tokens.mask("image"), ids > 6)
            assert recording.captures[0].tokens.witness == "host"
        assert (early.reason is ENDED) == (site == "last")
        if site == "layer":
            assert "only after they have passed" in str(early.reason)


def test_logits_are_made_of_the_last_token_alone(llava, llava_inputs):
    shapes = []

    class Head(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            shapes.append(tuple(x.shape))
            return super().forward(x)

    llava.lm_head.__class__ = Head
    EarlyStop(llava, SITE).run(llava_inputs, rows=2)
    assert shapes == [(2, 1, 32)]
    labels = llava_inputs["input_ids"].clamp(max=50)
    for more, count in (({"labels": labels}, 9), ({"logits_to_keep": 3}, 3)):
        EarlyStop(llava, SITE).run({**llava_inputs, **more}, rows=2)
        assert shapes[-1] == (2, count, 32)
    handle = llava.lm_head.register_forward_hook(lambda *_: None)
    EarlyStop(llava, SITE).run(llava_inputs, rows=2)
    assert shapes[-1] == (2, 9, 32)
    handle.remove()
    head = Host.of(llava, adapter=Adapter.of({"logits": ("lm_head", "mixed", 64)}))
    with record(head, "logits") as recording:
        EarlyStop(head, "logits").run(llava_inputs, rows=2)
    assert recording.captures[0].hidden.shape == (2, 9, 64)


# Hosts whose forward must not be left, and what is said.


def compiled_inside(host: nn.Module) -> nn.Module:
    host.model.vision_tower.compile(backend="eager")
    return host


def with_nnsight(host: nn.Module) -> nn.Module:
    nnsight.NNsight(host).trace  # noqa: B018 - which is what puts controllers in
    with patch("language.0").attach(host, via="nnsight"):
        pass
    return host


def with_script(host: nn.Module) -> nn.Module:
    host.model.multi_modal_projector.act = torch.jit.trace(nn.GELU(), torch.randn(2, 32))
    return host


def dispatched(host: nn.Module) -> nn.Module:
    places = {"model": "cpu", "lm_head": "cpu"}
    return accelerate.dispatch_model(host, places, main_device="cpu", force_hooks=True)


def sharded(host: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in host.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(host, mesh=mesh)


WHOLE: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "torch.compile": (lambda host: torch.compile(host, backend="eager"), "is compiled"),
    "compile": (compiled_inside, r"^model.vision_tower \(CLIPVisionModel\) is compiled"),
    "offloaded": (
        lambda host: accelerate.cpu_offload(host, execution_device=torch.device("cpu")),
        "weights moved",
    ),
    "dispatched": (dispatched, "weights moved"),
    "nnsight": (with_nnsight, "forward of its own"),
    "script": (with_script, "is a script"),
    "DataParallel": (nn.DataParallel, "is spread"),
    "DistributedDataParallel": (DistributedDataParallel, "is spread"),
    "FSDP 1": (
        lambda host: FullyShardedDataParallel(host, device_id=torch.device("cpu")),
        "is spread",
    ),
    "FSDP 2": (sharded, "is spread"),
}


@pytest.fixture
def one_process(tmp_path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("wrap", "says"), WHOLE.values(), ids=WHOLE)
def test_a_host_whose_forward_must_not_be_left_runs_whole_and_says_why(
    wrap, says, llava, llava_inputs
):
    host = wrap(llava)
    with torch.compiler.set_stance("force_eager"):  # compiled code has its tests elsewhere
        expected = whole(host, llava_inputs)
        with torch.no_grad():
            before = host(**llava_inputs).logits
        early = EarlyStop(host, SITE)
        assert re.search(says, str(early.reason)), early.reason
        for _ in range(2):
            assert equal(read(early, host, llava_inputs), expected)
            assert re.search(says, str(early.reason)), early.reason
        with torch.no_grad():
            assert torch.equal(host(**llava_inputs).logits, before)


def test_a_host_inside_peft_is_left_as_any_other(llava, llava_inputs, monkeypatch):
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    host = peft.get_peft_model(llava, config).eval()
    runs = Runs(monkeypatch, unwrap(host).model.language_model.layers[2])
    expected = whole(host, llava_inputs)
    early = learnt(host, llava_inputs)
    before = runs.count
    assert equal(read(early, host, llava_inputs), expected)
    assert early.reason is ENDED
    assert runs.count == before
    with host.disable_adapter():
        assert not equal(read(early, host, llava_inputs), expected)
    assert equal(read(early, host, llava_inputs), expected)


def test_a_pipeline_runs_whole():
    host = Host.of(PIPELINES["sd"].make())
    early = EarlyStop(host, next(iter(host.sites)))
    for _ in range(2):
        early.run({"prompt": ["a cat", "a dog"]}, rows=2)
        assert early.reason == "a pipeline runs several models"


# What of others is on the host.


def test_a_patch_before_the_site_acts_and_one_behind_it_does_not_matter(llava, llava_inputs):
    plain = learnt(llava, llava_inputs)
    expected = whole(llava, llava_inputs)
    with patch("language.2").attach(llava):
        assert equal(read(plain, llava, llava_inputs), expected)
        assert plain.reason is ENDED
    with patch("language.0").attach(llava) as attached:
        edited = whole(llava, llava_inputs)
        assert not equal(edited, expected)
        assert equal(read(plain, llava, llava_inputs), edited)
        assert plain.reason is ENDED
    assert attached.report().sites[0].calls == 2


def test_a_patch_at_the_site_acts_too(llava, llava_inputs):
    early = learnt(llava, llava_inputs)
    with patch().attach(llava):
        edited = whole(llava, llava_inputs)
        assert equal(read(early, llava, llava_inputs), edited)
    assert early.reason is ENDED
    assert not equal(whole(llava, llava_inputs), edited)


@pytest.mark.parametrize("site", ["language.2", "language.1.attention"])
def test_another_recording_is_not_passed_by(llava, llava_inputs, site):
    names = ("language.1.head.0",)
    early = learnt(llava, llava_inputs, *names)
    with record(llava, site) as other:
        read(early, llava, llava_inputs, *names)
    assert len(other.captures) == 1
    assert "recording or another callback waits" in str(early.reason)
    passed = []

    def note(hidden: Tensor, _tokens: Any) -> Tensor:
        passed.append(hidden)
        return hidden

    handle = attach(llava, Host.of(llava).site(site), note)
    read(early, llava, llava_inputs, *names)
    handle.remove()
    assert len(passed) == 1
    read(early, llava, llava_inputs, *names)
    assert early.reason is ENDED


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("place", ["", "model.language_model.layers.2"])
def test_hooks_of_others_are_not_passed_by(llava, llava_inputs, place, before):
    early, seen = learnt(llava, llava_inputs), []
    module = llava.get_submodule(place)
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = register(lambda *_: seen.append(1))
    read(early, llava, llava_inputs)
    assert seen
    assert "a hook of " in str(early.reason)
    handle.remove()
    read(early, llava, llava_inputs)
    assert early.reason is ENDED


def test_hooks_on_all_modules_are_not_passed_by(llava, llava_inputs):
    early, seen = learnt(llava, llava_inputs), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    read(early, llava, llava_inputs)
    handle.remove()
    assert llava.lm_head in seen
    assert "hooks on all modules" in str(early.reason)


def test_the_hooks_by_which_a_host_collects_hidden_states_stay_as_they_are(llava, llava_inputs):
    def states() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return llava(**llava_inputs, output_hidden_states=True).hidden_states

    before = states()
    early = learnt(llava, llava_inputs)
    read(early, llava, {**llava_inputs, "output_hidden_states": True})
    read(early, llava, {**llava_inputs, "output_hidden_states": True})
    assert early.reason is ENDED
    assert equal([*states()], [*before])
    with torch.no_grad():
        assert llava(**llava_inputs).hidden_states is None


def test_a_cache_is_not_left_half_filled(llava, llava_inputs):
    early = EarlyStop(llava, SITE)
    for _ in range(2):
        cache = transformers.DynamicCache()
        early.run({**llava_inputs, "past_key_values": cache}, rows=2)
        assert "half filled" in str(early.reason)


def test_a_forward_inside_another_call_runs_whole(llava, llava_inputs, clip, clip_inputs):
    early = learnt(llava, llava_inputs)
    reasons = []

    def inside(hidden: Tensor, _tokens: Any) -> Tensor:
        early.run(llava_inputs, rows=2)
        reasons.append(early.reason)
        return hidden

    with torch.no_grad():
        handle = attach(clip, Host.of(clip).site("text.0"), inside)
        clip(**clip_inputs)
        handle.remove()
    assert reasons == ["it is run inside another call of a host"]


def test_another_threads_forward_is_not_ended(llava, llava_inputs):
    with torch.no_grad():
        expected = llava(**llava_inputs).logits
    early = learnt(llava, llava_inputs)
    answers: list[Tensor] = []

    def other() -> None:
        with torch.no_grad():
            answers.append(llava(**llava_inputs).logits)

    def meanwhile(hidden: Tensor, _tokens: Any) -> Tensor:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return hidden

    handle = attach(llava, Host.of(llava).site("language.0"), meanwhile, edits=True)
    read(early, llava, llava_inputs)
    handle.remove()
    assert early.reason is ENDED
    assert len(answers) == 1
    assert torch.equal(answers[0], expected)


# What is left behind.


def test_the_calls_that_were_followed_are_over(llava, llava_inputs):
    early = learnt(llava, llava_inputs)
    with patch("language.0").attach(llava):
        tracker = CallTracker.of(llava, Host.of(llava).adapter)
        with torch.no_grad():
            early.run(llava_inputs, rows=2)
        assert early.reason is ENDED
        assert not CallTracker.is_busy()
        assert tracker.now("").shape is None


def test_a_part_that_is_followed_as_a_host_of_its_own_is_over_too(llava, llava_inputs):
    inner = llava.model
    adapter = Adapter.of({"first": ("language_model.layers.0", "mixed", 32)})
    with patch("first").attach(Host.of(inner, adapter=adapter)):
        early = learnt(llava, llava_inputs)
        read(early, llava, llava_inputs)
        assert early.reason is ENDED
        assert not CallTracker.is_busy()


def test_a_patch_of_a_context_is_asked_anew_by_who_comes_next(llava, llava_inputs):
    attached = patch("language.0").attach(llava, scope="context")
    early = learnt(llava, llava_inputs)
    read(early, llava, llava_inputs)
    assert early.reason is ENDED
    (bounds,) = CallTracker.of(llava, Host.of(llava).adapter).entry.contexts
    assert getattr(bounds.local, "here", None) is None
    attached.remove()
    assert contextvars.copy_context().run(lambda: whole(llava, llava_inputs))


@torch.no_grad()
def test_whole_forwards_and_answers_are_afterwards_what_they_were(llava, llava_inputs):
    logits = llava(**llava_inputs).logits
    answer = llava.generate(**llava_inputs, max_new_tokens=4, do_sample=False)
    early = learnt(llava, llava_inputs)
    read(early, llava, llava_inputs)
    assert early.reason is ENDED
    assert not ours_on(llava)
    assert torch.equal(llava(**llava_inputs).logits, logits)
    assert torch.equal(llava.generate(**llava_inputs, max_new_tokens=4, do_sample=False), answer)


def test_nothing_of_an_ended_forward_is_held(llava, llava_inputs):
    early = learnt(llava, llava_inputs)
    seen = []

    def keep(hidden: Tensor, _tokens: Any) -> Tensor:
        seen.append(weakref.ref(hidden))
        return hidden

    gc.disable()
    try:
        handle = attach(llava, Host.of(llava).site("language.0"), keep, edits=True)
        with torch.no_grad():
            early.run(llava_inputs, rows=2)
        handle.remove()
        assert early.reason is ENDED
        assert seen[0]() is None
    finally:
        gc.enable()
