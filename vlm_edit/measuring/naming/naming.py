"""Name features, and score every name on pairs that did not make it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import AnyDictionary, expect_features
from vlm_edit.ground.errors import BadArgument, WrongHost
from vlm_edit.ground.statistics import Estimate, auc_estimate, auc_p, benjamini_hochberg
from vlm_edit.host import Host, Model, fingerprint
from vlm_edit.measuring.naming.choosing import NameJudge, Naming, Scored, Scorer
from vlm_edit.measuring.naming.evidence import FEW, Evidence, read_evidence
from vlm_edit.measuring.naming.head import OutputHead
from vlm_edit.measuring.naming.names import Name, Names
from vlm_edit.measuring.naming.words import EmbeddedWords
from vlm_edit.measuring.order import shown
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.table import expect_measured

_MOST_CHANCE = 0.999  # a name that others match everywhere is not tested against certainty


def name_features(
    host: Host | Model,
    measurement: Measurement,
    pairs: Pairs | Iterable[Any],
    dictionary: AnyDictionary,
    features: Sequence[int] | None = None,
    *,
    vocabulary: Sequence[str] | Path | None = None,
    judge: NameJudge | None = None,
    scorer: Scorer | None = None,
    template: str = "{}",
    tried: int = 3,
    most: int = 2048,
    groups: Sequence[int] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
    batch_size: int = 64,
) -> Names:
    """Name features by words, and score each name on pairs that did not make it.

    At a joint embedding a feature's decoder row points to words, embedded by the host's own text
    side; at a layer of a language model to the tokens its output head promotes. Of the first
    ``tried`` of them, or as ``judge`` says, the name is chosen on one half of the pairs. On the
    other half it has to tell where the feature fires, in the stream in which it fires more: by
    the cosine of the name with images (or texts), each less their mean, at a joint embedding;
    elsewhere by whether the caption holds it; or as ``scorer`` says.

    Args:
        host: In eval mode, with its processor.
        measurement: Of the dictionary on these pairs: it says where, and which features are dead.
        pairs: Those that were measured.
        dictionary: That was measured.
        features: Their numbers; None for all that are not dead.
        vocabulary: At a joint embedding, words or a file with one on each line; by default the
            words and phrases of up to three words in the captions of the first half.
        judge: Names a feature from images and texts in which it fires most and texts in which it
            does not, of the first half: your model, your service. Nothing is asked without one.
        scorer: Says for a name how well it fits some pairs' images and texts; of each feature 20
            pairs in which it fires and 20 others, twice: for its own name and for another's.
        template: What a word is put into to be embedded, such as "a picture of {}".
        tried: Words of a feature's direction that its name is chosen among.
        most: Pairs to read, drawn at random with all captions of an image.
        groups: A number for each pair, alike where pairs are: they stay in one half. By default
            the image.
        alpha: Rate of false discoveries among names that hold, at most.
        seed: Of every draw.
        batch_size: Pairs per forward.

    Returns:
        The names, in the order of the features. One that does not beat chance is undescribed.

    Raises:
        CannotKnow: A site that no words are read at, without a judge.
        WrongHost: Another dictionary, or another host's width.
        VlmEditError: Other pairs than were measured, a feature that is not there, a vocabulary of
            fewer than two words, or a judge or scorer that gives something else.

    Example:
        >>> from vlm_edit import Host, measure, zoo
        >>> from vlm_edit.measuring import name_features
        >>> host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
        >>> pairs = zoo.load_pairs().select(range(128))
        >>> measurement = measure(host, pairs, dictionary, progress=False)
        >>> names = name_features(host, measurement, pairs, dictionary, [3, 17])
        >>> [name.feature for name in names]
        [3, 17]
    """
    host, pairs, site = Host.of(host), Pairs.of(pairs), measurement.site
    wanted = _checked(host, measurement, pairs, dictionary, features)
    if tried < 1 or most < 4 * FEW:
        raise BadArgument(
            f"tried is {tried} and most {most}: they must be at least 1 and {4 * FEW}"
        )
    if judge is None and site != "joint":
        OutputHead.of(host, site)  # refuses a site that no words are read at, before any work
    images = torch.as_tensor(shown(pairs) if groups is None else list(groups))
    if images.shape != (len(pairs),):
        raise BadArgument(f"groups has {len(images)} numbers: give one for each of {len(pairs)}")
    drawn = _drawn(images, most, seed)
    evidence = read_evidence(
        *(host, dictionary, pairs.select(drawn), site, wanted, images[drawn], seed, batch_size)
    )
    naming = Naming(host, dictionary, site, evidence, template, batch_size, seed)
    naming.learn(vocabulary)
    chosen = naming.choose(judge, tried)
    scored = naming.score(chosen) if scorer is None else naming.ask(chosen, scorer)
    held = _tested(evidence, scored, alpha)
    names = [
        Name(feature, chosen.get(place, ""), *held[place], evidence.streams[place], words)
        for place, (feature, words) in enumerate(zip(wanted, naming.words, strict=True))
    ]
    first = int(evidence.first.sum())
    halves = (first, len(evidence.first) - first)
    source = _told(naming, judge is not None, scorer is not None)
    reading = naming.reading
    known = reading.vocabulary.texts if isinstance(reading, EmbeddedWords) else ()
    return Names(tuple(names), site, alpha, source, *halves, known)


def _checked(
    host: Host,
    measurement: Measurement,
    pairs: Pairs,
    dictionary: AnyDictionary,
    features: Sequence[int] | None,
) -> list[int]:
    """Refuse what does not go together; return the features that are asked for."""
    expect_measured(measurement.provenance, pairs)
    measured = measurement.provenance.get("dictionary", {}).get("digest")
    if measured not in (None, dictionary.digest()):
        raise WrongHost("the measurement is of another dictionary: pass the one that was measured")
    site = host.site(measurement.site)
    host.expect_width(site, dictionary.width)
    there = measurement.provenance.get("host", {}).get("sites")
    if there is not None and there != fingerprint(host, [site])["sites"]:
        raise WrongHost("the measurement is of another host: pass the one that was measured")
    asked = measurement.provenance.get("settings", {}).get("prompt")
    if asked not in (None, host.asks()):
        raise WrongHost(
            f"the run asked each pair as {asked!r} and this host asks {host.asks()!r}: pass "
            "Host.of(model, processor, prompt=...) as it was measured"
        )
    if features is None:
        features = (measurement.dominance.active > 0).nonzero().flatten().tolist()
    expect_features(features, dictionary.n_features)
    if not features:
        raise BadArgument("no feature to name: features is empty, or all are dead")
    return list(dict.fromkeys(features))


def _drawn(images: Tensor, most: int, seed: int) -> list[int]:
    """Draw whole images until there are as many pairs as asked for, in the pairs' order."""
    if len(images) <= most:
        return list(range(len(images)))
    known, place = images.unique(return_inverse=True)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed + 1))
    count = int((place.bincount()[order].cumsum(0) <= most).sum())
    taken = torch.zeros(len(known), dtype=torch.bool)
    taken[order[: max(2, count)]] = True
    kept: list[int] = taken[place].nonzero().flatten().tolist()
    return kept


