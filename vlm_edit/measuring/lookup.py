"""The pairs of a run that is over, to be looked up by number."""

from __future__ import annotations

from typing import Any

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.shards import Found, listing_of, shards_in


def found_in(source: Any, run: Measurement | None = None) -> Pairs:
    """Return pairs in which those of a run's examples can be looked up by number.

    Args:
        source: What was measured: pairs, what ``Pairs.of`` takes, or shards, of which only what is
            looked up is read.
        run: The run; without one any may be looked up.

    Raises:
        BadArgument: Other shards than those that were measured.
    """
    shards = shards_in(source)
    if shards is None:
        return Pairs.of(source)
    if run is None:
        return Found(shards, ())
    there = run.provenance.get("pairs", {})
    if there.get("listing") != listing_of(shards):
        raise BadArgument(f"{shards.name}: these are not the shards that the run measured")
    return Found(shards, run.shown(), total=there.get("count", run.n_pairs))
