"""Lessen bias without training: features of an attribute, a rule, and how much of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vlm_edit.dictionaries import AnyDictionary, Dictionary, PairedDictionary, expect_plain
from vlm_edit.edits import Ablate, Project
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.hooks import TokenChoice
from vlm_edit.host import Host, Model
from vlm_edit.measures.probing import probe
from vlm_edit.measuring import Pairs
from vlm_edit.patches import Patch
from vlm_edit.selection import (
    Seen,
    by_difference,
    by_direction,
    intersection,
    mean_codes,
    read_examples,
)
from vlm_edit.tasks.bias.baselines import directions
from vlm_edit.tasks.bias.bench import JOINT, Bench
from vlm_edit.tasks.bias.metrics import balanced_accuracy
from vlm_edit.tasks.bias.study import Study
from vlm_edit.tuning import Point, Tuning, tune

Way = Literal["ablate", "project", "difference"]
Score = Literal["direction", "difference"]
Stream = Literal["image", "text"]

NUMBERS = (2, 4, 8, 16, 32)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Codes of the groups at a site, to choose features by.

    Attributes:
        dictionary: Whose codes.
        site: Where.
        stream: ``image``, or ``text`` for the images' captions.
        seen: By value of the attribute.
    """

    dictionary: Dictionary
    site: str
    stream: Stream
    seen: dict[str, Seen]

    @classmethod
    def gather(
        cls, bench: Bench, dictionary: AnyDictionary, site: str = JOINT, stream: Stream = "image"
    ) -> Evidence:
        """Read the codes of a bench's images; at the joint embedding those it has already.

        Args:
            bench: Of images that may be learned from.
            dictionary: Of the site; of a paired one the stream's.
            site: Its name.
            stream: Whose codes.

        Raises:
            VlmEditError: A dictionary of another site, or one left on disk.

        Example:
            >>> from vlm_edit import Host, zoo
            >>> from vlm_edit.tasks.bias import Bench, Questions
            >>> asked = Questions(
            ...     "gender", {"man": ["a picture of man"], "woman": ["a picture of woman"]}
            ... )
            >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(256))
            >>> bench = Bench.read(host, pairs, asked)
            >>> evidence = Evidence.gather(bench, zoo.load_dictionary("joint"))
            >>> len(select(evidence, 4)), evidence.seen["man"].codes.shape
            (4, (20, 512))
        """
        whole, study = _half(dictionary, stream), bench.plain
        if site != JOINT:
            questions = study.questions
            return cls.of(
                *(bench.host, whole, study.pairs, questions.attribute, questions.values),
                site=site,
                stream=stream,
                batch_size=bench.batch_size,
            )
        whole.expect_site(site)
        examples = {}
        for value in study.questions.values:
            members = [i for i, group in enumerate(study.groups) if group == value]
            x = (study.image if stream == "image" else study.caption)[members]
            examples[value] = Seen(whole.encode_sparse(x, stream), whole.normalise(x, stream))
        return cls(whole, site, stream, examples)

    @classmethod
    def of(
        cls,
        host: Host | Model,
        dictionary: AnyDictionary,
        pairs: Pairs,
        attribute: str,
        values: Sequence[str],
        site: str,
        stream: Stream = "image",
        *,
        batch_size: int = 64,
    ) -> Evidence:
        """Read the codes of pairs at any site of any host, such as a layer of one that generates.

        Args:
            host: In eval mode, with its processor.
            dictionary: Of the site.
            pairs: Images that may be learned from, with their texts.
            attribute: Their column.
            values: Of it, those that are told apart.
            site: The site's name.
            stream: Whose tokens.
            batch_size: Pairs per forward.

        Raises:
            VlmEditError: No such column, a value that no pair has, or as ``read_examples``.
        """
        if attribute not in pairs.columns:
            raise UnknownName(f"{pairs.name} has no column {attribute!r}")
        host = Host.of(host)
        column, whole = pairs.columns[attribute], _half(dictionary, stream)
        missing = set(values) - set(column)
        if missing:
            raise BadArgument(f"no pair of {pairs.name} has {attribute} {min(missing)!r}")
        examples = {
            value: read_examples(
                host,
                whole,
                pairs.select([i for i, own in enumerate(column) if own == value]),
                *(site, stream),
                batch_size=batch_size,
            )
            for value in values
        }
        return cls(whole, site, stream, examples)

    def codes(self) -> Tensor:
        """Return the codes of all groups, [n, m]."""
        return torch.cat([group.codes.dense() for group in self.seen.values()])


