"""Hosts in pixels, losses, detectors, and words drawn on images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Host, VlmEditError, zoo
from vlm_edit.tasks.adversarial import (
    Away,
    Features,
    ImageHost,
    Pixels,
    Targeted,
    Toward,
    Untargeted,
    ZeroShot,
    apgd,
    pgd,
    predict,
)
from vlm_edit.tasks.adversarial.detection import (
    Distance,
    Unexplained,
    Unusual,
    scores,
    threshold,
    unseen,
)
from vlm_edit.tasks.adversarial.losses import dlr, margin, targeted_dlr
from vlm_edit.tasks.adversarial.typographic import draw_word, other_labels, scrambled


@pytest.fixture(scope="module")
def plain() -> ZeroShot:
    model, processor = zoo.load_host()
    return ZeroShot.of(
        Host.of(model, processor), [f"a picture of {n}" for n in zoo.load_labels()[::16]]
    )


@pytest.fixture(scope="module")
def images(plain: ZeroShot) -> Tensor:
    pairs = zoo.load_pairs()
    return plain.host.pixels.read([pairs.open(i) for i in range(24)])


def test_pixels_normalised_are_what_the_processor_makes(images: Tensor) -> None:
    _, processor = zoo.load_host()
    pairs = zoo.load_pairs()
    expected = processor(images=[pairs.open(i) for i in range(24)], return_tensors="pt")
    found = Pixels.of(processor).normalise(images)
    assert float((found - expected["pixel_values"]).abs().max()) < 1e-5


def test_logits_are_the_hosts_own() -> None:
    model, processor = zoo.load_host()
    texts, picture = ["a picture of dog face", "a picture of car"], zoo.load_pairs().open(3)
    choose = ZeroShot.of(Host.of(model, processor), texts)
    with torch.no_grad():
        inputs = processor(text=texts, images=[picture], return_tensors="pt", padding=True)
        expected = model(**inputs).logits_per_image
        found = choose(choose.host.pixels.read([picture]))
    assert torch.allclose(found, expected, atol=1e-3)


def test_losses_are_their_formulas() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    targets = (labels + 1) % 7
    for i in range(50):
        z, y, t = logits[i].tolist(), int(labels[i]), int(targets[i])
        wrong = max(v for k, v in enumerate(z) if k != y)
        top = sorted(z, reverse=True)
        assert float(margin(logits, labels)[i]) == pytest.approx(wrong - z[y], abs=1e-5)
        assert float(dlr(logits, labels)[i]) == pytest.approx(
            -(z[y] - wrong) / (top[0] - top[2]), abs=1e-4
        )
        assert float(targeted_dlr(logits, labels, targets)[i]) == pytest.approx(
            -(z[y] - z[t]) / (top[0] - (top[2] + top[3]) / 2), abs=1e-4
        )


def test_dlr_says_how_many_classes_it_needs() -> None:
    two = torch.zeros(1, 2)
    for loss in (dlr, lambda a, b: targeted_dlr(a, b, b)):
        with pytest.raises(VlmEditError, match="classes, and there are 2"):
            loss(two, torch.tensor([0]))
    with pytest.raises(VlmEditError, match="loss is 'mse'"):
        Untargeted(lambda x: x, two, "mse")  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [False, True])
def test_a_target_is_reached_where_it_is_chosen(
    ratio: bool, plain: ZeroShot, images: Tensor
) -> None:
    labels = predict(plain, images)
    targets = (labels + 5) % len(plain.texts)
    aim = Targeted(plain, targets, labels if ratio else None)
    found = apgd(aim, images, 16 / 255, steps=15)
    assert torch.equal(predict(plain, found.images) == targets, found.reached)
    assert float(found.reached.float().mean()) > 0.3


def test_embeddings_go_away_from_themselves_and_toward_a_text(
    plain: ZeroShot, images: Tensor
) -> None:
    with torch.no_grad():
        true = plain.host(images)
    away = pgd(Away(plain.host, true), images, 4 / 255, steps=5)
    toward = pgd(Toward(plain.host, plain.texts[3], 0.9), images, 4 / 255, steps=5)
    with torch.no_grad():
        moved = F.cosine_similarity(plain.host(away.images), true)
        before, after = (
            F.normalize(plain.host(x), dim=1) @ plain.texts[3] for x in (images, toward.images)
        )
    assert torch.allclose(away.loss, 1 - moved, atol=1e-5) and float(moved.mean()) < 0.9
    assert bool((after > before).all())


@pytest.mark.parametrize("kind", [Unexplained, Unusual, Distance])
def test_a_detector_passes_true_images_as_often_as_it_is_told(
    kind: type, plain: ZeroShot, images: Tensor
) -> None:
    features = Features(plain.host, zoo.load_dictionary("vision.2"), "vision.2")
    score = kind(features) if kind is Unexplained else kind.of(features, images)  # type: ignore[attr-defined]
    limit = threshold(score, images, 0.25)
    assert float((scores(score, images, 7) > limit).float().mean()) == pytest.approx(0.25, abs=0.05)
    noisy = (images + 0.2 * torch.randn(images.shape)).clamp(0, 1)
    assert float(scores(score, noisy).mean()) > float(scores(score, images).mean())


def test_the_unexplained_share_is_the_dictionarys_own_error(
    plain: ZeroShot, images: Tensor
) -> None:
    dictionary = zoo.load_dictionary("joint")
    with torch.no_grad():
        found = Unexplained(Features(plain.host, dictionary))(images)
        hidden = plain.host(images)
    x = dictionary.normalise(hidden) - dictionary.encoder.center("image")
    error = (x - dictionary.decode(dictionary.encode(hidden, "image"))).square().sum(1)
    assert torch.allclose(found, error / (x - dictionary.decoder_bias).square().sum(1), rtol=1e-3)


def test_who_knows_the_detector_gets_past_it_more_often(plain: ZeroShot, images: Tensor) -> None:
    features = Features(plain.host, zoo.load_dictionary("vision.2"), "vision.2")
    images = images[:12]
    score, labels = Unexplained(features), predict(plain, images)
    limit, aim = threshold(score, images, 0.2), Untargeted(plain, labels)
    blind = apgd(aim, images, 8 / 255, steps=6)
    passed = blind.reached & (scores(score, blind.images) <= limit)
    known = unseen(aim, score, limit, lambda a: apgd(a, images, 8 / 255, steps=6))
    assert int(known.reached.sum()) > int(passed.sum())
    wrong = predict(plain, known.images) != labels
    caught = scores(score, known.images) > limit + 1e-5
    assert not bool((known.reached & (caught | ~wrong)).any())


def test_a_word_changes_its_strip_and_nothing_else() -> None:
    plain_image = Image.new("RGB", (64, 64), (10, 200, 30))
    drawn = draw_word(plain_image, "teapot", height=0.2, at=0.8)
    assert plain_image.getcolors() == [(64 * 64, (10, 200, 30))]
    assert drawn.crop((0, 0, 64, 40)).getcolors() == [(64 * 40, (10, 200, 30))]
    strip = drawn.crop((0, 42, 64, 62)).getcolors(64 * 64)
    assert any(colour == (255, 255, 255) for _, colour in strip)
    assert any(max(colour) < 90 for _, colour in strip)


def test_a_long_word_is_made_to_fit() -> None:
    white = Image.new("RGB", (64, 64), "white")
    drawn = draw_word(white, "incomprehensibilities", behind=None)
    dark = [x for x in range(64) for y in range(64) if drawn.getpixel((x, y)) != (255, 255, 255)]
    assert min(dark) >= 1 and max(dark) <= 62


def test_controls_of_words_keep_letters_and_never_the_label() -> None:
    for word in ("teapot", "aab", "go"):
        assert sorted(scrambled(word)) == sorted(word) and scrambled(word) != word
    assert scrambled("aa") == "aa"
    labels = ["a", "b", "c"] * 5
    found = other_labels(labels, labels)
    assert all(x != y for x, y in zip(found, labels, strict=True)) and set(found) == {"a", "b", "c"}
    with pytest.raises(VlmEditError, match="no label but 'a'"):
        other_labels(["a"], ["a"])


def test_hosts_that_cannot_be_attacked_so_are_refused() -> None:
    llava, processor = zoo.load_llava()
    with pytest.raises(VlmEditError, match="use captions"):
        ImageHost.of(Host.of(torch.nn.Linear(2, 2), processor))
    model, clip = zoo.load_host()
    with pytest.raises(VlmEditError, match="train mode"):
        ImageHost.of(Host.of(model.train(), clip))
    with pytest.raises(VlmEditError, match="how it normalises"):
        Pixels.of(clip.tokenizer)
    del llava
