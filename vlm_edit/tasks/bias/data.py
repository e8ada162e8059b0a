"""Data of people and birds as users have them on disk: FairFace, UTKFace, CelebA, Waterbirds.

Nothing is downloaded. Every reader gives ``Pairs`` with columns; the texts say only what all images
have in common.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName
from vlm_edit.measuring import IMAGE_ENDINGS, Pairs, read_pairs, size_of

PERSON, BIRD = "a photo of a person", "a photo of a bird"
_PARTS = ("train", "val", "test")
_GENDERS = ("male", "female")
_RACES = ("White", "Black", "Asian", "Indian", "Others")


def read_fairface(folder: str | os.PathLike[str], split: str = "val") -> Pairs:
    r"""Read FairFace (Karkkainen and Joo 2021): ``fairface_label_val.csv`` and images it names.

    Args:
        folder: With the CSV files and the folders ``train`` and ``val``.
        split: ``val`` or ``train``.

    Returns:
        Columns ``age``, ``gender``, ``race`` and whatever else the file has.

    Raises:
        VlmEditError: A file, a column or an image is missing.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     (folder / "val").mkdir()
        ...     Image.new("RGB", (8, 8)).save(folder / "val" / "1.jpg")
        ...     lines = "file,age,gender,race,service_test", "val/1.jpg,3-9,Male,East Asian,True"
        ...     _ = (folder / "fairface_label_val.csv").write_text("\n".join(lines))
        ...     read_fairface(folder).columns["race"]
        ('East Asian',)
    """
    _expect_split(split, ("val", "train"))
    path = Path(folder) / f"fairface_label_{split}.csv"
    rows = _table(path, ("file", "age", "gender", "race"))
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "file"}
    return _pairs(path, [path.parent / row["file"] for row in rows], columns, PERSON)


def read_utkface(folder: str | os.PathLike[str]) -> Pairs:
    """Read UTKFace (Zhang et al. 2017): images named ``age_gender_race_date.jpg``.

    A few files of the published archive lack a part of their name: they are left out, with a
    warning that names them.

    Args:
        folder: With the images.

    Returns:
        Columns ``age``, ``gender`` (male, female) and ``race``.

    Raises:
        VlmEditError: No image, or none with such a name.
    """
    path = Path(folder)
    images = _images(path)
    columns: dict[str, list[str]] = {"age": [], "gender": [], "race": []}
    paths, rejects = [], []
    for image in images:
        parts = image.name.split("_")
        try:
            age, gender, race = int(parts[0]), int(parts[1]), int(parts[2])
            values = {"age": str(age), "gender": _GENDERS[gender], "race": _RACES[race]}
        except (ValueError, IndexError):
            rejects.append(image.name)
            continue
        paths.append(image)
        for name, value in values.items():
            columns[name].append(value)
    if not paths:
        raise DamagedFile(
            f"{path}: no image is named age_gender_race_date.jpg, the first is {images[0].name}"
        )
    if rejects:
        warnings.warn(
            f"{path}: {len(rejects)} of {len(images)} images are left out, whose names do not say "
            f"age_gender_race_date: {', '.join(rejects[:5])}; rename them",
            stacklevel=2,
        )
    return _pairs(path, paths, columns, PERSON)


def read_celeba(folder: str | os.PathLike[str], split: str = "test") -> Pairs:
    """Read CelebA (Liu et al. 2015): ``list_attr_celeba``, ``list_eval_partition``, .txt or .csv.

    Args:
        folder: With the lists and ``img_align_celeba`` (or that folder in one of its name).
        split: ``train``, ``val`` or ``test`` of the partition; ``all`` needs none.

    Returns:
        A column for each attribute with ``yes`` and ``no``, and ``gender`` (male, female).

    Raises:
        VlmEditError: A list, an attribute's value or an image is missing, or no image is of the
            split.
    """
    _expect_split(split, (*_PARTS, "all"))
    path = Path(folder)
    names, rows = _listed(path, "list_attr_celeba")
    if split != "all":
        _, parts = _listed(path, "list_eval_partition")
        number = str(_PARTS.index(split))
        members = {row[0] for row in parts if row[1] == number}
        rows = [row for row in rows if row[0] in members]
        if not rows:
            raise BadArgument(f"{path}: no image of list_attr_celeba is of split {split!r}")
    kinds = {"1": "yes", "-1": "no", "0": "no"}
    columns: dict[str, list[str]] = {}
    for at, name in enumerate(names, start=1):
        try:
            columns[name] = [kinds[row[at]] for row in rows]
        except (KeyError, IndexError) as error:
            raise DamagedFile(
                f"{path}: list_attr_celeba has a row without 1 or -1 for {name!r}: get it anew"
            ) from error
    if "Male" in columns:
        columns["gender"] = ["male" if value == "yes" else "female" for value in columns["Male"]]
    inner = path / "img_align_celeba"
    inner = inner / "img_align_celeba" if (inner / "img_align_celeba").is_dir() else inner
    return _pairs(path, [inner / row[0] for row in rows], columns, PERSON)


def read_waterbirds(folder: str | os.PathLike[str], split: str = "test") -> Pairs:
    """Read Waterbirds (Sagawa et al. 2020): ``metadata.csv`` and the images it names.

    Args:
        folder: With both.
        split: ``train``, ``val``, ``test`` or ``all``.

    Returns:
        Columns ``bird`` (landbird, waterbird), ``place`` (land, water), and ``group`` of both.

    Raises:
        VlmEditError: A file, a column or an image is missing, or no image is of the split.
    """
    _expect_split(split, (*_PARTS, "all"))
    path = Path(folder) / "metadata.csv"
    rows = _table(path, ("img_filename", "y", "split", "place"))
    if split != "all":
        rows = [row for row in rows if row["split"] == str(_PARTS.index(split))]
    if not rows:
        raise BadArgument(f"{path}: no image is of split {split!r}")
    try:
        bird = [("landbird", "waterbird")[int(row["y"])] for row in rows]
        place = [("land", "water")[int(row["place"])] for row in rows]
    except (ValueError, IndexError) as error:
        raise BadArgument(f"{path}: y and place must be 0 or 1 in every row: {error}") from error
    group = [f"{b} on {p}" for b, p in zip(bird, place, strict=True)]
    images = [path.parent / row["img_filename"] for row in rows]
    return _pairs(path, images, {"bird": bird, "place": place, "group": group}, BIRD)


def read_any(
    path: str | os.PathLike[str], split: str | None = None, **columns: str | None
) -> Pairs:
    """Read a folder by its layout, or pairs as ``vlm_edit.read_pairs`` takes them.

    Args:
        path: A folder of one of the data sets, or pairs of one's own: a CSV file or a folder.
        split: For those that have one; by default the one that is tested on.
        columns: Of pairs of one's own, ``image`` and ``text``, as for ``vlm_edit.read_pairs``.

    Raises:
        VlmEditError: As the reader of that layout, or a split where there is none.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8)).save(pathlib.Path(folder, "26_1_3_20170117.jpg"))
        ...     read_any(folder).columns["gender"]
        ('female',)
    """
    folder = Path(path)
    readers: list[tuple[str, Callable[..., Pairs]]] = [
        ("fairface_label_*.csv", read_fairface),
        ("list_attr_celeba.*", read_celeba),
    ]
    options = {} if split is None else {"split": split}
    for pattern, reader in readers:
        if folder.is_dir() and any(folder.glob(pattern)):
            return reader(folder, **options)
    if folder.is_dir() and _is_waterbirds(folder / "metadata.csv"):
        return read_waterbirds(folder, **options)
    if split is not None:
        raise BadArgument(f"{folder} has no splits that are known: leave the split out")
    if folder.is_dir() and _is_utkface(folder):
        return read_utkface(folder)
    return read_pairs(path, **columns)


def _is_waterbirds(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return {"img_filename", "place"} <= set(file.readline().strip().split(","))


def _is_utkface(folder: Path) -> bool:
    names = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_ENDINGS]
    return bool(names) and all(
        len(p.name.split("_")) >= 3 and p.name[0].isdigit() and not p.with_suffix(".txt").is_file()
        for p in sorted(names)[:20]
    )


def _images(path: Path) -> list[Path]:
    if not path.is_dir():
        raise BadArgument(f"no folder at {str(path)!r}")
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    if not images:
        raise BadArgument(f"{str(path)!r} holds no images ({', '.join(IMAGE_ENDINGS)})")
    return images


def _table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Read rows of a CSV file with a header, complete."""
    if not path.is_file():
        raise BadArgument(f"{path} is missing: put the data set's own file there")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name for name in reader.fieldnames or () if name]
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedFile(f"{path} is not a readable UTF-8 CSV file: {error}") from error
    missing = [name for name in needed if name not in header]
    if missing:
        raise UnknownName(
            f"{path} has no column {missing[0]!r}: it has {', '.join(header) or 'none'}"
        )
    for line, row in enumerate(rows, start=2):
        if None in row or any(row[name] is None for name in header):
            raise DamagedFile(
                f"{path}: row {line} does not have {len(header)} fields: get the file anew"
            )
    if not rows:
        raise DamagedFile(f"{path} holds a header but no rows")
    return [{name: row[name] for name in header} for row in rows]


