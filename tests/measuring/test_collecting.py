"""Activations of pairs at a site, compared with what the host itself gives."""

import pytest
import torch

from vlm_edit import Host, Pairs, VlmEditError, measure, record, zoo
from vlm_edit.measuring import collect


@pytest.fixture(scope="module")
def clip():
    return zoo.load_host()


@pytest.fixture(scope="module")
def pairs():
    return zoo.load_pairs().select(range(20))


def test_a_row_of_both_streams_is_one_pair_in_order(clip, pairs):
    host, processor = clip
    found = collect(Host.of(host, processor), pairs, batch_size=8, progress=False)
    images = [pairs.open(i) for i in range(len(pairs))]
    inputs = processor(text=list(pairs.texts), images=images, return_tensors="pt", padding=True)
    with torch.no_grad(), record(host, "joint") as recording:
        host(**inputs)
    for stream in ("image", "text"):
        torch.testing.assert_close(found[stream], recording.last("joint", stream).hidden)


def test_every_token_of_a_layer_is_kept_but_padding_and_what_is_no_word(clip, pairs):
    host, processor = clip
    vision = collect(Host.of(host, processor), pairs, "vision.2", progress=False)
    patches = host.config.vision_config
    tokens = (patches.image_size // patches.patch_size) ** 2 + 1
    assert set(vision) == {"image"}
    assert vision["image"].shape == (len(pairs) * tokens, Host.of(host).site("vision.2").width)
    text = collect(Host.of(host, processor), pairs, "text.1", progress=False)["text"]
    words = processor.tokenizer(list(pairs.texts), add_special_tokens=False)["input_ids"]
    assert len(text) == sum(map(len, words))


def test_both_streams_of_a_language_layer_come_apart():
    host, processor = zoo.load_llava()
    pairs = zoo.load_pairs().select(range(6))
    found = collect(Host.of(host, processor), pairs, "language.1", progress=False)
    assert set(found) == {"image", "text"}
    assert len(found["image"]) % len(pairs) == 0
    few = collect(
        Host.of(host, processor), pairs, "language.1", most=2, batch_size=6, progress=False
    )
    assert len(few["image"]) == len(few["text"]) == 2 * len(pairs)
    every = {tuple(row.tolist()) for row in found["image"]}
    assert {tuple(row.tolist()) for row in few["image"]} <= every


def test_a_draw_repeats_with_its_seed(clip, pairs):
    host, processor = clip
    draws = [
        collect(Host.of(host, processor), pairs, "vision.1", most=3, seed=seed, progress=False)[
            "image"
        ]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_keeping_no_token_is_refused(clip, pairs):
    with pytest.raises(VlmEditError, match="most is 0; keep at least 1 token"):
        collect(Host.of(*clip), pairs, most=0, progress=False)


def test_texts_alone_or_images_alone_give_their_own_stream_as_in_pairs(clip, pairs):
    host = Host.of(*clip)
    both = collect(host, pairs, progress=False)
    texts = collect(host, list(pairs.texts), progress=False)
    assert list(texts) == ["text"]
    torch.testing.assert_close(texts["text"], both["text"])
    images = collect(host, [pairs.open(i) for i in range(len(pairs))], progress=False)
    assert list(images) == ["image"]
    torch.testing.assert_close(images["image"], both["image"])
    with pytest.raises(VlmEditError, match="no text passes at site 'vision.1', only images: take"):
        collect(host, ["a cat"], "vision.1", progress=False)
    with pytest.raises(VlmEditError, match="no image passes at site 'text.1', only texts: take"):
        collect(host, [pairs.open(0)], "text.1", progress=False)


def test_prompts_of_a_file_are_texts_alone_and_are_not_measured(tmp_path, clip):
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  a dog  \r\n")
    prompts = Pairs.of(file)
    assert prompts.texts == ("a cat", "a dog")
    assert repr(prompts) == f"Pairs(2 texts from {file})"
    assert prompts.select([1]).only == "text"
    found = collect(Host.of(*clip), prompts, progress=False)
    assert {name: len(rows) for name, rows in found.items()} == {"text": 2}
    dictionary = zoo.load_dictionary("joint")
    with pytest.raises(VlmEditError, match="prompts.txt holds texts alone; dominance compares"):
        measure(Host.of(*clip), prompts, dictionary, progress=False)
    with pytest.raises(VlmEditError, match="has no column of images: it has a cat"):
        Pairs.of(file, text="prompt")


@pytest.mark.parametrize("header", ["image,caption", "file_name;text", "path\ttitle"])
def test_a_list_of_pairs_is_one_whatever_its_file_is_called(tmp_path, header):
    comma = header.strip("abcdefghijklmnopqrstuvwxyz_")
    file = tmp_path / "captions.txt"
    file.write_text(f"{header}\n1.jpg{comma}a cat\n2.jpg{comma}a dog\n")
    pairs = Pairs.of(file)
    assert (pairs.only, pairs.texts) == (None, ("a cat", "a dog"))
