"""Hosts that put image and text into one sequence by position: which tokens are whose, and edits.

The oracles ask the host alone: which positions move when the picture is another, which when the
words are others, and which positions no other ever looks at, being padding.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from conftest import NO_TOKENS, random_dictionary
from hosts_page import describe, expect_section
from lined_up_hosts import BEGIN, BRIDGETOWER, END, HOSTS, WORDS, LinedUp
from torch import Tensor, nn

from vlm_edit import Dictionary, Host, Patch, Scale, Steer, VlmEditError
from vlm_edit.hooks import Tokens, attach
from vlm_edit.hooks.special import Special
from vlm_edit.host import Adapter, Layout, find_adapter
from vlm_edit.testing import check_adapter

OTHER_WORDS = ((8, 10, 11, 12, 13), (8, 14, 15))
SAID = ((5, 6, 7), (9,))  # WORDS without what begins and ends them
ONE = ["vilt", "layoutlmv3", "visual_bert", "flava", "instructblip", "blip2_matching"]


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Any]) -> Any:
    torch.manual_seed(0)  # ViLT shuffles the patches of an image
    return model(**inputs)


def layer(host: LinedUp, model: nn.Module, index: int = 0) -> nn.Module:
    return model.get_submodule(f"{host.path}.{index}")


def state(host: LinedUp, model: nn.Module, inputs: dict[str, Any], behind: bool) -> Tensor:
    """What enters or leaves the first layer that image and text share."""
    seen: list[Tensor] = []

    def look(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        leaving = output[0] if isinstance(output, tuple) else output
        seen.append((leaving if behind else entering).clone())

    handle = layer(host, model).register_forward_hook(look, with_kwargs=True)
    run(model, inputs)
    handle.remove()
    return seen[-1]


def told(host: LinedUp, model: nn.Module, inputs: dict[str, Any], site: int = 0) -> Tokens:
    """What is known of the tokens at a site."""
    kept: list[Tokens] = []

    def keep(hidden: Tensor, tokens: Tokens) -> Tensor:
        kept.append(tokens)
        return hidden

    ours = Host.of(model)
    handle = attach(ours, ours.sites[f"{host.site}.{site}"], keep)
    run(model, inputs)
    handle.remove()
    return kept[-1]


def looked_at(host: LinedUp, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Which positions of each row another position looks at, [B, S]."""
    plain = state(host, model, inputs, behind=True)
    rows, length, _ = plain.shape
    seen = torch.zeros(rows, length, dtype=torch.bool)
    for place in range(length):

        def push(_: nn.Module, args: Any, kwargs: Any, place: int = place) -> Any:
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            hidden[:, place] += torch.linspace(-3, 3, hidden.shape[-1]) ** 2
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        handle = layer(host, model).register_forward_pre_hook(push, with_kwargs=True)
        moved = (state(host, model, inputs, behind=True) != plain).any(-1)
        handle.remove()
        moved[:, place] = False
        seen[:, place] = moved.any(1)
    return seen


@pytest.mark.parametrize("name", HOSTS)
def test_image_tokens_are_those_that_move_with_the_picture(name: str) -> None:
    host = HOSTS[name]
    model, inputs = host.make(), host.inputs()
    tokens = told(host, model, inputs)
    states = [
        state(host, model, host.inputs(pictures), behind=host.reads)
        for pictures in ((0, 1), (7, 8))
    ]
    moved = (states[0] != states[1]).any(-1)
    assert tokens.witness == "position"
    ours, real = tokens.mask("image"), tokens.real
    assert ours is not None and real is not None
    still = torch.zeros_like(moved)
    if name.startswith(("vilt", "layoutlm", "flava")):  # the image's own cls token
        still[:, next(iter(host.image(len(WORDS[0]))))] = True
    if not name.startswith("flava"):  # whose tower mixes it with the patches
        assert torch.equal(moved & real, ours & real & ~still)
    else:
        assert torch.equal(moved & real, ours & real)
    assert ours.nonzero()[:, 1].unique().tolist() == list(host.image(len(WORDS[0])))


