"""How often is a feature's name right? The zoo's factors are known, so it can be counted.

python docs/experiments features.naming            # counts anew, three minutes, and writes
python docs/experiments features.naming --stored   # writes docs/naming.md of what is stored
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm_edit import Dictionary, Host, zoo
from vlm_edit.ground.files import write_text
from vlm_edit.ground.statistics import proportion
from vlm_edit.measuring import Names, Pairs, Reader, caption_holds, measure, name_features

DOCS = Path(__file__).resolve().parents[2]
STORED, PAGE = Path(__file__).with_suffix(".json"), DOCS / "naming.md"
FACTORS = ("background", "vendor", "language", "phrasing", "group", "gender")
TOLD_BY = {
    "background": "images alone",
    "vendor": "images alone",
    "language": "captions alone",
    "phrasing": "captions alone",
    "group": "both",
    "gender": "both",
}
FEWEST = 5  # pairs in which a feature must fire, or captions that must hold a name
CLEAR = 3.3  # standard errors by which firing must go with a value
DRAWS = 2000

FIGURES = """{table}

- Names from a list of labels are right beyond chance: {labels}.
- Of words of captions fewer hold, and fewer are right: {captions}. The captions are in
  three languages, and a rare phrase of one of them says little of a feature.
- Nothing in a caption tells background or vendor. Of {seen[0]} features that are clearly about one,
  {seen[1]} got a name that beats chance, and {seen[2]} the right one: **a name that holds is not
  thereby what the feature is about**.
- At language layers few names hold, {few} to {many} of 512: a token is a part of a word, and its
  presence in the caption a weak score. That several tokens stand in one name, such as "woman /
  mujer / Frau", was thought of when single ones were seen to fail on these very features, where
  0 to 7 held: these figures are no test of that choice.
"""
BEGIN, END = "<!-- figures -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """A way to name the features of a dictionary of the zoo.

    Attributes:
        host: ``clip`` or ``llava``.
        site: Of the host.
        tried: Words of a direction that a name is chosen among.
        labels: Whether the words are the pairs' labels; else those of captions, or tokens.
    """

    host: str
    site: str
    tried: int
    labels: bool = False


ROWS = {
    "joint, words of captions, first word": Row("clip", "joint", 1),
    "joint, words of captions, best of 3": Row("clip", "joint", 3),
    "joint, labels, first": Row("clip", "joint", 1, True),
    "joint, labels, best of 3": Row("clip", "joint", 3, True),
    **{f"language.{i}, tokens, best of 3": Row("llava", f"language.{i}", 3) for i in range(4)},
}


def halves(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Cut the pairs in two, every concept on one side: to name on, and to say what is right on."""
    concepts = sorted(set(pairs.columns["concept"]))
    side = {concept: i % 2 for i, concept in enumerate(concepts)}
    sides = [side[concept] for concept in pairs.columns["concept"]]
    return tuple(pairs.select([i for i, s in enumerate(sides) if s == k]) for k in (0, 1))  # type: ignore[return-value]


def values_of(pairs: Pairs, factors: tuple[str, ...]) -> tuple[list[tuple[str, str]], Tensor]:
    """Return every value of some factors, but for none, and which pairs have it, [n, v]."""
    known = [(f, v) for f in factors for v in sorted(set(zoo.load_pairs().columns[f]))]
    known = [(f, v) for f, v in known if v != "none"]
    has = [[one == value for one in pairs.columns[factor]] for factor, value in known]
    return known, torch.tensor(has).mT


def best_value(holds: Tensor, has: Tensor, clear: float) -> Tensor:
    """Return which value each column goes with most, by phi, [t]; -1 where none is clear."""
    centred = [x.double() - x.double().mean(0) for x in (holds, has)]
    lengths = [x.norm(dim=0).clamp_min(1e-12) for x in centred]
    phi = (centred[0].mT @ centred[1]) / lengths[0][:, None] / lengths[1]
    most, best = phi.max(1)
    enough = (holds.sum(0) >= FEWEST) & ((~holds).sum(0) >= FEWEST)
    return torch.where(enough & (most * len(holds) ** 0.5 >= clear), best, -1)


def fires(host: Host, dictionary: Dictionary, site: str, pairs: Pairs, names: Names) -> Tensor:
    """Return in which pairs the named features fire, in the stream of the name, [n, t]."""
    reader = Reader(host, dictionary, site, batch_size=128, progress=False)
    batches = list(reader.read(pairs))
    dense = {s: torch.cat([b.codes[s].dense() for b in batches]) for s in host.site(site).streams}
    columns = []
    for name in names:
        size = dense[name.stream][:, name.feature].abs()
        often = int((size > 0).sum()) * 2 > len(size)
        columns.append(size > (size.median() if often else 0.0))
    return torch.stack(columns, 1)


