"""Binding: a splice at a site."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlm_edit.edits import Splice, Tokens
from vlm_edit.edits.splice import expect_tokens
from vlm_edit.hooks import Where


@dataclass(frozen=True, eq=False)
class Binding:
    """A splice at a site.

    Attributes:
        site: The site's name.
        splice: What is done there.
        tokens: Which stream's tokens it is done to: ``all``, ``image`` or ``text``.
    """

    site: str
    splice: Splice
    tokens: Tokens = "all"

    def __post_init__(self) -> None:
        """Check the choice of tokens."""
        expect_tokens(self.tokens)

    def __call__(self, hidden: Tensor, where: Where) -> Tensor:
        """The output of one of the site's modules, edited."""
        mask = where.select(self.tokens, hidden)
        return self.splice(hidden, mask, where.stream, where.image_at(hidden))
