"""A patch in a generation loop of one's own, with a cache: the loop is not told of it."""

import torch

from vlm_edit import Clamp, Patch, zoo

host, processor = zoo.load_llava()
pairs = zoo.load_pairs()
images = [pairs.open(number) for number in (1, 11, 6)]  # on blue, green and grey
text = ["<image>\nwhat is it?"] * len(images)
inputs = processor(images=images, text=text, return_tensors="pt")
end = host.generation_config.eos_token_id


@torch.no_grad()
def generate(inputs, most=12):
    """Greedy decoding as it might stand in your code: ids of the answers."""
    step, cache, answers = dict(inputs), None, []
    seen = step["attention_mask"]
    done = torch.zeros(len(seen), dtype=torch.bool)
    while len(answers) < most and not done.all():
        output = host(**step, past_key_values=cache, use_cache=True)
        token = output.logits[:, -1].argmax(-1).masked_fill(done, end)
        answers.append(token)
        done |= token == end
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        cache = output.past_key_values
        step = {"input_ids": token[:, None], "attention_mask": seen}
    return torch.stack(answers, 1)


def told(ids):
    """The answers as text."""
    return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]


yellow = Clamp([342, 110, 49, 501], value=8.0)
dictionary = zoo.load_dictionary("language.0")
before = generate(inputs)
print("plain:  ", told(before))

# The cache tells prompt from answer, the ids tell image tokens from text.
for choice in ({"tokens": "image"}, {"tokens": "all", "phase": "decode", "steps": (0, 2)}):
    with Patch("language.0", dictionary, yellow, **choice).attach(host) as attached:
        ids = generate(inputs)
        whole = host.generate(**inputs, do_sample=False, max_new_tokens=12)
    print(f"{choice}:", told(ids))
    print(attached.report())
    same = told(ids) == told(whole[:, inputs["input_ids"].shape[1] :])
    print("as the host's own generate:", same)
print("removed, the same ids as before:", torch.equal(generate(inputs), before))
