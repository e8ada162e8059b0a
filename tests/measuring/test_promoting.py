"""What directions promote, by hosts' own weights and answers; and which features are alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import random_dictionary
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_edit import Dictionary, Host, Patch, Steer, measure, zoo
from vlm_edit.dictionaries import PairedDictionary, load_dictionary, save_saelens
from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost
from vlm_edit.measuring import neighbours, promotes
from vlm_edit.measuring.naming.head import OutputHead


@pytest.fixture(scope="module")
def llava() -> Host:
    return Host.of(*zoo.load_llava())


def test_tokens_are_those_of_the_last_norm_and_the_head_by_their_weights(llava: Host) -> None:
    dictionary: Any = zoo.load_dictionary("language.2")
    model: Any = llava.root
    norm, tokenizer = model.model.language_model.norm, llava.processor.tokenizer
    row = dictionary.decoder[11]
    scaled = row * torch.rsqrt(row.square().mean() + norm.variance_epsilon) * norm.weight
    logits = model.lm_head.weight @ scaled
    special = {*tokenizer.all_special_ids, *(llava.special_ids("language.2") or ())}
    first: dict[str, int] = {}
    for i in range(len(tokenizer)):
        text = tokenizer.decode([i]).strip()
        if i not in special and text and text.isprintable() and "\ufffd" not in text:
            first.setdefault(text, i)
    values = logits[list(first.values())].detach()
    values = (values - values.mean()) / values.std()
    order, texts = values.argsort(descending=True).tolist(), list(first)
    moved = promotes(llava, dictionary, "language.2", [3, 11], most=5)[11]
    assert [word for word, _ in moved.up] == [texts[i] for i in order[:5]]
    assert [word for word, _ in moved.down] == [texts[i] for i in order[::-1][:5]]
    assert [v for _, v in moved.up] == pytest.approx(values[order[:5]].tolist(), abs=1e-4)
    assert [v for _, v in moved.down] == pytest.approx(values[order[::-1][:5]].tolist(), abs=1e-4)


def test_a_steered_host_finds_what_is_promoted_likelier_and_what_is_not_less_so(
    llava: Host,
) -> None:
    dictionary, tokenizer = zoo.load_dictionary("language.3"), llava.processor.tokenizer
    values = llava.inputs([zoo.load_pairs().open(0)], ["a cat"]).values
    with torch.no_grad():
        before = llava(**values).logits[0, -1].log_softmax(0)
    for feature in (4, 20, 274, 422):
        moved = promotes(llava, dictionary, "language.3", feature, most=1)[feature]
        ids: dict[str, int] = {}
        for i in range(len(tokenizer)):
            ids.setdefault(tokenizer.decode([i]).strip(), i)
        patch = Patch("language.3", dictionary, Steer([feature], 30.0))
        with torch.no_grad(), patch.attach(llava):
            gains = llava(**values).logits[0, -1].log_softmax(0) - before
        up, down = (float(gains[ids[words[0][0]]]) for words in (moved.up, moved.down))
        assert up > float(gains.median()) > down


def test_what_norm_and_head_give_without_a_direction_promotes_nothing() -> None:
    norm, head = nn.LayerNorm(4), nn.Linear(4, 6)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([5.0, -5.0, 3.0, 1.0]))
        head.bias.copy_(torch.tensor([9.0, -9.0, 0.0, 0.0, 0.0, 0.0]))
    reading = OutputHead(norm, head, torch.tensor([0, 1, 2, 3, 5]), ("a", "b", "c", "d", "f"))
    row = torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    expected = F.layer_norm(row, (4,)) @ head.weight[[0, 1, 2, 3, 5]].mT
    expected = (expected - expected.mean()) / expected.std()
    assert torch.allclose(reading.values(row), expected, atol=1e-3)
    assert torch.allclose(reading.values(row), reading.values(row * 7), atol=1e-3)


def test_labels_are_moved_by_the_cosine_with_their_texts_less_the_mean() -> None:
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    labels = ["cat", "dog", "house", "car"]
    model, processor = zoo.load_host()
    with torch.no_grad():
        inputs = processor(text=[f"a {w}" for w in labels], return_tensors="pt", padding=True)
        output: Any = model.get_text_features(**inputs)
    rows = output if isinstance(output, Tensor) else output.pooler_output
    rows = rows * 192**0.5 / rows.norm(dim=1, keepdim=True)
    cosines = F.cosine_similarity(dictionary.decoder[5][None], rows - rows.mean(0))
    moved = promotes(host, dictionary, "joint", 5, labels, most=2, template="a {}")[5]
    order = cosines.argsort(descending=True).tolist()
    assert [word for word, _ in moved.up] == [labels[i] for i in order[:2]]
    assert [word for word, _ in moved.down] == [labels[i] for i in order[::-1][:2]]
    assert [v for _, v in moved.up] == pytest.approx(cosines[order[:2]].tolist(), abs=1e-4)
    assert [v for _, v in moved.down] == pytest.approx(cosines[order[::-1][:2]].tolist(), abs=1e-4)
    turned = replace(dictionary, decoder=-dictionary.decoder)
    both = PairedDictionary(dictionary, turned)
    none = promotes(host, both, "joint", 5, labels, most=2)[5]
    assert [v for _, v in none.up] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert set(moved.as_json()) == {"up", "down"}


def test_a_site_without_words_and_labels_where_there_are_tokens_are_refused(llava: Host) -> None:
    clip, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    with pytest.raises(CannotKnow, match="pass labels="):
        promotes(clip, dictionary, "joint", 5)
    with pytest.raises(CannotKnow, match=r"CLIPModel has no output head"):
        promotes(clip, Dictionary.identity(160), "text.1", 5)
    with pytest.raises(CannotKnow, match=r"'vision.1' is no layer of the language model"):
        promotes(llava, Dictionary.identity(llava.site("vision.1").width), "vision.1", 5)
    layer = zoo.load_dictionary("language.3")
    with pytest.raises(BadArgument, match="moves tokens"):
        promotes(llava, layer, "language.3", 5, ["cat", "dog"])
    with pytest.raises(BadArgument, match="feature 512 is not in this dictionary"):
        promotes(llava, layer, "language.3", 512)
    with pytest.raises(BadArgument, match="most is 0"):
        promotes(llava, layer, "language.3", 5, most=0)
    with pytest.raises(WrongHost, match="belongs to another site"):
        promotes(llava, Dictionary.identity(7), "language.3", 5)


def by_all_pairs(rows: Tensor, k: int) -> list[list[int]]:
    cosines = F.cosine_similarity(rows[:, None], rows[None], dim=2).fill_diagonal_(-2.0)
    return cosines.argsort(dim=1, descending=True)[:, :k].tolist()


def test_neighbours_are_those_of_all_cosines_however_they_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    dictionary = random_dictionary(6, 50)
    dictionary = replace(dictionary, decoder=rows)
    expected = by_all_pairs(rows, 4)
    for block, among in ((256, 8192), (7, 3)):
        monkeypatch.setattr("vlm_edit.measuring.naming.near._BLOCK", block)
        monkeypatch.setattr("vlm_edit.measuring.naming.near._AMONG", among)
        near = neighbours(dictionary, k=4)
        assert [[n for n, _ in near[i].decoder] for i in range(50)] == expected
        one = float(F.cosine_similarity(rows[3], rows[expected[3][0]], dim=0))
        assert near[3].decoder[0][1] == pytest.approx(one, abs=1e-5)
    assert neighbours(dictionary, [49, 3], k=2)[49].decoder == near[49].decoder[:2]
    assert len(neighbours(dictionary, 3, k=99)[3].decoder) == 49


def test_neighbours_of_a_dictionary_on_disk_are_those_of_the_one_in_memory(tmp_path: Any) -> None:
    dictionary = zoo.load_dictionary("joint")
    save_saelens(dictionary, tmp_path / "sae")
    stored = load_dictionary(tmp_path / "sae", lazy=True)
    here, there = neighbours(dictionary, [7, 300]), neighbours(stored, [7, 300])
    for feature in (7, 300):
        assert [n for n, _ in here[feature].decoder] == [n for n, _ in there[feature].decoder]
    both = neighbours(PairedDictionary(dictionary, dictionary), [7])[7]
    assert [v for _, v in both.decoder] == pytest.approx([v for _, v in here[7].decoder], abs=1e-5)


def test_examples_in_common_are_counted_as_sets() -> None:
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    pairs = zoo.load_pairs().select(range(96))
    measurement = measure(host, pairs, dictionary, progress=False, keep=12)
    top = [
        {
            (stream, number)
            for stream in ("image", "text")
            for number, _ in measurement.examples[stream].of(feature)
        }
        for feature in range(512)
    ]
    near = neighbours(dictionary, [1, 50, 200], 6, measurement=measurement)
    for feature in (1, 50, 200):
        values = {
            other: len(top[feature] & top[other]) / max(1, len(top[feature] | top[other]))
            for other in range(512)
            if other != feature
        }
        best = sorted((v for v in values.values() if v > 0), reverse=True)[:6]
        assert [v for _, v in near[feature].examples] == pytest.approx(best)
        assert all(values[n] == pytest.approx(v) for n, v in near[feature].examples)
    assert neighbours(dictionary, 1)[1].examples == ()
    with pytest.raises(WrongHost, match="of 512 features and the dictionary has 192"):
        neighbours(Dictionary.identity(192), 1, measurement=measurement)
    with pytest.raises(BadArgument, match="k is 0"):
        neighbours(dictionary, 1, 0)
    with pytest.raises(BadArgument, match="feature 512"):
        neighbours(dictionary, [512])
