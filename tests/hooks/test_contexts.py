"""Patches of a context of contextvars: asyncio tasks, what they start, and compiled code."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from conftest import make_clip, make_llava, random_dictionary
from engines import bits, generating, left, same
from test_threads import PATCHES as OF_THREADS
from test_threads import patch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers.generation.streamers import BaseStreamer

from vlm_edit import Patch, Scale, Steer, VlmEditError
from vlm_edit.ground.errors import VlmEditWarning
from vlm_edit.patches import Attachment, attach_rows, attached

LLAVA, CLIP = make_llava(), make_clip()  # shared: every test leaves them as they were
DENSE, TOWER = random_dictionary(32), random_dictionary(24)
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


PATCHES = {name: OF_THREADS[name] for name in ("image", "text", "decode", "step")}


@pytest.fixture(autouse=True)
def _nothing_stays(llava_inputs):
    bits(LLAVA, generating(llava_inputs))  # it puts hooks of its own on then
    lying = left(LLAVA), left(CLIP)
    yield
    assert (left(LLAVA), left(CLIP)) == lying


def look(images: Tensor = PIXELS) -> Callable[[nn.Module], Tensor]:
    return lambda host: host.vision_model(pixel_values=images).last_hidden_state


def alone(host: nn.Module, run: Any, one: Patch | None, strength: Any) -> list[Tensor]:
    with ExitStack() as stack:
        if one is not None:
            stack.enter_context(one.attach(host, strength=strength))
        return bits(host, run)


async def gather(*jobs: Any) -> list[Any]:
    return await asyncio.gather(*jobs)


@pytest.mark.parametrize("via", ["hooks", "nnsight"])
def test_coroutines_with_awaits_between_get_the_bits_that_they_get_alone(llava_inputs, via):
    generate, vision = generating(llava_inputs), Patch("vision.1", TOWER, Scale(range(20), 3.0))
    work = [(LLAVA, generate, one, s) for one in PATCHES.values() for s in (1.0, [0.0, 2.0])]
    work += [(CLIP, look(), vision, strength) for strength in (0.5, [0.0, 1.0, 2.0], -1.0)]
    work += [(LLAVA, generate, None, 1.0), (CLIP, look(), None, 1.0)]
    expected = [alone(*job) for job in work]
    distinct = [all(not same(a, b) for b in expected[:i]) for i, a in enumerate(expected)]
    assert all(distinct), distinct

    async def serve(host: nn.Module, run: Any, one: Patch | None, strength: Any) -> list[Any]:
        found = []
        with ExitStack() as stack:
            await asyncio.sleep(0)
            if one is not None:
                stack.enter_context(one.attach(host, strength=strength, scope="context", via=via))
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(bits(host, run))
        await asyncio.sleep(0)
        found.append(bits(host, run))
        return found

    answers = asyncio.run(gather(*(serve(*job) for job in work)))
    plain = {host: alone(host, run, None, 1.0) for host, run in ((LLAVA, generate), (CLIP, look()))}
    for job, found, wanted in zip(work, answers, expected, strict=True):
        assert all(same(each, wanted) for each in found[:3])
        assert same(found[3], plain[job[0]])


def test_strengths_change_and_rows_have_patches_of_their_own_in_each_task(llava_inputs):
    run = generating(llava_inputs)
    with attach_rows(LLAVA, [PATCHES["text"], None]) as whole:
        first = bits(LLAVA, run)
        whole.set_strength(0.5)
        second = bits(LLAVA, run)

    async def rows() -> None:
        with attach_rows(LLAVA, [PATCHES["text"], None], scope="context") as own:
            for strength, expected in ((1.0, first), (0.5, second)):
                own.set_strength(strength)
                await asyncio.sleep(0)
                assert same(bits(LLAVA, run), expected)
        assert own.report().edited_tokens

    asyncio.run(gather(*(rows() for _ in range(3))))


def test_an_exception_in_one_task_takes_off_its_own_patch_alone(llava_inputs):
    expected = alone(LLAVA, generating(llava_inputs), PATCHES["image"], 1.0)
    wrong = llava_inputs | {"pixel_values": llava_inputs["pixel_values"][:1]}

    async def fail() -> None:
        with pytest.raises(ValueError, match="features and image tokens"):  # noqa: SIM117
            with PATCHES["text"].attach(LLAVA, scope="context"):
                await asyncio.sleep(0)
                bits(LLAVA, generating(wrong))

    async def go_on() -> None:
        with PATCHES["image"].attach(LLAVA, scope="context"):
            for _ in range(3):
                await asyncio.sleep(0)
                assert same(bits(LLAVA, generating(llava_inputs)), expected)

    asyncio.run(gather(fail(), go_on(), fail()))


def test_a_task_that_is_cancelled_leaves_nothing():
    async def wait() -> None:
        with Patch("vision.1", TOWER, Scale([0], 2.0)).attach(CLIP, scope="context"):
            await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert len(attached(CLIP)) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert not attached(CLIP)


def test_a_context_that_ends_takes_a_forgotten_patch_along():
    kept: list[Attachment] = []
    vision = Patch("vision.1", TOWER, Scale(range(20), 3.0))
    plain = bits(CLIP, look())

    async def forget() -> None:
        kept.append(vision.attach(CLIP, scope="context"))
        await asyncio.sleep(0)
        assert not same(bits(CLIP, look()), plain)

    asyncio.run(gather(forget(), forget()))
    gc.collect()
    assert not attached(CLIP)
    assert not any(one.is_on for one in kept)
    assert [one.report().edited_tokens > 0 for one in kept] == [True, True]


class Streamer(BaseStreamer):
    """Keeps the ids that it is given, and says when there are no more."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.done = threading.Event()

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.done.set()


