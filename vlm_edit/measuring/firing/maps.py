"""Where features fire in their examples, token by token: kept, sparse, in a file beside the run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.files import read_tensors, write_tensors
from vlm_edit.ground.notebook import one_line, several

VERSION = 1
_WHAT = "maps"


@dataclass(frozen=True, eq=False)
class Firing:
    """Hold where a feature fires in one pair.

    Attributes:
        number: The pair's.
        values: Activations at the tokens of each stream, [t] float32, with their sign.
        boxes: [t, 4] float32 left, top, right and bottom of each image token, as fractions of the
            picture, NaN for one that stands for no part of it; None where nobody can tell.
        words: Of the text tokens, with the blank before them; empty where nobody can tell.
    """

    number: int
    values: Mapping[str, Tensor]
    boxes: Tensor | None
    words: Sequence[str]


@dataclass(frozen=True, eq=False)
class Shown:
    """Hold what is known of the tokens of one pair.

    Attributes:
        number: The pair's.
        counts: Of tokens, per stream.
        place: The number of its boxes among those of all; -1 where nobody can tell.
        words: Of the text tokens.
    """

    number: int
    counts: Mapping[str, int]
    place: int
    words: Sequence[str]


@dataclass(frozen=True, eq=False, repr=False)
class Maps:
    """Hold where the features of a run fire in their examples.

    Attributes:
        site: Where.
        pairs: Which there are, in the order of their numbers.
        features: [n] int64, rising: of each map its feature.
        of_pairs: [n] int64: of each map the place of its pair in ``pairs``.
        starts: [n + 1] int64 per stream: where the activations of each map begin.
        tokens: [k] int64 per stream: of each activation the token.
        values: [k] float32 per stream: the activations, none of them 0.
        boxes: [t, 4] float32 each, of pictures of one size.
        left_out: How many live features have no maps, as only so many pairs are looked at.
        why: Why no token has a box, where nobody can tell where it stands.
    """

    site: str
    pairs: Sequence[Shown]
    features: Tensor
    of_pairs: Tensor
    starts: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    boxes: Sequence[Tensor] = ()
    left_out: int = 0
    why: str = ""

    def __len__(self) -> int:
        """Return the number of maps."""
        return len(self.features)

    def __repr__(self) -> str:
        """Say on a line how many there are."""
        features = several(len(self.features.unique()), "feature")
        return one_line(f"Maps({self.site}: {features} in {several(len(self.pairs), 'pair')})")

    def strongest(self) -> list[int]:
        """Return the features that have maps, by their largest activation, falling."""
        most = torch.zeros(int(self.features.max()) + 1 if len(self) else 0)
        for stream, starts in self.starts.items():
            of = self.features.repeat_interleave(starts.diff())
            most.scatter_reduce_(0, of, self.values[stream].abs(), "amax")
        return [k for k in most.argsort(descending=True, stable=True).tolist() if most[k] > 0]

    def of(self, feature: int) -> list[Firing]:
        """Return the maps of a feature, in the order of the pairs.

        Args:
            feature: Its number; one without maps has none.
        """
        first, last = torch.searchsorted(
            self.features, torch.tensor([feature, feature + 1], dtype=torch.int64)
        ).tolist()
        return [self._firing(i) for i in range(first, last)]

    def _firing(self, i: int) -> Firing:
        pair = self.pairs[int(self.of_pairs[i])]
        values = {}
        for stream in self.starts:
            a, b = self.starts[stream][i : i + 2].tolist()
            values[stream] = torch.zeros(pair.counts[stream])
            values[stream][self.tokens[stream][a:b]] = self.values[stream][a:b]
        boxes = None if pair.place < 0 else self.boxes[pair.place]
        return Firing(pair.number, values, boxes, pair.words)

    def save(self, path: str | os.PathLike[str], run: str = "") -> None:
        """Write them to a file, whole or not at all.

        Args:
            path: The file.
            run: The checksum of the run they are of.
        """
        words = json.dumps([list(pair.words) for pair in self.pairs])
        tensors = {
            "numbers": _whole([pair.number for pair in self.pairs]),
            "places": _whole([pair.place for pair in self.pairs]),
            "words": torch.frombuffer(bytearray(words.encode()), dtype=torch.uint8),
            "features": self.features,
            "of_pairs": self.of_pairs,
        }
        for stream in self.starts:
            counts = [pair.counts[stream] for pair in self.pairs]
            tensors |= {
                f"counts.{stream}": _whole(counts),
                f"starts.{stream}": self.starts[stream],
                f"tokens.{stream}": self.tokens[stream].int(),
                f"values.{stream}": self.values[stream],
            }
        tensors |= {f"boxes.{i}": boxes for i, boxes in enumerate(self.boxes)}
        header = {
            "version": VERSION,
            "kind": _WHAT,
            "run": run,
            "site": self.site,
            "streams": list(self.starts),
            "n_boxes": len(self.boxes),
            "left_out": self.left_out,
            "why": self.why,
        }
        write_tensors(path, tensors, header, _WHAT)


def load_maps(path: str | os.PathLike[str], run: str | None = None) -> Maps | None:
    """Read what ``Maps.save`` wrote.

    Args:
        path: The file.
        run: The checksum of the run they must be of; None for any.

    Returns:
        The maps; None where they are of another run.

    Raises:
        VlmEditError: No such file, damaged, or of another version.
    """
    header, tensors = read_tensors(path, _WHAT)
    if header.get("kind") != _WHAT or header.get("version") != VERSION:
        raise DamagedFile(f"{path} holds no maps of format {VERSION}: delete it, and map again")
    if run is not None and header.get("run") != run:
        return None
    try:
        streams = [str(stream) for stream in header["streams"]]
        starts = {stream: tensors[f"starts.{stream}"] for stream in streams}
        maps = Maps(
            str(header["site"]),
            list(_shown(tensors, streams)),
            tensors["features"],
            tensors["of_pairs"],
            starts,
            {stream: tensors[f"tokens.{stream}"].long() for stream in streams},
            {stream: tensors[f"values.{stream}"].float() for stream in streams},
            [tensors[f"boxes.{i}"].float() for i in range(int(header["n_boxes"]))],
            int(header["left_out"]),
            str(header["why"]),
        )
        _expect_whole(maps)
        return maps
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, BadArgument) as error:
        raise DamagedFile(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it, and map again"
        ) from error


def _shown(tensors: Mapping[str, Tensor], streams: Sequence[str]) -> Iterator[Shown]:
    words = json.loads(tensors["words"].numpy().tobytes())
    counts = {stream: tensors[f"counts.{stream}"].tolist() for stream in streams}
    rows = zip(tensors["numbers"].tolist(), tensors["places"].tolist(), words, strict=True)
    for i, (number, place, mine) in enumerate(rows):
        yield Shown(number, {s: counts[s][i] for s in streams}, place, [str(w) for w in mine])


def _expect_whole(maps: Maps) -> None:
    """Refuse maps that point beyond what is there."""
    n = len(maps.features)
    if len(maps.of_pairs) != n or bool((maps.features.diff() < 0).any()):
        raise BadArgument("features and pairs of maps differ")
    if n and not 0 <= int(maps.of_pairs.min()) <= int(maps.of_pairs.max()) < len(maps.pairs):
        raise BadArgument("a map is of a pair that is not there")
    for stream, starts in maps.starts.items():
        tokens = maps.tokens[stream]
        whole = len(starts) == n + 1 and int(starts[0]) == 0 and int(starts[-1]) == len(tokens)
        if not whole or bool((starts.diff() < 0).any()) or len(tokens) != len(maps.values[stream]):
            raise BadArgument(f"maps of {stream} tokens do not end where they should")
        most = _whole([pair.counts[stream] for pair in maps.pairs])[maps.of_pairs]
        if len(tokens) and (
            int(tokens.min()) < 0 or bool((tokens >= most.repeat_interleave(starts.diff())).any())
        ):
            raise BadArgument(f"a map is of {stream} tokens that are not there")
    for pair in maps.pairs:
        if pair.place >= len(maps.boxes):
            raise BadArgument("a pair is of a size that is not there")
        if pair.place >= 0 and maps.boxes[pair.place].shape != (pair.counts.get("image"), 4):
            raise BadArgument("boxes are of other tokens")


def _whole(values: Sequence[Any]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)
