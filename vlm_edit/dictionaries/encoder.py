"""The encoder of a dictionary: from activations to codes, dense or kept sparse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.activations import Activation, activation_of
from vlm_edit.dictionaries.norms import Norm, norm_of
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, UnknownName, WrongHost
from vlm_edit.ground.modality import MODALITIES, Mixed, Modality, stands_for

# Pre-activations at a time: 8 MiB of float32, which the caches about hold. At least so many rows,
# or the weight is read too often; but never more than 32 MiB.
_SCRATCH = 1 << 21
_ROWS = 256
_MOST_SCRATCH = 1 << 23


@dataclass(frozen=True, eq=False)
class Encoder:
    """Everything needed to turn activations into codes.

    ``code = activation((normed - center - subtract) @ weight + bias)``, in float32.

    Attributes:
        weight: [d, m].
        bias: [m].
        activation: The name of an ``Activation``: ``relu``; ``jumprelu``, that is h where
            h > threshold and h > 0; ``topk``, that is relu of the k largest; ``topk_signed``, the
            k largest with those below zero; ``topk_abs``, the k of largest absolute value;
            ``topk_distance``, 2 - sqrt(2 - 2 h) of the k largest;
            ``groupmax``, relu of the largest of each of k groups of neighbours; ``identity``.
        threshold: [m], for ``jumprelu`` (a BatchTopK or gated dictionary in use is one of these).
        k: For ``topk``, ``topk_signed``, ``topk_abs``, ``topk_distance`` and ``groupmax``.
        subtract: [d] subtracted before the product, usually the decoder's bias; None for none.
        norm: The name of a ``Norm``: ``layer_norm`` is (x - mean) / (unbiased std + 1e-5);
            ``constant_norm_rescale`` is x * sqrt(d) / |x|; ``unit_read`` is x / |x|, and what is
            decoded is x as it was.
        centers: [d] per stream, subtracted after the norm. Empty for none.
        soft_cap: c of ``c * tanh(code / c)``, which ends the activation; None for none.
        activator: The activation of that name, with its options.
        normaliser: The norm of that name.
    """

    weight: Tensor
    bias: Tensor
    activation: str = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    subtract: Tensor | None = None
    norm: str = "none"
    centers: Mapping[str, Tensor] = field(default_factory=dict)
    soft_cap: float | None = None
    activator: Activation = field(init=False, repr=False)
    normaliser: Norm = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check shapes and options; nothing is guessed."""
        if self.weight.ndim != 2:
            raise BadArgument(f"encoder weight must be [d, m], got {tuple(self.weight.shape)}")
        d, m = self.weight.shape
        expect("encoder weight", self.weight, (d, m))
        expect("encoder bias", self.bias, (m,))
        for name, center in self.centers.items():
            if name not in MODALITIES:
                raise UnknownName(f"center of unknown stream {name!r}: use 'image' and 'text'")
            expect(f"center of the {name} stream", center, (d,))
        if self.subtract is not None:
            expect("subtract", self.subtract, (d,))
        object.__setattr__(self, "normaliser", norm_of(self.norm))
        if self.centers and self.normaliser.reads:
            raise BadArgument(f"norm {self.norm!r} has no centers: nothing else is written normed")
        activator = activation_of(self.activation, m, self.k, self.threshold)
        object.__setattr__(self, "activator", activator)
        if self.threshold is not None:
            expect("threshold", self.threshold, (m,))
        if self.soft_cap is not None and not 0 < self.soft_cap < float("inf"):
            raise BadArgument(f"soft_cap is {self.soft_cap}; it must be a number above 0")

    @property
    def competes(self) -> bool:
        """Whether a feature's code depends on the others' pre-activations."""
        return self.activator.competes

    def __call__(self, x: Tensor, stream: Modality | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the codes of activations, and the factor that brings a change in them back.

        Args:
            x: [..., d], any float dtype.
            stream: ``image``, ``text``, or ``Mixed`` of [...]; needed when there are centers.

        Returns:
            Codes [..., m] float32, and the norm's scale [..., 1], None without a norm.

        Raises:
            VlmEditError: Wrong width, or a stream without a center.
        """
        self.expect_width(x)
        with autocast_off(x.device):
            centred, scale = self._centred(x, stream)
            if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self._trains(centred)):
                return self._activate(F.linear(centred, self.weight.mT, self.bias)), scale
            codes = centred.new_empty(*centred.shape[:-1], self.weight.shape[1])
            with torch.no_grad():
                flat = codes.view(-1, codes.shape[-1])
                for _, hidden in self._hidden(centred.reshape(-1, centred.shape[-1]), flat):
                    self._activate_in_place(hidden)
            return codes, scale

    def _trains(self, centred: Tensor) -> bool:
        """Say whether gradients flow to what is encoded, or to the weights."""
        known = (centred, self.weight, self.bias, self.threshold)
        return any(t is not None and t.requires_grad for t in known)

    def folded(self) -> dict[str | None, Tensor]:
        """Fold what is subtracted before the product into biases [m], by stream.

        Worked out in float64. The key is None without centers. Empty where a norm stands before,
        or the weights are being trained.
        """
        trained = (self.weight, self.bias, self.subtract, *self.centers.values())
        if not self.normaliser.plain or any(t is not None and t.requires_grad for t in trained):
            return {}
        streams: tuple[str | None, ...] = tuple(self.centers) or (None,)
        offsets = {name: self._offset(name) for name in streams}
        weight, bias = self.weight.double(), self.bias.double()
        return {
            name: self.bias if offset is None else (bias - offset.double() @ weight).float()
            for name, offset in offsets.items()
        }

    def with_bias(
        self,
        x: Tensor,
        biases: Mapping[str | None, Tensor],
        stream: Modality | None,
    ) -> Tensor | None:
        """Return the codes [..., m] by biases that ``folded`` gave; features do not compete.

        Saves the subtraction, which for few features takes longer than the product. None where
        there is no bias for the stream.
        """
        bias: Tensor | None = None
        if not self.centers:
            bias = biases.get(None)
        elif not isinstance(stream, Mixed):
            bias = biases.get(stream)
            if bias is None and stream is not None:
                bias = biases.get(stands_for(stream, biases))
        elif all(stands_for(name, biases) for name in stream.names):
            bias = stream.pick(biases)
        if bias is None:
            return None
        self.expect_width(x)
        with autocast_off(x.device):
            if bias.ndim == 1:
                return self._activate(F.linear(x.float(), self.weight.mT, bias))
            return self._activate(F.linear(x.float(), self.weight.mT) + bias)

    def sparse(self, x: Tensor, stream: Modality | None = None) -> SparseCodes:
        """Return the same codes, kept sparse: some rows at a time, and never all of them dense.

        Args:
            x: [n, d], any float dtype.
            stream: As for a call.

        Returns:
            ``SparseCodes.of`` of the codes, bit for bit, without gradients.

        Raises:
            VlmEditError: Another number of axes; otherwise as for a call.
        """
        if x.ndim != 2:
            raise BadArgument(f"activations to encode sparsely are [n, d], got {tuple(x.shape)}")
        self.expect_width(x)
        n, m = len(x), self.weight.shape[1]
        places, values = [], []
        with torch.no_grad(), autocast_off(x.device):
            centred, _ = self._centred(x, stream)
            for begin, hidden in self._hidden(centred):
                here, active = self.activator.sparse(hidden)
                places.append(here + begin * m)
                values.append(self._cap(active))
            flat = torch.cat(places) if places else x.new_empty(0, dtype=torch.int64)
            rows = flat.div(m, rounding_mode="floor")
            codes = torch.cat(values) if values else centred.new_empty(0)
            return SparseCodes(rows, flat - rows * m, codes, (n, m))

    def contested(
        self, x: Tensor, columns: Tensor, stream: Modality | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the codes of some features that compete, and the norm's scale.

        Args:
            x: [..., d], any float dtype.
            columns: [t], the features.
            stream: As for a call.

        Returns:
            Codes [..., t] float32, without gradients, and the scale [..., 1], None without a norm.
        """
        self.expect_width(x)
        with torch.no_grad(), autocast_off(x.device):
            centred, scale = self._centred(x, stream)
            parts = []
            for _, hidden in self._hidden(centred.reshape(-1, centred.shape[-1])):
                parts.append(self._cap(self.activator.some(hidden, columns)))
            codes = torch.cat(parts) if parts else centred.new_empty(0, len(columns))
            return codes.view(*centred.shape[:-1], len(columns)), scale

    def expect_width(self, x: Tensor) -> None:
        """Refuse activations of another width."""
        if x.shape[-1] != self.weight.shape[0]:
            raise WrongHost(
                f"activations of width {x.shape[-1]} meet a dictionary of width "
                f"{self.weight.shape[0]}: is it another layer's or another host's?"
            )

    def _centred(self, x: Tensor, stream: Modality | None) -> tuple[Tensor, Tensor | None]:
        """Return what the weight is multiplied with [..., d], and the norm's scale."""
        normed, scale = self.normalise(x.float())
        offset = self._offset(stream)
        # Not folded into the bias: that saves 1 % of the product and loses digits.
        return (normed if offset is None else normed - offset), scale

    def _hidden(self, flat: Tensor, into: Tensor | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield pre-activations of some rows at a time, and the number of the first of them.

        Args:
            flat: [n, d].
            into: [n, m] to write them to; without, each writes over the one before.
        """
        n, m = len(flat), self.weight.shape[1]
        # Both ways of encoding cut alike: a product's last bits may depend on its number of rows.
        most = max(_SCRATCH // m, min(_ROWS, _MOST_SCRATCH // m), 1)
        step = -(-n // -(-n // most)) if n else 1
        scratch = flat.new_empty(min(step, n), m) if into is None else None
        for begin in range(0, n, step):
            part = flat[begin : begin + step]
            out = scratch[: len(part)] if scratch is not None else into[begin : begin + step]  # type: ignore[index]
            yield begin, torch.addmm(self.bias, part, self.weight, out=out)

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return normed activations [..., d], and the scale [..., 1] divided out, if any."""
        return self.normaliser(x)

    def _offset(self, stream: Modality | None) -> Tensor | None:
        """Return what is subtracted from normed activations: [d], or [..., d] if by token."""
        center: Tensor | None = None
        if self.centers:
            center = self.center(stream)
        if self.subtract is None or center is None:
            return self.subtract if center is None else center
        return center + self.subtract

    def center(self, stream: Modality | None = None) -> Tensor:
        """Return what is subtracted after the norm: [d], or [..., d] for a mixed stream.

        Raises:
            VlmEditError: No center for this stream.
        """
        if not isinstance(stream, Mixed):
            center = self.centers.get(str(stream))
            if center is None:
                center = self.centers.get(stands_for(str(stream), self.centers) or "")
            if center is not None:
                return center
        elif all(stands_for(name, self.centers) for name in stream.names):
            return stream.pick(self.centers)
        here = "'mixed'" if isinstance(stream, Mixed) else repr(stream)
        raise BadArgument(
            f"this dictionary centres each stream apart (it has {sorted(self.centers)}), and "
            f"the stream here is {here}: pass stream='image' or stream='text'"
        )

    def _activate(self, hidden: Tensor) -> Tensor:
        return self._cap(self.activator.dense(hidden))

    def _activate_in_place(self, hidden: Tensor) -> None:
        self.activator.in_place(hidden)
        if self.soft_cap is not None:
            hidden.copy_(self._cap(hidden))

    def _cap(self, codes: Tensor) -> Tensor:
        if self.soft_cap is None:
            return codes
        return self.soft_cap * torch.tanh(codes / self.soft_cap)

    def select(self, features: Sequence[int]) -> Encoder:
        """Return the encoder of some features that do not compete, or of all in another order."""
        index = torch.as_tensor(list(features), dtype=torch.long)
        threshold = None if self.threshold is None else self.threshold[index]
        return replace(
            self, weight=self.weight[:, index], bias=self.bias[index], threshold=threshold
        )

    def blank(self, count: int) -> Encoder:
        """Return an encoder of this norm whose codes of so many features are 0."""
        weight = torch.zeros(len(self.weight), count)
        return Encoder(weight, torch.zeros(count), "identity", norm=self.norm)

    def to(self, device: torch.device | str) -> Encoder:
        """Return the same encoder on another device."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                values[item.name] = move(value, device)
            elif item.name == "centers":
                values[item.name] = {k: move(v, device) for k, v in value.items()}
        return replace(self, **values)


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Keep float32 inside; this costs next to nothing where autocast is off already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Put a tensor on a device, fit for a forward with gradients even if made without."""
    moved = tensor.to(device)
    return moved.clone() if moved.is_inference() else moved


def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse another shape or dtype than float32."""
    if tuple(tensor.shape) != shape:
        raise BadArgument(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != torch.float32:
        raise BadArgument(f"{name} is {tensor.dtype}; dictionaries are float32: call .float()")
