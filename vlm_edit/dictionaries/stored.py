"""A dictionary left on disk: what its file says, and rows read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.activations import Activation, activation_of
from vlm_edit.dictionaries.check import Check
from vlm_edit.dictionaries.dictionary import Dictionary, Slice, expect_features, expect_site
from vlm_edit.dictionaries.encoder import Encoder
from vlm_edit.dictionaries.encodes import digest, facts, summary, words
from vlm_edit.dictionaries.norms import norm_of
from vlm_edit.dictionaries.streaming import Contest, decode_parts, encode_parts
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, DamagedFile
from vlm_edit.ground.modality import Mixed, Modality
from vlm_edit.ground.notebook import card, one_line

# Numbers of a matrix in memory at a time: 64 MiB, which malloc gives back to the system when freed.
_PART = 1 << 24


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
        """Check that all shapes fit."""
        if self.tensor.ndim != 2:
            raise DamagedFile(f"{self.name} has shape {tuple(self.tensor.shape)}, expected 2 axes")
        m, d = self.tensor.shape
        for name, vector, size in (("gain", self.gain, m), ("scale", self.scale, d)):
            if vector is not None and tuple(vector.shape) != (size,):
                raise DamagedFile(f"{name} has shape {tuple(vector.shape)}, expected {(size,)}")

    def take(self, features: Sequence[int] | None = None) -> Tensor:
        """Return rows of some features, of all if None, [t, d] float32, a copy.

        Raises:
            VlmEditError: A number that is not finite.
        """
        index = _index(features)
        stored = self.tensor if index is None else self.tensor[index]
        rows = stored.to(torch.float32, copy=True).contiguous()
        if self.unit:
            rows = F.normalize(rows, dim=1)
        if self.gain is not None:
            rows *= (self.gain if index is None else self.gain[index]).float()[:, None]
        if self.scale is not None:
            rows *= self.scale.float()
        # The extremes are NaN if anything is, and take no memory. A gain may overflow, too.
        if rows.numel() and not bool(torch.stack(rows.aminmax()).isfinite().all()):
            raise DamagedFile(f"{self.name} holds NaN or infinity: the file is damaged")
        return rows


def row_lengths(rows: Tensor) -> Tensor:
    """Return the length of each row of a matrix of any float dtype, [m] float32.

    Example:
        >>> row_lengths(torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64))
        tensor([5., 2.])
    """
    step = max(1, _PART // max(1, rows.shape[1]))  # a float32 copy is never of all of it
    return torch.cat([torch.linalg.vector_norm(r.float(), dim=1) for r in rows.split(step)])


@dataclass(frozen=True, eq=False)
class StoredDictionary:
    """A dictionary whose matrices stay on disk until they are needed.

    ``load_dictionary(..., lazy=True)`` gives one. A patch takes it in a dictionary's place and
    reads the touched features' rows alone, but for the whole encoder where features compete.
    ``measure`` takes it too: encoding reads the matrix part after part and never holds all of it.

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
        device: Where parts are put to encode.
    """

    weight: Rows
    bias: Tensor
    decoder: Rows
    decoder_bias: Tensor
    activation: str = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    subtract: Tensor | None = None
    norm: str = "none"
    centers: Mapping[str, Tensor] = field(default_factory=dict)
    soft_cap: float | None = None
    info: Mapping[str, str] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    _activator: Activation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that all parts fit, before any matrix is read."""
        m, d = self.weight.tensor.shape
        if self.decoder.tensor.shape != (m, d):
            raise DamagedFile(
                f"the encoder is of {m} features and width {d}, the decoder of "
                f"{self.decoder.tensor.shape[0]} and {self.decoder.tensor.shape[1]}"
            )
        activator = activation_of(self.activation, m, self.k, self.threshold)
        object.__setattr__(self, "_activator", activator)
        # The encoder of one feature checks every option and each vector's size in it.
        for name, vector, size in (
            *(("encoder bias", self.bias, m), ("threshold", self.threshold, m)),
            *(("decoder bias", self.decoder_bias, d), ("subtract", self.subtract, d)),
        ):
            if vector is not None and tuple(vector.shape) != (size,):
                raise DamagedFile(f"{name} has shape {tuple(vector.shape)}, expected {(size,)}")
            if vector is not None and not bool(vector.isfinite().all()):
                raise DamagedFile(f"{name} holds NaN or infinity: the file is damaged")

    def __repr__(self) -> str:
        """Say on a line what it is."""
        return one_line(f"StoredDictionary({words(self)}, left on disk)")

    def _repr_html_(self) -> str:
        """Say it in a notebook."""
        return card("StoredDictionary", facts(self), note="left on disk")

    @property
    def width(self) -> int:
        """Return the size d of the activations."""
        return self.weight.tensor.shape[1]

    @property
    def n_features(self) -> int:
        """Return the number m of features."""
        return self.weight.tensor.shape[0]

    def read_at(self, site: str) -> str:
        """Return where the codes of a site's features are read: at the site itself."""
        return site

    def expect_site(self, site: str) -> None:
        """Refuse another site, as ``Dictionary.expect_site`` does."""
        expect_site(self.info, site)

    def load(self) -> Dictionary:
        """Load the whole dictionary into memory, float32.

        Raises:
            VlmEditError: Options that do not fit each other, or numbers that are not finite.
        """
        return Dictionary(
            self._encoder(None), self._decoder(), self.decoder_bias.float(), dict(self.info)
        )

    def slice(self, features: Sequence[int], codes: bool = True) -> Slice:
        """Slice as ``Dictionary.slice``; read these features' rows, or the encoder if they compete.

        Raises:
            VlmEditError: A feature that the dictionary does not have.
        """
        expect_features(features, self.n_features)
        rows = self.decoder.take(features)
        if not codes:
            return Slice(tuple(features), self._blank.blank(len(rows)), rows, self.n_features)
        if not self._activator.competes:
            return Slice(tuple(features), self._encoder(features), rows, self.n_features)
        index = torch.as_tensor(list(features), dtype=torch.long)
        return Slice(tuple(features), self._encoder(None), rows, self.n_features, index)

    def to(self, device: torch.device | str) -> StoredDictionary:
        """Return the same, encoding on another device."""
        return replace(self, device=device)

    def encode(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Encode as ``Dictionary.encode``, without gradients; the same up to rounding.

        Raises:
            VlmEditError: Wrong width, or a stream is needed.
        """
        flat = stream.flatten() if isinstance(stream, Mixed) else stream
        codes = self.encode_sparse(x.reshape(-1, x.shape[-1]), flat).dense()
        return codes.view(*x.shape[:-1], self.n_features)

    def encode_sparse(self, x: Tensor, stream: Modality | None = None) -> SparseCodes:
        """Encode as ``Dictionary.encode_sparse``, up to rounding; read the encoder once a call.

        Raises:
            VlmEditError: Wrong width or number of axes, or a stream is needed.
        """
        x = x.to(self.device)
        stream = stream.to(self.device) if isinstance(stream, Mixed) else stream
        contest = Contest(self._activator, self.soft_cap) if self._all_compete else None
        return encode_parts(self._encoders(), self.n_features, x, stream, contest)

    def decode(self, codes: Tensor | SparseCodes) -> Tensor:
        """Decode as ``Dictionary.decode``, up to rounding; read the rows of active features alone.

        Raises:
            VlmEditError: Codes of another dictionary's size.
        """
        if codes.shape[-1] != self.n_features:
            raise BadArgument(
                f"codes of {codes.shape[-1]} features meet a dictionary of {self.n_features}"
            )
        flat = codes if isinstance(codes, SparseCodes) else codes.reshape(-1, self.n_features)
        decoded = decode_parts(
            self.decoder.take, SparseCodes.of(flat), self.decoder_bias.float(), self._rows
        )
        return decoded.view(*codes.shape[:-1], self.width)

    def normalise(self, x: Tensor, stream: Modality | None = None) -> Tensor:  # noqa: ARG002
        """Norm activations as ``Dictionary.normalise`` does."""
        return norm_of(self.norm).target(x.float())

    def check(self, activations: Tensor, stream: Modality | None = None, **options: Any) -> Check:
        """Check as ``Dictionary.check``; what it tries needs the whole dictionary loaded."""
        return self.load().check(activations, stream, **options)

    def digest(self) -> str:
        """Return the digest that the loaded dictionary has, by ``Dictionary.digest``."""
        vectors = [self.bias, self.threshold, self.subtract, self.decoder_bias]
        vectors += [self.centers[name] for name in sorted(self.centers)]
        small = [None if vector is None else vector.float() for vector in vectors]

        def tensors() -> Iterator[Tensor | None]:
            yield from small
            for rows in (self.weight, self.decoder):
                yield from (rows.take(part) for part in self._parts())

        return digest(self, tensors())

    def summary(self) -> dict[str, Any]:
        """Return a summary, as ``Dictionary.summary`` does."""
        return summary(self)

    def _parts(self) -> Iterator[range]:
        """Yield features whose rows are in memory together; of groups, whole ones."""
        m = self.n_features
        group = self._activator.group(m) or 1
        step = max(1, self._rows // group) * group
        for begin in range(0, m, step):
            yield range(begin, min(begin + step, m))

    @property
    def _all_compete(self) -> bool:
        """Whether a part cannot know its codes before all others are seen."""
        return self._activator.group(self.n_features) is None

    @property
    def _blank(self) -> Encoder:
        """Return an encoder that knows the norm, and no weights."""
        return Encoder(torch.zeros(self.width, 1), torch.zeros(1), norm=self.norm)

    @property
    def _rows(self) -> int:
        return max(1, _PART // self.width)

    def _encoders(self) -> Iterator[Encoder]:
        """Yield encoders of some features at a time: of their codes, or of what competes in all."""
        part = self
        if self._all_compete:
            raw: dict[str, Any] = {"activation": "identity", "k": None, "threshold": None}
            part = replace(self, soft_cap=None, **raw)
        for features in self._parts():
            k = part._activator.share(len(features), self.n_features)
            yield part._encoder(features, k).to(self.device)

    def _decoder(self) -> Tensor:
        rows = torch.empty(self.n_features, self.width)
        for some in self._parts():
            rows[some.start : some.stop] = self.decoder.take(some)
        return rows

    def _encoder(self, features: Sequence[int] | None, k: int | None = None) -> Encoder:
        index = _index(features)

        def part(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else (vector if index is None else vector[index]).float()

        bias = part(self.bias)
        assert bias is not None
        if features is None:
            weight = torch.empty(self.width, self.n_features)
            for some in self._parts():  # two whole copies would be there otherwise
                weight[:, some.start : some.stop] = self.weight.take(some).mT
        else:
            weight = self.weight.take(features).mT.contiguous()
        return Encoder(
            weight=weight,
            bias=bias,
            activation=self.activation,
            threshold=part(self.threshold),
            k=self.k if k is None else k,
            subtract=None if self.subtract is None else self.subtract.float(),
            norm=self.norm,
            centers={name: center.float() for name, center in self.centers.items()},
            soft_cap=self.soft_cap,
        )


def _index(features: Sequence[int] | None) -> Tensor | slice | None:
    """Return what picks features out of a tensor; neighbours without a copy of their numbers."""
    if features is None:
        return None
    if isinstance(features, range):
        return slice(features.start, features.stop)
    return torch.as_tensor(list(features), dtype=torch.long)