def _listed(folder: Path, name: str) -> tuple[list[str], list[list[str]]]:
    """Read headings and rows of a list of CelebA: .csv with a header, or .txt by spaces."""
    if (folder / f"{name}.csv").is_file():
        rows = _table(folder / f"{name}.csv", ())
        first, *rest = rows[0]
        return rest, [[row[first], *(row[column] for column in rest)] for row in rows]
    path = folder / f"{name}.txt"
    if not path.is_file():
        raise BadArgument(f"{path} is missing, and so is {name}.csv: put the data set's list there")
    lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if lines and len(lines[0]) == 1 and lines[0][0].isdigit():
        headings, lines = lines[1], lines[2:]
    else:
        headings = []
    if not lines:
        raise DamagedFile(f"{path} names no image: get it anew")
    return headings, lines


def _pairs(source: Path, images: Sequence[Path], columns: dict[str, list[str]], text: str) -> Pairs:
    missing = [image for image in images if size_of(image) is None]
    if missing:
        raise BadArgument(
            f"{source}: {len(missing)} of {len(images)} images are not there, the first is "
            f"{missing[0]}: unpack the data set beside its lists"
        )
    cells = {name: tuple(values) for name, values in columns.items()}
    return Pairs(list(images), (text,) * len(images), cells, str(source))


def _expect_split(split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise BadArgument(f"split is {split!r}: use one of {', '.join(known)}")
