"""Look up pairs of shards by number."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

from vlm_edit.ground.files import Spool
from vlm_edit.measuring.gathering import Encoded, Source, Stretch
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.shards.source import Shards

PER_SHARD = 1 << 32


@dataclass(frozen=True)
class _One:
    image: Source
    text: str
    name: str


class Found(Pairs):
    """Pairs of shards that are read when they are asked for, those that are wanted together.

    Args:
        source: The shards.
        wanted: Numbers of pairs that will be asked for.
        counts: Pairs of each shard, where they are known.
        total: Pairs of all, where it is known.
    """

    def __init__(
        self,
        source: Shards,
        wanted: Collection[int],
        counts: Mapping[int, int] | None = None,
        total: int | None = None,
    ) -> None:
        found = _Lookup(source, set(wanted))
        fields: dict[str, Any] = {
            "images": _Column(found, "image"),
            "texts": cast("tuple[str, ...]", _Column(found, "text")),
            "columns": {},
            "name": source.name,
            "only": None,
            "_found": found,
            "_counts": dict(counts or {}),
            "_total": sum((counts or {}).values()) if total is None else total,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        """Check nothing: what is no pair was left out when it was read."""

    def __len__(self) -> int:
        """Return the number of pairs, broken ones too."""
        return self._total  # type: ignore[attr-defined, no-any-return]

    def has(self, i: int) -> bool:
        """Return whether there is a pair of this number."""
        return self._found.has(i)  # type: ignore[attr-defined, no-any-return]

    def numbers(self) -> Iterable[int]:
        """Return the number of each pair."""
        for shard, count in sorted(self._counts.items()):  # type: ignore[attr-defined]
            yield from range(shard * PER_SHARD, shard * PER_SHARD + count)

    def describe(self, i: int) -> str:
        """Name a pair for messages."""
        return str(self._found[i].name)  # type: ignore[attr-defined]

    def select(self, indices: Sequence[int]) -> Pairs:
        """Read some of the pairs, in the order given."""
        self._found.want(indices)  # type: ignore[attr-defined]
        ones = [self._found[i] for i in indices]  # type: ignore[attr-defined]
        return Pairs([one.image for one in ones], tuple(one.text for one in ones), name=self.name)


class _Lookup:
    """Reads a shard once for all pairs of it that are wanted."""

    def __init__(self, source: Shards, wanted: set[int]) -> None:
        self._source, self._wanted = source, wanted
        self._known: dict[int, _One] = {}
        self._spool = Spool()

    def want(self, numbers: Iterable[int]) -> None:
        self._wanted |= set(numbers)

    def has(self, number: int) -> bool:
        return number // PER_SHARD < len(self._source.shards())

    def __getitem__(self, number: int) -> _One:
        if number not in self._known:
            self._wanted.add(number)
            self._read(number // PER_SHARD)
        return self._known[number]

    def _read(self, unit: int) -> None:
        first = unit * PER_SHARD
        asked = {n for n in self._wanted if n // PER_SHARD == unit and n not in self._known}
        shard, last, number = self._source.shards()[unit], max(asked), first
        for sample in self._source.read(shard):
            image = sample.image
            texts = sample.texts if image is not None and sample.texts else ("",)
            kept: Source | None = None
            for text in texts:
                if number in asked and image is not None and text:
                    kept = kept or self._kept(image)
                    self._known[number] = _One(kept, text, f"{shard}: {sample.key}")
                number += 1
            if number > last:
                return

    def _kept(self, image: Source) -> Source:
        """Return an image so that many of them can be held: bytes go into a file."""
        if not isinstance(image, Encoded):
            return image
        return Stretch(*self._spool.add(image.data), image.name)


class _Column(Sequence[Any]):
    """One side of what is looked up."""

    def __init__(self, found: _Lookup, name: str) -> None:
        self._found, self._name = found, name

    def __len__(self) -> int:
        raise TypeError("pairs of shards are looked up by number")

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        assert isinstance(index, int)
        return getattr(self._found[index], self._name)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("pairs of shards are looked up by number")
