"""What ``vlm-edit train`` and ``vlm-edit check`` do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_edit import dictionaries
from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Check, Places, Train
from vlm_edit.cli.host import load_host
from vlm_edit.cli.resuming import Begun
from vlm_edit.cli.subject import Loaded, Subject, load_pairs
from vlm_edit.cli.writing import expect_free
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import several
from vlm_edit.host import Host, other_family
from vlm_edit.measuring import Pairs, collect
from vlm_edit.report import Table

# A dictionary of one folder, or of one for each stream.
FILES = ("cfg.json", "sae_weights.safetensors", "image", "text")


def train(options: Train) -> int:
    """Train a dictionary, save it, and print how well it fits pairs it has not seen."""
    out = Path(options.out)
    begun = Begun(options)
    expect_free(
        [] if begun.own else [out] if out.is_file() else [out / name for name in FILES],
        options.overwrite,
        "name another folder with --out",
    )
    pairs = load_pairs(options.pairs, options.columns(), alone=True)
    kept = _expect_both(len(pairs), options.held_out)
    config = _config(options)
    config.expect()
    host = load_host(options.model, options, pairs.only == "text")
    site = host.site(options.site)
    if config.paired and site.name != "joint":
        raise BadArgument(
            f"--kind {config.kind} learns from pairs of one activation each, and at site "
            f"{site.name!r} a pair has several or one stream alone: take --site joint"
        )
    skipped: list[tuple[int, str]] = []
    streams, held_out = (
        _read(options, host, pairs, numbers, skipped)
        for numbers in (range(kept), range(kept, len(pairs)))
    )
    info = {"model_name": _named(host, options), "site": site.name}
    kept_at: dict[str, Any] = {"checkpoint": begun.begin(), "every": options.every}
    dictionary: Loaded
    if options.separate:
        # Elsewhere than at a joint embedding tokens are no pairs, but share a space.
        by: dictionaries.Similarity = "correlation" if site.name == "joint" else "decoder"
        dictionary = dictionaries.train_paired(streams, config, info, by=by, **kept_at)
    else:
        dictionary = dictionaries.train_dictionary(streams, config, info, **kept_at)
    dictionaries.save_saelens(dictionary, out)
    begun.finish()
    unseen = several(len(pairs) - kept, pairs.only or "pair")
    _tell(dictionary, held_out, True, f"{unseen} that it was not trained on")
    telling.left_out(skipped, 0)
    print()
    telling.wrote("dictionary", out)
    return 0


def _read(
    options: Train, host: Host, pairs: Pairs, numbers: range, skipped: list[tuple[int, str]]
) -> dict[str, Tensor]:
    """Return the activations of some of the pairs; those left out are added to ``skipped``."""
    unread: list[tuple[int, str]] = []
    streams = collect(
        *(host, pairs.select(numbers), options.site),
        most=options.most,
        batch_size=options.batch_size,
        left_out=unread,
    )
    skipped.extend((numbers[i], why) for i, why in unread)
    return streams


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
    subject = Subject.load(options, alone=True)
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
    home = info.get("site") == subject.site and info.get("model_name") == _named(host, options)
    warned = _tell(
        dictionary, streams, home, several(len(subject.pairs), subject.pairs.only or "pair")
    )
    telling.left_out(skipped, 0)
    return 1 if warned else 0


def _named(host: Host, options: Places) -> str:
    """Return what a dictionary's file calls the host."""
    return host.hub_name or Path(options.model.removeprefix("zoo:")).name


def _tell(dictionary: Loaded, streams: Mapping[str, Tensor], trained_here: bool, of: str) -> int:
    """Print how well a dictionary fits, and return the number of warnings."""
    checks = {
        stream: dictionary.check(x, stream, warn=False, trained_here=trained_here)
        for stream, x in streams.items()
    }
    rows = [
        (stream, str(c.n), f"{c.explained_variance:.3f}", f"{c.l0:.1f}", f"{c.dead:.1%}")
        for stream, c in checks.items()
    ]
    titles = ("stream", "activations", "explained variance", "L0", "dead")
    telling.table(Table(f"{dictionary.n_features} features", titles, rows, f"Of {of}."))
    told = {
        stream: {
            "explained_variance": c.explained_variance, "l0": c.l0, "dead": c.dead, "n": c.n,
            "warnings": list(c.warnings),
        }
        for stream, c in checks.items()
    }  # fmt: skip
    telling.figures("fit", told)
    warnings = [(stream, text) for stream, c in checks.items() for text in c.warnings]
    for stream, text in warnings:
        telling.warn(f"{stream}: {text}")
    return len(warnings)
