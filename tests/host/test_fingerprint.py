"""What a patch remembers of its host, and which hosts it refuses."""

import copy
import json

import pytest
import torch
from conftest import make_clip, make_llava
from torch import nn

from vlm_edit import VlmEditError, find_sites
from vlm_edit.host import expect_host, fingerprint
from vlm_edit.host.weights import sample


def _sample(module):
    """A module's samples; None where there are none."""
    found = sample(module)
    return None if isinstance(found, str) else list(found.values.values())


def of(model, *names):
    found = find_sites(model)
    return fingerprint(model, [found[name] for name in names])


def test_the_same_host_passes_also_from_json_and_inside_wrappers(clip):
    expected = json.loads(json.dumps(of(clip, "joint", "vision.1")))
    expect_host(expected, of(make_clip(), "joint", "vision.1"))
    expect_host(expected, of(torch.compile(clip), "joint", "vision.1"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_host_in_another_precision_passes(clip, dtype):
    expected = of(clip, "joint", "text.0")
    expect_host(expected, of(clip.to(dtype), "joint", "text.0"))


def test_another_seed_of_the_same_architecture_is_refused_with_the_path(clip):
    expected = of(clip, "text.1")
    for p in clip.text_model.encoder.layers[1].parameters():
        nn.init.normal_(p)
    with pytest.raises(VlmEditError, match=r"weights at text_model.encoder.layers.1 differ from"):
        expect_host(expected, of(clip, "text.1"))


def test_another_architecture_or_width_is_refused(clip, llava):
    with pytest.raises(VlmEditError, match=r"architecture 'CLIPModel', this one has 'Llava"):
        expect_host(of(clip, "vision.1"), of(llava, "vision.1"))
    wider = copy.deepcopy(of(clip, "joint"))
    wider["sites"]["joint"]["width"] = 13
    with pytest.raises(VlmEditError, match=r"'joint' is 13 wide in the patch's host, 12 in this"):
        expect_host(wider, of(clip, "joint"))
    other = of(clip, "joint") | {"model_type": "siglip"}
    with pytest.raises(VlmEditError, match=r"model_type 'siglip', this one has 'clip': attach it"):
        expect_host(other, of(clip, "joint"))


def test_another_number_of_modules_is_refused(clip):
    expected = copy.deepcopy(of(clip, "joint"))
    del expected["sites"]["joint"]["weights"]["text_projection"]
    with pytest.raises(VlmEditError, match="'joint' is 1 modules in the patch's host, 2 in this"):
        expect_host(expected, of(clip, "joint"))


def test_weights_of_nan_are_no_match(clip):
    expected = of(clip, "joint")
    with torch.no_grad():
        clip.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(VlmEditError, match="visual_projection differ"):
        expect_host(expected, of(clip, "joint"))


def test_a_change_of_one_percent_of_the_scale_passes_and_one_of_five_does_not(clip):
    expected = of(clip, "joint")
    weight = clip.visual_projection.weight
    scale = float(weight.detach().abs().max())
    for share, fits in ((0.005, True), (0.05, False)):
        host = make_clip()
        with torch.no_grad():
            host.visual_projection.weight.add_(share * scale)
        if fits:
            expect_host(expected, of(host, "joint"))
        else:
            with pytest.raises(VlmEditError):
                expect_host(expected, of(host, "joint"))


def test_weights_that_cannot_be_read_are_passed_over():
    expected = of(make_llava(), "language.1")
    layer = make_llava().model.language_model.layers[1]
    quantised = nn.ParameterList(
        nn.Parameter(p.detach().char(), requires_grad=False) if p.ndim == 2 else p
        for p in layer.parameters()
    )
    assert _sample(quantised) is None
    assert _sample(layer.to("meta")) is None
    assert _sample(nn.ReLU()) is None
    sharded = nn.Module()
    sharded.weight = nn.Parameter(torch.empty(0))
    for unread in (None, _sample(sharded)):
        actual = copy.deepcopy(expected)
        actual["sites"]["language.1"]["weights"] = {"model.language_model.layers.1": unread}
        expect_host(expected, actual)
        expect_host(actual, expected)


def test_samples_reach_from_the_first_entry_to_the_last():
    layer = nn.Linear(10, 10)
    sample = _sample(layer)
    flat = layer.weight.detach().flatten()
    assert len(sample) == 16
    assert sample[0] == pytest.approx(float(flat[0]), abs=1e-6)
    assert sample[-1] == pytest.approx(float(flat[-1]), abs=1e-6)
    assert len(_sample(nn.Linear(1, 1))) == 1


def test_a_parameter_of_tens_of_millions_is_sampled_within_its_bounds():
    # 4096 x 11008, a 7B model's: its last index has no float32 of its own.
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(1).expand(4096 * 11008), requires_grad=False)
    assert _sample(module) == [1.0] * 16
