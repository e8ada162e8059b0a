"""nnsight changes torch for its whole process, so only a fixture imports it, never collection."""

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig

from vlm_edit import Ablate, Adapter, Clamp, Host, Patch, Scale, Steer, VlmEditError
from vlm_edit.hooks import tracing
from vlm_edit.host import SiteRule, TapRule
from vlm_edit.patches.active import Active

Inputs = dict[str, Tensor]


@pytest.fixture(scope="module")
def nnsight() -> Any:
    return pytest.importorskip("nnsight")


def hooked(host: nn.Module, patch: Patch, inputs: Inputs, **options: Any) -> Any:
    with patch.attach(host, **options), torch.no_grad():
        return host(**inputs)


def plain(host: nn.Module, inputs: Inputs) -> Any:
    with torch.no_grad():
        return host(**inputs)


def traced(model: Any, inputs: Inputs) -> Any:
    with torch.no_grad(), model.trace(**inputs):
        output = model.output.save()
    return output  # noqa: RET504 (nnsight fills it in at the end of the block)


def assert_same_bits(a: Any, b: Any, names: Sequence[str]) -> None:
    for name in names:
        assert torch.equal(getattr(a, name), getattr(b, name)), name


CLIP_OUTPUTS = ("logits_per_image", "image_embeds", "text_embeds")
WIDTHS = {"joint": 12, "vision": 24, "text": 16}
RULES = {
    "ablate": Ablate([1, 5, 9]),
    "scale": Scale(list(range(39, -1, -1)), factor=-3.0),
    "clamp": Clamp([7], value=2.0, strength=0.5),
    "steer": Steer([3, 30], amount=4.0),
}


# A CLIP


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("site", ["joint", "vision.0", "vision.1", "text.0", "text.2"])
def test_a_traced_patch_gives_the_bits_of_an_attached_one(
    nnsight, clip, clip_inputs, dictionary, site, rule
) -> None:
    patch = Patch(site, dictionary(WIDTHS[site.split(".")[0]]), RULES[rule])
    expected = hooked(clip, patch, clip_inputs)
    assert not torch.equal(expected.logits_per_image, plain(clip, clip_inputs).logits_per_image)
    found = traced(tracing.edited(nnsight.NNsight(clip), patch), clip_inputs)
    assert_same_bits(found, expected, CLIP_OUTPUTS)


@pytest.mark.parametrize("tokens", ["image", "text"])
def test_a_traced_patch_of_one_stream_of_the_joint_site_leaves_the_other(
    nnsight, clip, clip_inputs, dictionary, tokens
) -> None:
    patch = Patch("joint", dictionary(12), Steer([3], amount=4.0), tokens=tokens)
    expected = hooked(clip, patch, clip_inputs)
    found = traced(tracing.edited(nnsight.NNsight(clip), patch), clip_inputs)
    assert_same_bits(found, expected, CLIP_OUTPUTS)
    changed, kept = ("image", "text") if tokens == "image" else ("text", "image")
    before = plain(clip, clip_inputs)
    assert torch.equal(getattr(found, f"{kept}_embeds"), getattr(before, f"{kept}_embeds"))
    assert not torch.equal(
        getattr(found, f"{changed}_embeds"), getattr(before, f"{changed}_embeds")
    )


@pytest.mark.parametrize("activation", ["jumprelu", "topk", "identity"])
def test_every_kind_of_dictionary_gives_the_same_bits(
    nnsight, clip, clip_inputs, dictionary, activation
) -> None:
    patch = Patch("vision.1", dictionary(24, activation=activation), Clamp([1, 2], value=3.0))
    expected = hooked(clip, patch, clip_inputs)
    found = traced(tracing.edited(nnsight.NNsight(clip), patch), clip_inputs)
    assert_same_bits(found, expected, CLIP_OUTPUTS)


def several(dictionary: Callable[..., Any]) -> dict[str, Patch]:
    return {
        "joint": Patch("joint", dictionary(12), Steer([3], amount=2.0)),
        "text": Patch("text.1", dictionary(16), Clamp([4], value=3.0)),
        "vision": Patch("vision.2", dictionary(24), Ablate([1, 2])),
        "early": Patch("vision.0", dictionary(24), Scale([6], factor=5.0)),
        "again": Patch("joint", dictionary(12, seed=1), Clamp([3], value=-4.0)),
    }


