"""``vlm-edit name``: what a run's features are called, promote, and are near to."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vlm_edit.cli import kept, telling
from vlm_edit.cli.host import ZOO, load_host
from vlm_edit.cli.loading import Dtype
from vlm_edit.cli.named import Name
from vlm_edit.cli.numbers import numbers
from vlm_edit.cli.reporting import pairs_of
from vlm_edit.cli.subject import Loaded, load_dictionary
from vlm_edit.cli.writing import expect_free
from vlm_edit.dictionaries import Dictionary
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName
from vlm_edit.host import Host
from vlm_edit.measuring import (
    NAME_COLUMNS,
    Measurement,
    Names,
    load_measurement,
    name_features,
    neighbours,
    promotes,
)
from vlm_edit.report import Table

_NORMS = ("constant_norm_rescale", "none")  # of raw neurons, as measure takes them


def name(options: Name) -> int:
    """Print names of a run's features, and keep them with the run."""
    folder = Path(options.run)
    expect_free([folder / kept.NAMES], options.overwrite, "leave it as it is")
    features = None if options.features is None else numbers(options.features, "--features")
    if options.shown < 1 or options.near < 1:
        raise BadArgument("--shown and --near must be at least 1")
    run = load_measurement(folder)
    dictionary = _dictionary_of(run, options)
    pairs = pairs_of(run, options, whole=True)
    host = load_host(_model_of(run, options), _as_it_was(run, options))
    names = name_features(
        *(host, run, pairs, dictionary, features),
        vocabulary=None if options.vocabulary is None else Path(options.vocabulary),
        template=options.template,
        tried=options.tried,
        most=options.most,
        alpha=options.alpha,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    telling.table(_table(names, options.shown))
    told = _told(host, dictionary, run, names, options)
    telling.figures("names", told)
    telling.wrote("names", kept.save_names(folder, told, run.checksum()))
    telling.wrote("page", f"vlm-edit report {folder}")
    return 0


def _table(names: Names, shown: int) -> Table:
    """Show the best names first."""

    def rank(place: int) -> tuple[bool, float]:
        score = names[place].score.value
        return names[place].held, score if score == score else -1.0

    cells = names.cells()
    order = sorted(range(len(names)), key=rank, reverse=True)[:shown]
    rest = f"The best {shown} of {len(names)} are shown; --json lists all.\n"
    note = names.note() if len(names) <= shown else rest + names.note()
    title = f"Names of features at {names.site}"
    return Table(title, NAME_COLUMNS, [cells[place] for place in order], note)


def _told(
    host: Host, dictionary: Loaded, run: Measurement, names: Names, options: Name
) -> dict[int, dict[str, Any]]:
    """Return what is kept of each feature, JSON-able."""
    features = [one.feature for one in names]
    moved = promotes(
        *(host, dictionary, run.site, features),
        labels=names.vocabulary or None,
        template=options.template,
        batch_size=options.batch_size,
    )
    near = neighbours(dictionary, features, options.near, measurement=run)
    return {
        one.feature: {
            **one.as_json(),
            "promotes": moved[one.feature].as_json(),
            "neighbours": near[one.feature].as_json(),
        }
        for one in names
    }


def _model_of(run: Measurement, options: Name) -> str:
    named = options.model or run.provenance.get("host", {}).get("name")
    if not isinstance(named, str) or not named:
        raise CannotKnow("the run does not say where its model lies: name it with --model")
    return named


def _as_it_was(run: Measurement, options: Name) -> Name:
    """Load the model in the run's dtype and commit, unless others are asked for."""
    host = run.provenance.get("host", {})
    dtype, commit = host.get("dtype"), host.get("revision")
    if options.dtype == "auto" and dtype in get_args(Dtype):
        options = replace(options, dtype=dtype)
    if options.revision is None and options.model is None and isinstance(commit, str):
        options = replace(options, revision=commit)
    return options


def _dictionary_of(run: Measurement, options: Name) -> Loaded:
    """Load the dictionary that is named, or find the run's among the zoo's and raw neurons."""
    if options.dictionary not in (None, "neurons"):
        return load_dictionary(options.dictionary, options)
    there = run.provenance.get("dictionary", {})
    known: list[Loaded] = []
    if options.dictionary is None:
        with suppress(UnknownName):
            known.append(load_dictionary(f"{ZOO}{run.site}", options))
    width = there.get("width")
    if isinstance(width, int):
        known += [Dictionary.identity(width, norm) for norm in _NORMS]
    for one in known:
        if one.digest() == there.get("digest"):
            return one
    raise CannotKnow(
        f"{options.run} does not say where its dictionary lies: name it with --dictionary"
    )
