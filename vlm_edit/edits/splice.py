"""The one splice: bring rules on codes into a hidden state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, Slice, StoredDictionary, expect_features, move
from vlm_edit.edits.gate import Gate
from vlm_edit.edits.moves import Move
from vlm_edit.edits.rule import Rule
from vlm_edit.edits.rules import Ablate, Blend, Cap, Clamp, Keep, Scale, Steer
from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.modality import Modality

# Rules that do to each feature what its own code says; one of a user's own may do anything.
_EACH_ALONE = (Ablate, Scale, Clamp, Steer, Keep, Cap, Blend)


@dataclass(frozen=True, eq=False)
class Splice:
    """The edit ``hidden' = hidden + mask * (rules(code) - code) @ decoder[touched]``.

    The decoder's bias cancels and the reconstruction error stays. Encode once, apply every rule
    on the code in order, splice once, out of place and differentiable. Rules on the hidden state
    (``Move``) see it as the rules before left it. The arithmetic is float32 and autocast is off;
    the host's dtype stays. Tokens outside the mask keep their bits. Where no rule looks at the
    code nothing is encoded; where all of them steer, the change is one vector.

    Attributes:
        slice: What the touched features need of the dictionary.
        rules: At least one.
        gate: Tokens of which the dictionary explains too little are left alone; None for none.

    Example:
        >>> import torch
        >>> from vlm_edit import Ablate, Dictionary
        >>> splice = Splice.of(Dictionary.identity(3), [Ablate([1])])
        >>> splice(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 0., 3.]])
    """

    slice: Slice
    rules: tuple[Rule, ...]
    gate: Gate | None = None
    _acting: tuple[Rule, ...] = field(init=False, repr=False)
    _steps: tuple[Callable[[Tensor], Tensor], ...] = field(init=False, repr=False)
    _columns: tuple[Tensor | None, ...] = field(init=False, repr=False)
    _prepared: tuple[Tensor | None, ...] = field(init=False, repr=False)
    _shift: Tensor | None = field(init=False, repr=False)
    _reads: bool = field(init=False, repr=False)
    _simple: bool = field(init=False, repr=False)
    _devices: dict[torch.device, _Placed] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find where each rule's features stand among the touched ones, and what moves need."""
        if not self.rules:
            raise BadArgument("an edit needs at least one rule, such as Ablate([3])")
        part = self.slice
        _expect_finite(part, self.gate)
        acting = tuple(rule.acting() for rule in self.rules)
        touched = [tuple(rule.touches(part.n_features)) for rule in acting]
        columns = tuple(_columns(part.features, features) for features in touched)
        prepared = tuple(
            rule.prepare(part.decoder if index is None else part.decoder[index])
            if isinstance(rule, Move)
            else None
            for rule, index in zip(acting, columns, strict=True)
        )
        state: dict[str, object] = {
            "_acting": acting,
            "_steps": tuple(rule.step for rule in acting),
            "_columns": columns,
            "_prepared": prepared,
            "_shift": None if self.gate else _shift(part, acting, columns),
            "_reads": self.gate is not None or any(rule.reads for rule in acting),
            "_simple": self.gate is None and not any(isinstance(rule, Move) for rule in acting),
            "_devices": {},
        }
        for name, value in state.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        dictionary: Dictionary | StoredDictionary,
        rules: Sequence[Rule],
        gate: float | None = None,
    ) -> Splice:
        """Make the splice of rules on a dictionary's features.

        Args:
            dictionary: Its own.
            rules: Applied in order.
            gate: Share of a token that the dictionary must explain; None for no gate. With one
                everything is encoded and decoded, and kept.

        Raises:
            VlmEditError: No rule, or a feature that the dictionary does not have.
        """
        touched = touched_by(dictionary, rules)
        if gate is None:
            return cls(dictionary.slice(touched, codes=reads_codes(rules)), tuple(rules))
        whole = dictionary if isinstance(dictionary, Dictionary) else dictionary.load()
        rows, m = whole.decoder[touched], dictionary.n_features
        part = Slice(tuple(touched), whole.encoder, rows, m, torch.tensor(touched))
        return cls(part, tuple(rules), Gate(gate, whole.decoder, whole.decoder_bias))

    def __call__(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        stream: Modality | None = None,
        strength: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden state with the rules applied.

        Args:
            hidden: [..., D], any float dtype.
            mask: [...] bool, tokens to edit; None for all.
            stream: For dictionaries that centre each stream apart: ``image``, ``text`` or
                ``Mixed`` of [...].
            strength: Multiplies the change; broadcasts against [...]. None for 1.
            source: [..., width of the encoder], what is encoded where that is not the hidden
                state itself, as a transcoder reads another place than it writes.

        Returns:
            A new tensor of the same shape and dtype.
        """
        placed = self._devices.get(hidden.device) or self._on(hidden.device)
        if placed.shift is not None and hidden.shape[-1] == placed.width:
            shift = placed.shift
            edited = hidden + (shift if strength is None else _times(shift, strength))
        elif torch.is_autocast_enabled(hidden.device.type):
            with torch.autocast(hidden.device.type, enabled=False):
                edited = self._edited(placed, hidden, stream, strength, source)
        else:
            edited = self._edited(placed, hidden, stream, strength, source)
        if edited.dtype != hidden.dtype:  # the sum is float32 or wider
            edited = edited.to(hidden.dtype)
        return edited if mask is None else torch.where(mask.unsqueeze(-1), edited, hidden)

    def _edited(
        self,
        placed: _Placed,
        hidden: Tensor,
        stream: Modality | None,
        strength: Tensor | None,
        source: Tensor | None,
    ) -> Tensor:
        """Return the hidden state with the rules applied, in float32 or wider."""
        if not self._simple:
            return hidden + _times(self._change(placed, hidden, stream, source), strength)
        before, scale = placed.codes(hidden if source is None else source, stream)
        code = before
        for step, index in zip(self._steps, placed.columns, strict=True):
            code = step(code) if index is None else _ruled(step, code, index)
        change = code - before
        change = change if scale is None else change * scale
        return _spliced(hidden, _times(change, strength), placed.slice.decoder)

    def _change(
        self, placed: _Placed, hidden: Tensor, stream: Modality | None, source: Tensor | None
    ) -> Tensor:
        """Return what the rules add to each token, [..., D]."""
        part, code, scale, opens = placed.slice, None, None, None
        if placed.gate is not None:
            code, scale, opens = _gated(part, placed.gate, hidden, stream)
        elif self._reads:
            code, scale = part.codes(hidden if source is None else source, stream)
        else:
            part.encoder.expect_width(hidden)
        done, change = code, None
        for rule, index, prepared in zip(
            self._acting, placed.columns, placed.prepared, strict=True
        ):
            if isinstance(rule, Move):
                own = code if index is None or code is None else code[..., index]
                change = _plus(change, _decoded(part, code, done, scale))
                done = code
                here = hidden.float() if change is None else hidden.float() + change
                assert prepared is not None
                change = _plus(change, rule.strength * rule.move(here, own, prepared))
            else:
                assert code is not None
                code = _ruled(rule, code, index)
        change = _plus(change, _decoded(part, code, done, scale))
        assert change is not None
        return change if opens is None else torch.where(opens, change, 0.0)

    def place(self, device: torch.device) -> None:
        """Put what the edit needs on a device now, not at the first output there.

        Compiled code needs it: it could not tell a tensor made under ``inference_mode``.
        """
        self._on(device)

    def _on(self, device: torch.device) -> _Placed:
        if device not in self._devices:
            # A tensor made under inference_mode could not serve a later forward with gradients.
            with torch.inference_mode(False):
                part = self.slice.to(device)
                self._devices[device] = _Placed(
                    part,
                    part.encode,
                    tuple(None if c is None else move(c, device) for c in self._columns),
                    tuple(None if p is None else move(p, device) for p in self._prepared),
                    None if self._shift is None else move(self._shift, device),
                    None if self.gate is None else self.gate.to(device),
                    self.slice.decoder.shape[1],
                )
        return self._devices[device]


class _Placed(NamedTuple):
    """What an edit needs, on a device."""

    slice: Slice
    codes: Callable[[Tensor, Modality | None], tuple[Tensor, Tensor | None]]
    columns: tuple[Tensor | None, ...]
    prepared: tuple[Tensor | None, ...]
    shift: Tensor | None
    gate: Gate | None
    width: int


def touched_by(dictionary: Dictionary | StoredDictionary, rules: Sequence[Rule]) -> list[int]:
    """Return the features that rules touch, in order.

    Raises:
        VlmEditError: None, or a feature that the dictionary does not have.
    """
    m = dictionary.n_features
    expect_features([f for rule in rules for f in rule.features], m)
    touched = sorted({f for rule in rules for f in rule.acting().touches(m)})
    if not touched and rules:
        raise BadArgument(f"Keep names all {m} features: the edit would change nothing")
    return touched


def reads_codes(rules: Sequence[Rule]) -> bool:
    """Say whether a change depends on the code; a rule of a user's own may do anything."""
    acting = [rule.acting() for rule in rules]
    return any(rule.reads and type(rule) is not Steer for rule in acting)


def mixes_features(rules: Sequence[Rule]) -> bool:
    """Say whether what becomes of a feature may depend on the codes of others."""
    acting = [rule.acting() for rule in rules]
    return any(rule.reads and type(rule) not in _EACH_ALONE for rule in acting)


def _gated(
    part: Slice, gate: Gate, hidden: Tensor, stream: Modality | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return codes of the touched features, the norm's scale, and where the gate opens."""
    codes, scale = part.encoder(hidden, stream)
    x = part.encoder.normaliser.target(hidden.float())
    if part.encoder.centers:
        x = x - part.encoder.center(stream)
    assert part.columns is not None
    return codes[..., part.columns], scale, gate.opens(x, codes)


def _ruled(rule: Callable[[Tensor], Tensor], code: Tensor, index: Tensor | None) -> Tensor:
    """Return the touched features' code [..., t] after a rule on those at the index, or on all."""
    if index is None:
        return rule(code)
    return code.index_copy(-1, index, rule(code[..., index]))


def _decoded(
    part: Slice, code: Tensor | None, before: Tensor | None, scale: Tensor | None
) -> Tensor | None:
    """Return what a change of codes adds to the hidden state; None where there is no change."""
    if code is None or before is None or code is before:
        return None
    change = (code - before) @ part.decoder
    return change if scale is None else change * scale


def _spliced(hidden: Tensor, change: Tensor, decoder: Tensor) -> Tensor:
    """Add ``change @ decoder`` without a tensor in between, which would cost as much again."""
    if hidden.dtype == torch.float64:
        return hidden + change @ decoder
    if len(decoder) == 1:
        return torch.addcmul(hidden.float(), change, decoder)
    rows, changes = hidden.reshape(-1, hidden.shape[-1]), change.reshape(-1, change.shape[-1])
    return torch.addmm(rows.float(), changes, decoder).view(hidden.shape)


def _times(change: Tensor, strength: Tensor | None) -> Tensor:
    return change if strength is None else change * strength.unsqueeze(-1)


def _plus(moved: Tensor | None, change: Tensor | None) -> Tensor | None:
    return change if moved is None else (moved if change is None else moved + change)


def _expect_finite(part: Slice, gate: Gate | None) -> None:
    """Refuse weights that would turn the host's outputs to NaN in silence."""
    encoder = part.encoder
    weights = {
        "encoder weight": encoder.weight,
        "encoder bias": encoder.bias,
        "decoder": part.decoder,
        "threshold": encoder.threshold,
        "subtract": encoder.subtract,
    } | {f"center of the {stream} stream": center for stream, center in encoder.centers.items()}
    if gate is not None:
        weights |= {"gate's decoder": gate.decoder, "gate's bias": gate.bias}
    for name, tensor in weights.items():
        if tensor is None or not tensor.numel():
            continue
        if not bool(torch.stack(tensor.detach().aminmax()).isfinite().all()):  # no copy of it
            raise DamagedFile(
                f"the {name} of features {_first(part.features)} holds NaN or infinity: fetch the "
                "dictionary or the patch anew, or train it again"
            )


def _first(features: Sequence[int]) -> str:
    return ", ".join(map(str, features[:3])) + (", ..." if len(features) > 3 else "")


def _columns(touched: tuple[int, ...], features: tuple[int, ...]) -> Tensor | None:
    """Return where a rule's features stand among the touched; None for all of them in order."""
    if features == touched:
        return None
    position = {feature: i for i, feature in enumerate(touched)}
    return torch.tensor([position[feature] for feature in features])


def _shift(part: Slice, rules: Sequence[Rule], columns: Sequence[Tensor | None]) -> Tensor | None:
    """Return the change [D] of every token where no rule looks at its code; None where one does."""
    if not part.encoder.normaliser.plain:
        return None
    amounts = torch.zeros(len(part.decoder), dtype=torch.float64)
    for rule, index in zip(rules, columns, strict=True):
        if type(rule) is not Steer or rule.relative:  # a rule of a user's own may do anything
            return None
        amounts[slice(None) if index is None else index] += rule.amount * rule.strength
    return (amounts @ part.decoder.cpu().double()).float()
