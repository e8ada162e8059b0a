"""Choose names for features on one half of the pairs, and score them on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import AnyDictionary
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.statistics import auc
from vlm_edit.host import Host
from vlm_edit.measuring.naming.detecting import best_of, of_others
from vlm_edit.measuring.naming.evidence import Evidence
from vlm_edit.measuring.naming.head import OutputHead, reads_words
from vlm_edit.measuring.naming.promoting import read_directions
from vlm_edit.measuring.naming.vocabulary import Vocabulary, any_of, caption_holds
from vlm_edit.measuring.naming.words import EmbeddedWords, Words, decoder_rows, strongest
from vlm_edit.measuring.pairs import Pairs

NameJudge = Callable[[Sequence[Image.Image], Sequence[str], Sequence[str]], str]
Scorer = Callable[[str, Sequence[Image.Image], Sequence[str]], Sequence[float]]

_BLOCK = 256  # features handled at once
_LETTERS, _TOGETHER = 3, 5  # of a token that stands in a name of several, and how many do
_LISTED = 10  # words of a direction that are kept, however few are tried
_OTHERS = 1000  # features whose names are shuffled, at most
_SHOWN = 9  # examples that a judge sees of each kind
_ASKED = 20  # pairs in which a feature fires that a scorer sees, and as many others


@dataclass(frozen=True, eq=False)
class Scored:
    """Hold what the pairs of the second half say of a name.

    Attributes:
        pairs: [n] int64, those that were scored.
        scores: [n], how well the name fits each.
        chance: The area of other features' names on the same pairs; NaN where there are none.
    """

    pairs: Tensor
    scores: Tensor
    chance: float


@dataclass(eq=False)
class Naming:
    """Choose names on the first half of the evidence, and score them on the other.

    Attributes:
        host: The host.
        dictionary: Whose features.
        site: Where.
        evidence: Where the features fire.
        template: What a word is put into to be embedded.
        batch_size: Texts per forward.
        seed: Of every draw.
        reading: What reads directions as words; None where nothing does.
        words: Of each feature, those that its direction points to.
    """

    host: Host
    dictionary: AnyDictionary
    site: str
    evidence: Evidence
    template: str
    batch_size: int
    seed: int
    reading: EmbeddedWords | OutputHead | None = None
    words: list[Words] = field(default_factory=list)

    def learn(self, vocabulary: Sequence[str] | Path | None) -> None:
        """Embed the vocabulary, or find the output head; neither where the site has none.

        Args:
            vocabulary: Words of a joint embedding; None for those of the first half's captions.
        """
        self.words = [()] * len(self.evidence.features)
        if self.site == "joint":
            known = self._of_captions() if vocabulary is None else Vocabulary.of(vocabulary)
            self.reading = EmbeddedWords.of(
                *(self.host, self.dictionary, known, self.site),
                *(self.template, self.batch_size),
            )
        elif vocabulary is not None:
            raise BadArgument(
                f"a vocabulary is of joint embeddings, and {self.site!r} has its own words: leave "
                "vocabulary= out"
            )
        elif reads_words(self.host, self.site):
            self.reading = OutputHead.of(self.host, self.site)

    def _of_captions(self) -> Vocabulary:
        texts, first = self.evidence.pairs.texts, self.evidence.first.tolist()
        return Vocabulary.of_captions([t for t, own in zip(texts, first, strict=True) if own])

    def choose(self, judge: NameJudge | None, tried: int) -> dict[int, str]:
        """Choose a name for every feature that there is enough of, by its place.

        Args:
            judge: Who names; None for the best of the words of each direction.
            tried: Words of a direction.
        """
        for places, stream in self._by_stream(range(len(self.evidence.features))):
            if self.reading is not None:
                self._read_words(places, stream, max(tried, _LISTED))
        places = self.evidence.enough.nonzero().flatten().tolist()
        if judge is not None:
            return {place: self._judged(place, judge) for place in places}
        names: dict[int, str] = {}
        for some, stream in self._by_stream(places):
            names |= self._best(some, stream, tried)
        return names

    def _by_stream(self, places: Sequence[int]) -> Iterator[tuple[list[int], str]]:
        """Yield some places at a time, all of features of one stream."""
        for stream in sorted(set(self.evidence.streams)):
            own = [place for place in places if self.evidence.streams[place] == stream]
            for start in range(0, len(own), _BLOCK):
                yield own[start : start + _BLOCK], stream

    def _read_words(self, places: list[int], stream: str, tried: int) -> None:
        assert self.reading is not None
        numbers = [self.evidence.features[place] for place in places]
        rows = decoder_rows(self.dictionary, numbers, stream)
        values, texts = read_directions(self.reading, rows)
        for place, words in zip(places, strongest(values, texts, tried), strict=True):
            self.words[place] = words

    def _best(self, places: list[int], stream: str, tried: int) -> dict[int, str]:
        """Return of each feature's first words the one that tells best where it fires.

        Tokens are parts of words, and of several languages: there several of them together, of
        which a caption holds any, are tried too.
        """
        first = self.evidence.first
        words = [[word for word, _ in self.words[place][:tried]] for place in places]
        if isinstance(self.reading, OutputHead):
            several = [
                [word for word, _ in self.words[place] if len(word) >= _LETTERS][:_TOGETHER]
                for place in places
            ]
            words = [
                [*own, *filter(None, (any_of(own), any_of(all_of)))] + [own[0]] * 2
                for own, all_of in zip(words, several, strict=True)
            ]
            words = [own[: tried + 2] for own in words]  # as many of each
        texts = list(dict.fromkeys(word for some in words for word in some))
        number = {text: i for i, text in enumerate(texts)}
        columns = torch.tensor([[number[word] for word in some] for some in words])
        scores = self._fit(self.reading, texts, stream)[first]
        best = best_of(self.evidence.fires[first][:, places], scores, columns).tolist()
        return {place: texts[i] for place, i in zip(places, best, strict=True)}

    def _fit(
        self, reading: EmbeddedWords | OutputHead | None, names: Sequence[str], stream: str
    ) -> Tensor:
        """Return how well names fit each pair, [n, w]: by cosine, or by its caption."""
        if not isinstance(reading, EmbeddedWords):
            return caption_holds(self.evidence.pairs.texts, names).float()
        known = {text: i for i, text in enumerate(reading.vocabulary.texts)}
        rows = self.evidence.normed[stream]
        rows = rows - rows[self.evidence.first].mean(0)
        return F.normalize(rows, dim=1) @ reading.unit[[known[name] for name in names]].mT

    def _judged(self, place: int, judge: NameJudge) -> str:
        """Ask for the name of a feature."""
        evidence, feature = self.evidence, self.evidence.features[place]
        top = evidence.strongest(place, _SHOWN)
        silent = (evidence.first & ~evidence.fires[:, place]).nonzero().flatten()
        generator = torch.Generator().manual_seed(self.seed + feature)
        others = silent[torch.randperm(len(silent), generator=generator)[:_SHOWN]].tolist()
        texts = evidence.pairs.texts
        images = [evidence.pairs.open(i) for i in top]
        name = judge(images, [texts[i] for i in top], [texts[i] for i in others])
        if not isinstance(name, str) or not name.strip():
            raise BadArgument(f"the judge gave {name!r} for feature {feature}: a name is a text")
        return name.strip()

    def score(self, names: dict[int, str]) -> dict[int, Scored]:
        """Score names on the second half, each beside a thousand others at most.

        Args:
            names: By place.
        """
        if not names:
            return {}
        reading = self.reading
        texts = list(dict.fromkeys(names.values()))
        if isinstance(reading, EmbeddedWords) and not set(texts) <= set(reading.vocabulary.texts):
            reading = reading.also(self.host, self.dictionary, texts, self.site)
        generator = torch.Generator().manual_seed(self.seed)
        places = list(names)
        drawn = [places[i] for i in torch.randperm(len(places), generator=generator)[:_OTHERS]]
        shuffled = list(dict.fromkeys(names[place] for place in drawn))
        number = {text: i for i, text in enumerate(shuffled)}
        often = torch.tensor([number[names[p]] for p in drawn]).bincount(minlength=len(shuffled))
        column = {place: number[names[place]] for place in drawn}
        second = (~self.evidence.first).nonzero().flatten()
        scored: dict[int, Scored] = {}
        for some, stream in self._by_stream(places):
            fires = self.evidence.fires[second][:, some]
            others = self._fit(reading, shuffled, stream)[second]
            own = torch.tensor([column.get(place, -1) for place in some])
            chance = of_others(fires, others, own, often).tolist()
            fit = self._fit(reading, [names[place] for place in some], stream)[second]
            columns = zip(some, fit.unbind(1), chance, strict=True)
            scored |= {place: Scored(second, one, value) for place, one, value in columns}
        return scored

    def ask(self, names: dict[int, str], scorer: Scorer) -> dict[int, Scored]:
        """Have some pairs of the second half scored, for a feature's name and for another's.

        Args:
            names: By place.
            scorer: Who scores.
        """
        scored: dict[int, Scored] = {}
        places, areas = list(names), []
        generator = torch.Generator().manual_seed(self.seed)
        order = [places[i] for i in torch.randperm(len(places), generator=generator).tolist()]
        after = dict(zip(order, order[1:] + order[:1], strict=True))
        for place in places:
            fires = self.evidence.fires[:, place]
            drawn = torch.cat([self._some(fires, generator), self._some(~fires, generator)])
            own = _asked(scorer, names[place], self.evidence.pairs, drawn)
            other = _asked(scorer, names[after[place]], self.evidence.pairs, drawn)
            areas.append(auc(other, fires[drawn]))
            scored[place] = Scored(drawn, own, 0.0)
        # One other name says little of one feature: chance is that of all of them.
        chance = sum(areas) / len(areas) if len(areas) > 1 else 0.5
        return {p: Scored(one.pairs, one.scores, chance) for p, one in scored.items()}

    def _some(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        there = (mask & ~self.evidence.first).nonzero().flatten()
        return there[torch.randperm(len(there), generator=generator)[:_ASKED]]


def _asked(scorer: Scorer, name: str, pairs: Pairs, drawn: Tensor) -> Tensor:
    numbers = drawn.tolist()
    given = scorer(name, [pairs.open(i) for i in numbers], [pairs.texts[i] for i in numbers])
    scores = torch.as_tensor(given, dtype=torch.float64)
    if scores.shape != drawn.shape or bool(scores.isnan().any()):
        raise BadArgument(
            f"the scorer gave {tuple(scores.shape)} for {len(numbers)} pairs and the name "
            f"{name!r}: it must give a number for each, none of them NaN"
        )
    return scores
