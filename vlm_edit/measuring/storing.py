"""Activations that are collected onto the disk, and gone on with."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from string import hexdigits
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import (
    BEGUN,
    WHOLE,
    ActivationsWriter,
    Dictionary,
    Index,
    StoredActivations,
    delete_parts,
    read_index,
    write_part,
)
from vlm_edit.ground.errors import DamagedFile, WrongHost
from vlm_edit.ground.files import locked, make_folder
from vlm_edit.measuring.details import details
from vlm_edit.measuring.drawing import Draw
from vlm_edit.measuring.gathering import Held
from vlm_edit.measuring.order import shown
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.provenance import pairs_listing, provenance, texts_digest
from vlm_edit.measuring.reader import Reader
from vlm_edit.measuring.sources import expect_images, key_of, stamp
from vlm_edit.measuring.state import expect_same

logger = logging.getLogger(__name__)

PART_SIZE = 256 << 20
_STAMPS, _KEYS = "pairs.stamps", "pairs.keys"


def store(
    reader: Reader,
    pairs: Pairs,
    draw: Draw,
    folder: Path,
    dtype: str,
    part_size: int,
    overwrite: bool,
) -> StoredActivations:
    """Collect activations into a folder, or go on with it, or return what is there already.

    Args:
        reader: Of the host and the site.
        pairs: All of them.
        draw: Which tokens are kept.
        folder: Where.
        dtype: As they are kept.
        part_size: Bytes of a part.
        overwrite: Whether other activations there may go.

    Raises:
        VlmEditError: As in ``collect``.
    """
    index = _index(reader, pairs, draw, dtype)
    make_folder(folder)
    with locked(folder):
        whole = _there(folder, index, pairs, False, overwrite)
        if whole is not None:
            _sweep(folder, whole)
            return StoredActivations(folder, whole, verify=True)
        begun = _there(folder, index, pairs, True, overwrite)
        writer = ActivationsWriter(folder, begun or index, part_size)
        return _write(writer, reader, pairs, draw)


def _write(
    writer: ActivationsWriter, reader: Reader, pairs: Pairs, draw: Draw
) -> StoredActivations:
    """Read the batches that are still to be read, and write what they give."""
    index = writer.index
    reader.skipped[:], reader.truncated = index.left_out, index.truncated
    ranges = list(pairs.batches(reader.batch_size))
    logger.info("%s: batches %d to %d to collect", index.site, index.next_batch, index.batches)
    # Of files as they were before reading.
    before = _stamps(pairs, ranges, index.next_batch)
    for batch, rows in draw.batches(reader, pairs, range(index.next_batch, index.batches)):
        if writer.index.pairs is None:
            file = writer.folder / f"{index.name}-pairs.safetensors"
            part = write_part(file, {"images": [_images(pairs)]})
            writer.index = replace(writer.index, pairs=part)
        keys = [key_of(digest) for digest in batch.digests]
        writer.add(
            *(batch.number, rows),
            {_STAMPS: before, _KEYS: torch.tensor(keys, dtype=torch.long)},
            left_out=tuple(reader.skipped),
            truncated=reader.truncated,
            asked=index.asked or reader.first_prompt,
        )
        before = _stamps(pairs, ranges, batch.number + 1)
    return writer.finish()


def _stamps(pairs: Pairs, ranges: list[range], number: int) -> Tensor:
    some = ranges[number] if number < len(ranges) else range(0)
    return torch.tensor([stamp(pairs.images[i]) for i in some], dtype=torch.long)


def _index(reader: Reader, pairs: Pairs, draw: Draw, dtype: str) -> Index:
    """Return what is to be collected, before anything is."""
    host, site = reader.host, reader.host.site(reader.site)
    settings = {
        "site": site.name,
        "streams": list(draw.streams),
        "most": draw.most,
        "batch_size": reader.batch_size,
        "prompt": host.asks(),
        "seed": draw.seed,
        "dtype": dtype,
        "side": reader.least,
    }
    origin = provenance(host, site, Dictionary.identity(site.width), settings)
    del origin["dictionary"]
    origin["model_name"] = host.hub_name or Path(host.name or "").name
    origin["pairs"] = {
        "name": pairs.name,
        "only": pairs.only,
        "count": len(pairs),
        "listing": pairs_listing(pairs),
        "texts": texts_digest(pairs),
    }
    origin["details"] = details(host)
    told = json.dumps(origin, sort_keys=True)
    name = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
    batches = sum(1 for _ in pairs.batches(reader.batch_size))
    return Index(
        *(name, site.name, draw.streams, site.width, dtype, batches, reader.batch_size),
        json.loads(told),
    )


def _there(folder: Path, index: Index, pairs: Pairs, begun: bool, overwrite: bool) -> Index | None:
    """Return what of this collection is there; None for nothing, or what may be replaced."""
    path = folder / (BEGUN if begun else WHOLE)
    there = None
    try:
        there = read_index(folder, begun)
        if there is None:
            return None
        what = f"what lies in {str(folder)!r}"
        expect_same(_compared(there), _compared(index), what, "collect")
        stored = StoredActivations(folder, there, verify=False)
        if overwrite:
            stored.verify()
        _expect_images(stored, pairs, what)
        return there
    except (WrongHost, DamagedFile) as error:
        if not overwrite:
            raise type(error)(f"{error}; overwrite=True replaces it") from error
    if begun:
        path.unlink(missing_ok=True)
        if there is not None and there.name != index.name:
            delete_parts(folder, there)
    return None


def _compared(index: Index) -> dict[str, Any]:
    return {"dictionary": {}, **index.origin}


def _expect_images(stored: StoredActivations, pairs: Pairs, what: str) -> None:
    """Refuse where images that were read are others by now; bytes in memory are in the listing."""
    index = stored.index
    read = range(min(len(pairs), index.next_batch * index.batch_size))
    stamps = stored.beside(_STAMPS).tolist()
    keys = iter(stored.beside(_KEYS).tolist())
    skipped = {number for number, _ in index.left_out}
    looked_at = [
        (number, stamps[number], None if number in skipped else next(keys)) for number in read
    ]
    some = [one for one in looked_at if not isinstance(pairs.images[one[0]], Held)]
    numbers, before, shown_then = zip(*some, strict=True) if some else ((), (), ())
    known = [key for key in shown_then if key is not None]
    least = index.origin["settings"]["side"]
    expect_images(pairs, numbers, before, known, skipped, what, (), least, "collect")


def _images(pairs: Pairs) -> Tensor:
    """Return for each pair the first one with its image, or with its text where it is alone."""
    if pairs.only == "text":
        first: dict[str, int] = {}
        return torch.tensor([first.setdefault(text, i) for i, text in enumerate(pairs.texts)])
    return torch.from_numpy(shown(pairs))


def _sweep(folder: Path, index: Index) -> None:
    """Delete what a process that was killed while it replaced a store has left of the former."""
    begun = read_index(folder, begun=True)
    if begun is not None and begun.name == index.name:
        (folder / BEGUN).unlink(missing_ok=True)
    kept = {index.name} | ({begun.name} if begun is not None else set())
    for file in folder.glob("*-*.safetensors"):
        name = file.name.split("-", 1)[0]
        if len(name) == len(index.name) and name not in kept and set(name) <= set(hexdigits):
            file.unlink(missing_ok=True)
