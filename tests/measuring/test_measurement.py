import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlm_edit import Dictionary, Host, Pairs, VlmEditError, measure, zoo
from vlm_edit.dictionaries import Encoder
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.hooks import Call, Capture, Recording, Tokens
from vlm_edit.host import Site, Tap
from vlm_edit.measures.dominance import modality_dominance, modality_gap
from vlm_edit.measuring import Batch, MeasurementAccumulator, Reader

TEXTS = ("w5 w6", "w7", "w8 w9 w10 w11", "w5 w5", "w12 w6 w7", "w13")
LIMIT = 12  # positions of the tiny CLIP's text tower


def make_tokenizer(image_token: str | None = None) -> PreTrainedTokenizerFast:
    """Words w2 to w62, a token each, with the ids of the tiny hosts."""
    vocabulary = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 63} | {f"w{i}": i for i in range(2, 63)}
    if image_token:
        vocabulary[image_token] = vocabulary.pop(f"w{IMAGE_TOKEN}")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if image_token:
        frame = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    else:
        special = [("[BOS]", 1), ("[EOS]", 63)]
        frame = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=special)
    tokenizer.post_processor = frame
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[BOS]",
        eos_token="[EOS]",
        pad_token="[PAD]",
        additional_special_tokens=[image_token] if image_token else [],
    )


def image_processor() -> CLIPImageProcessorPil:
    size = {"height": 16, "width": 16}
    return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)


@pytest.fixture(scope="module")
def clip_processor() -> CLIPProcessor:
    return CLIPProcessor(image_processor=image_processor(), tokenizer=make_tokenizer())


@pytest.fixture(scope="module")
def llava_processor() -> LlavaProcessor:
    return LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=make_tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 18, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs([noise(i) for i in range(len(TEXTS))], TEXTS, name="noise")


@pytest.fixture
def files(tmp_path: Path) -> Pairs:
    """Six images on disk of which number 2 is no image and number 4 is cut short."""
    paths = [tmp_path / f"{i}.png" for i in range(len(TEXTS))]
    for i, path in enumerate(paths):
        noise(i).save(path)
    paths[2].write_bytes(b"no image at all")
    paths[4].write_bytes(paths[4].read_bytes()[:200])
    return Pairs(paths, TEXTS, name="files")


def joint_by_hand(
    model: CLIPModel, processor: CLIPProcessor, pairs: Pairs
) -> tuple[Tensor, Tensor]:
    """Embeddings before normalisation, one pair at a time, through the host's own parts."""
    rows: dict[str, list[Tensor]] = {"image": [], "text": []}
    for i in range(len(pairs)):
        inputs = processor(text=[pairs.texts[i]], images=[pairs.open(i)], return_tensors="pt")
        with torch.no_grad():
            image = model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
            text = model.text_model(input_ids=inputs["input_ids"]).pooler_output
            rows["image"].append(model.visual_projection(image)[0])
            rows["text"].append(model.text_projection(text)[0])
            unit = model(**inputs)
        torch.testing.assert_close(F.normalize(rows["image"][-1], dim=-1), unit.image_embeds[0])
        torch.testing.assert_close(F.normalize(rows["text"][-1], dim=-1), unit.text_embeds[0])
    return torch.stack(rows["image"]), torch.stack(rows["text"])


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def read_all(reader: Reader, pairs: Pairs) -> Batch:
    """All batches as one."""
    batches = list(reader.read(pairs))
    return Batch(
        [number for batch in batches for number in batch.numbers],
        {s: torch.cat([batch.hidden[s] for batch in batches]) for s in batches[0].hidden},
        {
            s: SparseCodes.of(torch.cat([batch.codes[s].dense() for batch in batches]))
            for s in batches[0].codes
        },
    )


# A CLIP's joint embedding


def test_a_measurement_is_the_dominance_of_embeddings_taken_by_hand(
    clip, clip_processor, pairs, dictionary
) -> None:
    sae = dictionary(12)
    image, text = joint_by_hand(clip, clip_processor, pairs)
    found = measure(Host.of(clip, clip_processor), pairs, sae, batch_size=4, progress=False)
    codes = {"image": sae.encode(image), "text": sae.encode(text)}
    expected = modality_dominance(codes["image"], codes["text"])
    torch.testing.assert_close(
        found.dominance.scores, expected.scores, rtol=0, atol=1e-4, equal_nan=True
    )
    assert torch.equal(found.dominance.active, expected.active)
    assert found.gap == pytest.approx(modality_gap(image, text), abs=1e-5)
    assert (found.n_pairs, found.site, found.skipped, found.truncated) == (6, "joint", (), 0)
    for stream, top in found.examples.items():
        for feature in range(sae.n_features):
            strongest = codes[stream][:, feature].argmax()
            if codes[stream][strongest, feature] > 1e-4:
                assert top.of(feature)[0][0] == int(strongest)