def select(
    evidence: Evidence,
    most: int | None = None,
    *,
    score: Score = "direction",
    within: Sequence[int] | None = None,
    alpha: float | None = None,
) -> list[int]:
    """List features that tell the groups apart, strongest first, each value's in turn.

    Args:
        evidence: Codes of the groups.
        most: How many at most.
        score: ``direction``: they also write along the difference of the groups (``by_direction``);
            ``difference``: by their codes alone (``by_difference``).
        within: Only those, such as a class of dominance.
        alpha: False discovery rate of a rank test; None for none.

    Raises:
        VlmEditError: An unknown score, or no feature is left.
    """
    if score not in get_args(Score):
        raise BadArgument(f"score is {score!r}: use one of {get_args(Score)}")
    lists = []
    for value, own in evidence.seen.items():
        rest = [group for other, group in evidence.seen.items() if other != value]
        codes = _together(rest)
        if score == "difference":
            lists.append(by_difference(own.codes, codes, alpha=alpha))
        else:
            way = own.normed.mean(0) - torch.cat([group.normed for group in rest]).mean(0)
            rows = evidence.dictionary.decoder
            lists.append(by_direction(own.codes, codes, rows, way, alpha=alpha))
    longest = max(map(len, lists))
    turns = [k for i in range(longest) for order in lists for k in order[i : i + 1]]
    features = list(dict.fromkeys(turns))
    if within is not None:
        features = intersection(features, within)
    if not features:
        raise VlmEditError(
            "no feature tells the groups apart"
            + (" within the class: choose from another" if within is not None else ": raise alpha")
        )
    return features[:most]


def edit(
    evidence: Evidence,
    features: Sequence[int],
    way: Way = "difference",
    *,
    tokens: TokenChoice = "all",
    strength: float = 1.0,
) -> Patch:
    """Make the patch of a way.

    ``ablate`` sets the features' codes to zero; ``project`` takes the span of their directions out;
    ``difference`` takes only what the groups differ by along them out: the difference of their mean
    codes, decoded from these features alone. It is a difference in means without what the features
    do not say.

    Args:
        evidence: As features were selected by.
        features: Their numbers.
        way: ``ablate``, ``project`` or ``difference``.
        tokens: What is edited.
        strength: 1 for all of it.

    Raises:
        VlmEditError: An unknown way, or groups whose mean codes do not differ.
    """
    if way not in get_args(Way):
        raise BadArgument(f"way is {way!r}: use one of {get_args(Way)}")
    numbers = list(features)
    info = {"attribute": "/".join(evidence.seen), "way": way, "features": str(len(numbers))}
    if way == "difference":
        rows = code_differences(evidence, numbers)
        rule = Project(range(len(rows)), strength=strength)
        return Patch(evidence.site, directions(rows), rule, tokens, info)
    kinds = {"ablate": Ablate, "project": Project}
    return Patch(
        evidence.site, evidence.dictionary, kinds[way](numbers, strength=strength), tokens, info
    )


def code_differences(evidence: Evidence, features: Sequence[int]) -> Tensor:
    """Return what the groups' mean codes differ by, decoded from some features, [values - 1, d].

    Args:
        evidence: Codes of the groups.
        features: Which of them.
    """
    means = [mean_codes(group.codes)[list(features)] for group in evidence.seen.values()]
    gaps = torch.stack([mean - means[0] for mean in means[1:]])
    return (gaps @ evidence.dictionary.decoder[list(features)].double()).float()


@dataclass(frozen=True, eq=False)
class Mitigation:
    """An edit that has been tuned.

    Attributes:
        patch: With its strength in it.
        features: That it is made of.
        point: Where it was found: strength, number, target and utility on what it was tuned on.
        tuning: All that was tried.
    """

    patch: Patch
    features: tuple[int, ...]
    point: Point
    tuning: Tuning


def off_chance(study: Study) -> float:
    """Return how far the attribute's read-out is from chance, either side."""
    return abs(study.read_out().value - 1 / len(study.questions.values))


