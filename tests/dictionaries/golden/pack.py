"""Pack checkpoints that other libraries wrote, with those libraries' own results, into one zip.

For the scripts beside it, which run in the other library's environment: it needs torch and
safetensors, and nothing of vlm_edit. pytest imports those scripts in this project's environment,
so they import their library inside functions, and ``pack`` before it: a script may then have its
library's name.

A zip holds a folder per case: ``files/`` as the library wrote them, ``case.json`` that says how to
call ``load_dictionary``, and ``expected.safetensors``.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_HERE = Path(__file__).resolve().parent
# A script there hides the library of its name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]


def files(root: Path, case: str) -> Path:
    """The empty folder that a case's checkpoint is to be written to."""
    folder = Path(root) / case / "files"
    folder.mkdir(parents=True)
    return folder


def expect(
    root: Path,
    case: str,
    x: Tensor,
    codes: Tensor,
    reconstruction: Tensor,
    *,
    path: str = ".",
    tolerance: float = 1e-5,
    image: Tensor | None = None,
    info: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """Say what a case's checkpoint does.

    Args:
        root: Folder of all cases.
        case: Its name.
        x: [..., d], what the library was given.
        codes: [..., m], the library's own.
        reconstruction: [..., d], likewise.
        path: What to load, below the case's ``files``.
        tolerance: Largest difference, as a share of the largest expected value.
        image: [...] bool, which of x are of the image stream and which of the text stream, of a
            dictionary that tells them apart.
        info: What must be among what the dictionary says it was trained on.
        options: For ``load_dictionary``; ``layout`` as a dictionary of its fields.
    """
    folder = Path(root) / case
    tensors = {"x": x, "codes": codes, "reconstruction": reconstruction}
    copies = {k: v.detach().to("cpu", torch.float32, copy=True) for k, v in tensors.items()}
    copies |= {} if image is None else {"image": image.detach().clone()}
    save_file({k: v.contiguous() for k, v in copies.items()}, folder / "expected.safetensors")
    case = {"path": path, "options": options, "tolerance": tolerance}
    _describe(folder, case | ({} if info is None else {"info": info}))


def refuse(root: Path, case: str, message: str, *, path: str = ".", **options: Any) -> None:
    """Say that a case's checkpoint must be refused, with a message that fits this pattern."""
    _describe(Path(root) / case, {"path": path, "options": options, "refused": message})


def pack(root: Path, target: Path) -> None:
    """Write all cases below a folder into a zip whose bytes depend on their content alone."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(p for p in Path(root).rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(root).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    cases = len(list(Path(root).glob("*/case.json")))
    print(f"{target}: {cases} cases, {Path(target).stat().st_size} bytes")


def _describe(folder: Path, case: dict[str, Any]) -> None:
    text = json.dumps(case, indent=1, sort_keys=True)
    (folder / "case.json").write_text(text + "\n", encoding="utf-8")
