"""What does each rule cost, at equal effect, beside simple baselines?

    python docs/experiments results.edits

Images of emoji-clip, edited at the joint embedding. Two tasks: take the background out, and turn
it blue. Features, means and the reader of colours come from even pairs; everything is measured on
odd ones. Each way is as strong as it must be to reach the same effect, found by bisection; those
that do not reach it stand with the strongest they were tried at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from results import common
from results.training import PROMPT
from vlm_edit import Ablate, Clamp, Dictionary, Keep, Project, Scale, Steer, zoo
from vlm_edit.dictionaries import Encoder
from vlm_edit.edits import Blend, Cap, Detect, Rule, Splice
from vlm_edit.ground.statistics import PairedTest, holm, mcnemar, proportion
from vlm_edit.measures.probing import hits, probe, variance_explained
from vlm_edit.report import Table

COUNT = 12  # features about the background, as many as are about factors of images alone
MOST = {"remove": 1.0, "turn": 4.0}  # the strongest that is tried
READ = 0.5  # share of backgrounds that may still be read when they count as taken out
TURNED = 0.9  # share of images that must be read as blue
COLOUR = "blue"
DRAWS = 5
STEPS = 12
RIDGE = 1e-2

Edit = Callable[[Tensor, float], Tensor]  # of embeddings, at a strength


class Subject:
    """Embeddings of the shipped pairs, and what is known of them."""

    def __init__(self) -> None:
        found = common.subject("clip", "joint")
        self.dictionary = found.dictionary
        host, processor = zoo.load_host()
        from recipes.evaluate import embed_texts

        names = zoo.load_labels()
        self.labels = embed_texts(host, processor, [PROMPT.format(n) for n in names]).clone()
        columns = zoo.load_pairs().columns
        n = len(columns["label"])
        self.even, self.odd = torch.arange(0, n, 2), torch.arange(1, n, 2)
        self.image, self.text = found.hidden["image"], found.hidden["text"]
        self.codes = found.codes["image"]
        self.label = torch.tensor([names.index(label) for label in columns["label"]])
        self.named = [columns["label"][i] for i in self.odd]
        self.background = columns["background"]
        self.colours = sorted(set(self.background))
        self.colour = torch.tensor([self.colours.index(b) for b in self.background])
        even = self.codes[self.even]
        shares = variance_explained(even, [self.background[i] for i in self.even])
        self.features = shares.topk(COUNT).indices.tolist()
        live = (found.codes["image"] != 0).any(0) | (found.codes["text"] != 0).any(0)
        self.live = live.nonzero()[:, 0].tolist()
        self.cross = found.dominance.classes("significant")["cross"]
        is_blue = self.colour[self.even] == self.colours.index(COLOUR)
        lift = even[is_blue].mean(0) - even[~is_blue].mean(0)
        self.blue = [k for k in self.features if float(lift[k]) > 0]
        self.mean_code = even.mean(0)
        self.blue_code = even[is_blue].mean(0)
        self._fit()

    def _fit(self) -> None:
        """Means by colour, the reader, and the shape of the embeddings' distribution."""
        x, colour = self.image[self.even], self.colour[self.even]
        self.mean = x.mean(0)
        self.means = torch.stack([x[colour == i].mean(0) for i in range(len(self.colours))])
        centred = (x - self.mean).double()
        gram = centred.T @ centred / len(x)
        gram += 0.05 * gram.diagonal().mean() * torch.eye(len(gram))
        self.precision = torch.linalg.inv(gram)
        target = F.one_hot(colour).double() - 1 / len(self.colours)
        loaded = centred.T @ centred / len(x) + RIDGE * gram.diagonal().mean() * torch.eye(
            len(gram)
        )
        self.reader = torch.linalg.solve(loaded, centred.T @ target / len(x))

    def read(self, x: Tensor) -> Tensor:
        """The colour that a linear reader of plain embeddings sees, [n]."""
        return ((x - self.mean).double() @ self.reader).argmax(1)

    def away(self, x: Tensor) -> float:
        """Mean squared Mahalanobis distance from the plain embeddings of even pairs."""
        z = (x - self.mean).double()
        return float(torch.einsum("nd,de,ne->n", z, self.precision, z).mean())


