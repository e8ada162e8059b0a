"""Texts in a joint embedding, and which of them a feature's direction points to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import AnyDictionary, Dictionary, PairedDictionary, Transcoder
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host
from vlm_edit.measuring.naming.vocabulary import Vocabulary
from vlm_edit.measuring.pairs import one_sided
from vlm_edit.measuring.reader import Reader

Words = tuple[tuple[str, float], ...]

_PLACE = "{}"


def decoder_rows(dictionary: AnyDictionary, features: Sequence[int], stream: str) -> Tensor:
    """Return decoder rows of some features, [t, d] float32 on the CPU.

    Args:
        dictionary: Of any kind; of a paired one the stream's.
        features: Their numbers.
        stream: ``image`` or ``text``.
    """
    half = dictionary
    if isinstance(half, Transcoder):
        half = half.inner
    if isinstance(half, PairedDictionary):
        half = half.image if stream == "image" else half.text
    index = list(features)
    if isinstance(half, Dictionary):
        return half.decoder[index].detach().float().cpu()
    return half.decoder.take(index).cpu()


def embed_texts(
    host: Host, dictionary: AnyDictionary, texts: Sequence[str], site: str, batch_size: int
) -> Tensor:
    """Embed texts by the host's own text side, [n, d] after the dictionary's norm.

    Args:
        host: With its processor.
        dictionary: Whose norm.
        texts: One at least.
        site: Of the joint embedding.
        batch_size: Texts per forward.
    """
    reader = Reader(host, dictionary, site, batch_size=batch_size, progress=False)
    pairs = one_sided(list(texts), "the vocabulary")
    return torch.cat([batch.normed["text"].cpu() for batch in reader.read(pairs)])


@dataclass(frozen=True, eq=False)
class EmbeddedWords:
    """Hold a vocabulary in the joint embedding, its mean taken out.

    Images and texts lie apart there, so that a text is compared by where it lies among texts and
    an image by where it lies among images.

    Attributes:
        vocabulary: The texts.
        centre: [d], their mean by weight.
        unit: [w, d], directions from the mean, of length 1; 0 for a text that lies on it.
        template: What a text is put into before it is embedded.
    """

    vocabulary: Vocabulary
    centre: Tensor
    unit: Tensor
    template: str

    @classmethod
    def of(
        cls,
        host: Host,
        dictionary: AnyDictionary,
        vocabulary: Vocabulary,
        site: str = "joint",
        template: str = _PLACE,
        batch_size: int = 64,
    ) -> EmbeddedWords:
        """Embed a vocabulary.

        Raises:
            VlmEditError: A template without ``{}``, or as ``Reader``.
        """
        if _PLACE not in template:
            raise BadArgument(f"template is {template!r}: it takes a word where {{}} stands")
        texts = [template.replace(_PLACE, text) for text in vocabulary.texts]
        rows = embed_texts(host, dictionary, texts, site, batch_size)
        weights = torch.tensor(vocabulary.weights, dtype=rows.dtype)[:, None]
        centre = (rows * weights).sum(0) / weights.sum()
        return cls(vocabulary, centre, F.normalize(rows - centre, dim=1), template)

    def also(
        self, host: Host, dictionary: AnyDictionary, texts: Sequence[str], site: str
    ) -> EmbeddedWords:
        """Embed other texts around the same mean."""
        put = [self.template.replace(_PLACE, text) for text in texts]
        rows = embed_texts(host, dictionary, put, site, 64)
        named = Vocabulary(tuple(texts), (1.0,) * len(texts), "names")
        return replace(self, vocabulary=named, unit=F.normalize(rows - self.centre, dim=1))

    def cosines(self, directions: Tensor) -> Tensor:
        """Return cosines [t, w] of directions [t, d] with the texts."""
        return F.normalize(directions, dim=1) @ self.unit.mT


def strongest(values: Tensor, texts: Sequence[str], most: int) -> list[Words]:
    """List the texts of the highest values of each row, falling.

    Args:
        values: [t, w].
        texts: w of them.
        most: Of each row.

    Example:
        >>> import torch
        >>> strongest(torch.tensor([[0.5, 1.0, 0.0]]), ["a", "b", "c"], 2)
        [(('b', 1.0), ('a', 0.5))]
    """
    top, order = values.topk(min(most, len(texts)), dim=1)
    return [
        tuple((texts[i], float(value)) for i, value in zip(places, row, strict=True))
        for places, row in zip(order.tolist(), top.tolist(), strict=True)
    ]
