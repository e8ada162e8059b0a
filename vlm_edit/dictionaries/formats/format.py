"""What a format is: how it is recognised, what it may be told, how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from vlm_edit.dictionaries.encoder import Activation, Norm
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.errors import VlmEditError

Order = Literal["dm", "md"]


@dataclass(frozen=True)
class Layout:
    """Where a plain state dict keeps what, for a format that nobody else knows.

    Attributes:
        encoder: Name of the encoder's matrix.
        decoder: Name of the decoder's; None if tied to the encoder.
        encoder_order: ``dm`` for [d, m], ``md`` for [m, d] as in ``nn.Linear(d, m)``. Never
            inferred: d may equal m.
        decoder_order: ``md`` for [m, d], ``dm`` for [d, m] as in ``nn.Linear(m, d)``.
        encoder_bias: Name of [m]; None for zeros.
        decoder_bias: Name of [d]; None for zeros.
        threshold: Name of [m] or of one number, for ``jumprelu``.
        subtract_decoder_bias: Whether it is subtracted before the encoder.
        activation: As in ``Encoder``.
        norm: As in ``Encoder``.
    """

    encoder: str
    decoder: str | None
    encoder_order: Order
    decoder_order: Order
    encoder_bias: str | None
    decoder_bias: str | None
    subtract_decoder_bias: bool
    activation: Activation
    norm: Norm = "none"
    threshold: str | None = None


@dataclass(frozen=True)
class Told:
    """What the user says that a file does not: see ``load_dictionary``."""

    k: int | None = None
    activation: Activation | None = None
    threshold: float | None = None
    layout: Layout | None = None

    def given(self) -> dict[str, Any]:
        """What is not None."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Format:
    """One way dictionaries lie on disk.

    Attributes:
        name: As users name it.
        files: What lies there, for messages.
        recognises: Whether a source is in this format, by its content; never raises.
        read: Reads it, or raises a VlmEditError.
        takes: Names of what it may be told, of ``Told``.
    """

    name: str
    files: str
    recognises: Callable[[Source], bool]
    read: Callable[[Source, Told], StoredDictionary]
    takes: frozenset[str] = frozenset()

    def open(self, source: Source, told: Told) -> StoredDictionary:
        """Read a source, refusing to be told what the format does not ask.

        Raises:
            VlmEditError: As ``read``; the message begins with the path.
        """
        unasked = sorted(set(told.given()) - self.takes)
        if unasked:
            raise VlmEditError(
                f"{source.path}: the format {self.name} keeps {', '.join(unasked)} itself or has "
                "none: leave it out"
            )
        try:
            return self.read(source, told)
        except VlmEditError as error:
            if str(source.path) in str(error):
                raise
            raise VlmEditError(f"{source.path}: {error}") from error
