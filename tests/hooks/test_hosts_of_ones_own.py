"""Hosts whose ``generate`` goes a way of its own."""

import pytest
import torch
from conftest import NO_TOKENS
from torch import nn

from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError

IMAGE, MARK = 7, 4.25
OWN = Adapter.of({"block": ("block", "mixed", 4)}, image_token=IMAGE)


class Held:
    """As long as what was read."""

    def __init__(self):
        self.length = 0

    def get_seq_length(self):
        return self.length


class Answering(nn.Module):
    """Answers with two image tokens, of which one comes with an image."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, pixel_values=None, cache=None):
        hidden = self.block(self.embed(input_ids) + (0 if pixel_values is None else pixel_values))
        cache.length += input_ids.shape[1]
        return hidden

    def generate(self, input_ids, pixel_values=None):
        cache, step = Held(), torch.full((len(input_ids), 1), IMAGE)
        prompt = self(input_ids, pixel_values, cache)
        return [prompt, self(step, None, cache), self(step, pixel_values, cache)]


@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
@torch.no_grad()
def test_a_step_that_comes_with_an_image_has_image_tokens_and_one_without_has_none(tokens):
    host, ids = Answering(), torch.tensor([[1, IMAGE, 2], [1, 3, IMAGE]])
    patch = Patch("block", Dictionary.identity(4), Clamp([3], MARK), tokens=tokens)
    with patch.attach(Host.of(host, adapter=OWN)) as attached:
        outputs = host.generate(ids, pixel_values=torch.ones(1))
    site, both = attached.report().sites[0], torch.ones(2, 1, dtype=torch.bool)
    image = [ids == IMAGE, ~both, both]
    chosen = {
        "image": image,
        "text+special": [~mask for mask in image],
        "all": [m | True for m in image],
    }
    for output, expected in zip(outputs, chosen[tokens], strict=True):
        assert torch.equal(abs(output[..., 3] - MARK) < 1e-5, expected)
    assert site.streams == NO_TOKENS | {
        "image": 0 if tokens == "text+special" else 4,
        "text": 0 if tokens == "image" else 6,
    }
    assert site.phases["decode"] == (4 if tokens == "all" else 2)
    assert tokens == "text+special" or site.steps == ((1, 1) if tokens == "image" else (0, 1))


class InPieces(Answering):
    """Reads embeddings two at a time, as a prompt too long for one call, then answers once."""

    def forward(self, inputs_embeds=None, input_ids=None, cache=None):
        embeds = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        cache.length += embeds.shape[1]
        return self.block(embeds)

    def generate(self, inputs_embeds):
        cache = Held()
        pieces = [self(piece, cache=cache) for piece in inputs_embeds.split(2, 1)]
        answers = [self(input_ids=torch.full((2, 1), 3), cache=cache) for _ in range(2)]
        return torch.cat([*pieces, *answers], 1)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"phase": "prompt"}, [1, 1, 1, 1, 1, 0, 0]),
        ({"phase": "decode"}, [0, 0, 0, 0, 0, 1, 1]),
        ({"phase": "decode", "steps": (1, 2)}, [0, 0, 0, 0, 0, 0, 1]),
        ({"positions": (0, -1)}, [1, 0, 0, 0, 1, 0, 0]),
    ],
)
@torch.no_grad()
def test_a_prompt_of_embeddings_that_is_read_in_pieces_is_one_prompt(choice, expected):
    patch = Patch("block", Dictionary.identity(4), Clamp([3], MARK), **choice)
    host = InPieces()
    with patch.attach(Host.of(host, adapter=OWN)):
        output = host.generate(inputs_embeds=torch.randn(2, 5, 4))
    assert (abs(output[..., 3] - MARK) < 1e-5).tolist() == [[bool(e) for e in expected]] * 2


class Seeing(nn.Module):
    """Puts places for patches into its embeddings, and looks at the image when it is called."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.eye = nn.Embedding(8, 4), nn.Identity(), nn.Identity()

    def forward(self, inputs_embeds, attention_mask=None, images=None):  # noqa: ARG002
        seen = self.eye(images)
        return self.block(torch.cat([seen, inputs_embeds[:, seen.shape[1] :]], 1))

    def generate(self, input_ids, attention_mask=None, images=None):
        places = torch.zeros(len(input_ids), images.shape[1], 4)
        embeds = torch.cat([places, self.embed(input_ids)], 1)
        return self(inputs_embeds=embeds, attention_mask=attention_mask, images=images)


@torch.no_grad()
def test_padding_that_nobody_can_find_in_the_sequence_is_not_in_the_images():
    sites = {"block": ("block", "mixed", 4), "eye": ("eye", "image", 4)}
    own = Adapter.of(sites, image_token=IMAGE, visual_inputs=("images",), grid="sizes")
    ids, images = torch.tensor([[1, 2, 3], [0, 1, 2]]), torch.randn(2, 2, 4)
    given = {"input_ids": ids, "attention_mask": (ids != 0).long(), "images": images}
    host = Seeing()
    with Patch("eye", Dictionary.identity(4), Clamp([3], MARK)).attach(Host.of(host, adapter=own)):
        output = host.generate(**given)
    assert (abs(output[..., 3] - MARK) < 1e-5).tolist() == [[True] * 2 + [False] * 3] * 2
    edit = Patch("block", Dictionary.identity(4), Clamp([3], MARK))
    with (
        edit.attach(Host.of(host, adapter=own)),
        pytest.raises(VlmEditError, match="5 tokens of 3 ids, some of which are padding"),
    ):
        host.generate(**given)


