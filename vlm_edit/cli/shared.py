"""Declare what verbs of several kinds take; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Any

from typer import Option

Text = str | None  # these three need not be given
Count = int | None
Number = float | None


def option(help: str, *names: str, **more: Any) -> Any:
    """Return an option with its help, named as its field unless names are given."""
    return Option(*names, help=help, **more)


@dataclass(frozen=True, kw_only=True)
class Tells:
    """Say how results are told."""

    json: Annotated[bool, option("print one JSON object, and nothing else", "--json")] = False
    quiet: Annotated[bool, option("no progress, nor what was loaded", "--quiet")] = False
    tables: Annotated[
        Text, option("write each printed table here, as CSV and as LaTeX", metavar="FOLDER")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Writes:
    """Say whether what is there may be replaced."""

    overwrite: Annotated[
        bool, option("replace what is there, once the new is whole", "--overwrite")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Name the columns of pairs, where they are called otherwise than usual."""

    image_column: Annotated[Text, option("of image paths (image, file_name, path...)")] = None
    text_column: Annotated[Text, option("of texts (text, caption, title)")] = None

    def columns(self) -> dict[str, str | None]:
        """Return what is said of them, as ``read_pairs`` takes it."""
        return {"image": self.image_column, "text": self.text_column}


def _left_open(metavar: str | None, help: str, *names: str) -> Any:
    panel = "Of the dictionary, where its files leave it open"
    return option(help, *names, metavar=metavar, rich_help_panel=panel)


@dataclass(frozen=True, kw_only=True)
class LeftOpen:
    """Say of a dictionary what its files leave open."""

    dictionary_file: Annotated[Text, _left_open("FILE", "folder or file inside it")] = None
    dictionary_format: Annotated[Text, _left_open("NAME", "its format (by content)")] = None
    dictionary_revision: Annotated[Text, _left_open("REV", "branch, tag or commit")] = None
    dictionary_k: Annotated[Count, _left_open("K", "active features")] = None
    dictionary_threshold: Annotated[Number, _left_open("T", "of codes")] = None
    dictionary_activation: Annotated[Text, _left_open("NAME", "such as topk or relu")] = None

    any_origin: Annotated[
        bool,
        _left_open(None, "take it wherever its files say it was trained", "--any-origin"),
    ] = False

    def left_open(self) -> dict[str, Any]:
        """Return what is said of the dictionary beside its name."""
        return {
            name.removeprefix("dictionary_"): value
            for name, value in vars(self).items()
            if name.startswith("dictionary_") and value is not None
        }
