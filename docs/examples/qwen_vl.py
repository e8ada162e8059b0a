"""A Qwen2.5-VL with its own processor: asked by its chat template, measured, and edited.

Its processor cuts videos too, and needs torchvision.

    python docs/examples/qwen_vl.py                  # a tiny random one
    python docs/examples/qwen_vl.py Qwen/Qwen2.5-VL-3B-Instruct language.18
"""

import sys
import tempfile

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

from vlm_edit import Dictionary, Host, Patch, Steer, measure, zoo

# A turn of a user's, as Qwen's own template writes it.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)


def tiny(folder):
    """Save a checkpoint of the usual parts, small and random, with a token for each byte."""
    torch.manual_seed(0)
    ids = {token: i for i, token in enumerate([*SPECIAL, *sorted(ByteLevel.alphabet())])}
    tokenizer = transformers.Qwen2TokenizerFast(
        vocab=ids,
        merges=[],
        **{"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        additional_special_tokens=list(SPECIAL[1:]),
    )
    cut = {"patch_size": 4, "temporal_patch_size": 1, "merge_size": 2}
    sizes = {"size": {"shortest_edge": 64, "longest_edge": 1024}}
    transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**cut, **sizes),
        video_processor=transformers.Qwen2VLVideoProcessor(**cut, **sizes),
        tokenizer=tokenizer,
        chat_template=CHAT,
    ).save_pretrained(folder)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **{"vocab_size": len(ids), "hidden_size": 32, "intermediate_size": 48},
            **{"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2},
            **{"rope_parameters": rope, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0},
        },
        vision_config={
            **{"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32},
            **{"out_hidden_size": 32, "window_size": 8, "fullatt_block_indexes": [1]},
            **{"patch_size": 4, "temporal_patch_size": 1, "spatial_merge_size": 2},
        },
        **{"vision_start_token_id": 3, "vision_end_token_id": 4},
        **{"image_token_id": 5, "video_token_id": 6},
    )
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


pairs = zoo.load_pairs().select(range(48))
with tempfile.TemporaryDirectory() as folder:
    name, site = sys.argv[1:] or (tiny(folder), "language.2")
    host = Host.load(name)
print("host:", host)
print("each pair is asked as:", repr(host.asks()))

# What one pair becomes, and which of its tokens are the text's own: those count as text, and an
# edit of text acts on them; roles, delimiters and turns are left alone.
inputs = host.inputs([pairs.open(0)], [pairs.texts[0]])
print("read back:", host.read_back(inputs.values))
own = inputs.values["input_ids"][inputs.caption]
print("the text's own:", repr(host.processor.tokenizer.decode(own)), "of", repr(pairs.texts[0]))

# Raw dimensions stand for an autoencoder, which you would load: load_dictionary("owner/name").
dictionary = Dictionary.identity(host.site(site).width)
found = measure(host, pairs, dictionary, site=site, batch_size=8, progress=False)
print("classes:", {name: len(members) for name, members in found.dominance.classes().items()})
print("asked first:", found.provenance["first prompt"])

# Steering as it generates, at the image and at the text apart.
asked = host.inputs([pairs.open(1)], [pairs.texts[1]], answer=True)
plain = host.model.generate(**asked.values, do_sample=False, max_new_tokens=4)
for tokens, there in (
    ("image", int((asked.values["input_ids"] == host.root.config.image_token_id).sum())),
    ("text", int(asked.caption.sum())),
):
    patch = Patch(site, dictionary, Steer([0, 1, 2], 30.0), tokens=tokens, phase="prompt")
    with patch.attach(host) as attached:
        host.model.generate(**asked.values, do_sample=False, max_new_tokens=4)
    print(f"{tokens}: {attached.report().edited_tokens} tokens edited of {there} there")
after = host.model.generate(**asked.values, do_sample=False, max_new_tokens=4)
print("removed, the same answer:", torch.equal(plain, after))
