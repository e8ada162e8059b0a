"""Features of a reference are taken over, and nothing else; the baseline takes all."""

import pytest
import torch
from conftest import make_clip, random_dictionary

from vlm_edit import Dictionary, VlmEditError
from vlm_edit.tasks.generation import interpolate, keep, read_reference, scale, take

WIDTH = 12


def pixels(count=1):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def embedded(host, **inputs):
    with torch.no_grad():
        return host.get_image_features(**inputs).pooler_output


def plain_and_edited(patch):
    """What a fresh host makes of the pixels, without the patch, with it, and without it again."""
    host = make_clip()
    plain = embedded(host, pixel_values=pixels())
    with patch.attach(host):
        found = embedded(host, pixel_values=pixels())
    assert torch.equal(embedded(host, pixel_values=pixels()), plain)
    return plain, found


def test_a_reference_is_what_passes_the_site():
    host = make_clip()
    found = read_reference(host, "joint", lambda: host.get_image_features(pixel_values=pixels()))
    torch.testing.assert_close(found, embedded(host, pixel_values=pixels())[0])


def test_of_a_site_with_tokens_it_is_their_mean():
    host = make_clip()
    call = lambda: host.get_image_features(pixel_values=pixels())  # noqa: E731
    with torch.no_grad():
        expected = host.vision_model(pixels(), output_hidden_states=True).hidden_states[2]
    found = read_reference(host, "vision.1", call)
    torch.testing.assert_close(found, expected[0].mean(0), rtol=1e-5, atol=1e-5)


def test_several_references_at_once_are_refused():
    host = make_clip()
    with pytest.raises(VlmEditError, match="encoded 2 references"):
        read_reference(host, "joint", lambda: host.get_image_features(pixel_values=pixels(2)))


def test_a_call_that_does_not_run_the_site_is_refused():
    with pytest.raises(VlmEditError, match="nothing recorded"):
        read_reference(make_clip(), "joint", lambda: None)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_chosen_features_become_the_references_and_no_other_code_changes(strength):
    dictionary = Dictionary.identity(WIDTH)
    chosen = [1, 5, 7]
    reference = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    plain, found = plain_and_edited(take("joint", dictionary, chosen, reference, strength))
    expected = plain.clone()
    expected[:, chosen] += strength * (reference[chosen] - plain[:, chosen])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0])
def test_scaled_features_are_multiplied_and_no_other_changes(factor):
    chosen = [1, 5, 7]
    plain, found = plain_and_edited(scale("joint", Dictionary.identity(WIDTH), chosen, factor))
    expected = plain.clone()
    expected[:, chosen] *= factor
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_kept_features_stay_and_all_others_fade(strength):
    chosen = [1, 5, 7]
    plain, found = plain_and_edited(keep("joint", Dictionary.identity(WIDTH), chosen, strength))
    expected = plain * (1 - strength)
    expected[:, chosen] = plain[:, chosen]
    torch.testing.assert_close(found, expected)


def test_each_stream_is_read_with_its_own_center():
    dictionary = random_dictionary(WIDTH)
    from dataclasses import replace

    centers = {"image": torch.ones(WIDTH), "text": -torch.ones(WIDTH)}
    centred = replace(dictionary, encoder=replace(dictionary.encoder, centers=centers))
    reference = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    for stream in ("image", "text"):
        rule = take("joint", centred, [3, 4], reference, stream=stream).bindings[0].splice.rules[0]
        expected = centred.encode(reference[None], stream)[0, [3, 4]]
        torch.testing.assert_close(torch.tensor(rule.reference), expected)


def test_all_of_the_embedding_is_the_references_direction_at_the_sources_length():
    reference = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    plain, found = plain_and_edited(interpolate("joint", reference))
    torch.testing.assert_close(found.norm(), plain.norm(), rtol=1e-4, atol=1e-5)
    assert float(torch.cosine_similarity(found[0], reference, dim=0)) > 0.9999


def test_a_feature_that_is_not_there_and_a_wrong_width_are_named():
    dictionary = random_dictionary(WIDTH)
    with pytest.raises(VlmEditError, match="40"):
        take("joint", dictionary, [40], torch.zeros(WIDTH))
    for way in (scale, keep):
        with pytest.raises(VlmEditError, match="feature 40"):
            way("joint", dictionary, [40], 1.0)
    with pytest.raises(VlmEditError, match="width 5"):
        take("joint", dictionary, [3], torch.zeros(5))
    with pytest.raises(VlmEditError, match="at least one feature"):
        take("joint", dictionary, [], torch.zeros(WIDTH))
