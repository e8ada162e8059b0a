"""Parquet files, as Hugging Face and img2dataset write them, a row a sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_edit.ground.errors import DamagedFile, VlmEditError
from vlm_edit.measuring.gathering import IMAGE_COLUMNS, TEXT_COLUMNS, column_of
from vlm_edit.measuring.shards.source import Sample, sample_of

_ROWS = 64  # that are held at once


def read_parquet(path: Path, image: str | None = None, text: str | None = None) -> Iterator[Sample]:
    """Yield the rows of a parquet file, some at a time.

    Args:
        path: The file.
        image: The column of images, of bytes or of paths; by default a usual one.
        text: Likewise of texts, or of lists of them.

    Raises:
        VlmEditError: pyarrow is not installed, the file cannot be read, or a column is missing.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise VlmEditError(
            f"{path}: parquet files are read with pyarrow: pip install 'vlm-edit[shards]'"
        ) from error
    try:
        with ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            shown = column_of(names, (*IMAGE_COLUMNS, "jpg"), image, "images", str(path), "image")
            said = column_of(names, (*TEXT_COLUMNS, "txt"), text, "texts", str(path), "text")
            number = 0
            for batch in file.iter_batches(_ROWS, columns=[shown, said]):
                for row in batch.to_pylist():
                    yield _sample(row, number, path, shown, said)
                    number += 1
    except (ArrowException, OSError) as error:
        raise DamagedFile(f"{path}: {str(error).splitlines()[0]}") from error


def _sample(row: dict[str, Any], number: int, path: Path, shown: str, said: str) -> Sample:
    value = row[shown]
    name = f"{path}: row {number}"
    if isinstance(value, str):
        value = path.parent / value
    elif isinstance(value, dict) and {"bytes", "path"} <= set(value):
        value = {"bytes": value["bytes"], "path": value["path"] or name}
    elif isinstance(value, bytes):
        value = {"bytes": value, "path": name}
    return sample_of({shown: value, said: row[said]}, number, str(path), shown, said)
