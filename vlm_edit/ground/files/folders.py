"""Files and folders of one folder that change together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlm_edit.ground.files.whole import beside, make_folder


@contextmanager
def replacing(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Lend a folder to write to; what is in it at the end takes the place of what was there.

    Where the block fails, all is as it was.

    Args:
        folder: Where files and folders go in the end; what else is there stays.
        names: All that the verb may write there: those that it did not are deleted last.
    """
    make_folder(folder)
    with beside(folder / "new") as partial:
        yield make_folder(partial)
        made = sorted(partial.iterdir())
        for new in made:
            with beside(folder / new.name) as old:
                place = folder / new.name
                if place.is_dir():
                    place.rename(old)
                new.replace(place)
        for name in {*names} - {new.name for new in made}:
            with beside(folder / name) as old, suppress(FileNotFoundError):
                (folder / name).rename(old)
