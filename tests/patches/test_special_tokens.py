"""An edit of text is of the text's own tokens: what begins, ends or frames it is special."""

import copy

import pytest
import torch
from conftest import CACHE, CHAT, NO_TOKENS

from vlm_edit import Dictionary, Host, Patch, Steer, load_patch, measure, zoo
from vlm_edit.ground.errors import CannotKnow, WrongHost
from vlm_edit.hooks import record
from vlm_edit.measuring import Reader

MODEL, PROCESSOR = zoo.load_llava()
CHATTY = copy.deepcopy(PROCESSOR)
CHATTY.chat_template = CHAT
PAIRS = zoo.load_pairs()
SITE, WIDTH, MARK = "language.1", 96, 5.0


def patch(tokens="text", **options):
    width = Host.of(MODEL).site(SITE).width
    return Patch(SITE, Dictionary.identity(width), Steer([3], MARK), tokens=tokens, **options)


def changed(act, host=MODEL, **options):
    """For each pass through the site: which of its tokens were edited."""
    masks = []
    with record(MODEL, SITE) as plain:
        act()
    with patch(**options).attach(host) as attached, record(MODEL, SITE) as edited:
        act()
    for one, other in zip(plain.captures[:1], edited.captures[:1], strict=True):
        masks.append((one.hidden - other.hidden).abs().amax(-1) > 1e-3)
    return masks[0], attached.report().sites[0]


def inputs(host, texts=("a cat on the sky", "a dog"), answer=False):
    return host.inputs([PAIRS.open(i) for i in range(len(texts))], list(texts), answer)


@torch.no_grad()
def test_a_bare_host_cannot_tell_a_text_from_what_frames_it() -> None:
    values = PROCESSOR(text=["<image>\na cat"], images=[PAIRS.open(0)], return_tensors="pt")
    with (
        patch().attach(MODEL),
        pytest.raises(CannotKnow, match=r"no tokenizer .* Host.of\(model, proc.*'text\+special'"),
    ):
        MODEL(**values)
    with patch(tokens="text+special").attach(MODEL) as attached:
        MODEL(**values)
    assert attached.report().sites[0].streams["text"] > 0


@torch.no_grad()
def test_embeddings_show_no_ids_that_could_be_special() -> None:
    host = Host.of(MODEL, PROCESSOR)
    embeds = MODEL.get_input_embeddings()(torch.tensor([[4, 9, 12]]))
    with patch().attach(host), pytest.raises(CannotKnow, match="neither input_ids nor"):
        MODEL(inputs_embeds=embeds, attention_mask=torch.ones(1, 3))


@torch.no_grad()
def test_in_a_prompt_of_the_users_own_the_special_ids_tell() -> None:
    host = Host.of(MODEL, PROCESSOR)
    values = PROCESSOR(
        text=["<image>\na cat</s>", "<image>\na dog and a bird"],
        images=[PAIRS.open(0), PAIRS.open(1)],
        return_tensors="pt",
        padding=True,
    )
    ids = values["input_ids"]
    image = ids == PROCESSOR.image_token_id
    real = values["attention_mask"].bool()
    special = torch.isin(ids, torch.tensor(PROCESSOR.tokenizer.all_special_ids))
    mask, site = changed(lambda: MODEL(**values), host)
    assert torch.equal(mask, real & ~image & ~special)
    assert site.streams["special"] == 0 and site.streams["text"] == int(mask.sum())
    mask, site = changed(lambda: MODEL(**values), host, tokens="text+special")
    assert torch.equal(mask, real & ~image)
    assert site.streams["special"] == int((real & special & ~image).sum()) > 0
    mask, site = changed(lambda: MODEL(**values), host, tokens="all")
    assert site.streams["image"] == int(image.sum())
    assert sum(site.streams.values()) == int(real.sum()) == int(mask.sum())


@torch.no_grad()
@pytest.mark.parametrize("prompt", [None, "{image} {text}, says a text", "{text}: {image}"])
def test_in_a_prompt_that_the_host_made_the_caption_alone_is_text(prompt) -> None:
    host = Host.of(MODEL, CHATTY, prompt=prompt)
    made = inputs(host)
    mask, site = changed(lambda: MODEL(**made.values), host)
    assert torch.equal(mask, made.caption)
    assert site.streams["text"] == int(made.caption.sum())
    assert site.streams["special"] == site.streams["image"] == 0


