"""The codes of single tokens: what fires where in a picture, and under which word of a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import Encodes
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.notebook import one_line, several
from vlm_edit.host import Host, Model
from vlm_edit.measuring.pairs import Pairs
from vlm_edit.measuring.reader import Reader
from vlm_edit.measuring.reading import Coded

# What tokenizers put in the place of a blank before a word.
_BLANKS = ("\u2581", "\u0120")
_ENDS = "</w>"


@dataclass(frozen=True, eq=False, repr=False)
class TokenCodes:
    """Hold the codes of one pair's tokens at a site.

    Attributes:
        number: The pair's.
        codes: [t, m] per stream of the site, a row a token, in the order of the sequence.
        words: Of the text tokens, with the blank before them; empty where nobody can tell.
        size: Width and height of the image as the processor was given it, in pixels.
    """

    number: int
    codes: Mapping[str, SparseCodes]
    words: Sequence[str]
    size: tuple[int, int]

    def of(self, feature: int) -> dict[str, Tensor]:
        """Return a feature's activations at the tokens of each stream, [t] float32.

        Args:
            feature: Its number.
        """
        return {stream: column(codes, feature) for stream, codes in self.codes.items()}

    def __repr__(self) -> str:
        """Say on a line how many tokens it has."""
        sizes = ", ".join(several(len(c), f"{stream} token") for stream, c in self.codes.items())
        return one_line(f"TokenCodes(pair {self.number}: {sizes})")


def token_codes(
    host: Host | Model,
    pairs: Pairs | Iterable[Any],
    dictionary: Encodes,
    site: str,
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> Iterator[TokenCodes]:
    """Yield the codes of every token of some pairs, pair by pair.

    At a site where one vector stands for a picture, such as ``joint``, a pair has one row a stream.

    Args:
        host: In eval mode, with its processor.
        pairs: Image-text pairs, or what ``Pairs.of`` takes; those whose image cannot be read are
            left out.
        dictionary: Of the site's width.
        site: Any site, also one of a single stream, such as ``vision.3`` or ``language.16``.
        batch_size: Pairs per forward.
        progress: Whether to show a bar.

    Raises:
        VlmEditError: An unknown site, another width than the dictionary's, not one image that can
            be read, or tokens of which nobody can tell whose they are.

    Example:
        >>> from vlm_edit import Dictionary, Host, zoo
        >>> from vlm_edit.measuring import token_codes
        >>> host = Host.of(*zoo.load_host())
        >>> neurons = Dictionary.identity(host.site("text.2").width)
        >>> (pair,) = token_codes(host, zoo.load_pairs().select([0]), neurons, "text.2")
        >>> len(pair.words) == len(pair.codes["text"])
        True
    """
    host = Host.of(host)
    reader = Reader(host, dictionary, site, batch_size, progress, verb="map")
    for forward, coded in reader.coded(Pairs.of(pairs)):
        for row, item in enumerate(forward.items):
            mine = {stream: _of_row(one, row) for stream, one in coded.items()}
            ids = next((one.ids for one in mine.values() if one.ids is not None), None)
            words = [] if ids is None else words_of(host, site, ids.tolist())
            codes = {stream: one.codes for stream, one in mine.items()}
            yield TokenCodes(item.number, codes, words, forward.sizes[row])


def column(codes: SparseCodes, feature: int) -> Tensor:
    """Return the codes of one feature, [n] float32.

    Args:
        codes: [n, m].
        feature: Its number.
    """
    values = torch.zeros(len(codes))
    mine = codes.features == feature
    values[codes.rows[mine]] = codes.values[mine].float()
    return values


def words_of(host: Host, site: str, ids: Sequence[int]) -> list[str]:
    """Return what tokens say, each by itself, with the blank before it; empty without a tokenizer.

    Args:
        host: Whose processor has the tokenizer.
        site: Where the tokens pass.
        ids: Of the tokens.
    """
    tokenizer = host.tokenizer(site)
    if tokenizer is None:
        return []
    raw = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    return [_word(tokenizer, number, token) for number, token in zip(ids, raw, strict=True)]


def _word(tokenizer: Any, number: int, token: str) -> str:
    word = str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
    if token.startswith(_BLANKS):
        return f" {word.lstrip(' ')}"
    return f"{word.rstrip(' ')} " if token.endswith(_ENDS) else word


def _of_row(coded: Coded, row: int) -> Coded:
    """Return one pair's tokens."""
    mine = (coded.whose == row).nonzero().flatten()
    ids = None if coded.ids is None else coded.ids[mine]
    return Coded(coded.codes.pick(mine), coded.whose[mine], ids)
