"""The invariants of docs/architecture.md that need a whole host: a tiny random CLIP and LLaVA.

The seventh, that scores do not depend on how data are cut, is tested with the scores.
"""

import builtins
import pickle
import threading

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava, random_dictionary
from transformers import LogitsProcessor

from vlm_edit import Ablate, Clamp, Host, Patch, Scale, Steer, VlmEditError, load_patch, record
from vlm_edit.hooks import attach

pytestmark = pytest.mark.kernels

LLAVA = make_llava()  # shared by tests that leave it as it was, which a test below holds
NEW = 6
DENSE = random_dictionary(32)


def edit(name="language.1", tokens="image", rules=None, dictionary=DENSE) -> Patch:
    return Patch(name, dictionary, rules or [Scale(range(30), 3.0), Steer([31], 2.0)], tokens)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model(**inputs).logits


@torch.no_grad()
def generate(model, inputs, **options) -> torch.Tensor:
    # A host that says its own placeholder cannot read what it said, patch or not.
    quiet = {} if "logits_processor" in options else {"suppress_tokens": [IMAGE_TOKEN]}
    options = {"max_new_tokens": NEW, "do_sample": False} | quiet | options
    output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
    return output.sequences, torch.stack(output.logits, 1)


def row(inputs, i, unpadded=False):
    one = {k: v[i : i + 1] for k, v in inputs.items()}
    if unpadded:
        keep = one["attention_mask"][0].bool()
        one |= {k: one[k][:, keep] for k in ("input_ids", "attention_mask")}
    return one


@pytest.fixture(scope="module", autouse=True)
def _the_shared_host_stays_as_it_was():
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * 4, 6]])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    before = logits(LLAVA, inputs)  # its own hooks are installed here
    hooks = hooks_of(LLAVA)
    yield
    assert hooks_of(LLAVA) == hooks
    assert torch.equal(logits(LLAVA, inputs), before)


# 1. No patch: bit-equal. Detached, also after an exception: bit-equal again, no hook left.


@pytest.mark.parametrize("name", ["vision.0", "vision.1", "projector", "language.0", "language.2"])
def test_a_detached_patch_leaves_every_bit_and_no_hook(llava_inputs, name):
    hooks = hooks_of(LLAVA)
    before = logits(LLAVA, llava_inputs)
    width = 24 if name.startswith("vision") else 32
    patch = edit(name, "all", [Clamp(range(40), 2.0)], random_dictionary(width))
    with patch.attach(LLAVA):
        assert not torch.allclose(logits(LLAVA, llava_inputs), before)
    assert torch.equal(logits(LLAVA, llava_inputs), before)
    with pytest.raises(ZeroDivisionError), patch.attach(LLAVA):
        raise ZeroDivisionError
    assert torch.equal(logits(LLAVA, llava_inputs), before)
    assert hooks_of(LLAVA) == hooks


@pytest.mark.parametrize("where", ["language.0", "language.2", "lm_head", "generate"])
def test_an_exception_in_the_middle_of_a_forward_leaves_the_host_whole(llava_inputs, where):
    def fail(*_: object):
        raise ZeroDivisionError

    hooks = hooks_of(LLAVA)
    before = generate(LLAVA, llava_inputs)[1]
    with pytest.raises(ZeroDivisionError), edit().attach(LLAVA):
        module = LLAVA.lm_head
        if where.startswith("language"):
            module = Host.of(LLAVA).site(where).taps[0].module
        failing = module.register_forward_hook(fail)
        try:
            (generate if where == "generate" else logits)(LLAVA, llava_inputs)
        finally:
            failing.remove()
    assert hooks_of(LLAVA) == hooks
    assert torch.equal(generate(LLAVA, llava_inputs)[1], before)


