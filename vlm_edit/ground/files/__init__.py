"""What is written: whole or not at all, with a checksum where it holds tensors."""

from vlm_edit.ground.files.tensors import (
    CHECKSUM,
    HEADER,
    checksum,
    has_checksum,
    pack_tensors,
    read_tensors,
    write_tensors,
)
from vlm_edit.ground.files.whole import (
    append_text,
    beside,
    locked,
    make_folder,
    packed,
    write_bytes,
    write_new,
    write_text,
    write_together,
)

__all__ = [
    "CHECKSUM",
    "HEADER",
    "append_text",
    "beside",
    "checksum",
    "has_checksum",
    "locked",
    "make_folder",
    "pack_tensors",
    "packed",
    "read_tensors",
    "write_bytes",
    "write_new",
    "write_tensors",
    "write_text",
    "write_together",
]