def by_rule(one: Subject, *rules: Rule, gate: float | None = None) -> Edit:
    """A patch's edit; its strength multiplies the change."""
    splice = Splice.of(one.dictionary, rules, gate)
    return lambda x, s: splice(x, None, "image", strength=torch.tensor([s]))


def along(rows: Tensor) -> Dictionary:
    """A dictionary whose features are given directions."""
    m, d = rows.shape
    return Dictionary(Encoder(torch.zeros(d, m), torch.zeros(m)), rows, torch.zeros(d))


def removals(one: Subject) -> dict[str, Edit]:
    """Ways to take the background out; strength 1 is the whole of it."""
    chosen = one.features
    differences = one.means - one.mean
    projected = Splice.of(along(differences), [Project(range(len(differences)))])
    found = {
        "Ablate": by_rule(one, Ablate(chosen)),
        "Cap (at half the mean code)": by_rule(
            one, *(Cap([k], 0.5 * float(one.mean_code[k])) for k in chosen)
        ),
        "Blend (to the mean code)": by_rule(one, Blend(chosen, one.mean_code[chosen].tolist())),
        "Project": by_rule(one, Project(chosen)),
        "Keep (cross-modal)": by_rule(one, Keep(one.cross)),
        "Detect (replace by the mean)": by_rule(one, Detect(chosen, one.mean.tolist())),
        "Ablate, gate .5": by_rule(one, Ablate(chosen), gate=0.5),
        "baseline: class means projected out": lambda x, s: projected(
            x, strength=torch.tensor([s])
        ),
    }
    for draw in range(DRAWS):
        found[f"random {draw}"] = by_rule(one, Ablate(drawn(one, draw)))
    return found


def drawn(one: Subject, seed: int) -> list[int]:
    """As many random live features, of the others."""
    others = [k for k in one.live if k not in one.features]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    return [others[i] for i in order[:COUNT].tolist()]


def turnings(one: Subject) -> dict[str, Edit]:
    """Ways to turn the background blue; strength 1 is about the size of a natural difference."""
    chosen, reference = one.features, one.blue_code
    size = float(one.codes[:, one.blue].amax(0).mean())
    vector = one.means[one.colours.index(COLOUR)] - one.mean
    span = along(one.means - one.mean)
    swapped = Splice.of(span, [Project(range(len(one.colours)))])
    others = [k for k in chosen if k not in one.blue]
    found = {
        f"Steer ({len(one.blue)} features)": by_rule(one, Steer(one.blue, size)),
        "Steer, relative": by_rule(one, Steer(one.blue, 0.5, relative=True)),
        "Clamp": by_rule(one, Clamp(one.blue, size)),
        "Ablate the rest, then Clamp": by_rule(one, Ablate(others), Clamp(one.blue, size)),
        "Scale (where active)": by_rule(one, Scale(one.blue, 4.0)),
        "Blend (to blue images' mean code)": by_rule(
            one, Blend(chosen, reference[chosen].tolist())
        ),
        "Project, then Steer": by_rule(one, Project(chosen), Steer(one.blue, size)),
        "baseline: difference in means added": lambda x, s: x + s * vector,
        "baseline: class means projected out, then the blue one's added": lambda x, s: (
            swapped(x, strength=torch.tensor([min(s, 1.0)])) + s * vector
        ),
    }
    for draw in range(DRAWS):
        rows = drawn(one, draw)[: len(one.blue)]
        found[f"random {draw}"] = by_rule(one, Steer(rows, size))
    return found


def removed(one: Subject, x: Tensor) -> Tensor:
    """Which backgrounds a probe that is trained on the edited embeddings reads, [n] bool."""
    return probe(x, [one.background[i] for i in one.odd])


def turned(one: Subject, x: Tensor) -> Tensor:
    """Which images that are not blue are read as blue, [n] bool."""
    blue = one.colours.index(COLOUR)
    other = one.colour[one.odd] != blue
    return one.read(x)[other] == blue


def step(task: str) -> float:
    """How finely strengths are told apart: an eighth of the most, halved four times."""
    return MOST[task] / 8 / 2 ** (STEPS - 8)


