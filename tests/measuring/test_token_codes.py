"""The codes of single tokens, held to plain forwards of the host."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from vlm_edit import Dictionary, Host, Pairs, VlmEditError, zoo
from vlm_edit.measuring import Reader, token_codes
from vlm_edit.measuring.firing.tokens import words_of


@pytest.fixture(scope="module")
def clip() -> Host:
    return Host.of(*zoo.load_host())


@pytest.fixture(scope="module")
def llava() -> Host:
    return Host.of(*zoo.load_llava())


@pytest.fixture(scope="module")
def some() -> Pairs:
    return zoo.load_pairs().select(range(5))


def states(host: Host, pairs: Pairs, i: int, side: str, layer: int) -> tuple[Any, torch.Tensor]:
    """What the layer gives for one pair alone, [t, d], by the model's own hidden states."""
    inputs = host.processor(
        images=[pairs.open(i)], text=[pairs.texts[i]], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        if side == "vision":
            out = host.model.vision_model(inputs["pixel_values"], output_hidden_states=True)
        else:
            out = host.model.text_model(inputs["input_ids"], output_hidden_states=True)
    return inputs, out.hidden_states[layer + 1][0]


def test_towers_give_each_token_what_a_plain_forward_does(clip, some) -> None:
    for side, stream in (("vision", "image"), ("text", "text")):
        site = f"{side}.1"
        neurons = Dictionary.identity(clip.site(site).width)
        for i, pair in enumerate(token_codes(clip, some, neurons, site, batch_size=2)):
            inputs, hidden = states(clip, some, i, side, 1)
            if side == "text":  # without what begins, ends and pads
                tokenizer = clip.processor.tokenizer
                own = ~torch.isin(inputs["input_ids"][0], torch.tensor(tokenizer.all_special_ids))
                hidden = hidden[own]
            assert pair.number == i and list(pair.codes) == [stream]
            for feature in (0, 7, 63):
                torch.testing.assert_close(pair.of(feature)[stream], hidden[:, feature])


def test_a_language_layer_gives_the_tokens_of_picture_and_text(llava, some) -> None:
    dictionary, site = zoo.load_dictionary("language.2"), "language.2"
    for i, pair in enumerate(token_codes(llava, some, dictionary, site, batch_size=3)):
        inputs = llava.inputs([some.open(i)], [some.texts[i]])
        with torch.no_grad():
            out = llava.model(**inputs.values, output_hidden_states=True)
        hidden = out.hidden_states[3][0]
        image = inputs.values["input_ids"][0] == llava.model.config.image_token_id
        for stream, mask in (("image", image), ("text", inputs.caption[0])):
            codes = dictionary.encode(hidden[mask], stream)
            torch.testing.assert_close(pair.codes[stream].dense(), codes, rtol=1e-3, atol=1e-4)


def test_tokens_make_what_is_measured_of_their_pair(llava, some) -> None:
    dictionary, site = zoo.load_dictionary("language.2"), "language.2"
    batches = list(Reader(llava, dictionary, site, progress=False).read(some))
    for i, pair in enumerate(token_codes(llava, some, dictionary, site)):
        for stream in ("image", "text"):
            mean = pair.codes[stream].dense().abs().mean(0)
            torch.testing.assert_close(
                batches[0].codes[stream].dense()[i], mean, rtol=1e-4, atol=1e-5
            )


def test_words_put_together_are_the_text(clip, llava, some) -> None:
    for host, site in ((clip, "text.1"), (llava, "language.1")):
        neurons = Dictionary.identity(host.site(site).width)
        for i, pair in enumerate(token_codes(host, some, neurons, site)):
            said, text = "".join(pair.words), some.texts[i]
            assert len(pair.words) == len(pair.codes["text"])
            if host is clip:  # whose tokenizer parts words and signs, and knows no capitals
                said, text = said.replace(" ", ""), text.replace(" ", "").lower()
            assert said.strip() == text


def test_a_pair_is_one_row_where_one_vector_stands_for_it(clip, some) -> None:
    dictionary = zoo.load_dictionary("joint")
    for pair in token_codes(clip, some, dictionary, "joint"):
        assert {s: len(c) for s, c in pair.codes.items()} == {"image": 1, "text": 1}
        assert list(pair.words) == []


def test_pairs_without_an_image_are_left_out_and_sizes_are_of_images(clip, tmp_path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "wide.png")
    (tmp_path / "none.png").write_bytes(b"no picture")
    pairs = Pairs([tmp_path / "none.png", tmp_path / "wide.png"], ("a", "b"))
    neurons = Dictionary.identity(clip.site("vision.1").width)
    (pair,) = token_codes(clip, pairs, neurons, "vision.1")
    assert pair.number == 1 and pair.size == (40, 20)
    with pytest.raises(VlmEditError, match="not one of 1 images can be read"):
        list(token_codes(clip, pairs.select([0]), neurons, "vision.1"))
    with pytest.raises(VlmEditError, match="wide"):
        list(token_codes(clip, pairs, Dictionary.identity(3), "vision.1"))


def test_blanks_before_words_are_kept_though_a_tokenizer_drops_them() -> None:
    """As the tokenizers of LLaMA and Gemma do, which mark them and decode a word without."""
    words = {"\u2581a": 0, "\u2581red": 1, "der": 2, "<unk>": 3}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain)
    assert tokenizer.decode([1]) == "red"
    host = SimpleNamespace(tokenizer=lambda _: tokenizer)
    assert words_of(host, "language.0", [0, 1, 2]) == [" a", " red", "der"]
