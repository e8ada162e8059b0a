"""What ``vlm-edit train`` and ``vlm-edit check`` do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlm_edit.cli.host import load_host
from vlm_edit.cli.subject import Subject, load_pairs, tell_left_out
from vlm_edit.dictionaries import (
    Dictionary,
    PairedDictionary,
    Similarity,
    TrainConfig,
    expect_origin,
    save_saelens,
    train_dictionary,
    train_paired,
)
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.files import make_folder
from vlm_edit.measuring import collect
from vlm_edit.report import Table


def train(options: argparse.Namespace) -> int:
    """``vlm-edit train``."""
    pairs, out = load_pairs(options.pairs), Path(options.out)
    kept = round(len(pairs) * (1 - options.held_out))
    if not 0 < kept < len(pairs):
        raise BadArgument(
            f"--held-out {options.held_out} of {len(pairs)} pairs leaves {kept} to train on: both "
            "parts need at least one"
        )
    config = TrainConfig(
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
    config.expect()
    host = load_host(options.model)
    site = host.site(options.site)
    if config.paired and site.name != "joint":
        raise BadArgument(
            f"--kind {config.kind} learns from pairs of one activation each, and at site "
            f"{site.name!r} a pair has several or one stream alone: take --site joint"
        )

    skipped: list[tuple[int, str]] = []

    def read(numbers: range) -> dict[str, Tensor]:
        here: list[tuple[int, str]] = []
        found = collect(
            host,
            pairs.select(numbers),
            site.name,
            most=options.most,
            batch_size=options.batch_size,
            left_out=here,
        )
        skipped.extend((numbers[i], why) for i, why in here)
        return found

    streams, held_out = read(range(kept)), read(range(kept, len(pairs)))
    info = {"model_name": Path(options.model.removeprefix("zoo:")).name, "site": site.name}
    found: Dictionary | PairedDictionary[Dictionary]
    if options.separate:
        # Elsewhere than at a joint embedding tokens are no pairs, but share a space.
        by: Similarity = "correlation" if site.name == "joint" else "decoder"
        found = train_paired(streams, config, info, by=by)
    else:
        found = train_dictionary(streams, config, info)
    make_folder(out.parent)
    save_saelens(found, out)
    _tell(found, held_out, f"{len(pairs) - kept} pairs that it was not trained on")
    tell_left_out(skipped, 0)
    print(f"\ndictionary: {out}")
    return 0


def check(options: argparse.Namespace) -> int:
    """``vlm-edit check``: 1 if something looks wrong."""
    subject = Subject.load(options)
    dictionary = subject.expect_dictionary()
    expect_origin(dictionary.info, subject.site, subject.host.name)
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


def _tell(
    dictionary: Dictionary | PairedDictionary[Dictionary], streams: Mapping[str, Tensor], of: str
) -> int:
    """Print how well a dictionary fits; the number of warnings."""
    found = {stream: dictionary.check(x, stream, warn=False) for stream, x in streams.items()}
    rows = [
        (stream, str(c.n), f"{c.explained_variance:.3f}", f"{c.l0:.1f}", f"{c.dead:.1%}")
        for stream, c in found.items()
    ]
    titles = ("stream", "activations", "explained variance", "L0", "dead")
    print(Table(f"{dictionary.n_features} features", titles, rows, f"Of {of}."))
    warnings = [(stream, text) for stream, c in found.items() for text in c.warnings]
    for stream, text in warnings:
        print(f"{stream}: {text}", file=sys.stderr)
    return len(warnings)
