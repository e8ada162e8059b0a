"""What ``vlm-edit train`` and ``vlm-edit check`` do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit import dictionaries
from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Check, Places, Train
from vlm_edit.cli.host import load_host
from vlm_edit.cli.resuming import Begun
from vlm_edit.cli.subject import Loaded, Subject, load_pairs, read_named
from vlm_edit.cli.together import processes_of
from vlm_edit.cli.writing import expect_free
from vlm_edit.dictionaries import STREAMS, Transcoder
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.files import expect_place
from vlm_edit.ground.notebook import several
from vlm_edit.host import Host, other_family
from vlm_edit.measuring import LossRecovered, Pairs, collect, expect_loss, loss_recovered
from vlm_edit.report import Table

# A dictionary of one folder, or of one for each stream.
FILES = ("cfg.json", "sae_weights.safetensors", "image", "text")
# What is said of collecting, and nothing of activations that are there.
_COLLECTED = ("pairs", "site", "most", "batch_size", "prompt", "image_column", "text_column")
_CHECKED = 1 << 27  # numbers that a trained dictionary is checked on, at most: half a GiB


def train(options: Train) -> int:
    """Train a dictionary, save it, and print how well it fits pairs it has not seen.

    Of several processes the first collects, writes and tells.
    """
    with processes_of(options) as processes:
        # What cannot be begun with is refused before anything is written.
        start = None if options.start is None else _start(options)
        begun = processes.lead(lambda: _prepare(options))
        store = dictionaries.load_activations(begun["activations"])
        split = store.split(options.held_out)
        info = {"model_name": begun["model_name"], "site": store.index.site}
        config = _config(options, store.index.site)
        kept_at: dict[str, Any] = {"checkpoint": begun["state"], "every": options.every}
        kept_at |= {"device": processes.device, "log": options.log}
        if start is not None:
            kept_at["start"] = start
        with _reported(options, config, processes.rank) as callbacks:
            dictionary = _trained(options, split, config, info, {**kept_at, "callbacks": callbacks})
        processes.lead(lambda: _save(options, dictionary, store, split))
    return 0


def _start(options: Train) -> dictionaries.Dictionary:
    """Load the dictionary that a training begins with."""
    if options.separate:
        raise BadArgument("--start is one dictionary, and --separate trains two: leave one out")
    dictionary = read_named(str(options.start))
    if not isinstance(dictionary, dictionaries.Dictionary):
        if isinstance(dictionary, Transcoder):
            raise BadArgument(f"--start {options.start} is a transcoder: name an SAE")
        raise BadArgument(f"--start {options.start} holds one for each stream: name one of them")
    return dictionary


def _trained(
    options: Train,
    split: dictionaries.Split,
    config: dictionaries.TrainConfig,
    info: Mapping[str, str],
    how: Mapping[str, Any],
) -> Loaded:
    if not options.separate:
        return dictionaries.train_dictionary(split.training, config, info, **how)
    # Elsewhere than at a joint embedding tokens are no pairs, but share a space.
    by: dictionaries.Similarity = "correlation" if info["site"] == "joint" else "decoder"
    return dictionaries.train_paired(split.training, config, info, by=by, **how)


@contextmanager
def _reported(
    options: Train, config: dictionaries.TrainConfig, rank: int
) -> Iterator[list[dictionaries.Callback]]:
    """Lend what tells a service of the first process' figures, if one was asked for."""
    if options.report_to is None or rank:
        yield []
        return
    folder = _report_folder(options)
    with dictionaries.reporter(options.report_to, folder, asdict(config)) as callback:
        yield [callback]


def _report_folder(options: Train) -> Path:
    out = Path(options.out).absolute()
    tensorboard = options.report_to == "tensorboard"
    return out.with_name(f"{out.name}-tensorboard") if tensorboard else out


