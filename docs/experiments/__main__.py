"""Run a recipe or the script behind a table, by its name.

    python docs/experiments                                        # names them all
    python docs/experiments recipes.pairs --npm npm --out build/emoji
    python docs/experiments results.bias --pairs build/emoji

Python puts this folder on its path, so that recipes and scripts find each other, which the package
that users install does not hold.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GUARD = 'if __name__ == "__main__":'


def commands() -> dict[str, str]:
    """Return what can be run, with the first line each says of itself."""
    lines = {}
    for path in sorted(HERE.glob("*/*.py")):
        text = path.read_text("utf-8")
        if GUARD in text:
            said = ast.get_docstring(ast.parse(text)) or ""
            lines[f"{path.parent.name}.{path.stem}"] = said.partition("\n")[0]
    return lines


def listing() -> str:
    """Return the names and first lines as a text."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {line}" for name, line in known.items()]
    return "\n".join(["usage: python docs/experiments NAME [options]", "", *lines])


def main() -> None:
    """Run what the first argument names, with the arguments behind it."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(listing())
        return
    name = sys.argv.pop(1)
    if name not in commands():
        sys.exit(f"there is no {name!r}: `python docs/experiments` names what there is")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
