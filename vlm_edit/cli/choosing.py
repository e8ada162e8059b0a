"""Features of a class, as commands choose them."""

from __future__ import annotations

import warnings
from typing import Any, cast

from vlm_edit.cli.arguments import Cut
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.dominance import Dominance
from vlm_edit.selection import Chosen, FewFeatures, by_class


def choose(dominance: Dominance, name: str, cuts: Cut, most: int | None) -> Chosen:
    """Select the features of a class, in the words of a command.

    Args:
        dominance: Measured.
        name: The class.
        cuts: The rule.
        most: How many, the surest; None for those that have the label.

    Raises:
        VlmEditError: There is none.
    """
    chosen = surest(dominance, name, most, cuts)
    if chosen:
        return chosen
    near = len(dominance.classes("fixed").get(name, ()))
    mend = (
        f"{near} have such a score: --most {min(near, 20)} takes the surest of them"
        if near and most is None and cuts == "interval"
        else "try other --cuts, or measure more pairs"
    )
    raise VlmEditError(f"no feature is {name} by --cuts {cuts}: {mend}")


def surest(dominance: Dominance, name: str, most: int | None, cuts: Cut = "interval") -> Chosen:
    """Select features of a class without a warning where they are few: commands say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewFeatures)
        return by_class(dominance, cast("Any", name), cuts, n=most)


def said(chosen: Chosen) -> str:
    """Say in a table's cell how many there are, and how many are proven if not all."""
    number = f"{len(chosen)}"
    return number if chosen.proven == len(chosen) else f"{number}, {chosen.proven} proven"
