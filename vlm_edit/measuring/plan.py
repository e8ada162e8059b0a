"""What is read in which order: units, of which processes take parts, and cuts of pairs in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measuring.ahead import Cut, Item
from vlm_edit.measuring.order import Order
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.provenance import pairs_listing, texts_digest
from vlm_edit.measuring.shards import ShardsPlan, shards_in
from vlm_edit.measuring.sources import expect_images, sampled, stamp

if TYPE_CHECKING:
    from vlm_edit.measuring.state import State

Verify = Literal["sample", "all"]


class Plan(Protocol):
    """What a measurement reads.

    Attributes:
        kind: What a unit is, in a word.
    """

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """Return where the pairs come from."""

    @property
    def total(self) -> int:
        """Return the number of units."""

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on, JSON-able."""

    def count(self, units: range) -> int | None:
        """Return the number of pairs in some units, where it is known."""

    def cuts(self, units: range, after: int = 0) -> Iterator[Cut]:
        """Yield the pairs of some units, without the first ``after`` cuts of the first of them."""

    def note(self, state: State, cut: Cut, read: Mapping[int, int]) -> None:
        """Keep in a state's notes what ``expect`` is to know of a cut that was read.

        Args:
            state: Of the run.
            cut: What was read.
            read: ``key_of`` each image that was read, by the pair's number, in turn.
        """

    def expect(self, state: State, what: str, verify: Verify) -> None:
        """Refuse to go on from a state where images that it has read are others by now.

        Args:
            state: Of the run.
            what: Which it is, for the message.
            verify: Whether to look at all images again, or at some, besides the files' stamps.
        """

    def found(self, state: State, /) -> Pairs:
        """Return pairs in which those that were read can be looked up by number."""

    def unread(self, state: State, /) -> Sequence[int]:
        """Return the numbers of those pairs that were not read, where it stopped before."""


@dataclass(frozen=True, eq=False)
class PairsPlan:
    """Read pairs of which all are known, a unit a batch.

    Attributes:
        pairs: All of them.
        order: Which are read together.
        stamped: Whether to note what each image's file is like.
    """

    kind: ClassVar[str] = "batch"
    pairs: Pairs
    order: Order
    stamped: bool = True

    @classmethod
    def as_they_come(cls, pairs: Pairs, batch_size: int) -> PairsPlan:
        """Plan reading each image for another, without looking at any.

        Args:
            pairs: All of them.
            batch_size: Pairs that are read together.
        """
        return cls(pairs, Order.of(pairs, batch_size, np.arange(len(pairs))), stamped=False)

    @property
    def name(self) -> str:
        """Return where the pairs come from."""
        return self.pairs.name

    @property
    def total(self) -> int:
        """Return the number of batches."""
        return len(self.order.batches)

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for a run to go on, JSON-able."""
        facts = {
            "name": self.pairs.name,
            "count": len(self.pairs),
            "listing": pairs_listing(self.pairs),
            "texts": texts_digest(self.pairs),
        }
        return facts | ({"images": self.order.digest} if self.order.repeated else {})

    def count(self, units: range) -> int:
        """Return the number of pairs in some batches."""
        return sum(len(self.order.batches[i]) for i in units)

    def cuts(self, units: range, after: int = 0) -> Iterator[Cut]:
        """Yield some batches."""
        for number in units[after:]:
            numbers = self.order.batches[number]
            stamps = [stamp(self.pairs.images[i]) for i in numbers] if self.stamped else ()
            yield Cut((number, 0), [self._item(i) for i in numbers], stamps=stamps)

    def _item(self, i: int) -> Item:
        pairs = self.pairs
        return Item(
            i, pairs.images[i], pairs.describe(i), pairs.texts[i], int(self.order.images[i])
        )

    def note(self, state: State, cut: Cut, read: Mapping[int, int]) -> None:
        """Keep the stamps of files, and what images show."""
        state.noted("stamps").extend(cut.stamps)
        state.noted("keys").extend(read.values())

    def expect(self, state: State, what: str, verify: Verify) -> None:
        """Refuse to go on from a state where images that it has read are others by now."""
        stamps, keys = state.noted("stamps"), state.noted("keys")
        numbers = [n for i in state.units for n in self.order.batches[i]][: len(stamps)]
        skipped = {number for number, _ in state.skipped}
        again = set(numbers) if verify == "all" else sampled(numbers)
        least = state.origin["settings"]["side"]
        expect_images(self.pairs, numbers, stamps, keys, skipped, what, again, least)

    def found(self, _: State, /) -> Pairs:
        """Return the pairs."""
        return self.pairs

    def unread(self, state: State, /) -> list[int]:
        """Return the numbers of all pairs in batches that were not read."""
        batches = (self.order.batches[i] for units in state.unread for i in units)
        return [number for batch in batches for number in batch]


def plan_of(pairs: Any, batch_size: int) -> Plan:
    """Plan reading pairs, all captions of an image together.

    Args:
        pairs: Image-text pairs, or what ``Pairs.of`` takes.
        batch_size: Pairs that are read together.

    Raises:
        BadArgument: Pairs of one side alone.
    """
    if batch_size < 1:
        raise BadArgument(f"batch size is {batch_size}; it must be at least 1")
    shards = shards_in(pairs)
    if shards is not None:
        return ShardsPlan(shards, batch_size)
    pairs = Pairs.of(pairs)
    if pairs.only is not None:
        raise BadArgument(
            f"{pairs.name} holds {pairs.only}s alone; dominance compares image and text: give pairs"
        )
    if not len(pairs):
        raise BadArgument(f"{pairs.name}: no pairs, there is nothing to measure")
    return PairsPlan(pairs, Order.of(pairs, batch_size))


def expect_plan(facts: Mapping[str, Any], plan: Plan) -> None:
    """Refuse pairs that are not those a measurement was of.

    Args:
        facts: Of those.
        plan: Of these.
    """
    here = plan.facts()
    if facts["listing"] != here["listing"]:
        raise BadArgument(f"{plan.name}: these are not the pairs that the parts measured")
    if facts.get("images") != here.get("images"):
        raise BadArgument(f"{plan.name}: the parts were measured when other images were the same")
