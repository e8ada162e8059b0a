"""What ``vlm-edit train`` and ``vlm-edit check`` do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlm_edit import dictionaries
from vlm_edit.cli.arguments import Check, Train
from vlm_edit.cli.host import load_host
from vlm_edit.cli.subject import Loaded, Subject, load_pairs, tell_left_out
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.files import make_folder
from vlm_edit.host import other_family
from vlm_edit.measuring import collect
from vlm_edit.report import Table


def train(options: Train) -> int:
    """Train a dictionary, save it, and print how well it fits pairs it has not seen."""
    pairs, out = load_pairs(options.pairs), Path(options.out)
    kept = _expect_both(len(pairs), options.held_out)
    config = _config(options)
    config.expect()
    host = load_host(options.model, options)
    site = host.site(options.site)
    if config.paired and site.name != "joint":
        raise BadArgument(
            f"--kind {config.kind} learns from pairs of one activation each, and at site "
            f"{site.name!r} a pair has several or one stream alone: take --site joint"
        )
    skipped: list[tuple[int, str]] = []

    def read(numbers: range) -> dict[str, Tensor]:
        unread: list[tuple[int, str]] = []
        some, size = pairs.select(numbers), options.batch_size
        streams = collect(
            host, some, site.name, most=options.most, batch_size=size, left_out=unread
        )
        skipped.extend((numbers[i], why) for i, why in unread)
        return streams

    streams, held_out = read(range(kept)), read(range(kept, len(pairs)))
    named = host.hub_name or Path(options.model.removeprefix("zoo:")).name
    info = {"model_name": named, "site": site.name}
    dictionary: Loaded
    if options.separate:
        # Elsewhere than at a joint embedding tokens are no pairs, but share a space.
        by: dictionaries.Similarity = "correlation" if site.name == "joint" else "decoder"
        dictionary = dictionaries.train_paired(streams, config, info, by=by)
    else:
        dictionary = dictionaries.train_dictionary(streams, config, info)
    make_folder(out.parent)
    dictionaries.save_saelens(dictionary, out)
    _tell(dictionary, held_out, f"{len(pairs) - kept} pairs that it was not trained on")
    tell_left_out(skipped, 0)
    print(f"\ndictionary: {out}")
    return 0


def _expect_both(pairs: int, held_out: float) -> int:
    """Return how many pairs are left to train on, which must not be all or none."""
    kept = round(pairs * (1 - held_out))
    if not 0 < kept < pairs:
        raise BadArgument(
            f"--held-out {held_out} of {pairs} pairs leaves {kept} to train on: both parts need at "
            "least one"
        )
    return kept


def _config(options: Train) -> dictionaries.TrainConfig:
    return dictionaries.TrainConfig(
        kind=options.kind,
        n_features=options.features,
        k=options.k,
        steps=options.steps,
        batch_size=options.rows,
        seed=options.seed,
        lr=options.lr,
        clip=options.clip,
        target_l0=options.k if options.kind in ("relu", "jumprelu") else None,
        norm="constant_norm_rescale" if options.site == "joint" else "none",
    )


def check(options: Check) -> int:
    """Print whether a dictionary fits: 1 if something looks wrong."""
    subject = Subject.load(options)
    dictionary = subject.expect_dictionary()
    host, info = subject.host, dictionary.info
    other = other_family(host.model, info.get("model_name"))
    dictionaries.expect_origin(info, subject.site, host.name, other)
    skipped: list[tuple[int, str]] = []
    streams = collect(
        subject.host,
        subject.pairs,
        subject.site,
        most=options.most,
        batch_size=subject.batch_size,
        left_out=skipped,
    )
    warned = _tell(dictionary, streams, f"{len(subject.pairs)} pairs")
    tell_left_out(skipped, 0)
    return 1 if warned else 0


def _tell(dictionary: Loaded, streams: Mapping[str, Tensor], of: str) -> int:
    """Print how well a dictionary fits, and return the number of warnings."""
    checks = {stream: dictionary.check(x, stream, warn=False) for stream, x in streams.items()}
    rows = [
        (stream, str(c.n), f"{c.explained_variance:.3f}", f"{c.l0:.1f}", f"{c.dead:.1%}")
        for stream, c in checks.items()
    ]
    titles = ("stream", "activations", "explained variance", "L0", "dead")
    print(Table(f"{dictionary.n_features} features", titles, rows, f"Of {of}."))
    warnings = [(stream, text) for stream, c in checks.items() for text in c.warnings]
    for stream, text in warnings:
        print(f"{stream}: {text}", file=sys.stderr)
    return len(warnings)
