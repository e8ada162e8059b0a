"""Attacks on what emoji-llava answers, held to its own greedy decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlm_edit import Host, VlmEditError, zoo
from vlm_edit.tasks.adversarial import Silence, Speaker, Speech, apgd
from vlm_edit.zoo.questions import ask

COUNT = 8


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker.of(Host.of(*zoo.load_llava()), "what is it?")


@pytest.fixture(scope="module")
def images(speaker: Speaker) -> Tensor:
    return speaker.pixels.read(zoo.load_pairs().images[:COUNT])


@pytest.fixture(scope="module")
def said(speaker: Speaker, images: Tensor) -> list[str]:
    return speaker.say(images)


def test_answers_are_those_of_the_processors_own_images(speaker: Speaker, said: list[str]) -> None:
    pairs = zoo.load_pairs()
    host = speaker.host
    assert said == ask(host.root, host.processor, pairs.images[:COUNT], speaker.question)  # type: ignore[arg-type]


def test_an_answer_is_reached_exactly_where_greedy_decoding_gives_it(
    speaker: Speaker, images: Tensor, said: list[str]
) -> None:
    rows = torch.arange(COUNT)
    own = speaker.answer_ids(said)
    others = speaker.answer_ids(said[1:] + said[:1])
    with torch.no_grad():
        assert not bool(Silence(speaker, own)(images, rows)[1].any())
        expected = torch.tensor([a == b for a, b in zip(said, said[1:] + said[:1], strict=True)])
        assert torch.equal(Speech(speaker, others)(images, rows)[1], expected)


def test_silenced_answers_are_no_longer_given(
    speaker: Speaker, images: Tensor, said: list[str]
) -> None:
    found = apgd(Silence(speaker, speaker.answer_ids(said)), images, 4 / 255, steps=8)
    now = speaker.say(found.images)
    changed = torch.tensor([a != b for a, b in zip(said, now, strict=True)])
    assert torch.equal(changed, found.reached) and float(changed.float().mean()) > 0.5


def test_a_wanted_answer_is_given_word_for_word(
    speaker: Speaker, images: Tensor, said: list[str]
) -> None:
    wanted = [said[0]] * COUNT
    found = apgd(Speech(speaker, speaker.answer_ids(wanted)), images, 16 / 255, steps=20)
    now = speaker.say(found.images)
    assert torch.equal(torch.tensor([a == said[0] for a in now]), found.reached)
    assert int(found.reached.sum()) > 2


def test_a_whole_prompt_is_taken_as_it_is(speaker: Speaker, images: Tensor) -> None:
    token = speaker.host.processor.image_token
    whole = Speaker(speaker.host, speaker.pixels, f"{token}\n{speaker.question}")
    assert whole.say(images[:2]) == speaker.say(images[:2])


def test_what_does_not_speak_is_refused(speaker: Speaker) -> None:
    with pytest.raises(VlmEditError, match="needs a host with generate"):
        Speaker.of(Host.of(*zoo.load_host()), "what is it?")
    with pytest.raises(VlmEditError, match="an answer is empty"):
        speaker.answer_ids(["", "cat"])
