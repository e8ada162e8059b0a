"""A CLIP tokenizer trained on the captions."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from recipes.captions import PHRASINGS, caption
from recipes.concepts import LANGUAGES, Names

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 32


def every_caption(names: Mapping[str, Mapping[str, Names]]) -> Iterator[str]:
    """Yield all captions without keywords, and each keyword once.

    Args:
        names: Words by label and language.
    """
    rng = random.Random(0)
    for by_language in names.values():
        for language in LANGUAGES:
            for phrasing in PHRASINGS:
                yield caption(by_language, language, phrasing, rng)
            yield from by_language[language].keywords


def train_tokenizer(captions: Iterable[str], size: int) -> CLIPTokenizer:
    """Train byte-pair merges and give them to transformers' CLIP tokenizer.

    Args:
        captions: The text to learn merges from.
        size: Number of tokens in all.

    Returns:
        The tokenizer; as in OpenAI's, the end token is the last one and pads.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    reference = CLIPTokenizer()
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [*alphabet, *(a + SUFFIX for a in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]]
    merges = merges[: size - 2 - len(base)]
    tokens = list(dict.fromkeys([*base, *(a + b for a, b in merges)]))
    tokens += [START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