def off_probe(study: Study) -> float:
    """Return how far above chance a linear probe tells the attribute from edited embeddings."""
    right = probe(study.image[study.told_apart], study.asked_groups)
    chance = 1 / len(study.questions.values)
    return max(0.0, balanced_accuracy(right, study.asked_groups).value - chance)


def recognition(study: Study) -> float:
    """Return the share of images whose label is recognised; without labels, of captions found."""
    right = study.recognised() if study.questions.labels else study.finds(1)
    return float(right.double().mean())


def mitigate(
    bench: Bench,
    dictionary: AnyDictionary,
    *,
    site: str = JOINT,
    way: Way = "difference",
    score: Score = "direction",
    within: Sequence[int] | None = None,
    numbers: Sequence[int] = NUMBERS,
    strengths: tuple[float, float] = (0.0, 1.0),
    tokens: TokenChoice = "all",
    stream: Stream = "image",
    aim: Callable[[Study], float] = off_chance,
    keep: Callable[[Study], float] = recognition,
    tolerance: float = 0.01,
    budget: int = 24,
) -> Mitigation:
    """Find the edit that lessens bias most while utility is kept.

    Test it on other images than the bench's: it was chosen on these.

    Args:
        bench: Of images that may be learned from.
        dictionary: Of the site.
        site: Where the edit is made.
        way: As in ``edit``.
        score: As in ``select``.
        within: Features to choose from, such as a class of dominance; None for all.
        numbers: Of features, to try.
        strengths: To try, weakest and strongest.
        tokens: What is edited.
        stream: Whose codes features are chosen by.
        aim: What is to fall, of a study: ``off_chance``, how well the attribute is read off
            prompts, ``off_probe``, or any other.
        keep: What is to stay.
        tolerance: How much of that may be lost.
        budget: Evaluations.

    Returns:
        The patch, its features, and what was tried.

    Raises:
        VlmEditError: As ``select``, ``edit`` and ``vlm_edit.tuning.tune``.

    Example:
        >>> from vlm_edit import zoo
        >>> from vlm_edit.tasks.bias import Bench, Questions
        >>> asked = Questions(
        ...     "gender", {"man": ["a picture of man"], "woman": ["a picture of woman"]}
        ... )
        >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(256))
        >>> bench = Bench.read(host, pairs, asked)
        >>> dictionary = zoo.load_dictionary("joint")
        >>> mitigation = mitigate(bench, dictionary, tolerance=0.05, budget=12)
        >>> off_chance(bench.edited(mitigation.patch)) < off_chance(bench.plain)
        True
    """
    evidence = Evidence.gather(bench, dictionary, site, stream)
    ranking = select(evidence, score=score, within=within)
    counts = sorted({min(n, len(ranking)) for n in numbers})
    if not counts or counts[0] < 1:
        raise BadArgument(f"numbers of features are {list(numbers)}: try at least 1")

    def make(number: float) -> Patch:
        return edit(evidence, ranking[: int(number)], way, tokens=tokens)

    door = bench.door(make(counts[0]))
    last: list[Study] = []

    def target() -> float:
        last[:] = [door.read()]
        return aim(last[0])

    # The utility is asked right after the objective, under the same patch.
    tuning = tune(
        door.host,
        make,
        target,
        lambda: keep(last[0]),
        budget=budget,
        strengths=strengths,
        numbers=counts,
        goal="lower",
        **door.options,
    )
    point = tuning.best(utility_at_least=keep(bench.plain) - tolerance)
    number = counts[0] if point.number is None else int(point.number)
    features = ranking[:number]
    patch = edit(evidence, features, way, tokens=tokens, strength=point.strength)
    return Mitigation(patch, tuple(features), point, tuning)


def _half(dictionary: AnyDictionary, stream: Stream) -> Dictionary:
    plain = expect_plain(dictionary, "mitigation")
    half = plain.of(stream) if isinstance(plain, PairedDictionary) else plain
    return half if isinstance(half, Dictionary) else half.load()


def _together(seen: Sequence[Seen]) -> Tensor | SparseCodes:
    """Join the codes of several groups; those of one alone stay sparse."""
    if len(seen) == 1:
        return seen[0].codes
    return torch.cat([one.codes.dense() for one in seen])
