"""Continuous batching: requests of one call, in prompts and answers at once.

The oracle is the same request alone through ``generate``, with the same patch. Every manager runs
in its own thread.
"""

import threading
from collections import Counter

import pytest
import torch
from tiny_hosts import TEXT, filled
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.model_runner import ModelRunner
from transformers.generation.continuous_batching.requests import RequestState
from transformers.utils import logging

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError
from vlm_edit.hooks import Special
from vlm_edit.patches import attach_rows

pytestmark = pytest.mark.filterwarnings("ignore:the patch edited no token")
OWN = Adapter.of({"language.{i}": ("model.layers.{i}", "text", "hidden_size")})
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "eos_token_id": 2}
NEW = 4
_draw = torch.Generator().manual_seed(1)
PROMPTS = [torch.randint(3, 60, (n,), generator=_draw).tolist() for n in (6, 22, 9)]
PROMPTS.append([*PROMPTS[1][:18], 7, 8, 9])  # what two begin with may be shared
ENGINES = {
    "all at once": {},
    "prompts in pieces": {"max_batch_tokens": 8},
    "prompts first": {"max_batch_tokens": 8, "scheduler_type": "prefill_first"},
    "a shared beginning": {"page_size": 4, "num_blocks": 64},
    "a cache too small": {"page_size": 4, "num_blocks": 8, "max_batch_tokens": 16},
}
CHOICES = [
    {},
    {"phase": "prompt"},
    {"phase": "decode"},
    {"steps": (1, 3)},
    {"phase": "decode", "steps": (2, None)},
    {"positions": (-1,)},
    {"positions": (0, 2, -4)},
    {"schedule": [0.5, 0.25]},
]


def patch(**choice):
    return Patch("language.1", Dictionary.identity(32), Clamp([0, 1, 2, 3], 4.0), **choice)


@pytest.fixture(scope="module")
def host():
    return Host.of(filled(LlamaForCausalLM(LlamaConfig(**TEXT))), adapter=OWN)


