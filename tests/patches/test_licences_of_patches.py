"""Cards of patches, and of models they are baked into, carry licences of host and dictionary."""

import pytest
import yaml
from conftest import random_dictionary

from vlm_edit import Ablate, Dictionary, Host, Patch, VlmEditError, load_dictionary, load_patch
from vlm_edit.dictionaries import save_saelens
from vlm_edit.patches import baked_card, dictionary_text


def licensed(folder, clip, host, dictionary):
    """A patch of a dictionary and a host whose pages state licences, or one of them does."""
    save_saelens(random_dictionary(12), folder / "sae")
    clip.save_pretrained(folder / "host")
    for name, licence in (("host", host), ("sae", dictionary)):
        if licence:
            (folder / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    clip.config._name_or_path = str(folder / "host")
    patch = Patch("joint", load_dictionary(folder / "sae"), Ablate([3]), "image")
    patch.save(folder / "p.safetensors", clip)
    return load_patch(folder / "p.safetensors")


@pytest.mark.parametrize("host", ["mit", None])
@pytest.mark.parametrize("dictionary", ["cc-by-4.0", None])
def test_the_card_says_the_licences_of_host_and_dictionary_or_that_they_are_not_known(
    clip, tmp_path, host, dictionary
):
    patch = licensed(tmp_path, clip, host, dictionary)
    patch.save(tmp_path / "again.safetensors")
    both = patch + Patch("joint", Dictionary.identity(12), Ablate([1]), "text")
    for which in (patch, load_patch(tmp_path / "again.safetensors"), both):
        lines = which.card(license="apache-2.0").split("## Licence\n")[1].splitlines()
        assert f"- the host: {host or 'not known'}" in lines
        assert f"- the dictionary of `joint`: {dictionary or 'not known'}" in lines
    assert "- the dictionary of `joint`: not known" in lines
    text = patch.card()
    assert "license:" not in text  # the patch's own, which its maker says


def test_a_push_keeps_the_licences(clip, tmp_path, monkeypatch):
    patch, pushed = licensed(tmp_path, clip, "mit", "cc-by-4.0"), []
    monkeypatch.setattr(
        "vlm_edit.patches.hub.push",
        lambda name, folder, **_: pushed.append((folder / "README.md").read_text()) or name,
    )
    patch.push_to_hub("owner/name")
    assert "- the host: mit" in pushed[0] and "- the dictionary of `joint`: cc-by-4.0" in pushed[0]


def test_a_model_that_a_patch_was_baked_into_tells_both_licences(clip, tmp_path):
    patch = licensed(tmp_path, clip, "mit", "cc-by-4.0")
    card = baked_card(patch, Host.of(clip))
    assert "- the host: mit" in card and "- the dictionary of `joint`: cc-by-4.0" in card
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "tags": ["vlm-edit", "model-editing", "sparse-autoencoder"]
    }
    assert "| joint | image tokens | ablate | 3 | 1 |" in card


def test_licences_make_no_other_dictionary_of_one(clip, tmp_path):
    first = licensed(tmp_path / "a", clip, "mit", "cc-by-4.0")
    second = licensed(tmp_path / "b", clip, None, None)
    assert dictionary_text(first.bindings[0]) == dictionary_text(second.bindings[0])


def test_a_config_s_own_word_on_a_licence_goes_before_its_page(clip, tmp_path):
    licensed(tmp_path, clip, "mit", None)
    assert Host.of(clip).licence == "mit"
    clip.config.license = "gemma"
    assert Host.of(clip).licence == "gemma"
    clip.config.license, clip.config._name_or_path = None, ""
    assert Host.of(clip).licence is None


def test_a_patch_file_whose_host_s_licence_is_no_text_is_refused(clip, tmp_path):
    patch = licensed(tmp_path, clip, "mit", None)
    patch = Patch.joined(patch.bindings, {**patch.host, "licence": ["mit"]}, {})
    patch.save(tmp_path / "odd.safetensors")
    with pytest.raises(VlmEditError, match="licence is .*expected text"):
        load_patch(tmp_path / "odd.safetensors")


def test_a_dictionary_that_is_saved_anew_keeps_its_licence(clip, tmp_path):
    licensed(tmp_path, clip, None, "cc-by-4.0")
    save_saelens(load_dictionary(tmp_path / "sae"), tmp_path / "copy")
    assert load_dictionary(tmp_path / "copy").info["licence"] == "cc-by-4.0"
