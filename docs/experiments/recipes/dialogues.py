"""Questions and answers about images, several to one image, for training a LLaVA."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from recipes.augment import Strength
from recipes.batches import TrainingPairs
from recipes.captions import PHRASINGS, caption
from recipes.concepts import LANGUAGES
from recipes.pairs import BACKGROUNDS, load_drawings
from vlm_edit.zoo.questions import QUESTIONS, answer

START, END, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
WEIGHTS = {"what": 1.0, "background": 0.3, "who": 0.5, "caption": 0.4}
_PADDING, _PREFIX = -1, 0


def train_speaker(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train byte-level byte-pair merges that keep case, as Llama's and GPT-2's do.

    Args:
        texts: The text to learn merges from.
        size: Number of tokens in all.

    Returns:
        The tokenizer; it pads on the left, as generation wants.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, START, END, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, learner.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, bos_token=START, eos_token=END, pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE}, padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def every_text(folder_names: Sequence[str], captions: Iterable[str]) -> Iterable[str]:
    """Everything the model reads or says, as it stands behind the image.

    Args:
        folder_names: All labels.
        captions: All captions.
    """
    for text in captions:
        yield f"\n{text}"
    for label in folder_names:
        yield f"\n{QUESTIONS['what']} {label}"
    for question in QUESTIONS.values():
        yield from [f"\n{question}"] * len(folder_names)


@dataclass
class Dialogue:
    """Several texts behind one image, none of which sees another.

    Attributes:
        pixels: Normalised images.
        ids: Token ids [batch, length]; the images' tokens are left out.
        positions: Position of each token, as if its text were alone.
        part: 0 for what precedes the image, then the number of the text; -1 for padding.
        targets: The next token where it is part of an answer, -100 elsewhere.
        weights: Weight of each target.
    """

    pixels: Tensor
    ids: Tensor
    positions: Tensor
    part: Tensor
    targets: Tensor
    weights: Tensor


class Dialogues:
    """Endless batches of the training split."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, strength: Strength, seed: int
    ) -> None:
        """Load the drawings.

        Args:
            folder: What the pairs recipe rendered.
            tokenizer: Of the model.
            strength: How strongly to augment.
            seed: Seed of every draw.
        """
        self.pairs = TrainingPairs(folder, tokenizer, strength, seed)
        self.rows = [row for row in load_drawings(folder)[1] if row["split"] == "train"]
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self.reseed(strength, seed)

    def reseed(self, strength: Strength, seed: int) -> None:
        """Start all chance anew, as after a resume."""
        self.pairs.reseed(strength, seed)
        self.words = random.Random(seed + 1)

    def batch(self, size: int) -> Dialogue:
        """Draw one batch: of each image its name, a caption, and one of the other questions.

        Args:
            size: Number of images.
        """
        pixels, chosen, backgrounds = self.pairs.views(size)
        colours = list(BACKGROUNDS)
        texts = [
            self._texts({**self.rows[i], "background": colours[b]})
            for i, b in zip(chosen.tolist(), backgrounds.tolist(), strict=True)
        ]
        return Dialogue(pixels, *pack(texts, self.tokenizer.bos_token_id))

    def _texts(self, row: dict[str, str]) -> list[tuple[list[int], list[int], float]]:
        other = self.words.choice(["background", "who"])
        told = caption(
            self.pairs.names[row["label"]], self.words.choice(LANGUAGES),
            self.words.choice(PHRASINGS), self.words,
        )  # fmt: skip
        asked = [
            (self._ids(f"\n{QUESTIONS[q]}"), self._ids(f" {answer(q, row)}"), WEIGHTS[q])
            for q in ("what", other)
        ]
        asked.append((self._ids("\n"), self._ids(told), WEIGHTS["caption"]))
        end = self.tokenizer.eos_token_id
        return [(question, [*said, end], weight) for question, said, weight in asked]

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._known[text]


def pack(
    rows: Sequence[Sequence[tuple[list[int], list[int], float]]], start: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Lay several texts of each image behind each other.

    Args:
        rows: Of each image its questions, answers and weights.
        start: The first token's id.

    Returns:
        `ids`, `positions` (of the text alone, the first token being 0), `part`, `targets` and
        `weights` of a `Dialogue`.
    """
    length = 1 + max(sum(len(q) + len(a) for q, a, _ in row) for row in rows)
    shape = (len(rows), length)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    part, targets = torch.full(shape, _PADDING), torch.full(shape, -100)
    weights = torch.zeros(shape)
    ids[:, 0], part[:, 0] = start, _PREFIX
    for n, row in enumerate(rows):
        at = 1
        for number, (question, said, weight) in enumerate(row, 1):
            here, first = slice(at, at + len(question) + len(said)), at + len(question) - 1
            ids[n, here] = torch.tensor([*question, *said])
            positions[n, here] = torch.arange(1, 1 + len(question) + len(said))
            part[n, here] = number
            targets[n, first : first + len(said)] = torch.tensor(said)
            weights[n, first : first + len(said)] = weight
            at = here.stop
    return ids, positions, part, targets, weights


def visible(part: Tensor) -> Tensor:
    """Which tokens each token sees: those before it in its own text, and what precedes all texts.

    Args:
        part: [batch, length], as in `Dialogue`, the image's tokens included.

    Returns:
        [batch, 1, length, length] bool.
    """
    own = part[:, :, None] == part[:, None]
    before = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool).tril()
    return ((own | (part == _PREFIX)[:, None]) & before)[:, None]