def stream(generate: Callable[..., Any], inputs: dict[str, Tensor]) -> list[int]:
    streamer = Streamer()
    quiet = {"do_sample": False, "max_new_tokens": 6, "suppress_tokens": [60]}
    thread = threading.Thread(target=generate, kwargs={**inputs, **quiet, "streamer": streamer})
    thread.start()
    assert streamer.done.wait(60)
    thread.join()
    return streamer.ids


def test_a_streamers_thread_acts_under_wrap_and_without_it_runs_plain_and_says_so(llava_inputs):
    inputs = {k: v[:1] for k, v in llava_inputs.items()}
    plain = stream(LLAVA.generate, inputs)
    strong = patch(rules=Steer([31], 40.0), tokens="all")
    with strong.attach(LLAVA):
        expected = stream(LLAVA.generate, inputs)
    assert expected != plain

    async def serve(wraps: bool) -> list[int]:
        with strong.attach(LLAVA, scope="context") as own:
            run = own.wrap(LLAVA.generate) if wraps else LLAVA.generate
            return await asyncio.to_thread(stream, run, inputs)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert asyncio.run(serve(True)) == expected
    with pytest.warns(VlmEditWarning, match=r"ran in another context only; .*attachment\.wrap"):
        assert asyncio.run(serve(False)) == plain


def test_to_thread_carries_the_patch_by_itself_and_an_executor_only_wrapped():
    vision, run = Patch("vision.1", TOWER, Scale(range(20), 3.0)), look()
    plain, edited = bits(CLIP, run), alone(CLIP, run, vision, 1.0)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        with vision.attach(CLIP, scope="context") as own:
            assert same(await asyncio.to_thread(bits, CLIP, run), edited)
            assert same(await loop.run_in_executor(None, bits, CLIP, run), plain)
            carried = own.wrap(bits)
            both = await gather(*(loop.run_in_executor(None, carried, CLIP, run) for _ in "ab"))
            assert all(same(each, edited) for each in both)
        assert same(carried(CLIP, run), plain)

    asyncio.run(serve())


def test_a_wrapped_function_acts_wherever_it_is_wrapped_and_carries_other_variables_too():
    vision, run = Patch("vision.1", TOWER, Scale(range(20), 3.0)), look()
    edited, name = alone(CLIP, run, vision, 1.0), contextvars.ContextVar("name", default="")
    with vision.attach(CLIP, scope="context") as own:
        found: list[Any] = []

        def elsewhere() -> None:
            name.set("elsewhere")
            found.append((own.wrap(bits)(CLIP, run), own.wrap(name.get)()))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert same(found[0][0], edited)
    assert found[0][1] == "elsewhere"


def test_wrap_refuses_what_it_cannot_carry():
    async def coroutine() -> None: ...

    def generator():
        yield

    vision = Patch("vision.1", TOWER, Scale([0], 2.0))
    with vision.attach(CLIP, scope="context") as own:
        for function in (coroutine, generator):
            with pytest.raises(VlmEditError, match="is a coroutine or generator function"):
                own.wrap(function)
    with pytest.raises(VlmEditError, match="no longer on the host"):
        own.wrap(print)
    with (
        vision.attach(CLIP, scope="thread") as own,
        pytest.raises(VlmEditError, match="attach with scope='context'"),
    ):
        own.wrap(print)


def test_tasks_started_inside_the_block_are_in_it_and_those_from_before_are_not():
    vision, run = Patch("vision.1", TOWER, Scale(range(20), 3.0)), look()
    plain, edited = bits(CLIP, run), alone(CLIP, run, vision, 1.0)

    async def wait(event: asyncio.Event) -> list[Tensor]:
        await event.wait()
        return bits(CLIP, run)

    async def serve() -> None:
        event = asyncio.Event()
        before = asyncio.create_task(wait(event))
        await asyncio.sleep(0)
        with vision.attach(CLIP, scope="context"):
            inside = asyncio.create_task(wait(event))
            event.set()
            assert same(await before, plain)
            assert same(await inside, edited)

    asyncio.run(serve())


