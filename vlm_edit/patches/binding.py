"""Binding: a splice at a site, and the tokens it is made to."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from vlm_edit.dictionaries import (
    AnyDictionary,
    Dictionary,
    PairedDictionary,
    StoredDictionary,
    Transcoder,
    identity,
    written,
)
from vlm_edit.edits import Rule, Splice, mixes_features, reads_codes, touched_by
from vlm_edit.ground.errors import BadArgument, expect_kind
from vlm_edit.hooks import Selection, TokenChoice

_Whole = Dictionary | StoredDictionary | Transcoder[Dictionary] | Transcoder[StoredDictionary]
_identities: weakref.WeakKeyDictionary[_Whole, dict[str, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Binding:
    """A splice at a site.

    Attributes:
        site: The site's name.
        splice: What is done there.
        selection: The tokens it is done to.
        model_name: The host that the dictionary's file names, if it does.
        dictionary: The dictionary, until it is ``told``; then what is told of it. None if a file
            of format 1 does not tell.
        schedule: Factors of the change at decode steps 0, 1, ...; the last one stays. The
            prompt's is 1. None for 1 everywhere.
        reads: The sites whose states, end to end, are encoded where that is not this site's own:
            of a transcoder, in the order of a forward. Empty for the site itself.
        across: All sites that the edit was made for, joined by ``+``, where its features write
            several; empty where it is this one.
    """

    site: str
    splice: Splice
    selection: Selection = field(default_factory=Selection)
    model_name: str | None = None
    dictionary: _Whole | Mapping[str, Any] | None = None
    schedule: tuple[float, ...] | None = None
    reads: tuple[str, ...] = ()
    across: str = ""

    def __post_init__(self) -> None:
        """Check the schedule, and make its factors floats."""
        if self.schedule is None:
            return
        factors = self.schedule if isinstance(self.schedule, list | tuple) else ()
        if not factors or not all(_is_finite(value) for value in factors):
            raise BadArgument(
                f"schedule is {self.schedule!r}; give a list of finite numbers, the factor of each "
                "decode step"
            )
        object.__setattr__(self, "schedule", tuple(float(value) for value in factors))

    def words(self) -> str:
        """Return a line on what is done where: rules, how many features, which tokens."""
        rules = ", ".join(
            f"{rule.kind} {len(rule.features)} feature{'s' * (len(rule.features) != 1)}"
            for rule in self.splice.rules
        )
        read = f", read at {'+'.join(self.reads)}" if self.reads else ""
        return f"{self.site}: {rules} at {self.selection}{read}"

    def told(self) -> Mapping[str, Any] | None:
        """Return what identifies the dictionary: digest, sizes, activation, norm, info, JSON-able.

        The digest reads all of its weights, at the first call. The dictionary is let go then.
        """
        dictionary = self.dictionary
        if dictionary is None or isinstance(dictionary, Mapping):
            return dictionary
        if dictionary not in _identities:
            _identities[dictionary] = identity(dictionary)
        record = _identities[dictionary]
        object.__setattr__(self, "dictionary", record)
        return record


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(cast("float", value))


def bind(
    site: str,
    dictionary: AnyDictionary,
    rules: Sequence[Rule] | Rule,
    tokens: TokenChoice,
    chosen: Mapping[str, Any],
    schedule: Sequence[float] | None,
    gate: float | None,
) -> tuple[Binding, ...]:
    """Return what ``Patch`` binds: one binding, or one of each stream's dictionary.

    Args:
        site: As for ``Patch``, like the rest.
        dictionary: Likewise.
        rules: Likewise.
        tokens: Likewise.
        chosen: ``phase``, ``steps`` and ``positions``.
        schedule: Likewise.
        gate: Likewise.
    """
    expect_kind("site", site, str, "a site's name, such as 'joint'; vlm-edit sites lists them")
    expect_kind(
        *("dictionary", dictionary, (Dictionary, StoredDictionary, PairedDictionary, Transcoder)),
        "a Dictionary, as load_dictionary reads one",
    )
    if isinstance(dictionary, PairedDictionary):
        every: tuple[TokenChoice, ...] = ("visual", "text+special")
        if tokens != "all":
            every = (tokens,)
        elif chosen["phase"] == "decode":  # no image is generated
            every = ("text+special",)
        return tuple(
            binding
            for choice in every
            for binding in bind(
                *(site, dictionary.of(choice.split("+")[0]), rules, choice, chosen, schedule, gate)
            )
        )
    dictionary.expect_site(site)
    selection = Selection(tokens, **chosen)
    factors = None if schedule is None else cast("tuple[float, ...]", _tuple(schedule))
    rest = (selection, dictionary.info.get("model_name"), dictionary, factors)
    if isinstance(dictionary, Transcoder):
        across = site if dictionary.parts > 1 else ""
        return tuple(
            Binding(at, splice, *rest, reads, across)
            for at, splice, reads in _across(dictionary, site, _listed(rules), gate)
        )
    return (Binding(site, Splice.of(dictionary, _listed(rules), gate), *rest),)


def _across(
    transcoder: Transcoder[Any], site: str, rules: Sequence[Rule], gate: float | None
) -> Iterator[tuple[str, Splice, tuple[str, ...]]]:
    """Yield where a transcoder's features write, the splice there, and the sites it reads."""
    if gate is not None:
        raise BadArgument(
            "a gate asks how much of a token its own reconstruction explains, and a transcoder "
            "predicts another place: leave gate= out"
        )
    places, coded = transcoder.places(site), reads_codes(rules)
    whole = transcoder.inner.slice(touched_by(transcoder.inner, rules), codes=coded)
    cuts = written(whole, transcoder.parts, coded, mixes_features(rules))
    if not cuts:
        raise BadArgument("these features write nothing anywhere: the edit would change nothing")
    for part, own, reads in cuts:
        yield places.writes[part], Splice(own, tuple(rules)), tuple(places.reads[j] for j in reads)


def _listed(rules: object) -> list[Rule]:
    if isinstance(rules, Rule):
        return [rules]
    kind = "a rule, such as Ablate([7]), or a list of rules"
    expect_kind("rules", rules, Sequence, kind)
    for rule in cast("Sequence[object]", rules):
        expect_kind("a rule", rule, Rule, kind)
    return list(cast("Sequence[Rule]", rules))


def _tuple(schedule: object) -> object:
    return tuple(schedule) if isinstance(schedule, Sequence) else schedule
