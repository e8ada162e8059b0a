"""Draw docs/before-after.png: what emoji-llava answers about four images, before and after an edit.

    python docs/experiments results.before_after

The features of its first language layer that carry the background are clamped at image tokens, as
`vlm-edit demo --llava` does it. The images are the first, in random order, on which nothing was
chosen and that the model tells rightly before.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from vlm_edit import Host, Patch, zoo
from vlm_edit.tasks.demo.generation import SITE, read
from vlm_edit.tasks.demo.interview import Interview, Sizes
from vlm_edit.tasks.demo.steering import Steering

COLOUR = "yellow"
OUT = Path(__file__).resolve().parents[2] / "before-after.png"


def answers(interview: Interview, numbers: list[int], patch: Patch | None = None) -> list[str]:
    """Ask what each image is, and on what."""
    said = [interview.ask(question, numbers, patch) for question in ("what", "background")]
    return [", ".join(parts) for parts in zip(*said, strict=True)]


def _quoted(answer: str) -> str:
    what, colour = answer.rsplit(", ", 1)
    return f"{what},\n{colour}"


def main() -> None:
    """Ask twice and draw."""
    host, pairs = Host.load("zoo:emoji-llava", device="cpu"), zoo.load_pairs()
    interview = Interview(host, pairs, zoo.load_dictionary(SITE), SITE)
    steering = Steering(interview, read(interview)[1]["image"], Sizes())
    patch = interview.patch(steering.rules(COLOUR))
    truth = [f"{what}, {background}" for what, background in zip(
        interview.truth["what"], interview.truth["background"], strict=True)]  # fmt: skip
    asked = [int(i) for i in steering.asked if COLOUR not in truth[int(i)]][:64]
    said = dict(zip(asked, answers(interview, asked), strict=True))
    chosen = [i for i in asked if said[i] == truth[i]][:4]
    before, after = [said[i] for i in chosen], answers(interview, chosen, patch)
    images = [pairs.open(i) for i in chosen]
    figure, axes = plt.subplots(1, 4, figsize=(9, 3.2), dpi=110, facecolor="white")
    for axis, image, first, second in zip(axes, images, before, after, strict=True):
        axis.imshow(image)
        axis.set_axis_off()
        axis.set_title(_quoted(first), fontsize=10, color="#444444")
        axis.text(0.5, -0.12, _quoted(second), transform=axis.transAxes, ha="center",
                  va="top", fontsize=10, color="#b8860b", weight="bold")  # fmt: skip
    figure.text(0.008, 0.86, "before", fontsize=9, color="#444444", rotation=90)
    figure.text(0.008, 0.05, "after", fontsize=9, color="#b8860b", rotation=90, weight="bold")
    figure.subplots_adjust(left=0.03, right=0.99, top=0.84, bottom=0.18, wspace=0.1)
    figure.savefig(OUT)
    for row in zip(chosen, before, after, strict=True):
        print(*row, sep=" | ")


if __name__ == "__main__":
    main()
