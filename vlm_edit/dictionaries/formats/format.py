"""What a format is: how it is recognised, what it may be told, how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from vlm_edit.dictionaries.activations import activation_kind
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.dictionaries.norms import norm_of
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.dictionaries.transcoder import Transcoder
from vlm_edit.ground.errors import BadArgument, DamagedFile, VlmEditError

Order = Literal["dm", "md"]
Stored = StoredDictionary | PairedDictionary[StoredDictionary] | Transcoder[StoredDictionary]


@dataclass(frozen=True)
class Layout:
    """Where a plain state dict keeps what, for a format that nobody else knows.

    A name may go through nested dicts, with dots: ``model_state.encoder.weight``.

    Attributes:
        encoder: Name of the encoder's matrix.
        decoder: Name of the decoder's; None if tied to the encoder.
        encoder_order: ``dm`` for [d, m], ``md`` for [m, d] as in ``nn.Linear(d, m)``. Never
            inferred: d may equal m.
        decoder_order: ``md`` for [m, d], ``dm`` for [d, m] as in ``nn.Linear(m, d)``.
        encoder_bias: Name of [m]; None for zeros.
        decoder_bias: Name of [d]; None for zeros.
        subtract_decoder_bias: Whether it is subtracted before the encoder.
        activation: As in ``Encoder``; its k is given to ``load_dictionary``.
        norm: As in ``Encoder``.
        threshold: Name of [m] or of one number, for ``jumprelu``.
        gate_bias: Name of [m], for a gated encoder with activation relu: its code is
            ``relu(x @ (encoder * exp(gate_gain)) + encoder_bias)`` where
            ``x @ encoder + gate_bias`` is above 0.
        gate_gain: Name of [m], with ``gate_bias``; None for zeros.
        soft_cap: As in ``Encoder``.
        unit_decoder_rows: Whether the decoder's rows are brought to length 1.
        unread: Names of further tensors that do not change codes, with ``*`` for any letters.

    Raises:
        VlmEditError: Options that do not go together.

    Example:
        >>> Layout(
        ...     encoder="encoder.weight",
        ...     decoder="decoder.weight",
        ...     encoder_order="md",
        ...     decoder_order="dm",
        ...     encoder_bias="encoder.bias",
        ...     decoder_bias=None,
        ...     subtract_decoder_bias=False,
        ...     activation="relu",
        ... ).names()
        {'encoder': 'encoder.weight', 'decoder': 'decoder.weight', 'encoder_bias': 'encoder.bias'}
    """

    encoder: str
    decoder: str | None
    encoder_order: Order
    decoder_order: Order
    encoder_bias: str | None
    decoder_bias: str | None
    subtract_decoder_bias: bool
    activation: str
    norm: str = "none"
    threshold: str | None = None
    gate_bias: str | None = None
    gate_gain: str | None = None
    soft_cap: float | None = None
    unit_decoder_rows: bool = False
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what goes together; the file is not needed for it."""
        for name in ("encoder_order", "decoder_order"):
            if getattr(self, name) not in get_args(Order):
                raise DamagedFile(
                    f"{name} is {getattr(self, name)!r}: say 'dm' for [d, m] or 'md' for [m, d]"
                )
        activation_kind(self.activation)
        norm_of(self.norm)
        if self.subtract_decoder_bias and self.decoder_bias is None:
            raise BadArgument("subtract_decoder_bias needs the name of the decoder_bias")
        if self.gate_gain is not None and self.gate_bias is None:
            raise BadArgument("gate_gain needs gate_bias: a gated encoder has both")
        if self.gate_bias is not None and self.activation != "relu":
            raise BadArgument(f"a gated encoder has activation 'relu', not {self.activation!r}")
        if self.decoder is None and self.decoder_order != "md":
            raise BadArgument("a decoder tied to the encoder has decoder_order 'md'")

    def names(self) -> dict[str, str]:
        """Return the names of tensors, by field."""
        fields_of_names = ("encoder", "decoder", "encoder_bias", "decoder_bias", "threshold")
        values = {n: getattr(self, n) for n in (*fields_of_names, "gate_bias", "gate_gain")}
        return {field: name for field, name in values.items() if name is not None}


@dataclass(frozen=True)
class Hints:
    """What the user says that a file does not: see ``load_dictionary``."""

    k: int | None = None
    activation: str | None = None
    threshold: float | None = None
    layout: Layout | None = None

    def given(self) -> dict[str, Any]:
        """Return what is not None, by name."""
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
        takes: Names of what it may be told, of ``Hints``.
    """

    name: str
    files: str
    recognises: Callable[[Source], bool]
    read: Callable[[Source, Hints], Stored]
    takes: frozenset[str] = frozenset()

    def open(self, source: Source, hints: Hints) -> Stored:
        """Read a source; refuse to be told what the format does not ask.

        Raises:
            VlmEditError: As ``read``; the message begins with the path.
        """
        unasked = sorted(set(hints.given()) - self.takes)
        if unasked:
            raise BadArgument(
                f"{source.path}: the format {self.name} keeps {', '.join(unasked)} itself or has "
                "none: leave it out"
            )
        try:
            return self.read(source, hints)
        except VlmEditError as error:
            if str(source.path) in str(error):
                raise
            raise type(error)(f"{source.path}: {error}") from error
