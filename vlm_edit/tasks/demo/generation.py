"""The demonstration on the bundled LLaVA: measure a layer, edit it, and hear what it answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlm_edit import zoo
from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Ablate
from vlm_edit.ground.files import make_folder
from vlm_edit.host import Host
from vlm_edit.measuring import Measurement, MeasurementAccumulator, Reader
from vlm_edit.report import Examples, Table, class_table
from vlm_edit.tasks.demo.ablation import Ablation
from vlm_edit.tasks.demo.factors import Check
from vlm_edit.tasks.demo.interview import Interview, Sizes, draw
from vlm_edit.tasks.demo.pages import check_table, write_if_possible
from vlm_edit.tasks.demo.steering import Steering
from vlm_edit.zoo.questions import QUESTIONS

SITE = "language.0"


@dataclass(frozen=True, eq=False)
class Generation:
    """What a demonstration found.

    Attributes:
        found: The measurement.
        tables: As printed.
        checks: As printed.
        seconds: Wall time.
    """

    found: Measurement
    tables: tuple[Table, ...]
    checks: tuple[Check, ...]
    seconds: float


def run(
    folder: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = print,
    sizes: Sizes = Sizes(),  # noqa: B008
) -> Generation:
    """Run the demonstration on the bundled LLaVA.

    Args:
        folder: Where the run and its page go, made if need be; by default nothing is written.
        say: Receives what a person reads, part by part.
        sizes: How many pairs are asked about.

    Returns:
        What was found.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small that threads would wait for each other, on a busy machine
    try:
        return _run(None if folder is None else Path(folder), say, sizes)
    finally:
        torch.set_num_threads(threads)


def _run(out: Path | None, say: Callable[[str], None], sizes: Sizes) -> Generation:
    start = time.perf_counter()
    if out is not None:
        make_folder(out)
    host = Host.of(*zoo.load_llava())
    pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary(SITE)
    count = sum(p.numel() for p in host.root.parameters()) / 1e6
    say(f"host: emoji-llava, a LlavaForConditionalGeneration of {count:.1f} million parameters\n"
        f"pairs: {len(pairs)}, drawn by vendors whose drawing of the concept was not trained on\n"
        f"dictionary: {dictionary.n_features} features at site {SITE!r}\n"
        f"questions: {', '.join(QUESTIONS.values())}\n")  # fmt: skip
    interview = Interview(host, pairs, dictionary, SITE)
    measurement, codes = read(interview)
    tables = [class_table(measurement)]
    say(f"{tables[0]}\n")
    ablation = Ablation(interview, measurement.dominance.classes(), codes, sizes)
    steering = Steering(interview, codes["image"], sizes)
    checks: list[Check] = []
    for part in (ablation, steering):
        table, verdicts = part.table()
        tables.append(table)
        checks += verdicts
        say(f"{table}\n")
    answers = examples(ablation, steering)
    tables.append(_side_by_side(answers))
    say(f"{tables[-1]}\n")
    say("\n".join(f"{'holds' if c.holds else 'NOT SHOWN'}: {c.claim}\n    {c.evidence}"
                  for c in checks) + "\n")  # fmt: skip
    if out is not None:
        measurement.save(out)
        title = "A LLaVA before and after: the features of emoji-llava"
        shown = [*tables[1:3], check_table(checks)]
        page = write_if_possible(out / "index.html", measurement, pairs, title, shown, [answers])
        say(f"table:  {out / 'features.csv'}\npage:   {page}")
    seconds = time.perf_counter() - start
    say(f"took {seconds:.0f} s")
    return Generation(measurement, tuple(tables), tuple(checks), seconds)


def read(interview: Interview) -> tuple[Measurement, dict[str, Tensor]]:
    """Measure the pairs, each image before its caption, and keep the codes."""
    dictionary: Dictionary = interview.dictionary
    reader = Reader(interview.host, dictionary, interview.site, batch_size=128)
    accumulator = MeasurementAccumulator(dictionary.n_features)
    codes: dict[str, list[Tensor]] = {"image": [], "text": []}
    for batch in reader.read(interview.pairs):
        accumulator.update(batch)
        for stream, parts in codes.items():
            parts.append(batch.codes[stream].dense())
    measurement = accumulator.compute(interview.site, reader.skipped, reader.truncated)
    return measurement, {stream: torch.cat(parts) for stream, parts in codes.items()}


def examples(ablation: Ablation, steering: Steering, shown: int = 6, seed: int = 0) -> Examples:
    """Show answers side by side, of pairs drawn at random."""
    ask = ablation.interview
    numbers = draw(len(ask.pairs), shown, seed + 100)
    target = steering.colours[0]
    patches = {
        "before": None,
        "ablated": ask.patch(Ablate(ablation.classes["vision"])),
        f"steered to {target}": ask.patch(steering.rules(target)),
    }
    answers = {
        name: list(zip(ask.ask("what", numbers, p), ask.ask("background", numbers, p), strict=True))
        for name, p in patches.items()
    }
    items = [
        (i, (f"is: {ask.truth['what'][i]}, {ask.truth['background'][i]}",
             *(f"{name}: {replies[k][0]}, {replies[k][1]}" for name, replies in answers.items())))
        for k, i in enumerate(numbers)
    ]  # fmt: skip
    return Examples(
        "Name and background, before and after",
        items,
        f"{shown} pairs drawn at random with seed {seed}.",
    )


def _side_by_side(answered: Examples) -> Table:
    parts = [[line.split(": ", 1) for line in lines] for _, lines in answered.items]
    names = [name for name, _ in parts[0]]
    rows = [[_shorter(answer) for _, answer in lines] for lines in parts]
    return Table(answered.title, names, rows, answered.note)


def _shorter(answer: str) -> str:
    name, _, colour = answer.rpartition(", ")
    return f"{name[:26]}, {colour[:6]}"