MODES = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "in pieces": {"prefill_chunk_size": 7},
}


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_generation_is_edited_at_the_tokens_that_a_forward_is(mode) -> None:
    host = Host.of(MODEL, CHATTY)
    texts = ("what is on the sky",) if mode == "in pieces" else ("what is it", "a dog", "who")
    made = inputs(host, texts, answer=True)
    own, rows = int(made.caption.sum()), 2 if mode == "beams" else 1
    options = {"do_sample": False, "suppress_tokens": [PROCESSOR.image_token_id]} | MODES[mode]
    with patch(phase="prompt").attach(host) as attached:
        MODEL.generate(**made.values, **options, max_new_tokens=4, min_new_tokens=4)
    site = attached.report().sites[0]
    passes = 4 if mode == "without a cache" else 1
    assert site.streams == NO_TOKENS | {"text": own * rows * passes}
    with patch().attach(host) as attached:
        MODEL.generate(**made.values, **options, max_new_tokens=4, min_new_tokens=4)
    site = attached.report().sites[0]
    steps = 3 if mode != "without a cache" else 0 + 1 + 2 + 3  # all that was said is read again
    assert site.streams["text"] == own * rows * passes + steps * rows * len(texts)
    assert site.streams["special"] == 0


@torch.no_grad()
def test_a_loop_of_ones_own_is_edited_as_generate_is() -> None:
    host = Host.of(MODEL, CHATTY)
    made = inputs(host, ("what is it",), answer=True)
    with patch().attach(host) as attached:
        out = MODEL(**made.values, use_cache=True)
        for _ in range(2):
            out = MODEL(input_ids=out.logits[:, -1:].argmax(-1), **{CACHE: out[CACHE]})
    assert attached.report().sites[0].streams["text"] == int(made.caption.sum()) + 2


@torch.no_grad()
def test_a_conversation_that_goes_on_is_edited_at_its_new_text() -> None:
    host, made = Host.of(MODEL, PROCESSOR), inputs(Host.of(MODEL, PROCESSOR), ("what is it",))
    quiet = {"do_sample": False, "suppress_tokens": [PROCESSOR.image_token_id]}
    quiet |= {"max_new_tokens": 3, "min_new_tokens": 3}
    before = MODEL.generate(**made.values, **quiet, return_dict_in_generate=True)
    cache, said = before[CACHE], before.sequences
    words = PROCESSOR.tokenizer("a dog</s>and</s>", return_tensors="pt", add_special_tokens=False)
    new = torch.cat([said[:, cache.get_seq_length() :], words["input_ids"]], 1)
    special = torch.isin(new, torch.tensor(host.special_ids("language.0")))
    assert 0 < int(special.sum()) < new.shape[1]
    attention = torch.ones(1, cache.get_seq_length() + new.shape[1], dtype=torch.long)
    with patch(phase="prompt").attach(host) as attached:
        MODEL.generate(input_ids=new, attention_mask=attention, **{CACHE: cache}, **quiet)
    streams = attached.report().sites[0].streams
    assert streams == NO_TOKENS | {"text": int((~special).sum())}


@torch.no_grad()
def test_texts_of_a_tower_lose_their_beginning_and_end() -> None:
    model, processor = zoo.load_host()
    host = Host.of(model, processor)
    made = inputs(host)
    with record(model, "text.1") as plain:
        model(**made.values)
    width = host.site("text.1").width
    edit = Patch("text.1", Dictionary.identity(width), Steer([3], MARK), tokens="text")
    with edit.attach(host), record(model, "text.1") as edited:
        model(**made.values)
    moved = (plain.captures[0].hidden - edited.captures[0].hidden).abs().amax(-1) > 1e-3
    assert torch.equal(moved, made.caption)


@torch.no_grad()
def test_what_is_measured_of_a_text_is_the_mean_of_its_own_tokens() -> None:
    host, pairs = Host.of(MODEL, CHATTY), PAIRS.select(range(5))
    dictionary = Dictionary.identity(host.site(SITE).width)
    batch = next(Reader(host, dictionary, SITE, progress=False).read(pairs))
    for number in range(5):
        made = host.inputs([pairs.open(number)], [pairs.texts[number]])
        with record(MODEL, SITE) as recording:
            MODEL(**made.values)
        expected = recording.captures[0].hidden[0][made.caption[0]].mean(0)
        torch.testing.assert_close(batch.hidden["text"][number], expected, rtol=1e-4, atol=1e-4)


def test_a_measurement_says_what_the_host_was_asked_and_resumes_with_no_other(tmp_path) -> None:
    pairs = PAIRS.select(range(6))
    dictionary = Dictionary.identity(Host.of(MODEL).site(SITE).width)
    options = {"progress": False, "checkpoint": tmp_path / "state"}
    found = measure(Host.of(MODEL, CHATTY), pairs, dictionary, SITE, **options)
    assert found.provenance["settings"]["prompt"] == "<s>USER: <image>\n{text}"
    assert found.provenance["first prompt"].endswith(f"\n{pairs.texts[0]}")
    with pytest.raises(WrongHost, match=r"another settings \(prompt: "):
        measure(Host.of(MODEL, CHATTY, prompt="{image} {text}"), pairs, dictionary, SITE, **options)


@torch.no_grad()
def test_a_saved_patch_of_text_is_of_text_again(tmp_path) -> None:
    host = Host.of(MODEL, CHATTY)
    for tokens in ("text", "text+special"):
        patch(tokens).save(tmp_path / tokens, host)
        assert load_patch(tmp_path / tokens).bindings[0].selection.tokens == tokens
