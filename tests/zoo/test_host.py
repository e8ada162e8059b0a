import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoProcessor, CLIPModel, CLIPProcessor

from recipes import evaluate, training
from recipes.architecture import sine_positions
from recipes.augment import Augmenter, Strength, premultiply
from recipes.batches import TrainingPairs, may_mirror
from recipes.words import LENGTH, train_tokenizer
from vlm_edit import zoo
from vlm_edit.measures.probing import probe


@pytest.fixture(scope="module")
def host():
    return zoo.load_host()


@pytest.fixture(scope="module")
def shipped():
    return zoo.load_pairs()


@pytest.fixture(scope="module")
def embeddings(host, shipped):
    model, processor = host
    images = [shipped.open(i) for i in range(len(shipped))]
    return {
        "image": evaluate.embed_images(model, processor, images),
        "text": evaluate.embed_texts(model, processor, shipped.texts),
    }


def test_it_loads_like_any_other_clip(host):
    model, processor = host
    assert isinstance(model, CLIPModel) and not model.training
    assert isinstance(processor, CLIPProcessor)
    assert isinstance(AutoProcessor.from_pretrained(zoo.HOST), CLIPProcessor)
    assert next(model.parameters()).dtype == torch.float32
    half = CLIPModel.from_pretrained(zoo.HOST)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_the_file_is_half_precision_and_below_ten_megabytes():
    file = zoo.HOST / "model.safetensors"
    assert file.stat().st_size < 10e6
    with safe_open(file, "pt") as tensors:
        kinds = {str(tensors.get_slice(k).get_dtype()) for k in tensors.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_captions_survive_the_tokenizer(host, shipped):
    tokenizer = host[1].tokenizer
    for text in shipped.texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert len(ids) <= LENGTH
        back = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(back.split()) == "".join(text.lower().split())


def test_any_text_can_be_tokenized(host):
    ids = host[1].tokenizer("Ünïcode 漢字 🙂 <html>")["input_ids"]
    assert host[1].tokenizer.eos_token_id not in ids[1:-1]


def test_padding_does_not_change_a_text(host):
    model, processor = host
    alone = evaluate.embed_texts(model, processor, ["a picture of dog face"])
    beside = evaluate.embed_texts(
        model,
        processor,
        ["a picture of dog face", "ein Emoji zeigt Frau in motorisiertem Rollstuhl"],
    )
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=0)


def test_zero_shot_accuracy_is_what_the_card_says(host):
    card = (zoo.HOST / "README.md").read_text("utf-8")
    stated = re.search(rf"\| {evaluate.TITLES['shipped']} \| 1024 \| ([\d.]+) ", card)
    scores = evaluate.score_shipped(*host)
    low, high = evaluate.interval(scores.first, scores.cells)
    assert low <= float(stated[1]) <= high
    assert scores.first.mean() == pytest.approx(float(stated[1]), abs=0.005)


def test_a_pair_s_texts_and_images_find_each_other(embeddings):
    similarity = embeddings["image"] @ embeddings["text"].T
    first = (similarity.argmax(1) == torch.arange(len(similarity))).float().mean()
    assert first > 0.3


@pytest.mark.parametrize(
    ("stream", "factor", "at_least"),
    [("image", "background", 0.8), ("text", "language", 0.8), ("text", "phrasing", 0.8)],
)
def test_a_factor_of_one_modality_can_be_read_there_alone(
    embeddings, shipped, stream, factor, at_least
):
    values = shipped.columns[factor]
    chance = max(values.count(v) for v in set(values)) / len(values)
    other = {"image": "text", "text": "image"}[stream]
    assert float(probe(embeddings[stream], values).double().mean()) > at_least
    assert float(probe(embeddings[other], values).double().mean()) < chance + 0.05


@pytest.mark.parametrize(
    ("stream", "factor"), [("image", "background"), ("text", "language"), ("text", "phrasing")]
)
def test_a_factor_of_one_modality_takes_room_in_the_embedding(embeddings, shipped, stream, factor):
    share = evaluate.share_of_variance(embeddings[stream], shipped.columns[factor])
    assert 0.05 < share < 0.3


def test_the_share_of_variance_is_that_of_the_group_means():
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 1.0], [4.0, 3.0]])
    assert evaluate.share_of_variance(x, "aabb") == pytest.approx(16 / (16 + 4))


