"""What was measured: one table with a row per feature, and where it comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName
from vlm_edit.ground.files import (
    CHECKSUM,
    checksum,
    read_tensors,
    write_bytes,
)
from vlm_edit.ground.notebook import card, one_line, several
from vlm_edit.measures.dominance import (
    CLASSES,
    FEW,
    Cut,
    Dominance,
    candidates,
    class_rows,
    sureness,
)
from vlm_edit.measures.interpretability import DrawnExamples, TopExamples
from vlm_edit.measures.sizes import ActivationSizes
from vlm_edit.measuring.reader import STREAMS
from vlm_edit.measuring.repeats import Repeats, from_json, to_json
from vlm_edit.measuring.saving import (
    FILE,
    csv_of,
    expect_whole,
    json_of,
    known,
    save_runs,
)
from vlm_edit.measuring.showing import Shown
from vlm_edit.measuring.table import (
    LISTED,
    Features,
    host_words,
    quantile,
    table,
)
from vlm_edit.measuring.until import open_features, told

if TYPE_CHECKING:
    pass

VERSION = 1
_WHAT = "measurement"


@dataclass(frozen=True, eq=False)
class Measurement(Shown):
    """Hold what was measured of a dictionary's features.

    Attributes:
        dominance: Scores, counts, tests and classes.
        gap: Distance of the streams' centroids at the site (``modality_gap``).
        examples: Most activating pairs per feature, for ``image`` and ``text``; an image once,
            whatever the number of its captions.
        site: Where.
        n_pairs: Pairs measured.
        skipped: Pairs left out because their image could not be read: number and reason.
        truncated: Texts longer than the host takes, cut at its limit.
        means: [d] float64 per stream, mean activation after the dictionary's norm.
        interpretability: [m] float64 per score, if a judge was given: ``ms_image`` and ``ms_text``
            (Monosemanticity Score), ``mms_image_text`` (Multimodal Monosemanticity Score),
            ``embsim_image_10``, ``embsim_p_image_10``, ``winrate_image_10`` and so on.
        random: Per stream and m, what m random examples have in common: mean, and the bounds
            between which 95 % of the draws lie; by names such as ``image_10``.
        provenance: Host, dictionary, pairs, settings and versions, JSON-able.
        repeats: Per stream, how often its images (texts) come again among the pairs measured;
            without an entry where it is not known.
        sizes: Per stream, how large the activations of single tokens are; empty in runs of former
            versions.
        files: Of the features' top images, by the number of the pair.
        drawn: Per stream, pairs drawn among all that activate a feature; empty in runs of former
            versions.
    """

    dominance: Dominance
    gap: float
    examples: Mapping[str, TopExamples]
    site: str
    n_pairs: int
    skipped: tuple[tuple[int, str], ...] = ()
    truncated: int = 0
    means: Mapping[str, Tensor] = field(default_factory=dict)
    interpretability: Mapping[str, Tensor] = field(default_factory=dict)
    random: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    repeats: Mapping[str, Repeats] = field(default_factory=dict)
    sizes: Mapping[str, ActivationSizes] = field(default_factory=dict)
    files: Mapping[int, str] = field(default_factory=dict)
    drawn: Mapping[str, TopExamples] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """Say what a reader of scores must know: of zeros and cuts, and of repeated pairs."""
        return [*self.dominance.warnings(), *self.doubts()]

    def doubts(self) -> list[str]:
        """Say where images are alike in a way that intervals and tests do not know of."""
        known = {"image": self.dominance.images, "text": self.n_pairs}
        sentences = [
            repeats.warning(self.n_pairs, stream, known[stream])
            for stream, repeats in self.repeats.items()
        ]
        return list(filter(None, sentences))

    def stopping(self) -> str:
        """Say where ``until_width`` ended the reading, in a sentence; empty where it was not asked.

        Example:
            >>> from vlm_edit import Host, measure, zoo
            >>> host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
            >>> pairs, asked = zoo.load_pairs().select(range(32)), {"until_width": 0.5}
            >>> measure(host, pairs, dictionary, **asked, progress=False).stopping()[:18]
            'Read all 32 pairs:'
        """
        return told(self.provenance, self.dominance)

    def __repr__(self) -> str:
        """Say on a line what was measured where."""
        classes = self.dominance.classes()
        sizes = ", ".join(f"{len(members)} {name}" for name, members in classes.items())
        return one_line(f"Measurement({self.site}, {several(self.n_pairs, 'pair')}: {sizes})")

    def _repr_html_(self) -> str:
        """Say it in a notebook, with the sizes of the classes."""
        dictionary = self.provenance.get("dictionary", {})
        facts: dict[str, object] = {
            "host": host_words(self.provenance),
            "dictionary": (dictionary.get("info") or {}).get("model_name"),
            "pairs": f"{self.n_pairs:,}" + f", {len(self.skipped):,} left out" * bool(self.skipped),
            "modality gap": f"{self.gap:.3f}",
        }
        facts = {name: value for name, value in facts.items() if value}
        title, note = f"Measurement at {self.site}", "\n".join(self.warnings())
        return card(title, facts, *class_rows(self.dominance.classes()), note)

    def shown(self) -> set[int]:
        """Return the numbers of the pairs that tables and pages show."""
        some = [top.numbers[:, :LISTED] for top in self.examples.values()]
        some += [drawn.numbers for drawn in self.drawn.values()]
        return {number for part in some for number in part.unique().tolist() if number >= 0}

    def strength(self) -> Tensor:
        """Average the activations of each feature's top examples in its stronger stream, [m].

        Examples that it lacks count as 0, so that a feature of one pair does not come first.
        """
        return torch.stack([self.examples[s].values.mean(1) for s in STREAMS]).amax(0)

    def top(
        self,
        kind: str,
        most: int | None = 10,
        *,
        rule: Cut = "interval",
        by: Literal["sureness", "strength"] = "sureness",
    ) -> Features:
        """Return the first features of a class, as a list of numbers that prints as a table.

        With ``most`` they are ranked, proven or not, as ``vlm_edit.selection.by_class`` ranks
        them; the title says how many are proven. Without, they are those that have the label.

        Args:
            kind: ``vision``, ``language``, ``cross``, ``undecided`` or ``dead``.
            most: How many; None for all with the label.
            rule: Of the classes, as in ``Dominance.classes``.
            by: ``sureness``, how sure the class is, by the ends of the score's interval: a
                feature that is 1 in three pairs stands behind one that is .98 in three hundred; or
                ``strength``, as the page ranks, by ``strength()``.

        Raises:
            VlmEditError: An unknown class, rule or order, or fewer than 1.

        Example:
            >>> from vlm_edit import Ablate, Host, measure, zoo
            >>> host = Host.of(*zoo.load_host())
            >>> pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("joint")
            >>> measurement = measure(host, pairs.select(range(64)), dictionary, progress=False)
            >>> len(Ablate(measurement.top("vision", 3)).features)
            3
        """
        if kind not in CLASSES:
            raise UnknownName(f"no class {kind!r} of features: use one of {CLASSES}")
        orders = {"sureness": lambda: sureness(self.dominance, kind), "strength": self.strength}
        if by not in orders:
            raise UnknownName(f"no order {by!r} of features: use one of {tuple(orders)}")
        if most is not None and most < 1:
            raise BadArgument(f"most is {most}: ask for at least 1 feature, or None for all")
        labelled = self.dominance.classes(rule)[kind]
        numbers = torch.tensor(labelled, dtype=torch.int64)
        if most is not None:
            least = 0 if kind == "dead" else FEW
            numbers = candidates(self.dominance, kind, rule, least=least).nonzero().flatten()
        order = orders[by]()[numbers].argsort(descending=True, stable=True)[:most]
        chosen = numbers[order].tolist()
        title = f"{kind}, by {by}"
        if rule == "interval" and kind in ("vision", "language", "cross"):
            proven = len(set(self.dominance.classes()[kind]).intersection(chosen))
            title += f", {proven} of {len(chosen)} proven"
        return Features.of(self, title, chosen)

    def quantile(
        self,
        features: int | Sequence[int] | Tensor,
        level: float = 0.99,
        stream: Literal["image", "text", "both"] = "both",
    ) -> float | list[float]:
        """Return the size that a share of a feature's activations does not exceed.

        Of single tokens, those alone that activate the feature, by nearest rank; off by at most
        1.6 % (``vlm_edit.measures.sizes``). In units of the code, without its sign, as ``Clamp``,
        ``Cap`` and ``Steer`` take it.

        Args:
            features: One, or several.
            level: Share, such as .99; the 1.0 is the largest.
            stream: Of ``image`` tokens, of ``text`` tokens, or of those of both together.

        Returns:
            A number, or a list of them.

        Raises:
            CannotKnow: The feature was never active there, its quantile lies below a sixteenth of
                its largest activation, or the run is of a former version.
            VlmEditError: A level, a stream or a feature that is not there.

        Example:
            >>> from vlm_edit import Clamp, Host, measure, zoo
            >>> host = Host.of(*zoo.load_host())
            >>> pairs, dictionary = zoo.load_pairs(), zoo.load_dictionary("joint")
            >>> measurement = measure(host, pairs.select(range(64)), dictionary, progress=False)
            >>> feature = measurement.top("vision", 1)[0]
            >>> value = measurement.quantile(feature, 0.99, "image")
            >>> Clamp(feature, value) == Clamp(feature, quantile=0.99, of=measurement)
            True
        """
        return quantile(self.sizes, features, level, stream)

    def table(self) -> dict[str, list[Any]]:
        """Return columns by name, a value per feature: scores, intervals, tests, classes, examples.

        ``class`` is by the rule ``interval``, ``class_significant`` and so on by the others;
        ``paired`` says whether the feature fires together on matched pairs more than on shuffled
        ones. ``mean_image`` and ``mean_text`` are of the activations of single tokens, over those
        of the stream that activate the feature, ``max_image`` and ``max_text`` the largest: in
        units of the code, as ``Clamp`` and ``Steer`` take them. ``top_images`` are files, below
        the pairs' folder, or numbers of pairs where images have none; ``top_texts`` are numbers.
        Undefined is NaN, and so are sizes in runs of former versions, which did not keep them.
        """
        return table(self)

    def rows(self) -> list[dict[str, Any]]:
        """Return ``table`` row by row."""
        columns = self.table()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_pandas(self) -> Any:
        """Return ``table`` as a pandas DataFrame.

        Raises:
            VlmEditError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BadArgument("to_pandas() needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.table())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write ``table`` as CSV."""
        write_bytes(path, csv_of(self.table()), "table")

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``summary`` and ``table`` as JSON; undefined is null."""
        columns = {name: [known(v) for v in values] for name, values in self.table().items()}
        write_bytes(path, json_of({"summary": self.summary(), "features": columns}), "table")

    def checksum(self) -> str:
        """Return 32 digits of all in it, by which the files of a run know that they are of one."""
        return checksum(*self.taken_apart())

    def summary(self) -> dict[str, Any]:
        """Return the figures of the whole, as JSON-able values."""
        dominance, until = self.dominance, {}
        if sentence := self.stopping():
            open_ones = open_features(self.provenance, dominance)
            until = {"until": {"told": sentence, "not_settled": open_ones}}
        return {
            "site": self.site,
            "pairs": self.n_pairs,
            "skipped": [{"pair": n, "reason": why} for n, why in self.skipped],
            "truncated_texts": self.truncated,
            "zeros": dominance.zeros,
            "mds_mean": known(dominance.mean),
            "mds_sd": known(dominance.sd),
            "modality_gap": known(self.gap),
            "classes": {
                rule: {name: len(members) for name, members in dominance.classes(rule).items()}
                for rule in get_args(Cut)
            },
            "random_similarity": {name: list(values) for name, values in self.random.items()},
            "sample": dominance.sample(),
            **until,
            "distinct": {f"{s}s": repeats.distinct for s, repeats in self.repeats.items()},
            "warnings": self.warnings(),
            "provenance": dict(self.provenance),
            CHECKSUM: self.checksum(),
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a run: ``features.csv``, ``summary.json`` and ``measurement.safetensors``.

        Args:
            folder: Made if need be; ``load_measurement`` reads it.

        Raises:
            VlmEditError: It cannot be written; a run that was there before still is.
        """
        save_runs({Path(folder): self})

    def taken_apart(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return header and tensors, as they are written."""
        values = {item.name: getattr(self.dominance, item.name) for item in fields(self.dominance)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        scalars = {name: value for name, value in values.items() if name not in tensors}
        tensors |= {f"interpretability.{k}": v for k, v in self.interpretability.items()}
        tensors |= {f"means.{k}": v for k, v in self.means.items()}
        for stream, top in self.examples.items():
            tensors |= {f"examples.{stream}.{k}": v for k, v in top.state_dict().items()}
        for stream, some in self.drawn.items():
            tensors |= {f"drawn.{stream}.{k}": v for k, v in some.state_dict().items()}
        for stream, sizes in self.sizes.items():
            tensors |= {f"sizes.{stream}.{k}": v for k, v in sizes.state_dict().items()}
        if self.files:
            files = json.dumps({str(n): name for n, name in sorted(self.files.items())})
            tensors["files"] = torch.tensor(list(files.encode()), dtype=torch.uint8)
        header = {
            "version": VERSION,
            "kind": _WHAT,
            "dominance": scalars,
            "gap": self.gap,
            "site": self.site,
            "n_pairs": self.n_pairs,
            "skipped": list(self.skipped),
            "truncated": self.truncated,
            "scores": list(self.interpretability),
            "random": {name: list(values) for name, values in self.random.items()},
            "provenance": dict(self.provenance),
            "repeats": to_json(self.repeats),
        }
        return header, tensors


def _examples(
    tensors: dict[str, Tensor], name: str, kind: type[TopExamples]
) -> dict[str, TopExamples]:
    """Take the examples of each stream from a run's tensors."""
    examples = {}
    for stream in STREAMS:
        state = _take(tensors, f"{name}.{stream}.")
        examples[stream] = kind(*state["values"].shape)
        examples[stream].load_state_dict(state)
    return examples


def _sizes(tensors: dict[str, Tensor]) -> dict[str, ActivationSizes]:
    """Take the sizes of each stream's activations, which runs of former versions lack."""
    sizes = {}
    for stream in STREAMS if any(name.startswith("sizes.") for name in tensors) else ():
        state = _take(tensors, f"sizes.{stream}.")
        sizes[stream] = ActivationSizes(len(state["sums"]))
        sizes[stream].load_state_dict(state)
    return sizes


def load_measurement(folder: str | os.PathLike[str]) -> Measurement:
    """Read a run that ``Measurement.save`` wrote.

    Args:
        folder: The run.

    Returns:
        The measurement, the same to the bit.

    Raises:
        VlmEditError: No such run, damaged, or of another version.

    Example:
        >>> import tempfile
        >>> from vlm_edit import Host, measure, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> pairs = zoo.load_pairs().select(range(32))
        >>> measurement = measure(host, pairs, zoo.load_dictionary("joint"), progress=False)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     measurement.save(run)
        ...     again = load_measurement(run)
        >>> again.gap == measurement.gap
        True
    """
    path = Path(folder) / FILE
    header, tensors = read_tensors(path, _WHAT)
    if header.get("kind") != _WHAT or header.get("version") != VERSION:
        raise DamagedFile(
            f"{path} is not a measurement of format {VERSION}: measure again, or update vlm-edit"
        )
    expect_whole(Path(folder), header)
    try:
        if not isinstance(header["provenance"], dict):
            raise TypeError("provenance is no object")
        examples, sizes = _examples(tensors, "examples", TopExamples), _sizes(tensors)
        are_drawn = any(key.startswith("drawn.") for key in tensors)  # not in former versions
        drawn = _examples(tensors, "drawn", DrawnExamples) if are_drawn else {}
        files = tensors.pop("files", torch.tensor(list(b"{}"), dtype=torch.uint8))
        dominance = {item.name: tensors.pop(item.name, None) for item in fields(Dominance)}
        dominance = {k: v for k, v in dominance.items() if v is not None} | header["dominance"]
        return Measurement(
            Dominance(**dominance),
            float(header["gap"]),
            examples,
            str(header["site"]),
            int(header["n_pairs"]),
            tuple((int(n), str(why)) for n, why in header["skipped"]),
            int(header["truncated"]),
            _take(tensors, "means."),
            {name: tensors.pop(f"interpretability.{name}") for name in header["scores"]},
            {name: (float(a), float(b), float(c)) for name, (a, b, c) in header["random"].items()},
            header["provenance"],
            from_json(header.get("repeats", {})),
            sizes,
            {int(n): str(name) for n, name in json.loads(bytes(files.tolist())).items()},
            drawn,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(
            f"{path} is damaged ({type(error).__name__}: {error}): measure again"
        ) from error


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
