"""The one splice: bring rules on codes into a hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, Slice, StoredDictionary
from vlm_edit.dictionaries.encoder import autocast_off, move
from vlm_edit.edits.rules import Rule, Steer
from vlm_edit.errors import VlmEditError


@dataclass(frozen=True, eq=False)
class Splice:
    """``hidden' = hidden + mask * (rules(code) - code) @ decoder[touched]``.

    The decoder's bias cancels and the reconstruction error stays. Encode once, apply every rule
    on the code in order, splice once, out of place and differentiable. The arithmetic is float32
    and autocast is off; the host's dtype stays. Tokens outside the mask keep their bits. Where no
    rule looks at the code, as when steering, nothing is encoded: the change is one vector.

    Attributes:
        slice: What the touched features need of the dictionary.
        rules: At least one.

    Example:
        >>> import torch
        >>> from vlm_edit import Ablate, Dictionary
        >>> splice = Splice.of(Dictionary.identity(3), [Ablate([1])])
        >>> splice(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 0., 3.]])
    """

    slice: Slice
    rules: tuple[Rule, ...]
    _columns: tuple[Tensor | None, ...] = field(init=False, repr=False)
    _shift: Tensor | None = field(init=False, repr=False)
    _devices: dict[torch.device, _Placed] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Find where each rule's features stand among the touched ones."""
        if not self.rules:
            raise VlmEditError("an edit needs at least one rule, such as Ablate([3])")
        columns = tuple(_columns(self.slice.features, tuple(rule.features)) for rule in self.rules)
        object.__setattr__(self, "_columns", columns)
        object.__setattr__(self, "_shift", _shift(self.slice, self.rules, columns))
        object.__setattr__(self, "_devices", {})

    @classmethod
    def of(cls, dictionary: Dictionary | StoredDictionary, rules: Sequence[Rule]) -> Splice:
        """The splice of rules on a dictionary's features.

        Raises:
            VlmEditError: No rule, or a feature that the dictionary does not have.
        """
        touched = sorted({feature for rule in rules for feature in rule.features})
        return cls(dictionary.slice(touched), tuple(rules))

    def __call__(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        stream: str | None = None,
        image: Tensor | None = None,
        strength: Tensor | None = None,
    ) -> Tensor:
        """The hidden state with the rules applied.

        Args:
            hidden: [..., D], any float dtype.
            mask: [...] bool, tokens to edit; None for all.
            stream: For dictionaries that centre each stream apart.
            image: [...] bool, image tokens of a mixed stream, likewise.
            strength: Multiplies the change; broadcasts against [...]. None for 1.

        Returns:
            A new tensor of the same shape and dtype.
        """
        part, columns, shift = self._devices.get(hidden.device) or self._on(hidden.device)
        if shift is not None and hidden.size(-1) == shift.size(0):
            delta = shift
        else:
            with autocast_off(hidden.device):
                codes, scale = part.codes(hidden, stream, image)
                delta = (self._apply(codes, columns) - codes) @ part.decoder
                if scale is not None:
                    delta = delta * scale
        if strength is not None:
            delta = delta * strength.unsqueeze(-1)
        edited = hidden + delta
        if edited.dtype != hidden.dtype:  # the sum is float32 or wider
            edited = edited.to(hidden.dtype)
        return edited if mask is None else torch.where(mask.unsqueeze(-1), edited, hidden)

    def place(self, device: torch.device) -> None:
        """Put what the edit needs on a device now, not at the first output there.

        Compiled code needs it: it could not tell a tensor made under ``inference_mode``.
        """
        self._on(device)

    def _apply(self, codes: Tensor, columns: tuple[Tensor | None, ...]) -> Tensor:
        for rule, index in zip(self.rules, columns, strict=True):
            if index is None:
                codes = rule(codes)
            else:
                codes = codes.index_copy(-1, index, rule(codes[..., index]))
        return codes

    def _on(self, device: torch.device) -> _Placed:
        if device not in self._devices:
            # A tensor made under inference_mode could not serve a later forward with gradients.
            with torch.inference_mode(False):
                columns = tuple(None if c is None else move(c, device) for c in self._columns)
                shift = None if self._shift is None else move(self._shift, device)
                self._devices[device] = (self.slice.to(device), columns, shift)
        return self._devices[device]


_Placed = tuple[Slice, tuple[Tensor | None, ...], Tensor | None]


def _columns(touched: tuple[int, ...], features: tuple[int, ...]) -> Tensor | None:
    """Where a rule's features stand among the touched ones; None for all of them in order."""
    if features == touched:
        return None
    position = {feature: i for i, feature in enumerate(touched)}
    return torch.tensor([position[feature] for feature in features])


def _shift(part: Slice, rules: Sequence[Rule], columns: Sequence[Tensor | None]) -> Tensor | None:
    """[D], the change of every token where no rule looks at its code; None where one does."""
    if part.encoder.norm != "none":
        return None
    amounts = torch.zeros(len(part.decoder), dtype=torch.float64)
    for rule, index in zip(rules, columns, strict=True):
        if type(rule) is not Steer:  # a rule of a user's own may do anything
            return None
        amounts[slice(None) if index is None else index] += rule.amount * rule.strength
    return (amounts @ part.decoder.cpu().double()).float()
