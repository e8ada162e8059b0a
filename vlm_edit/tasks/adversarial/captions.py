"""Attacks on what a model says of an image: away from an answer, or to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host, Model
from vlm_edit.tasks.adversarial.host import Pixels


@dataclass(frozen=True, eq=False)
class Speaker:
    """A host that answers a question about an image; patches that are attached act.

    Attributes:
        host: Such as a ``LlavaForConditionalGeneration``, with its processor.
        pixels: Its pixel space.
        question: As a person asks it, or a whole prompt with the image token in it.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> speaker = Speaker.of(Host.of(*zoo.load_llava()), "what colour is the background?")
        >>> speaker.say(speaker.pixels.read(zoo.load_pairs().images[:2]))
        ['white', 'blue']
    """

    host: Host
    pixels: Pixels
    question: str

    @classmethod
    def of(cls, host: Host | Model, question: str = "") -> Speaker:
        """Make a speaker of a host that is asked, which has its processor.

        Raises:
            VlmEditError: It does not generate, or its processor has no image token.
        """
        host = Host.of(host)
        processor = host.expect_processor("an attack on answers")
        if not hasattr(host.root, "generate") or not getattr(processor, "image_token", None):
            raise BadArgument(
                f"{host.kind.__name__} with {type(processor).__name__}: an attack on "
                "answers needs a host with generate, and a processor with an image token"
            )
        return cls(host, Pixels.of(processor), question)

    @property
    def device(self) -> torch.device:
        """Return where its weights are."""
        return self.host.device

    @torch.no_grad()
    def say(self, images: Tensor, most: int = 24, batch_size: int = 128) -> list[str]:
        """Return greedy answers about images [n, 3, h, w] in [0, 1]."""
        model: Any = self.host.root
        answers: list[str] = []
        for some in images.split(batch_size):
            prompt = self._prompt().to(self.device).repeat(len(some), 1)
            ids = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                pixel_values=self.pixels.normalise(some),
                do_sample=False,
                max_new_tokens=most,
            )
            new = ids[:, prompt.shape[1] :]
            texts = self.host.processor.batch_decode(new, skip_special_tokens=True)
            answers += [text.strip() for text in texts]
        return answers

    def answer_ids(self, answers: Sequence[str], lead: str = " ") -> Tensor:
        """Return tokens of answers with their end, padded with -100, [n, a].

        Args:
            answers: One for each image.
            lead: What the host writes between question and answer.

        Raises:
            VlmEditError: No answer, or an empty one.
        """
        if not answers or not all(answer.strip() for answer in answers):
            raise BadArgument("an answer is empty: an attack needs one for each image")
        tokenizer = self.host.processor.tokenizer
        end = [tokenizer.eos_token_id]
        rows = [tokenizer(lead + a, add_special_tokens=False)["input_ids"] + end for a in answers]
        longest = max(map(len, rows))
        return torch.tensor([ids + [-100] * (longest - len(ids)) for ids in rows])

    def logits(self, images: Tensor, answers: Tensor) -> Tensor:
        """Return logits [n, a, v] at each token of answers [n, a], the ones before it given."""
        prompt = self._prompt().to(images.device).repeat(len(images), 1)
        ids = torch.cat([prompt, answers.clamp_min(0)], dim=1)
        logits: Tensor = self.host(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=self.pixels.normalise(images),
            use_cache=False,
        ).logits
        return logits[:, prompt.shape[1] - 1 : -1].float()

    def _prompt(self) -> Tensor:
        """Return the prompt [1, p], with as many image tokens as an image takes."""
        size = self.host.processor.image_processor.size
        blank = torch.zeros(3, size.get("height", 48), size.get("width", 48), dtype=torch.uint8)
        token = self.host.processor.image_token
        text = self.question if token in self.question else f"{token}\n{self.question}"
        ids: Tensor = self.host.processor(images=[blank], text=[text], return_tensors="pt")[
            "input_ids"
        ]
        return ids


@dataclass(frozen=True, eq=False)
class Silence:
    """The aim away from an answer; reached where greedy decoding no longer gives it.

    Attributes:
        speaker: The host and its question.
        answers: [n, a] tokens, as ``Speaker.answer_ids`` makes them, of all images.
    """

    speaker: Speaker
    answers: Tensor

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge as ``Aim``; the loss is the mean cross-entropy over the answer's tokens."""
        loss, same = _told(self.speaker, images, self.answers[rows])
        return loss, ~same


@dataclass(frozen=True, eq=False)
class Speech:
    """The aim to an answer; reached where greedy decoding gives it, word for word.

    Attributes:
        speaker: The host and its question.
        answers: [n, a] tokens, as ``Speaker.answer_ids`` makes them, of all images.
    """

    speaker: Speaker
    answers: Tensor

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Judge as ``Aim``; the loss is the mean log-probability of the answer's tokens."""
        loss, same = _told(self.speaker, images, self.answers[rows])
        return -loss, same


def _told(speaker: Speaker, images: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropy [k] of answers [k, a], and whether greedy decoding would give them."""
    answers = answers.to(images.device)
    logits = speaker.logits(images, answers)
    real = answers != -100
    loss = F.cross_entropy(logits.mT, answers, ignore_index=-100, reduction="none")
    # Greedy decoding gives an answer if each token is the likeliest after those before it.
    same = ((logits.argmax(2) == answers) | ~real).all(1)
    return loss.sum(1) / real.sum(1), same
