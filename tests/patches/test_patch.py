"""Patches: attached whole or not at all, several at once, on several hosts."""

import gc

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava, random_dictionary

from vlm_edit import Ablate, Clamp, Patch, Scale, Steer, VlmEditError, load_patch, record
from vlm_edit.dictionaries import Encoder
from vlm_edit.dictionaries.dictionary import Dictionary


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def centred(width, *streams):
    weight = torch.randn(width, 20, generator=torch.Generator().manual_seed(0))
    encoder = Encoder(weight, torch.zeros(20), centers={s: torch.randn(width) for s in streams})
    return Dictionary(encoder, weight.T.contiguous(), torch.zeros(width))


@torch.no_grad()
@pytest.mark.parametrize("tokens", ["all", "image", "text"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_a_patch_edits_the_joint_embedding_of_the_streams_chosen(
    clip, clip_inputs, activation, tokens
):
    patch = Patch(
        "joint", random_dictionary(12, activation=activation), Ablate(range(20)), tokens=tokens
    )
    plain = clip(**clip_inputs)
    with patch.attach(clip):
        edited = clip(**clip_inputs)
    for stream, name in (("image", "image_embeds"), ("text", "text_embeds")):
        same = torch.equal(getattr(plain, name), getattr(edited, name))
        assert same == (tokens not in ("all", stream))


@torch.no_grad()
def test_the_edited_embedding_is_the_splice_of_the_plain_one(clip, clip_inputs):
    patch = Patch("joint", random_dictionary(12), [Scale([1, 2], 3.0), Steer([4], 2.0)])
    ids = clip_inputs["input_ids"]
    plain = clip.get_text_features(input_ids=ids).pooler_output
    with patch.attach(clip):
        edited = clip.get_text_features(input_ids=ids).pooler_output
    assert torch.equal(edited, patch.bindings[0].splice(plain))


@torch.no_grad()
def test_two_patches_at_one_site_act_one_after_the_other_in_either_form(clip, clip_inputs):
    first = Patch("joint", random_dictionary(12), Steer([1], 3.0))
    second = Patch("joint", random_dictionary(12, seed=1), Scale([2, 3], 0.0))
    plain = clip.get_text_features(input_ids=clip_inputs["input_ids"]).pooler_output
    expected = second.bindings[0].splice(first.bindings[0].splice(plain))
    for patches in ((first, second), (first + second,)):
        attached = [p.attach(clip) for p in patches]
        got = clip.get_text_features(input_ids=clip_inputs["input_ids"]).pooler_output
        assert torch.equal(got, expected)
        for attachment in attached:
            attachment.remove()
    assert not torch.equal(expected, first.bindings[0].splice(second.bindings[0].splice(plain)))
    assert not hooks_of(clip)


@torch.no_grad()
def test_removing_one_of_two_patches_leaves_the_other(clip, clip_inputs):
    ids = clip_inputs["input_ids"]
    first, second = (
        Patch("joint", random_dictionary(12, seed=s), Ablate(range(20))) for s in (0, 1)
    )
    plain = clip.get_text_features(input_ids=ids).pooler_output
    a, b = first.attach(clip), second.attach(clip)
    a.remove()
    alone = clip.get_text_features(input_ids=ids).pooler_output
    assert torch.equal(alone, second.bindings[0].splice(plain))
    b.remove()
    assert torch.equal(clip.get_text_features(input_ids=ids).pooler_output, plain)


@torch.no_grad()
def test_one_patch_serves_two_hosts_at_once(clip_inputs):
    hosts = make_clip(), make_clip()
    patch = Patch("text.1", random_dictionary(16), Scale(range(20), 2.0))
    plain = hosts[0](**clip_inputs).logits_per_image
    a, b = (patch.attach(host) for host in hosts)
    edited = [host(**clip_inputs).logits_per_image for host in hosts]
    assert torch.equal(*edited)
    assert not torch.allclose(edited[0], plain)
    a.remove()
    assert torch.equal(hosts[0](**clip_inputs).logits_per_image, plain)
    assert torch.equal(hosts[1](**clip_inputs).logits_per_image, edited[1])
    b.remove()
    assert torch.equal(hosts[1](**clip_inputs).logits_per_image, plain)


@torch.no_grad()
def test_a_permanent_patch_outlives_its_handle(clip, clip_inputs):
    plain = clip(**clip_inputs).logits_per_image
    Patch("joint", random_dictionary(12), Ablate(range(20))).attach(clip)
    gc.collect()
    assert not torch.allclose(clip(**clip_inputs).logits_per_image, plain)


def test_an_exception_in_the_block_detaches(clip):
    patch = Patch("joint", random_dictionary(12), Ablate([1]))
    with pytest.raises(KeyError), patch.attach(clip) as attachment:
        assert hooks_of(clip)
        raise KeyError
    assert not hooks_of(clip)
    attachment.remove()


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (lambda: Patch("joint", random_dictionary(13), Ablate([1])), "13 wide, site 'joint' of"),
        (lambda: Patch("vision.9", random_dictionary(24), Ablate([1])), "no site 'vision.9'"),
        (
            lambda: Patch("vision.0", random_dictionary(24), Ablate([1]), "text"),
            r"no text tokens pass site 'vision.0' \(only image\)",
        ),
        (
            lambda: Patch("joint", centred(12, "image"), Ablate([1])),
            "no center for the text stream of site 'joint', only for image: pass tokens=",
        ),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_whole(clip, patch, message):
    fits = Patch("text.0", random_dictionary(16), Ablate([1]))
    for whole in (patch(), fits + patch()):
        with pytest.raises(VlmEditError, match=message):
            whole.attach(clip)
        with pytest.raises(VlmEditError, match=message):
            whole.check(clip)
    assert not hooks_of(clip)


def test_a_patch_whose_second_part_fails_to_attach_takes_the_first_off_again(clip, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    patch = Patch("vision.0", random_dictionary(24), Ablate([1]))
    patch += Patch("vision.1", random_dictionary(24), Ablate([1]))
    layer = clip.vision_model.encoder.layers[1]
    monkeypatch.setattr(layer, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="no"):
        patch.attach(clip)
    assert not hooks_of(clip)


def test_a_center_for_one_stream_serves_that_stream(clip):
    Patch("joint", centred(12, "image"), Ablate([1]), "image").check(clip)


def test_a_dead_layer_is_refused(llava):
    patch = Patch("vision.2", random_dictionary(24), Ablate([1]))
    with pytest.raises(VlmEditError, match=r"'vision.2' would change nothing: the host reads vis"):
        patch.attach(llava)


def test_a_mixed_site_needs_both_centers(llava):
    patch = Patch("language.0", centred(32, "image"), Ablate([1]), "image")
    with pytest.raises(VlmEditError, match="no center for the text stream .* add the center"):
        patch.attach(llava)


@torch.no_grad()
def test_at_a_mixed_site_each_token_is_centred_by_its_own_stream(llava, llava_inputs):
    patch = Patch("language.1", centred(32, "image", "text"), Scale(range(20), 3.0))
    with record(llava, "language.1") as plain:
        llava(**llava_inputs)
    with patch.attach(llava), record(llava, "language.1") as edited:
        llava(**llava_inputs)
    hidden, after = plain.captures[0].hidden, edited.captures[0].hidden
    real = llava_inputs["attention_mask"].bool()
    image = llava_inputs["input_ids"] == IMAGE_TOKEN
    splice = patch.bindings[0].splice
    for stream, chosen in (("image", image & real), ("text", ~image & real)):
        torch.testing.assert_close(after[chosen], splice(hidden[chosen], stream=stream))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: Patch("joint", d, Ablate([40])), "feature 40 is not in this dictionary"),
        (lambda d: Patch("joint", d, []), "at least one rule"),
        (lambda d: Patch("joint", d, Ablate([1]), "sound"), "tokens is 'sound'; use 'all', "),
        (lambda _: Patch.joined(()), "a patch needs at least one binding"),
    ],
)
def test_a_patch_that_makes_no_sense_is_refused_when_made(make, message):
    with pytest.raises(VlmEditError, match=message):
        make(random_dictionary(12))


