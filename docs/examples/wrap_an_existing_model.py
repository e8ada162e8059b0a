"""A patch around inference code that exists already and does not change.

Which features of a LLaVA's first language layer fire for images, which for captions? What does
the model still answer without the first?
"""

import torch

from vlm_edit import Ablate, Host, Patch, measure, zoo


# Yours, from before: it knows nothing of vlm-edit, and no line of it changes.
@torch.no_grad()
def answer(model, processor, image, question):
    """Ask a question about an image."""
    inputs = processor(images=image, text=f"<image>\n{question}", return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    return processor.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()


model, processor = zoo.load_llava()  # a LlavaForConditionalGeneration and its processor
pairs = zoo.load_pairs()  # or read_pairs("my-pairs.csv")
dictionary = zoo.load_dictionary("language.0")  # or load_dictionary("folder-of-an-SAE")

# 1. Measure: the Modality Dominance Score of every feature, from images and their captions.
found = measure(Host.of(model, processor), pairs.select(range(256)), dictionary, site="language.0")
classes = found.dominance.classes()
print("features at language.0:", {name: len(members) for name, members in classes.items()})

# 2. Edit: take the vision-dominant features out of the image tokens.
patch = Patch("language.0", dictionary, Ablate(classes["vision"]), tokens="image")

questions = ("what is it?", "what colour is the background?")
asked = [(pairs.open(number), question) for number in range(300, 304) for question in questions]
before = [answer(model, processor, *this) for this in asked]
with patch.attach(model) as attached:
    during = [answer(model, processor, *this) for this in asked]
after = [answer(model, processor, *this) for this in asked]

print(f"\n{'question':32}{'before':24}without vision-dominant features")
for (_image, question), old, new in zip(asked, before, during, strict=True):
    print(f"{question:32}{old[:22]:24}{new[:34]}")

# 3. What was really edited, and what is left of it.
print(f"\n{attached.report()}")
print("detached, the answers are those from before:", after == before)
