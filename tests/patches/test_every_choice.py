"""Which tokens an edit reaches, for any choice in any way of running the host, token by token.

The oracle is a few lines of plain Python that know a token's place and nothing of calls: whether it
is padding, prompt or answer, which step it is of, and which image tokens the prompt has.
"""

from dataclasses import dataclass

import pytest
import torch
from conftest import CACHE, IMAGE_TOKEN, make_llava, random_dictionary

from vlm_edit import Patch, Steer, record

LLAVA = make_llava()
SITE, DICTIONARY = "language.1", random_dictionary(32)
LENGTH, NEW = 9, 4
IMAGE = [IMAGE_TOKEN] * 4
IDS = torch.tensor([[1, 5, *IMAGE, 6, 7, 8], [0, 0, 1, *IMAGE, 9, 10]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
REAL = IDS != 0


@dataclass(frozen=True, eq=False)
class Choice:
    """What is asked of an edit."""

    tokens: str
    phase: str = "both"
    steps: tuple[int, int | None] | None = None
    positions: tuple[int, ...] | None = None
    mask: torch.Tensor | None = None
    image_mask: torch.Tensor | None = None

    def __str__(self):
        told = {k: v for k, v in vars(self).items() if v is not None}
        return "-".join(k if isinstance(v, torch.Tensor) else f"{v}" for k, v in told.items())

    def means(self, row, place):
        """Whether a token is meant."""
        step = place - LENGTH
        if step >= 0:
            first, last = self.steps or (0, None)
            inside = step >= first and (last is None or step < last)
            other = self.phase == "prompt" or self.positions is not None
            return inside and not other and self.tokens != "image"
        if not REAL[row, place] or self.phase == "decode":
            return False
        if self.positions is not None:
            own = [i for i in range(LENGTH) if REAL[row, i]]
            wanted = [own[p] for p in self.positions if -len(own) <= p < len(own)]
            if place not in wanted:
                return False
        if self.mask is not None:
            return bool(self.mask[row, place])
        image = (IDS == IMAGE_TOKEN if self.image_mask is None else self.image_mask)[row, place]
        return self.tokens == "all" or bool(image) == (self.tokens == "image")


def drawn(seed):
    return torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(seed)) > 0.5


CHOICES = [
    Choice("image"),
    Choice("text+special"),
    Choice("image", image_mask=drawn(1)),
    Choice("text+special", image_mask=drawn(1)),
    Choice("all", mask=drawn(2)),
    Choice("image", mask=drawn(2)),
    Choice("text+special", mask=drawn(2), image_mask=drawn(1)),
    Choice("all", phase="prompt", mask=drawn(3)),
    Choice("text+special", phase="prompt"),
    Choice("all", phase="decode"),
    Choice("text+special", phase="decode", steps=(0, 1)),
    Choice("all", phase="decode", steps=(1, None)),
    Choice("all", steps=(1, 2)),
    Choice("text+special", steps=(0, 2), image_mask=drawn(1)),
    Choice("text+special", steps=(2, None), mask=drawn(4)),
    Choice("all", positions=(0, -1, 7, -9)),
    Choice("image", positions=(1, 2, -4), phase="prompt"),
    Choice("text+special", positions=(0, 3, -2), image_mask=drawn(1)),
    Choice("text+special", positions=(1, 4, -1), mask=drawn(4)),
]


def generating(**options):
    def run(inputs):
        quiet = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
        LLAVA.generate(**inputs, **quiet | options)

    return run


def by_embeddings(**options):
    """As where images are merged by the user: no ids, and no images."""

    def run(inputs):
        LLAVA.generate(
            inputs_embeds=LLAVA.get_input_embeddings()(inputs["input_ids"]),
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW,
            do_sample=False,
            **options,
        )

    return run


def looping(inputs):
    """A loop of the user's own."""
    attention, cache = inputs["attention_mask"], None
    output = LLAVA(**inputs, use_cache=True)
    for _ in range(NEW - 1):
        cache, token = output[CACHE], output.logits[:, -1:].argmax(-1) % IMAGE_TOKEN
        attention = torch.cat([attention, torch.ones_like(token)], 1)
        output = LLAVA(input_ids=token, attention_mask=attention, **{CACHE: cache})


def prompting(inputs):
    """A forward alone."""
    LLAVA(**inputs)


STATIC = {"cache_implementation": "static", "disable_compile": True}
WAYS = {
    "generate": generating(),
    "beams": generating(num_beams=2),
    "sampled": generating(do_sample=True, num_return_sequences=2),
    "no cache": generating(use_cache=False),
    "static": generating(**STATIC),
    "pieces": generating(prefill_chunk_size=4),
    "embeddings": by_embeddings(),
    "static embeddings": by_embeddings(**STATIC),
    "loop": looping,
    "forward": prompting,
}


def outputs(way, choice):
    """The site's outputs before and after an edit, of one run, and the report."""
    patch = Patch(
        SITE,
        DICTIONARY,
        Steer([1, 2], 2.0),
        tokens=choice.tokens,
        phase=choice.phase,
        steps=choice.steps,
        positions=choice.positions,
    )
    image_mask = choice.image_mask
    if "embeddings" in way and image_mask is None:
        image_mask = IDS == IMAGE_TOKEN  # nothing else could tell
    inputs = {"input_ids": IDS, "attention_mask": REAL.long(), "pixel_values": PIXELS}
    with (
        torch.no_grad(),
        record(LLAVA, SITE) as before,
        patch.attach(LLAVA, mask=choice.mask, image_mask=image_mask) as attached,
        record(LLAVA, SITE) as after,
    ):
        WAYS[way](inputs)
    assert len(before.captures) == len(after.captures)
    seen = zip(before.captures, after.captures, strict=True)
    return [(a.hidden, b.hidden) for a, b in seen], attached.report()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.filterwarnings("ignore:the patch edited no token")
def test_an_edit_reaches_the_tokens_that_are_meant_and_no_other(choice, way):
    calls, report = outputs(way, choice)
    place = edited = 0
    for before, after in calls:
        place = 0 if way == "no cache" else place
        rows, length, _ = before.shape
        expected = [
            [choice.means(row // (rows // 2), place + i) for i in range(length)]
            for row in range(rows)
        ]
        assert (before != after).any(-1).tolist() == expected
        edited += sum(map(sum, expected))
        place += length
    assert place == (LENGTH if way == "forward" else LENGTH + NEW - 1)
    assert report.edited_tokens == edited
