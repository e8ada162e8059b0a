"""A dictionary left on disk: what its file says, and rows read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.dictionary import Dictionary, Slice, expect_features, expect_site
from vlm_edit.dictionaries.encoder import Activation, Encoder, Norm
from vlm_edit.errors import VlmEditError


@dataclass(frozen=True, eq=False)
class Rows:
    """A matrix with a row per feature, left where it lies and as it lies there.

    Attributes:
        tensor: [m, d], any float dtype; usually a view of a mapped file. Where the file has
            [d, m], its transpose: a view too.
        name: What the file calls it, for messages.
        gain: [m], multiplies each row.
        scale: [d], multiplies each column.
        unit: Whether rows are first brought to length 1.

    Example:
        >>> import torch
        >>> Rows(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), unit=True).take([1, 0])
        tensor([[0.0000, 1.0000],
                [0.6000, 0.8000]])
    """

    tensor: Tensor
    name: str = "a matrix"
    gain: Tensor | None = None
    scale: Tensor | None = None
    unit: bool = False

    def __post_init__(self) -> None:
        """Check shapes."""
        if self.tensor.ndim != 2:
            raise VlmEditError(f"{self.name} has shape {tuple(self.tensor.shape)}, expected 2 axes")
        m, d = self.tensor.shape
        for name, vector, size in (("gain", self.gain, m), ("scale", self.scale, d)):
            if vector is not None and tuple(vector.shape) != (size,):
                raise VlmEditError(f"{name} has shape {tuple(vector.shape)}, expected {(size,)}")

    def take(self, features: Sequence[int] | None = None) -> Tensor:
        """Rows of some features, of all if None, [t, d] float32, a copy.

        Raises:
            VlmEditError: A number that is not finite.
        """
        index = None if features is None else torch.as_tensor(list(features), dtype=torch.long)
        found = self.tensor if index is None else self.tensor[index]
        rows = found.to(torch.float32, copy=True).contiguous()
        if self.unit:
            rows = F.normalize(rows, dim=1)
        if self.gain is not None:
            rows *= (self.gain if index is None else self.gain[index]).float()[:, None]
        if self.scale is not None:
            rows *= self.scale.float()
        if not bool(rows.isfinite().all()):  # or a gain or a scale that overflows
            raise VlmEditError(f"{self.name} holds NaN or infinity: the file is damaged")
        return rows


@dataclass(frozen=True, eq=False)
class StoredDictionary:
    """A dictionary whose matrices stay on disk until they are needed.

    ``load_dictionary(..., lazy=True)`` gives one. A patch takes it in a dictionary's place and
    reads the touched features' rows alone, but for the whole encoder where features compete.

    Attributes:
        weight: Encoder rows, [m, d].
        bias: [m].
        decoder: Decoder rows, [m, d].
        decoder_bias: [d].
        activation: As in ``Encoder``, like the next six.
        threshold: [m].
        k: Number that stays.
        subtract: [d].
        norm: Of the input.
        centers: [d] per stream.
        soft_cap: Ends the activation.
        info: As in ``Dictionary``.
    """

    weight: Rows
    bias: Tensor
    decoder: Rows
    decoder_bias: Tensor
    activation: Activation = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    subtract: Tensor | None = None
    norm: Norm = "none"
    centers: Mapping[str, Tensor] = field(default_factory=dict)
    soft_cap: float | None = None
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that all parts fit, before any matrix is read."""
        m, d = self.weight.tensor.shape
        if self.decoder.tensor.shape != (m, d):
            raise VlmEditError(
                f"the encoder is of {m} features and width {d}, the decoder of "
                f"{self.decoder.tensor.shape[0]} and {self.decoder.tensor.shape[1]}"
            )
        # The encoder of one feature checks every option and each vector's size in it.
        for name, vector, size in (
            *(("encoder bias", self.bias, m), ("threshold", self.threshold, m)),
            *(("decoder bias", self.decoder_bias, d), ("subtract", self.subtract, d)),
        ):
            if vector is not None and tuple(vector.shape) != (size,):
                raise VlmEditError(f"{name} has shape {tuple(vector.shape)}, expected {(size,)}")
            if vector is not None and not bool(vector.isfinite().all()):
                raise VlmEditError(f"{name} holds NaN or infinity: the file is damaged")

    @property
    def width(self) -> int:
        """Size d of the activations."""
        return self.weight.tensor.shape[1]

    @property
    def n_features(self) -> int:
        """Number m of features."""
        return self.weight.tensor.shape[0]

    def expect_site(self, site: str) -> None:
        """As ``Dictionary.expect_site``."""
        expect_site(self.info, site)

    def load(self) -> Dictionary:
        """The whole dictionary in memory, float32.

        Raises:
            VlmEditError: Options that do not fit each other, or numbers that are not finite.
        """
        return Dictionary(
            self._encoder(None), self.decoder.take(), self.decoder_bias.float(), dict(self.info)
        )

    def slice(self, features: Sequence[int]) -> Slice:
        """As ``Dictionary.slice``; reads these features' rows, or the encoder if they compete.

        Raises:
            VlmEditError: A feature that the dictionary does not have.
        """
        expect_features(features, self.n_features)
        rows = self.decoder.take(features)
        if self.k is None:
            return Slice(tuple(features), self._encoder(features), rows, self.n_features)
        index = torch.as_tensor(list(features), dtype=torch.long)
        return Slice(tuple(features), self._encoder(None), rows, self.n_features, index)

    def _encoder(self, features: Sequence[int] | None) -> Encoder:
        index = None if features is None else torch.as_tensor(list(features), dtype=torch.long)

        def part(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else (vector if index is None else vector[index]).float()

        bias = part(self.bias)
        assert bias is not None
        return Encoder(
            weight=self.weight.take(features).T.contiguous(),
            bias=bias,
            activation=self.activation,
            threshold=part(self.threshold),
            k=self.k,
            subtract=None if self.subtract is None else self.subtract.float(),
            norm=self.norm,
            centers={name: center.float() for name, center in self.centers.items()},
            soft_cap=self.soft_cap,
        )
