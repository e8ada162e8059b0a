"""Patches of transcoders: read at one place, written at another, held to hooks written by hand."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from any_hosts import build
from any_hosts.checks import ROWS
from random_transcoders import LAYERS, M, by_hand, logits, made

from vlm_edit import (
    Ablate,
    Clamp,
    Dictionary,
    Host,
    Patch,
    Scale,
    Steer,
    VlmEditError,
    load_patch,
)
from vlm_edit.dictionaries import Transcoder
from vlm_edit.edits import Project
from vlm_edit.ground.files import read_header, read_tensors, write_tensors
from vlm_edit.hooks import record


@pytest.mark.parametrize("tokens", ["image", "all"])
def test_an_edit_is_what_its_formula_says(llava, llava_inputs, tokens):
    transcoder, site = made(), "language.1.mlp_out"
    image = llava_inputs["input_ids"] == 60
    mask = image if tokens == "image" else llava_inputs["attention_mask"].bool()
    plain = logits(llava, llava_inputs)

    def change(_layer, x, y):
        e = transcoder.inner.encoder
        codes = (x.double() @ e.weight.double() + e.bias.double()).relu()[..., [3, 5]]
        moved = (codes * 0.25 - codes) @ transcoder.inner.decoder[[3, 5]].double()
        return torch.where(mask[..., None], (y.double() + moved).float(), y)

    handles = by_hand(llava, [1], change)
    expected = logits(llava, llava_inputs)
    for handle in handles:
        handle.remove()
    patch = Patch(site, transcoder, Scale([3, 5], 0.25), tokens=tokens)
    with patch.attach(llava) as attached:
        edited = logits(llava, llava_inputs)
        assert attached.report().edited_tokens == int(mask.sum())
        assert "read at language.1.mlp_in" in repr(attached)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(edited, plain, atol=1e-3)
    assert torch.equal(logits(llava, llava_inputs), plain), "detached, it is itself again"


def test_codes_are_of_what_enters_and_not_of_what_leaves(llava, llava_inputs):
    """Scaling what enters by hand scales the edit; scaling what leaves does not."""
    site = "language.1.mlp_out"
    patch = Patch(site, made(), Ablate([3]))
    inner = replace(made().inner, encoder=replace(made().inner.encoder, bias=torch.zeros(M)))
    patch = Patch(site, Transcoder(inner, "mlp_in", "mlp_out"), Ablate([3]))

    def moved(scale_output):
        def change(_layer, _x, y):
            return y * scale_output

        handles = by_hand(llava, [1], change)  # before ours, which are prepended
        try:
            with record(llava, site) as before:
                logits(llava, llava_inputs)
            with patch.attach(llava), record(llava, site) as after:
                logits(llava, llava_inputs)
        finally:
            for handle in handles:
                handle.remove()
        return after.captures[0].hidden - before.captures[0].hidden

    torch.testing.assert_close(moved(1.0), moved(5.0), atol=1e-5, rtol=1e-4)


def test_a_batch_is_its_rows_and_a_cache_changes_nothing(llava, llava_inputs):
    patch = Patch("language.0.mlp_out", made(), Clamp([1, 2], 3.0))
    with patch.attach(llava):
        together = logits(llava, llava_inputs)
        for row in range(2):
            alone = logits(
                llava, {name: value[row : row + 1] for name, value in llava_inputs.items()}
            )
            torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)
        options = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}
        with torch.no_grad():
            cached = llava.generate(**llava_inputs, **options)
            free = llava.generate(**llava_inputs, **options, use_cache=False)
    assert torch.equal(cached, free)


def test_generated_tokens_are_edited_step_by_step(llava, llava_inputs):
    patch = Patch("language.1.mlp_out", made(), Ablate([1]), tokens="text+special", phase="decode")
    with patch.attach(llava) as attached, torch.no_grad():
        llava.generate(**llava_inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert attached.report().sites[0].phases["decode"] == 6, "two rows, three steps"


def test_a_saved_patch_does_the_same_and_names_both_sites(llava, llava_inputs, tmp_path):
    patch = Patch("language.1.mlp_out", made(), [Ablate([3]), Scale([5], 2.0)], tokens="image")
    path = tmp_path / "patch.safetensors"
    with patch.attach(llava):
        expected = logits(llava, llava_inputs)
    patch.save(path, llava)
    back = load_patch(path)
    assert back.bindings[0].reads == ("language.1.mlp_in",)
    assert {"language.1.mlp_in", "language.1.mlp_out"} <= set(back.host["sites"])
    with back.attach(llava):
        assert torch.equal(logits(llava, llava_inputs), expected)
    header, tensors = read_tensors(path, "patch", verify=False)
    assert header["version"] == 4, "a reader that would read its own site must refuse it"
    write_tensors(path, dict(tensors), {**header, "version": 3}, "patch")
    with pytest.raises(VlmEditError, match="reads other sites, which its format does not know"):
        load_patch(path)
    steers = Patch("language.1.mlp_out", made(), Steer([3], 1.0))
    steers.save(path, llava)
    assert read_header(path) is not None
    assert load_patch(path).bindings[0].reads == ()


def with_norm(norm):
    plain = made()
    encoder = replace(plain.inner.encoder, norm=norm)
    return replace(plain, inner=replace(plain.inner, encoder=encoder))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm_of_input"])
def test_only_a_norm_that_is_put_back_scales_what_is_written(llava, llava_inputs, norm):
    normed, site = with_norm(norm), "language.1.mlp_out"
    with record(llava, "language.1.mlp_in", site) as before:
        logits(llava, llava_inputs)
    with Patch(site, normed, Ablate([3])).attach(llava), record(llava, site) as after:
        logits(llava, llava_inputs)
    x, y = (capture.hidden.double() for capture in before.captures)
    if norm == "layer_norm":
        scale = x.std(-1, keepdim=True)
        inside = (x - x.mean(-1, keepdim=True)) / (scale + 1e-5)
    else:
        inside, scale = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(), 1.0
    e = normed.inner.encoder
    codes = (inside @ e.weight.double() + e.bias.double()).relu()[..., [3]]
    expected = y - codes @ normed.inner.decoder[[3]].double() * scale
    real = llava_inputs["attention_mask"].bool()
    torch.testing.assert_close(
        after.captures[0].hidden[real].double(), expected[real], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_feature_is_steered_by_the_scale_of_what_is_read(llava, llava_inputs, norm):
    normed, site = with_norm(norm), "language.1.mlp_out"
    with record(llava, "language.1.mlp_in", site) as before:
        logits(llava, llava_inputs)
    x, y = (capture.hidden.double() for capture in before.captures)
    scale = (
        x.std(-1, keepdim=True) if norm == "layer_norm" else x.norm(dim=-1, keepdim=True) / 32**0.5
    )
    expected = y + 2 * scale * normed.inner.decoder[4].double()
    real = llava_inputs["attention_mask"].bool()
    for rules in (Steer([4], 2.0), [Scale([3], 1.0), Steer([4], 2.0)]):
        with Patch(site, normed, rules).attach(llava), record(llava, site) as after:
            logits(llava, llava_inputs)
        steered = after.captures[0].hidden.double()
        torch.testing.assert_close(steered[real], expected[real], atol=1e-5, rtol=1e-4)


def test_a_patch_is_not_saved_without_the_hosts_weights_where_it_reads(llava, tmp_path):
    path, site = tmp_path / "patch.safetensors", "language.1.mlp_out"
    Patch(site, Dictionary.identity(32), Ablate([1])).save(path, llava)
    both = load_patch(path) + Patch(site, made(), Ablate([3]))
    with pytest.raises(VlmEditError, match=r"none is known for \['language.1.mlp_in'\]"):
        both.save(path)
    both.save(path, llava)
    assert load_patch(path).bindings[1].reads == ("language.1.mlp_in",)


def test_rules_without_codes_read_nothing(llava, llava_inputs):
    transcoder, site = made(), "language.1.mlp_out"
    same = Dictionary.identity(32)
    steer = Patch(site, transcoder, Steer([4], 2.0))
    assert steer.bindings[0].reads == ()
    row = transcoder.inner.decoder[4]
    plain = Patch(site, replace(same, decoder=same.decoder), Steer([0], 0.0))
    with steer.attach(llava), record(llava, site) as edited:
        logits(llava, llava_inputs)
    with plain.attach(llava), record(llava, site) as before:
        logits(llava, llava_inputs)
    moved = edited.captures[0].hidden - before.captures[0].hidden
    real = llava_inputs["attention_mask"].bool()
    torch.testing.assert_close(moved[real], (2 * row).expand(int(real.sum()), -1))
    project = Patch(site, transcoder, Project([4]))
    with project.attach(llava), record(llava, site) as projected:
        logits(llava, llava_inputs)
    along = projected.captures[0].hidden[real] @ row
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)


def test_strength_and_pauses_act_as_on_any_patch(llava, llava_inputs):
    patch = Patch("language.1.mlp_out", made(), Ablate([3]))
    plain = logits(llava, llava_inputs)
    with patch.attach(llava) as attached:
        edited = logits(llava, llava_inputs)
        with attached.paused():
            assert torch.equal(logits(llava, llava_inputs), plain)
        assert not attached.actives[0].beside._seen, "nothing is kept behind a forward"
        assert torch.equal(logits(llava, llava_inputs), edited)
    with patch.attach(llava, strength=[0.0, 1.0]):
        half = logits(llava, llava_inputs)
    assert torch.equal(half[0], plain[0])
    torch.testing.assert_close(half[1], edited[1])


def test_a_forward_that_is_stopped_between_both_leaves_nothing_for_the_next(llava, llava_inputs):
    patch = Patch("language.1.mlp_out", made(), Ablate([3]))
    mlp = llava.get_submodule(f"{LAYERS}.1.mlp.down_proj")
    with patch.attach(llava):
        expected = logits(llava, llava_inputs)

        def stop(*_):
            raise RuntimeError("stopped")

        handle = mlp.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stopped"):
            logits(llava, {name: value.flip(0) for name, value in llava_inputs.items()})
        handle.remove()
        assert torch.equal(logits(llava, llava_inputs), expected)


def test_threads_do_not_take_each_other_s_states(llava, llava_inputs):
    rows = [{k: v[i : i + 1] for k, v in llava_inputs.items()} for i in range(2)]
    with Patch("language.1.mlp_out", made(), Ablate([3])).attach(llava):
        expected = [logits(llava, row) for row in rows]
        wrong = []

        def run(i):
            for _ in range(20):
                if not torch.equal(logits(llava, rows[i]), expected[i]):
                    wrong.append(i)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_compiled_hosts_are_edited_alike(llava, llava_inputs):
    host, patch = Host.of(llava), Patch("language.1.mlp_out", made(), Ablate([3]))
    plain = logits(llava, llava_inputs)
    with patch.attach(host):
        expected = logits(llava, llava_inputs)
    host.prepare()
    compiled = torch.compile(llava, backend="eager")
    torch.testing.assert_close(logits(compiled, llava_inputs), plain)
    with patch.attach(host):
        torch.testing.assert_close(logits(compiled, llava_inputs), expected)
    torch.testing.assert_close(logits(compiled, llava_inputs), plain)


def test_gradients_flow_to_what_is_read(llava, llava_inputs):
    patch = Patch("language.1.mlp_out", made(), Scale([3], 3.0))
    pixels = llava_inputs["pixel_values"].clone().requires_grad_()
    with patch.attach(llava):
        llava(**{**llava_inputs, "pixel_values": pixels}).logits.sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.isfinite().all())
    assert float(pixels.grad.abs().sum()) > 0


@torch.no_grad()
def test_behind_a_norm_of_gemma_s_the_stream_is_what_is_edited():
    host = build("gemma3")
    ours = Host.of(host.model)
    site = ours.site("language.1.mlp_out")
    transcoder = made(site.width)
    layer = ours.site("language.1").taps[0].module
    states = {}
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _, args: states.update(x=args[0])),
        layer.post_feedforward_layernorm.register_forward_hook(lambda _, __, y: states.update(y=y)),
    ]
    inputs = host.inputs(ROWS)
    host.model(**inputs)
    for handle in handles:
        handle.remove()
    with (
        Patch(site.name, transcoder, Ablate([3])).attach(ours),
        record(ours, site.name) as recording,
    ):
        host.model(**inputs)
    e = transcoder.inner.encoder
    codes = (states["x"] @ e.weight + e.bias).relu()[..., [3]]
    expected = states["y"] - codes @ transcoder.inner.decoder[[3]]
    real = inputs["attention_mask"].bool()
    edited = recording.captures[0].hidden
    torch.testing.assert_close(edited[real], expected[real], atol=1e-4, rtol=1e-4)
    assert torch.equal(edited[~real], states["y"][~real]), "padding stays"


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda _: Patch("language.1", made(), Ablate([1])), "is not at 'language.1'"),
        (
            lambda _: Patch("language.1.mlp_out", made(), Ablate([1]), gate=0.5),
            "a transcoder predicts another place: leave gate= out",
        ),
        (
            lambda llava: Patch("language.1.mlp_out", made(16), Ablate([1])).attach(llava),
            "the dictionary is 16 wide",
        ),
        (
            lambda llava: Patch("language.9.mlp_out", made(), Ablate([1])).attach(llava),
            "has no site 'language.9.mlp_out'",
        ),
        (
            lambda llava: Patch("language.1.mlp_out", made(), Ablate([1])).attach(
                llava, via="nnsight"
            ),
            "is what .* is called with, or a part of it, and via='nnsight' edits outputs",
        ),
        (
            lambda llava: Patch("language.1.mlp_out", made(), Ablate([1])).bake(llava),
            "it reads other sites than its own",
        ),
        (
            lambda llava: Patch(
                "language.0+language.1", Dictionary.identity(64), Ablate([1])
            ).attach(llava),
            "is several sites side by side",
        ),
        (
            lambda llava: Host.of(llava).site("vision.0+language.1"),
            "other tokens pass at each of these sites",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(llava, llava_inputs, act, message):
    plain, before = logits(llava, llava_inputs), hooks_on(llava)
    with pytest.raises(VlmEditError, match=message):
        act(llava)
    assert hooks_on(llava) == before
    assert torch.equal(logits(llava, llava_inputs), plain)


def hooks_on(host):
    tables = [(m._forward_hooks, m._forward_pre_hooks) for m in host.modules()]
    return [[*map(id, after.values()), *map(id, ahead.values())] for after, ahead in tables]
