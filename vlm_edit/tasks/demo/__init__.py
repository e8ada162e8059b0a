"""The demonstrations: the whole way on the bundled hosts, checked against what is known of them."""

from vlm_edit.tasks.demo.factors import as_known as as_known
from vlm_edit.tasks.demo.generation import run as run_generation
from vlm_edit.tasks.demo.steps import run

__all__ = [
    "run",
    "run_generation",
]
