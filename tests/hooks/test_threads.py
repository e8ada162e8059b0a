"""Threads that run one host at once: each with a patch of its own, or with none."""

from __future__ import annotations

import _thread
import copy
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from conftest import IMAGE_TOKEN, make_llava, random_dictionary
from engines import bits, generating, left, row, same
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from vlm_edit import Ablate, Clamp, Host, Patch, Scale, Steer, VlmEditError
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Call, Selection, Tokens, dispatch, tracing
from vlm_edit.patches import Attachment, attach_rows
from vlm_edit.patches.report import Tally

LLAVA = make_llava()  # shared: every test leaves it as it was
DENSE, TOWER = random_dictionary(32), random_dictionary(24)
Job = tuple[Callable[[], Attachment] | None, Callable[[nn.Module], Any]]


@pytest.fixture(autouse=True)
def _threads_take_turns_often(llava_inputs) -> Iterator[None]:
    logits(LLAVA, llava_inputs)  # it puts hooks of its own on then
    before, lying = sys.getswitchinterval(), left(LLAVA)
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    assert left(LLAVA) == lying


def patch(site: str = "language.1", rules: Any = None, tokens: Any = "image", **chosen) -> Patch:
    dictionary = TOWER if site.startswith("vision") else DENSE
    return Patch(site, dictionary, rules or Scale(range(30), 3.0), tokens, **chosen)


PATCHES = {
    "image": patch(),
    "text": patch(rules=Steer([31], 4.0), tokens="text+special"),
    "decode": patch("language.2", Ablate(range(20)), "all", phase="decode"),
    "step": patch("language.0", Steer([3], 6.0), "all", phase="decode", steps=(1, 3)),
    "places": patch("language.1", Clamp([5], 9.0), "all", positions=(0, -1)),
    "tower": patch("vision.1", tokens="all") + patch("language.2", Steer([7], 3.0), "text+special"),
}


def jobs(inputs: dict[str, Tensor], **options: Any) -> dict[str, Job]:
    """A thread's work each: how it attaches, None for not at all, and what it runs."""

    def own(name: str, **more: Any) -> Callable[[], Attachment]:
        return lambda: PATCHES[name].attach(LLAVA, scope="thread", **options, **more)

    def rows() -> Attachment:
        mixed = [PATCHES["text"], PATCHES["image"]]
        return attach_rows(LLAVA, mixed, scope="thread", **options)

    found: dict[str, Job] = {name: (own(name), generating(inputs)) for name in PATCHES}
    found["strengths"] = (own("image", strength=[0.0, 2.0]), generating(inputs))
    found["rows"] = (rows, generating(inputs))
    found["beams"] = (own("text"), generating(inputs, num_beams=2))
    static = {"cache_implementation": "static", "disable_compile": True}
    found["static"] = (own("decode"), generating(inputs, **static))
    found["plain"] = (None, generating(inputs))
    found["plain too"] = (None, generating(row(inputs)))
    return found


def alone(job: Job) -> list[Tensor]:
    """What a job gives while no other thread runs."""
    with ExitStack() as stack:
        if job[0] is not None:
            stack.enter_context(job[0]())
        return bits(LLAVA, job[1])


