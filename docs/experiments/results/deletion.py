"""What is lost as a class of features is deleted, strongest first, beside random features?

python docs/experiments results.deletion
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from results import common
from vlm_edit import Dictionary, Host, zoo
from vlm_edit.edits import Ablate, Splice
from vlm_edit.hooks import record
from vlm_edit.measures.controls import DeletionCurve, deletion_curve
from vlm_edit.measures.dominance import Cut, Dominance
from vlm_edit.measures.probing import hits, probe_each
from vlm_edit.report import Table
from vlm_edit.tasks.demo.interview import Interview
from vlm_edit.zoo.questions import QUESTIONS

SHOWN = ("vision", "language", "cross")
CONTROLS = ("size", "norm")
DRAWS = 10

CLIP = "emoji-clip joint"
METRICS = ("retrieval R@1", "background of images", "phrasing of texts")

LLAVA = "emoji-llava language.0"
ASKED = ("background", "what")
ASKED_FRACTIONS = (0.0, 0.25, 0.5, 1.0)
ASKED_PAIRS = 64
ASKED_DRAWS = 5

Curves = dict[str, DeletionCurve]
Metrics = dict[str, Tensor]


def compute() -> dict[str, Any]:
    """Curves of every class of the joint embeddings, and of what the LLaVA sees."""
    result: dict[str, Any] = {CLIP: {}, LLAVA: {}}
    subject = common.subject("clip", "joint")
    read = _embeddings(subject.hidden, subject.dictionary)
    codes = torch.cat([subject.codes[stream] for stream in common.STREAMS])
    for name, features, live in _classes(subject.dominance, "significant"):
        curves = _curves(read, METRICS, features, live, codes, subject.dictionary.decoder, DRAWS)
        result[CLIP][name] = {metric: _stored(curve) for metric, curve in curves.items()}
    subject = common.subject("llava", "language.0")
    model, processor = zoo.load_llava()
    asked = Interview(Host.of(model, processor), zoo.load_pairs(), subject.dictionary, "language.0")
    codes = subject.dictionary.encode(_image_tokens(asked), "image")
    name, features, live = _classes(subject.dominance, "fixed")[0]
    curves = _curves(
        _answers(asked),
        ASKED,
        features,
        live,
        codes,
        subject.dictionary.decoder,
        ASKED_DRAWS,
        ASKED_FRACTIONS,
    )
    result[LLAVA][name] = {metric: _stored(curve) for metric, curve in curves.items()}
    return result


def _classes(found: Dominance, rule: Cut) -> list[tuple[str, list[int], list[int]]]:
    """Name and features of each class, and the live features."""
    live = (~found.dead).nonzero().flatten().tolist()
    members = found.classes(rule)
    return [(name, members[name], live) for name in SHOWN if members[name]]


def _embeddings(
    hidden: dict[str, Tensor], dictionary: Dictionary
) -> Callable[[Sequence[int]], Metrics]:
    """Reads embeddings from which features were deleted, the rest of them left as it is."""
    columns = zoo.load_pairs().columns
    labels = columns["label"]

    def read(deleted: Sequence[int]) -> Metrics:
        streams = hidden
        if deleted:
            splice = Splice.of(dictionary, [Ablate(deleted)])
            streams = {stream: splice(h, stream=stream) for stream, h in hidden.items()}
        image, text = streams["image"], streams["text"]
        background = probe_each(image, {"background": columns["background"]})["background"]
        phrasing = probe_each(text, {"phrasing": columns["phrasing"]})["phrasing"]
        found = (hits(image, text, labels, labels), background, phrasing)
        return dict(zip(METRICS, found, strict=True))

    return read


def _answers(asked: Interview) -> Callable[[Sequence[int]], Metrics]:
    """Asks about the first pairs, with features deleted at image tokens."""
    numbers = range(ASKED_PAIRS)

    def read(deleted: Sequence[int]) -> Metrics:
        patch = asked.patch(Ablate(deleted)) if deleted else None
        return {question: asked.right(question, numbers, patch) for question in ASKED}

    return read


@torch.no_grad()
def _image_tokens(asked: Interview) -> Tensor:
    """Hidden states of the image tokens of pairs that are not asked about, [n, d]."""
    numbers = range(ASKED_PAIRS, ASKED_PAIRS + 32)
    prompt = [f"{asked.host.processor.image_token}\n{QUESTIONS['what']}"] * len(numbers)
    images = [asked.pairs.open(i) for i in numbers]
    inputs = asked.host.processor(images=images, text=prompt, return_tensors="pt")
    with record(asked.host, asked.site) as recording:
        asked.host(**inputs, use_cache=False)
    capture = recording.last(asked.site, "mixed")
    return capture.hidden[capture.tokens.select("image")].float()


def _curves(
    read: Callable[[Sequence[int]], Metrics],
    metrics: Sequence[str],
    features: list[int],
    live: list[int],
    codes: Tensor,
    decoder: Tensor,
    draws: int,
    fractions: Sequence[float] | None = None,
) -> Curves:
    """A curve per metric; every set of features is deleted once for all of them."""
    known: dict[tuple[int, ...], Metrics] = {}

    def metric(name: str) -> Callable[[list[int]], Tensor]:
        def ask(deleted: list[int]) -> Tensor:
            key = tuple(deleted)
            if key not in known:
                known[key] = read(deleted)
            return known[key][name]

        return ask

    more = {} if fractions is None else {"fractions": fractions}
    return {
        name: deletion_curve(metric(name), features, live, codes, decoder, draws=draws, **more)
        for name in metrics
    }


def _stored(curve: DeletionCurve) -> dict[str, Any]:
    rows = []
    for row in curve.rows():
        part: dict[str, Any] = {"fraction": row["fraction"], "features": row["features"]}
        part |= {name: common.told(row[name]) for name in ("class", *CONTROLS)}
        part["norm features"] = common.rounded(row["norm features"])
        rows.append(part)
    return {"rows": rows, "areas": {c: common.told(curve.area(c)) for c in CONTROLS}}


def tables(result: dict[str, Any]) -> list[Table]:
    """A table per metric, and the areas between the curves."""
    shown, areas = [], []
    for host, classes in result.items():
        for metric in METRICS if host == CLIP else ASKED:
            rows = []
            for name, curves in classes.items():
                stored = curves[metric]
                for row in stored["rows"]:
                    rows.append(
                        (
                            f"{name} ({stored['rows'][-1]['features']})",
                            f"{row['fraction']:g}",
                            common.cell(row["class"]),
                            common.cell(row["size"]),
                            f"{common.cell(row['norm'])} ({row['norm features']:.0f})",
                        )
                    )
                ends = [common.cell(stored["areas"][control]) for control in CONTROLS]
                areas.append((host, metric, name, *ends))
            shown.append(
                Table(
                    f"{host}: {metric}, as a class is deleted",
                    ("class", "deleted", metric, "size-matched", "norm-matched (features)"),
                    rows,
                    _note(host),
                )
            )
    shown.append(
        Table(
            "What deleting a class costs beyond deleting random features",
            ("host", "metric", "class", "beyond size-matched", "beyond norm-matched"),
            areas,
            "Area between the control's curve and the class's, over the share deleted: the mean "
            "loss beyond the control's. [95 % bootstrap interval over cases and draws].",
        )
    )
    return shown


def _note(host: str) -> str:
    clip = host == CLIP
    who = "1,024 pairs" if clip else f"the first {ASKED_PAIRS} pairs, at image tokens"
    return (
        f"Of {who}: share right [95 % bootstrap interval]. Strongest features first; classes by "
        f"the rule {'significant' if clip else 'fixed'}; their number in brackets. The error of "
        "the dictionary is kept. "
        f"Controls: mean [lowest, highest] of {DRAWS if clip else ASKED_DRAWS} draws of random "
        "live features: as many, or as many as move the hidden states as far."
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute()
    common.save("deletion", found)
    print("\n\n".join(str(table) for table in tables(found)))
