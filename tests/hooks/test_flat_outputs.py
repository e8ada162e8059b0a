"""Sites of both streams whose module lays the tokens of all rows end to end, [B * S, D].

The oracle is the mask that the host itself scatters image features with, and what the module gives
out with and without a patch, element by element.
"""

import functools

import pytest
import torch
from conftest import NO_TOKENS, random_dictionary
from PIL import Image
from tiny_hosts import WITH_EXPERTS
from torch import Tensor, nn

from vlm_edit import (
    Adapter,
    Clamp,
    Dictionary,
    Host,
    Pairs,
    Patch,
    Steer,
    VlmEditError,
    record,
)
from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Call, Selection, Tokens
from vlm_edit.host import Inputs
from vlm_edit.measuring import Reader

PATHS = {
    "llama4": "language_model.model.layers.{i}.feed_forward",
    "qwen3_vl_moe": "model.language_model.layers.{i}.mlp.experts",
}
NAMES = list(PATHS)
MARK = 4.25


def adapter(name, path=None):
    return Adapter.of({"moe.{i}": (path or PATHS[name], "mixed", 32)}, image_token="image_token_id")


@functools.cache
def host_of(name):
    return WITH_EXPERTS[name].make()


def scattered(host, inputs):
    """[B, S], where the host puts image features."""
    masks, original = [], Tensor.masked_scatter

    def spy(self, mask, source):
        masks.append(mask.expand_as(self)[..., 0])
        return original(self, mask, source)

    with pytest.MonkeyPatch.context() as monkeypatch, torch.no_grad():
        monkeypatch.setattr(Tensor, "masked_scatter", spy)
        host(**inputs)
    return masks[0]


def outputs(host, module, act):
    """What a module gives out at each call."""
    seen = []

    def keep(_module, _args, output):
        seen.append((output if isinstance(output, Tensor) else output[0]).clone())

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            act(host)
    finally:
        handle.remove()
    return seen


def patch(**choice):
    return Patch("moe.0", Dictionary.identity(32), [Clamp([3], MARK)], **choice)


def changed(name, act, strength=1.0, **choice):
    """For each call of the first block, which of its rows [B * S] a patch changed; the report."""
    host, own = host_of(name), adapter(name)
    module = Host.of(host, adapter=own).sites["moe.0"].taps[0].module
    with patch(**choice).attach(Host.of(host, adapter=own), strength=strength) as attached:
        edited = outputs(host, module, act)
    plain = outputs(host, module, act)
    assert plain[0].ndim == 2
    rows = [abs(output[:, 3] - MARK) < 1e-5 for output in edited]
    assert torch.equal(
        (edited[0] != plain[0]).any(-1), rows[0]
    )  # later calls read what came before
    return rows, attached.report().sites[0]


