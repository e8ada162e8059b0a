"""Which features an attack moves, and attacks on some of them, beside brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Host, VlmEditError, zoo
from vlm_edit.dictionaries import Transcoder
from vlm_edit.tasks.adversarial import (
    Features,
    ImageHost,
    Movement,
    Others,
    Penalised,
    Through,
    Untargeted,
    ZeroShot,
    apgd,
    fooling,
    harden_gains,
    movement,
    predict,
)
from vlm_edit.tasks.adversarial.features import RESIDUAL, nearest_text, through

RADIUS = 4 / 255
CHOSEN = list(range(0, 512, 3))


@pytest.fixture(scope="module")
def plain() -> ZeroShot:
    model, processor = zoo.load_host()
    return ZeroShot.of(
        Host.of(model, processor), [f"a picture of {n}" for n in zoo.load_labels()[::16]]
    )


@pytest.fixture(scope="module")
def images(plain: ZeroShot) -> Tensor:
    pairs = zoo.load_pairs()
    return plain.host.pixels.read([pairs.open(i) for i in range(1, 25, 2)])


@pytest.fixture(scope="module")
def labels(plain: ZeroShot, images: Tensor) -> Tensor:
    return predict(plain, images)


@pytest.fixture(scope="module")
def attacked(plain: ZeroShot, images: Tensor, labels: Tensor) -> Tensor:
    return fooling(plain, images, labels, RADIUS, steps=6)


@pytest.fixture(scope="module")
def joint(plain: ZeroShot) -> Features:
    return Features(plain.host, zoo.load_dictionary("joint"), "joint")


def test_parts_and_whole_are_what_codes_and_decoder_say(
    joint: Features, images: Tensor, attacked: Tensor
) -> None:
    dictionary = joint.dictionary
    with torch.no_grad():
        a, b = (joint.host(x) for x in (images, attacked))
    change = dictionary.encode(b, "image") - dictionary.encode(a, "image")
    whole = dictionary.normalise(b) - dictionary.normalise(a)
    part = change[:, CHOSEN] @ dictionary.decoder[CHOSEN]
    found = movement(joint, images, attacked, {"some": CHOSEN}, batch_size=5)
    assert torch.allclose(found.parts["some"], part.square().sum(1), rtol=1e-3)
    assert torch.allclose(found.whole, whole.square().sum(1), rtol=1e-3)
    left = whole - change @ dictionary.decoder
    assert torch.allclose(found.parts[RESIDUAL], left.square().sum(1), rtol=1e-3)
    assert torch.allclose(found.features.float(), change.abs().mean(0), atol=1e-4)
    share = found.share("some").value
    assert share == pytest.approx(float(part.square().sum() / whole.square().sum()), rel=1e-3)


def test_nothing_moves_where_nothing_was_changed(joint: Features, images: Tensor) -> None:
    found = movement(joint, images, images, {"all": range(512)})
    assert float(found.whole.max()) == 0 and float(found.features.max()) == 0


def test_at_a_layer_the_tokens_are_summed(
    plain: ZeroShot, images: Tensor, attacked: Tensor
) -> None:
    layer = Features(plain.host, zoo.load_dictionary("vision.2"), "vision.2")
    found = movement(layer, images, attacked, {"all": range(1024)})
    with torch.no_grad():
        a, b = (layer.hidden(x)[0] for x in (images, attacked))
    assert a.shape[1] == 37
    assert torch.allclose(found.whole, (b - a).flatten(1).square().sum(1), rtol=1e-3)


def test_all_features_and_the_residual_together_are_the_attack(
    plain: ZeroShot, joint: Features, images: Tensor, attacked: Tensor
) -> None:
    choose = nearest_text(plain.texts)
    with torch.no_grad():
        truth = choose(plain.host(attacked))
    every = through(joint, images, attacked, range(512), choose)
    rest = through(joint, images, attacked, None, choose)
    codes, normed = joint(images)
    moved, there = joint(attacked)
    decoded = (moved - codes) @ joint.dictionary.decoder
    assert torch.allclose(every, choose(normed + decoded), atol=1e-2)
    assert torch.allclose(rest, choose(there - decoded), atol=1e-2)
    assert torch.allclose(choose(there), truth, atol=1e-2)


def test_the_rest_is_all_that_the_chosen_features_do_not_explain(
    joint: Features, images: Tensor, attacked: Tensor
) -> None:
    rest = Others.of(joint, CHOSEN, images, batch_size=7)
    rows = torch.arange(len(images))
    with torch.no_grad():
        found = rest(attacked, rows)
        codes, normed = joint(images)
        moved, there = joint(attacked)
    own = (moved - codes)[:, CHOSEN] @ joint.dictionary.decoder[CHOSEN]
    expected = (there - normed - own).square().sum(1) / normed.square().sum(1)
    assert torch.allclose(found, expected, rtol=1e-3)
    with torch.no_grad():
        assert float(rest(images, rows).max()) < 1e-6


def test_a_penalty_holds_the_rest_and_a_limit_refuses_what_it_does_not_hold(
    plain: ZeroShot, joint: Features, images: Tensor, labels: Tensor
) -> None:
    aim, rows = Untargeted(plain, labels), torch.arange(len(images))
    rest = Others.of(joint, CHOSEN, images)
    free = apgd(aim, images, RADIUS, steps=8)
    held = apgd(Penalised(aim, rest, 30.0, most=0.1), images, RADIUS, steps=12, random_start=False)
    with torch.no_grad():
        assert float(rest(held.images, rows).mean()) < 0.5 * float(rest(free.images, rows).mean())
        assert float(rest(held.images, rows)[held.reached].max()) <= 0.1 + 1e-6
        assert bool(held.reached.any())
        wrong = predict(plain, held.images) != labels
    assert bool((wrong | ~held.reached).all())


def test_an_attack_through_features_is_judged_by_their_movement_alone(
    plain: ZeroShot, joint: Features, images: Tensor, labels: Tensor
) -> None:
    choose = nearest_text(plain.texts, plain.scale)
    with torch.no_grad():
        codes, normed = joint(images)
    aim = Through(joint, CHOSEN, codes, normed, choose, labels)
    found = apgd(aim, images, RADIUS, steps=8)
    logits = through(joint, images, found.images, CHOSEN, choose)
    assert torch.equal(logits.argmax(1) != labels, found.reached)
    loss, reached = aim(images, torch.arange(len(images)))
    assert not bool(reached.any())
    assert torch.allclose(loss, F.cross_entropy(plain(images), labels, reduction="none"), atol=1e-2)


def test_what_cannot_be_told_is_refused(
    plain: ZeroShot, joint: Features, images: Tensor, attacked: Tensor
) -> None:
    with pytest.raises(VlmEditError, match="'residual'"):
        movement(joint, images, attacked, {RESIDUAL: [1]})
    with pytest.raises(VlmEditError, match="must be the same"):
        movement(joint, images, attacked[:3], {})
    with pytest.raises(VlmEditError, match="got 1: \\[512\\]"):
        Others.of(joint, [512], images)
    layer = Features(plain.host, zoo.load_dictionary("vision.2"), "vision.2")
    with pytest.raises(VlmEditError, match="at 'joint'"):
        through(layer, images, attacked, [1], nearest_text(plain.texts))
    with pytest.raises(VlmEditError):
        Features(ImageHost(plain.host.host, plain.host.pixels), joint.dictionary, "vision.1")
    elsewhere = Transcoder(zoo.load_dictionary("vision.2"), "mlp_in", "mlp_out")
    with pytest.raises(VlmEditError, match="an attack on features is for dictionaries of one"):
        Features(plain.host, elsewhere, "vision.2.mlp_out")
    with pytest.raises(VlmEditError, match="a gain is for dictionaries of one place"):
        harden_gains(plain.host, images, {"vision.2.mlp_out": elsewhere})


def test_a_class_is_ahead_of_random_features_by_the_difference_of_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = 1 + torch.rand(40, generator=generator)
    share = {"own": 0.6, "same": 0.6} | {f"random {i}": 0.3 + 0.02 * i for i in range(5)}
    parts = {
        name: value * whole * (1 + 0.2 * torch.randn(40, generator=generator))
        for name, value in share.items()
    }
    found = Movement(parts, whole, whole, whole)
    draws = [name for name in share if name.startswith("random")]
    ahead = found.beyond("own", draws)
    means = sum(found.share(name).value for name in draws) / 5
    assert ahead.value == pytest.approx(found.share("own").value - means)
    assert ahead.low > 0 and ahead.n == 40
    level = found.beyond("own", ["same"])
    assert level.low < 0 < level.high
    # The spread over images is that of the bootstrap of the ratio.
    rows = torch.randint(40, (4000, 40), generator=generator)
    sums = {name: part[rows].sum(1) for name, part in [*parts.items(), ("whole", whole)]}
    drawn = (sums["own"] - sums["same"]) / sums["whole"]
    assert (level.high - level.low) / 4.05 == pytest.approx(float(drawn.std()), rel=0.1)
