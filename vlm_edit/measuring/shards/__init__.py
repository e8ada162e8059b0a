"""Pairs in shards: tar and parquet files, streams of datasets, iterables."""

from __future__ import annotations

from typing import Any

from vlm_edit.measuring.gathering import is_stream
from vlm_edit.measuring.shards.found import Found as Found
from vlm_edit.measuring.shards.plan import ShardsPlan as ShardsPlan
from vlm_edit.measuring.shards.source import Sample as Sample
from vlm_edit.measuring.shards.source import Shards as Shards
from vlm_edit.measuring.shards.source import is_sharded as is_sharded
from vlm_edit.measuring.shards.source import listing_of as listing_of
from vlm_edit.measuring.shards.source import read_all as read_all
from vlm_edit.measuring.shards.source import shards_of as shards_of


def shards_in(pairs: Any) -> Shards | None:
    """Return what was given for pairs as shards, where it is that: shards, a stream, such paths."""
    if isinstance(pairs, Shards) or is_stream(pairs):
        return shards_of(pairs)
    if isinstance(pairs, str) and is_sharded(pairs):
        return shards_of(pairs)
    return None