@pytest.mark.parametrize(
    "order",
    [
        ("vision", "text", "joint"),
        ("joint", "text", "vision"),
        ("text", "vision", "early", "joint"),
        ("joint", "again"),
        ("again", "joint"),
        ("again", "early", "joint", "text", "vision"),
    ],
    ids="-".join,
)
def test_a_patch_of_several_sites_acts_whole_in_any_order(
    nnsight, clip, clip_inputs, dictionary, order
) -> None:
    parts = several(dictionary)
    first, *rest = order
    patch = parts[first]
    for name in rest:
        patch = patch + parts[name]
    expected = hooked(clip, patch, clip_inputs)
    found = traced(tracing.edited(nnsight.NNsight(clip), patch), clip_inputs)
    assert_same_bits(found, expected, CLIP_OUTPUTS)


def test_edits_at_one_site_keep_their_order(nnsight, clip, clip_inputs, dictionary) -> None:
    parts = several(dictionary)
    one, other = parts["joint"] + parts["again"], parts["again"] + parts["joint"]
    model = nnsight.NNsight(clip)
    a = traced(tracing.edited(model, one), clip_inputs)
    b = traced(tracing.edited(model, other), clip_inputs)
    assert not torch.equal(a.logits_per_image, b.logits_per_image)


def test_the_unedited_model_stays_unedited(nnsight, clip, clip_inputs, dictionary) -> None:
    before = plain(clip, clip_inputs)
    model = nnsight.NNsight(clip)
    patch = Patch("joint", dictionary(12), Clamp([3], value=9.0))
    edited = tracing.edited(model, patch)
    changed = traced(edited, clip_inputs)
    assert not torch.equal(changed.logits_per_image, before.logits_per_image)
    assert_same_bits(traced(model, clip_inputs), before, CLIP_OUTPUTS)
    assert_same_bits(plain(clip, clip_inputs), before, CLIP_OUTPUTS)
    assert_same_bits(traced(edited, clip_inputs), changed, CLIP_OUTPUTS)


def test_an_edited_model_can_be_edited_again(nnsight, clip, clip_inputs, dictionary) -> None:
    parts = several(dictionary)
    once = tracing.edited(nnsight.NNsight(clip), parts["vision"])
    twice = tracing.edited(once, parts["joint"])
    expected = hooked(clip, parts["vision"] + parts["joint"], clip_inputs)
    assert_same_bits(traced(twice, clip_inputs), expected, CLIP_OUTPUTS)
    alone = hooked(clip, parts["vision"], clip_inputs)
    assert_same_bits(traced(once, clip_inputs), alone, CLIP_OUTPUTS)


def test_what_a_trace_reads_at_the_site_is_edited(nnsight, clip, clip_inputs, dictionary) -> None:
    patch = Patch("joint", dictionary(12), Clamp([3], value=9.0), tokens="image")
    model = tracing.edited(nnsight.NNsight(clip), patch)
    with torch.no_grad(), model.trace(**clip_inputs):
        seen = model.visual_projection.output.save()
        unit = model.output.image_embeds.save()
    assert torch.allclose(F.normalize(seen, dim=-1), unit)


def test_inputs_by_position_are_understood(nnsight, clip, clip_inputs, dictionary) -> None:
    patch = Patch("text.1", dictionary(16), Clamp([4], value=3.0))
    order = ("input_ids", "pixel_values", "attention_mask")
    positional = [clip_inputs[name] for name in order]
    expected = hooked(clip, patch, clip_inputs)
    model = tracing.edited(nnsight.NNsight(clip), patch)
    with torch.no_grad(), model.trace(*positional):
        output = model.output.save()
    assert_same_bits(output, expected, CLIP_OUTPUTS)


def test_a_traced_patch_lets_gradients_through(nnsight, clip, clip_inputs, dictionary) -> None:
    patch = Patch("vision.1", dictionary(24), Scale([1, 2], factor=2.0))
    weight = clip.vision_model.embeddings.patch_embedding.weight
    with patch.attach(clip):
        clip(**clip_inputs).logits_per_image.sum().backward()
    expected = weight.grad.clone()
    clip.zero_grad()
    model = tracing.edited(nnsight.NNsight(clip), patch)
    with model.trace(**clip_inputs):
        logits = model.output.logits_per_image.save()
    logits.sum().backward()
    assert torch.equal(weight.grad, expected)


