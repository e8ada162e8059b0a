from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import random_dictionary
from tiny_hosts import FAMILIES
from torch import Tensor, nn

from vlm_edit import Ablate, Adapter, Dictionary, Host, Patch, VlmEditError, zoo
from vlm_edit.dictionaries import PairedDictionary
from vlm_edit.selection import attribution, by_effect, effects, random_like

STEP = 0.02


def brute_force(
    host: nn.Module,
    inputs: dict[str, Any],
    dictionary: Any,
    output: Callable[[Any], Tensor],
    site: str,
    features: range,
    tokens: str = "all",
) -> Tensor:
    """What each row's output loses per unit of ablation, by attaching every ablation by itself."""
    losses = []
    for k in features:
        patch, said = Patch(site, dictionary, Ablate([k]), tokens=tokens), {}
        for strength in (STEP, -STEP):
            with patch.attach(host, strength=strength), torch.no_grad():
                said[strength] = output(host(**inputs))
        losses.append((said[-STEP] - said[STEP]) / (2 * STEP))
    return torch.stack(losses, dim=1)


def of_doubles(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def last_logit(told: Any) -> Tensor:
    return told.logits[:, -1, 7] - told.logits[:, -1, 9]


def likeness(told: Any) -> Tensor:
    return told.logits_per_image.diagonal()


def agree(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=2e-4 * float(expected.abs().max()))


# Against brute force


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
@pytest.mark.parametrize("activation", ["relu", "topk", "jumprelu"])
def test_an_effect_is_what_ablating_the_feature_begins_to_take(
    llava, llava_inputs, dictionary, activation, tokens
) -> None:
    host, inputs = llava.double(), of_doubles(llava_inputs)
    sae = dictionary(32, n_features=12, activation=activation)
    found = effects(host, inputs, sae, last_logit, "language.1", tokens=tokens)
    agree(found, brute_force(host, inputs, sae, last_logit, "language.1", range(12), tokens))


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
def test_both_taps_of_a_joint_embedding_count(clip, clip_inputs, dictionary, tokens) -> None:
    host, inputs = clip.double(), of_doubles(clip_inputs)
    sae = dictionary(12, n_features=12)
    found = effects(host, inputs, sae, likeness, tokens=tokens)
    agree(found, brute_force(host, inputs, sae, likeness, "joint", range(12), tokens))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_norm_is_multiplied_back(llava, llava_inputs, dictionary, norm) -> None:
    host, inputs = llava.double(), of_doubles(llava_inputs)
    sae = dictionary(32, n_features=8)
    sae = replace(sae, encoder=replace(sae.encoder, norm=norm))
    found = effects(host, inputs, sae, last_logit, "language.0")
    agree(found, brute_force(host, inputs, sae, last_logit, "language.0", range(8)))


def test_each_stream_is_centred_by_its_own_mean(llava, llava_inputs, dictionary) -> None:
    host, inputs = llava.double(), of_doubles(llava_inputs)
    sae = dictionary(32, n_features=8)
    centers = {"image": torch.randn(32), "text": torch.randn(32)}
    sae = replace(sae, encoder=replace(sae.encoder, centers=centers))
    found = effects(host, inputs, sae, last_logit, "language.0")
    agree(found, brute_force(host, inputs, sae, last_logit, "language.0", range(8)))


@pytest.mark.parametrize("tokens", ["all", "image", "text+special"])
def test_a_dictionary_for_each_stream_acts_on_its_own_tokens(
    llava, llava_inputs, clip, clip_inputs, dictionary, tokens
) -> None:
    host, inputs = llava.double(), of_doubles(llava_inputs)
    pair = PairedDictionary(dictionary(32, 8), dictionary(32, 8, seed=1))
    found = effects(host, inputs, pair, last_logit, "language.1", tokens=tokens)
    agree(found, brute_force(host, inputs, pair, last_logit, "language.1", range(8), tokens))
    pair = PairedDictionary(dictionary(12, 8), dictionary(12, 8, seed=1))
    host, inputs = clip.double(), of_doubles(clip_inputs)
    found = effects(host, inputs, pair, likeness, tokens=tokens)
    agree(found, brute_force(host, inputs, pair, likeness, "joint", range(8), tokens))


def test_where_the_output_is_linear_effects_are_whole_ablations() -> None:
    host = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    adapter = Adapter.of({"x": ("1", "image", 6)})
    neurons, inputs = Dictionary.identity(6), {"input": torch.randn(5, 4)}
    found = effects(Host.of(host, adapter=adapter), inputs, neurons, lambda y: y[:, 1], "x")
    for k in range(6):
        before = host(inputs["input"])[:, 1]
        with Patch("x", neurons, Ablate([k])).attach(Host.of(host, adapter=adapter)):
            after = host(inputs["input"])[:, 1]
        torch.testing.assert_close(found[:, k].float(), before - after, rtol=1e-4, atol=1e-5)


def test_a_batch_gives_what_its_rows_give_alone(llava, llava_inputs, dictionary) -> None:
    sae = dictionary(32, n_features=8)
    whole = effects(llava, llava_inputs, sae, last_logit, "language.1")
    for row in (0, 1):
        one = {name: value[row : row + 1] for name, value in llava_inputs.items()}
        alone = effects(llava, one, sae, last_logit, "language.1")
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-3, atol=1e-5)