def test_a_permanent_patch_works_on_after_an_exception(llava_inputs):
    with edit().attach(LLAVA):
        expected = logits(LLAVA, llava_inputs)
        with pytest.raises(ValueError, match="features and image tokens"):
            logits(LLAVA, llava_inputs | {"pixel_values": llava_inputs["pixel_values"][:1]})
        assert torch.equal(logits(LLAVA, llava_inputs), expected)
        # Not through the root: no mask of an earlier call may apply here.
        with pytest.raises(VlmEditError, match="nobody can tell image tokens from text"):
            LLAVA.model.language_model(inputs_embeds=torch.randn(2, 9, 32))


# 2. However the host is run, the mask is the one of its own scatter and the edit is the same.


class Emit(LogitsProcessor):
    """Makes the model say the image placeholder at every step."""

    def __call__(self, _ids, scores):
        forced = torch.full_like(scores, -1e4)
        forced[:, IMAGE_TOKEN] = 0
        return forced


def embedded(inputs):
    embeds = LLAVA.get_input_embeddings()(inputs["input_ids"]).detach()
    return {"inputs_embeds": embeds} | {k: v for k, v in inputs.items() if k != "input_ids"}


MODES = {
    "greedy": {},
    "without cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "beams": {"num_beams": 2},
    "two sequences": {"num_return_sequences": 2, "do_sample": True},
    "beams that sample": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
    "chunked prefill": {"prefill_chunk_size": 3},
    "assisted by prompt lookup": {"prompt_lookup_num_tokens": 2, "eos_token_id": -1},
    "emitted placeholders": {"logits_processor": [Emit()]},
    "embeddings": {},
    "no image": {},
}


def masks_of(monkeypatch, run):
    """For each pass through the first language layer: our mask, and the host's own."""
    pairs, host = [], []
    original = LLAVA.model.get_placeholder_mask

    def spy(*args, **kwargs):
        mask = original(*args, **kwargs)
        host.append(mask[..., 0])
        return mask

    def keep(hidden, tokens):
        theirs = host.pop() if host else torch.zeros(hidden.shape[:2], dtype=torch.bool)
        pairs.append((tokens.mask("image"), theirs))
        return hidden

    monkeypatch.setattr(LLAVA.model, "get_placeholder_mask", spy)
    handle = attach(LLAVA, Host.of(LLAVA).site("language.0"), keep)
    try:
        run()
    finally:
        handle.remove()
    return pairs


