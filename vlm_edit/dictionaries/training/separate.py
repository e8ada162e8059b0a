"""Train a dictionary for each stream, and match them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.matching import Similarity, match_dictionaries
from vlm_edit.dictionaries.paired import STREAMS, PairedDictionary
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Given, opened
from vlm_edit.dictionaries.training.reporting import Callback, expect_callbacks
from vlm_edit.dictionaries.training.run import train_dictionary
from vlm_edit.ground.errors import BadArgument


def train_paired(
    streams: Given,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    info: Mapping[str, str] | None = None,
    *,
    by: Similarity = "correlation",
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    log: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> PairedDictionary[Dictionary]:
    """Train a dictionary on each stream alone, then match their features.

    What a shared dictionary is compared with: do both streams have the same features, or the same
    concepts in other directions? The text's training has the seed that follows ``config.seed``, so
    that no common beginning makes features alike.

    Args:
        streams: As for ``train_dictionary``, both of them.
        config: Of each training; ``batch_size`` activations of its stream a step.
        info: As for ``train_dictionary``.
        by: As for ``match_dictionaries``; ``correlation`` asks for rows that are pairs.
        checkpoint: Beside it lie two files, with ``.image`` and ``.text`` added to its name.
        every: As for ``train_dictionary``.
        log: Two files likewise.
        callbacks: As for ``train_dictionary``; the names of figures begin with ``image/`` and
            ``text/``.
        device: As for ``train_dictionary``.
        progress: Whether to show bars.

    Returns:
        Both dictionaries, matched, on the CPU.

    Raises:
        VlmEditError: As ``train_dictionary`` and ``match_dictionaries``; or a config that couples
            the streams.

    Example:
        >>> import torch
        >>> from vlm_edit.dictionaries import TrainConfig, train_paired
        >>> config = TrainConfig(n_features=16, k=2, steps=50, batch_size=64)
        >>> x = torch.randn(200, 8)
        >>> pair = train_paired({"image": x, "text": x + 1}, config, progress=False)
        >>> pair.n_features, pair.text.encode(x, "text").shape
        (16, torch.Size([200, 16]))
    """
    if config.paired:
        raise BadArgument(
            f"kind={config.kind!r}, group={config.group} and mask={config.mask} couple the streams "
            "of pairs, which are trained apart here: use train_dictionary"
        )
    expect_callbacks(callbacks)
    tensors = opened(streams)
    if set(tensors) != set(STREAMS):
        raise BadArgument(f"train_paired takes 'image' and 'text', got {sorted(tensors)}")
    if by == "correlation" and len(tensors["image"]) != len(tensors["text"]):
        raise BadArgument(
            "matching by correlation takes activations of pairs, and there are "
            f"{len(tensors['image'])} of image and {len(tensors['text'])} of text: use by='decoder'"
        )
    image, text = (
        train_dictionary(
            {stream: tensors[stream]},
            replace(config, seed=config.seed + number),
            info,
            checkpoint=_beside(checkpoint, stream),
            every=every,
            log=_beside(log, stream),
            callbacks=[_named(stream, callback) for callback in callbacks],
            device=device,
            progress=progress,
        )
        for number, stream in enumerate(STREAMS)
    )
    return match_dictionaries(image, text, tensors, by)


def _beside(path: str | os.PathLike[str] | None, stream: str) -> Path | None:
    return None if path is None else Path(f"{os.fspath(path)}.{stream}")


def _named(stream: str, callback: Callback) -> Callback:
    """Return a callback that tells of which stream's training figures are."""

    def told(step: int, figures: Mapping[str, float], /) -> object:
        return callback(step, {f"{stream}/{name}": value for name, value in figures.items()})

    return told