def test_one_number_for_the_batch_serves_as_well_as_one_per_row(
    clip, clip_inputs, dictionary
) -> None:
    sae = dictionary(12, n_features=8)
    summed = effects(clip, clip_inputs, sae, lambda told: likeness(told).sum())
    assert torch.equal(summed, effects(clip, clip_inputs, sae, likeness))


def test_a_layer_that_runs_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu()).relu().sum(-1)

    host, adapter = Twice().eval(), Adapter.of({"x": ("layer", "image", 3)})
    neurons, x = Dictionary.identity(3), torch.rand(4, 3)
    found = effects(Host.of(host, adapter=adapter), {"x": x}, neurons, lambda y: y, "x")
    for k in range(3):
        said = []
        for strength in (-1e-3, 1e-3):
            patch = Patch("x", neurons, Ablate([k]))
            with patch.attach(Host.of(host, adapter=adapter), strength=strength), torch.no_grad():
                said.append(host(x))
        slope = (said[0] - said[1]).double() / 2e-3
        torch.testing.assert_close(found[:, k], slope, rtol=1e-2, atol=1e-3)


def test_tokens_in_any_number_of_parts_give_the_same(
    llava, llava_inputs, dictionary, monkeypatch
) -> None:
    sae = dictionary(32, n_features=8)
    whole = effects(llava, llava_inputs, sae, last_logit, "language.1")
    monkeypatch.setattr(attribution, "_CELLS", 24)  # three tokens at a time
    torch.testing.assert_close(effects(llava, llava_inputs, sae, last_logit, "language.1"), whole)


# What stays as it was


def test_the_host_and_its_gradients_are_left_alone(clip, clip_inputs, dictionary) -> None:
    before = clip(**clip_inputs).logits_per_image
    with torch.no_grad():
        found = effects(clip, clip_inputs, dictionary(12), likeness)
    assert not found.requires_grad
    assert all(weight.grad is None for weight in clip.parameters())
    assert torch.equal(clip(**clip_inputs).logits_per_image, before)
    with pytest.raises(ZeroDivisionError):
        effects(clip, clip_inputs, dictionary(12), lambda told: 1 / (told is None))
    assert not any(module._forward_hooks for module in clip.modules())


def test_frozen_weights_and_inference_mode_do_not_matter(clip, clip_inputs, dictionary) -> None:
    sae = dictionary(12)
    expected = effects(clip, clip_inputs, sae, likeness)
    clip.requires_grad_(False)
    assert torch.equal(effects(clip, clip_inputs, sae, likeness), expected)
    with torch.inference_mode():
        assert torch.equal(effects(clip, clip_inputs, sae, likeness), expected)


def test_a_patch_in_force_is_seen(clip, clip_inputs, dictionary) -> None:
    sae = dictionary(12, n_features=8)
    with Patch("joint", sae, Ablate(range(8))).attach(clip):
        edited = effects(clip, clip_inputs, Dictionary.identity(12), likeness)
    assert not torch.allclose(edited, effects(clip, clip_inputs, Dictionary.identity(12), likeness))


def test_packed_images_are_rows_of_their_own() -> None:
    family, host = FAMILIES["qwen2_5_vl"], FAMILIES["qwen2_5_vl"].make().double()
    sae, inputs = random_dictionary(40, 8), of_doubles(family.inputs())
    found = effects(host, inputs, sae, last_logit, "vision.1")
    assert len(found) == 2
    agree(found, brute_force(host, inputs, sae, last_logit, "vision.1", range(8)))


# Selecting


def test_the_features_of_the_strongest_effect_come_first(clip, clip_inputs, dictionary) -> None:
    sae = dictionary(12, n_features=30)
    mean = effects(clip, clip_inputs, sae, likeness).mean(0)
    order = mean.abs().argsort(descending=True).tolist()
    assert by_effect(clip, clip_inputs, sae, likeness, most=7) == order[:7]
    found = by_effect(clip, clip_inputs, sae, likeness, most=None)
    assert found == [k for k in order if mean[k] != 0]
    raises = by_effect(clip, clip_inputs, sae, likeness, most=None, sign="raises")
    lowers = by_effect(clip, clip_inputs, sae, likeness, most=None, sign="lowers")
    assert raises == [k for k in order if mean[k] > 0]
    assert lowers == [k for k in order if mean[k] < 0]
    assert raises and lowers
    assert len(by_effect(clip, clip_inputs, sae, likeness)) == 20
    image = effects(clip, clip_inputs, sae, likeness, tokens="image").mean(0)
    first = by_effect(clip, clip_inputs, sae, likeness, most=9, tokens="image")
    assert first == image.abs().argsort(descending=True).tolist()[:9] != order[:9]