@pytest.mark.parametrize("mode", ["forward", *MODES])
def test_the_mask_is_the_hosts_own(monkeypatch, llava_inputs, mode):
    inputs = llava_inputs
    if "lookup" in mode or "chunked" in mode:
        inputs = row(inputs, 0)
    if mode == "embeddings":
        inputs = embedded(inputs)
    if mode == "no image":
        inputs = {k: v for k, v in inputs.items() if k != "pixel_values"}
    if mode == "forward":
        pairs = masks_of(monkeypatch, lambda: logits(LLAVA, inputs))
    else:
        pairs = masks_of(monkeypatch, lambda: generate(LLAVA, inputs, **MODES[mode]))
        assert len(pairs) > 1
    for ours, theirs in pairs:
        if ours is None:  # embeddings without an image: nobody can know, and none was scattered
            assert not theirs.any()
        else:
            assert torch.equal(ours, theirs)
    assert pairs[0][1].any() == (mode != "no image")


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vision.1", "all"),
        ("projector", "image"),
        ("language.1", "image"),
        ("language.1", "text+special"),
        ("language.1", "all"),
    ],
)
def test_a_batch_is_its_rows_and_padding_changes_nothing(llava_inputs, name, tokens):
    width = 24 if name.startswith("vision") else 32
    real = llava_inputs["attention_mask"].bool()
    with edit(name, tokens, dictionary=random_dictionary(width)).attach(LLAVA):
        batch = logits(LLAVA, llava_inputs)
        for i in (0, 1):
            padded = logits(LLAVA, row(llava_inputs, i))
            bare = logits(LLAVA, row(llava_inputs, i, unpadded=True))
            torch.testing.assert_close(batch[i][real[i]], padded[0][real[i]], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(batch[i][real[i]], bare[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
@pytest.mark.parametrize("mode", ["without cache", "static cache", "chunked prefill", "embeddings"])
def test_generation_with_a_patch_is_the_same_however_it_is_computed(llava_inputs, mode, tokens):
    inputs = row(llava_inputs, 0) if mode == "chunked prefill" else llava_inputs
    plain = generate(LLAVA, inputs)
    options, other = MODES[mode], embedded(inputs) if mode == "embeddings" else inputs
    with edit(tokens=tokens).attach(LLAVA):
        expected = generate(LLAVA, inputs)
        got = generate(LLAVA, other, **options)
    assert torch.equal(got[0][:, -NEW:], expected[0][:, -NEW:])
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain[1], expected[1])


@pytest.mark.parametrize("tokens", ["image", "text+special"])
def test_each_step_of_a_generation_equals_one_forward_over_all_of_it(llava_inputs, tokens):
    inputs = row(llava_inputs, 0)
    with edit(tokens=tokens).attach(LLAVA):
        sequence, steps = generate(LLAVA, inputs)
        whole = {
            "input_ids": sequence,
            "attention_mask": torch.ones_like(sequence),
            "pixel_values": inputs["pixel_values"],
        }
        full = logits(LLAVA, whole)[:, -NEW - 1 : -1]
    torch.testing.assert_close(steps, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["beams", "two sequences", "beams that sample"])
def test_beams_and_seeded_samples_of_a_batch_repeat_and_differ_from_the_plain_ones(
    llava_inputs, mode
):
    def run():
        torch.manual_seed(3)
        return generate(LLAVA, llava_inputs, **MODES[mode])[0]

    plain = run()
    with edit(tokens="image").attach(LLAVA):
        edited = run()
        assert torch.equal(run(), edited)
    assert torch.equal(run(), plain)
    assert not torch.equal(plain, edited)


def test_beams_of_a_batch_are_the_beams_of_its_rows(llava_inputs):
    with edit(tokens="image").attach(LLAVA):
        batch = generate(LLAVA, llava_inputs, num_beams=2)[0][:, -NEW:]
        alone = [
            generate(LLAVA, row(llava_inputs, i, unpadded=True), num_beams=2)[0][:, -NEW:]
            for i in (0, 1)
        ]
    assert torch.equal(batch, torch.cat(alone))


# 3. Ablations add up, strength 0 is nothing, and an edit that should act reaches the logits.


def test_ablating_one_set_then_another_is_ablating_both(llava_inputs):
    neurons = random_dictionary(32)
    once = edit(rules=[Ablate(range(20))], dictionary=neurons)
    rules = edit(rules=[Ablate(range(12)), Ablate(range(8, 20))], dictionary=neurons)
    with once.attach(LLAVA):
        expected = logits(LLAVA, llava_inputs)
    with rules.attach(LLAVA):
        torch.testing.assert_close(logits(LLAVA, llava_inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_strength_zero_changes_no_bit_of_the_logits(llava_inputs, dtype, activation):
    host = make_llava().to(dtype)
    inputs = llava_inputs | {"pixel_values": llava_inputs["pixel_values"].to(dtype)}
    rules = [Ablate(range(20), strength=0.0), Clamp([1], 9.0, strength=0.0)]
    before = logits(host, inputs)
    with edit("language.1", "all", rules, random_dictionary(32, activation=activation)).attach(
        host
    ):
        assert torch.equal(logits(host, inputs), before)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("rule", [Ablate(range(30)), Scale(range(30), -1.0), Steer([3], 4.0)])
@pytest.mark.parametrize("name", ["vision.0", "vision.1", "projector", "language.0", "language.2"])
def test_an_edit_that_should_act_acts_on_the_logits(llava_inputs, name, rule, activation):
    width = 24 if name.startswith("vision") else 32
    dictionary = random_dictionary(width, activation=activation)
    before = logits(LLAVA, llava_inputs)
    with edit(name, "image", [rule], dictionary).attach(LLAVA):
        after = logits(LLAVA, llava_inputs)
    at_images = llava_inputs["input_ids"] == IMAGE_TOKEN
    assert not torch.allclose(before[at_images], after[at_images], atol=1e-3)


def test_an_edit_of_image_tokens_in_the_last_layer_leaves_text_logits_alone(llava_inputs):
    before = logits(LLAVA, llava_inputs)
    with edit("language.2", "image").attach(LLAVA):
        after = logits(LLAVA, llava_inputs)
    at_images = llava_inputs["input_ids"] == IMAGE_TOKEN
    assert torch.equal(before[~at_images], after[~at_images])


# 4. Out of place, differentiable; the host's dtype stays, the arithmetic is float32.


def test_gradients_flow_to_the_pixels_and_equal_those_of_the_naive_way(llava_inputs):
    patch = edit("projector", "all", [Scale(range(20), 0.25)])

    def naive(hidden, _):
        codes = DENSE.encode(hidden)
        after = torch.cat([codes[..., :20] * 0.25, codes[..., 20:]], -1)
        return DENSE.decode(after) + (hidden - DENSE.decode(codes))

    gradients = []
    for put in (
        lambda: patch.attach(LLAVA),
        lambda: attach(LLAVA, Host.of(LLAVA).site("projector"), naive),
    ):
        pixels = llava_inputs["pixel_values"].clone().requires_grad_()
        attached = put()
        LLAVA(**llava_inputs | {"pixel_values": pixels}).logits.square().mean().backward()
        attached.remove()
        gradients.append(pixels.grad)
    LLAVA.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert gradients[0].any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(llava_inputs, reentrant):
    gradients, recomputed = [], []
    for checkpoint in (False, True):
        host = make_llava().train()
        if checkpoint:
            host.gradient_checkpointing_enable({"use_reentrant": reentrant})
            mlp = host.model.language_model.layers[1].mlp
            mlp.register_forward_pre_hook(lambda *_: recomputed.append(1))
        with edit().attach(host):
            host(**llava_inputs).logits.square().mean().backward()
        gradients.append(host.model.multi_modal_projector.linear_1.weight.grad)
    assert len(recomputed) == 2
    assert torch.equal(*gradients)


def test_inference_mode_first_and_gradients_afterwards(llava_inputs):
    pixels = llava_inputs["pixel_values"].clone().requires_grad_()
    with torch.inference_mode():
        patch = edit(dictionary=random_dictionary(32))
    with patch.attach(LLAVA):
        with torch.inference_mode():
            first = LLAVA(**llava_inputs).logits.clone()
        second = LLAVA(**llava_inputs | {"pixel_values": pixels}).logits
        second.sum().backward()
    LLAVA.zero_grad()
    assert torch.equal(first, second)
    assert pixels.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_host_in_half_precision_keeps_it_and_is_edited_in_float32(llava_inputs, dtype):
    host = make_llava().to(dtype)
    inputs = llava_inputs | {"pixel_values": llava_inputs["pixel_values"].to(dtype)}
    patch = edit(tokens="all", rules=[Scale(range(30), 0.3)])
    with record(host, "language.1") as plain, torch.no_grad():
        host(**inputs)
    with patch.attach(host), record(host, "language.1") as edited, torch.no_grad():
        host(**inputs)
    hidden, after = plain.captures[0].hidden, edited.captures[0].hidden
    codes = DENSE.encode(hidden.float())[..., :30]
    expected = (hidden.float() + (0.3 * codes - codes) @ DENSE.decoder[:30]).to(dtype)
    real = llava_inputs["attention_mask"].bool()
    assert after.dtype == dtype
    torch.testing.assert_close(after[real], expected[real], rtol=1e-6, atol=1e-6)
    assert torch.equal(after[~real], hidden[~real])


def test_autocast_of_the_host_does_not_reach_the_edit(llava_inputs):
    patch = edit(tokens="all")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        with record(LLAVA, "language.1") as plain:
            LLAVA(**llava_inputs)
        with patch.attach(LLAVA), record(LLAVA, "language.1") as edited:
            LLAVA(**llava_inputs)
    hidden = plain.captures[0].hidden
    real = llava_inputs["attention_mask"].bool()
    assert torch.equal(edited.captures[0].hidden[real], patch.bindings[0].splice(hidden)[real])


def test_a_patch_attached_before_compilation_acts_in_the_compiled_host():
    host = make_clip().text_model.requires_grad_(False)
    whole = make_clip()
    whole.text_model = host
    ids = torch.tensor([[1, 5, 6, 7, 63]])
    before = host(input_ids=ids).last_hidden_state
    with edit("text.1", "all", dictionary=random_dictionary(16)).attach(whole):
        expected = host(input_ids=ids).last_hidden_state
        compiled = torch.compile(host, backend="eager", fullgraph=True)
        assert torch.equal(compiled(input_ids=ids).last_hidden_state, expected)
    assert not torch.allclose(expected, before)
    assert torch.equal(compiled(input_ids=ids).last_hidden_state, before)
    torch._dynamo.reset()


def test_a_masked_patch_attached_before_compilation_acts_in_the_compiled_layers(llava_inputs):
    host = make_llava()
    with edit().attach(host):
        expected = logits(host, llava_inputs)
        host.model.language_model.compile(backend="eager")
        assert torch.equal(logits(host, llava_inputs), expected)
    torch._dynamo.reset()


def test_a_forward_under_way_in_another_thread_is_plain_or_edited_or_refused_never_wrong(
    llava_inputs,
):
    plain = logits(LLAVA, llava_inputs)
    with edit("language.2").attach(LLAVA):
        edited = logits(LLAVA, llava_inputs)
    results, errors, stop = [], [], threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                results.append(logits(LLAVA, llava_inputs))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(40):
        with edit("language.2").attach(LLAVA):
            assert torch.equal(logits(LLAVA, llava_inputs), edited)
    stop.set()
    thread.join()
    assert all(isinstance(e, VlmEditError) for e in errors)  # began before the patch came
    assert all(torch.equal(r, plain) or torch.equal(r, edited) for r in results)
    assert torch.equal(logits(LLAVA, llava_inputs), plain)


# 5. Clear errors are tested room by room; here, that nothing is edited in part.


def test_a_patch_of_which_one_part_does_not_fit_leaves_the_host_alone(llava_inputs):
    hooks = hooks_of(LLAVA)
    before = logits(LLAVA, llava_inputs)
    for part in (
        edit("language.7"),
        edit("vision.2", "all", dictionary=random_dictionary(24)),
        edit("language.0", dictionary=random_dictionary(31)),
        edit("projector", "text"),
    ):
        with pytest.raises(VlmEditError):
            (edit() + part).attach(LLAVA)
        assert hooks_of(LLAVA) == hooks
    assert torch.equal(logits(LLAVA, llava_inputs), before)


# 6. Loading never runs code from a file.


def test_loading_a_patch_neither_unpickles_nor_evaluates(tmp_path, monkeypatch, llava_inputs):
    file = tmp_path / "patch.safetensors"
    patch = edit("language.1") + edit("vision.1", "all", dictionary=random_dictionary(24))
    patch.save(file, LLAVA)

    def forbidden(*_: object, **__: object):
        raise AssertionError("code from a file")

    for module, name in (
        (pickle, "loads"),
        (pickle, "load"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (builtins, "eval"),
        (builtins, "exec"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    back = load_patch(file)
    monkeypatch.undo()
    with patch.attach(LLAVA):
        expected = logits(LLAVA, llava_inputs)
    with back.attach(LLAVA):
        assert torch.equal(logits(LLAVA, llava_inputs), expected)
