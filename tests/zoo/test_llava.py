"""The bundled LLaVA, its questions, its dictionary and its trainer."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from recipes import speaking
from recipes.augment import Strength
from recipes.dialogues import Dialogues, every_text, pack, train_speaker, visible
from vlm_edit import Ablate, Host, Patch, find_sites, measure, zoo
from vlm_edit.zoo.questions import QUESTIONS, answers, ask

SITE = "language.0"


@pytest.fixture(scope="module")
def llava():
    return zoo.load_llava()


@pytest.fixture(scope="module")
def pairs():
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(3))
    return zoo.load_pairs().select(order[:96].tolist())


def test_it_loads_like_any_other_llava(llava):
    model, processor = llava
    assert isinstance(model, LlavaForConditionalGeneration) and not model.training
    assert isinstance(processor, LlavaProcessor)
    assert isinstance(AutoProcessor.from_pretrained(zoo.LLAVA), LlavaProcessor)
    assert next(model.parameters()).dtype == torch.float32


def test_the_weights_are_half_precision_and_below_ten_megabytes():
    file = zoo.LLAVA / "model.safetensors"
    assert file.stat().st_size < 10e6
    with safe_open(file, "pt") as tensors:
        kinds = {str(tensors.get_slice(k).get_dtype()) for k in tensors.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_its_vision_tower_is_that_of_emoji_clip_bit_for_bit(llava):
    tower = zoo.load_host()[0].vision_model.state_dict()
    ours = llava[0].model.vision_tower.state_dict()
    assert ours.keys() == tower.keys()
    assert all(torch.equal(ours[name], value) for name, value in tower.items())


def test_the_processor_makes_an_image_token_of_every_feature_of_the_tower(llava, pairs):
    model, processor = llava
    inputs = processor(
        images=[pairs.open(i) for i in range(2)],
        text=["<image>\nwhat is it?", "<image>\nein Emoji zeigt Tomate"],
        padding=True,
        return_tensors="pt",
    )
    image = inputs["input_ids"] == model.config.image_token_id
    assert image.sum(1).tolist() == [37, 37]
    assert inputs["input_ids"][0, 0] == processor.tokenizer.pad_token_id, "pads on the left"
    assert inputs["pixel_values"].shape == (2, 3, 48, 48)
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert [len(f) for f in features] == [37, 37]


def test_captions_survive_its_tokenizer_with_their_case(llava):
    tokenizer = llava[1].tokenizer
    for text in zoo.load_pairs().texts[:200]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_questions_have_an_answer_for_every_pair():
    columns = zoo.load_pairs().columns
    for name, few in (("background", 6), ("who", 4)):
        assert len(set(answers(name, columns))) == few
    assert set(answers("what", columns)) <= set(zoo.load_labels())


def shares(model, processor, pairs):
    images = [pairs.open(i) for i in range(len(pairs))]
    found = {}
    for name, question in QUESTIONS.items():
        said, truth = ask(model, processor, images, question), answers(name, pairs.columns)
        found[name] = sum(a == b for a, b in zip(said, truth, strict=True)) / len(truth)
    return found


def test_it_answers_about_drawings_it_has_not_seen(llava, pairs):
    found = shares(*llava, pairs)
    assert found["what"] > 0.35 and found["background"] > 0.85 and found["who"] > 0.75


def test_it_answers_from_the_image_and_not_from_habit(llava, pairs):
    model, processor = llava
    blank = [pairs.open(0).resize((64, 64)).point(lambda _: 128)] * 4
    assert len(set(ask(model, processor, blank, QUESTIONS["what"]))) == 1
    seen = ask(model, processor, [pairs.open(i) for i in range(48)], QUESTIONS["what"])
    assert len(set(seen)) > 30


def test_an_empty_question_gets_a_caption(llava, pairs):
    said = ask(*llava, [pairs.open(i) for i in range(16)], "")
    assert all(said) and len(set(said)) > 8


def test_a_batch_answers_like_single_images(llava, pairs):
    images = [pairs.open(i) for i in range(6)]
    together = ask(*llava, images, QUESTIONS["what"])
    assert together == ask(*llava, images, QUESTIONS["what"], batch_size=1)


def test_its_accuracy_is_what_the_card_says(llava):
    card = (zoo.LLAVA / "README.md").read_text("utf-8")
    row = re.search(r"\| the shipped pairs \| 1024 \| ([\d.]+) \[([\d.]+), ([\d.]+)\]", card)
    shipped = zoo.load_pairs().select(range(0, 1024, 4))
    images = [shipped.open(i) for i in range(len(shipped))]
    said, truth = ask(*llava, images, QUESTIONS["what"]), answers("what", shipped.columns)
    found = sum(a == b for a, b in zip(said, truth, strict=True)) / len(truth)
    assert found == pytest.approx(float(row[1]), abs=0.1)


def test_its_sites_are_live_and_its_dictionary_fits_one(llava, pairs):
    model, processor = llava
    sites, dictionary = find_sites(model), zoo.load_dictionary(SITE)
    assert sites[SITE].dead is None and sites[SITE].width == dictionary.width
    assert dictionary.info["model_name"] == "emoji-llava"
    found = measure(Host.of(model, processor), pairs, dictionary, site=SITE, progress=False)
    sizes = {name: len(members) for name, members in found.dominance.classes("fixed").items()}
    assert sizes["vision"] > 20 and sizes["language"] > 20
    assert found.truncated == 0


def test_the_dictionary_explains_what_its_card_says(llava):
    from recipes.language import activations, shipped_inputs

    card = (zoo.DICTIONARIES / "README.md").read_text("utf-8")
    model, processor = llava
    dictionary = zoo.load_dictionary(SITE)
    some = [next(shipped_inputs(processor))]
    for stream, data in activations(model, [SITE], iter(some))[SITE].items():
        stated = re.search(rf"\| `{SITE}` \| {stream} \| ([\d.]+) \|", card)
        explained = dictionary.explained_variance(data, stream)
        assert explained == pytest.approx(float(stated[1]), abs=0.03)


def test_the_first_layer_attends_to_nothing_so_that_an_edit_behind_it_reaches_every_answer(
    llava, pairs
):
    model, processor = llava
    silent = model.model.language_model.layers[0].self_attn
    assert all(not p.any() for p in silent.parameters())
    dictionary = zoo.load_dictionary(SITE)
    every = Patch(SITE, dictionary, Ablate(range(dictionary.n_features)), tokens="image")
    with every.attach(model):
        found = shares(model, processor, pairs)
    assert found["what"] < 0.1 and found["background"] < 0.5


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


@pytest.fixture(scope="module")
def speaker():
    return train_speaker(every_text(["thing 1", "thing 2"], ["en 1", "de 2", "es 3"]), 400)


TINY = speaking.Recipe(
    steps=4, checkpoint=2, batch=2, width=32, layers=2, heads=2, warm_up=1, strengthen=2
)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9, for its Muon")
def test_a_run_that_is_killed_and_resumed_ends_bit_equal(rendered, speaker, tmp_path):
    host = zoo.load_host()[0]

    def trainer():
        return speaking.Trainer(TINY, rendered, host, speaker, 0, 1)

    whole = trainer()
    whole.run(tmp_path / "whole.safetensors")
    killed = trainer()
    save, killed.save = killed.save, lambda file: (save(file), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        killed.run(tmp_path / "killed.safetensors")
    resumed = trainer()
    resumed.run(tmp_path / "killed.safetensors")
    before = speaking.build(host, speaker, TINY).state_dict()
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name
        if name.startswith(speaking.TOWER) or "layers.0.self_attn" in name:
            assert torch.equal(value, before[name]), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9, for its Muon")
def test_a_checkpoint_of_another_recipe_is_refused(rendered, speaker, tmp_path):
    host = zoo.load_host()[0]
    speaking.Trainer(TINY, rendered, host, speaker, 0, 1).save(tmp_path / "c.safetensors")
    other = speaking.Trainer(replace(TINY, smoothing=0.0), rendered, host, speaker, 0, 1)
    with pytest.raises(ValueError, match="another recipe"):
        other.load(tmp_path / "c.safetensors")


def test_packed_texts_are_read_as_if_each_stood_alone_behind_the_image(rendered, speaker):
    batch = Dialogues(rendered, speaker, Strength(), 0).batch(2)
    model = speaking.build(zoo.load_host()[0], speaker, TINY).eval()
    model.set_attn_implementation("eager")
    image = model.model.multi_modal_projector(speaking.look(model, batch.pixels))
    packed = speaking.read_packed(model, batch, image)
    for row in range(2):
        for part in (1, 2, 3):
            own = batch.part[row] == part
            prompt = [speaker.bos_token_id, *[model.config.image_token_id] * 37]
            ids = torch.tensor([[*prompt, *batch.ids[row, own].tolist()]])
            alone = model.model(input_ids=ids, pixel_values=batch.pixels[row : row + 1])
            expected = alone.last_hidden_state[0, 38:]
            torch.testing.assert_close(packed[row, own], expected, atol=1e-4, rtol=1e-4)


def test_targets_are_the_answers_and_nothing_else():
    ids, positions, part, targets, weights = pack([[([7, 8], [9, 2], 1.0), ([7], [5, 2], 0.5)]], 1)
    assert ids.tolist() == [[1, 7, 8, 9, 2, 7, 5, 2]]
    assert targets.tolist() == [[-100, -100, 9, 2, -100, 5, 2, -100]]
    assert positions.tolist() == [[0, 1, 2, 3, 4, 1, 2, 3]]
    assert part.tolist() == [[0, 1, 1, 1, 1, 2, 2, 2]]
    assert weights.tolist() == [[0, 0, 1, 1, 0, 0.5, 0.5, 0]]


def test_a_text_sees_the_image_and_itself_but_no_other_text():
    seen = visible(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0].int().tolist()
    assert seen[3] == [1, 1, 1, 1, 0, 0]
    assert seen[4] == [1, 1, 0, 0, 1, 0]
