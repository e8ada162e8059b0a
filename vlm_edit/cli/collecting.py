"""What ``vlm-edit collect`` does."""

from __future__ import annotations

from vlm_edit import measuring
from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Collect
from vlm_edit.cli.host import load_host
from vlm_edit.cli.subject import load_pairs
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.notebook import several
from vlm_edit.report import Table


def collect(options: Collect) -> int:
    """Write activations, and print how many there are."""
    if options.part_size < 1:
        raise BadArgument(f"--part-size is {options.part_size} MiB: give 1 or more")
    pairs = load_pairs(options.pairs, options.columns(), alone=True)
    host = load_host(options.model, options, pairs.only == "text")
    store = measuring.collect(
        *(host, pairs, options.site),
        most=options.most,
        batch_size=options.batch_size,
        seed=options.seed,
        out=options.out,
        dtype=options.stored_as,
        part_size=options.part_size << 20,
        overwrite=options.overwrite,
        left_out=[],
    )
    index = store.index
    rows = [(name, str(len(rows)), str(index.width), index.dtype) for name, rows in store.items()]
    titles = ("stream", "activations", "width", "stored as")
    of = several(len(pairs) - len(index.left_out), pairs.only or "pair")
    telling.table(Table(f"Activations at {index.site}", titles, rows, f"Of {of}."))
    told = {name: len(rows) for name, rows in store.items()}
    telling.figures("activations", {**told, "parts": len(index.parts)})
    telling.left_out(index.left_out, index.truncated)
    print()
    telling.wrote("activations", options.out, f"vlm-edit train --activations {options.out}")
    return 0
