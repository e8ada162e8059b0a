"""Make maps of a run's examples: read their pairs once more, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost
from vlm_edit.host import Host, Model
from vlm_edit.measuring.firing.maps import Maps, Shown
from vlm_edit.measuring.firing.places import PlacesFinder
from vlm_edit.measuring.firing.tokens import TokenCodes, column, token_codes
from vlm_edit.measuring.lookup import found_in
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.result import Measurement
from vlm_edit.measuring.shards import Shards

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
    if per < 1 or most < 1:
        raise BadArgument(f"per is {per} and most {most}: ask for at least 1 example and 1 pair")
    asked = measurement.provenance.get("settings", {}).get("prompt")
    if asked != host.asks():
        raise WrongHost(
            f"the run asked the host {asked!r}, and this one asks {host.asks()!r}: give Host.of "
            "the same prompt"
        )
    if is_pooled(host, measurement.site):
        raise CannotKnow(
            f"at site {measurement.site!r} one vector stands for a picture, so nobody can tell "
            "where in it a feature fires: map a layer, such as 'language.16'"
        )
    wanted, left_out = _wanted(measurement, per, most)
    numbers = sorted(wanted)
    some = found_in(pairs, measurement).select(numbers)
    finder = PlacesFinder(host, measurement.site)
    gathered = _Gathered(measurement, finder, wanted)
    options: Mapping[str, Any] = {"batch_size": batch_size, "progress": progress}
    for one in token_codes(host, some, dictionary, measurement.site, **options):
        gathered.add(one, numbers[one.number], some.texts[one.number])
    return gathered.maps(left_out)


def is_pooled(host: Host, site: str) -> bool:
    """Return whether one vector stands for a picture, or for a text, at a site.

    Args:
        host: Whose site it is.
        site: Its name.
    """
    return all(tap.stream != "mixed" for tap in host.site(site).taps)


def _wanted(measurement: Measurement, per: int, most: int) -> tuple[dict[int, list[int]], int]:
    """Return the features to be mapped in each pair, and how many live ones have none."""
    some = [top.numbers[:, :per] for top in measurement.examples.values()]
    some += [drawn.numbers[:, :per] for drawn in measurement.drawn.values()]
    examples = torch.cat(some, 1)
    wanted: dict[int, list[int]] = {}
    left_out = 0
    for feature in measurement.strength().argsort(descending=True, stable=True).tolist():
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

    measurement: Measurement
    finder: PlacesFinder
    wanted: Mapping[int, Sequence[int]]
    pairs: list[Shown] = field(default_factory=list)
    parts: list[tuple[Tensor, dict[str, tuple[Tensor, Tensor, Tensor]]]] = field(
        default_factory=list
    )
    boxes: list[Tensor] = field(default_factory=list)
    known: dict[tuple[int, int], int] = field(default_factory=dict)
    why: str = ""

    def add(self, one: TokenCodes, number: int, text: str) -> None:
        """Take what is wanted of a pair."""
        features = torch.tensor(sorted(self.wanted[number]), dtype=torch.int64)
        self._expect(one, number, features)
        counts = {stream: len(codes) for stream, codes in one.codes.items()}
        place = self._place(one, text, counts["image"])
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
        for stream, top in self.measurement.examples.items():
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
            self.measurement.site,
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
