"""Answers as they come: piece by piece, and no further than wanted."""

import pytest

from vlm_edit import Host, zoo
from vlm_edit.tasks.answers import Decoding, answer

QUESTION = "what is it?"


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load("zoo:emoji-llava", device="cpu")


def test_an_answer_comes_token_by_token_and_is_the_one_without_listeners(host: Host) -> None:
    for number in range(4):
        image, pieces = zoo.load_pairs().open(number), []
        quiet = answer(host, image, QUESTION, Decoding(16))
        said = answer(host, image, QUESTION, Decoding(16), pieces.append)
        assert said == quiet and "".join(pieces).strip() == said.text
        ids = host.processor.tokenizer(said.text, add_special_tokens=False)["input_ids"]
        assert len(pieces) == len(ids)


def test_it_ends_soon_after_it_is_told_to(host: Host) -> None:
    image = zoo.load_pairs().open(0)
    whole = answer(host, image, "", Decoding(32))
    for most in (1, 2, 3):
        pieces: list[str] = []
        said = answer(
            host, image, "", Decoding(32), pieces.append, lambda: len(pieces) >= most  # noqa: B023
        )  # fmt: skip
        assert most <= len(pieces) <= most + 1  # transformers may look one token late
        assert whole.text.startswith(said.text) and said.text != whole.text