def test_the_interval_holds_the_rate_and_is_wider_when_cells_agree():
    hits = np.tile([True] * 4 + [False] * 4, 25)
    apart = evaluate.interval(hits, [str(i) for i in range(200)])
    together = evaluate.interval(hits, [str(i // 4) for i in range(200)])
    assert apart[0] < 0.5 < apart[1]
    assert together[1] - together[0] > 1.5 * (apart[1] - apart[0])


@pytest.fixture
def rendered(tmp_path):
    """A folder as the pairs recipe renders it: sixteen drawings of eight labels."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "drawings.npy", rng.integers(0, 256, (16, 64, 64, 4), np.uint8))
    lines = ["vendor,concept,label,group,gender,tone,split"]
    lines += [f"v{i % 2},thing {i // 2},thing {i // 2},objects,none,none,train" for i in range(16)]
    (tmp_path / "drawings.csv").write_text("\n".join(lines))
    words = {
        f"thing {i}": {k: {"name": f"{k} {i}", "keywords": ["a", "b"]} for k in ("en", "de", "es")}
        for i in range(8)
    }
    (tmp_path / "names.json").write_text(json.dumps(words))
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9, for its Muon")
def test_a_run_that_is_killed_and_resumed_ends_bit_equal(rendered, tmp_path):
    tokenizer = train_tokenizer(["en 1", "de 2", "es 3"], 600)
    recipe = replace(training.Recipe(), steps=4, checkpoint=2, batch=4, captions=2)
    whole = training.Trainer(recipe, rendered, tokenizer, 0, 1)
    whole.run(tmp_path / "whole.safetensors")
    killed = training.Trainer(recipe, rendered, tokenizer, 0, 1)
    save, killed.save = killed.save, lambda file: (save(file), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        killed.run(tmp_path / "killed.safetensors")
    resumed = training.Trainer(recipe, rendered, tokenizer, 0, 1)
    resumed.run(tmp_path / "killed.safetensors")
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9, for its Muon")
def test_a_checkpoint_of_another_recipe_is_refused(rendered, tmp_path):
    tokenizer = train_tokenizer(["en 1"], 600)
    recipe = replace(training.Recipe(), batch=2, captions=2)
    training.Trainer(recipe, rendered, tokenizer, 0, 1).save(tmp_path / "c.safetensors")
    other = training.Trainer(replace(recipe, heads=0.0), rendered, tokenizer, 0, 1)
    with pytest.raises(ValueError, match="another recipe"):
        other.load(tmp_path / "c.safetensors")


def test_batches_are_the_same_for_the_same_seed(rendered, host):
    batches = [TrainingPairs(rendered, host[1].tokenizer, Strength(), 7).batch(4) for _ in "ab"]
    assert torch.equal(batches[0].pixels, batches[1].pixels)
    assert torch.equal(batches[0].ids, batches[1].ids)


def test_the_schedule_warms_up_stays_and_falls():
    recipe = replace(training.Recipe(), steps=1000, warm_up=100, decay=0.3, strengthen=200)
    rates = [recipe.rate(s) for s in (0, 99, 400, 700, 850, 999)]
    assert rates == pytest.approx([0.01, 1, 1, 1, 0.5, 1 / 300])
    assert recipe.proxy_weight(0) == recipe.proxies
    assert recipe.proxy_weight(1000) == pytest.approx(recipe.proxies_end)
    assert recipe.strength_at(500) == recipe.strength
    assert recipe.strength_at(0).rotate == pytest.approx(recipe.gentle * recipe.strength.rotate)


def test_the_contrastive_loss_does_not_push_pairs_of_one_label_apart():
    v = F.normalize(torch.eye(3) + 0.1, dim=1)
    twins = torch.tensor([0, 0, 1])
    apart, one = torch.arange(3), torch.tensor(10.0)
    logits = 10 * v @ v.T
    plain = (F.cross_entropy(logits, apart) + F.cross_entropy(logits.T, apart)) / 2
    torch.testing.assert_close(training.contrastive(v, v, apart, one), plain)
    assert training.contrastive(v, v, twins, one) < plain


def test_augmentation_of_no_strength_only_lays_the_drawing_on_its_background():
    drawings = torch.randint(0, 256, (3, 4, 1, 1), dtype=torch.uint8).repeat(1, 1, 48, 48)
    none = replace(Strength().scaled(0), scale=(1.0, 1.0))
    augment = Augmenter(none, torch.Generator().manual_seed(0))
    colours = torch.rand(3, 3)
    x = premultiply(drawings)
    expected = x[:, :3] + (1 - x[:, 3:]) * colours[:, :, None, None]
    views = augment(drawings, drawings, torch.zeros(3, dtype=torch.bool), colours)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(views[inner], expected[inner])


def test_drawings_whose_label_says_a_direction_are_not_mirrored():
    assert may_mirror("dog face", "animals-nature", set())
    assert not may_mirror("left arrow", "symbols", set())
    assert not may_mirror("backhand index pointing left", "people-body", set())
    assert not may_mirror("person walking", "people-body", {"person walking"})


def test_positions_of_all_patches_differ():
    positions = sine_positions(6, 192)
    assert positions.shape == (36, 192)
    assert torch.cdist(positions, positions).fill_diagonal_(9).min() > 0.1
