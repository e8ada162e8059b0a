"""Your own LLaVA and somebody's autoencoder: measured, looked at, edited, and passed on.

python docs/examples/own_llava.py                          # the zoo's, saved as yours would be
python docs/examples/own_llava.py MODEL SAE PAIRS SITE     # names on the hub, or folders
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from vlm_edit import Clamp, Host, Pairs, Patch, load_dictionary, measure, zoo
from vlm_edit.dictionaries import save_saelens

QUESTION = "what colour is the background?"


def example(work):
    """A checkpoint of a LLaVA, an autoencoder and pairs, in files as anybody has them."""
    for part in zoo.load_llava():
        part.save_pretrained(work / "llava")
    save_saelens(zoo.load_dictionary("language.0"), work / "sae")
    pairs = zoo.load_pairs()
    with (work / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["file_name", "caption"])
        for i in range(192):
            pairs.open(i).save(work / f"{i}.png")
            rows.writerow([f"{i}.png", pairs.texts[i]])
    return work / "llava", work / "sae", work / "pairs.csv", "language.0"


def answer(host, image):
    """What it answers: asked by its own chat template if it has one."""
    inputs = host.inputs([image], [QUESTION], answer=True).values
    ids = host.model.generate(**inputs, do_sample=False, max_new_tokens=8)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return host.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def main(work, model, sae, table, site):
    """Go the whole way."""
    host, dictionary, pairs = Host.load(model), load_dictionary(sae), Pairs.of(table)
    print("host:", host)
    print("each pair is asked as:", repr(host.asks()))

    # What belongs to vision, to language, to both; and what shows it.
    measurement = measure(host, pairs, dictionary, site=site, progress=False)
    classes = measurement.dominance.classes()
    print("classes:", {name: len(members) for name, members in classes.items()})
    vision = measurement.top("vision", 4)
    print(vision)
    measurement.page(work / "page.html", pairs)
    print("page:", f"{(work / 'page.html').stat().st_size / 2**20:.1f} MiB")

    # An edit of these: as strong as they were in one pair of a hundred.
    rule = Clamp(vision, quantile=0.99, of=measurement)
    patch = Patch(site, dictionary, rule, tokens="image")
    image = pairs.open(0)
    before = answer(host, image)
    with patch.attach(host) as attached:
        during = answer(host, image)
    print(f"{QUESTION} {before!r}, and under the patch {during!r}")
    print(attached.report())
    print("removed, it answers as before:", answer(host, image) == before)
    patch.save(work / "patch.safetensors", host)

    # A colleague's process: the same checkpoint, the file, and no word of the rest.
    code = (
        "import sys; from own_llava import *; from vlm_edit import load_patch\n"
        "host, pairs = Host.load(sys.argv[1]), Pairs.of(sys.argv[2])\n"
        "load_patch(sys.argv[3]).attach(host); print(answer(host, pairs.open(0)))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(model), str(table), str(work / "patch.safetensors")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print("in another process, the same answer:", there.stdout.strip() == during)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), *(sys.argv[1:] or example(Path(folder))))
