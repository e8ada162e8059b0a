"""A measurement over batches of pairs: everything that is kept of them while they pass."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import DamagedFile
from vlm_edit.measures.dominance import DominanceAccumulator, GapAccumulator, Zeros, drawn
from vlm_edit.measures.interpretability import (
    DrawnExamples,
    SimilarityAccumulator,
    TopExamples,
)
from vlm_edit.measures.sizes import ActivationSizes
from vlm_edit.measuring.judge import Judge
from vlm_edit.measuring.judging import SEED, likeness_scores, monosemanticity_scores
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.provenance import PairsDigest
from vlm_edit.measuring.reader import STREAMS, Batch
from vlm_edit.measuring.repeats import Repeats
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.table import files_of

_DRAWN = 8  # of those that activate a feature, beside those that do most

_Part = (
    DominanceAccumulator
    | GapAccumulator
    | TopExamples
    | SimilarityAccumulator
    | PairsDigest
    | ActivationSizes
)


class MeasurementAccumulator:
    """Gather a measurement over batches of pairs, for those who read them on their own.

    Its size does not depend on the number of pairs, nor what it holds on how they are cut, but
    for the last digits of float64 sums.

    Args:
        n_features: Size m of the dictionary.
        zeros: As in ``modality_dominance``.
        keep: Top examples per feature.
        judge: Compares examples; by default nobody does.

    Attributes:
        dominance: Of the codes.
        gap: Of the activations.
        examples: Per stream.
        drawn: Per stream, some of all that activate a feature.
        similarity: Per stream that the judge judges.
        sizes: Of single tokens' activations, per stream; None once a batch came without them.
        digest: Of the pairs.
    """

    def __init__(
        self, n_features: int, zeros: Zeros = "skip", keep: int = 50, judge: Judge | None = None
    ) -> None:
        self.judge = judge
        self.dominance = DominanceAccumulator(n_features, zeros, SEED)
        self.gap = GapAccumulator()
        self.examples = {stream: TopExamples(n_features, keep) for stream in STREAMS}
        self.drawn = {stream: DrawnExamples(n_features, _DRAWN) for stream in STREAMS}
        self.sizes: dict[str, ActivationSizes] | None
        self.sizes = {stream: ActivationSizes(n_features) for stream in STREAMS}
        self.similarity: dict[str, SimilarityAccumulator] = {}
        self.digest = PairsDigest()
        self._normed: dict[str, Tensor] = {}

    def update(self, *batches: Batch) -> None:
        """Add batches of a site with both streams; all captions of an image in one call."""
        if not batches:
            return
        codes = {s: SparseCodes.cat([b.codes[s] for b in batches]) for s in STREAMS}
        shown = [image for batch in batches for image in batch.shown or ()]
        self.dominance.update(codes["image"], codes["text"], shown or None)
        numbers = [number for batch in batches for number in batch.numbers]
        once = {numbers[i] for i in drawn(shown, SEED).tolist()} if shown else None
        for batch in batches:
            self._add(batch, once)

    def _add(self, batch: Batch, once: Collection[int] | None) -> None:
        """Add a batch; ``once`` are the pairs whose image is looked at, None for all."""
        self.gap.update(batch.hidden["image"], batch.hidden["text"])
        if batch.digests:
            self.digest.update(batch.numbers, batch.digests, batch.texts)
        self._add_sizes(batch.tokens)
        for stream in STREAMS:
            codes, rows = batch.codes[stream].to("cpu"), list(range(len(batch.numbers)))
            if stream == "image" and once is not None:  # an image is an example once
                rows = [i for i in rows if batch.numbers[i] in once]
                codes = codes.pick(torch.tensor(rows, dtype=torch.int64))
            numbers = [batch.numbers[i] for i in rows]
            self.examples[stream].update(codes, numbers)
            self.drawn[stream].update(codes, numbers)
            if self.judge is not None and stream in self.judge.streams and rows:
                images = [batch.images[i] for i in rows]
                embeddings = self.judge.embed(stream, images, [batch.texts[i] for i in rows])
                self._similarity(stream, codes.n_features, embeddings.shape[1]).update(
                    codes, embeddings
                )
            if stream in batch.normed:
                self._add_normed(stream, batch.normed[stream].double().sum(0).cpu())

    def merge(self, other: MeasurementAccumulator) -> None:
        """Add the batches of another accumulator, such as another process's."""
        self.dominance.merge(other.dominance)
        self.gap.merge(other.gap)
        self.digest.merge(other.digest)
        self._add_sizes(other.sizes or {})
        for stream in STREAMS:
            self.examples[stream].merge(other.examples[stream])
            self.drawn[stream].merge(other.drawn[stream])
        for stream, similarity in other.similarity.items():
            self._similarity(stream, similarity.n_features, similarity.width).merge(similarity)
        for stream, total in other._normed.items():
            self._add_normed(stream, total)

    def means(self) -> Mapping[str, Tensor]:
        """Return the mean of the normed activations per stream, [d] float64."""
        return {stream: total / self.dominance.n_pairs for stream, total in self._normed.items()}

    def compute(
        self,
        site: str,
        skipped: Sequence[tuple[int, str]] = (),
        truncated: int = 0,
        pairs: Pairs | None = None,
        provenance: Mapping[str, Any] | None = None,
        unread: Sequence[int] = (),
    ) -> Measurement:
        """Return the measurement of all batches so far.

        Args:
            site: Where they were read.
            skipped: Pairs left out, with the reason.
            truncated: Texts that were cut.
            pairs: Where the judge looks the top examples up; without them it does not.
            provenance: Goes into the result.
            unread: Numbers of pairs that were not read, which the judge does not look at.
        """
        scores: dict[str, Tensor] = {}
        random: dict[str, tuple[float, float, float]] = {}
        if self.judge is not None:
            scores |= monosemanticity_scores(self.similarity, self.judge)
        if self.judge is not None and pairs is not None:
            left_out = [*(number for number, _ in skipped), *unread]
            likeness, random = likeness_scores(self.examples, self.judge, pairs, left_out)
            scores |= likeness
        return Measurement(
            self.dominance.compute(),
            self.gap.compute(),
            copy.deepcopy(self.examples),
            site,
            self.dominance.n_pairs,
            tuple(skipped),
            truncated,
            self.means(),
            scores,
            random,
            dict(provenance or {}),
            self._repeats(),
            copy.deepcopy(self.sizes or {}),
            {} if pairs is None else files_of(self.examples, pairs),
            copy.deepcopy(self.drawn),
        )

    def _repeats(self) -> dict[str, Repeats]:
        """Return repeats per stream; nothing where batches had no images."""
        return {s: counter.compute() for s, counter in self.digest.repeats.items() if len(counter)}

    def state_dict(self) -> dict[str, Tensor]:
        """Return all there is, as tensors."""
        state = {f"normed.{stream}": total for stream, total in self._normed.items()}
        for name, part in self._parts().items():
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            VlmEditError: Another number of features, another ``keep``, or damaged.
        """
        rest = dict(state)
        self._normed = take(rest, "normed.")
        for stream in STREAMS:
            some = take(rest, f"similarity.{stream}.")
            if some:
                self._similarity(stream, *some["weighted"].shape).load_state_dict(some)
        if not any(name.startswith("sizes.") for name in rest):  # of a former version
            self.sizes = None
        for name, part in self._parts().items():
            if not name.startswith("similarity."):
                part.load_state_dict(take(rest, f"{name}."))
        if rest:
            raise DamagedFile(f"a state of another version: it also holds {sorted(rest)[0]!r}")

    def _parts(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = {
            "dominance": self.dominance,
            "gap": self.gap,
            "digest": self.digest,
        }
        parts |= {f"examples.{stream}": top for stream, top in self.examples.items()}
        parts |= {f"drawn.{stream}": some for stream, some in self.drawn.items()}
        parts |= {f"sizes.{stream}": sizes for stream, sizes in (self.sizes or {}).items()}
        return parts | {f"similarity.{stream}": s for stream, s in self.similarity.items()}

    def _similarity(self, stream: str, n_features: int, width: int) -> SimilarityAccumulator:
        if stream not in self.similarity:
            self.similarity[stream] = SimilarityAccumulator(n_features, width)
        return self.similarity[stream]

    def _add_sizes(self, tokens: Mapping[str, SparseCodes | ActivationSizes]) -> None:
        if self.sizes is None or set(tokens) != set(self.sizes):
            self.sizes = None  # those of a part would be taken for those of all
            return
        for stream, sizes in self.sizes.items():
            some = tokens[stream]
            (sizes.merge if isinstance(some, ActivationSizes) else sizes.update)(some)  # type: ignore[arg-type]

    def _add_normed(self, stream: str, total: Tensor) -> None:
        self._normed[stream] = self._normed.get(stream, torch.zeros_like(total)) + total


def take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take what has a prefix out of a state, and return it without that."""
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state.pop(name) for name in names}