def says(names: Names, row: Row, known: list[tuple[str, str]], has: Tensor) -> Tensor:
    """Return which value each name says: its label's, or that of the captions that hold it, [t]."""
    pairs = zoo.load_pairs()
    if not row.labels:
        held = caption_holds(pairs.texts, [name.tried for name in names])
        return best_value(held, has, 0.0)
    groups = dict(zip(pairs.columns["label"], pairs.columns["group"], strict=True))
    number = {value: i for i, (_, value) in enumerate(known)}
    return torch.tensor([number[groups[n.tried]] if n.tried else -1 for n in names])


def count(row: Row) -> dict[str, Any]:
    """Count right names of a dictionary of the zoo."""
    host = Host.of(*(zoo.load_host() if row.host == "clip" else zoo.load_llava()))
    dictionary, pairs = zoo.load_dictionary(row.site), zoo.load_pairs()
    named_on, told_on = halves(pairs)
    measurement = measure(host, named_on, dictionary, row.site, progress=False)
    concepts = {c: i for i, c in enumerate(sorted(set(named_on.columns["concept"])))}
    names = name_features(
        *(host, measurement, named_on, dictionary),
        vocabulary=sorted(set(pairs.columns["label"])) if row.labels else None,
        template="a picture of {}" if row.labels else "{}",
        tried=row.tried,
        groups=[concepts[c] for c in named_on.columns["concept"]],
    )
    factors = ("group",) if row.labels else FACTORS
    known, has = values_of(told_on, factors)
    true = best_value(fires(host, dictionary, row.site, told_on, names), has, CLEAR)
    said = says(names, row, known, values_of(pairs, factors)[1])
    held = torch.tensor([name.held for name in names])
    result: dict[str, Any] = {"features": len(names), "described": int(held.sum())}
    for which, mask in (("described", held), ("undescribed", ~held)):
        index = (mask & (true >= 0) & (said >= 0)).nonzero().flatten()
        result[f"of {which}"] = rates(true[index], said[index])
    clear = held & (true >= 0)
    result["about"] = {
        whose: [
            *(int((part & (true >= 0)).sum()), int((part & clear).sum())),
            int((part & clear & (true == said)).sum()),
        ]
        for whose in dict.fromkeys(TOLD_BY.values())
        for part in [torch.tensor([i >= 0 and TOLD_BY[known[i][0]] == whose for i in true])]
    }
    return result


def rates(true: Tensor, said: Tensor) -> dict[str, Any]:
    """Return how many names are right, and how many are when shuffled among the features."""
    generator = torch.Generator().manual_seed(0)
    right = int((true == said).sum())
    drawn = torch.tensor(
        [
            int((true == said[torch.randperm(len(said), generator=generator)]).sum())
            for _ in range(DRAWS)
        ]
    ).double()
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    above = int((drawn >= right).sum())
    return {
        "n": len(true),
        "right": right,
        "shuffled": [float(drawn.mean()), low, high],
        "p": (1 + above) / (1 + DRAWS),
    }


def page(result: dict[str, Any]) -> str:
    """Return the page, its figures those of what is stored."""
    best, words = result["joint, labels, best of 3"], result["joint, words of captions, best of 3"]
    layers = [part for name, part in result.items() if name.startswith("language")]
    figures = FIGURES.format(
        labels=of(best["of described"]),
        captions=of(words["of described"]),
        seen=words["about"]["images alone"],
        few=min(part["described"] for part in layers),
        many=max(part["described"] for part in layers),
        table=table(result),
    )
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    return before + BEGIN + figures + END + rest.partition(END)[2]


def of(part: dict[str, Any]) -> str:
    """Say how many names are right beside those that are when shuffled."""
    if not part["n"]:
        return "none"
    mean, low, high = part["shuffled"]
    share = proportion(part["right"], part["n"]).text(2)
    p = f"p < {1 / DRAWS:g}" if part["p"] < 1 / DRAWS else f"p = {part['p']:.2g}"
    return (
        f"{part['right']} of {part['n']}, {share}; shuffled {mean:.1f} [{low:.0f}, {high:.0f}], {p}"
    )


def table(result: dict[str, Any]) -> str:
    """Return the table of the page."""
    lines = ["| names | described | right, of those | right, of the undescribed |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, part in result.items():
        described = f"{part['described']} of {part['features']}"
        cells = (name, described, of(part["of described"]), of(part["of undescribed"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Count unless the stored figures do, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stored", action="store_true", help="count nothing")
    if not parser.parse_args().stored:
        torch.set_num_threads(1)
        counts = {name: count(row) for name, row in ROWS.items()}
        write_text(STORED, json.dumps(counts, indent=1) + "\n", "figures")
    write_text(PAGE, page(json.loads(STORED.read_text("utf-8"))), "page")


if __name__ == "__main__":
    main()
