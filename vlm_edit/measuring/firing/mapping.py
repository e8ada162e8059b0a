"""Make maps of a run's examples: read their pairs once more, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import Encodes, expect_features
from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost
from vlm_edit.host import Host, Model
from vlm_edit.measures.interpretability import DrawnExamples, TopExamples
from vlm_edit.measuring.firing.maps import Maps, Shown
from vlm_edit.measuring.firing.places import PlacesFinder
from vlm_edit.measuring.firing.tokens import TokenCodes, column, token_codes
from vlm_edit.measuring.lookup import found_in
from vlm_edit.measuring.order import Order
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.plan import PairsPlan, Plan, plan_of
from vlm_edit.measuring.reader import Reader
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.shards import Shards, shards_in

PER = 3
MOST = 20_000
# How far what is read again may lie from what was measured: kernels differ with the batch, and a
# TopK feature may win or lose a token by it.
_NEAR = 0.1


def map_examples(
    host: Host | Model,
    pairs: Pairs | Shards | Iterable[Any],
    dictionary: Encodes,
    measurement: Measurement,
    *,
    per: int = PER,
    most: int = MOST,
    batch_size: int = 8,
    progress: bool = True,
) -> Maps:
    """Make maps of where features fire in their examples: at which patches, under which words.

    The pairs that are examples of some feature are read once more; what each feature's activation
    was when they were measured is held against what it is now.

    Args:
        host: As measured, like the next two.
        pairs: The pairs.
        dictionary: The dictionary.
        measurement: Of them, at a site with tokens.
        per: Examples of each feature and stream: its strongest, and as many drawn.
        most: Pairs at most; features that fire most have theirs first.
        batch_size: Pairs per forward.
        progress: Whether to show a bar.

    Raises:
        CannotKnow: At the site one vector stands for a picture, such as ``joint``.
        WrongHost: Host, dictionary, prompt or pictures are not those that were measured.
        VlmEditError: As ``token_codes``.

    Example:
        >>> from vlm_edit import Host, measure, zoo
        >>> from vlm_edit.measuring import map_examples
        >>> host, pairs = Host.of(*zoo.load_llava()), zoo.load_pairs().select(range(8))
        >>> what = host, pairs, zoo.load_dictionary("language.2")
        >>> measurement = measure(*what, "language.2", progress=False)
        >>> maps = map_examples(*what, measurement, progress=False)
        >>> maps.of(int(maps.features[0]))[0].boxes.shape[1]
        4
    """
    host = Host.of(host)
    _expect_asked(per, most)
    asked = measurement.provenance.get("settings", {}).get("prompt")
    if asked != host.asks():
        raise WrongHost(
            f"the run asked the host {asked!r}, and this one asks {host.asks()!r}: give Host.of "
            "the same prompt"
        )
    _expect_tokens(host, measurement.site)
    examples = [*measurement.examples.values(), *measurement.drawn.values()]
    wanted, left_out = _wanted(examples, measurement.strength(), per, most)
    some = found_in(pairs, measurement).select(sorted(wanted))
    finder = PlacesFinder(host, measurement.site)
    gathered = _Gathered(measurement.examples, finder, wanted)
    options: Mapping[str, Any] = {"batch_size": batch_size, "progress": progress}
    return gathered.read(host, some, dictionary, options, left_out)


def map_site(
    host: Host | Model,
    pairs: Pairs | Shards | Iterable[Any],
    dictionary: Encodes,
    site: str,
    *,
    features: Sequence[int] | None = None,
    per: int = PER,
    most: int = MOST,
    batch_size: int = 8,
    progress: bool = True,
) -> Maps:
    """Find the examples of features at any site with tokens, and map where they fire in them.

    It serves the towers of a CLIP, at which there is one stream and so no dominance to measure.

    Args:
        host: In eval mode, with its processor.
        pairs: Image-text pairs, or what ``Pairs.of`` takes, or shards; read twice.
        dictionary: Of the site's width.
        site: Such as ``vision.3`` or ``text.2``.
        features: Which are mapped; by default all that fire.
        per: As in ``map_examples``, like the rest.
        most: Pairs at most that are mapped.
        batch_size: Pairs per forward.
        progress: Whether to show bars.

    Raises:
        CannotKnow: At the site one vector stands for a picture, such as ``joint``.
        VlmEditError: As ``token_codes``, or features that are not there.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.measuring import map_site
        >>> host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(16))
        >>> dictionary = zoo.load_dictionary("vision.2")
        >>> maps = map_site(host, pairs, dictionary, "vision.2", progress=False)
        >>> list(maps.of(int(maps.features[0]))[0].values)
        ['image']
    """
    host = Host.of(host)
    _expect_asked(per, most)
    _expect_tokens(host, site)
    if features is not None:
        expect_features(features, dictionary.n_features)
    reader = Reader(host, dictionary, site, batch_size, progress)
    tops, drawn, source = _examples(reader, pairs, per)
    strength = torch.stack([top.values.mean(1) for top in tops.values()]).amax(0)
    if features is not None:
        others = torch.ones(len(strength), dtype=torch.bool)
        others[list(features)] = False
        strength = strength.masked_fill(others, -1.0)
    wanted, left_out = _wanted([*tops.values(), *drawn.values()], strength, per, most)
    if not wanted:
        raise CannotKnow(f"no feature that is asked about fires in {source.name} at site {site!r}")
    finder = PlacesFinder(host, site)
    gathered = _Gathered(tops, finder, wanted)
    options: Mapping[str, Any] = {"batch_size": batch_size, "progress": progress}
    return gathered.read(host, source.select(sorted(wanted)), dictionary, options, left_out)


def _examples(
    reader: Reader, pairs: Any, per: int
) -> tuple[dict[str, TopExamples], dict[str, TopExamples], Pairs]:
    """Read all pairs, and return the strongest and some drawn examples, and where they lie."""
    shards, source = shards_in(pairs), found_in(pairs)
    plan: Plan
    if shards is None:
        plan = PairsPlan(source, Order.of(source, reader.batch_size), stamped=False)
    else:
        plan = plan_of(shards, reader.batch_size)
    m, streams = reader.dictionary.n_features, reader.host.site(reader.site).streams
    tops = {stream: TopExamples(m, per) for stream in streams}
    drawn: dict[str, TopExamples] = {stream: DrawnExamples(m, per) for stream in streams}
    units = range(plan.total)
    for _, read in reader.run(plan.cuts(units), plan.count(units)):
        for batch in read[0]:
            for stream, codes in batch.codes.items():
                shown = batch.shown if stream == "image" and batch.shown else batch.numbers
                # An image is an example once, whatever the number of its captions.
                own = [i for i, n in enumerate(batch.numbers) if shown[i] == n]
                mine = codes.to("cpu").pick(torch.tensor(own, dtype=torch.int64))
                for gathered in (tops[stream], drawn[stream]):
                    gathered.update(mine, [batch.numbers[i] for i in own])
    return tops, drawn, source


def is_pooled(host: Host, site: str) -> bool:
    """Return whether one vector stands for a picture, or for a text, at a site.

    Args:
        host: Whose site it is.
        site: Its name.
    """
    place = host.site(site)
    return len(place.taps) > 1 and all(tap.stream != "mixed" for tap in place.taps)


def _expect_asked(per: int, most: int) -> None:
    if per < 1 or most < 1:
        raise BadArgument(f"per is {per} and most {most}: ask for at least 1 example and 1 pair")


def _expect_tokens(host: Host, site: str) -> None:
    if is_pooled(host, site):
        raise CannotKnow(
            f"at site {site!r} one vector stands for a picture, so nobody can tell where in it a "
            "feature fires: map a layer, such as 'language.16' or 'vision.3'"
        )


def _wanted(
    some: Sequence[TopExamples], strength: Tensor, per: int, most: int
) -> tuple[dict[int, list[int]], int]:
    """Return the features to be mapped in each pair, and how many live ones have none."""
    examples = torch.cat([top.numbers[:, :per] for top in some], 1)
    wanted: dict[int, list[int]] = {}
    left_out = 0
    for feature in strength.argsort(descending=True, stable=True).tolist():
        if strength[feature] < 0:  # not asked about
            break
        mine = {number for number in examples[feature].tolist() if number >= 0}
        if len(wanted.keys() | mine) > most:
            left_out += 1
            continue
        for number in mine:
            wanted.setdefault(number, []).append(feature)
    return wanted, left_out


@dataclass(eq=False)
class _Gathered:
    """Maps as they are gathered, pair by pair."""

    tops: Mapping[str, TopExamples]
    finder: PlacesFinder
    wanted: Mapping[int, Sequence[int]]
    pairs: list[Shown] = field(default_factory=list)
    parts: list[tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]] = field(
        default_factory=list
    )
    boxes: list[Tensor] = field(default_factory=list)
    known: dict[tuple[int, int], int] = field(default_factory=dict)
    why: str = ""

    def read(
        self,
        host: Host,
        some: Pairs,
        dictionary: Encodes,
        options: Mapping[str, Any],
        left_out: int,
    ) -> Maps:
        """Read the pairs that are wanted, in the order of their numbers."""
        numbers = sorted(self.wanted)
        for one in token_codes(host, some, dictionary, self.finder.site, **options):
            self.add(one, numbers[one.number], some.texts[one.number])
        return self.maps(left_out)

    def add(self, one: TokenCodes, number: int, text: str) -> None:
        """Take what is wanted of a pair."""
        features = torch.tensor(sorted(self.wanted[number]), dtype=torch.int64)
        self._expect(one, number, features)
        counts = {stream: len(codes) for stream, codes in one.codes.items()}
        place = self._place(one, text, counts["image"]) if "image" in counts else -1
        self.pairs.append(Shown(number, counts, place, list(one.words)))
        part = {}
        for stream, codes in one.codes.items():
            kept = torch.isin(codes.features, features)
            which = torch.searchsorted(features, codes.features[kept])
            order = which.argsort(stable=True)
            sizes = which.bincount(minlength=len(features))
            part[stream] = sizes, codes.rows[kept][order], codes.values[kept][order].float()
        self.parts.append((features, part))

    def _place(self, one: TokenCodes, text: str, count: int) -> int:
        if one.size not in self.known:
            places = self.finder.of(one.size, text)
            self.known[one.size] = -1
            if places.boxes is None:
                self.why = places.why
            elif len(places.boxes) != count:
                self.why = f"a picture has {count} tokens, and {len(places.boxes)} places"
            else:
                self.boxes.append(places.boxes)
                self.known[one.size] = len(self.boxes) - 1
        return self.known[one.size]

    def _expect(self, one: TokenCodes, number: int, features: Tensor) -> None:
        """Refuse a pair that is not what was measured."""
        near = total = 0
        for stream, top in self.tops.items():
            rows, places = (top.numbers[features] == number).nonzero(as_tuple=True)
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                feature = int(features[row])
                was = float(top.values[feature, place])
                now = float(column(one.codes[stream], feature).abs().mean())
                total += 1
                near += abs(now - was) <= _NEAR * was
        if near < total / 2:
            raise WrongHost(
                f"pair {number} does not look as when it was measured: {total - near} of {total} "
                "features of which it is an example fire otherwise; give the host, the dictionary "
                "and the pictures that were measured, or measure again"
            )

    def maps(self, left_out: int) -> Maps:
        """Put all parts together, by feature."""
        features = torch.cat([part[0] for part in self.parts])
        pairs = torch.arange(len(self.parts)).repeat_interleave(
            torch.tensor([len(part[0]) for part in self.parts])
        )
        order = features.argsort(stable=True)
        starts, tokens, values = {}, {}, {}
        for stream in self.pairs[0].counts:
            sizes, rows, numbers = (
                torch.cat([part[1][stream][i] for part in self.parts]) for i in range(3)
            )
            begins = sizes.cumsum(0) - sizes
            ends = sizes[order].cumsum(0)
            starts[stream] = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
            moved = begins[order] - (ends - sizes[order])
            at = torch.arange(len(rows)) + moved.repeat_interleave(sizes[order])
            tokens[stream], values[stream] = rows[at], numbers[at]
        return Maps(
            self.finder.site,
            self.pairs,
            features[order],
            pairs[order],
            starts,
            tokens,
            values,
            self.boxes,
            left_out,
            "" if self.boxes else self.why,
        )
