"""Declare what ``vlm-edit name`` takes; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated

from vlm_edit.cli.arguments import Batch, Seed, positional
from vlm_edit.cli.loading import Asking
from vlm_edit.cli.shared import Columns, LeftOpen, Tells, Text, Writes, option


@dataclass(frozen=True, kw_only=True)
class Name(Asking, Writes, Columns, Tells, LeftOpen):
    """Name a run's features by words, scored on other pairs."""

    run: Annotated[str, positional("RUN", "folder that measure wrote, whose page shows the names")]
    model: Annotated[Text, option("the run's model, if it has moved or the run does not say")] = (
        None
    )
    dictionary: Annotated[
        Text, option("the run's, as for measure; not needed for the zoo's and for neurons")
    ] = None
    pairs: Annotated[Text, option("the run's pairs, if they have moved")] = None
    features: Annotated[Text, option("numbers, such as 3,17,40 (all that are not dead)")] = None
    vocabulary: Annotated[
        Text, option("words to name by, a line each (those of the captions)", metavar="FILE")
    ] = None
    template: Annotated[str, option("what a word is put into to be embedded")] = "{}"
    tried: Annotated[int, option("words of a feature's direction to choose among")] = 3
    most: Annotated[int, option("pairs to read, drawn")] = 2048
    alpha: Annotated[float, option("rate of false discoveries among names that hold")] = 0.05
    near: Annotated[int, option("neighbours of each feature")] = 5
    shown: Annotated[int, option("features to print, best names first")] = 25
    seed: Seed = 0
    batch_size: Batch = 64
