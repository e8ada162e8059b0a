"""Features of a concept: what a host's activations on two sets of examples tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.dictionaries import (
    STREAMS,
    AnyDictionary,
    Dictionary,
    PairedDictionary,
    expect_plain,
)
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.host import Host, Model
from vlm_edit.measuring import Pairs, Reader, one_sided
from vlm_edit.selection.contrast import by_difference, by_direction

Stream = Literal["image", "text"]
Score = Literal["difference", "direction"]
Examples = Pairs | Sequence[str] | Sequence[Image.Image | Path]


@dataclass(frozen=True, eq=False)
class Seen:
    """Hold what a set of examples looks like at a site.

    Attributes:
        codes: [n, m], a row an example; over tokens, the mean of their codes' absolute values.
        normed: [n, d] float32, after the dictionary's norm; over tokens, their mean.
    """

    codes: SparseCodes
    normed: Tensor


def by_concept(
    host: Host | Model,
    dictionary: AnyDictionary,
    positive: Examples,
    negative: Examples,
    site: str = "joint",
    *,
    stream: Stream | None = None,
    score: Score = "difference",
    direction: Tensor | None = None,
    most: int | None = None,
    alpha: float | None = 0.05,
    batch_size: int = 64,
) -> list[int]:
    """Select features that respond more to examples of a concept than to others, strongest first.

    Texts are read beside a grey image and images beside the text "a picture": where tokens of one
    stream see the other's, as in a host that generates, pairs of both say more.

    Args:
        host: In eval mode, with its processor; or a pipeline, which encodes texts as prompts.
        dictionary: Of the site, of any kind; of a paired one the stream's.
        positive: Texts, images (or paths), or pairs.
        negative: The same of the contrary, or of examples in general.
        site: The site's name.
        stream: Whose tokens' codes are compared; needed for pairs at a site of two streams.
        score: ``difference`` as ``by_difference`` ranks codes, or ``direction`` as
            ``by_direction`` does (DIAL): features must write along the concept, too.
        direction: [d], for ``direction``, in the dictionary's space (after its norm); by default
            the difference of the sets' mean activations.
        most: How many at most; None for all that pass.
        alpha: False discovery rate of a rank test over the examples; None for no test.
        batch_size: Examples per forward.

    Raises:
        VlmEditError: No examples or of mixed kinds, a stream that does not pass at the site or is
            not told, another dictionary than the site's, or an image that cannot be read.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.selection import by_concept
        >>> host = Host.of(*zoo.load_host())
        >>> dictionary = zoo.load_dictionary("joint")
        >>> pets = [f"a picture of {x}" for x in ("dog", "cat", "wolf", "fox", "dog face", "lion")]
        >>> rest = [f"a picture of {x}" for x in ("car", "house", "pen", "sun", "book", "train")]
        >>> len(by_concept(host, dictionary, pets, rest, most=3, alpha=None))
        3
    """
    if score not in get_args(Score):
        raise BadArgument(f"score is {score!r}: use one of {get_args(Score)}")
    host = Host.of(host)
    examples = {"positive": positive, "negative": negative}
    sets = {name: one_sided(some, f"{name} examples") for name, some in examples.items()}
    kinds = {name: pairs.only for name, pairs in sets.items()}
    side = _stream(host.site(site).streams, stream, kinds, site)
    yes, no = (
        read_examples(host, dictionary, pairs, site, side, batch_size=batch_size)
        for pairs in sets.values()
    )
    if score == "difference":
        return by_difference(yes.codes, no.codes, most, alpha=alpha)
    way = yes.normed.mean(0) - no.normed.mean(0) if direction is None else direction
    plain = expect_plain(dictionary, "a direction of activations, held to the decoder's rows,")
    half = plain.of(side) if isinstance(plain, PairedDictionary) else plain
    rows = half.decoder if isinstance(half, Dictionary) else half.decoder.take()
    return by_direction(yes.codes, no.codes, rows.cpu(), way.cpu(), most, alpha=alpha)


def read_examples(
    host: Host | Model,
    dictionary: AnyDictionary,
    pairs: Pairs,
    site: str,
    stream: Stream,
    *,
    batch_size: int = 64,
) -> Seen:
    """Read codes and normed activations of examples at a site, from the host's own forward.

    Args:
        host: In eval mode, with its processor.
        dictionary: Of the site.
        pairs: The examples.
        site: The site's name.
        stream: Whose tokens.
        batch_size: Examples per forward.

    Raises:
        VlmEditError: As ``Reader``, or an image that cannot be read.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> examples = read_examples(
        ...     Host.of(*zoo.load_host()),
        ...     zoo.load_dictionary("joint"),
        ...     zoo.load_pairs().select(range(4)),
        ...     "joint",
        ...     "image",
        ... )
        >>> examples.codes.shape, tuple(examples.normed.shape)
        ((4, 512), (4, 192))
    """
    reader = Reader(Host.of(host), dictionary, site, batch_size=batch_size, progress=False)
    codes, normed = [], []
    for batch in reader.read(pairs):
        codes.append(batch.codes[stream].to("cpu"))
        normed.append(batch.normed[stream].cpu())
    if reader.skipped:
        number, reason = reader.skipped[0]
        raise BadArgument(f"example {number} cannot be read: {reason}; take it out")
    return Seen(_stacked(codes), torch.cat(normed))


def _stream(
    there: Sequence[str], asked: Stream | None, streams: dict[str, Stream | None], site: str
) -> Stream:
    kinds = {kind for kind in streams.values() if kind is not None}
    if asked is not None and asked not in STREAMS:
        raise BadArgument(f"stream is {asked!r}: use 'image' or 'text'")
    if asked is None and len(kinds) > 1:
        raise BadArgument(f"examples are of both streams ({streams}): compare like with like")
    if asked is None and not kinds and len(there) > 1:
        raise BadArgument(
            f"both streams pass at site {site!r}: say with stream= whether the pairs' images or "
            "texts are compared"
        )
    side = asked or (kinds.pop() if kinds else there[0])
    if side not in there:
        raise BadArgument(
            f"no {side} stream passes at site {site!r}, only {', '.join(there)}: take examples "
            "of that"
        )
    return cast("Stream", side)


def _stacked(parts: Sequence[SparseCodes]) -> SparseCodes:
    starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    rows = [part.rows + start for part, start in zip(parts, starts, strict=False)]
    return SparseCodes(
        torch.cat(rows),
        torch.cat([part.features for part in parts]),
        torch.cat([part.values for part in parts]),
        (int(starts[-1]), parts[0].n_features),
    )