class Speaking(nn.Module):
    """What a host speaks with, of embeddings alone."""

    def __init__(self):
        super().__init__()
        self.block = nn.Identity()

    def forward(self, inputs_embeds):
        return self.block(inputs_embeds)


class Growing(nn.Module):
    """Calls what it speaks with itself, on all that was said so far, without a cache."""

    def __init__(self):
        super().__init__()
        self.embed, self.language = nn.Embedding(8, 4), Speaking()

    def forward(self, input_ids, pixel_values=None):
        return self.language(inputs_embeds=self.embed(input_ids) + pixel_values)

    def generate(self, input_ids, pixel_values=None):
        embeds, outputs = self.embed(input_ids) + pixel_values, []
        for _ in range(3):
            outputs.append(self.language(inputs_embeds=embeds))
            embeds = torch.cat([embeds, self.embed(torch.full((len(embeds), 1), 5))], 1)
        return outputs


@pytest.mark.parametrize("tokens", ["image", "text+special"])
@torch.no_grad()
def test_what_grows_behind_the_prompt_without_a_cache_is_text(tokens):
    own = Adapter.of(
        {"block": ("language.block", "mixed", 4)}, image_token=IMAGE, calls=("language",)
    )
    host, ids = Growing(), torch.tensor([[1, IMAGE, 2], [1, 3, IMAGE]])
    patch = Patch("block", Dictionary.identity(4), Clamp([3], MARK), tokens=tokens)
    with patch.attach(Host.of(host, adapter=own)):
        outputs = host.generate(ids, pixel_values=torch.ones(1))
    for grown, output in enumerate(outputs):
        image = torch.cat([ids == IMAGE, torch.zeros(2, grown, dtype=torch.bool)], 1)
        expected = image if tokens == "image" else ~image
        assert torch.equal(abs(output[..., 3] - MARK) < 1e-5, expected)


class Continuing(nn.Module):
    """Is given the new part of a conversation, and calls what it speaks with itself."""

    def __init__(self):
        super().__init__()
        self.embed, self.language = nn.Embedding(8, 4), Remembering()

    def forward(self, input_ids, pixel_values=None):
        return self.language(self.embed(input_ids) + pixel_values)

    def generate(self, input_ids, attention_mask=None, pixel_values=None, cache=None):  # noqa: ARG002
        return self.language(self.embed(input_ids) + pixel_values, cache)


class Remembering(Speaking):
    def forward(self, inputs_embeds, cache=None):
        cache.length += inputs_embeds.shape[1]
        return self.block(inputs_embeds)


@pytest.mark.parametrize("tokens", ["image", "text+special"])
@torch.no_grad()
def test_images_of_the_new_part_of_a_conversation_stand_where_it_begins(tokens):
    own = Adapter.of(
        {"block": ("language.block", "mixed", 4)}, image_token=IMAGE, calls=("language",)
    )
    host, ids, cache = Continuing(), torch.tensor([[IMAGE, 2, IMAGE], [3, IMAGE, 2]]), Held()
    cache.length = 4
    patch = Patch("block", Dictionary.identity(4), Clamp([3], MARK), tokens=tokens)
    with patch.attach(Host.of(host, adapter=own)):
        output = host.generate(
            ids,
            attention_mask=torch.ones(2, 7, dtype=torch.long),
            pixel_values=torch.ones(1),
            cache=cache,
        )
    image = ids == IMAGE
    assert torch.equal(abs(output[..., 3] - MARK) < 1e-5, image if tokens == "image" else ~image)


class Pruning(nn.Module):
    """Goes on without the first tokens, as hosts do that drop image tokens on their way."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, pixel_values=None):
        return self.block(self.embed(input_ids)[:, 1:] + pixel_values)


@pytest.mark.parametrize(
    "choice",
    [{"tokens": "image"}, {"tokens": "text+special"}, {"positions": (-1,)}, {"positions": (0,)}],
)
def test_of_tokens_that_were_dropped_on_the_way_nobody_guesses_which_are_left(choice):
    host, ids = Pruning(), torch.tensor([[1, IMAGE, 2], [1, 3, IMAGE]])
    patch = Patch("block", Dictionary.identity(4), Clamp([3], MARK), **choice)
    with (
        patch.attach(Host.of(host, adapter=OWN)),
        pytest.raises(
            VlmEditError, match=r"shape \((2|1), 3\) but this site's output is \(2, 2, 4\)"
        ),
    ):
        host(ids, pixel_values=torch.ones(1))


class Direct(nn.Module):
    """Calls a part as a whole, or straight what is in it."""

    def __init__(self):
        super().__init__()
        self.embed, self.language = nn.Embedding(8, 4), Speaking()

    def forward(self, input_ids, pixel_values=None, straight=False):
        embeds = self.embed(input_ids) + pixel_values
        return (self.language.block if straight else self.language)(embeds)


@torch.no_grad()
def test_of_a_call_that_was_interrupted_within_a_part_nothing_is_left():
    def stop(*_):
        raise KeyboardInterrupt

    own = Adapter.of(
        {"block": ("language.block", "mixed", 4)}, image_token=IMAGE, calls=("language",)
    )
    host, patch = Direct(), Patch("block", Dictionary.identity(4), Clamp([3], MARK), "image")
    before, ids = torch.tensor([[IMAGE, IMAGE, 2]]), torch.tensor([[1, 2, IMAGE]])
    with patch.attach(Host.of(host, adapter=own)):
        handle = host.language.block.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            host(before, pixel_values=torch.ones(1))
        handle.remove()
        output = host(ids, pixel_values=torch.ones(1), straight=True)
    assert torch.equal(abs(output[..., 3] - MARK) < 1e-5, ids == IMAGE)
