"""The recipe of emoji-unclip: its drawings, a training that survives, and who judges it."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from recipes import unclip_drawings, unclip_judge, unclip_scores, unclip_training
from recipes.checkpoints import read_facts
from recipes.pairs import BACKGROUNDS, COLUMNS
from vlm_edit import zoo
from vlm_edit.zoo.unclip import PATCH, UnclipPipeline, condition

EXPERIMENTS = Path(__file__).resolve().parents[2] / "docs" / "experiments"
THINGS = 8
SPLITS = ("train", "hv-dev", "hv-test")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder as the pairs recipe renders it: drawings of eight labels, of three vendors each."""
    folder = tmp_path_factory.mktemp("rendered")
    count = THINGS * len(SPLITS)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 4), np.uint8)
    pixels[:, :20, :, 3] = 0  # seen through: whatever colour it has must not matter
    pixels[:, 20:, :, 3] = 255
    np.save(folder / "drawings.npy", pixels)
    with (folder / "drawings.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for i in range(count):
            label = f"thing {i % THINGS}"
            told = {"vendor": f"v{i // THINGS}", "concept": label, "label": label}
            told |= {"group": "objects", "gender": "none", "tone": "none"}
            writer.writerow(told | {"split": SPLITS[i // THINGS]})
    words = {
        f"thing {i}": {k: {"name": f"{k} {i}", "keywords": ["a", "b"]} for k in ("en", "de", "es")}
        for i in range(THINGS)
    }
    (folder / "names.json").write_text(json.dumps(words))
    return folder


@pytest.fixture(scope="module")
def host():
    model, processor = zoo.load_host()
    return model.requires_grad_(False), processor


@pytest.fixture(scope="module")
def supply(rendered, host):
    return unclip_drawings.Supply(rendered, *host)


@pytest.fixture(scope="module")
def recipe():
    return replace(unclip_training.Recipe(), batch=2, half=False)


# Drawings


def test_a_packed_sheet_holds_what_training_needs_as_it_was_seen(rendered, tmp_path):
    unclip_drawings.pack(rendered, tmp_path)
    whole, packed = unclip_drawings.load(rendered), unclip_drawings.load(tmp_path)
    chosen = [i for i, row in enumerate(whole.rows) if row["split"] in unclip_drawings.PACKED]
    assert len(chosen) == 2 * THINGS
    assert packed.rows == [whole.rows[i] for i in chosen]
    alpha, seen = packed.pixels[:, 3:], whole.pixels[chosen]
    assert torch.equal(alpha, seen[:, 3:])
    assert torch.equal(packed.pixels, seen * (alpha > 0))
    assert not (tmp_path / "drawings.npy").exists()
    assert (tmp_path / "names.json").read_text() == (rendered / "names.json").read_text()


def test_training_sees_the_drawings_of_its_split_alone(supply):
    assert {row["split"] for row in supply.rows} == {"train"}
    assert len(supply.pixels) == THINGS


def test_pixels_for_the_host_are_what_its_processor_makes_of_pictures(host):
    pairs = zoo.load_pairs()
    pictures = [pairs.open(i) for i in range(8)]
    expected = host[1](images=pictures, return_tensors="pt")["pixel_values"]
    images = torch.stack([torch.from_numpy(np.asarray(p).copy()) for p in pictures])
    found = unclip_drawings.for_host(images.permute(0, 3, 1, 2).float() / 255)
    assert float((found - expected).abs().mean()) < 0.01
    pixels = {"image": found, "processor": expected}
    with torch.no_grad():
        seen = {
            k: host[0].get_image_features(pixel_values=v).pooler_output for k, v in pixels.items()
        }
    assert float(F.cosine_similarity(seen["image"], seen["processor"]).min()) > 0.99


def test_a_batch_has_each_images_own_embedding_or_that_of_a_caption_of_its_label(supply, host):
    supply.reseed(3)
    images, embeds = supply.batch(6, from_text=0.0, noise=0.0)
    assert images.shape == (6, 3, 64, 64) and 0 <= float(images.min()) <= float(images.max()) <= 1
    torch.testing.assert_close(embeds, unclip_drawings.embed_images(host[0], images))
    _, said = supply.batch(6, from_text=1.0, noise=0.0)
    every = supply.captions.flatten(0, 1)
    assert float((said @ every.mT).amax(1).min()) > 1 - 1e-5


def test_noise_moves_embeddings_no_further_than_it_says_and_keeps_their_length(supply):
    supply.reseed(4)
    _, clean = supply.batch(64, from_text=0.0, noise=0.0)
    supply.reseed(4)
    _, noised = supply.batch(64, from_text=0.0, noise=0.15)
    cosine = (clean * noised).sum(1)
    torch.testing.assert_close(noised.norm(dim=1), torch.ones(64))
    assert float(cosine.min()) > 0.97
    assert float(cosine.std()) > 1e-3  # each by its own length


def test_batches_are_the_same_for_the_same_seed(supply):
    found = []
    for seed in (5, 5, 6):
        supply.reseed(seed)
        found.append(supply.batch(4, 0.3, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not torch.equal(found[0][0], found[2][0])


def test_six_skin_tones_count_as_two_drawings():
    rows = [{"vendor": "a", "label": "hand"}] * 6 + [{"vendor": "b", "label": "hand"}]
    assert unclip_drawings.cell_weights(rows).tolist() == pytest.approx([1 / 3] * 6 + [1])


# Training


def test_the_loss_is_the_error_of_the_velocity_on_the_straight_path_to_noise():
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    clean = F.pixel_unshuffle(2 * images - 1, PATCH)
    seen = []

    class Found:
        def __init__(self, sample):
            self.sample = sample

    def exact(x, times, _, class_labels):
        seen.append((times, class_labels))
        sigma = (times / unclip_training.TIMES)[:, None, None, None]
        return Found((x - clean) / sigma)  # x = clean + sigma * (noise - clean)

    def nothing(x, *_rest, **_named):
        return Found(torch.zeros_like(x))

    embeds = torch.randn(3, 192)
    generator = torch.Generator().manual_seed(1)
    assert float(unclip_training.flow_loss(exact, images, embeds, generator)) < 1e-8
    ((times, given),) = seen
    assert given is embeds or torch.equal(given, embeds)
    assert ((times > 0) & (times < unclip_training.TIMES)).all() and times.unique().numel() == 3
    found = unclip_training.flow_loss(nothing, images, embeds, torch.Generator().manual_seed(1))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, (noise - clean).square().mean())


def test_the_untrained_unet_predicts_nothing_and_is_of_the_size_that_ships():
    unet = unclip_training.build()
    x = torch.randn(1, 12, 32, 32)
    with torch.no_grad():
        found = unet(x, torch.tensor([500.0]), None, class_labels=torch.randn(1, 192)).sample
    assert not found.any()
    shipped = zoo.load_unclip().unet
    assert {k: v.shape for k, v in unet.state_dict().items()} == {
        k: v.shape for k, v in shipped.state_dict().items()
    }


def test_the_rate_warms_up_and_falls_to_nothing_over_the_time():
    recipe = replace(unclip_training.Recipe(), warm_up=100)
    assert recipe.rate(0, 0.0) == pytest.approx(0.01)
    assert recipe.rate(400, 0.5) == pytest.approx(0.5)
    assert recipe.rate(400, 1.0) == pytest.approx(0.0)
    assert recipe.rate(400, 1.5) == pytest.approx(0.0)


def steps(trainer, seed, count):
    trainer.supply.reseed(seed)
    for _ in range(count):
        trainer.spent = 0.1 * trainer.seconds
        trainer.one_step()
        trainer.step += 1


@pytest.mark.slow
def test_a_run_that_goes_on_from_its_checkpoint_ends_bit_equal(supply, recipe, tmp_path):
    whole = unclip_training.Trainer(recipe, supply)
    steps(whole, 1, 2)
    whole.spent, whole.history = 7.5, ["one", "two"]
    whole.save(tmp_path / "c.safetensors")
    resumed = unclip_training.Trainer(replace(recipe, minutes=99.0), supply)
    resumed.load(tmp_path / "c.safetensors")
    assert (resumed.step, resumed.spent, resumed.history) == (2, 7.5, ["one", "two"])
    for trainer in (whole, resumed):
        steps(trainer, 2, 1)
    for kind in ("master", "average"):
        ends = [getattr(trainer, kind).state_dict() for trainer in (whole, resumed)]
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    start = unclip_training.Trainer(recipe, supply).master.state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in whole.master.state_dict().items())


def test_a_checkpoint_of_another_recipe_is_refused(supply, recipe, tmp_path):
    unclip_training.Trainer(recipe, supply).save(tmp_path / "c.safetensors")
    other = unclip_training.Trainer(replace(recipe, noise=0.2), supply)
    with pytest.raises(ValueError, match="another recipe"):
        other.load(tmp_path / "c.safetensors")


def test_what_ships_is_the_average_in_half_precision(supply, recipe, tmp_path):
    trainer = unclip_training.Trainer(recipe, supply)
    steps(trainer, 1, 1)
    unclip_training.export(trainer.average, tmp_path, guidance=3.0)
    pipe = UnclipPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert pipe.config.guidance_scale == 3.0
    for name, value in trainer.average.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name].float(), value.half().float()), name


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_and_leaves_a_pipeline(rendered, tmp_path):
    command = [sys.executable, str(EXPERIMENTS), "recipes.unclip", "--pairs", str(rendered)]
    command += ["--out", str(tmp_path), "--batch", "2", "--judge-batch", "2", "--device", "cpu"]
    command += ["--judge-minutes", "0.01", "--layout", "contiguous", "--checkpoint", "1"]
    command += ["--no-baseline", "--count", "4", "--steps", "1", "--guidance", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "state" / "checkpoint.safetensors"
    endless = subprocess.Popen([*command, "--minutes", "60"], env=environment)
    until = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.1)
    endless.send_signal(signal.SIGKILL)
    endless.wait()
    before = int(read_facts(checkpoint)["step"])
    assert before > 0
    told = subprocess.run(
        [*command, "--minutes", "0.05"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"going on from step {before}" in told
    assert "judge trained" not in told  # it was, before the kill
    assert int(read_facts(checkpoint)["step"]) >= before
    assert load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "drawn from the caption" in report and (tmp_path / "grid.png").is_file()


# Judges


def test_a_judge_knows_the_values_of_its_drawings_and_loads_as_it_was_written(supply, tmp_path):
    trained = unclip_judge.train(supply, tmp_path, minutes=0.03, batch=4)
    values = unclip_judge.values_of(trained)
    assert list(values) == ["label", "vendor", "tone", "background"]
    assert values["label"] == tuple(f"thing {i}" for i in range(THINGS))
    assert values["background"] == tuple(BACKGROUNDS)
    images, _ = unclip_drawings.laid_on_chance(unclip_drawings.Drawings(supply.pixels, supply.rows))
    again = unclip_judge.judge(unclip_judge.load(tmp_path), images)
    for factor, logits in unclip_judge.judge(trained, images).logits.items():
        assert logits.shape == (THINGS, len(values[factor]))
        assert torch.equal(again.logits[factor], logits)


def test_edges_are_named_by_the_nearest_colour_whatever_is_drawn_inside():
    images = unclip_drawings.colours()[:, :, None, None].repeat(1, 1, 64, 64)
    images[:, :, 8:-8, 8:-8] = torch.rand(6, 3, 48, 48)
    images[:, :, 0, :9] = 0
    assert unclip_scores.edge_colours(images) == list(BACKGROUNDS)


def test_a_training_drawing_is_its_own_nearest(rendered, host):
    train = unclip_drawings.load(rendered).of("train")
    images, _ = unclip_drawings.laid_on_chance(train)
    query = unclip_drawings.embed_images(host[0], images)
    (found,) = unclip_scores.nearest(host[0], train, [query])
    torch.testing.assert_close(found, images)


def test_a_grid_lays_sets_below_each_other_whole_blocks_alone():
    red, blue = (torch.zeros(5, 3, 4, 4) for _ in "rb")
    red[:, 0], blue[:, 2] = 1, 1
    for across, blocks in ((2, 2), (16, 1)):
        page = np.asarray(unclip_scores.grid([red, blue], across))
        assert page.shape == (blocks * 18, min(across, 5) * 6, 3)
        assert page[3, 3].tolist() == [255, 0, 0] and page[9, 3].tolist() == [0, 0, 255]


def test_hits_are_counted_among_the_names_and_unknown_ones_are_missed():
    scores = torch.tensor([[9.0, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1]])
    first, five = unclip_scores._ranks(scores, ["a", "f", "?"], list("abcdef"))
    assert first.tolist() == [True, False, False]
    assert five.tolist() == [True, False, False]
    assert unclip_scores._ranks(scores, ["e"] * 3, list("abcdef"))[1].all()


def test_what_the_judges_say_of_real_drawings_is_what_the_card_says(host):
    card = (zoo.HOST.parent / "emoji-unclip" / "README.md").read_text("utf-8")
    stated = re.search(r"\| the real drawings \| ([\d.]+) .*?\| ([\d.]+) .*?\| ([\d.]+) ", card)
    sources = unclip_scores.shipped()
    scorer = unclip_scores.Scorer(*host, zoo.load_judge(), sources)
    found = scorer.score(sources.images, None)
    for key, value in zip(("judge R@1", "judge R@5", "host R@1"), stated.groups(), strict=True):
        assert float(found[key].double().mean()) == pytest.approx(float(value), abs=0.005), key


@pytest.mark.slow
def test_what_is_drawn_is_recognised_and_not_as_another_pair(host):
    pipe = zoo.load_unclip()
    pipe.set_progress_bar_config(disable=True)
    sources = unclip_scores.shipped().first(32)
    scorer = unclip_scores.Scorer(*host, zoo.load_judge(), sources)
    drawn = unclip_scores.draw(pipe, scorer.real, guidance=3.0, steps=8)
    own, other = (scorer.score(drawn, scorer.real, shift) for shift in (0, 16))
    assert float(own["edge colour"].double().mean()) > 0.85
    assert float(own["judge R@1"].double().mean()) > 0.15
    assert float(own["cosine"].mean()) > 0.7
    assert float(other["judge R@1"].double().mean()) < 0.05
    assert float(other["cosine"].mean()) < 0.3
    assert condition(scorer.real).norm(dim=1).allclose(torch.tensor(192**0.5))
