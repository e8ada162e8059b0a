"""Whose tokens are: what each has by its own modality, against a loop."""

import pytest
import torch

from vlm_edit import Dictionary, VlmEditError
from vlm_edit.dictionaries import Encoder
from vlm_edit.ground.modality import Mixed, part_of

MASK = torch.tensor([[True, False, False], [False, True, False]])


def test_each_token_has_what_its_own_modality_has():
    values = {"image": torch.tensor([1.0, 2.0]), "text": torch.tensor([3.0, 4.0])}
    picked = Mixed.of(image=MASK).pick(values)
    for row, column in torch.ones_like(MASK).nonzero().tolist():
        own = "image" if MASK[row, column] else "text"
        assert torch.equal(picked[row, column], values[own])
    each = {name: value + torch.rand(2, 3, 2) for name, value in values.items()}
    chosen = Mixed.of(image=MASK).pick(each)
    assert torch.equal(chosen[MASK], each["image"][MASK])
    assert torch.equal(chosen[~MASK], each["text"][~MASK])


def test_a_video_goes_by_what_images_have_and_a_sound_by_nothing():
    values = {"image": torch.tensor([1.0]), "text": torch.tensor([3.0])}
    mixed = Mixed.of(image=MASK, video=MASK.roll(1, 1))
    assert mixed.pick(values)[..., 0].tolist() == [[1, 1, 3], [3, 1, 1]]
    own = mixed.pick(values | {"video": torch.tensor([2.0])})
    assert own[..., 0].tolist() == [[1, 2, 3], [3, 1, 2]]
    with pytest.raises(VlmEditError, match="audio tokens pass here.*image, text only"):
        Mixed.of(audio=MASK).pick(values)


def test_what_is_of_no_other_modality_is_text_and_visual_is_image_or_video():
    image, video, audio = MASK, MASK.roll(1, 1), torch.tensor([[False] * 3, [True, False, False]])
    mixed = Mixed.of(image=image, video=video, audio=audio)
    assert torch.equal(mixed.at("text"), ~(image | video | audio))
    assert torch.equal(mixed.at("visual"), image | video)
    assert not Mixed.of(image=MASK).at("audio").any()
    asked = mixed.marked("image", audio)
    assert torch.equal(asked.at("image"), audio)
    assert torch.equal(asked.at("video"), video & ~audio)
    assert not asked.at("audio").any()


@pytest.mark.parametrize("start", [0, 1, 2, 5])
def test_columns_behind_the_last_are_text(start):
    part = Mixed.of(image=MASK).columns(start, 3)
    expected = [[c < 3 and bool(MASK[r, c]) for c in range(start, start + 3)] for r in (0, 1)]
    assert part.at("image").tolist() == expected
    assert Mixed.of(image=MASK).behind(2).at("image")[:, 2:].equal(MASK)
    assert not Mixed.of(image=MASK).behind(2).at("image")[:, :2].any()


def test_of_some_tokens_it_is_theirs():
    mixed = Mixed.of(image=MASK)
    assert torch.equal(mixed[0].at("image"), MASK[0])
    assert torch.equal(mixed.flatten().at("text"), ~MASK.flatten())
    assert mixed.shape == MASK.shape
    assert torch.equal(part_of(mixed, 1).at("image"), MASK[1])
    assert part_of("image", 1) == "image"
    assert part_of(None, 1) is None
    assert mixed.to("meta").at("image").device.type == "meta"


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "needs a mask of its image tokens"),
        ({"text": MASK}, "mask of 'text': give image, video, audio; the rest is text"),
        ({"sound": MASK}, "mask of 'sound': give image"),
        ({"image": MASK.long()}, r"must be bool, got torch\.int64"),
        ({"image": [True]}, "must be bool, got list"),
    ],
)
def test_what_is_no_mask_of_a_modality_is_refused(masks, message):
    with pytest.raises(VlmEditError, match=message):
        Mixed.of(**masks)


def test_a_center_that_one_of_the_modalities_lacks_is_named():
    encoder = Encoder(torch.eye(2), torch.zeros(2), centers={"image": torch.ones(2)})
    dictionary = Dictionary(encoder, torch.eye(2), torch.zeros(2))
    x = torch.zeros(2, 3, 2)
    assert dictionary.encode(x, "image").shape == (2, 3, 2)
    with pytest.raises(VlmEditError, match=r"it has \['image'\].*the stream here is 'mixed'"):
        dictionary.encode(x, Mixed.of(image=MASK))
    with pytest.raises(VlmEditError, match=r"the stream here is 'mixed'"):
        dictionary.slice([0]).codes(x, Mixed.of(image=MASK))
