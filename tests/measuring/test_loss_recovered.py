"""The host's own loss, with a reconstruction spliced in: beside losses worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import Dictionary, Host, load_dictionary, zoo
from vlm_edit.dictionaries import Encoder, PairedDictionary, save_saelens
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measuring import loss_recovered

PAIRS = zoo.load_pairs().select(range(12))


def constant(width: int, value: Tensor) -> Dictionary:
    """A dictionary that makes one vector of everything."""
    encoder = Encoder(torch.zeros(width, 1), torch.zeros(1), activation="relu")
    return Dictionary(encoder, torch.zeros(1, width), value)


@pytest.mark.parametrize(
    ("name", "site"),
    [("emoji-clip", "text.1"), ("emoji-clip", "joint"), ("emoji-llava", "language.1")],
)
def test_a_perfect_reconstruction_recovers_all_and_none_nothing(name: str, site: str) -> None:
    host = Host.load(f"zoo:{name}", device="cpu")
    width = host.site(site).width
    whole = loss_recovered(host, Dictionary.identity(width), site, PAIRS, batch_size=5)
    assert whole.reconstructed == pytest.approx(whole.plain, rel=1e-4)
    assert whole.of_mean == pytest.approx(1, abs=1e-3) and whole.mean > whole.plain
    if site == "joint":  # of length 0, by which the host divides
        assert math.isnan(whole.zero) and math.isnan(whole.of_zero)
        return
    assert whole.zero > whole.plain and whole.of_zero == pytest.approx(1, abs=1e-3)
    nothing = loss_recovered(host, constant(width, torch.zeros(width)), site, PAIRS)
    assert nothing.of_zero == pytest.approx(0, abs=1e-6)
    assert nothing.reconstructed == nothing.zero


def test_the_contrastive_loss_is_that_of_the_embeddings_of_each_forward() -> None:
    host = Host.load("zoo:emoji-clip", device="cpu")
    told = loss_recovered(
        host, Dictionary.identity(host.site("joint").width), "joint", PAIRS, batch_size=8
    )
    losses = []
    for numbers in (range(8), range(8, 12)):
        inputs = host.inputs(
            [PAIRS.open(i) for i in numbers], [PAIRS.texts[i] for i in numbers]
        ).values
        with torch.no_grad():
            output = host(**inputs)
        image, text = (F.normalize(x, dim=1) for x in (output.image_embeds, output.text_embeds))
        logits = host.root.logit_scale.exp() * image @ text.T
        own = -logits.log_softmax(1).diagonal() - logits.log_softmax(0).diagonal()
        losses += (own / 2).tolist()
    assert told.kind == "contrastive" and told.n == 12
    assert told.plain == pytest.approx(sum(losses) / 12, rel=1e-4)


def test_the_cross_entropy_is_of_the_texts_own_tokens_one_by_one() -> None:
    host = Host.load("zoo:emoji-llava", device="cpu")
    width = host.site("language.1").width
    told = loss_recovered(host, Dictionary.identity(width), "language.1", PAIRS, batch_size=5)
    losses = []
    for number in range(12):
        inputs = host.inputs([PAIRS.open(number)], [PAIRS.texts[number]])
        with torch.no_grad():
            odds = host(**inputs.values).logits[0].log_softmax(-1)
        ids, caption = inputs.values["input_ids"][0], inputs.caption
        assert caption is not None
        places = caption[0].nonzero().flatten().tolist()
        losses += [-float(odds[place - 1, ids[place]]) for place in places if place]
    assert told.kind == "cross-entropy" and told.n == len(losses)
    assert told.plain == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_mean_is_each_stream_s_own() -> None:
    host = Host.load("zoo:emoji-clip", device="cpu")
    made = host.inputs([PAIRS.open(i) for i in range(12)], list(PAIRS.texts)).values
    with torch.no_grad():
        output = host(**made)
    # At the joint site of this host the mean of a stream makes all its embeddings alike.
    told = loss_recovered(
        host, Dictionary.identity(host.site("joint").width), "joint", PAIRS, batch_size=12
    )
    assert told.mean == pytest.approx(torch.tensor(12.0).log().item(), rel=1e-4)
    assert output.logits_per_image.shape == (12, 12)


def test_the_host_is_itself_again_and_another_width_is_refused() -> None:
    host = Host.load("zoo:emoji-clip", device="cpu")
    made = host.inputs([PAIRS.open(0)], ["a cat"]).values
    with torch.no_grad():
        before = host(**made).logits_per_image
        loss_recovered(host, zoo.load_dictionary("joint"), "joint", PAIRS)
        assert torch.equal(host(**made).logits_per_image, before)
    with pytest.raises(VlmEditError, match="the dictionary is 3 wide"):
        loss_recovered(host, Dictionary.identity(3), "joint", PAIRS)


def test_each_stream_is_reconstructed_by_its_own_half(tmp_path: Path) -> None:
    host = Host.load("zoo:emoji-clip", device="cpu")
    whole = zoo.load_dictionary("joint")
    assert isinstance(whole, Dictionary)
    one = loss_recovered(host, whole, "joint", PAIRS)
    same = loss_recovered(host, PairedDictionary(whole, whole), "joint", PAIRS)
    assert same.reconstructed == pytest.approx(one.reconstructed, rel=1e-4)
    deaf = replace(whole, decoder=torch.zeros_like(whole.decoder), info={})
    other = PairedDictionary(whole, deaf)
    assert loss_recovered(host, other, "joint", PAIRS).reconstructed > one.reconstructed + 0.1
    with pytest.raises(VlmEditError, match="nothing to reconstruct tokens of 'image' with"):
        save_saelens(whole, tmp_path)
        loss_recovered(host, load_dictionary(tmp_path, lazy=True), "joint", PAIRS)
