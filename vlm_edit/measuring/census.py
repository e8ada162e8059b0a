"""A census of a host's features, with its nulls: from pairs to rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlm_edit.dictionaries import AnyDictionary, expect_plain
from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.host import Host, Model, random_host
from vlm_edit.measures.dominance import RULE, Cut, drawn
from vlm_edit.measures.nulls import ROWS, Census, Halves, census_of
from vlm_edit.measures.stability import stability_of_halves
from vlm_edit.measuring.collecting import collect
from vlm_edit.measuring.order import shown
from vlm_edit.measuring.pairs import Pairs


def census(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    dictionary: AnyDictionary,
    site: str = "joint",
    *,
    rows: Sequence[str] = tuple(ROWS),
    rule: Cut = RULE,
    factor: str | None = None,
    deleted: int = 16,
    steps: int = 600,
    draws: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
    left_out: list[tuple[int, str]] | None = None,
) -> Census:
    """Count features by class in a host and in its nulls, to see what the counts are worth.

    Nulls lack what a count is to show, and are alike otherwise: ``vlm_edit.measures.nulls`` says
    what each keeps and destroys. The rows ``frozen-dictionary``, ``retrained`` and ``random-host``
    each train a dictionary as large and as sparse as the given one, on these very pairs. Of images
    with several captions one is taken, drawn with the seed: nulls have an image for each pair.

    Args:
        host: In eval mode, with its processor.
        pairs: Image-text pairs, or what ``Pairs.of`` takes.
        dictionary: Of the site's width.
        site: Where a pair is one activation of each stream, such as ``joint``.
        rows: Keys of ``vlm_edit.measures.nulls.ROWS``; ``QUICK`` has those that train nothing.
        rule: Of the classes, as in ``Dominance.classes``.
        factor: Column of the pairs with what images show, read before and after features are
            deleted; None for nothing.
        deleted: Features, at most, that are.
        steps: Of each training.
        draws: Of halves of the pairs, to see whose classes come again
            (``vlm_edit.measures.stability``); 0 for none.
        seed: Of every draw, training and random weight.
        batch_size: Pairs per forward.
        progress: Whether to show bars.
        left_out: As in ``collect``.

    Raises:
        VlmEditError: As in ``measure``; a site with several activations a pair, or a column that
            pairs do not have.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.measures.nulls import QUICK
        >>> from vlm_edit.measuring import census
        >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(128))
        >>> dictionary = zoo.load_dictionary("joint")
        >>> rows = census(host, pairs, dictionary, rows=QUICK, progress=False)
        >>> rows.row("unpaired").paired
        0
    """
    host, pairs = Host.of(host), Pairs.of(pairs)
    expect_plain(dictionary, "a census beside nulls")
    if factor is not None and factor not in pairs.columns:
        raise UnknownName(
            f"{pairs.name} has no column {factor!r}: it has {', '.join(pairs.columns) or 'none'}"
        )
    host.expect_width(host.site(site), dictionary.width)
    taken = drawn(shown(pairs).tolist(), seed).tolist()
    pairs = pairs.select(taken)
    skipped: list[tuple[int, str]] = []
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    streams = collect(host, pairs, site, left_out=skipped, **options)
    missing = {number for number, _ in skipped}
    kept = [i for i in range(len(pairs)) if i not in missing]
    _expect_single(streams, len(kept), site)
    labels = None if factor is None else [pairs.columns[factor][i] for i in kept]
    random = None
    if "random-host" in rows:
        random = collect(random_host(host, seed), pairs, site, left_out=[], **options)
    if left_out is not None:
        left_out += [(taken[number], why) for number, why in skipped]
    counted = census_of(
        streams,
        dictionary,
        rows,
        random=random,
        rule=rule,
        factor=None if factor is None or labels is None else (factor, labels),
        deleted=deleted,
        steps=steps,
        seed=seed,
        progress=progress,
    )
    if not draws:
        return counted
    image, text = (dictionary.encode_sparse(streams[s], s) for s in ("image", "text"))
    again = stability_of_halves(image, text, rule=rule, draws=draws, seed=seed)
    halves = Halves(again.columns, tuple(again.cells()), again.note(), tuple(again.recurring))
    return replace(counted, halves=halves)


def _expect_single(streams: dict[str, Tensor], count: int, site: str) -> None:
    """Refuse a site where a pair is not one activation of each of both streams."""
    sizes = {name: len(x) for name, x in streams.items()}
    if sizes != {"image": count, "text": count}:
        raise BadArgument(
            f"at site {site!r} {count} pairs give {sizes} activations, and a census takes one of "
            "each stream for a pair: take a joint embedding, such as site 'joint'"
        )