@pytest.mark.parametrize("tokens", ["image", "text+special", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_an_edit_reaches_its_own_stream_and_no_padding(name, tokens):
    inputs = WITH_EXPERTS[name].inputs()
    image = scattered(host_of(name), inputs)
    real = inputs["attention_mask"].bool()
    assert image.any()
    assert not real.all()
    expected = {"image": image & real, "text+special": ~image & real, "all": real}[tokens]
    (rows,), report = changed(name, lambda host: host(**inputs), tokens=tokens)
    assert torch.equal(rows, expected.flatten())
    streams = {"image": int((expected & image).sum()), "text": int((expected & ~image).sum())}
    assert report.streams == NO_TOKENS | streams
    assert report.phases["prompt"] == report.tokens == int(expected.sum())


def generating(inputs, **options):
    quiet = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": [60, 61]}
    return lambda host: host.generate(**inputs, **quiet, **options)


@pytest.mark.parametrize(
    ("choice", "at", "steps"),
    [
        ({"phase": "prompt"}, range(1), None),
        ({"phase": "decode"}, range(1, 4), (0, 2)),
        ({"phase": "decode", "steps": (1, 2)}, range(2, 3), (1, 1)),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_phases_and_steps_are_those_of_the_generation(name, choice, at, steps):
    inputs = WITH_EXPERTS[name].inputs()
    real = inputs["attention_mask"].bool().flatten()
    rows, report = changed(name, generating(inputs), **choice)
    for i, one in enumerate(rows):
        assert torch.equal(one, (real if i == 0 else torch.ones(2, dtype=torch.bool)) & (i in at))
    assert report.steps == steps


@pytest.mark.parametrize("name", NAMES)
def test_positions_strengths_and_masks_are_those_of_rows(name):
    inputs = WITH_EXPERTS[name].inputs()
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    forward = lambda host: host(**inputs)  # noqa: E731
    (rows,), _ = changed(name, forward, positions=(0, -1))
    places = real.cumsum(1) - 1
    assert torch.equal(rows, (real & ((places == 0) | (places == real.sum(1, True) - 1))).flatten())
    (rows,), _ = changed(name, forward, strength=[0.0, 1.0])
    assert torch.equal(rows.view_as(ids), real & torch.tensor([[False], [True]]))
    host, own, mask = host_of(name), adapter(name), ids == 6
    with patch().attach(Host.of(host, adapter=own), mask=mask) as attached, torch.no_grad():
        host(**inputs)
    assert attached.report().edited_tokens == int(mask.sum()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_of_a_batch_is_that_of_its_rows_unpadded(name):
    family, host = WITH_EXPERTS[name], host_of(name)
    rules = random_dictionary(32)
    edit = Patch("moe.0", rules, [Steer([3, 25], 2.0)], tokens="text+special")
    with edit.attach(Host.of(host, adapter=adapter(name))):
        batch = family.answers(host, family.inputs())
        alone = [family.answers(host, family.inputs(rows=(row,)))[0] for row in (0, 1)]
    for one, other in zip(batch, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_holds_rows_of_tokens(name):
    host, inputs = host_of(name), WITH_EXPERTS[name].inputs()
    module = Host.of(host, adapter=adapter(name)).sites["moe.1"].taps[0].module
    (flat,) = outputs(host, module, lambda host: host(**inputs))
    with record(Host.of(host, adapter=adapter(name)), "moe.1") as recording, torch.no_grad():
        host(**inputs)
    capture = recording.last("moe.1", "mixed")
    assert torch.equal(capture.hidden, flat.unflatten(0, inputs["input_ids"].shape))
    assert torch.equal(capture.tokens.mask("image"), inputs["input_ids"] == 60)


@pytest.mark.parametrize("name", NAMES)
def test_a_measurement_reads_each_stream_and_no_padding(name):
    family, host = WITH_EXPERTS[name], host_of(name)
    inputs = family.inputs()
    image, real = scattered(host, inputs), inputs["attention_mask"].bool()
    module = Host.of(host, adapter=adapter(name)).sites["moe.0"].taps[0].module
    (flat,) = outputs(host, module, lambda host: host(**inputs))
    hidden = flat.unflatten(0, image.shape)
    reader = Reader(
        Host.of(
            host,
            None,
            adapter=adapter(name),
            prompt=lambda *_: Inputs(inputs, caption=~image & real),
        ),
        Dictionary.identity(32),
        "moe.0",
        progress=False,
    )
    pairs = Pairs([Image.new("RGB", (8, 8))] * 2, ("a", "b"))
    (batch,) = reader.read(pairs)
    (tokens,) = reader.tokens(pairs)
    for stream, mask in (("image", image & real), ("text", ~image & real)):
        expected = torch.stack([row[keep].mean(0) for row, keep in zip(hidden, mask, strict=True)])
        torch.testing.assert_close(batch.hidden[stream], expected)
        assert torch.equal(tokens[stream], hidden[mask])


# Where the rows are not the call's.


class Sorted(nn.Module):
    """Takes padding out and leaves what remains in an order of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, attention_mask=None, **_):
        hidden = self.embed(input_ids)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.block(hidden[real.bool()].flip(0))


SORTED = Adapter.of({"block": ("block", "mixed", 4)}, image_token=7)
IDS = torch.tensor([[1, 7, 2], [0, 7, 3]])


@pytest.mark.parametrize(
    ("choice", "options"),
    [
        ({"tokens": "image"}, {}),
        ({"tokens": "text+special"}, {}),
        ({"phase": "decode"}, {}),
        ({"phase": "prompt"}, {}),
        ({"positions": (0,)}, {}),
        ({}, {}),  # padding is never edited, and nobody can tell where it is
        ({}, {"strength": [1.0, 0.0]}),
        ({"schedule": [0.5]}, {}),
    ],
)
def test_rows_that_are_not_the_calls_are_refused(choice, options):
    host = Sorted()
    inputs = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "pixel_values": torch.ones(1)}
    edit = Patch("block", Dictionary.identity(4), [Steer([1], 2.0)], **choice)
    with (
        edit.attach(Host.of(host, adapter=SORTED), **options),
        pytest.raises(VlmEditError, match=r"output of \(5, 4\).* shape \(2, 3\).*Pass mask= of"),
    ):
        host(**inputs)


def test_rows_that_are_not_the_calls_are_edited_as_a_mask_of_their_own_says():
    host, mask = Sorted(), torch.tensor([True, False, False, True, True])
    inputs = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "pixel_values": torch.ones(1)}
    plain = host(**inputs)
    edit = Patch("block", Dictionary.identity(4), [Steer([1], 2.0)])
    with edit.attach(Host.of(host, adapter=SORTED), mask=mask) as attached:
        edited = host(**inputs)
    assert torch.equal((edited != plain).any(-1), mask)
    site = attached.report().sites[0]
    assert site.streams["unknown"] == site.phases["unknown"] == site.tokens == 3


@pytest.mark.parametrize("choice", [{"phase": "prompt"}, {"phase": "decode"}, {"steps": (0, 2)}])
def test_a_mask_of_rows_does_not_tell_their_phase_or_step(choice):
    host, mask = Sorted(), torch.tensor([True, False, False, True, True])
    inputs = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "pixel_values": torch.ones(1)}
    edit = Patch("block", Dictionary.identity(4), [Steer([1], 2.0)], **choice)
    with (
        edit.attach(Host.of(host, adapter=SORTED), mask=mask),
        pytest.raises(VlmEditError, match="nobody can tell which row is which token"),
    ):
        host(**inputs)


def test_an_edit_of_all_tokens_needs_no_rows_where_nothing_is_padded():
    host, ids = Sorted(), torch.tensor([[1, 7, 2], [4, 7, 3]])
    edit = Patch("block", Dictionary.identity(4), [Steer([1], 2.0)])
    plain = host(ids[:, :2])
    with edit.attach(Host.of(host, adapter=SORTED)):
        assert torch.equal(host(ids[:, :2]), plain + torch.tensor([0.0, 2.0, 0.0, 0.0]))


class Routed(nn.Module):
    """Gives out what each of two experts got, one after the other."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, **_):
        return self.block(self.embed(input_ids).flatten(0, 1).repeat(2, 1))


@pytest.mark.parametrize(
    ("choice", "options"),
    [({}, {"strength": [1.0, 0.0]}), ({"schedule": [0.5]}, {}), ({"tokens": "text+special"}, {})],
)
def test_what_experts_get_is_not_taken_for_rows(choice, options):
    host = Routed()
    edit = Patch("block", Dictionary.identity(4), [Steer([1], 2.0)], **choice)
    with (
        edit.attach(Host.of(host, adapter=SORTED), **options),
        pytest.raises(VlmEditError, match=r"output of \(12, 4\).* shape \(2, 3\)"),
    ):
        host(IDS)


class Pooled(nn.Module):
    """Gives out one embedding of image and text together."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(8, 4), nn.Identity()

    def forward(self, input_ids, pixel_values=None):
        return self.block(self.embed(input_ids).mean(1) + pixel_values.mean())


def test_a_pooled_output_of_both_streams_is_measured_for_neither():
    inputs = {"input_ids": torch.tensor([[1, 7, 2], [1, 7, 3]]), "pixel_values": torch.ones(1)}
    reader = Reader(
        Host.of(
            Pooled().eval(),
            None,
            adapter=SORTED,
            prompt=lambda *_: inputs,
        ),
        Dictionary.identity(4),
        "block",
        progress=False,
    )
    pairs = Pairs([Image.new("RGB", (8, 8))] * 2, ("a", "b"))
    for read in (reader.read, reader.tokens):
        with pytest.raises(VlmEditError, match="nobody can tell which row is which token"):
            list(read(pairs))


def test_a_pooled_output_of_both_streams_is_of_neither():
    call = Call((2, 3), Mixed.of(image=torch.ones(2, 3, dtype=torch.bool)))
    tokens = Tokens.of("mixed", call, torch.ones(2, 4))
    assert tokens.modality is None
    assert Selection().choose(tokens) is True
    with pytest.raises(VlmEditError, match="nobody can tell which row is which token"):
        Selection("image").choose(tokens)


def test_a_pooled_output_of_both_streams_is_the_prompts():
    host, edit = Pooled(), Patch("block", Dictionary.identity(4), [Steer([1], 2.0)])
    with edit.attach(Host.of(host, adapter=SORTED)) as attached, torch.no_grad():
        host(torch.tensor([[1, 7, 2], [1, 7, 3]]), torch.ones(1))
    site = attached.report().sites[0]
    assert (site.tokens, site.steps) == (2, None)
    assert site.phases == {"prompt": 2, "decode": 0, "unknown": 0}


def test_one_row_that_holds_all_is_seen_as_the_calls_rows():
    call = Call((2, 3), start=0)
    hidden = torch.arange(24.0).view(1, 6, 4)
    assert torch.equal(call.in_rows(hidden), hidden.view(2, 3, 4))
    assert call.in_rows(hidden.view(3, 2, 4)) is None
