"""Does five times the effort, from five starts, break more of what stood at 2/255?

python docs/experiments results.adversarial_more
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from results import adversarial
from results import adversarial_defences as defences
from vlm_edit.tasks.adversarial import Defence, withstand


def main() -> None:
    """Print what stands, attack after attack; the last is the stronger one."""
    torch.set_num_threads(1)
    options = argparse.Namespace(device="cpu", images=48, radii=[2], steps=8, queries=40)
    one = adversarial.Subject(options)
    strength = replace(one.strength, more=True)
    patches = defences.load_tuned(adversarial.PATCHES)
    for defence in (Defence("none"), *defences.tuned(patches)):
        with defence.on(one.model):
            classifier = defence.classifier(one.plain)
            stood = withstand(
                classifier, one.images, one.labels, 2 / 255, strength, surrogate=one.bare
            )
        told = ", ".join(f"{name} {share.text(3)}" for name, share in stood.after.items())
        print(f"{defence.name}: {told}", flush=True)


if __name__ == "__main__":
    main()
