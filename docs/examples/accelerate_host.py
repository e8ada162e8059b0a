"""A patch on a host that accelerate dispatched: some weights on disk, loaded layer by layer."""

import tempfile

import torch
from accelerate import dispatch_model

from vlm_edit import Clamp, Patch, zoo

pairs = zoo.load_pairs()
plain, processor = zoo.load_llava()
text = "<image>\nwhat colour is the background?"
inputs = processor(images=pairs.open(1), text=text, return_tensors="pt")  # a keycap on blue
yellow = Clamp([342, 110, 49, 501], value=8.0)
patch = Patch("language.0", zoo.load_dictionary("language.0"), yellow, tokens="image")


@torch.no_grad()
def answer(host):
    """What it says, and the logits of the prompt."""
    ids = host.generate(**inputs, do_sample=False, max_new_tokens=8)
    told = processor.decode(ids[0], skip_special_tokens=True).rpartition("?")[2].strip()
    return told, host(**inputs).logits


with tempfile.TemporaryDirectory() as folder:
    # As `from_pretrained(..., device_map=...)` does it: here the language model goes to disk.
    places = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    host, _ = zoo.load_llava()
    host = dispatch_model(host, places, main_device="cpu", offload_dir=folder, force_hooks=True)
    away = sum(weight.device.type == "meta" for weight in host.parameters())
    print(f"{away} of {len(list(host.parameters()))} weights are not in memory")

    before, logits = answer(host)
    with patch.attach(host) as attached:
        edited, inside = answer(host)
    print("answers:", [before, edited])
    print(attached.report())
    with patch.attach(plain):
        expected, bits = answer(plain)
    print("as a host all in memory:", edited == expected and inside.equal(bits))
    print("removed, the same bits as before:", answer(host)[1].equal(logits))
