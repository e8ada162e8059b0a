"""How large the house is: its rooms, doors, names and lines, and how soon the command answers.

    python tests/benchmarks/house.py

What a decode step costs an edit is told by ``step_cost.py`` beside it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from test_architecture import ADAPTERS, CORE, back_doors, cycle, modules, rooms  # noqa: E402


def names() -> tuple[int, int]:
    """Names at the front, and in all ``__all__`` together."""
    front = everywhere = 0
    for path in modules(CORE):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                listed = [name for name in ast.literal_eval(node.value) if not name.startswith("_")]
                everywhere += len(listed)
                front += len(listed) * (path == CORE / "__init__.py")
    return front, everywhere


def seconds(*words: str, repeats: int = 7) -> float:
    """The median of what a process takes."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        took.append(time.perf_counter() - start)
    return sorted(took)[repeats // 2]


def main() -> None:
    lines = sum(
        len(path.read_text("utf-8").splitlines())
        for folder in (CORE, ADAPTERS)
        for path in modules(folder)
    )
    front, everywhere = names()
    public = [room for room in rooms(CORE) if not room.startswith("_")]
    print(f"Python lines installed: {lines}")
    print(f"entries at the top of vlm_edit: {len(public)}")
    print(f"circles: {int(cycle(CORE) is not None)}; back doors: {len(back_doors(CORE))}")
    print(f"names at the front: {front}; in all __all__: {everywhere}")
    print(f"vlm-edit --version: {seconds('-m', 'vlm_edit', '--version'):.2f} s")


if __name__ == "__main__":
    main()
