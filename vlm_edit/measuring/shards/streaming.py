"""Streams of Hugging Face ``datasets``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from vlm_edit.measuring.shards.source import Streams


def of_dataset(dataset: Any, image: str | None, text: str | None) -> Streams:
    """Make shards of a dataset, its own where it is a stream; images are not decoded.

    Args:
        dataset: An ``IterableDataset`` or a ``Dataset``.
        image: The column of images; by default its only one of images, or a usual one.
        text: The column of texts.
    """
    features = dataset.features or {}
    pictures = [n for n, f in features.items() if type(f).__name__ == "Image"]
    for name in pictures:
        if getattr(features[name], "decode", False):
            dataset = dataset.cast_column(name, type(features[name])(decode=False))
    count = int(getattr(dataset, "num_shards", 1) or 1)
    makers = {str(i): _maker(dataset, count, i) for i in range(count)}
    only = pictures[0] if image is None and len(pictures) == 1 else image
    info = getattr(dataset, "info", None)
    named = getattr(info, "dataset_name", None)
    return Streams(makers, f"the dataset {named}" if named else "the dataset", only, text)


def _maker(dataset: Any, count: int, index: int) -> Callable[[], Iterable[Any]]:
    if count == 1:
        return lambda: dataset
    return partial(dataset.shard, num_shards=count, index=index)
