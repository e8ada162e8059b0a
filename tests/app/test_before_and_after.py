"""What is shown before and after an edit, against the hosts themselves; visitors do not mix."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from desks import GREEN, QUESTION, YELLOW, clip_desk, llava_desk
from PIL import Image

from vlm_edit import Ablate, Clamp, Host, Patch, VlmEditError, zoo
from vlm_edit.app import Desk
from vlm_edit.app.effect import Said, chances, drawn, say
from vlm_edit.app.firing import firing
from vlm_edit.app.turns import Turns
from vlm_edit.measuring import token_codes
from vlm_edit.patches import attached


def patch_of(features: list[int]) -> Patch:
    desk = llava_desk()
    return Patch(desk.site, desk.dictionary, Clamp(features, 8.0), tokens="image")


def picture(number: int = 1) -> Image.Image:
    return zoo.load_pairs().open(number)


def generated(patch: Patch | None, image: Image.Image, most: int = 64) -> str:
    """What the host says by transformers alone, the patch on all of its forwards."""
    host = llava_desk().host
    inputs = host.processor(text=f"<image>\n{QUESTION}", images=image, return_tensors="pt")
    on = patch.attach(host) if patch else None
    ids = host.model.generate(**inputs, do_sample=False, max_new_tokens=most)
    if on:
        on.remove()
    new = ids[0, inputs["input_ids"].shape[1] :]
    return host.processor.decode(new, skip_special_tokens=True).strip()


def whole(patches: list[Patch | None], image: Image.Image) -> Said:
    *_, last = say(llava_desk(), image, QUESTION, patches)
    return last


def test_answers_are_those_of_the_host_alone_and_behind_the_patch() -> None:
    patch = patch_of(YELLOW)
    said = whole([None, patch], picture())
    assert said.texts == (generated(None, picture()), generated(patch, picture()))
    assert said.texts[0] != said.texts[1] and said.whole
    assert said.reports[0] == "" and "37 tokens edited" in said.reports[1]
    assert not attached(llava_desk().host)


def test_answers_grow_until_they_are_whole() -> None:
    seen = list(say(llava_desk(), picture(), QUESTION, [None, patch_of(list(range(40)))]))
    assert [one.whole for one in seen] == [False] * (len(seen) - 1) + [True]
    for former, later in zip(seen, seen[1:], strict=False):
        assert all(
            b.startswith(a) or later.whole for a, b in zip(former.texts, later.texts, strict=True)
        )


def test_an_answer_stops_after_the_next_token_when_it_is_told_to() -> None:
    desk, stop = llava_desk(), threading.Event()
    long = Patch(desk.site, desk.dictionary, Clamp(range(60), 30.0))
    assert len(generated(long, picture(), 400)) > 300  # it never ends by itself
    told = say(desk, picture(), QUESTION, [long], 4000, stop)
    next(told)
    stop.set()
    start = time.monotonic()
    *_, last = told
    assert "stopped before all was said" in last.notes and last.whole
    assert time.monotonic() - start < 20 and len(last.texts[0]) < 8000


def test_who_listens_no_more_stops_it_and_nothing_stays_on_the_host() -> None:
    desk = llava_desk()
    long = Patch(desk.site, desk.dictionary, Clamp(range(60), 30.0))
    told = say(desk, picture(), QUESTION, [long], 4000)
    next(told)
    start = time.monotonic()
    told.close()
    with desk.turns.alone():  # waits for the thread, which would go on for 4,000 tokens
        assert not attached(desk.host)
    assert time.monotonic() - start < 15


def test_visitors_at_once_get_what_each_gets_alone() -> None:
    asked = [
        ([None, patch_of(YELLOW)], 1),
        ([None, patch_of(GREEN)], 1),
        ([None, patch_of(YELLOW)], 7),
        ([patch_of(GREEN), None], 12),
    ]
    alone = [whole(patches, picture(number)) for patches, number in asked]
    assert len({said.texts for said in alone}) == 4
    for _ in range(3):
        start = threading.Barrier(len(asked))

        def visit(one: tuple) -> Said:
            start.wait()  # noqa: B023
            return whole(one[0], picture(one[1]))

        with ThreadPoolExecutor(len(asked)) as pool:
            assert list(pool.map(visit, asked)) == alone


def test_notes_say_what_a_reader_could_overlook() -> None:
    desk = llava_desk()
    idle = Patch(desk.site, desk.dictionary, Ablate([3], strength=0.0), tokens="image")
    assert "the answers are equal" in whole([None, idle], picture()).notes
    decoded = Patch(desk.site, desk.dictionary, Ablate([3]), tokens="image", phase="decode")
    assert any("nothing was edited" in note for note in whole([None, decoded], picture()).notes)
    *_, cut = say(desk, picture(), QUESTION, [None], most=1)
    assert any("ends at 1 new tokens" in note for note in cut.notes)


def test_what_cannot_be_asked_is_refused_before_anything_runs() -> None:
    desk = llava_desk()
    for question, told in [(" ", "is empty"), ("a" * 2001, "2,001 characters")]:
        with pytest.raises(VlmEditError, match=told):
            next(say(desk, picture(), question, [None]))
    other = Patch("joint", clip_desk().dictionary, Ablate([3]))
    with pytest.raises(VlmEditError, match="no site 'joint'"):
        next(say(desk, picture(), QUESTION, [None, other]))


def probabilities(labels: list[str]) -> torch.Tensor:
    """By the model's own forward."""
    host = clip_desk().host
    texts = [f"a picture of {label}" for label in labels]
    inputs = host.processor(text=texts, images=picture(3), return_tensors="pt", padding=True)
    with torch.no_grad():
        return host.model(**inputs).logits_per_image.softmax(1)[0]