def test_a_saved_patch_refuses_another_host_unless_told_to(clip, tmp_path):
    file = tmp_path / "patch.safetensors"
    Patch("joint", random_dictionary(12), Ablate([1])).save(file, clip)
    patch = load_patch(file)
    patch.attach(make_clip()).remove()
    other = make_clip()
    torch.nn.init.normal_(other.text_projection.weight)
    with pytest.raises(VlmEditError, match="weights at text_projection differ"):
        patch.attach(other)
    assert not hooks_of(other)
    patch.attach(other, check_host=False).remove()


def test_patches_of_different_hosts_do_not_add_up(clip, tmp_path):
    other = make_clip()
    torch.nn.init.normal_(other.text_projection.weight)
    saved = []
    for i, host in enumerate((clip, other, make_llava())):
        site, width = ("joint", 12) if i < 2 else ("vision.0", 24)
        file = tmp_path / f"{i}.safetensors"
        Patch(site, random_dictionary(width), Ablate([1])).save(file, host)
        saved.append(load_patch(file))
    assert len((saved[0] + saved[0]).bindings) == 2
    for wrong in saved[1:]:
        with pytest.raises(VlmEditError, match="these patches do not belong to one host"):
            saved[0] + wrong


def test_a_sum_with_an_unsaved_patch_must_be_saved_with_its_host(clip, tmp_path):
    file = tmp_path / "patch.safetensors"
    Patch("joint", random_dictionary(12), Ablate([1])).save(file, clip)
    patch = load_patch(file) + Patch("text.0", random_dictionary(16), Ablate([1]))
    with pytest.raises(VlmEditError, match=r"none is known for \['text.0'\]: call patch.save"):
        patch.save(file)
    patch.save(file, clip)
    assert set(load_patch(file).host["sites"]) == {"joint", "text.0"}


def test_text_about_the_patches_is_merged(clip, tmp_path):
    one = Patch("joint", random_dictionary(12), Ablate([1]), info={"a": "1", "b": "1"})
    two = Patch("joint", random_dictionary(12), Clamp([1], 1.0), info={"b": "2"})
    (one + two).save(tmp_path / "p", clip)
    assert load_patch(tmp_path / "p").info == {"a": "1", "b": "2"}