@pytest.fixture(autouse=True)
def quiet():
    """The engine logs what it is told to expect here."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(level)


def alone(host, prompts=PROMPTS, new=NEW):
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    rows = [torch.tensor([prompt]) for prompt in prompts]
    return [host.model.generate(row, **options)[0, row.shape[1] :].tolist() for row in rows]


def setting(**engine):
    plain = {"num_blocks": 16, "max_batch_tokens": 64, "use_async_batching": False}
    return ContinuousBatchingConfig(**plain | engine)


def greedy(**options):
    plain = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    return GenerationConfig(**plain | options)


def batched(host, prompts=PROMPTS, answers=1, new=NEW, persistent=False, **engine):
    # The likeliest token alone is drawn: the engine gives several answers where it draws.
    more = {"num_return_sequences": answers, "do_sample": True, "top_k": 1} if answers > 1 else {}
    outputs = host.model.generate_batch(
        inputs=prompts,
        generation_config=greedy(max_new_tokens=new, **more),
        continuous_batching_config=setting(**engine),
        persistent_manager=persistent,
        warmup=False,
    )
    return [list(output.generated_tokens) for output in outputs.values()]


def each(host, *runs):
    """The answer to each prompt alone, with its patch and how strongly that acts."""
    answers = []
    for prompt, (own, said) in zip(PROMPTS, runs, strict=True):
        if own is None:
            answers += alone(host, [prompt])
            continue
        with own.attach(host, **said):
            answers += alone(host, [prompt])
    return answers


@pytest.fixture
def resets(monkeypatch):
    """Count requests that the engine begins anew, their answers so far behind their prompts."""
    count, original = Counter(), RequestState.create_equivalent_initial_request

    def begin_anew(state):
        count[len(state.generated_tokens) > 0] += 1
        return original(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", begin_anew)
    return count


@pytest.fixture(scope="module", params=CHOICES, ids=str)
def edited(request, host):
    """A choice, with the answers to each prompt alone and what the report says of them."""
    plain = alone(host)
    with patch(**request.param).attach(host) as attached:
        answers = alone(host)
    assert answers != plain
    return request.param, answers, attached.report().sites[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_request_is_edited_as_it_is_alone(host, engine, edited, resets):
    choice, expected, told = edited
    with patch(**choice).attach(host) as attached:
        assert batched(host, **ENGINES[engine]) == expected
    site = attached.report().sites[0]
    if engine != "a cache too small":
        assert (site.phases, site.streams) == (told.phases, told.streams)
    assert site.steps == told.steps
    assert bool(resets[True]) == (engine == "a cache too small")
    assert not {"generate_batch", "init_continuous_batching"} & {*host.model.__dict__}


@pytest.mark.parametrize("part", ["attention", "mlp", "head.1"])
def test_parts_of_a_layer_know_the_requests_too(host, part):
    plain, site = alone(host), f"language.1.{part}"
    inner = Dictionary.identity(host.site(site).width)
    for choice in CHOICES[:3]:
        own = Patch(site, inner, Clamp([0, 1, 2, 3], 30.0), **choice)
        with own.attach(host):
            expected = alone(host)
            assert batched(host, max_batch_tokens=8) == expected != plain


def test_blocks_of_experts_know_the_requests_too():
    made = filled(MixtralForCausalLM(MixtralConfig(**TEXT | EXPERTS)))
    own = Adapter.of({"language.{i}": ("model.layers.{i}.mlp.experts", "text", "hidden_size")})
    host = Host.of(made, adapter=own)
    plain = alone(host)
    for choice in CHOICES[1::2]:
        with patch(**choice).attach(host):
            expected = alone(host)
            assert batched(host, max_batch_tokens=8) == expected != plain


def test_a_text_s_own_tokens_are_those_of_the_prompt_and_all_of_the_answer(host, monkeypatch):
    monkeypatch.setattr(Special, "at", lambda *_: Special(range(3, 40)))
    plain = alone(host)
    with patch(tokens="text").attach(host) as attached:
        expected = alone(host)
        told = attached.report().sites[0]
    with patch(tokens="text").attach(host) as attached:
        assert batched(host, max_batch_tokens=8) == expected != plain
    assert attached.report().sites[0].streams == told.streams


# Rows are the prompts of generate_batch.


@pytest.mark.parametrize("engine", ENGINES)
def test_prompts_have_strengths_and_patches_of_their_own(host, engine):
    plain, engine = alone(host), ENGINES[engine]
    strengths = [0.0, 1.0, 0.5, 0.25]
    for choice in ({"phase": "prompt"}, {"phase": "decode"}):
        own = patch(**choice)
        expected = each(host, *((own, {"strength": s}) for s in strengths))
        with own.attach(host, strength=strengths):
            assert batched(host, **engine) == expected != plain
    first, last = patch(positions=(-1,)), patch(phase="decode")
    expected = each(host, (first, {}), (last, {}), (None, {}), (first, {}))
    with attach_rows(host, [first, last, None, first]):
        assert batched(host, **engine) == expected != plain


def test_further_answers_are_of_their_prompts_row(host):
    own, strengths = patch(phase="decode"), [0.0, 1.0, 0.5, 0.25]
    expected = each(host, *((own, {"strength": s}) for s in strengths))
    for engine in ({}, {"page_size": 4, "num_blocks": 64}, {"page_size": 4, "num_blocks": 24}):
        with own.attach(host, strength=strengths):
            answers = batched(host, answers=3, **engine)
        assert answers == [answer for answer in expected for _ in range(3)]


def test_strengths_and_masks_of_tokens_need_prompts_of_one_length(host):
    prompts = [prompt[:6] for prompt in PROMPTS]
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    plain = alone(host, prompts)
    for name, given in (("mask", mask), ("strength", mask * 0.5)):
        expected = []
        for prompt, own in zip(prompts, given, strict=True):
            with patch(phase="prompt").attach(host, **{name: own.unsqueeze(0)}):
                expected += alone(host, [prompt])
        with patch(phase="prompt").attach(host, **{name: given}):
            assert batched(host, prompts, max_batch_tokens=8) == expected != plain
        with (
            patch(phase="prompt").attach(host, **{name: given}),
            pytest.raises(VlmEditError, match="prompts of this call have other lengths"),
        ):
            batched(host)


def test_other_rows_than_prompts_are_refused_where_it_was_called(host):
    with (
        patch().attach(host, strength=[1.0, 0.0, 1.0]),
        pytest.raises(VlmEditError, match="3 values, and there are 4 prompts of generate_batch"),
    ):
        batched(host)


# Managers of one's own.


def ask(manager, prompts, names):
    for prompt, name in zip(prompts, names, strict=True):
        manager.add_request(prompt, request_id=name, max_new_tokens=NEW)
    outputs = {}
    while len(outputs) < len(prompts):
        output = manager.get_result(timeout=5)
        assert output is not None
        if output.is_finished():
            outputs[output.request_id] = output
    return [outputs[name] for name in names]


def said(outputs):
    assert not any(output.error for output in outputs)
    return [list(output.generated_tokens) for output in outputs]


NAMES = ["a", "b", "c", "d"]
OPTIONS = {"page_size": 4, "num_blocks": 64}


@pytest.mark.parametrize("when", ["before", "after"])
def test_requests_of_a_manager_are_named(host, when):
    """A manager that runs already when the patch comes is known as one that is made later."""
    own, plain = patch(phase="prompt"), alone(host)
    expected = each(host, (None, {}), (own, {}), (None, {}), (own, {}))

    def run(attach, manager):
        with attach(requests=["b", "d"]):
            assert said(ask(manager, PROMPTS, NAMES)) == expected != plain
        with attach():
            edited = said(ask(manager, PROMPTS, NAMES))
        assert said(ask(manager, PROMPTS, NAMES)) == plain
        with own.attach(host):
            assert edited == alone(host)

    options = {"generation_config": greedy(), "continuous_batching_config": setting(**OPTIONS)}

    def made():
        return host.model.continuous_batching_context_manager(**options, block=True, warmup=False)

    if when == "before":
        with made() as manager:
            assert said(ask(manager, PROMPTS, NAMES)) == plain
            run(lambda **words: own.attach(host, **words), manager)
    else:
        with patch(phase="decode").attach(host, strength=0.0), made() as manager:
            run(lambda **words: own.attach(host, **words), manager)


def test_rows_have_no_order_in_a_manager_of_ones_own(host):
    with (
        patch().attach(host, strength=[1.0, 0.0, 1.0, 0.0]),
        host.model.continuous_batching_context_manager(
            generation_config=greedy(), continuous_batching_config=setting(), warmup=False
        ) as manager,
    ):
        for output in ask(manager, PROMPTS[:1], NAMES[:1]):
            assert "have no order" in output.error
            assert "attach(..., requests=)" in output.error


def test_requests_that_are_not_names_or_not_there_are_refused(host):
    for wrong in ([], [1], 3):
        with pytest.raises(VlmEditError, match="requests"):
            patch().attach(host, requests=wrong)
    with (
        patch().attach(host, requests="a"),
        pytest.raises(VlmEditError, match="requests=.*this call has no requests"),
    ):
        alone(host)


def test_a_manager_that_nobody_knows_is_refused(host):
    manager = host.model.init_continuous_batching(greedy(), setting())
    # Neither made under the patch nor what the thread itself runs.
    loop = threading.Thread(target=lambda: manager._run_generation_loop(False))
    manager._generation_thread = loop
    loop.start()
    try:
        with patch(phase="prompt").attach(host):
            (output,) = ask(manager, PROMPTS[:1], NAMES[:1])
        assert "nobody knows the manager that scheduled it" in output.error
        assert "generate" in output.error
    finally:
        manager.stop()
        manager.destroy()


# Prefixes that requests share.


def test_what_a_patched_request_leaves_is_found_by_no_other(host, monkeypatch):
    """A manager that is kept remembers blocks; edited ones serve no plain request, nor plain ones
    an edited one."""
    found, original = [], PagedAttentionCache.search_prefix_match

    def search(cache, name, ids):
        found.append(original(cache, name, ids))
        return found[-1]

    monkeypatch.setattr(PagedAttentionCache, "search_prefix_match", search)
    plain, own = alone(host), patch(phase="prompt")
    with own.attach(host):
        expected = alone(host)
    try:
        assert batched(host, persistent=True, **OPTIONS) == plain
        found.clear()
        assert batched(host, persistent=True, **OPTIONS) == plain
        assert any(found)  # plain requests do find blocks
        found.clear()
        for strength in (1.0, 0.0):
            with own.attach(host, strength=strength):
                answers = batched(host, persistent=True, **OPTIONS)
            assert answers == (expected if strength else plain)
        assert not any(found)
        assert batched(host, persistent=True, **OPTIONS) == plain
        assert any(found)
        answered = [p + a for p, a in zip(PROMPTS, plain, strict=True)]
        with patch(phase="decode").attach(host):
            batched(host, persistent=True, **OPTIONS)
            turn = alone(host, answered)
            assert batched(host, answered, persistent=True, **OPTIONS) == turn
    finally:
        host.model.destroy_cached_continuous_batching_manager()


def test_a_patch_that_goes_while_requests_run_leaves_nothing_to_find(host):
    plain, attached = alone(host), patch(phase="prompt").attach(host)
    handle = host.model.register_forward_hook(lambda *_: attached.remove())
    with host.model.continuous_batching_context_manager(
        generation_config=greedy(), continuous_batching_config=setting(**OPTIONS), warmup=False
    ) as manager:
        edited = said(ask(manager, PROMPTS, NAMES))
        assert attached.report().edited_tokens > 0
        assert edited != plain
        assert said(ask(manager, PROMPTS, ["e", "f", "g", "h"])) == plain
    handle.remove()


def test_rows_of_a_manager_that_is_kept_are_those_of_each_run(host):
    strengths = [0.0, 1.0, 0.5, 0.25]
    expected = each(host, *((patch(), {"strength": s}) for s in strengths))
    try:
        for _ in range(2):
            with patch().attach(host, strength=strengths):
                assert batched(host, persistent=True, **OPTIONS) == expected
    finally:
        host.model.destroy_cached_continuous_batching_manager()


# What the engine may do besides.


def test_queries_that_are_filled_up_are_padding(host, edited, monkeypatch):
    monkeypatch.setattr(
        ModelRunner, "pad_inputs", property(lambda _: True, lambda *_: None), raising=False
    )
    choice, expected, told = edited
    with patch(**choice).attach(host) as attached:
        assert batched(host, q_padding_interval_size=16, kv_padding_interval_size=32) == expected
    site = attached.report().sites[0]
    assert (site.phases, site.steps) == (told.phases, told.steps)


def test_graphs_that_would_keep_the_edit_are_refused(host, monkeypatch):
    def forward_of(runner, **_):
        runner.use_cuda_graph_varlen = True  # as on an accelerator; here nothing could be captured
        return runner._forward_process_and_sample, False

    monkeypatch.setattr(ModelRunner, "_get_forward_fn", forward_of)
    with (
        patch().attach(host) as attached,
        pytest.raises(VlmEditError, match="replays CUDA graphs.*use_cuda_graph=False"),
    ):
        batched(host)
    assert attached.report().edited_tokens == 0


def test_an_error_of_the_engines_own_is_not_made_ours(host):
    def fail(*_):
        raise ValueError("not an edit's")

    handle = host.model.model.layers[2].register_forward_hook(fail)
    try:
        plain = batched(host)
        assert not any(plain)
        with patch().attach(host):
            assert batched(host) == plain
    finally:
        handle.remove()