def test_chances_are_those_of_the_models_own_forward_before_and_after() -> None:
    desk, labels = clip_desk(), ["dog face", "car", "woman", "red apple"]
    features = list(desk.find("class", kind="vision", most=60).features)
    patch = Patch("joint", desk.dictionary, Ablate(features))
    given = chances(desk, picture(3), " dog face,car, woman ,, red apple,car", patch)
    before = probabilities(labels)
    with patch.attach(desk.host):
        after = probabilities(labels)
    assert given.labels == tuple(labels)
    assert torch.allclose(torch.tensor(given.before), before, atol=1e-5)
    assert torch.allclose(torch.tensor(given.after), after, atol=1e-5)
    assert (before - after).abs().max() > 1e-3 and not attached(desk.host)


@pytest.mark.parametrize(
    ("labels", "template", "told"),
    [
        ("cat", "a {}", "1 labels: type 2 to 50"),
        (",".join(map(str, range(51))), "a {}", "51 labels"),
        ("cat, dog", "a picture", "has no {} where the label goes"),
        ("", "{}", "0 labels"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused(labels: str, template: str, told: str) -> None:
    desk = clip_desk()
    patch = Patch("joint", desk.dictionary, Ablate([3]))
    with pytest.raises(VlmEditError, match=told):
        chances(desk, picture(), labels, patch, template)


def test_a_template_is_only_filled_where_its_braces_are() -> None:
    desk = clip_desk()
    patch = Patch("joint", desk.dictionary, Ablate([3]))
    given = chances(desk, picture(), "cat, {0.__class__}", patch, "{0} of {}")
    assert given.labels == ("cat", "{0.__class__}")


def test_drawings_are_of_one_noise_and_differ_by_the_patch_alone() -> None:
    pytest.importorskip("diffusers")
    pipe = zoo.load_unclip()
    pipe.set_progress_bar_config(disable=True)
    dictionary = zoo.load_dictionary("joint")
    desk = Desk(Host.of(pipe.clip, pipe.processor), dictionary, "joint", pipe=pipe)
    patch = Patch("joint", dictionary, Ablate(range(0, 512, 2)))
    both = drawn(desk, "a picture of dog face", patch, steps=2, seed=5)
    made = []
    for on in (False, True):
        handle = patch.attach(pipe.clip) if on else None
        noise = torch.Generator().manual_seed(5)
        made.append(pipe("a picture of dog face", num_inference_steps=2, generator=noise).images[0])
        if handle:
            handle.remove()
    assert [one.tobytes() for one in (both.before, both.after)] == [m.tobytes() for m in made]
    assert both.before.tobytes() != both.after.tobytes() and "1 token edited" in both.report
    idle = Patch("joint", dictionary, Ablate([3], strength=0.0))
    assert drawn(desk, "a cat", idle, steps=2).notes == ("both drawings are equal",)


def test_visitors_who_draw_at_once_get_what_they_get_alone() -> None:
    pytest.importorskip("diffusers")
    pipe = zoo.load_unclip()
    pipe.set_progress_bar_config(disable=True)
    dictionary = zoo.load_dictionary("joint")
    desk = Desk(Host.of(pipe.clip, pipe.processor), dictionary, "joint", pipe=pipe)
    asked = [
        (prompt, Patch("joint", dictionary, Ablate(range(first, 512, 3))))
        for first, prompt in enumerate(("a picture of dog face", "a cat", "a red apple"))
    ]
    alone = [drawn(desk, prompt, patch, steps=6) for prompt, patch in asked]
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(drawn, desk, prompt, patch, 6) for prompt, patch in asked]
        beside = [task.result(timeout=120) for task in tasks]
    for one, other in zip(alone, beside, strict=True):
        assert one.before.tobytes() == other.before.tobytes()
        assert one.after.tobytes() == other.after.tobytes()


def test_where_features_fire_is_what_measuring_says_of_the_same_tokens() -> None:
    desk, text = llava_desk(), f"{QUESTION} blue"
    pairs = [(picture(1), text)]
    (codes,) = token_codes(desk.host, pairs, desk.dictionary, desk.site)
    strong = codes.codes["image"].dense().abs().sum(0).argsort(descending=True)[:3].tolist()
    sheets = firing(desk, picture(1), text, strong)
    for feature, sheet in zip(strong, sheets, strict=True):
        values = codes.of(feature)["image"]
        assert f"most image {float(values.abs().max()):.3g}" in sheet.examples[0]["told"]
        boxes = sheet.examples[0]["boxes"]
        assert 0 < len(boxes) <= int((values != 0).sum())
        assert f"feature {feature}" in sheet._repr_html_()


def test_a_feature_of_the_joint_embedding_fires_nowhere_in_particular() -> None:
    assert llava_desk().has_tokens and not clip_desk().has_tokens
    with pytest.raises(VlmEditError, match="one vector stands for the whole picture"):
        firing(clip_desk(), picture(), "a cat", [3])
    with pytest.raises(VlmEditError, match="no feature is chosen"):
        firing(llava_desk(), picture(), "a cat", [])


def test_who_reads_tokens_is_alone_with_the_host() -> None:
    desk, text = llava_desk(), f"{QUESTION} blue"
    expected = firing(desk, picture(1), text, [5, 31])
    with ThreadPoolExecutor(1) as pool:
        with desk.turns.together():
            waiting = pool.submit(firing, desk, picture(1), text, [5])
            time.sleep(1)
            assert not waiting.done() and desk.turns._waiting == 1
        assert waiting.result()[0].examples == firing(desk, picture(1), text, [5])[0].examples
    alone = whole([None, patch_of(YELLOW)], picture(1))
    with ThreadPoolExecutor(4) as pool:
        said = [pool.submit(whole, [None, patch_of(YELLOW)], picture(1)) for _ in range(6)]
        fired = [pool.submit(firing, desk, picture(1), text, [5, 31]) for _ in range(4)]
        assert all(one.result() == alone for one in said)
        for one in fired:
            assert [s.examples for s in one.result()] == [s.examples for s in expected]


def test_turns_are_taken_together_or_alone_and_waiting_goes_first() -> None:
    turns, seen = Turns(), []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with turns.together():
            inside.set()
            leave.wait(10)
            seen.append("first")

    def alone() -> None:
        with turns.alone():
            seen.append("alone")

    def late() -> None:
        with turns.together():
            seen.append("late")

    threads = [threading.Thread(target=one) for one in (first, alone, late)]
    threads[0].start()
    inside.wait(10)
    with turns.together():
        pass  # beside the first
    threads[1].start()
    while not turns._waiting:
        time.sleep(0.01)
    threads[2].start()
    time.sleep(0.1)
    assert seen == []
    leave.set()
    for thread in threads:
        thread.join(10)
    assert seen == ["first", "alone", "late"]
