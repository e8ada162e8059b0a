"""Declare what ``vlm-edit ask`` takes, as ``arguments`` does for the other verbs."""

# Annotations must be objects here too.

from dataclasses import dataclass
from typing import Annotated

from vlm_edit.cli.arguments import SAVED, Model, Onto, positional, several
from vlm_edit.cli.loading import Asking
from vlm_edit.cli.shared import Count, Number, option


@dataclass(frozen=True, kw_only=True)
class Ask(Onto, Asking):
    """Ask a model about an image, before and after patches."""

    model: Model
    image: Annotated[str, positional("IMAGE", "an image file")]
    question: Annotated[str, positional("QUESTION", "as a person asks it")]
    patch: Annotated[
        list[str], several(f"{SAVED}: all of them act, in this order", metavar="PATCH")
    ]
    strength: Annotated[
        list[float], several("of the patches: one for all, or one for each (1)", metavar="S")
    ]
    max_new_tokens: Annotated[int, option("of an answer, at most")] = 64
    temperature: Annotated[
        Number, option("draw each word at it (greedy: the likeliest word, always)", metavar="T")
    ] = None
    seed: Annotated[
        Count, option("of what is drawn, the same before and after (0)", metavar="N")
    ] = None
