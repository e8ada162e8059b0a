"""An attachment while it lasts: its strength, its report, its warning."""

import inspect
import io
import pickle
import warnings

import pytest
import torch
from conftest import NO_TOKENS, random_dictionary
from test_where_edits_act import LLAVA, generate, patch
from tiny_hosts import FAMILIES
from torch.fx.experimental.proxy_tensor import make_fx

from vlm_edit import Clamp, Dictionary, Patch, Scale, VlmEditError, find_sites
from vlm_edit.patches import attach_rows


def here() -> int:
    """The line that asks."""
    return inspect.currentframe().f_back.f_lineno


def said(warned):
    return [w for w in warned if "edited no token" in str(w.message)]


@torch.no_grad()
def look(inputs):
    return LLAVA(**inputs)


def test_a_patch_that_edited_nothing_warns_once_and_at_the_users_line(llava_inputs):
    text = {"input_ids": llava_inputs["input_ids"][:, :2]}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        attached = patch(tokens="image").attach(LLAVA)
        look(text)
        attached.remove()
        by_hand = here() - 1
        attached.remove()
        with patch(tokens="image").attach(LLAVA):
            block = here() - 1
            look(text)
    assert [(w.filename, w.lineno) for w in said(warned)] == [
        (__file__, by_hand),
        (__file__, block),
    ]


def test_nothing_is_said_of_hosts_that_did_not_run_or_failed_or_were_edited(llava_inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with patch(tokens="image").attach(LLAVA):
            pass
        with patch(tokens="image").attach(LLAVA):
            look(llava_inputs)
        with pytest.raises(KeyError), patch(tokens="image").attach(LLAVA):
            look({"input_ids": llava_inputs["input_ids"][:, :2]})
            raise KeyError


def test_a_new_strength_is_that_of_an_attachment_made_with_it(llava_inputs):
    one = {k: v[:1] for k, v in llava_inputs.items()}
    with patch().attach(LLAVA, strength=[0.5, 0.2]) as attached:
        for strength, inputs in (
            (0.7, llava_inputs),
            ([0.1], one),
            ([-1.0, 0.0], llava_inputs),
            (1.0, one),
        ):
            attached.set_strength(strength)
            got = generate(inputs)
            with torch.inference_mode():
                attached.set_strength([3.0, 3.0, 3.0])
            attached.set_strength(strength)
            again = generate(inputs)
            attached.detach()
            with patch().attach(LLAVA, strength=strength):
                expected = generate(inputs)
            assert torch.equal(got, expected)
            assert torch.equal(again, expected)
            attached = patch().attach(LLAVA, strength=[0.5, 0.2])
        attached.detach()


def test_a_graph_of_operations_that_was_taken_before_obeys_a_new_strength(clip):
    """As a captured CUDA graph must, it keeps the tensors that it saw, not what they stood for."""
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def features(images):
        return clip.vision_model(pixel_values=images).last_hidden_state

    one, plain = Patch("vision.1", random_dictionary(24), Scale(range(20), 3.0)), []
    with torch.no_grad():
        for strength in ([0.5, 2.0], [0.0, 1.0], [0.25, 0.25]):
            with one.attach(clip, strength=strength):
                plain.append(features(pixels))
        with one.attach(clip, strength=[0.5, 2.0]) as attached:
            taken = make_fx(features)(pixels)
            for strength, expected in zip(([0.5, 2.0], [0.0, 1.0], 0.25), plain, strict=True):
                attached.set_strength(strength)
                torch.testing.assert_close(taken(pixels), expected)
    assert not torch.allclose(plain[0], plain[1], atol=1e-3)


def test_a_new_strength_leaves_other_rows_as_they_are(llava_inputs):
    plain = generate(llava_inputs)
    with attach_rows(LLAVA, [patch(), None]) as attached:
        for strength in (0.5, [0.5, 0.7]):
            attached.set_strength(strength)
            got = generate(llava_inputs)
            assert torch.equal(got[1], plain[1])
            assert not torch.allclose(got[0], plain[0])
        with pytest.raises(VlmEditError, match=r"strength has 3 values.*for 2 rows"):
            attached.set_strength([1.0, 1.0, 1.0])
        assert torch.equal(generate(llava_inputs), got)


def test_a_strength_given_as_a_tensor_stays_the_users(llava_inputs):
    mine = torch.tensor([0.5, 1.0])
    with patch().attach(LLAVA, strength=mine) as attached:
        attached.set_strength([0.0, 0.0])
        other = torch.tensor([1.0, 2.0, 3.0])
        attached.set_strength(other)
        attached.set_strength([0.0, 0.0, 0.0])
        attached.set_strength(1.0)
        generate(llava_inputs)
    assert mine.tolist() == [0.5, 1.0]
    assert other.tolist() == [1.0, 2.0, 3.0]


def test_a_negative_strength_edits_and_rows_of_none_are_not_counted(llava_inputs):
    real = int(llava_inputs["attention_mask"][0].sum())
    with patch(phase="prompt").attach(LLAVA, strength=[-1.0, 0.0]) as attached:
        generate(llava_inputs)
    assert attached.report().edited_tokens == real


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"tokens": "text+special", "steps": (1, 3)},
        {"phase": "decode"},
        {"phase": "decode", "steps": (0, 1)},
        {"positions": (0, -1)},
    ],
)
def test_the_report_does_not_depend_on_the_cache(llava_inputs, choice):
    with patch(**choice).attach(LLAVA) as attached:
        generate(llava_inputs)
    with torch.inference_mode():
        other = patch(**choice).attach(LLAVA)
    generate(llava_inputs, cache_implementation="static", disable_compile=True)
    other.detach()
    assert other.report() == attached.report()


