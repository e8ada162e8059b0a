"""Read shards in turn, in cuts of which each lies in one shard; know them again."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from vlm_edit.ground.errors import BadArgument, DamagedFile, WrongHost
from vlm_edit.measuring.ahead import Cut, Item
from vlm_edit.measuring.gathering import Encoded, Source
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.pictures import opened
from vlm_edit.measuring.shards.found import PER_SHARD, Found
from vlm_edit.measuring.shards.source import Shards, listing_of
from vlm_edit.measuring.sources import image_digest, key_of

if TYPE_CHECKING:
    from vlm_edit.measuring.state import State

_SAMPLED = 64  # pairs whose images a run that goes on looks at again
_MASK = (1 << 63) - 1
_MEND = (
    "put the former ones back, or measure into another folder or file, or delete it to begin anew"
)


@dataclass(frozen=True, eq=False)
class ShardsPlan:
    """Read shards, a unit a shard.

    A pair's number is that of its shard, times 2^32, and its own in the shard.

    Attributes:
        source: The shards.
        batch_size: Pairs that are read together.
    """

    kind: ClassVar[str] = "shard"
    source: Shards
    batch_size: int

    @property
    def name(self) -> str:
        """Return where the pairs come from."""
        return self.source.name

    @cached_property
    def _names(self) -> Sequence[str]:
        return self.source.shards()  # asked once: it may be a list of many files

    @property
    def total(self) -> int:
        """Return the number of shards."""
        return len(self._names)

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on, JSON-able."""
        if not self.total:
            raise BadArgument(f"{self.name}: no shards, there is nothing to measure")
        return {"name": self.name, "shards": self.total, "listing": listing_of(self.source)}

    def count(self, _: range, /) -> None:
        """Return None: how many pairs there are shows at the end."""

    def cuts(self, units: range, after: int = 0) -> Iterator[Cut]:
        """Yield the pairs of some shards, without the first ``after`` cuts of the first."""
        for unit in units:
            for place, cut in enumerate(self._cuts(unit)):
                if unit != units.start or place >= after:
                    yield cut

    def _cuts(self, unit: int) -> Iterator[Cut]:
        """Cut one shard, never between captions of one image that stand side by side."""
        items: list[Item] = []
        broken: list[tuple[int, str]] = []
        place = 0
        for _, some in groupby(self._numbered(unit), lambda one: one[0].shown):
            group = list(some)
            good = [item for item, why in group if not why]
            if len(items) + len(broken) + len(group) > self.batch_size and (items or broken):
                yield Cut((unit, place), items, broken)
                items, broken, place = [], [], place + 1
            items += good
            broken += [(item.number, why) for item, why in group if why]
        if items or broken:
            yield Cut((unit, place), items, broken)

    def _numbered(self, unit: int) -> Iterator[tuple[Item, str]]:
        """Yield the pairs of a shard, each with the reason where it is none."""
        shard = self._names[unit]
        number, shown, before = unit * PER_SHARD, -1, None
        samples = iter(self.source.read(shard))
        while True:
            try:
                sample = next(samples, None)
            except (DamagedFile, OSError) as error:  # the rest of it is out of reach
                yield Item(number, Encoded(b"", shard), shard, "", number), str(error)
                return
            if sample is None:
                return
            image = sample.image
            if image is None or not sample.texts:
                why = f"{shard}: {sample.key}: {sample.broken or 'it has no text'}"
                yield Item(number, Encoded(b"", shard), shard, "", number), why
                number, before = number + 1, None
                continue
            if before is None or not _same(image, before):
                shown = number
            before = image
            name = f"{shard}: {sample.key}"
            for text in sample.texts:
                yield Item(number, image, name, text, shown), ""
                number += 1

    def note(self, state: State, cut: Cut, read: Mapping[int, int]) -> None:
        """Keep of each shard how many pairs it has, its stamp, and what they say and show."""
        records, unit = state.noted("shards"), cut.place[0]
        if not records or records[-_FIELDS] != unit:
            records.extend([unit, 0, self._stamp(unit), 0, 0])
        records[-4] += len(cut)
        records[-2] = (records[-2] + _said(cut)) & _MASK
        records[-1] = (records[-1] + _shown(read)) & _MASK
        sample = state.noted("sample")
        pairs = [*zip(sample[::2], sample[1::2], strict=True), *read.items()]
        kept = sorted(pairs, key=lambda pair: _rank(pair[0]))[:_SAMPLED]
        sample[:] = array("q", [value for pair in kept for value in pair])

    def _stamp(self, unit: int) -> int:
        own = getattr(self.source, "stamp", None)
        return int(own(self._names[unit])) if callable(own) else 0

    def expect(self, state: State, what: str, verify: Literal["sample", "all"]) -> None:
        """Refuse to go on from a state where what it has read is something else by now.

        A shard that is half read is asked for its texts; one whose file has changed since is read
        again whole, and so are all if ``verify`` says so; some images are in any case.
        """
        for record in _records(state):
            again = verify == "all" or record.stamp != self._stamp(record.unit)
            if again or record.unit == state.unit:
                self._expect_shard(state, record, again, what)
        if callable(getattr(self.source, "stamp", None)):  # of files, which can be looked up
            self._expect_sample(state, what)

    def _expect_shard(self, state: State, record: _Record, again: bool, what: str) -> None:
        """Read what was read of a shard once more, its images too if asked."""
        least = state.origin["settings"]["side"]
        skipped = {number for number, _ in state.skipped}
        said = shown = 0
        for place, cut in enumerate(self._cuts(record.unit)):
            if record.unit == state.unit and place >= state.after:
                break
            said = (said + _said(cut)) & _MASK
            if again:
                keys = {i.number: _key(i, least) for i in cut.items if i.number not in skipped}
                shown = (shown + _shown(keys)) & _MASK
        if said != record.said or (again and shown != record.shown):
            shard = self._names[record.unit]
            raise WrongHost(f"{shard} holds other pairs than when {what} read it: {_MEND}")

    def _expect_sample(self, state: State, what: str) -> None:
        sample = state.noted("sample")
        keys = dict(zip(sample[::2], sample[1::2], strict=True))
        least, found = state.origin["settings"]["side"], Found(self.source, keys)
        for number, key in keys.items():
            try:
                one = found.images[number]
            except KeyError as error:
                shard = self._names[number // PER_SHARD]
                raise WrongHost(f"{shard} is shorter than when {what} read it: {_MEND}") from error
            if _key(Item(number, one, "", "", number), least) != key:
                raise WrongHost(
                    f"{found.describe(number)} is another image than when {what} read it: {_MEND}"
                )

    def found(self, state: State, /) -> Pairs:
        """Return pairs in which those that were read can be looked up by number."""
        wanted: set[int] = set()
        for run in state.runs:
            gathered = run.accumulator
            for top in (*gathered.examples.values(), *gathered.drawn.values()):
                wanted |= set(top.numbers.unique().tolist())
        counts = {record.unit: record.pairs for record in _records(state)}
        return Found(self.source, wanted - {-1}, counts)

    def unread(self, _: State, /) -> tuple[int, ...]:
        """Return nothing, since what was not read is not among those that ``found`` returns."""
        return ()


class _Record(NamedTuple):
    """What is kept of a shard, in whole numbers.

    Attributes:
        unit: Its number.
        pairs: How many were read or found broken.
        stamp: Of its file.
        said: A digest of their texts.
        shown: A digest of their images.
    """

    unit: int
    pairs: int
    stamp: int
    said: int
    shown: int


_FIELDS = len(_Record._fields)


def _records(state: State) -> list[_Record]:
    values = state.noted("shards")
    return [_Record(*values[i : i + _FIELDS]) for i in range(0, len(values), _FIELDS)]


def _same(one: Source, other: Source) -> bool:
    return one is other or (not hasattr(one, "convert") and bool(one == other))


def _said(cut: Cut) -> int:
    text = "\0".join(f"{item.number} {item.text}" for item in cut.items)
    return key_of(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _shown(keys: Mapping[int, int]) -> int:
    data = (hashlib.blake2b(b"%d %d" % one, digest_size=8).digest() for one in keys.items())
    return sum(map(key_of, data)) & _MASK


def _key(item: Item, least: int | None) -> int:
    try:
        return key_of(image_digest(opened(item.image, item.name, least)))
    except DamagedFile:
        return 0


def _rank(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=8).digest()