def test_a_reader_gives_the_hidden_states_and_codes_of_each_pair(
    clip, clip_processor, pairs, dictionary
) -> None:
    sae = dictionary(12)
    image, text = joint_by_hand(clip, clip_processor, pairs)
    reader = Reader(Host.of(clip, clip_processor), sae, batch_size=4, progress=False)
    batches = list(reader.read(pairs))
    assert [batch.numbers for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    whole = read_all(reader, pairs)
    for stream, expected in (("image", image), ("text", text)):
        torch.testing.assert_close(whole.hidden[stream], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            whole.codes[stream].dense(), sae.encode(expected), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_batch_size_does_not_matter(
    clip, clip_processor, pairs, dictionary, batch_size
) -> None:
    one = measure(
        Host.of(clip, clip_processor), pairs, dictionary(12), batch_size=3, progress=False
    )
    other = measure(
        Host.of(clip, clip_processor), pairs, dictionary(12), batch_size=batch_size, progress=False
    )
    torch.testing.assert_close(
        other.dominance.scores, one.dominance.scores, rtol=0, atol=1e-4, equal_nan=True
    )
    for stream in ("image", "text"):
        torch.testing.assert_close(other.examples[stream].values, one.examples[stream].values)


def test_a_dictionary_centred_per_stream_is_given_the_stream(
    clip, clip_processor, pairs, dictionary
) -> None:
    plain = dictionary(12)
    image, text = joint_by_hand(clip, clip_processor, pairs)
    centers = {"image": image.mean(0), "text": text.mean(0)}
    centred = replace(plain, encoder=replace(plain.encoder, centers=centers))
    whole = read_all(Reader(Host.of(clip, clip_processor), centred, progress=False), pairs)
    for stream, rows in (("image", image), ("text", text)):
        expected = plain.encode(rows - centers[stream])
        torch.testing.assert_close(whole.codes[stream].dense(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_host_in_half_precision_keeps_its_dtype_and_gives_float32(
    clip, clip_processor, pairs, dictionary, dtype
) -> None:
    exact = read_all(Reader(Host.of(clip, clip_processor), dictionary(12), progress=False), pairs)
    half = read_all(
        Reader(Host.of(clip.to(dtype), clip_processor), dictionary(12), progress=False), pairs
    )
    for stream in ("image", "text"):
        assert half.hidden[stream].dtype == half.codes[stream].values.dtype == torch.float32
        torch.testing.assert_close(half.hidden[stream], exact.hidden[stream], rtol=0.05, atol=0.05)
        rounded = half.hidden[stream].to(dtype).float()
        assert torch.equal(half.hidden[stream], rounded)
        assert torch.equal(half.codes[stream].dense(), dictionary(12).encode(rounded))
    assert next(clip.parameters()).dtype == dtype


def test_what_a_reader_gives_can_train_a_probe(clip, clip_processor, pairs, dictionary) -> None:
    batch = next(Reader(Host.of(clip, clip_processor), dictionary(12), progress=False).read(pairs))
    probe = nn.Linear(12, 1)
    probe(batch.hidden["image"]).sum().backward()
    assert probe.weight.grad is not None
    assert not batch.codes["image"].values.requires_grad


def test_measuring_leaves_the_host_as_it_was(clip, clip_processor, pairs, dictionary) -> None:
    inputs = clip_processor(text=["w5"], images=[pairs.open(0)], return_tensors="pt")
    with torch.no_grad():
        before = clip(**inputs).logits_per_image
    # The host installs hooks of its own at its first forward.
    hooks = hooks_of(clip)
    measure(Host.of(clip, clip_processor), pairs, dictionary(12), progress=False)
    reading = Reader(
        Host.of(clip, clip_processor), dictionary(12), batch_size=2, progress=False
    ).read(pairs)
    next(reading)
    assert hooks_of(clip) == hooks
    with pytest.raises(VlmEditError):
        measure(
            Host.of(clip, clip_processor, prompt=one_text), pairs, dictionary(12), progress=False
        )
    assert hooks_of(clip) == hooks
    with torch.no_grad():
        assert torch.equal(clip(**inputs).logits_per_image, before)


def test_a_wrapped_host_is_measured_like_the_host(clip, clip_processor, pairs, dictionary) -> None:
    plain = measure(Host.of(clip, clip_processor), pairs, dictionary(12), progress=False)
    wrapped = measure(
        Host.of(nn.DataParallel(clip), clip_processor), pairs, dictionary(12), progress=False
    )
    assert plain.gap == wrapped.gap


def test_the_dictionary_goes_once_to_the_device_of_the_host(
    clip, clip_processor, pairs, dictionary, monkeypatch
) -> None:
    places = []
    plain = Dictionary.to

    def moved(given: Dictionary, device: torch.device) -> Dictionary:
        places.append(device)
        return plain(given, device)

    monkeypatch.setattr(Dictionary, "to", moved)
    reader = Reader(Host.of(clip, clip_processor), dictionary(12), batch_size=2, progress=False)
    read_all(reader, pairs)
    assert places == [clip.device]
    assert reader._readings[0]._on(torch.device("meta")).decoder.device.type == "meta"


# The bundled host


@pytest.mark.slow
def test_the_bundled_host_is_measured_as_by_hand_whatever_the_batches() -> None:
    host, processor = zoo.load_host()
    sae, pairs = zoo.load_dictionary("joint"), zoo.load_pairs().select(range(0, 1000, 60))
    image, text = joint_by_hand(host, processor, pairs)
    expected = modality_dominance(sae.encode(image, "image"), sae.encode(text, "text"))
    # A code next to its threshold may fall on either side when the batch changes the last bits.
    sure = torch.ones(sae.n_features, dtype=torch.bool)
    for rows, stream in ((image, "image"), (text, "text")):
        for nudge in (0.9999, 1.0001):
            moved = sae.encode(rows * nudge, stream) > 0
            sure &= (moved == (sae.encode(rows, stream) > 0)).all(0)
    assert int(sure.sum()) > 0.8 * sae.n_features
    for batch_size in (5, 64):
        found = measure(Host.of(host, processor), pairs, sae, batch_size=batch_size, progress=False)
        scores = found.dominance.scores
        torch.testing.assert_close(
            scores[sure], expected.scores[sure], rtol=0, atol=1e-3, equal_nan=True
        )
        assert found.gap == pytest.approx(modality_gap(image, text), abs=1e-5)


def test_the_bundled_host_cuts_long_captions_and_counts_them() -> None:
    host, processor = zoo.load_host()
    pairs = zoo.load_pairs().select(range(4))
    long = replace(pairs, texts=(*pairs.texts[:3], "a very long story of a cat " * 20))
    found = measure(Host.of(host, processor), long, zoo.load_dictionary("joint"), progress=False)
    assert (found.n_pairs, found.truncated) == (4, 1)


# Layers


def test_layers_of_one_stream_are_read_as_means_over_their_real_tokens(
    clip, clip_processor, pairs, dictionary
) -> None:
    inputs = clip_processor(
        text=list(TEXTS), images=pairs.images, return_tensors="pt", padding=True
    )
    with torch.no_grad():
        out = clip(**inputs, output_hidden_states=True)
    vision = out.vision_model_output.hidden_states[2]
    text = out.text_model_output.hidden_states[2]
    sae = dictionary(24)
    batch = read_all(Reader(Host.of(clip, clip_processor), sae, "vision.1", progress=False), pairs)
    assert set(batch.codes) == {"image"}
    torch.testing.assert_close(batch.hidden["image"], vision.mean(1))
    torch.testing.assert_close(batch.codes["image"].dense(), sae.encode(vision).mean(1))
    sae = dictionary(16)
    batch = read_all(Reader(Host.of(clip, clip_processor), sae, "text.1", progress=False), pairs)
    for i, length in enumerate(inputs["attention_mask"].sum(1)):
        own = text[i, 1 : length - 1]  # without those of beginning and end
        torch.testing.assert_close(batch.hidden["text"][i], own.mean(0))
        expected = sae.encode(own).mean(0)
        torch.testing.assert_close(batch.codes["text"].dense()[i], expected)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_language_layer_pools_image_tokens_and_text_tokens_apart(
    llava, llava_processor, pairs, dictionary, padding_side
) -> None:
    llava_processor.tokenizer.padding_side = padding_side
    sae = dictionary(32)
    batch = read_all(
        Reader(Host.of(llava, llava_processor), sae, "language.1", batch_size=4, progress=False),
        pairs,
    )
    for i, text in enumerate(TEXTS):
        ids = [1, *[IMAGE_TOKEN] * 4, *(int(word[1:]) for word in text.split())]
        pixels = llava_processor.image_processor([pairs.open(i)], return_tensors="pt").pixel_values
        with torch.no_grad():
            out = llava(
                input_ids=torch.tensor([ids]), pixel_values=pixels, output_hidden_states=True
            )
        hidden = out.hidden_states[2][0]
        image = torch.tensor(ids) == IMAGE_TOKEN
        for stream, rows in (("image", hidden[image]), ("text", hidden[1 + 4 :])):
            torch.testing.assert_close(batch.hidden[stream][i], rows.mean(0), rtol=0, atol=1e-4)
            expected = sae.encode(rows).mean(0)
            torch.testing.assert_close(batch.codes[stream].dense()[i], expected, rtol=0, atol=1e-4)


def test_a_generative_host_is_measured_in_half_precision(
    llava: LlavaForConditionalGeneration, llava_processor, pairs, dictionary
) -> None:
    found = measure(
        Host.of(llava.to(torch.bfloat16), llava_processor),
        pairs,
        dictionary(32),
        "language.1",
        progress=False,
    )
    assert found.n_pairs == 6
    assert float(found.dominance.mean) == pytest.approx(0.5, abs=0.3)


def test_a_pair_without_image_tokens_is_an_error_and_not_a_zero(
    llava, llava_processor, pairs, dictionary
) -> None:
    def forgetful(processor: Any, images: Any, texts: Any) -> dict[str, Any]:
        texts = [f"<image> {text}" for text in texts[1:]]
        inputs = processor(text=texts, images=images[1:], return_tensors="pt", padding=True)
        ids, pixels = inputs["input_ids"], inputs["pixel_values"]
        alone = torch.full((1, ids.shape[1]), 7)
        ids = torch.cat([alone, ids])
        return {"input_ids": ids, "attention_mask": ids != 0, "pixel_values": pixels}

    with pytest.raises(VlmEditError, match=r"a pair has no image tokens at site 'language\.1'"):
        measure(
            Host.of(llava, llava_processor, prompt=forgetful),
            pairs,
            dictionary(32),
            "language.1",
            progress=False,
        )


# Pairs that are not as they should be


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_an_unreadable_image_is_skipped_reported_and_touches_no_other_pair(
    clip, clip_processor, files, dictionary, batch_size
) -> None:
    reader = Reader(
        Host.of(clip, clip_processor), dictionary(12), batch_size=batch_size, progress=False
    )
    batch = read_all(reader, files)
    assert batch.numbers == [0, 1, 3, 5]
    alone = Reader(Host.of(clip, clip_processor), dictionary(12), batch_size=1, progress=False)
    expected = read_all(alone, files.select(batch.numbers))
    for stream in ("image", "text"):
        torch.testing.assert_close(batch.hidden[stream], expected.hidden[stream], rtol=0, atol=1e-5)
    found = measure(
        Host.of(clip, clip_processor), files, dictionary(12), batch_size=batch_size, progress=False
    )
    assert found.n_pairs == 4
    assert [number for number, _ in found.skipped] == [2, 4]
    assert all(str(files.images[number]) in reason for number, reason in found.skipped)
    top = {n for k in range(40) for n, _ in found.examples["image"].of(k)}
    assert top == {0, 1, 3, 5}


def test_a_folder_without_one_readable_image_is_an_error(
    clip, clip_processor, files, dictionary
) -> None:
    broken = files.select([2, 4])
    with pytest.raises(VlmEditError, match=r"files: not one of 2 images.*the first: .*2\.png"):
        measure(Host.of(clip, clip_processor), broken, dictionary(12), progress=False)


def test_no_pairs_are_an_error(clip, clip_processor, dictionary) -> None:
    with pytest.raises(VlmEditError, match="nothing: no pairs"):
        measure(
            Host.of(clip, clip_processor),
            Pairs([], (), name="nothing"),
            dictionary(12),
            progress=False,
        )


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 200), (200, 1)])
def test_an_image_of_an_odd_shape_is_measured(clip, clip_processor, dictionary, size) -> None:
    odd = Pairs([Image.new("L", size), noise(0)], ("w5", "w6"))
    assert measure(Host.of(clip, clip_processor), odd, dictionary(12), progress=False).n_pairs == 2


def test_long_texts_are_cut_at_the_limit_of_the_host_and_counted(
    clip, clip_processor, dictionary
) -> None:
    """Two tokens frame a text: ten words just fit."""
    words = [f"w{i}" for i in range(5, 40)]
    texts = tuple(" ".join(words[:n]) for n in (3, LIMIT - 2, LIMIT - 1, 30))
    long = Pairs([noise(i) for i in range(4)], texts)
    reader = Reader(Host.of(clip, clip_processor), dictionary(12), batch_size=4, progress=False)
    batch = read_all(reader, long)
    assert reader.truncated == 2
    cut = Pairs(long.images, texts[:2] + (texts[1],) * 2)
    expected = joint_by_hand(clip, clip_processor, cut)[1]
    torch.testing.assert_close(batch.hidden["text"], expected, rtol=0, atol=1e-5)
    found = measure(
        Host.of(clip, clip_processor), long, dictionary(12), batch_size=1, progress=False
    )
    assert (found.truncated, found.n_pairs) == (2, 4)


def test_long_texts_beside_images_are_counted_with_the_image_tokens(
    llava, llava_processor, dictionary
) -> None:
    llava.config.text_config.max_position_embeddings = LIMIT
    texts = tuple(" ".join(["w5"] * n) for n in (3, 7, 8))
    long = Pairs([noise(i) for i in range(3)], texts)
    reader = Reader(Host.of(llava, llava_processor), dictionary(32), "language.1", progress=False)
    read_all(reader, long)
    assert reader.truncated == 1


# Inputs that the user prepares


def one_text(processor: Any, images: Any, texts: Any) -> Any:
    return processor(text=texts[:1], images=images, return_tensors="pt")


def test_inputs_may_be_prepared_by_the_user_and_reach_the_host_whole(
    clip, clip_processor, pairs, dictionary
) -> None:
    given: list[dict[str, Any]] = []
    clip.register_forward_pre_hook(lambda _m, _a, kw: given.append(kw), with_kwargs=True)

    def upper(processor: Any, images: Any, texts: Any) -> dict[str, Any]:
        inputs = processor(text=["w20"] * len(texts), images=images, return_tensors="pt")
        return {**inputs, "interpolate_pos_encoding": False}

    batch = read_all(
        Reader(Host.of(clip, clip_processor, prompt=upper), dictionary(12), progress=False), pairs
    )
    rows = batch.hidden["text"]
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    assert given[0]["interpolate_pos_encoding"] is False


def test_rows_that_are_not_one_per_pair_are_an_error(
    clip, clip_processor, pairs, dictionary
) -> None:
    with pytest.raises(VlmEditError, match="6 pairs give 1 rows of the text stream"):
        measure(
            Host.of(clip, clip_processor, prompt=one_text), pairs, dictionary(12), progress=False
        )


# What is refused


def test_a_site_of_one_stream_has_no_dominance(clip, clip_processor, pairs, dictionary) -> None:
    with pytest.raises(VlmEditError, match=r"'vision\.1' has the image stream only.*'joint'"):
        measure(Host.of(clip, clip_processor), pairs, dictionary(24), "vision.1", progress=False)


def test_an_unknown_site_lists_the_sites(clip, clip_processor, pairs, dictionary) -> None:
    with pytest.raises(VlmEditError, match=r"'middle'.*joint, vision\.0 \.\.\. vision\.2, text"):
        measure(Host.of(clip, clip_processor), pairs, dictionary(12), "middle", progress=False)


def test_a_dictionary_of_another_width_is_refused(clip, clip_processor, pairs, dictionary) -> None:
    with pytest.raises(VlmEditError, match="is 16 wide, site 'joint' of CLIPModel is 12"):
        measure(Host.of(clip, clip_processor), pairs, dictionary(16), progress=False)


def test_a_host_that_gives_nan_is_refused(clip, clip_processor, pairs, dictionary) -> None:
    with torch.no_grad():
        clip.visual_projection.weight.fill_(math.nan)
    with pytest.raises(VlmEditError, match="NaN or infinity"):
        measure(Host.of(clip, clip_processor), pairs, dictionary(12), progress=False)


def test_the_batch_size_must_be_positive(clip, clip_processor, pairs, dictionary) -> None:
    with pytest.raises(VlmEditError, match="batch size is 0"):
        measure(Host.of(clip, clip_processor), pairs, dictionary(12), batch_size=0, progress=False)


# What comes out


def test_options_reach_the_scores_and_the_examples(clip, clip_processor, pairs, dictionary) -> None:
    found = measure(
        Host.of(clip, clip_processor), pairs, dictionary(12), zeros="half", keep=2, progress=False
    )
    plain = measure(Host.of(clip, clip_processor), pairs, dictionary(12), progress=False)
    assert found.dominance.zeros == "half"
    assert not torch.equal(found.dominance.scores, plain.dominance.scores)
    assert found.examples["image"].values.shape == (40, 2)


def test_a_bar_is_shown_on_a_terminal_unless_it_is_not_wanted(
    clip, clip_processor, pairs, dictionary, capsys, monkeypatch
) -> None:
    measure(Host.of(clip, clip_processor), pairs, dictionary(12))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    measure(Host.of(clip, clip_processor), pairs, dictionary(12), progress=False)
    assert capsys.readouterr().err == ""
    measure(Host.of(clip, clip_processor), pairs, dictionary(12), batch_size=4)
    shown = capsys.readouterr().err
    assert "measure joint" in shown
    assert "6/6" in shown


def test_batches_read_on_ones_own_accumulate_to_the_same_measurement(
    clip, clip_processor, pairs, dictionary
) -> None:
    host, options = Host.of(clip, clip_processor), {"batch_size": 4, "progress": False}
    reader = Reader(host, dictionary(12), sizes=True, **options)
    accumulator, other = MeasurementAccumulator(40), MeasurementAccumulator(40)
    for i, batch in enumerate(reader.read(pairs)):
        (other if i else accumulator).update(batch)
    accumulator.merge(other)
    own = accumulator.compute("joint", reader.skipped, reader.truncated)
    found = measure(
        Host.of(clip, clip_processor), pairs, dictionary(12), batch_size=4, progress=False
    )
    assert str(own.rows()) == str(found.rows())
    apart = {"provenance": {}, "checksum": own.checksum()}  # a checksum of provenance too
    assert own.summary() == {**found.summary(), **apart}


@pytest.fixture
def saved(clip, clip_processor, files, dictionary, tmp_path) -> tuple[Any, Path]:
    found = measure(Host.of(clip, clip_processor), files, dictionary(12), keep=2, progress=False)
    found.save(tmp_path / "deep" / "result")
    return found, tmp_path / "deep" / "result"


def test_a_state_that_holds_more_than_is_known_is_refused() -> None:
    state = MeasurementAccumulator(4).state_dict()
    MeasurementAccumulator(4).load_state_dict(state)
    with pytest.raises(VlmEditError, match=r"another version: it also holds 'surprise\.sum'"):
        MeasurementAccumulator(4).load_state_dict(state | {"surprise.sum": torch.zeros(4)})


def test_saved_rows_say_what_was_measured_of_each_feature(saved, files) -> None:
    found, folder = saved
    with (folder / "features.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dominance, classes = found.dominance, found.dominance.classes("sd")
    fixed, significant = dominance.classes("fixed"), dominance.classes("significant")
    earned = dominance.classes()
    matched, shuffled = dominance.cofiring()
    assert [int(row["feature"]) for row in rows] == list(range(40))
    for k, row in enumerate(rows):
        for name, value in (
            ("mds", dominance.scores[k]),
            ("cofiring_matched", matched[k]),
            ("cofiring_shuffled", shuffled[k]),
        ):
            assert float(row[name]) == pytest.approx(float(value), nan_ok=True)
        assert k in classes[row["class_sd"]]
        assert k in earned[row["class"]]
        assert k in significant[row["class_significant"]]
        assert k in fixed[row["class_fixed"]]
        assert int(row["active_pairs"]) == dominance.active[k]
        assert int(row["image_active"]) == dominance.image_active[k]
        assert int(row["text_active"]) == dominance.text_active[k]
        for column, stream in (("top_images", "image"), ("top_texts", "text")):
            numbers = [number for number, _ in found.examples[stream].of(k)]
            words = map(str, numbers)
            if stream == "image":
                words = (str(files.images[number]) for number in numbers)
            assert row[column] == (" | " if stream == "image" else " ").join(words)


def test_a_saved_summary_counts_classes_and_what_was_left_out(saved) -> None:
    found, folder = saved
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary == found.summary()
    assert (summary["site"], summary["pairs"], summary["zeros"]) == ("joint", 4, "skip")
    assert [entry["pair"] for entry in summary["skipped"]] == [2, 4]
    assert all(sum(counts.values()) == 40 for counts in summary["classes"].values())
    assert summary["classes"]["sd"]["vision"] == len(found.dominance.classes("sd")["vision"])
    assert summary["modality_gap"] == found.gap


def test_a_summary_is_json_even_where_nothing_is_alive(
    clip, clip_processor, pairs, tmp_path
) -> None:
    silent = Encoder(torch.zeros(12, 3), torch.full((3,), -1.0))
    dead = Dictionary(silent, torch.zeros(3, 12), torch.zeros(12))
    measure(Host.of(clip, clip_processor), pairs, dead, progress=False).save(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "summary.json").read_text("utf-8")
    summary = json.loads(text, parse_constant=refuse)
    assert summary["mds_mean"] is None
    assert summary["classes"]["fixed"] == {
        **dict.fromkeys(("vision", "language", "cross", "undecided"), 0),
        "dead": 3,
    }


def test_a_host_in_train_mode_is_refused(clip, clip_processor, pairs, dictionary) -> None:
    with pytest.raises(VlmEditError, match=r"train mode.*model.eval\(\)"):
        measure(Host.of(clip.train(), clip_processor), pairs, dictionary(12), progress=False)


def test_a_measurement_does_not_change_when_its_accumulator_goes_on() -> None:
    generator = torch.Generator().manual_seed(0)
    accumulator = MeasurementAccumulator(5)

    def batch(numbers: list[int]) -> Batch:
        codes = {s: torch.rand(len(numbers), 5, generator=generator) for s in ("image", "text")}
        return Batch(numbers, codes, {s: SparseCodes.of(found) for s, found in codes.items()})

    accumulator.update(batch([0, 1]))
    found = accumulator.compute("joint")
    before = str(found.rows())
    accumulator.update(batch([2, 3, 4]))
    assert str(found.rows()) == before


def test_activations_that_are_not_finite_are_refused(clip, clip_processor, pairs, dictionary):
    with torch.no_grad():
        clip.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(VlmEditError, match="'joint' hold NaN or infinity.*float32"):
        measure(
            Host.of(clip, clip_processor),
            pairs,
            dictionary(12, activation="jumprelu"),
            progress=False,
        )


def test_what_is_left_out_is_counted_anew_in_every_reading(
    clip, clip_processor, dictionary, tmp_path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"garbage")
    good = Image.new("RGB", (16, 16), "red")
    broken = Pairs([good, tmp_path / "bad.png"], ("a", "b"))
    reader = Reader(Host.of(clip, clip_processor), dictionary(12), progress=False)
    for _ in range(2):
        list(reader.read(broken))
        assert len(reader.skipped) == 1


def test_neurons_of_a_joint_embedding_do_not_depend_on_its_length(
    clip, clip_processor, pairs
) -> None:
    neurons = Dictionary.identity(12, norm="constant_norm_rescale")
    before = measure(Host.of(clip, clip_processor), pairs, neurons, progress=False)
    with torch.no_grad():
        clip.visual_projection.weight.mul_(4.0)
    after = measure(Host.of(clip, clip_processor), pairs, neurons, progress=False)
    assert torch.allclose(before.dominance.scores, after.dominance.scores, atol=1e-5)


def test_pooling_in_parts_changes_nothing(monkeypatch, llava, dictionary) -> None:
    from vlm_edit.measuring import reading as room

    hidden = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(0))
    capture = Capture("language.1", hidden, Tokens.of("image", Call(), hidden))
    recording = Recording([capture])
    reader = Reader(Host.of(llava), dictionary(32), "language.1", progress=False)
    site = Site("language.1", (Tap("", llava, "image"),), 32)
    whole = reader._readings[0]._pool(recording, site, "image", {})
    monkeypatch.setattr(room, "_MOST_CODES", 40 * 4)
    parts = reader._readings[0]._pool(recording, site, "image", {})
    assert torch.allclose(whole[1].dense(), parts[1].dense(), atol=1e-6)
    assert torch.equal(whole[0], parts[0]) and torch.equal(whole[2], parts[2])
    expected = dictionary(32).encode(hidden).abs().mean(1)
    assert torch.allclose(whole[1].dense(), expected, atol=1e-6)