def test_batches_are_averaged_over_examples(clip, clip_inputs, dictionary) -> None:
    sae = dictionary(12, n_features=30)
    cut = [{name: v[s] for name, v in clip_inputs.items()} for s in (slice(0, 1), slice(1, 3))]
    whole = effects(clip, clip_inputs, sae, likeness).sum(0)
    parts = sum(effects(clip, part, sae, likeness).sum(0) for part in cut)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert by_effect(clip, iter(cut), sae, likeness, most=9) == by_effect(
        clip, clip_inputs, sae, likeness, most=9
    )


def test_ablating_the_features_found_changes_what_the_host_says_more_than_random_ones() -> None:
    host, processor = zoo.load_host()
    pairs, sae = zoo.load_pairs().select(range(24)), zoo.load_dictionary("joint")
    texts = list(pairs.texts)
    inputs = processor(text=texts, images=pairs.images, return_tensors="pt", padding=True)
    found = by_effect(host, inputs, sae, likeness, most=20, sign="raises")
    codes = sae.encode(host.get_image_features(inputs["pixel_values"]).pooler_output, "image")
    live = (codes != 0).any(0).nonzero().flatten().tolist()

    def loss(features: list[int]) -> float:
        with torch.no_grad():
            before = likeness(host(**inputs)).mean()
            with Patch("joint", sae, Ablate(features)).attach(host):
                return float(before - likeness(host(**inputs)).mean())

    random = [loss(random_like(found, live, seed=seed)) for seed in range(5)]
    assert loss(found) > 3 * max(map(abs, random))


# What is refused


def test_what_cannot_be_attributed_is_refused(clip, clip_inputs, dictionary) -> None:
    sae = dictionary(12)
    with pytest.raises(VlmEditError, match="does not depend on site 'joint'"):
        effects(clip, clip_inputs, sae, lambda told: told.logits_per_image.detach().sum())
    with pytest.raises(VlmEditError, match="does not depend on site 'vision.2'"):
        effects(clip, clip_inputs, dictionary(24), lambda told: told.text_embeds[:, 0], "vision.2")
    with pytest.raises(VlmEditError, match="output must give a tensor of numbers.*got float"):
        effects(clip, clip_inputs, sae, lambda told: likeness(told).sum().item())
    with pytest.raises(VlmEditError, match="got Tensor"):
        effects(clip, clip_inputs, sae, lambda told: likeness(told).argmax())
    with pytest.raises(VlmEditError, match="no text.special tokens passed at site 'vision.2'"):
        effects(clip, clip_inputs, dictionary(24), likeness, "vision.2", tokens="text+special")
    with pytest.raises(VlmEditError, match="12"):
        effects(clip, clip_inputs, dictionary(13), likeness)
    with pytest.raises(VlmEditError, match="sign is 'up'"):
        by_effect(clip, clip_inputs, sae, likeness, sign="up")
    with pytest.raises(VlmEditError, match="no batch of inputs"):
        by_effect(clip, [], sae, likeness)
    with pytest.raises(VlmEditError, match="train mode"):
        effects(clip.train(), clip_inputs, sae, likeness)


@pytest.mark.parametrize("apart", ["centred", "a pair"])
def test_where_nobody_knows_image_from_text_streams_are_not_told_apart(
    llava, dictionary, apart
) -> None:
    one = dictionary(32, 8)
    centers = {"image": torch.zeros(32), "text": torch.ones(32)}
    given = {
        "centred": replace(one, encoder=replace(one.encoder, centers=centers)),
        "a pair": PairedDictionary(one, dictionary(32, 8, seed=1)),
    }[apart]
    inputs = {"inputs_embeds": torch.randn(2, 5, 32)}
    with pytest.raises(VlmEditError, match="each stream needs to know|stream apart needs to know"):
        effects(llava, inputs, given, last_logit, "language.0")


def test_taps_of_unlike_numbers_of_rows_are_refused(clip, clip_inputs, dictionary) -> None:
    uneven = {**clip_inputs, "pixel_values": clip_inputs["pixel_values"][:2]}
    with pytest.raises(VlmEditError, match="2 and 3 rows"):
        effects(clip, uneven, dictionary(12), lambda told: told.logits_per_image.sum())
    found = effects(
        clip, uneven, dictionary(12), lambda told: told.logits_per_image.sum(), tokens="image"
    )
    assert found.shape == (2, 40)


def test_a_dictionary_of_another_place_is_refused(clip, clip_inputs, dictionary) -> None:
    elsewhere = replace(dictionary(24), info={"site": "vision.1"})
    with pytest.raises(VlmEditError, match="vision.1"):
        effects(clip, clip_inputs, elsewhere, likeness, "vision.2")
