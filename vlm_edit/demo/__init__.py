"""The demonstration: the whole way on the bundled host, checked against what is known of it."""

from vlm_edit.demo.run import run

__all__ = ["run"]