def together(work: dict[str, Callable[[], None]]) -> None:
    """Run each in a thread of its own, all from one moment on."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(each: Callable[[], None]) -> None:
        try:
            start.wait(60)
            each()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in work.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def in_thread(run: Callable[[], Any]) -> Any:
    found: list[Any] = []
    together({"": lambda: found.append(run())})
    return found[0]


def logits(host: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return host(**inputs).logits


# Several threads, one host.


@pytest.mark.parametrize("via", ["hooks", "nnsight"])
def test_each_thread_gets_the_bits_that_it_gets_alone(llava_inputs, via):
    work = jobs(llava_inputs, via=via)
    expected = {name: alone(job) for name, job in work.items()}
    plain = expected["plain"]
    assert not any(same(found, plain) for name, found in expected.items() if "plain" not in name)

    def serve(name: str) -> Callable[[], None]:
        put, run = work[name]

        def loop() -> None:
            with ExitStack() as stack:
                if put is not None:
                    stack.enter_context(put())
                for _ in range(2):
                    assert same(bits(LLAVA, run), expected[name]), name

        return loop

    together({name: serve(name) for name in work})


def test_patches_that_come_and_go_with_every_request_do_not_mix(llava_inputs):
    work = jobs(row(llava_inputs))
    chosen = {name: work[name] for name in ("image", "text", "tower", "plain")}
    expected = {name: alone(job) for name, job in chosen.items()}

    def serve(name: str) -> Callable[[], None]:
        def loop() -> None:
            for _ in range(12):
                assert same(alone(chosen[name]), expected[name]), name

        return loop

    together({name: serve(name) for name in chosen})


def test_a_thread_attaches_on_top_of_what_all_threads_have(llava_inputs):
    one, two = PATCHES["image"], PATCHES["tower"]
    with one.attach(LLAVA):
        first = logits(LLAVA, llava_inputs)
    with one.attach(LLAVA), two.attach(LLAVA):
        both = logits(LLAVA, llava_inputs)
    with one.attach(LLAVA), two.attach(LLAVA, scope="thread"):
        assert torch.equal(logits(LLAVA, llava_inputs), both)
        assert torch.equal(in_thread(lambda: logits(LLAVA, llava_inputs)), first)
    assert not torch.equal(first, both)


def test_a_patch_for_all_threads_counts_the_tokens_of_all(llava_inputs):
    rounds, n = 25, 4

    def run() -> None:
        for _ in range(rounds):
            logits(LLAVA, llava_inputs)

    for tokens, each in (("image", 8), ("all", 16)):
        with patch(tokens=tokens).attach(LLAVA) as attached:
            together({str(i): run for i in range(n)})
        (site,) = attached.report().sites
        assert (site.calls, site.tokens) == (n * rounds, n * rounds * each)


def test_no_count_of_any_thread_is_lost():
    hidden, ids = torch.zeros(2, 9, 32), torch.arange(18).view(2, 9)
    for modality in ("text", Mixed.of(image=ids > 9)):
        tally = Tally("site", torch.device("cpu"))
        tokens = Tokens.of("mixed", Call((2, 9), modality, start=0, prompt=9), hidden)

        def count(tally: Tally = tally, tokens: Tokens = tokens) -> None:
            for _ in range(2000):
                tally.add(Selection(), tokens, True)

        together({str(i): count for i in range(5)})
        assert (tally.report.calls, tally.report.tokens) == (10_000, 180_000)


def test_a_report_counts_its_own_thread_alone(llava_inputs):
    def run() -> None:
        with patch(tokens="text+special").attach(LLAVA, scope="thread") as attached:
            for _ in range(10):
                logits(LLAVA, llava_inputs)
        (site,) = attached.report().sites
        assert (site.calls, site.tokens) == (10, 80)

    together({str(i): run for i in range(4)})


def test_a_run_of_nnsight_under_way_in_one_thread_shows_in_no_other(llava_inputs):
    plain, site = logits(LLAVA, llava_inputs), Host.of(LLAVA).site("projector")
    module, hidden = site.taps[0].module, torch.randn(2, 4, 24)
    patch("projector", tokens="all").attach(LLAVA, via="nnsight").remove()
    before = module.forward  # as a call has it that begins before the next patch comes
    expected = before(hidden)
    reached, go_on = threading.Event(), threading.Event()

    def wait(hidden: Tensor, _tokens: Tokens) -> Tensor:
        reached.set()
        assert go_on.wait(60)
        return hidden * 2

    def edits() -> None:
        handle = tracing.attach(LLAVA, site, wait, scope="thread")
        assert not torch.equal(logits(LLAVA, llava_inputs), plain)
        handle.remove()

    def goes_by() -> None:
        assert reached.wait(60)
        assert torch.equal(logits(LLAVA, llava_inputs), plain)
        assert torch.equal(before(hidden), expected)
        go_on.set()

    together({"edits": edits, "goes by": goes_by})


# What other threads may do with an attachment, and what happens when its own thread is gone.


def test_other_threads_change_its_strength_and_remove_it(llava_inputs):
    plain = logits(LLAVA, llava_inputs)
    with patch().attach(LLAVA, strength=2.0):
        stronger = logits(LLAVA, llava_inputs)
    attached = patch().attach(LLAVA, scope="thread", strength=[1.0, 1.0])
    edited = logits(LLAVA, llava_inputs)
    in_thread(lambda: attached.set_strength([0.0, 2.0]))
    other = logits(LLAVA, llava_inputs)
    assert torch.equal(other[0], plain[0])
    assert torch.equal(other[1], stronger[1])
    in_thread(attached.remove)
    assert torch.equal(logits(LLAVA, llava_inputs), plain)
    attached.remove()
    assert not torch.equal(edited, plain)


def test_an_exception_in_one_thread_reaches_no_other(llava_inputs):
    with patch().attach(LLAVA):
        expected = bits(LLAVA, generating(llava_inputs))
    wrong = llava_inputs | {"pixel_values": llava_inputs["pixel_values"][:1]}

    def fail() -> None:
        for _ in range(10):
            with pytest.raises(ValueError, match="features and image tokens"):  # noqa: SIM117
                with PATCHES["text"].attach(LLAVA, scope="thread"):
                    bits(LLAVA, generating(wrong))

    def go_on() -> None:
        with patch().attach(LLAVA, scope="thread"):
            for _ in range(5):
                assert same(bits(LLAVA, generating(llava_inputs)), expected)

    together({"fails": fail, "goes on": go_on})


@pytest.mark.parametrize("via", ["hooks", "nnsight"])
def test_a_thread_that_ends_takes_its_patch_along(llava_inputs, via):
    plain, lying = logits(LLAVA, llava_inputs), left(LLAVA)
    kept: list[Attachment] = []
    idents: set[int] = set()

    def forget() -> None:
        idents.add(threading.get_ident())
        kept.append(patch("language.0").attach(LLAVA, scope="thread", via=via))
        assert not torch.equal(logits(LLAVA, llava_inputs), plain)

    for _ in range(3):
        in_thread(forget)
        until(lambda: left(LLAVA) == lying)
    # Python gives identities again: a patch that went by them would act here.
    in_thread(lambda: idents.add(threading.get_ident()))
    assert len(idents) < 4
    assert torch.equal(in_thread(lambda: logits(LLAVA, llava_inputs)), plain)
    for attached in kept:
        assert attached.report().edited_tokens == 8
        attached.remove()


def until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about in two seconds")


def test_a_host_that_is_dropped_with_a_threads_own_patch_is_freed(llava_inputs):
    host = make_llava()
    attached = patch().attach(host, scope="thread")
    logits(host, llava_inputs)
    gone = weakref.ref(host), weakref.ref(attached.actives[0])
    del host, attached
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_a_copy_that_another_thread_makes_is_not_patched(llava_inputs):
    host = make_llava()
    plain = logits(host, llava_inputs)
    with patch().attach(host, scope="thread"):
        twin = in_thread(lambda: copy.deepcopy(host))
        assert torch.equal(logits(twin, llava_inputs), plain)
        assert not torch.equal(logits(host, llava_inputs), plain)


def test_an_unknown_word_is_refused_and_nothing_is_attached():
    for put in (patch().attach, lambda *a, **k: attach_rows(a[0], [patch()], **k)):
        with pytest.raises(VlmEditError, match=r"scope is 'mine'; use 'process', 'thread'"):
            put(LLAVA, scope="mine")


# Hooks come and go while other threads are inside the host.


def test_a_hook_that_torch_calls_while_it_is_put_on_or_taken_off_does_nothing(llava_inputs):
    plain = logits(LLAVA, llava_inputs)
    with patch().attach(LLAVA):
        for hook in LLAVA._forward_pre_hooks.values():
            assert hook(LLAVA, ()) is None  # without keyword arguments: torch knows of none yet
    attached = patch().attach(LLAVA)
    stand_in = LLAVA.generate
    attached.remove()
    assert stand_in(**llava_inputs, max_new_tokens=2, do_sample=False).shape == (2, 11)
    assert torch.equal(logits(LLAVA, llava_inputs), plain)


# Autograd and compiled code.


def test_gradients_of_checkpointed_layers_are_those_of_a_patch_for_all(llava_inputs):
    gradients = []
    for scope in ("process", "thread"):
        host = make_llava().train()
        host.gradient_checkpointing_enable({"use_reentrant": False})
        with patch().attach(host, scope=scope):
            host(**llava_inputs).logits.square().mean().backward()
        gradients.append(host.model.multi_modal_projector.linear_1.weight.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_a_layer_run_again_in_a_thread_of_autograds_is_refused_not_left_plain():
    """As on a GPU, whose backward passes run in a thread that Python did not start."""
    layer = Host.of(LLAVA).site("projector").taps[0].module
    failed: list[BaseException] = []
    done = threading.Event()
    with patch("projector", tokens="all").attach(LLAVA, scope="thread"):
        hidden = torch.randn(1, 4, 24, requires_grad=True)
        loss = checkpoint(layer, hidden, use_reentrant=False).sum()

        def backward() -> None:
            try:
                loss.backward()
            except BaseException as error:
                failed.append(error)
            done.set()

        _thread.start_new_thread(backward, ())
        assert done.wait(60)
    (error,) = failed
    assert isinstance(error, VlmEditError)
    assert "gradient checkpointing runs this layer again" in str(error)


def test_compiled_code_edits_in_each_thread_by_its_own_patch():
    host = make_llava()
    inputs = {"inputs_embeds": torch.randn(1, 5, 32)}
    language = host.model.language_model
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(language, backend="eager", fullgraph=True)
    own = {
        "a": patch("language.1", tokens="all"),
        "b": patch("language.1", Steer([31], 4.0), "all"),
        "plain": None,
    }

    def run(what: nn.Module) -> Tensor:
        with torch.no_grad():
            return what(**inputs).last_hidden_state

    expected = {}
    for name, each in own.items():
        with ExitStack() as stack:
            if each is not None:
                stack.enter_context(each.attach(host))
            expected[name] = run(language)
    assert not torch.equal(expected["a"], expected["b"])
    attached = threading.Barrier(len(own))

    def serve(name: str) -> Callable[[], None]:
        def loop() -> None:
            with ExitStack() as stack:
                if (each := own[name]) is not None:
                    stack.enter_context(each.attach(host, scope="thread"))
                attached.wait(60)
                for _ in range(5):
                    torch.testing.assert_close(run(compiled), expected[name])
                attached.wait(60)

        return loop

    together({name: serve(name) for name in own})
    assert counters["stats"]["unique_graphs"] == len(own)
    torch.testing.assert_close(run(compiled), expected["plain"])
    torch.compiler.reset()


def test_a_patch_for_all_threads_takes_no_longer_way_than_before():
    module = Host.of(LLAVA).site("language.1").taps[0].module
    kinds = []
    for scope in ("process", "thread"):
        with patch().attach(LLAVA, scope=scope):
            callbacks = dispatch.Dispatcher.installed[module][None].callbacks
            kinds.append([type(callback).__name__ for callback in callbacks.values()])
    assert kinds == [["function"], ["InThread"]]


def test_what_a_placeholder_is_in_one_thread_says_nothing_in_another(llava_inputs):
    """The modality mask is the call's own, thread by thread."""
    words = {k: v for k, v in row(llava_inputs).items() if k != "pixel_values"}
    words["input_ids"] = words["input_ids"].masked_fill(words["input_ids"] == IMAGE_TOKEN, 9)
    plain = logits(LLAVA, words)
    with patch().attach(LLAVA):
        edited = logits(LLAVA, row(llava_inputs))

    def shows() -> None:
        with patch().attach(LLAVA, scope="thread"):
            for _ in range(20):
                assert torch.equal(logits(LLAVA, row(llava_inputs)), edited)

    def reads() -> None:
        attached = patch().attach(LLAVA, scope="thread")
        for _ in range(20):
            assert torch.equal(logits(LLAVA, words), plain)
        attached.detach()  # without the warning that nothing was edited

    together({"shows": shows, "reads": reads})
