"""From the text encoder of a Stable Diffusion to a concept that is drawn weaker or stronger.

python docs/examples/stable_diffusion.py                  # a tiny random one, in seconds
python docs/examples/stable_diffusion.py owner/name       # yours; a folder does too
"""

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vlm_edit import Ablate, Host, Patch, load_patch, zoo
from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.measuring import collect
from vlm_edit.selection import by_concept


def tokenizer_of(texts):
    """A tokenizer of CLIP's kind that has a token for each word of some texts."""
    words = sorted({word for text in texts for word in text.lower().split()})
    letters = sorted({letter for word in words for letter in word})
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(f"{letter}</w>" for letter in letters),
    ]
    merges = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[-2], parts[-1]))
            parts[-2:] = ["".join(parts[-2:])]
            tokens.append(parts[-1])
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = list(dict.fromkeys(merges))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def tiny(texts):
    """A Stable Diffusion of the usual parts, small and random: it draws noise, but at once."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(texts)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        **{"hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 3, "num_attention_heads": 2},
        **{"max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1},
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )
    return StableDiffusionPipeline(
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        vae=vae.eval(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    )


# 1. The pipeline, and where in its text encoder to look: the last layer but one.
prompts = list(dict.fromkeys(zoo.load_pairs().texts))  # for a real one, 100,000 and more
host = Host.load(sys.argv[1]) if sys.argv[1:] else Host.of(tiny(prompts))
pipe = host.model
pipe.set_progress_bar_config(disable=True)
layers = [name for name in host.sites if name.startswith("text_encoder.text.")]
site = layers[-2]
print("site:", site, "of", host)

# 2. A dictionary of what prompts look like there.
train, held_out = prompts[100:], prompts[:100]
streams = collect(host, train, site, progress=False)
config = TrainConfig(n_features=256, k=8, steps=400, batch_size=512)
dictionary = train_dictionary(streams, config, {"site": site}, progress=False)
print(
    "dictionary:", dictionary.check(collect(host, held_out, site, progress=False)["text"], "text")
)

# 3. A concept: features that respond more to prompts with it than to the same ones without.
things = ["apple", "car", "house", "flag", "bird", "ball", "heart", "book", "hat", "rose"]
red = by_concept(
    host,
    dictionary,
    [f"a red {thing}" for thing in things],
    [f"a blue {thing}" for thing in things],
    site,
    most=8,
)
print("features of red:", red)

# 4. A patch of them, on the prompt alone and on its own words; its strength is set as one draws.
patch = Patch(site, dictionary, Ablate(red), tokens="text")


def draw(prompt, seed=0, steps=2):
    """What the pipeline draws, always from the same noise."""
    noise = torch.Generator(host.device).manual_seed(seed)
    return pipe(prompt, generator=noise, num_inference_steps=steps, output_type="pt").images


# A thing that it was not told of, with the concept and without.
plain = {prompt: draw(prompt) for prompt in ("a red cat", "a green cat")}
with patch.attach(pipe) as attached:
    for strength in (0.0, 0.5, 1.0):
        attached.set_strength(strength)
        edited = {prompt: draw(prompt) for prompt in plain}
        moved = {p: round(float((edited[p] - plain[p]).norm()), 3) for p in plain}
        print(f"strength {strength}, how far the image moves:", moved)
    print(attached.report())
print("removed, the same image:", torch.equal(draw("a red cat"), plain["a red cat"]))

# 5. Saved, it goes to whoever has the same text encoder.
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "no-red.safetensors")
    patch.save(file, pipe)
    with load_patch(file).attach(pipe):
        again = draw("a red cat")
    print("loaded, the same image:", torch.equal(again, edited["a red cat"]))