def weakest(reached: Callable[[float], bool], most: float) -> float | None:
    """The least strength that reaches an effect, but for ``step``."""
    grid = [most * (i + 1) / 8 for i in range(8)]
    above = next((s for s in grid if reached(s)), None)
    if above is None:
        return None
    below = above - most / 8
    for _ in range(STEPS - 8):
        middle = (below + above) / 2
        below, above = (below, middle) if reached(middle) else (middle, above)
    return above


def row(one: Subject, edit: Edit, strength: float, effect: Tensor) -> dict[str, Any]:
    """Everything that is told of an edit at a strength."""
    x = one.image[one.odd]
    edited = edit(x, strength)
    right = recognised(one, edited)
    found = hits(edited, one.text[one.odd], one.named, one.named)
    paired = mcnemar(recognised(one, x), right)
    return {
        "strength": common.rounded(strength),
        "effect": _share(effect),
        "zero_shot": _share(right),
        "lost": [paired.only_first, paired.only_second, paired.n, common.rounded(paired.p)],
        "retrieval": _share(found),
        "moved": common.rounded(float(((edited - x).norm(dim=1) / x.norm(dim=1)).mean())),
        "away": common.rounded(one.away(edited) / one.away(x)),
    }


def recognised(one: Subject, x: Tensor) -> Tensor:
    """Which of the odd pairs' images are nearest to their own label, [n] bool."""
    similar = F.normalize(x, dim=1) @ F.normalize(one.labels, dim=1).mT
    return similar.argmax(1) == one.label[one.odd]


def _share(right: Tensor) -> list[float]:
    return common.told(proportion(int(right.sum()), len(right)))


def compute() -> dict[str, Any]:
    """Both tasks."""
    one = subject()
    x = one.image[one.odd]
    tasks: dict[str, tuple[dict[str, Edit], Any, Callable[[Tensor], bool]]] = {
        "remove": (removals(one), removed, lambda r: float(r.float().mean()) <= READ),
        "turn": (turnings(one), turned, lambda r: float(r.float().mean()) >= TURNED),
    }
    result: dict[str, Any] = {"features": len(one.features), "blue": len(one.blue)}
    for task, (ways, measure, enough) in tasks.items():
        most = MOST[task]
        lines: dict[str, Any] = {"nothing": row(one, lambda x, _: x, 0.0, measure(one, x))}
        for name, edit in ways.items():
            found = weakest(partial(_reaches, one, edit, measure, enough), most)
            strength = most if found is None else found
            effect = measure(one, edit(x, strength))
            lines[name] = {**row(one, edit, strength, effect), "reached": found is not None}
        result[task] = lines
    return result


def _reaches(one: Subject, edit: Edit, measure: Any, enough: Any, strength: float) -> bool:
    return bool(enough(measure(one, edit(one.image[one.odd], strength))))


@cache
def subject() -> Subject:
    """The one subject."""
    return Subject()