# A LLaVA


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
@pytest.mark.parametrize("site", ["language.0", "language.2"])
def test_a_traced_patch_of_a_mixed_sequence_acts_on_the_same_tokens(
    nnsight, llava, llava_inputs, dictionary, site, tokens
) -> None:
    patch = Patch(site, dictionary(32), Clamp([1, 2], value=6.0), tokens=tokens)
    expected = hooked(llava, patch, llava_inputs)
    before = plain(llava, llava_inputs)
    found = traced(tracing.edited(nnsight.NNsight(llava), patch), llava_inputs)
    assert torch.equal(found.logits, expected.logits)
    image, real = llava_inputs["input_ids"] == IMAGE_TOKEN, llava_inputs["attention_mask"].bool()
    if site == "language.2":
        chosen = {"all": real, "image": image & real, "text+special": ~image & real}[tokens]
        moved = (found.logits != before.logits).any(-1)
        assert torch.equal(moved, chosen)


@pytest.mark.parametrize("site", ["vision.0", "projector"])
def test_a_traced_patch_of_the_vision_side_of_a_generative_host_acts(
    nnsight, llava, llava_inputs, dictionary, site
) -> None:
    width = 24 if site == "vision.0" else 32
    patch = Patch(site, dictionary(width), Steer([1, 2], amount=5.0))
    expected = hooked(llava, patch, llava_inputs)
    assert not torch.equal(expected.logits, plain(llava, llava_inputs).logits)
    found = traced(tracing.edited(nnsight.NNsight(llava), patch), llava_inputs)
    assert torch.equal(found.logits, expected.logits)


