"""One makes a patch and sends a file; another puts it into a server with one line."""

import tempfile
from pathlib import Path

import torch

from vlm_edit import Ablate, Host, Patch, VlmEditError, load_patch, measure, zoo


def make(file):
    """Who makes it: measures once, and writes the edit with the host's fingerprint."""
    model, processor = zoo.load_llava()
    dictionary = zoo.load_dictionary("language.0")
    found = measure(
        Host.of(model, processor), zoo.load_pairs().select(range(256)), dictionary, "language.0"
    )
    vision = found.dominance.classes()["vision"]
    info = {"about": f"without the {len(vision)} vision-dominant features of 256 pairs"}
    Patch("language.0", dictionary, Ablate(vision), tokens="image", info=info).save(file, model)


class Server:
    """Who uses it: a server as it was, but for the line that loads the patch."""

    def __init__(self, patch=None):
        self.model, self.processor = zoo.load_llava()
        self.patch = load_patch(patch).attach(self.model) if patch else None

    def read(self, image, question="what colour is the background?"):
        """A question about an image, as the model takes it."""
        return self.processor(images=image, text=f"<image>\n{question}", return_tensors="pt")

    def answer(self, image):
        """Served to everybody."""
        ids = self.model.generate(**self.read(image), do_sample=False, max_new_tokens=8)
        return self.processor.decode(ids[0], skip_special_tokens=True).rpartition("?")[2].strip()


with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "no-vision.safetensors")
    make(file)
    print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB, {load_patch(file).info['about']}")

    plain, server = Server(), Server(patch=file)
    images = [zoo.load_pairs().open(number) for number in range(300, 306)]
    print("plain:  ", [plain.answer(image) for image in images])
    print("patched:", [server.answer(image) for image in images])
    print(server.patch.report())

    # Another host is refused, before anything changes: here the same class with other weights.
    try:
        load_patch(file).attach(type(plain.model)(plain.model.config))
    except VlmEditError as error:
        print("another host:", error)

server.patch.remove()
with torch.no_grad():
    logits = [s.model(**s.read(images[0])).logits for s in (plain, server)]
print("removed, the same bits as the plain server:", torch.equal(*logits))