def tables(result: dict[str, Any]) -> list[Table]:
    """A table a task."""
    titles = {
        "remove": (
            "Take the background out: the least that leaves half of it to a probe",
            "background read",
            f"At most {READ} of 512 backgrounds read by a probe trained on the edited embeddings "
            "(5 folds). Rules on the 12 features that say most of the background on even pairs; "
            "Keep: on all but the cross-modal ones.",
        ),
        "turn": (
            "Turn the background blue: the least that turns nine of ten",
            "read as blue",
            f"At least {TURNED} of the images on other colours are read as blue by a linear reader "
            "of plain embeddings.",
        ),
    }
    shown = []
    for task, (title, effect, note) in titles.items():
        lines = dict(result[task])
        lost = _lost(lines)
        draws = [name for name in lines if name.startswith("random")]
        random = {name: lines.pop(name) for name in draws}
        rows = [_cells(name, line, lost[name]) for name, line in lines.items()]
        middle = sorted(draws, key=lambda name: random[name]["zero_shot"][0])[len(draws) // 2]
        title_of = f"random features (median of {len(draws)} draws)"
        rows.append(_cells(title_of, random[middle], lost[middle]))
        shown.append(
            Table(
                title,
                (
                    "edit",
                    "strength",
                    effect,
                    "zero-shot",
                    "lost and gained",
                    "retrieval",
                    "moved",
                    "distance",
                ),
                rows,
                f"{note} Strength: of the whole change, 1 is the rule as its name says; *: the "
                "effect was not reached at any tried, and the strongest stands here. Lost and "
                "gained: images recognised without the edit alone and with it alone, p by "
                "McNemar's exact test and Holm's method over the table's edits. Moved: mean "
                "of |change| / |embedding|. Distance: mean squared Mahalanobis distance from plain "
                "embeddings over that of the plain ones: 1 is where they lie. 512 odd pairs, "
                "95 % Wilson intervals.",
            )
        )
    return shown


def examples(result: dict[str, Any]) -> str:
    """A line for each rule, in Markdown: what it did, and what was left of all else."""
    remove, turn = result["remove"], result["turn"]
    chosen, blue = result["features"], result["blue"]
    told = (
        ("", remove, "nothing", "backgrounds read"),
        (f"`Ablate` {chosen} background features", remove, "Ablate", ""),
        ("`Cap` them at half their mean code", remove, "Cap (at half the mean code)", ""),
        ("`Blend` them to their mean code", remove, "Blend (to the mean code)", ""),
        ("`Project` their span out", remove, "Project", ""),
        ("`Keep` the cross-modal features", remove, "Keep (cross-modal)", ""),
        ("`Detect` them, put the mean embedding", remove, "Detect (replace by the mean)", ""),
        ("`Ablate` them, `gate=0.5`", remove, "Ablate, gate .5", ""),
        (f"`Ablate` {chosen} random features", remove, "random 0", ""),
        ("", turn, "nothing", "read as blue"),
        (f"`Steer` {blue} blue features", turn, f"Steer ({blue} features)", ""),
        ("`Steer(relative=True)` them", turn, "Steer, relative", ""),
        ("`Clamp` them", turn, "Clamp", ""),
        ("`Scale` them, where active", turn, "Scale (where active)", ""),
        ("`Blend` to blue images' mean code", turn, "Blend (to blue images' mean code)", ""),
        (f"`Steer` {blue} random features", turn, "random 0", ""),
    )
    lost = {id(lines): _lost(lines) for lines in (remove, turn)}
    heads = ("edit", "strength", "effect", "recognised", "lost and gained")
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | --- | --- | --- |"]
    for name, lines, key, what in told:
        line = lines[key]
        star = "" if line.get("reached", True) else "*"
        cells = (
            name or f"none: {what}",
            f"{line['strength']:.2f}{star}",
            common.cell(line["effect"]),
            common.cell(line["zero_shot"]),
            "" if key == "nothing" else str(lost[id(lines)][key]),
        )
        rows.append(f"| {' | '.join(cells)} |")
    note = "Strength: of the whole change; \\*: the effect was not reached, this is the strongest"
    paired = (
        "Lost and gained: images recognised without the edit alone, and with it alone, p by "
        "McNemar's exact\ntest and Holm's method over all edits of a task."
    )
    return "\n".join([*rows, "", f"{note} that was tried. 95 % intervals.\n{paired}", ""])


def _lost(lines: dict[str, Any]) -> dict[str, PairedTest]:
    """What each edit loses and gains, p by Holm's method over all edits of a task."""
    names = [name for name in lines if name != "nothing"]
    chances = holm(torch.tensor([lines[name]["lost"][3] for name in names]))
    told = {"nothing": PairedTest(*lines["nothing"]["lost"])}
    for name, p in zip(names, chances.tolist(), strict=True):
        told[name] = PairedTest(*lines[name]["lost"][:3], p)
    return told


def _cells(name: str, line: dict[str, Any], lost: PairedTest) -> list[str]:
    star = "" if line.get("reached", True) else "*"
    effect, zero_shot, retrieval = (
        common.cell(line[key]) for key in ("effect", "zero_shot", "retrieval")
    )
    return [
        name,
        f"{line['strength']:.2f}{star}",
        effect,
        zero_shot,
        str(lost),
        retrieval,
        f"{line['moved']:.2f}",
        f"{line['away']:.2f}",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute()
    common.save("edits", found)
    print("\n\n".join(str(table) for table in tables(found)))
