"""Dictionaries of random directions, as large and as sparse as a given one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries import AnyDictionary, Dictionary, Kind, TrainConfig, train_dictionary
from vlm_edit.ground.errors import BadArgument

_ROWS = 4096
_LR = 3e-3


def random_dictionary(
    dictionary: AnyDictionary, streams: Mapping[str, Tensor], seed: int = 0
) -> Dictionary:
    """Put random directions in the place of a dictionary's features, and keep all else.

    Encoder and decoder rows are the same random unit vectors. Norm, centers, what is subtracted,
    activation and k stay. Where k does not fix how many features are active, one cut for all
    features does: as threshold of ``jumprelu``, as negative bias elsewhere, where the given
    activations have as many active features as under the given dictionary, on average.

    Args:
        dictionary: In memory, one for both streams.
        streams: [n, d] activations by stream, on which as many features are to be active.
        seed: Of the directions.

    Raises:
        VlmEditError: A dictionary per stream or one left on disk, or activations of another width.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.measuring import collect
        >>> host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
        >>> streams = collect(host, zoo.load_pairs().select(range(64)), progress=False)
        >>> null = random_dictionary(dictionary, streams)
        >>> sizes = [mean_active(one, streams) for one in (dictionary, null)]
        >>> abs(sizes[0] - sizes[1]) < 0.1
        True
    """
    dictionary = expect_shared(dictionary)
    encoder, m = dictionary.encoder, dictionary.n_features
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(m, dictionary.width, generator=generator), dim=1)
    null = replace(
        dictionary,
        encoder=replace(encoder, weight=rows.T.contiguous(), bias=torch.zeros(m)),
        decoder=rows,
        info={"model_name": "random directions"},
    )
    if "k" in encoder.activator.takes or encoder.activator.linear:
        return null
    active = sum(int((codes != 0).sum()) for codes in _codes(dictionary, streams))
    open_up: dict[str, Any] = {"activation": "identity", "threshold": None, "soft_cap": None}
    before = replace(null, encoder=replace(null.encoder, **open_up))
    cut = _cut(_codes(before, streams), active)
    if encoder.threshold is not None:
        moved = replace(null.encoder, threshold=torch.full((m,), cut))
    else:
        moved = replace(null.encoder, bias=torch.full((m,), -cut))
    return replace(null, encoder=moved)


def frozen_dictionary(
    streams: Mapping[str, Tensor],
    like: AnyDictionary,
    *,
    steps: int = 600,
    seed: int = 0,
    progress: bool = True,
) -> Dictionary:
    """Train a dictionary whose decoder stays random, as large and as sparse as a given one.

    The sanity baseline of arXiv 2602.14111: its encoder learns to write activations in random
    directions, so that what it shows is no sign of directions having been found.

    Args:
        streams: As for ``train_dictionary``.
        like: Whose size, sparsity and norm it has: ``config_like`` says how.
        steps: Of the training.
        seed: Of the directions and batches.
        progress: Whether to show a bar.

    Raises:
        VlmEditError: As ``train_dictionary`` and ``random_dictionary``.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> x = torch.randn(100, 4)
        >>> neurons = Dictionary.identity(4)
        >>> frozen = frozen_dictionary({"image": x}, neurons, steps=5, progress=False)
        >>> frozen.n_features
        4
    """
    config = replace(config_like(like, streams, steps, seed), frozen="decoder")
    return train_dictionary(streams, config, progress=progress)


def config_like(
    dictionary: AnyDictionary, streams: Mapping[str, Tensor], steps: int = 600, seed: int = 0
) -> TrainConfig:
    """Return the config of a dictionary as large, as sparse and normed as a given one.

    ``topk`` stays; of any other kind it is ``batchtopk``, whose k is the mean number of features
    that the given one has active. Streams are centred apart where the given one centres them.

    Args:
        dictionary: In memory, one for both streams.
        streams: [n, d] activations by stream, for k.
        steps: Of the training.
        seed: Likewise.

    Raises:
        VlmEditError: As ``random_dictionary``.
    """
    dictionary = expect_shared(dictionary)
    encoder, m = dictionary.encoder, dictionary.n_features
    kind: Kind = "topk" if encoder.activation == "topk" else "batchtopk"
    k = encoder.k if kind == "topk" and encoder.k else round(mean_active(dictionary, streams))
    return TrainConfig(
        n_features=m,
        k=min(max(k, 1), m),
        steps=steps,
        lr=_LR,
        norm=encoder.norm,
        center=bool(encoder.centers),
        seed=seed,
        kind=kind,
        dead_after=200,
    )


def mean_active(dictionary: Dictionary, streams: Mapping[str, Tensor]) -> float:
    """Return how many features activations have active, on average over all streams' rows."""
    active = sum(int((codes != 0).sum()) for codes in _codes(dictionary, streams))
    return active / sum(len(x) for x in streams.values())


def expect_shared(dictionary: AnyDictionary) -> Dictionary:
    """Refuse a dictionary that is not one for both streams and in memory; return it."""
    if not isinstance(dictionary, Dictionary):
        raise BadArgument(
            f"a {type(dictionary).__name__} has no random counterpart: load() one that was left on "
            "disk; of one per stream, make the null of each half"
        )
    return dictionary


def _codes(dictionary: Dictionary, streams: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for name, x in streams.items():
        for some in x.split(_ROWS):
            yield dictionary.encode(some, "text" if name == "text" else "image")


def _cut(codes: Iterator[Tensor], above: int) -> float:
    """Return a number that so many pre-activations lie above, halfway to the next."""
    largest = torch.empty(0)
    for some in codes:
        both = torch.cat([largest, some.flatten()])
        largest = both.topk(min(above + 1, len(both))).values
    if above == 0:
        return float(largest[0])
    if above >= len(largest):
        return float(largest[-1]) - 1
    return float((largest[above - 1] + largest[above]) / 2)
