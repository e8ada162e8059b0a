"""Sounds: their tower's layers as sites, and their tokens among the words."""

import pytest
import torch
from any_hosts import build
from any_hosts.sizes import AUDIO, IMAGE

from vlm_edit import Dictionary, Host, Patch, Scale, VlmEditError
from vlm_edit.hooks import record
from vlm_edit.measuring import collect
from vlm_edit.testing import check_adapter

HOSTS = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "phi4_multimodal")


def heard(host, seed=0):
    """A prompt with one sound, for a tiny host."""
    config, generator = host.config.audio_config, torch.Generator().manual_seed(seed)
    if hasattr(config, "num_mel_bins"):
        features = torch.randn(1, config.num_mel_bins, 20, generator=generator)
        brings = {
            "input_features": features,
            "feature_attention_mask": torch.ones(1, 20, dtype=torch.long),
        }
        count = 5 if "2_5" in host.config.model_type else 3
    else:
        features = torch.randn(1, 24, config.input_size, generator=generator)
        brings = {
            "audio_input_features": features,
            "audio_embed_sizes": torch.tensor([3]),
            "audio_attention_mask": torch.ones(1, 24, dtype=torch.bool),
        }
        count = 3
    ids = torch.tensor([[5, 6, *[AUDIO] * count, 7, 8]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **brings}


def scaled(site, width, **choice):
    return Patch(site, Dictionary.identity(width), Scale(range(width), -2.0), **choice)


@pytest.fixture(params=HOSTS)
def made(request):
    return build(request.param)


@pytest.fixture
def host(made):
    return Host.of(made.model)


def test_every_layer_that_hears_acts_and_its_parts_do(host):
    inputs = heard(host.model)
    with torch.no_grad():
        plain = host(**inputs, use_cache=False).logits
        for name in [n for n in host.sites if n.startswith("audio.")]:
            for site in (host.site(name), *host.inside(name).values()):
                with scaled(site.name, site.width).attach(host) as attached:
                    edited = host(**inputs, use_cache=False).logits
                streams = attached.report().sites[0].streams
                assert streams["audio"] == attached.report().edited_tokens > 0
                assert not torch.equal(edited, plain), site.name
                assert torch.equal(host(**inputs, use_cache=False).logits, plain)


def test_check_adapter_tries_them_with_a_picture_and_a_sound(made):
    sound = heard(made.model)
    count = int((sound.pop("input_ids") == AUDIO).sum())
    del sound["attention_mask"]
    both = {**made.inputs([[5, "I", 6, *[AUDIO] * count, 7]]), **sound}
    check_adapter(made.model, both)
    layer = list(Host.of(made.model).sites.values())[-1].taps[0].module
    layer.forward = lambda hidden, *_, **__: (hidden,) if "qwen" in made.type else hidden
    with pytest.raises(AssertionError, match="nothing was edited at 'audio..*attention'"):
        check_adapter(made.model, both)


def test_a_sounds_tokens_among_the_words_are_those_that_move_with_it(host):
    site = next(name for name in host.sites if name.startswith("language"))
    states, layer = [], host.site(site).taps[0].module

    def look(_module, args, named):
        states.append((args[0] if args else named["hidden_states"]).clone())

    handle = layer.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), record(host, site) as recording:
        for seed in (0, 1):
            host(**heard(host.model, seed), use_cache=False)
    handle.remove()
    moved = (states[0] != states[1]).any(-1)
    tokens = recording.captures[0].tokens
    assert torch.equal(tokens.mask("audio"), moved)
    assert moved.any()
    assert not tokens.mask("visual").any()
    width = host.site(site).width
    with torch.no_grad(), scaled(site, width, tokens="audio").attach(host) as attached:
        host(**heard(host.model), use_cache=False)
    assert attached.report().edited_tokens == int(moved.sum())


def test_what_is_no_sound_is_refused_where_only_sounds_pass(host):
    width = host.site("audio.0").width
    with pytest.raises(VlmEditError, match="no image tokens pass site 'audio.0' .only audio"):
        scaled("audio.0", width, tokens="image").attach(host)
    with pytest.raises(VlmEditError, match="would change nothing: sounds are encoded with"):
        scaled("audio.0", width, phase="decode").attach(host)
    with pytest.raises(VlmEditError, match="only sounds pass at site 'audio.0', and pairs are"):
        collect(host, ["a cat"], "audio.0", progress=False)


def test_a_prompt_with_a_picture_alone_passes_none_of_them():
    made = build("qwen2_5_omni_thinker")
    host, rows = Host.of(made.model), [[5, "I", 6]]
    with torch.no_grad(), scaled("audio.0", host.site("audio.0").width).attach(host) as attached:
        inputs = made.inputs(rows)
        assert (inputs["input_ids"] == IMAGE).any()
        host(**inputs, use_cache=False)
    assert attached.report().edited_tokens == 0
