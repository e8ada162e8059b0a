"""``vlm-edit census``: features by class, of the data and of nulls."""

from __future__ import annotations

from pathlib import Path

from vlm_edit.cli import kept, telling
from vlm_edit.cli.arguments import Census
from vlm_edit.cli.subject import Subject
from vlm_edit.cli.writing import expect_free
from vlm_edit.ground.errors import UnknownName
from vlm_edit.measures.nulls import ROWS
from vlm_edit.measuring import census as count
from vlm_edit.report import census_table, halves_table


def census(options: Census) -> int:
    """Print a census, and keep it with a run."""
    unknown = [name for name in options.skip if name not in ROWS]
    if unknown:
        raise UnknownName(f"no row {unknown[0]!r} of a census to skip: there are {', '.join(ROWS)}")
    if options.run is not None:
        mend = "leave --run out"
        expect_free([Path(options.run) / kept.CENSUS], options.overwrite, mend)
    subject = Subject.load(options)
    dictionary = subject.expect_dictionary()
    checksum = None if options.run is None else subject.load_run(options.run).checksum()
    skipped: list[tuple[int, str]] = []
    rows = count(
        *(subject.host, subject.pairs, dictionary, subject.site),
        rows=[name for name in ROWS if name not in options.skip],
        rule=options.cuts,
        factor=options.factor,
        deleted=options.deleted,
        steps=options.steps,
        draws=options.halves,
        seed=options.seed,
        batch_size=subject.batch_size,
        left_out=skipped,
    )
    again = [] if rows.halves is None else [halves_table(rows.halves)]
    telling.table(census_table(rows), *again)
    telling.left_out(skipped, 0)
    telling.figures("census", rows.as_json())
    if options.run is not None and checksum is not None:
        telling.wrote("census", kept.save_census(Path(options.run), rows, checksum))
    return 0
