"""Hosts that nobody declares and no id tells of: tokens are known by where they came from.

The oracle is the host, which notes where it puts image features as it merges them.
"""

from dataclasses import replace

import pytest
import torch
from test_merged_sequences import MODES, PLACE, Merging, marked, prompts
from tiny_hosts import VISION, library
from torch import nn
from transformers import GitConfig, GitForCausalLM

from vlm_edit import Clamp, Dictionary, Host, Patch, VlmEditError, record
from vlm_edit.hooks import CallTracker
from vlm_edit.host import find_adapter


class Original(Merging):
    """As the first LLaVA code has it: a CLIP tower, a projector, and -200 in the ids."""

    def __init__(self, newline=False):
        super().__init__()
        config = library("CLIPVisionConfig")(**VISION)
        self.model.vision_tower = library("CLIPVisionModel")(config)
        self.model.mm_projector = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32))
        del self.model.eye
        self.newline = nn.Parameter(torch.randn(32)) if newline else None

    def see(self, images):
        states = self.model.vision_tower(images, output_hidden_states=True).hidden_states[-2]
        features = self.model.mm_projector(states[:, 1:])
        if self.newline is not None:
            ends = self.newline.expand(len(features), 1, -1)
            features = torch.cat([features, ends], 1)
        return features


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    return Original().eval()


def test_its_places_are_found_without_a_declaration(original):
    host = Host.of(original)
    assert list(host.sites) == [
        *("vision.0", "vision.1", "vision.2", "projector"),
        *("language.0", "language.1", "language.2"),
    ]
    assert host.sites["projector"].taps[0].path == "model.mm_projector"
    assert host.sites["language.0"].streams == ("image", "text")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
def test_image_tokens_are_those_that_the_projector_gave(original, mode, tokens):
    rows, options = MODES[mode]
    inputs = prompts(rows)
    given = {"max_new_tokens": 3, "do_sample": False} | options
    seen, report = marked(
        original,
        lambda: original.generate(**inputs, **given),
        find_adapter(original),
        {"tokens": tokens},
    )
    image, real = original.image, original.real
    beams = len(seen[0]) // rows
    expected = {"image": image, "text+special": ~image & real, "all": real}[tokens]
    expected = expected.repeat_interleave(beams, 0)
    length = expected.shape[1]
    assert torch.equal(seen[0][:, :length], expected)
    for later in seen[1:]:
        answer = later if later.shape[1] < length else later[:, length:]
        assert bool(answer.all()) == (tokens != "image")
        assert bool(answer.any()) == (tokens != "image")
    assert report.streams["unknown"] == 0


def test_a_forward_of_its_own_knows_them_too(original):
    inputs = prompts(2)
    call = {"input_ids": inputs["inputs"], **{k: v for k, v in inputs.items() if k != "inputs"}}
    seen, _ = marked(
        original, lambda: original(**call), find_adapter(original), {"tokens": "image"}
    )
    assert torch.equal(seen[0], original.image)
    assert original.image.sum().item() == 12


def test_what_is_neither_is_refused_with_its_count():
    torch.manual_seed(0)
    host = Original(newline=True).eval()
    own, inputs = find_adapter(host), prompts(2)
    told = r"tokens='image': 3 tokens of this call are neither what the host's embedding nor"
    with pytest.raises(VlmEditError, match=told):
        marked(host, lambda: host.generate(**inputs, max_new_tokens=1), own, {"tokens": "image"})
    for choice, said in (
        ({"tokens": "all"}, {}),
        ({"tokens": "image"}, {"image_mask": host.image}),
    ):
        seen, _ = marked(
            host, lambda: host.generate(**inputs, max_new_tokens=1), own, choice, **said
        )
        expected = host.real if choice["tokens"] == "all" else host.image
        assert torch.equal(seen[0], expected)


def test_what_could_be_either_is_refused():
    torch.manual_seed(0)
    host = Original().eval()
    with torch.no_grad():
        host.model.mm_projector[2].weight.zero_()
        host.model.mm_projector[2].bias.copy_(host.model.embed_tokens.weight[7])
    with pytest.raises(VlmEditError, match=r"neither what .* projector gave, or both"):
        marked(
            host,
            lambda: host.generate(**prompts(1), max_new_tokens=1),
            find_adapter(host),
            {"tokens": "image"},
        )


def test_ids_that_are_no_row_of_the_table_leave_it_to_where_tokens_came_from(original):
    own = replace(find_adapter(original), image_token=PLACE, visual_inputs=("images",))
    seen, _ = marked(
        original,
        lambda: original.generate(**prompts(2), max_new_tokens=2),
        own,
        {"tokens": "image"},
    )
    assert torch.equal(seen[0], original.image)


def test_what_was_given_is_forgotten_with_its_call(original):
    own = find_adapter(original)
    tracker = CallTracker.acquire(original, own)
    try:
        ids = torch.tensor([[1, 5, 6]])
        with torch.no_grad():
            for _ in range(5):
                original(input_ids=ids)
                assert not tracker._provenance._given
                original.model(input_ids=ids)
                assert not tracker._provenance._given
                original.generate(**prompts(1), max_new_tokens=2)
                assert not tracker._provenance._given
            for _ in range(5000):
                original.model.embed_tokens(ids)
        assert len(tracker._provenance._given) < 5000
    finally:
        tracker.release(original)


def test_nothing_stays_on_the_host_nor_is_held(original):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in original.modules())
    patch = Patch("language.0", Dictionary.identity(32), Clamp([3], 1.0), tokens="image")
    for _ in range(2):
        with patch.attach(original), torch.no_grad():
            original.generate(**prompts(1), max_new_tokens=2)
        after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in original.modules())
        assert after == hooks


@pytest.fixture(scope="module")
def git():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 64, "max_position_embeddings": 64}
    config = GitConfig(vision_config=dict(VISION), **sizes, bos_token_id=1, eos_token_id=2)
    return GitForCausalLM(config).eval()


@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
@torch.no_grad()
def test_images_that_stand_before_the_text_are_told_from_it_and_from_padding(git, tokens):
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    inputs |= {"pixel_values": torch.randn(2, 3, 16, 16)}
    patch = Patch("language.1", Dictionary.identity(32), Clamp([3], 4.25), tokens=tokens)
    with patch.attach(git), record(git, "language.1") as recording:
        git(**inputs)
    found = recording.captures[0].tokens
    hidden = recording.captures[0].hidden
    image = torch.arange(hidden.shape[1]).expand(2, -1) < hidden.shape[1] - 4
    real = torch.cat([torch.ones(2, hidden.shape[1] - 4).bool(), ids != 0], 1)
    assert torch.equal(found.mask("image"), image)
    assert torch.equal(found.real, real)
    expected = {"image": image, "text+special": ~image & real, "all": real}[tokens]
    assert torch.equal((hidden[..., 3] - 4.25).abs() < 1e-5, expected)
