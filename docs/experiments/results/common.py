"""What the experiments share: hosts and codes of the zoo, and results on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm_edit import Dictionary, Host, zoo
from vlm_edit.ground.statistics import Estimate, holm
from vlm_edit.host import Inputs
from vlm_edit.measures.dominance import Dominance, modality_dominance
from vlm_edit.measuring import Measurement, MeasurementAccumulator, Reader, centred
from vlm_edit.report import Table

HERE = Path(__file__).resolve().parent
STREAMS = ("image", "text")
LAYERS = tuple(f"language.{i}" for i in range(4))


@dataclass(frozen=True, eq=False)
class Subject:
    """A dictionary at a site of a host of the zoo, and what the 1,024 shipped pairs give there.

    Attributes:
        name: As tables show it.
        dictionary: Whose features are scored.
        codes: [n, m] per stream.
        hidden: [n, d] per stream.
        found: The measurement.
    """

    name: str
    dictionary: Dictionary
    codes: dict[str, Tensor]
    hidden: dict[str, Tensor]
    found: Measurement

    @property
    def dominance(self) -> Dominance:
        """Scores of the features."""
        return self.found.dominance


class Opening(NamedTuple):
    """What a page says first.

    Attributes:
        sentences: Three that a person can repeat.
        claim: Of the paper, of its reviews or of others.
        done: What was tried here.
        verdict: Holds, holds in part, does not hold, not shown or cannot be tried here; and why.
    """

    sentences: str
    claim: str
    done: str
    verdict: str


def with_special(processor: Any, images: list[Any], texts: list[str]) -> Inputs:
    """Ask as emoji-llava is asked by default, and call all text that is no image.

    So were the stored figures measured: the token that begins a sequence and the line break behind
    the image count as text with the caption's own.
    """
    told = [f"{processor.image_token}\n{text}" for text in texts]
    values = processor(text=told, images=images, return_tensors="pt", padding=True)
    image = values["input_ids"] == processor.image_token_id
    return Inputs(values, caption=values["attention_mask"].bool() & ~image)


@cache
def subject(host: str, site: str, kind: str = "dictionary", wrong: bool = False) -> Subject:
    """Read the shipped pairs.

    Args:
        host: ``clip`` or ``llava``.
        site: Of the host.
        kind: ``dictionary``, the zoo's; ``neurons``, raw dimensions; ``neurons, centred``.
        wrong: Whether each image stands before another pair's caption, drawn with seed 0.
    """
    model, processor = zoo.load_host() if host == "clip" else zoo.load_llava()
    if kind == "dictionary":
        dictionary = zoo.load_dictionary(site)
    else:
        dictionary = Dictionary.identity(192, "constant_norm_rescale")
    if kind == "neurons, centred":
        dictionary = centred(dictionary, subject(host, site, "neurons").found.means)
    asked = Host.of(model, processor, prompt=None if host == "clip" else with_special)
    reader = Reader(asked, dictionary, site, batch_size=128, progress=False)
    accumulator = MeasurementAccumulator(dictionary.n_features)
    codes: dict[str, list[Tensor]] = {stream: [] for stream in STREAMS}
    hidden: dict[str, list[Tensor]] = {stream: [] for stream in STREAMS}
    pairs = zoo.load_pairs()
    if wrong:
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
        # The next in a random circle: no pair keeps its caption.
        after = {int(a): int(b) for a, b in zip(order, order.roll(-1), strict=True)}
        pairs = replace(pairs, texts=tuple(pairs.texts[after[i]] for i in range(len(pairs))))
    for batch in reader.read(pairs):
        accumulator.update(batch)
        for stream in STREAMS:
            codes[stream].append(batch.codes[stream].dense())
            hidden[stream].append(batch.hidden[stream])
    return Subject(
        f"emoji-{host} {site}, {kind}",
        dictionary,
        {stream: torch.cat(parts) for stream, parts in codes.items()},
        {stream: torch.cat(parts) for stream, parts in hidden.items()},
        accumulator.compute(site),
    )


def of_zoo() -> list[Subject]:
    """Every dictionary of the zoo at a site with both streams, and raw neurons of the joint one."""
    return [
        subject("clip", "joint"),
        subject("clip", "joint", "neurons"),
        subject("clip", "joint", "neurons, centred"),
        *(subject("llava", site) for site in LAYERS),
    ]


def dominance_of(codes: dict[str, Tensor], zeros: str = "skip") -> Dominance:
    """MDS of codes that are there."""
    return modality_dominance(codes["image"], codes["text"], zeros)  # type: ignore[arg-type]


def told(estimate: Estimate) -> list[float]:
    """An estimate as it is stored."""
    return [rounded(v) for v in (estimate.value, estimate.low, estimate.high)] + [estimate.n]


def cell(stored: list[float] | None, digits: int = 3) -> str:
    """A stored estimate as a table shows it."""
    if stored is None or stored[0] is None:
        return ""
    return Estimate(*stored[:3], int(stored[3])).text(digits)


def apart(stored: Sequence[list[float] | None], alpha: float = 0.05) -> list[bool]:
    """Which of some stored differences are apart from 0, by Holm's method over all of them.

    The p of one is that of the normal whose 95 % interval reaches from it toward 0 as far.
    """
    chances = []
    for one in stored:
        value, low, high = one[:3] if one is not None and one[1] is not None else (0.0, 0.0, 0.0)
        reach = value - low if value > 0 else high - value
        chances.append(math.erfc(1.96 * abs(value) / reach / math.sqrt(2)) if reach > 0 else 1.0)
    return (holm(torch.tensor(chances, dtype=torch.float64)) <= alpha).tolist()


def figure(value: float, digits: int = 2) -> str:
    """A number as a table shows it."""
    return Estimate(value, value, value, 0).text(digits).partition(" ")[0]


def rounded(value: float) -> float | None:
    """Six digits, so that another machine's last ones make no difference; None for NaN."""
    return None if value != value else float(f"{value:.6g}")


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result beside the scripts."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """Read a result."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def markdown(table: Table) -> str:
    """A table for a page."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    rows = ["| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines]
    return "\n".join([f"**{table.title}**", "", *rows, *(["", table.note] if table.note else [])])