@pytest.mark.parametrize("name", HOSTS)
def test_text_tokens_are_those_that_move_with_the_words(name: str) -> None:
    host = HOSTS[name]
    model, inputs = host.make(), host.inputs()
    tokens = told(host, model, inputs)
    states = [state(host, model, host.inputs(words=w), behind=False) for w in (WORDS, OTHER_WORDS)]
    moved = (states[0] != states[1]).any(-1)
    text, real = tokens.select("text+special"), tokens.real
    assert text is not None and real is not None
    expected = moved & real
    expected[:, list(host.neither)] = True
    assert torch.equal(text, expected)
    image = tokens.select("image")
    assert torch.equal(text | image, real) and not (text & image).any()  # type: ignore[operator]


@pytest.mark.parametrize("name", HOSTS)
def test_words_are_without_what_begins_and_ends_them_and_the_hosts_own_token(name: str) -> None:
    host = HOSTS[name]
    inputs = host.inputs()
    words = told(host, host.make(), inputs).select("text", Special((BEGIN, END)))
    assert words is not None
    length = len(WORDS[0])
    first = max(host.image(length)) + 1 if 0 in host.image(length) or host.neither else 0
    frames = len(words) // len(WORDS)
    for i, row in enumerate(words):
        said = len(SAID[i // frames])
        assert row.nonzero().flatten().tolist() == [first + 1 + k for k in range(said)]


@pytest.mark.parametrize("name", HOSTS)
def test_padding_is_what_no_token_looks_at_of_the_words_and_of_the_image(name: str) -> None:
    host = HOSTS[name]
    model, inputs = host.make(), host.inputs()
    real = told(host, model, inputs).real
    assert real is not None
    assert not real.all()
    assert torch.equal(real, looked_at(host, model, inputs))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("choice", ["image", "text+special"])
def test_an_edit_changes_just_the_tokens_it_names_and_comes_off_to_the_bit(
    name: str, choice: Any
) -> None:
    host = HOSTS[name]
    model, inputs = host.make(), host.inputs()
    before = state(host, model, inputs, behind=True)
    tokens = told(host, model, inputs)
    expected = tokens.select(choice)
    site = Host.of(model).sites[f"{host.site}.0"]
    patch = Patch(site.name, random_dictionary(site.width), [Steer([3], 2.0)], tokens=choice)
    with patch.attach(model) as attached:
        after = state(host, model, inputs, behind=True)
    assert expected is not None
    assert torch.equal((before != after).any(-1), expected)
    stream = choice.removesuffix("+special")
    counted = attached.report().sites[0].streams
    assert counted[stream] == expected.sum()
    assert sum(counted.values()) == counted[stream]
    assert torch.equal(state(host, model, inputs, behind=True), before)


@pytest.mark.parametrize("name", ONE)
def test_a_row_of_a_padded_batch_is_edited_as_it_is_alone(name: str) -> None:
    host = HOSTS[name]
    model = host.make()
    site = Host.of(model).sites[f"{host.site}.1"]
    patch = Patch(site.name, random_dictionary(site.width), [Scale([1, 2], 4.0)], tokens="image")
    with patch.attach(model) as attached:
        run(model, host.inputs())
    together = attached.report().sites[0].streams["image"]
    alone = 0
    for row in range(2):
        inputs = {
            k: v[row : row + 1] if isinstance(v, Tensor) else v for k, v in host.inputs().items()
        }
        with patch.attach(model) as attached:
            run(model, inputs)
        alone += attached.report().sites[0].streams["image"]
    assert together == alone


@pytest.mark.parametrize("name", [*HOSTS, *BRIDGETOWER])
def test_every_site_is_where_it_is_said_to_be_and_acts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = {**HOSTS, **BRIDGETOWER}[name]
    model, inputs = host.make(), host.inputs()
    if name.startswith("blip2"):
        del inputs["use_image_text_matching_head"]  # the other way reaches the joint embedding too
    forward = model.forward

    def seeded(**given: Any) -> Any:
        torch.manual_seed(0)
        return forward(**given)

    seeded.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", seeded)
    check_adapter(model, inputs)


def test_each_pass_of_one_call_has_its_own_tokens() -> None:
    host = HOSTS["blip2_matching_behind_places"]
    model, inputs = host.make(), host.inputs()
    del inputs["use_image_text_matching_head"]
    seen: list[tuple[Any, Tensor | None, Tensor | None]] = []

    def keep(hidden: Tensor, tokens: Tokens) -> Tensor:
        words = tokens.select("text", Special((BEGIN, END)))
        seen.append((tokens.modality, tokens.real, words))
        return hidden

    ours = Host.of(model)
    handle = attach(ours, ours.sites["qformer.0"], keep)
    run(model, inputs)
    handle.remove()
    (image, _, _), (text, real, words) = seen
    assert (image, text) == ("image", "text")
    assert real is not None and words is not None
    assert real.sum(1).tolist() == [5, 3]
    assert words.sum(1).tolist() == [3, 1]


def test_words_and_patches_are_two_streams_of_a_site_where_each_has_its_layers() -> None:
    host = BRIDGETOWER["BridgeTowerModel"]
    model, inputs = host.make(), host.inputs()
    before = run(model, inputs)
    sizes = {"image": 2 * 17, "text": 8}
    for stream, choice in (("image", "image"), ("text", "text+special")):
        patch = Patch("multimodal.1", random_dictionary(64), [Steer([3], 2.0)], tokens=choice)
        with patch.attach(model) as attached:
            after = run(model, inputs)
        counted = attached.report().sites[0].streams
        assert counted == NO_TOKENS | dict.fromkeys(sizes, 0) | {stream: sizes[stream]}
        for other in sizes:
            same = torch.equal(before[f"{other}_features"], after[f"{other}_features"])
            assert same == (other != stream)


def test_a_page_without_its_picture_is_text_and_its_words_are_known() -> None:
    host = HOSTS["layoutlmv3"]
    inputs = host.inputs()
    del inputs["pixel_values"]
    tokens = told(host, host.make(), inputs)
    assert tokens.modality == "text"
    words = tokens.select("text", Special((BEGIN, END)))
    assert words is not None and words.sum(1).tolist() == [3, 1]


def test_embeddings_in_the_place_of_ids_tell_the_parts_but_no_words() -> None:
    host = HOSTS["vilt"]
    model, inputs = host.make(), host.inputs()
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = model.get_input_embeddings()(ids).detach()
    tokens = told(host, model, inputs)
    assert tokens.select("image").sum(1).tolist() == [17, 7]  # type: ignore[union-attr]
    assert tokens.select("text+special").sum(1).tolist() == [5, 3]  # type: ignore[union-attr]
    with pytest.raises(VlmEditError, match="this call of the host shows no input_ids"):
        tokens.select("text", Special((BEGIN, END)))


def test_layers_that_are_run_without_their_host_are_refused() -> None:
    host = HOSTS["vilt"]
    model = host.make()
    patch = Patch("encoder.0", random_dictionary(24), [Steer([3], 2.0)], tokens="image")
    with (
        patch.attach(model) as attached,
        pytest.raises(VlmEditError, match="nobody can tell image tokens from text"),
    ):
        model.encoder(torch.zeros(1, 9, 24))
    assert attached.report().edited_tokens == 0


class Shift(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + 1


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Shift()

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        assert attention_mask.shape[-1] == hidden_states.shape[1]
        return self.layer(hidden_states)


class Pages(nn.Module):
    """A host of one's own: tokens of its own, words, then patches; its mask may be another."""

    def __init__(self, ahead: int, turned: bool) -> None:
        super().__init__()
        self.embed, self.stack, self.ahead, self.turned = (
            nn.Embedding(32, 8),
            Stack(),
            ahead,
            turned,
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Tensor:
        own = pixels.new_ones(len(pixels), self.ahead, 8)
        hidden = torch.cat([own, self.embed(input_ids), pixels], 1)
        ones = attention_mask.new_ones
        seen = torch.cat([ones(own.shape[:2]), attention_mask, ones(pixels.shape[:2])], 1)
        seen = seen.flip(1) if self.turned else seen
        return self.stack(hidden, seen[:, None, None].bool())


def pages(own: int = 0, turned: bool = False, **layout: Any) -> Host:
    adapter = Adapter.of(
        {"stack": ("stack.layer", "mixed", 8)},
        layouts=(Layout(("stack",), ("text", "image"), **layout),),
    )
    return Host.of(Pages(own, turned).eval(), adapter=adapter)


def edited(host: Host, tokens: Any) -> Tensor:
    """Which tokens an edit of a page's changes."""
    ids = torch.tensor([[4, 5, 6], [7, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixels": torch.ones(2, 4, 8)}
    with torch.no_grad():
        before = host.model(**inputs)
        rule = Scale(range(8), 2.0)
        with Patch("stack", Dictionary.identity(8), rule, tokens=tokens).attach(host):
            return (host.model(**inputs) != before).any(-1)


def test_a_host_of_ones_own_says_its_order_in_one_call() -> None:
    assert edited(pages(), "image").int().tolist() == [[0, 0, 0, 1, 1, 1, 1]] * 2
    assert edited(pages(), "text+special").int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
    ]


def test_parts_that_contradict_the_call_are_refused() -> None:
    with pytest.raises(VlmEditError, match="a mask that differs at 2 tokens of the text"):
        edited(pages(turned=True), "image")
    with pytest.raises(VlmEditError, match="7 tokens in a row, of which 3 were text and 5 neither"):
        edited(pages(ahead=5), "image")
    with pytest.raises(VlmEditError, match=r"has a number 'length'.*Layout\.ahead"):
        edited(pages(ahead="length"), "image")


def test_a_number_of_the_layout_is_an_attribute_or_the_number() -> None:
    by_name, by_number = (edited(pages(2, ahead=said), "image") for said in ("ahead", 2))
    assert torch.equal(by_name, by_number)
    assert by_name[0].int().tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert edited(pages(2, ahead=2), "text+special")[1].int().tolist() == [1, 1, 1, *[0] * 6]


def test_a_family_may_have_another_adapter_for_one_of_its_classes() -> None:
    matching = find_adapter(HOSTS["blip2_matching"].make())
    assert [rule.name for rule in matching.sites] == ["joint", "vision.{i}", "qformer.{i}"]


def test_the_page_has_these_hosts_with_their_sites() -> None:
    named = ("flava", "instructblip", "instructblipvideo", "blip2_matching", "layoutlmv3", "vilt")
    hosts = [HOSTS[name] for name in (*named, "visual_bert")]
    made = [host.make() for host in (*hosts, *BRIDGETOWER.values())]
    expect_section("lined up", describe((model, "") for model in made))


@pytest.mark.parametrize("name", ["instructblip", "blip2_matching"])
def test_what_queries_read_of_the_image_is_image_unless_a_text_is_as_long(name: str) -> None:
    host = HOSTS[name]
    model = host.make()
    site = Host.of(model).inside("qformer.0")["qformer.0.cross_attention"]
    patch = Patch(site.name, random_dictionary(site.width), [Steer([3], 2.0)], tokens="image")
    with patch.attach(model) as attached:
        run(model, host.inputs())
    assert attached.report().sites[0].streams == NO_TOKENS | {"image": 8, "text": 0}
    as_long = host.inputs(words=((BEGIN, 5, 6, END), (BEGIN, 9, END)))
    with patch.attach(model), pytest.raises(VlmEditError, match="nobody can tell"):
        run(model, as_long)