def test_a_context_that_ended_with_a_step_of_a_generator_is_said():
    vision = Patch("vision.1", TOWER, Scale([0], 2.0))

    def steps():
        with vision.attach(CLIP, scope="context"):
            yield
            bits(CLIP, look())

    walk = steps()
    contextvars.copy_context().run(next, walk)
    gc.collect()
    with pytest.warns(VlmEditWarning, match="its context ended before it was removed"):
        next(walk, None)


def test_a_threads_patch_inside_an_event_loop_is_warned_of():
    vision = Patch("vision.1", TOWER, Scale([0], 2.0))

    async def serve(scope: Any) -> None:
        vision.attach(CLIP, scope=scope).remove()

    with pytest.warns(VlmEditWarning, match="use scope='context'") as warned:
        asyncio.run(serve("thread"))
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(serve("context"))
        asyncio.run(serve("process"))
        vision.attach(CLIP, scope="thread").remove()


def test_a_host_that_is_dropped_with_a_contexts_patch_is_freed(llava_inputs):
    host = make_llava()
    own = patch().attach(host, scope="context")
    bits(host, generating(llava_inputs))
    gone = weakref.ref(host), weakref.ref(own.actives[0])
    del host, own
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_marks_of_removed_patches_do_not_gather_in_a_long_context():
    from vlm_edit.hooks import scopes

    vision = Patch("vision.1", TOWER, Scale([0], 2.0))

    def run() -> None:
        for _ in range(5):
            own = vision.attach(CLIP, scope="context")
            thread = threading.Thread(target=own.detach)  # where the mark cannot be taken out
            thread.start()
            thread.join()
        assert len(scopes._marks.get() or {}) <= 1

    contextvars.Context().run(run)


# Compiled code, which cannot read a context.


def in_contexts(run: Callable[[], Tensor], host: Any, own: dict[str, Patch | None]) -> dict:
    """Run under each patch in a context of its own, all attached at once, three times in turn.

    After the second time no graph is made anew.
    """
    contexts = {name: contextvars.Context() for name in own}
    for name, one in own.items():
        if one is not None:
            contexts[name].run(one.attach, host, scope="context")
    found = {name: [] for name in own}
    graphs: list[int] = []
    for _ in range(3):
        for name, context in contexts.items():
            found[name].append(context.run(run))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[2]
    return found


OWN = {
    "a": patch(tokens="all"),
    "b": patch(rules=Steer([31], 4.0), tokens="all"),
    "plain": None,
}


def forward(host: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return host(**inputs).logits

    return run


@pytest.fixture
def fresh(llava_inputs):
    torch.compiler.reset()
    counters.clear()
    host = make_llava()
    forward(host, llava_inputs)()  # LLaVA installs hooks of its own at its first call
    yield host
    torch.compiler.reset()


def eager(host: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    expected = {}
    for name, one in OWN.items():
        with ExitStack() as stack:
            if one is not None:
                stack.enter_context(one.attach(host))
            expected[name] = forward(host, inputs)()
    assert not torch.allclose(expected["a"], expected["b"], atol=1e-3)
    return expected


def check(found: dict[str, list[Tensor]], expected: dict[str, Tensor]) -> None:
    for name, each in found.items():
        for logits in each:
            torch.testing.assert_close(logits, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_host_is_one_graph_for_each_context_and_none_is_made_again(fresh, llava_inputs):
    expected = eager(fresh, llava_inputs)
    compiled = torch.compile(fresh, backend="eager", fullgraph=True)
    check(in_contexts(forward(compiled, llava_inputs), compiled, OWN), expected)
    assert not counters["graph_break"]
    gc.collect()
    assert not attached(fresh)
    assert not compiled._forward_pre_hooks
    assert not compiled._forward_hooks


def test_a_compiled_part_of_the_host_is_asked_at_the_hosts_entry(fresh, llava_inputs):
    expected = eager(fresh, llava_inputs)
    fresh.model.language_model = torch.compile(
        fresh.model.language_model, backend="eager", fullgraph=True
    )
    check(in_contexts(forward(fresh, llava_inputs), fresh, OWN), expected)
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_code_that_no_entry_asked_breaks_its_graph_and_edits_right(fresh, llava_inputs):
    expected = eager(fresh, llava_inputs)
    compiled = torch.compile(fresh, backend="eager")
    check(in_contexts(forward(compiled, llava_inputs), fresh, OWN), expected)
    assert counters["graph_break"]
    torch.compiler.reset()
    whole = torch.compile(fresh, backend="eager", fullgraph=True)
    with OWN["a"].attach(fresh, scope="context"), pytest.raises(Exception, match="ContextVar"):
        forward(whole, llava_inputs)()
