"""What a patch file tells of where it comes from, and that a changed one is noticed."""

import gc
import json
import sys
import weakref

import pytest
import torch
from conftest import make_clip, make_llava, random_dictionary
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vlm_edit
from vlm_edit import Ablate, Dictionary, Host, Patch, VlmEditError, load_patch
from vlm_edit.dictionaries import PairedDictionary
from vlm_edit.host import fingerprint


def header_of(file):
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["vlm_edit"])


@pytest.fixture
def file(clip, tmp_path):
    dictionary = random_dictionary(12)
    info = {"model_name": "openai/clip", "hook_name": "joint"}
    dictionary = Dictionary(dictionary.encoder, dictionary.decoder, dictionary.decoder_bias, info)
    Patch("joint", dictionary, Ablate([3, 7])).save(tmp_path / "p", clip)
    return tmp_path / "p"


def test_a_file_tells_the_versions_that_wrote_it(file):
    expected = {
        "vlm_edit": vlm_edit.__version__,
        "torch": torch.__version__,
        "transformers": sys.modules["transformers"].__version__,
    }
    assert header_of(file)["versions"] == load_patch(file).versions == expected


def test_a_file_tells_which_dictionary_the_edit_came_from(file):
    (binding,) = load_patch(file).bindings
    told = binding.told()
    assert (
        told["digest"] == random_dictionary(12).digest() != random_dictionary(12, seed=1).digest()
    )
    assert (told["features"], told["width"]) == (40, 12)
    assert (told["activation"], told["norm"], told["centred"]) == ("relu", "none", [])
    assert told["info"] == {"model_name": "openai/clip", "hook_name": "joint"}


def test_each_stream_of_a_paired_dictionary_has_its_own_digest(clip, tmp_path):
    halves = [random_dictionary(12, seed=seed) for seed in (0, 1)]
    Patch("joint", PairedDictionary(*halves), Ablate([3])).save(tmp_path / "p", clip)
    told = [binding.told()["digest"] for binding in load_patch(tmp_path / "p").bindings]
    assert told == [half.digest() for half in halves]


def test_the_dictionary_is_let_go_once_it_is_told(clip, tmp_path):
    dictionary = random_dictionary(12)
    patch, seen = Patch("joint", dictionary, Ablate([3])), weakref.ref(dictionary)
    patch.save(tmp_path / "p", clip)
    del dictionary
    gc.collect()
    assert seen() is None
    patch.save(tmp_path / "again", clip)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "p").read_bytes()


def test_the_host_is_named_by_its_name_on_the_hub_and_never_by_a_path(clip, tmp_path):
    def name(of):
        clip.config._name_or_path = of
        Patch("joint", random_dictionary(12), Ablate([3])).save(tmp_path / "p", clip)
        return load_patch(tmp_path / "p").host["name"]

    assert name("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"
    assert name("/home/someone/models/clip") is None
    assert name(str(tmp_path)) is None
    assert name("") is None


def test_a_flipped_byte_of_a_weight_is_noticed_and_may_be_passed_over(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # of the last tensor
    file.write_bytes(data)
    with pytest.raises(VlmEditError, match=r"a byte or more has changed: fetch .*verify=False"):
        load_patch(file)
    assert load_patch(file, verify=False).bindings[0].site == "joint"


def test_a_changed_word_of_the_header_is_noticed(file):
    header = header_of(file)
    header["bindings"][0]["rules"][0]["strength"] = 0.5
    save_file(load_file(file), file, metadata={"vlm_edit": json.dumps(header)})
    with pytest.raises(VlmEditError, match="a byte or more has changed"):
        load_patch(file)
    assert load_patch(file, verify=False).bindings[0].splice.rules[0].strength == 0.5


def test_every_byte_of_the_weights_counts(file):
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    for place in range(begin, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(VlmEditError):
            load_patch(file)


def test_a_file_without_its_checksum_is_damaged(file):
    header = header_of(file)
    del header["checksum"]
    save_file(load_file(file), file, metadata={"vlm_edit": json.dumps(header)})
    with pytest.raises(VlmEditError, match="header is damaged .KeyError: 'checksum'"):
        load_patch(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(features="40"),
        lambda d: d.update(activation=None),
        lambda d: d.update(centred=3),
        lambda d: d.update(info=[]),
        lambda d: d.pop("digest"),
        lambda d: d.clear(),
    ],
)
def test_a_dictionary_told_wrongly_is_damage(file, change):
    header = header_of(file)
    change(header["bindings"][0]["dictionary"])
    save_file(load_file(file), file, metadata={"vlm_edit": json.dumps(header)})
    with pytest.raises(VlmEditError, match="damaged"):
        load_patch(file, verify=False)


def other_weights(clip):
    with torch.no_grad():
        clip.visual_projection.weight.add_(1.0)
    return clip


def other_type(clip):
    clip.config.model_type = "siglip"
    return clip


def other_name(clip):
    clip.config._name_or_path = "somebody/else"
    return clip


@pytest.mark.parametrize("change", [other_weights, other_type, other_name])
def test_every_refusal_of_another_host_names_how_to_override_it(clip, change):
    dictionary = random_dictionary(12)
    named = Dictionary(
        dictionary.encoder, dictionary.decoder, dictionary.decoder_bias, {"model_name": "own/host"}
    )
    patch = Patch("joint", named, Ablate([3]))
    patch = Patch.joined(patch.bindings, host=saved_host())
    adapter = vlm_edit.host.find_adapter(clip)
    host = change(clip)
    with pytest.raises(VlmEditError, match="check_host=False"):
        patch.attach(Host.of(host, adapter=adapter))
    patch.attach(Host.of(host, adapter=adapter), check_host=False).remove()


def saved_host():
    host = make_clip()
    return fingerprint(host, [vlm_edit.find_sites(host)["joint"]])


def test_a_site_that_only_the_patchs_host_has_is_refused_with_the_override(clip):
    patch = Patch("joint", random_dictionary(12), Ablate([3]))
    host = saved_host()
    host["sites"]["vision.9"] = {"width": 24, "weights": {}}
    patch = Patch.joined(patch.bindings, host)
    with pytest.raises(VlmEditError, match=r"no site 'vision.9'.*check_host=False"):
        patch.attach(clip)
    patch.attach(clip, check_host=False).remove()
    with pytest.raises(VlmEditError) as refused:  # what no override can mend does not name one
        patch.attach(make_llava(), check_host=False)
    assert "check_host" not in str(refused.value)


def test_what_is_merged_keeps_where_each_part_came_from(clip, tmp_path):
    parts = [Patch("joint", random_dictionary(12, seed=s), Ablate([3])) for s in (0, 1)]
    (parts[0] + parts[1]).save(tmp_path / "p", clip)
    digests = [b.told()["digest"] for b in load_patch(tmp_path / "p").bindings]
    assert digests == [random_dictionary(12, seed=s).digest() for s in (0, 1)]
