"""Declare what ``vlm-edit app`` takes, as ``arguments`` does for the other verbs."""

# Annotations must be objects here too.

from dataclasses import dataclass
from typing import Annotated

from vlm_edit.cli.arguments import DICTIONARY, SAVED, Model, Verified
from vlm_edit.cli.loading import Asking
from vlm_edit.cli.shared import Columns, Count, LeftOpen, Text, option


@dataclass(frozen=True, kw_only=True)
class App(Verified, Asking, Columns, LeftOpen):
    """Turn features on a page, and watch what changes."""

    model: Model
    dictionary: Annotated[str, DICTIONARY]
    site: Annotated[Text, option("where (the dictionary's own, else joint)")] = None
    run: Annotated[Text, option("of measure: classes, and what features fire for")] = None
    pairs: Annotated[
        Text,
        option(
            "example pictures; without --run their first are measured for the classes (the run's, "
            "or those of the zoo for its models)"
        ),
    ] = None
    measured: Annotated[int, option("so many pairs, at most, without --run; 0 for none")] = 256
    patch: Annotated[Text, option(f"to begin with: {SAVED}", metavar="PATCH")] = None
    max_new_tokens: Annotated[int, option("of an answer, as the page begins")] = 64
    port: Annotated[Count, option("where it is served (the first free one from 7860)")] = None
    host: Annotated[
        str, option("address to listen at; by another than this one, others reach the page")
    ] = "127.0.0.1"
    share: Annotated[
        bool, option("ask gradio for a public link too, by which anybody reaches it", "--share")
    ] = False
