"""The demonstration: the whole way on the bundled host, checked against what is known of it."""

from vlm_edit.demo.steps import run

__all__ = ["run"]