def _tested(
    evidence: Evidence, scored: dict[int, Scored], alpha: float
) -> list[tuple[Estimate, float, float, bool]]:
    """Return of every feature its name's score, chance, p, and whether the name holds."""
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    figures = [(nothing, math.nan, math.nan)] * len(evidence.features)
    for place, one in scored.items():
        cases = (one.scores, evidence.fires[one.pairs, place], evidence.images[one.pairs])
        chance = max(0.5, one.chance) if one.chance == one.chance else 0.5
        figures[place] = (
            auc_estimate(*cases),
            chance,
            auc_p(*cases, chance=min(chance, _MOST_CHANCE)),
        )
    p = torch.tensor([value for _, _, value in figures], dtype=torch.float64)
    held = benjamini_hochberg(p, alpha).tolist()
    return [(*three, passes) for three, passes in zip(figures, held, strict=True)]


def _told(naming: Naming, judged: bool, asked: bool) -> str:
    """Say where names come from, and how they were scored."""
    joint = isinstance(naming.reading, EmbeddedWords)
    if judged:
        made = "Named by the judge"
    elif isinstance(naming.reading, EmbeddedWords):
        known = naming.reading.vocabulary
        made = f"Named by direction among {len(known):,} words of {known.source}"
    else:
        made = "Named by the tokens that the output head promotes"
    if asked:
        return f"{made}; scored by the scorer"
    return f"{made}; scored by {'cosine in the joint embedding' if joint else 'captions'}"
