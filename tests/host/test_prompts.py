"""What a host is asked with a pair, and which of the tokens are the pair's own text."""

import copy

import pytest
import torch
from conftest import CHAT
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit import Host, VlmEditError, zoo
from vlm_edit.ground.errors import BadArgument, CannotKnow

MODEL, PROCESSOR = zoo.load_llava()
PAIRS = zoo.load_pairs()
PIECES = [
    "a",
    "cat",
    "dog",
    "red",
    "green",
    "on",
    "the",
    "sky,",
    "of",
    "two",
    "7",
    "Ünknown!",
    "<weird>",
]
WORDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=9).map(" ".join)


def with_chat(template: str | None = CHAT):
    processor = copy.deepcopy(PROCESSOR)
    processor.chat_template = template
    return processor


def own(host: Host, texts: list[str], answer: bool = False) -> list[str]:
    """The tokens that are said to be each text's own, read back."""
    inputs = host.inputs([PAIRS.open(0)] * len(texts), texts, answer)
    rows = zip(inputs.values["input_ids"], inputs.caption, strict=True)
    return [host.processor.tokenizer.decode(ids[mask]) for ids, mask in rows]


def test_without_a_chat_template_the_image_comes_before_the_text() -> None:
    host = Host.of(MODEL, PROCESSOR)
    assert str(host.template) == host.asks() == "<image>\n{text}"
    assert str(Host.of(*zoo.load_host()).template) == "{text}"


def test_a_chat_template_is_the_default_where_there_is_one() -> None:
    host = Host.of(MODEL, with_chat())
    assert host.template.name == "chat"
    assert host.asks(answer=True) == "<s>USER: <image>\n{text} ASSISTANT:"
    assert str(host.template) == "<s>USER: <image>\n{text}"
    read = host.read_back(host.inputs([PAIRS.open(0)], ["a cat"], answer=True).values)
    assert read == "<s>USER: <image> (x 37) \na cat ASSISTANT:"  # one <s>, not two


def test_a_template_may_be_given_instead() -> None:
    host = Host.of(MODEL, with_chat(), prompt="{text}: {image}")
    assert str(host.template) == "{text}: <image>"
    assert own(host, ["a cat"]) == ["a cat"]


def test_an_image_is_written_as_the_chat_template_writes_it() -> None:
    delimited = CHAT.replace("<image>\n", "(pic)<image>(end)\n")
    host = Host.of(MODEL, with_chat(delimited), prompt="look {image} {text}")
    assert str(host.template) == "look (pic)<image>(end) {text}"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", [None, "chat", "{text} {image}", "say {image}{text} now."])
@settings(deadline=None, max_examples=25)
@given(texts=st.lists(WORDS, min_size=1, max_size=3))
def test_the_tokens_of_a_caption_are_found_wherever_it_stands(prompt, side, texts) -> None:
    processor = with_chat()
    processor.tokenizer.padding_side = side
    host = Host.of(MODEL, processor, prompt=prompt)
    tokenizer = processor.tokenizer
    for said, text in zip(own(host, texts), texts, strict=True):
        alone = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert said.strip() == alone.strip()


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(WORDS, min_size=1, max_size=3), n=st.integers(0, 40))
def test_captions_that_are_cut_keep_their_own_tokens_alone(texts, n) -> None:
    host = Host.of(*zoo.load_host())
    texts = [*texts, " ".join(["cat"] * n)] if n else texts
    tokenizer = host.processor.tokenizer
    for said, text in zip(own(host, texts), texts, strict=True):
        alone = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert said and alone.startswith(said)
        assert tokenizer.eos_token not in said
        short = len(tokenizer(text)["input_ids"]) <= host.text_limit
        assert not short or said == alone


def test_special_ids_are_those_that_are_no_words() -> None:
    tokenizer = PROCESSOR.tokenizer
    special = Host.of(MODEL, PROCESSOR).special_ids("joint")
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} <= {*special}
    assert tokenizer("cat", add_special_tokens=False)["input_ids"][0] not in special
    assert Host.of(MODEL).special_ids("joint") is None


def test_what_a_tokenizer_does_not_know_is_a_word() -> None:
    processor = copy.deepcopy(PROCESSOR)
    processor.tokenizer.unk_token = "q"
    unknown = processor.tokenizer.unk_token_id
    assert unknown in processor.tokenizer.all_special_ids
    assert unknown not in Host.of(MODEL, processor).special_ids("joint")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{image} what", r"must be 'chat', or hold \{text\} once"),
        ("{text} {text}", "once"),
        (7, "must be 'chat'"),
        ("no image, {text}", r"reads its image there: put \{image\} where the image"),
    ],
)
def test_a_prompt_that_cannot_be_meant_is_refused(prompt, message) -> None:
    with pytest.raises(BadArgument, match=message):
        _ = Host.of(MODEL, PROCESSOR, prompt=prompt).template


def test_an_image_in_the_text_of_a_host_that_reads_none_there_is_refused() -> None:
    model, processor = zoo.load_host()
    with pytest.raises(BadArgument, match=r"no image within its text: leave \{image\} out"):
        _ = Host.of(model, processor, prompt="{image} {text}").template


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('only text') }}", "fails .*only text"),
        ("hello", "does not take an image and a text"),
        ("{{ messages[0]['content'][-1]['text'] }}", "does not take an image and a text"),
    ],
)
def test_a_chat_that_cannot_be_had_is_refused_if_asked_for_and_else_left(template, message) -> None:
    processor = with_chat(template)
    with pytest.raises(CannotKnow, match=f"prompt 'chat': .*{message}"):
        _ = Host.of(MODEL, processor, prompt="chat").template
    assert str(Host.of(MODEL, processor).template) == "<image>\n{text}"


def test_a_function_that_makes_inputs_is_named_and_needs_no_template() -> None:
    def mine(processor, images, texts):
        return processor(text=[f"<image>{t}" for t in texts], images=images, return_tensors="pt")

    host = Host.of(MODEL, PROCESSOR, prompt=mine)
    assert host.template is None and host.asks().endswith("mine()")
    assert host.inputs([PAIRS.open(0)], ["a cat"]).caption is None


def test_a_prompt_needs_a_processor() -> None:
    with pytest.raises(VlmEditError, match="needs the host's processor"):
        _ = Host.of(MODEL).template


def test_inputs_are_known_as_long_as_they_are_there() -> None:
    from vlm_edit.host import caption_in
    from vlm_edit.host.prompts import _captions

    host = Host.of(MODEL, PROCESSOR)
    before = len(_captions)
    inputs = host.inputs([PAIRS.open(0)], ["a cat"])
    ids = inputs.values["input_ids"]
    assert torch.equal(caption_in(ids), inputs.caption)
    assert caption_in(ids.clone()) is None and caption_in(None) is None
    assert len(_captions) == before + 1
    del inputs, ids
    assert len(_captions) == before
