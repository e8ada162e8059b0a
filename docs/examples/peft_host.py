"""A patch on a host with LoRA: trained under it, switched off under it, and the file for both."""

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from vlm_edit import Clamp, Patch, load_patch, zoo

pairs = zoo.load_pairs()
plain, processor = zoo.load_llava()
text = ["<image>\nwhat colour is the background?"]
inputs = processor(images=[pairs.open(1)], text=text, return_tensors="pt")  # a keycap on blue
yellow = Clamp([342, 110, 49, 501], value=8.0)
patch = Patch("language.0", zoo.load_dictionary("language.0"), yellow, tokens="image")


def answer(host):
    """What it says."""
    ids = host.generate(**inputs, do_sample=False, max_new_tokens=8)
    return processor.decode(ids[0], skip_special_tokens=True).rpartition("?")[2].strip()


with patch.attach(plain), torch.no_grad():
    expected = plain(**inputs).logits

torch.manual_seed(0)
config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
host = get_peft_model(zoo.load_llava()[0], config)

# A patch saved for the plain host fits: LoRA leaves the weights that it was told by.
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "yellow.safetensors")
    patch.save(file, plain)
    attached = load_patch(file).attach(host)
print("answers under the patch:", answer(host))

# Fine-tuned while the patch is attached: say red, whatever is edited in.
told = f"{text[0]} red{processor.tokenizer.eos_token}"
wanted = processor(images=[pairs.open(1)], text=[told], return_tensors="pt")
labels = wanted["input_ids"].clone()
labels[:, : inputs["input_ids"].shape[1]] = -100
optimizer = torch.optim.AdamW([p for p in host.parameters() if p.requires_grad], lr=0.02)
losses = []
for _ in range(12):
    loss = host(**wanted, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
host.eval()
print(f"loss under the patch: {losses[0]:.2f} to {losses[-1]:.2f}")
print("answers after it was fine-tuned:", answer(host))
with host.disable_adapter(), torch.no_grad():
    print("LoRA off, the patch on:", answer(host))
    print("the same bits as the plain host under it:", host(**inputs).logits.equal(expected))
print(attached.report())
attached.remove()