def _logs(options: Train) -> list[Path]:
    """Return the files that the log is written to."""
    if options.log is None:
        return []
    names = [f"{options.log}.{s}" for s in STREAMS] if options.separate else [options.log]
    return [Path(name) for name in names]


def _prepare(options: Train) -> dict[str, str]:
    """Refuse what cannot be done, collect what is not there, and tell what to train on."""
    out = Path(options.out)
    begun = Begun(options)
    expect_free(
        [] if begun.own else [out] if out.is_file() else [out / name for name in FILES],
        options.overwrite,
        "name another folder with --out",
    )
    if options.loss and not (options.model and options.pairs):
        raise BadArgument(
            "--loss compares what the model says of its pairs: give MODEL and PAIRS, with "
            "--activations as without"
        )
    for file in _logs(options):
        expect_place(file, "--log")
    expect_free(
        [] if begun.own else _logs(options), options.overwrite, "name another file with --log"
    )
    if options.report_to is not None:
        dictionaries.service_of(options.report_to)
    given = options.activations is not None and not options.model
    name = _collected(options, begun) if not given else _there(options)
    return {
        "activations": str(options.activations or begun.activations),
        "model_name": name,
        "state": str(begun.begin()),
    }


def _there(options: Train) -> str:
    """Look at activations that were collected before, and return what they call their model."""
    assert options.activations is not None
    store = dictionaries.load_activations(options.activations)
    index = store.index
    for name in _COLLECTED:
        typed, default = getattr(options, name), Train.__dataclass_fields__[name].default
        if typed != default and not (name == "site" and typed == index.site):
            raise BadArgument(
                f"--{name.replace('_', '-')} {typed} says how activations are collected, and those "
                f"in {options.activations} are, at site {index.site!r}: leave it out"
            )
    _expect_paired(_config(options, index.site), index.site)
    store.split(options.held_out)  # refuses what leaves one side empty
    return str(index.origin.get("model_name", ""))


def _collected(options: Train, begun: Begun) -> str:
    """Collect activations, or go on with it, and return what their model is called."""
    if not options.model or not options.pairs:
        raise BadArgument(
            "train takes MODEL and PAIRS, or --activations FOLDER with what vlm-edit collect wrote"
        )
    pairs = _pairs(options)
    _expect_both(len(pairs), options.held_out)
    _config(options, options.site).expect()
    host = load_host(options.model, options, pairs.only == "text")
    site = host.site(options.site)
    _expect_paired(_config(options, site.name), site.name)
    if options.loss:
        expect_loss(host, site.name, pairs)
    begun.begin()
    collect(
        *(host, pairs, site.name),
        most=options.most,
        batch_size=options.batch_size,
        out=options.activations or begun.activations,
        overwrite=options.overwrite and options.activations is None,
        left_out=[],
    )
    return _named(host, options)


def _save(
    options: Train,
    dictionary: Loaded,
    store: dictionaries.StoredActivations,
    split: dictionaries.Split,
) -> None:
    """Save a dictionary, and print how well it fits."""
    out, origin = Path(options.out), store.index.origin
    dictionaries.save_saelens(dictionary, out)
    numbers = store.held_out(options.held_out) if options.loss else []
    Begun(options).finish()  # and the activations with it
    held_out = {stream: _some(rows) for stream, rows in split.held_out.items()}
    unseen = several(split.pairs, origin["pairs"].get("only") or "pair")
    _tell(dictionary, held_out, True, f"{unseen} that it was not trained on")
    if options.loss:
        _tell_loss(
            _loss(options, dictionary, store.index.site, numbers),
            f"{unseen} that it was not trained on",
        )
    telling.left_out(store.index.left_out, store.index.truncated)
    print()
    telling.wrote("dictionary", out)


def _loss(options: Train, dictionary: Loaded, site: str, numbers: list[int]) -> LossRecovered:
    """Compare the loss of the model, which was not held while the dictionary was trained."""
    pairs = _pairs(options).select(numbers)
    host = load_host(options.model, options, pairs.only == "text")
    return loss_recovered(host, dictionary, site, pairs)


