"""Read the cases that ``pack`` wrote, and compare them with what is computed here."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm_edit import VlmEditError, load_dictionary
from vlm_edit.dictionaries import Layout, Transcoder
from vlm_edit.ground.modality import Mixed

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One checkpoint in one zip."""

    archive: Path
    name: str

    def unpack(self, into: Path) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
        """Its files' folder, what to do with them, and what must come out."""
        with zipfile.ZipFile(self.archive) as archive:
            archive.extractall(into, [n for n in archive.namelist() if n.startswith(self.prefix)])
        folder = into / self.name
        told = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        expected = folder / "expected.safetensors"
        return folder / "files", told, load_file(expected) if expected.exists() else {}

    @property
    def prefix(self) -> str:
        """What the names of its entries begin with."""
        return f"{self.name}/"


def cases() -> list[Case]:
    """All cases of all zips, in order."""
    found = []
    for path in sorted(FOLDER.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix("/case.json") for n in archive.namelist()]
        found += [Case(path, n) for n in names if "/" not in n]
    return found


def check(case: Case, work: Path) -> None:
    """Load a case's checkpoint and compare with the library that wrote it, or be refused."""
    files, told, expected = case.unpack(work)
    path, options = files / told["path"], dict(told["options"])
    if "layout" in options:
        options["layout"] = Layout(**options["layout"])
    if "refused" in told:
        with pytest.raises(VlmEditError, match=told["refused"]):
            load_dictionary(path, **options)
        return
    x, codes = expected["x"], expected["codes"]
    assert int(codes.count_nonzero()) > 0
    if "image" in expected:
        check_streams(path, options, expected, told["tolerance"])
        return
    dictionary = load_dictionary(path, **options)
    assert told.get("info", {}).items() <= dictionary.info.items()
    close(dictionary.encode(x), codes, told["tolerance"])
    if isinstance(dictionary, Transcoder):
        close(dictionary.predict(x), expected["reconstruction"], told["tolerance"])
        dictionary = dictionary.inner
    else:
        close(dictionary.reconstruct(x), expected["reconstruction"], told["tolerance"])
    features = [codes.shape[-1] - 1, 0, codes.shape[-1] // 2]
    lazy = load_dictionary(path, lazy=True, **options)
    part = (lazy.inner if isinstance(lazy, Transcoder) else lazy).slice(features)
    close(part.codes(x)[0], codes[..., features], told["tolerance"])
    assert torch.equal(part.decoder, dictionary.decoder[features])


def check_streams(
    path: Path, options: dict[str, Any], expected: dict[str, Tensor], tolerance: float
) -> None:
    """Compare a dictionary that tells the streams apart, in memory and on disk."""
    image, codes = expected["image"], expected["codes"]
    features = [codes.shape[-1] - 1, 0, codes.shape[-1] // 2]
    dictionary = load_dictionary(path, **options)
    close(dictionary.encode(expected["x"], Mixed.of(image=image)), codes, tolerance)
    lazy = load_dictionary(path, lazy=True, **options)
    for stream, rows in (("image", image), ("text", ~image)):
        x, half = expected["x"][rows], dictionary.of(stream)
        close(dictionary.encode(x, stream), codes[rows], tolerance)
        close(half.reconstruct(x), expected["reconstruction"][rows], tolerance)
        part = lazy.of(stream).slice(features)
        close(part.codes(x)[0], codes[rows][:, features], tolerance)
        assert torch.equal(part.decoder, half.decoder[features])


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Equal up to a share of the largest value."""
    scale = max(float(theirs.abs().max()), 1e-6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)
