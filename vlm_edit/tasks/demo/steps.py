"""Load, measure, check, edit, save, reload and show: the whole way in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm_edit import zoo
from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Ablate
from vlm_edit.ground.files import make_folder
from vlm_edit.host import Host
from vlm_edit.measures.nulls import QUICK, census_of
from vlm_edit.measuring import Measurement, MeasurementAccumulator, Pairs, Reader
from vlm_edit.patches import Patch
from vlm_edit.report import Table, census_table, class_table, feature_table
from vlm_edit.selection import by_class
from vlm_edit.tasks.demo.edits import SITE, Edits
from vlm_edit.tasks.demo.factors import (
    SHOWN,
    Check,
    Reading,
    checks,
    factor_table,
)
from vlm_edit.tasks.demo.pages import check_table, write_if_possible

CHOSEN = 96  # features of each class to compare


@dataclass(frozen=True, eq=False)
class Run:
    """What a demonstration found.

    Attributes:
        found: The measurement.
        tables: As printed.
        checks: As printed.
        patch: Where the patch was saved.
        page: Where the page is, if plotly is there to draw it.
        seconds: Wall time.
    """

    found: Measurement
    tables: tuple[Table, ...]
    checks: tuple[Check, ...]
    patch: Path
    page: Path
    seconds: float


def run(folder: str | os.PathLike[str], say: Callable[[str], None] = print) -> Run:
    """Run the demonstration on the bundled CLIP.

    Args:
        folder: Where the patch, the table of features and the page go; made if need be.
        say: Receives what a person reads, part by part.

    Returns:
        What was found.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that threads would wait for each other, on a busy machine
    try:
        return _run(Path(folder), say)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path, say: Callable[[str], None]) -> Run:
    start = time.perf_counter()
    make_folder(out)
    host = Host.of(*zoo.load_host())
    pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary(SITE)
    say(f"host: emoji-clip, a CLIPModel of {_millions(host.root)} parameters\npairs: {len(pairs)}, "
        f"drawn by vendors whose drawing of the concept was not trained on\ndictionary: "
        f"{dictionary.n_features} features at site {SITE!r}\n")  # fmt: skip
    measurement, hidden = _measure(host, pairs, dictionary)
    codes = {stream: dictionary.encode(h, stream) for stream, h in hidden.items()}
    classes = measurement.dominance.classes()
    background = ("background", pairs.columns["background"])
    census = census_of(hidden, dictionary, QUICK, factor=background)
    tables = [class_table(measurement), census_table(census), feature_table(measurement, pairs)]
    for table in tables:
        say(f"{table}\n")
    reading = Reading(pairs)
    chosen, of_them = chosen_in(measurement)
    factors, right = factor_table(reading, codes, dictionary.decoder, chosen)
    say(f"{factors}\n{of_them}\n")
    verdicts = checks(measurement.dominance, chosen, codes, pairs, right)
    patch = _save_patch(out / "no-vision-dominant.safetensors", host, dictionary, classes)
    edits = Edits(host, pairs, dictionary, hidden, reading)
    verdicts.append(edits.attached_equals_spliced(patch))
    say("\n".join(f"{'holds' if c.holds else 'NOT SHOWN'}: {c.claim}\n    {c.evidence}"
                  for c in verdicts) + "\n")  # fmt: skip
    ablations = edits.table(chosen)
    say(f"{ablations}\n")
    results = [factors, ablations, check_table(verdicts)]
    measurement.save(out)
    title = "Vision, language or both: the features of emoji-clip"
    page = out / "index.html"
    where = write_if_possible(page, measurement, pairs, title, results, [edits.changed(patch)],
                              census)  # fmt: skip
    seconds = time.perf_counter() - start
    say(f"patch:  {patch}\ntable:  {out / 'features.csv'}\npage:   {where}\ntook {seconds:.0f} s")
    return Run(measurement, (*tables, *results), tuple(verdicts), patch, page, seconds)


def _measure(
    host: Host, pairs: Pairs, dictionary: Dictionary
) -> tuple[Measurement, dict[str, Tensor]]:
    reader = Reader(host, dictionary, SITE)
    accumulator = MeasurementAccumulator(dictionary.n_features)
    hidden: dict[str, list[Tensor]] = {"image": [], "text": []}
    for batch in reader.read(pairs):
        accumulator.update(batch)
        for stream, parts in hidden.items():
            parts.append(batch.hidden[stream])
    measurement = accumulator.compute(SITE, reader.skipped, reader.truncated)
    return measurement, {name: torch.cat(parts) for name, parts in hidden.items()}


def chosen_in(measurement: Measurement) -> tuple[dict[str, list[int]], str]:
    """Choose as many features for each class, the surest, and say how many of them are proven.

    Returns:
        The features by class, other live ones as ``undecided``; and a sentence.
    """
    chosen: dict[str, list[int]] = {}
    said = []
    for name in SHOWN:
        features = by_class(measurement, name, n=CHOSEN)
        chosen[name] = list(features)
        said.append(f"{features.proven} of {len(features)} {name}")
    taken = {k for features in chosen.values() for k in features}
    dead = measurement.dominance.dead
    live = (~dead).nonzero().flatten().tolist()
    chosen["undecided"] = [k for k in live if k not in taken]
    chosen["dead"] = dead.nonzero().flatten().tolist()
    return (
        chosen,
        f"Chosen by rank, the surest first; proven by their intervals: {', '.join(said)}.",
    )


def _save_patch(
    path: Path, host: Host, dictionary: Dictionary, classes: Mapping[str, list[int]]
) -> Path:
    patch = Patch(
        SITE,
        dictionary,
        Ablate(classes["vision"]),
        info={"what": "ablates the vision-dominant features of the zoo's joint dictionary"},
    )
    patch.save(path, host)
    return path


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million"
