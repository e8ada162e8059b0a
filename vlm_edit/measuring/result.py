"""What was measured: one table with a row per feature, and where it comes from."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.files import (
    CHECKSUM,
    checksum,
    locked,
    make_folder,
    pack_tensors,
    read_tensors,
    write_bytes,
    write_together,
)
from vlm_edit.measures.dominance import CLASSES, Cut, Dominance
from vlm_edit.measures.interpretability import TopExamples
from vlm_edit.measuring.reader import STREAMS
from vlm_edit.measuring.repeats import Repeats, from_json, to_json

VERSION = 1
FILE = "measurement.safetensors"
SUMMARY = "summary.json"
_WHAT = "measurement"
_LISTED = 9  # examples per feature in tables


@dataclass(frozen=True, eq=False)
class Measurement:
    """Hold what was measured of a dictionary's features.

    Attributes:
        dominance: Scores, counts, tests and classes.
        gap: Distance of the streams' centroids at the site (``modality_gap``).
        examples: Most activating pairs per feature, for ``image`` and ``text``.
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

    def warnings(self) -> list[str]:
        """Say what a reader of scores must know: of zeros and cuts, and of repeated pairs."""
        sentences = [
            repeats.warning(self.n_pairs, stream) for stream, repeats in self.repeats.items()
        ]
        return [*self.dominance.warnings(), *filter(None, sentences)]

    def table(self) -> dict[str, list[Any]]:
        """Return columns by name, a value per feature: scores, intervals, tests, classes, examples.

        ``class`` is by the rule ``significant``, ``class_sd`` and ``class_fixed`` by the others;
        ``paired`` says whether the feature fires together on matched pairs more than on shuffled
        ones. Undefined is NaN.
        """
        dominance = self.dominance
        low, high = dominance.intervals()
        matched, shuffled = dominance.cofiring()
        names = {rule: class_labels(dominance, rule) for rule in get_args(Cut)}
        numbers: dict[str, Tensor] = {
            "mds": dominance.scores,
            "mds_low": low,
            "mds_high": high,
            "swap_p": dominance.swap_test(),
            "active_pairs": dominance.active,
            "image_active": dominance.image_active,
            "text_active": dominance.text_active,
            "cofiring_matched": matched,
            "cofiring_shuffled": shuffled,
            "cofiring_p": dominance.cofiring_test(),
            "modality_score": dominance.modality_score(),
            "modality_score_energy": dominance.modality_score(energy=True),
            "mutual_information": dominance.mutual_information(),
            "correlation": dominance.correlation(),
            **self.interpretability,
        }
        columns: dict[str, list[Any]] = {
            "feature": list(range(len(dominance.scores))),
            "class": names["significant"],
            "paired": dominance.paired().tolist(),
            "class_sd": names["sd"],
            "class_fixed": names["fixed"],
        }
        columns |= {name: values.tolist() for name, values in numbers.items()}
        for stream in STREAMS:
            top = self.examples[stream].numbers[:, :_LISTED].tolist()
            columns[f"top_{stream}s"] = [" ".join(str(n) for n in row if n >= 0) for row in top]
        return columns

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
        write_bytes(path, _csv(self.table()), "table")

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write ``summary`` and ``table`` as JSON; undefined is null."""
        columns = {name: [_known(v) for v in values] for name, values in self.table().items()}
        write_bytes(path, _json({"summary": self.summary(), "features": columns}), "table")

    def checksum(self) -> str:
        """Return 32 digits of all in it, by which the files of a run know that they are of one."""
        return checksum(*self._taken_apart())

    def summary(self) -> dict[str, Any]:
        """Return the figures of the whole, as JSON-able values."""
        dominance = self.dominance
        return {
            "site": self.site,
            "pairs": self.n_pairs,
            "skipped": [{"pair": n, "reason": why} for n, why in self.skipped],
            "truncated_texts": self.truncated,
            "zeros": dominance.zeros,
            "mds_mean": _known(dominance.mean),
            "mds_sd": _known(dominance.sd),
            "modality_gap": _known(self.gap),
            "classes": {
                rule: {name: len(members) for name, members in dominance.classes(rule).items()}
                for rule in get_args(Cut)
            },
            "random_similarity": {name: list(values) for name, values in self.random.items()},
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

    def _taken_apart(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return header and tensors, as they are written."""
        values = {item.name: getattr(self.dominance, item.name) for item in fields(self.dominance)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        scalars = {name: value for name, value in values.items() if name not in tensors}
        tensors |= {f"interpretability.{k}": v for k, v in self.interpretability.items()}
        tensors |= {f"means.{k}": v for k, v in self.means.items()}
        for stream, top in self.examples.items():
            tensors |= {f"examples.{stream}.{k}": v for k, v in top.state_dict().items()}
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


def save_runs(runs: Mapping[Path, Measurement]) -> None:
    """Write several runs as one change, such as a run and the one inside it.

    No file takes its name before all are on the disk. The first run's summary does so first and
    its measurement last: in between, ``load_measurement`` refuses it.

    Args:
        runs: By folder, made if need be.

    Raises:
        VlmEditError: They cannot be written; runs that were there before still are.
    """
    files: dict[Path, bytes] = {}
    last: dict[Path, bytes] = {}
    for folder, run in runs.items():
        target = make_folder(folder)
        header, tensors = run._taken_apart()
        files[target / SUMMARY] = _json(run.summary())
        files[target / "features.csv"] = _csv(run.table())
        (files if last else last)[target / FILE] = pack_tensors(tensors, header)
    with locked(next(iter(runs))):
        write_together({**files, **last}, "run")


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
    _expect_whole(Path(folder), header)
    try:
        if not isinstance(header["provenance"], dict):
            raise TypeError("provenance is no object")
        examples = {}
        for stream in STREAMS:
            state = _take(tensors, f"examples.{stream}.")
            examples[stream] = TopExamples(*state["values"].shape)
            examples[stream].load_state_dict(state)
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
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(
            f"{path} is damaged ({type(error).__name__}: {error}): measure again"
        ) from error


def class_labels(dominance: Dominance, rule: Cut) -> list[str]:
    """Return the name of each feature's class, [m]."""
    members = dominance.classes(rule)
    names = {feature: name for name in CLASSES for feature in members[name]}
    return [names[feature] for feature in range(len(dominance.scores))]


def _expect_whole(folder: Path, header: Mapping[str, Any]) -> None:
    """Refuse a run whose change was broken off: its summary, which changes first, is of another."""
    file = folder / SUMMARY
    if not file.is_file():
        return
    try:
        digest = json.loads(file.read_text(encoding="utf-8")).get(CHECKSUM)
    except (OSError, ValueError, AttributeError, RecursionError):
        digest = "unreadable"
    if digest != header.get(CHECKSUM):
        raise DamagedFile(
            f"{folder} holds an unfinished change: {SUMMARY} is not of the run in {FILE}. Wait, if "
            "a process is writing it; measure again, which takes up what was measured, if one was "
            f"killed; for the run in {FILE}, delete {SUMMARY} and features.csv"
        )


def _csv(columns: Mapping[str, list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode("utf-8")


def _json(value: Any) -> bytes:
    """Write JSON that people can read."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _known(value: Any) -> Any:
    """Return a value, or None for what JSON does not know: NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