def test_a_patch_of_both_sides_of_a_generative_host_acts_whole(
    nnsight, llava, llava_inputs, dictionary
) -> None:
    vision = Patch("vision.1", dictionary(24), Ablate([1, 2]))
    language = Patch("language.1", dictionary(32), Clamp([5], value=4.0), tokens="text+special")
    for patch in (vision + language, language + vision):
        expected = hooked(llava, patch, llava_inputs)
        found = traced(tracing.edited(nnsight.NNsight(llava), patch), llava_inputs)
        assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("site", "tokens"),
    [
        ("language.0", "text+special"),
        ("language.1", "all"),
        ("language.0", "image"),
        ("projector", "all"),
    ],
)
def test_every_step_of_a_generation_is_edited_as_by_hooks_and_without_warnings(
    nnsight, llava, llava_inputs, dictionary, site, tokens
) -> None:
    patch = Patch(site, dictionary(32), Clamp([1, 2, 3, 4], value=6.0), tokens=tokens)
    options = {"max_new_tokens": 6, "do_sample": False}
    before = llava.generate(**llava_inputs, **options)
    with patch.attach(llava):
        expected = llava.generate(**llava_inputs, **options)
    assert not torch.equal(before, expected)
    model = tracing.edited(nnsight.NNsight(llava), patch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model.interleave(lambda: llava.generate(**llava_inputs, **options))
        with torch.no_grad(), model.trace(**llava_inputs, fn="generate", **options) as tracer:
            result = tracer.result.save()
    assert torch.equal(found, expected)
    assert torch.equal(result, expected)
    assert torch.equal(llava.generate(**llava_inputs, **options), before)


def test_a_patch_of_a_module_that_the_call_does_not_run_is_an_error_and_not_silent(
    nnsight, llava, dictionary
) -> None:
    patch = Patch("projector", dictionary(32), Steer([1, 2], amount=5.0))
    model = tracing.edited(nnsight.NNsight(llava), patch)
    with pytest.raises(Exception, match="multi_modal_projector"):
        traced(model, {"input_ids": torch.tensor([[1, 5, 6]])})


def test_an_error_of_an_edit_surfaces(nnsight, llava, llava_inputs, dictionary) -> None:
    patch = Patch("language.0", dictionary(32), Ablate([1]), tokens="image")
    model = tracing.edited(nnsight.NNsight(llava), patch)
    embeds = llava.get_input_embeddings()(llava_inputs["input_ids"])
    with pytest.raises(VlmEditError, match="nobody can tell image tokens"):
        traced(model, {"inputs_embeds": embeds.detach()})


def test_an_error_of_an_edit_in_a_later_step_surfaces(
    nnsight, llava, llava_inputs, dictionary, monkeypatch
) -> None:
    plain_call = Active.__call__

    def fail_late(active: Active, hidden: Tensor, where: Any) -> Tensor:
        if hidden.shape[1] == 1:
            raise VlmEditError("too late")
        return plain_call(active, hidden, where)

    monkeypatch.setattr(Active, "__call__", fail_late)
    patch = Patch("language.0", dictionary(32), Ablate([1]))
    model = tracing.edited(nnsight.NNsight(llava), patch)
    with pytest.raises(VlmEditError, match="too late"):
        model.interleave(lambda: llava.generate(**llava_inputs, max_new_tokens=3))


# Hosts of the user's own


class Layer(nn.Module):
    """A layer that returns a tuple, as those of older releases of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return self.linear(hidden), "rest"


class TupleHost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = CLIPConfig(projection_dim=4)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, rest = layer(x)
            assert rest == "rest"
        return x


TUPLES = Adapter(
    sites=(SiteRule("vision.{i}", (TapRule(("layers.{i}",), "image"),), ("projection_dim",)),)
)


def test_a_layer_that_returns_a_tuple_is_edited_and_keeps_the_rest(nnsight, dictionary) -> None:
    host, x = TupleHost().eval(), torch.randn(2, 3, 4)
    patch = Patch("vision.0", dictionary(4), Clamp([1], value=5.0))
    with patch.attach(Host.of(host, adapter=TUPLES)), torch.no_grad():
        expected = host(x)
    model = tracing.edited(nnsight.NNsight(host), patch, Host.of(host, adapter=TUPLES))
    with torch.no_grad(), model.trace(x):
        output = model.output.save()
    assert torch.equal(output, expected)
    assert not torch.equal(output, host(x))


# What is refused


@pytest.mark.parametrize("thing", [make_clip(), "clip", None], ids=["host", "string", "none"])
def test_anything_but_an_nnsight_model_is_refused_with_the_mend(thing, dictionary) -> None:
    patch = Patch("joint", dictionary(12), Ablate([1]))
    kind = type(thing).__name__
    with pytest.raises(VlmEditError, match=rf"got a {kind}: wrap the host with nnsight\.NNsight"):
        tracing.edited(thing, patch)


@pytest.mark.parametrize(
    ("site", "width", "message"),
    [
        ("middle", 12, "no site 'middle'; its sites are joint"),
        ("vision.0", 12, "dictionary is 12 wide, site 'vision.0'"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_as_by_attach(
    nnsight, clip, dictionary, site, width, message
) -> None:
    patch = Patch(site, dictionary(width), Ablate([1]))
    with pytest.raises(VlmEditError, match=message):
        tracing.edited(nnsight.NNsight(clip), patch)


def test_a_patch_of_another_host_is_refused_unless_told_otherwise(
    nnsight, clip, clip_inputs, dictionary, tmp_path
) -> None:
    from vlm_edit import load_patch

    Patch("joint", dictionary(12), Clamp([1], value=4.0)).save(tmp_path / "p", clip)
    patch = load_patch(tmp_path / "p")
    found = traced(tracing.edited(nnsight.NNsight(clip), patch), clip_inputs)
    assert_same_bits(found, hooked(clip, patch, clip_inputs), CLIP_OUTPUTS)
    with torch.no_grad():
        clip.visual_projection.weight.add_(1.0)
    with pytest.raises(VlmEditError, match="weights at visual_projection differ"):
        tracing.edited(nnsight.NNsight(clip), patch)


def test_importing_the_library_and_attaching_a_patch_does_not_import_nnsight() -> None:
    """And torch's own backward is what it was."""
    script = """
        import sys
        import torch
        backward = torch.Tensor.backward
        import vlm_edit, vlm_edit.hooks.tracing
        assert "nnsight" not in sys.modules
        try:
            vlm_edit.hooks.tracing.edited(torch.nn.Linear(2, 2), None)
        except vlm_edit.VlmEditError:
            pass
        assert "nnsight" not in sys.modules
        assert torch.Tensor.backward is backward
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)
