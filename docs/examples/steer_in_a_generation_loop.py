"""Steer a LLaVA while it generates: strengths per row, beams, phases, and a loop of one's own."""

import torch

from vlm_edit import Patch, Steer, record, zoo

host, processor = zoo.load_llava()
pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("language.0")


def ask(numbers, question="what colour is the background?"):
    """One question about some pairs' images, as a batch."""
    images, text = [pairs.open(i) for i in numbers], [f"<image>\n{question}"] * len(numbers)
    return processor(images=images, text=text, return_tensors="pt")


def told(ids):
    """What was answered."""
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    return [text.rpartition("?")[2].strip() for text in texts]


# The features that image tokens of yellow backgrounds have more of than those of others.
means = []
for wanted in (True, False):
    some = [i for i, c in enumerate(pairs.columns["background"]) if (c == "yellow") == wanted]
    with record(host, "language.0") as recording, torch.no_grad():
        host(**ask(some[:48]))
    seen = recording.last("language.0", "mixed")
    tokens = seen.hidden[seen.tokens.select("image")]
    means.append(dictionary.encode(tokens, stream="image").mean(0))
more, features = (means[0] - means[1]).topk(32)
steer = [Steer([int(f)], amount=8 * float(m)) for f, m in zip(features, more, strict=True)]
print(f"feature {int(features[0])} is {float(more[0]):.2f} more active on yellow")

# One batch, four strengths: 0 leaves a row bit for bit as it is.
blue = pairs.columns["background"].index("blue")
patch = Patch("language.0", dictionary, steer, tokens="image")
options = {"do_sample": False, "max_new_tokens": 8}
with patch.attach(host, strength=[0, 1, 2, 3]) as attached:
    print("strengths 0, 1, 2, 3:", told(host.generate(**ask([blue] * 4), **options)))
print(attached.report())

# Whatever generate can do: beams of a row share its strength, samples are edited as well.
with patch.attach(host, strength=[0, 3]):
    print("three beams:", told(host.generate(**ask([blue] * 2), num_beams=3, **options)))
    torch.manual_seed(0)
    sampled = host.generate(**ask([blue] * 2), do_sample=True, top_k=5, max_new_tokens=8)
    print("sampled:", told(sampled))

# The prompt alone, or what is generated alone, up to the second step.
for choice in ({"phase": "prompt"}, {"phase": "decode", "steps": (0, 2)}):
    with Patch("language.0", dictionary, steer, **choice).attach(host, strength=3) as attached:
        print(f"{choice}:", told(host.generate(**ask([blue], "what is it?"), **options)))
    print(attached.report())

# A loop of one's own: nothing is told to the patch, it follows the host's calls.
with patch.attach(host, strength=3), torch.no_grad():
    step = dict(ask([blue]))
    ids, cache = step["input_ids"], None
    for _ in range(8):
        output = host(**step, past_key_values=cache, use_cache=True)
        token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
        ids, step = torch.cat([ids, token], 1), {"input_ids": token}
        if int(token) == host.generation_config.eos_token_id:
            break
    generated = host.generate(**ask([blue]), **options)
print("by hand:", told(ids), "as generate:", torch.equal(ids, generated))