def _pairs(options: Train) -> Pairs:
    return load_pairs(options.pairs, options.columns(), alone=True)


def _some(rows: dictionaries.MappedRows) -> Tensor:
    """Read rows, or where they are very many as many as memory is sure to hold, evenly spread."""
    most = max(1, _CHECKED // rows.width)
    if len(rows) <= most:
        return rows[:]
    return rows[torch.arange(most) * len(rows) // most]


def _expect_both(pairs: int, held_out: float) -> None:
    """Refuse to train on all pairs, or none."""
    kept = round(pairs * (1 - held_out)) if 0 < held_out < 1 else 0
    if not 0 < kept < pairs:
        raise BadArgument(
            f"--held-out {held_out} of {pairs} pairs leaves {kept} to train on: both parts need at "
            "least one"
        )


def _expect_paired(config: dictionaries.TrainConfig, site: str) -> None:
    """Refuse a site without pairs of one activation each, where a kind learns from these."""
    config.expect()
    if config.paired and site != "joint":
        which = f"--align {config.align}" if config.align else f"--kind {config.kind}"
        raise BadArgument(
            f"{which} learns from pairs of one activation each, and at site "
            f"{site!r} a pair has several or one stream alone: take --site joint"
        )


def _config(options: Train, site: str) -> dictionaries.TrainConfig:
    penalised = options.kind in ("relu", "jumprelu", "gated")
    return dictionaries.TrainConfig(
        kind=options.kind,
        n_features=options.features,
        k=options.k,
        steps=options.steps,
        batch_size=options.rows,
        seed=options.seed,
        lr=options.lr,
        clip=options.clip,
        longest=options.longest,
        middle=options.middle,
        precision=options.precision,
        points=options.points,
        delta=options.delta,
        align=options.align,
        compile=options.compile,
        target_l0=options.k if penalised and options.target_l0 is None else options.target_l0,
        norm=options.norm or ("constant_norm_rescale" if site == "joint" else "none"),
    )


def check(options: Check) -> int:
    """Print whether a dictionary fits: 1 if something looks wrong."""
    subject = Subject.load(options, alone=True)
    dictionary = subject.expect_dictionary()
    host, info = subject.host, dictionary.info
    trained_on = info.get("model_name")
    dictionary.expect_site(subject.site)
    dictionaries.expect_model(trained_on, host.name, other_family(host.model, trained_on))
    place = subject.site
    if isinstance(dictionary, Transcoder) and not dictionary.same_place:
        place = dictionary.places(place).both
    skipped: list[tuple[int, str]] = []
    streams = collect(
        subject.host,
        subject.pairs,
        place,
        most=options.most,
        batch_size=subject.batch_size,
        left_out=skipped,
    )
    home = info.get("site") == subject.site and info.get("model_name") == _named(host, options)
    warned = _tell(
        dictionary, streams, home, several(len(subject.pairs), subject.pairs.only or "pair")
    )
    if options.loss:
        _tell_loss(loss_recovered(host, dictionary, subject.site, subject.pairs))
    telling.left_out(skipped, 0)
    return 1 if warned else 0


def _tell_loss(loss: LossRecovered, of: str = "") -> None:
    """Print what a reconstruction costs the host, and of which pairs if that is not plain."""
    ways = ("plain", "reconstructed", "zero", "mean")
    rows = [(way, f"{getattr(loss, way):.4f}") for way in ways]
    note = f"Of zeros' loss {loss.of_zero:.1%} is recovered, of means' {loss.of_mean:.1%}."
    note += f" Of {of}." if of else ""
    telling.table(Table(f"{loss.kind} loss of {loss.n}", ("at the site", "loss"), rows, note))
    shares = {"of_zero": loss.of_zero, "of_mean": loss.of_mean}
    telling.figures("loss", {**asdict(loss), **shares})


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