def test_steps_outside_the_window_are_not_reported_of_calls_that_hold_several(llava_inputs):
    inputs = {k: v[:1] for k, v in llava_inputs.items()}
    with patch(phase="decode", steps=(1, 3)).attach(LLAVA) as attached:
        generate(inputs, prompt_lookup_num_tokens=2, eos_token_id=-1)
    assert attached.report().sites[0].steps == (1, 2)


def test_the_report_counts_every_token_of_images():
    vision = Patch("vision.1", random_dictionary(24), Scale([0], 2.0))
    with vision.attach(LLAVA) as attached, torch.no_grad():
        LLAVA.get_image_features(torch.zeros(3, 3, 16, 16))
    assert attached.report().sites[0].streams == NO_TOKENS | {"image": 15, "text": 0}


def test_a_strength_per_row_does_not_guess_how_images_belong_to_rows():
    vision = Patch("vision.1", random_dictionary(24), Scale([0], 2.0))
    with (
        vision.attach(LLAVA, strength=[1.0, 0.5]),
        torch.no_grad(),
        pytest.raises(VlmEditError, match=r"strength has 2 values, .*image. has 4 rows"),
    ):
        LLAVA.get_image_features(torch.zeros(4, 3, 16, 16))


def clip_of_both(clip, images, texts):
    """Embeddings of some images and some texts, as zero-shot classification asks for them."""
    pixels = torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(2, 2 + texts * 6).reshape(texts, 6)
    ids[:, -1] = 63
    with torch.no_grad():
        output = clip(pixel_values=pixels, input_ids=ids)
    return output.image_embeds, output.text_embeds


def joint(tokens="all") -> Patch:
    return Patch("joint", random_dictionary(12), Scale(range(30), 3.0), tokens)


def test_each_stream_has_strengths_of_its_own_where_rows_differ_in_number(clip):
    with joint("image").attach(clip, strength=[0.0, 1.0, 0.5]):
        images, plain_texts = clip_of_both(clip, 3, 4)
    with joint("text").attach(clip, strength=2.0):
        _, texts = clip_of_both(clip, 3, 4)
    strength = {"image": [0.0, 1.0, 0.5], "text": 2.0}
    with joint().attach(clip, strength=strength) as attached:
        found = clip_of_both(clip, 3, 4)
        assert torch.equal(found[0], images)
        assert torch.equal(found[1], texts)
        attached.set_strength({"image": 1.0, "text": 0.0})
        assert torch.equal(clip_of_both(clip, 3, 4)[1], plain_texts)
        attached.set_strength(1.0)
        both = clip_of_both(clip, 3, 4)
        attached.set_strength(strength)
        assert torch.equal(clip_of_both(clip, 3, 4)[0], images)
    with joint().attach(clip) as attached:
        assert torch.equal(clip_of_both(clip, 3, 4)[0], both[0])
        attached.set_strength(strength)
        assert torch.equal(clip_of_both(clip, 3, 4)[1], texts)


def test_a_strength_for_other_rows_than_a_stream_has_names_the_stream(clip):
    with (
        joint().attach(clip, strength=[1.0, 1.0, 0.5]),
        pytest.raises(VlmEditError, match=r"output \(text\) has 4 rows.*strength=\{'image': \["),
    ):
        clip_of_both(clip, 3, 4)
    with (
        joint().attach(clip, strength={"image": [1.0, 1.0], "text": 1.0}),
        pytest.raises(VlmEditError, match=r"strength.'image'. has 2 values.*image. has 3 rows"),
    ):
        clip_of_both(clip, 3, 4)


def test_a_strength_by_stream_is_checked_before_anything_is_attached(clip):
    for strength, says in (
        ({"image": 1.0}, "is given for 'image'; give both streams"),
        ({}, "for no stream; give both"),
        ({"image": 1.0, "text": 1.0, "audio": 1.0}, "give both streams"),
        ({"image": float("nan"), "text": 1.0}, r"strength\['image'\] is nan"),
        ({"image": [[1.0]], "text": 1.0}, "per token go without streams"),
    ):
        with pytest.raises(VlmEditError, match=says):
            joint().attach(clip, strength=strength)
    with attach_rows(clip, [joint(), None]) as attached, pytest.raises(VlmEditError, match="each"):
        attached.set_strength({"image": 1.0, "text": 1.0})


def test_where_streams_share_a_sequence_each_token_has_its_streams_strength(llava_inputs):
    both = {"image": [0.0, 2.0], "text": [1.0, 0.5]}
    with (
        patch(tokens="image").attach(LLAVA, strength=both["image"]),
        patch(tokens="text+special").attach(LLAVA, strength=both["text"]),
    ):
        expected = generate(llava_inputs)
    with patch().attach(LLAVA, strength=both) as attached:
        torch.testing.assert_close(generate(llava_inputs), expected)
        assert attached.report().sites[0].streams["image"] == 4
    with patch().attach(LLAVA, strength=both), pytest.raises(VlmEditError, match="by stream"):
        embeds = LLAVA.get_input_embeddings()(llava_inputs["input_ids"])
        look({"inputs_embeds": embeds})


@pytest.mark.parametrize("name", ["llava", "clip"])
def test_a_patched_host_is_not_pickled_half_and_is_whole_again_after(name):
    host = FAMILIES[name].make()
    site = find_sites(host)["vision.0"]
    patch = Patch("vision.0", Dictionary.identity(site.width), Clamp([0], 5.0))
    for dump in (pickle.dumps, lambda host: torch.save(host, io.BytesIO())):
        with patch.attach(host), pytest.raises(VlmEditError, match=r"with detached\(host\)"):
            dump(host)
        dump(host)
