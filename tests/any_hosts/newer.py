"""Say what the installed transformers knows of images and text that docs/hosts.md has no row for.

    PYTHONPATH=tests python -m any_hosts.newer

Of each such type: whether a tiny host of it builds, how it is resolved, and its sites; or why not.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import warnings
from pathlib import Path

import transformers
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from any_hosts.hosts import MATCHING, READING, TYPES, AnyHost, NotBuilt, build, first
from vlm_edit import Host, VlmEditError
from vlm_edit.host import registered_adapter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hosts.md"
BEGIN, END = "<!-- types: begin -->", "<!-- types: end -->"
# Any-to-any: what reads and says several of text, images, videos and sounds.
ANY = dict(getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}))
KNOWN: dict[str, str] = {k: first(v) for k, v in sorted({**ANY, **MATCHING, **READING}.items())}
# Whose part that sees has a row, by that part's type.
BY_A_PART = {
    "qwen2_5_omni": "qwen2_5_omni_thinker",
    "qwen3_omni_moe": "qwen3_omni_moe_thinker",
}


def with_rows(page: str) -> set[str]:
    """The types that have a row in the table of every type."""
    table = page.split(BEGIN)[1].split(END)[0]
    return {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}


def takes_images(model_type: str) -> bool:
    """Whether the forward of a type's class takes images or videos; also where nobody can tell."""
    try:
        takes = inspect.signature(getattr(transformers, KNOWN[model_type]).forward).parameters
    except Exception:  # what cannot even be imported is named, and building it says why
        return True
    return any(re.search("pixel|image|video", name) for name in takes)


def added(page: str) -> list[str]:
    """The types that see images, or may, and have no row in the page's table, in order."""
    rows = with_rows(page)
    without = (name for name in KNOWN if name not in rows and BY_A_PART.get(name) not in rows)
    return [name for name in without if name in TYPES or takes_images(name)]


def told(model_type: str) -> str:
    """A line on a type: how it resolves and its sites, or why it has none."""
    named = f"{model_type} ({KNOWN[model_type]})"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            host = build(model_type, KNOWN[model_type])
    except NotBuilt as reason:
        return f"{named}: does not build: {reason}"
    except Exception as error:  # a newer library may fail in any way
        return f"{named}: does not build as it is: {type(error).__name__}: {error}".splitlines()[0]
    return f"{named}: builds, {resolved(host)}"


def resolved(host: AnyHost) -> str:
    """How a host's sites are found, and which; or who refuses, and why."""
    try:
        sites = Host.of(host.model).sites
    except VlmEditError as error:
        return f"refused: {error}"
    how = "conventions" if registered_adapter(host.model) is None else "declared"
    kinds = dict.fromkeys(re.sub(r"\.\d+", ".{i}", name) for name in sites)
    return f"{how}: {', '.join(kinds)}"


def main() -> None:
    """Print what the page lacks, a line each."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    names = added(PAGE.read_text("utf-8"))
    print(f"transformers {transformers.__version__}: {len(names)} types without a row")
    for name in names:
        print(told(name), flush=True)


if __name__ == "__main__":
    main()
