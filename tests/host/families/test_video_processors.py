"""Videos as the processors of Qwen cut them: their tokens are image tokens, and only they.

transformers' video processors import torchvision, so these tests are skipped where it is not
installed; `.ci/second` makes an environment with it.
"""

import importlib.util

import pytest
import torch
from conftest import random_dictionary
from test_modes import MODES, masks_of, mixed_site, run
from tiny_hosts import FAMILIES, library
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlm_edit import Patch, Steer
from vlm_edit.hooks import attach

if importlib.util.find_spec("torchvision") is None:
    pytest.skip(
        "needs torchvision: .ci/second makes an environment with it", allow_module_level=True
    )

IMAGE, VIDEO, START, END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = {58: START, 59: END, 60: IMAGE, 61: VIDEO}
KINDS = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}


def processor_of(name):
    """The library's processor at the sizes of the tiny hosts: patches of 4 x 4, merged by 2 x 2."""
    words = {SPECIAL.get(i, f"w{i}"): i for i in range(64)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="w0",
        padding_side="left",
        additional_special_tokens=list(SPECIAL.values()),
    )
    tokenizer.image_token, tokenizer.video_token = IMAGE, VIDEO
    tokenizer.vision_start_token, tokenizer.vision_end_token = START, END
    cut = {"patch_size": 4, "temporal_patch_size": 1, "merge_size": 2}
    sizes = {"size": {"shortest_edge": 64, "longest_edge": 4096}, "do_resize": False}
    family = "Qwen3VL" if name == "qwen3_vl" else "Qwen2VL"
    return library(f"{KINDS[name]}Processor")(
        image_processor=library("Qwen2VLImageProcessor")(**cut, **sizes),
        video_processor=library(f"{family}VideoProcessor")(**cut, **sizes, do_sample_frames=False),
        tokenizer=tokenizer,
    )


def inputs_of(name):
    """Two texts of different lengths, with videos of four and of two frames of 16 x 16."""
    videos = [torch.randint(0, 256, (frames, 3, 16, 16), dtype=torch.uint8) for frames in (4, 2)]
    texts = [f"w5 w6 {START} {VIDEO} {END} w7", f"w8 {START} {VIDEO} {END} w9 w10 w11"]
    return processor_of(name)(text=texts, videos=videos, padding=True, return_tensors="pt")


@pytest.mark.parametrize("mode", ["forward", "left-padded batch", "use_cache=False"])
@pytest.mark.parametrize("name", KINDS)
def test_the_mask_is_the_hosts_own(name, mode, monkeypatch):
    torch.manual_seed(0)
    host, inputs, way = FAMILIES[name].make(), inputs_of(name), MODES[mode]
    pairs = masks_of(monkeypatch, host, lambda: run(way, host, inputs))
    assert pairs[0][1].sum() == 4 * (4 + 2), "four tokens for each frame"
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_of_video_tokens_moves_those_of_the_videos_alone(name):
    torch.manual_seed(0)
    host, inputs = FAMILIES[name].make(), inputs_of(name)
    site, moved = mixed_site(host), []
    patch = Patch(site.name, random_dictionary(site.width), [Steer([3], 5.0)], tokens="video")

    def keep(hidden, _tokens):
        moved.append(hidden.detach().clone())
        return hidden

    with torch.no_grad():
        handle = attach(host, site, keep)
        plain = host(**inputs).logits
        handle.remove()
        with patch.attach(host):
            handle = attach(host, site, keep)  # after the patch: sees what it left
            edited = host(**inputs).logits
            handle.remove()
    assert torch.equal((moved[1] != moved[0]).any(-1), inputs["input_ids"] == 61)
    assert not torch.equal(plain, edited)
