"""A dictionary: from activations to a code of features and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.errors import VlmEditError

Activation = Literal["relu", "jumprelu", "topk", "identity"]
Norm = Literal["none", "layer_norm", "constant_norm_rescale"]


@dataclass(frozen=True, eq=False)
class Encoder:
    """Everything needed to turn activations into codes.

    ``code = activation((normed - center - subtract) @ weight + bias)``, in float32.

    Attributes:
        weight: [d, m].
        bias: [m].
        activation: ``relu``; ``jumprelu``, that is h where h > threshold; ``topk``, that is relu
            of the k largest; ``identity``.
        threshold: [m], for ``jumprelu`` (a BatchTopK dictionary in use is one of these).
        k: For ``topk``.
        subtract: [d] subtracted before the product, usually the decoder's bias; None for none.
        norm: ``layer_norm`` is (x - mean) / (unbiased std + 1e-5); ``constant_norm_rescale`` is
            x * sqrt(d) / |x|.
        centers: [d] per stream, subtracted after the norm. Empty for none.
    """

    weight: Tensor
    bias: Tensor
    activation: Activation = "relu"
    threshold: Tensor | None = None
    k: int | None = None
    subtract: Tensor | None = None
    norm: Norm = "none"
    centers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes and options; nothing is guessed."""
        if self.weight.ndim != 2:
            raise VlmEditError(f"encoder weight must be [d, m], got {tuple(self.weight.shape)}")
        d, m = self.weight.shape
        _expect("encoder weight", self.weight, (d, m))
        _expect("encoder bias", self.bias, (m,))
        for name, center in self.centers.items():
            if name not in ("image", "text"):
                raise VlmEditError(f"center of unknown stream {name!r}: use 'image' and 'text'")
            _expect(f"center of the {name} stream", center, (d,))
        if self.subtract is not None:
            _expect("subtract", self.subtract, (d,))
        if self.norm not in ("none", "layer_norm", "constant_norm_rescale"):
            raise VlmEditError(
                f"unknown norm {self.norm!r}: use none, layer_norm or constant_norm_rescale"
            )
        if self.activation not in ("relu", "jumprelu", "topk", "identity"):
            raise VlmEditError(
                f"unknown activation {self.activation!r}: use relu, jumprelu, topk or identity"
            )
        if (self.threshold is not None) != (self.activation == "jumprelu"):
            raise VlmEditError("threshold goes with activation='jumprelu', and only with it")
        if self.threshold is not None:
            _expect("threshold", self.threshold, (m,))
        if (self.k is not None) != (self.activation == "topk"):
            raise VlmEditError("k goes with activation='topk', and only with it")
        if self.k is not None and not 1 <= self.k <= m:
            raise VlmEditError(f"k is {self.k}; it must lie between 1 and the {m} features")

    @property
    def competes(self) -> bool:
        """Whether a feature's code depends on the others' pre-activations."""
        return self.activation == "topk"

    def __call__(
        self, x: Tensor, stream: str | None = None, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Codes of activations, and the factor that brings a change in them back.

        Args:
            x: [..., d], any float dtype.
            stream: ``image``, ``text`` or ``mixed``; needed when there are centers.
            image: [...] bool, True at image tokens; needed for ``mixed`` with centers.

        Returns:
            Codes [..., m] float32, and the norm's scale [..., 1], None without a norm.

        Raises:
            VlmEditError: Wrong width, or a stream without a center.
        """
        if x.shape[-1] != self.weight.shape[0]:
            raise VlmEditError(
                f"activations of width {x.shape[-1]} meet a dictionary of width "
                f"{self.weight.shape[0]}: is it another layer's or another host's?"
            )
        with autocast_off(x.device):
            normed, scale = self.normalise(x.float())
            offset = self._offset(stream, image)
            # Not folded into the bias: that costs a pass over the weight and loses digits.
            centred = normed if offset is None else normed - offset
            hidden = F.linear(centred, self.weight.mT, self.bias)
            return self._activate(hidden), scale

    def normalise(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normed activations [..., d], and the scale [..., 1] that was divided out, if any."""
        if self.norm == "layer_norm":
            centred = x - x.mean(dim=-1, keepdim=True)
            scale = centred.std(dim=-1, keepdim=True)
            return centred / (scale + 1e-5), scale
        if self.norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            return x / scale.clamp_min(1e-12), scale
        return x, None

    def _offset(self, stream: str | None, image: Tensor | None) -> Tensor | None:
        """What is subtracted from a normed activation: [d], or [..., d] if it differs by token."""
        center: Tensor | None = None
        if self.centers:
            center = self.center(stream, image)
        if self.subtract is None or center is None:
            return self.subtract if center is None else center
        return center + self.subtract

    def center(self, stream: str | None, image: Tensor | None = None) -> Tensor:
        """What is subtracted after the norm: [d], or [..., d] for a mixed stream.

        Raises:
            VlmEditError: No center for this stream, or no mask for a mixed one.
        """
        needed = ("image", "text") if stream == "mixed" else (stream,)
        if any(name not in self.centers for name in needed):
            raise VlmEditError(
                f"this dictionary centres each stream apart (it has {sorted(self.centers)}), and "
                f"the stream here is {stream!r}: pass stream='image' or stream='text'"
            )
        if stream != "mixed":
            return self.centers[str(stream)]
        if image is None:
            raise VlmEditError("a mixed stream needs the mask of its image tokens to be centred")
        return torch.where(image.unsqueeze(-1), self.centers["image"], self.centers["text"])

    def _activate(self, hidden: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(hidden)
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return torch.where(hidden > self.threshold.clamp_min(0), hidden, 0.0)
        if self.activation == "topk":
            assert self.k is not None
            values, indices = hidden.topk(self.k, dim=-1, sorted=False)
            return torch.zeros_like(hidden).scatter(-1, indices, F.relu(values))
        return hidden

    def select(self, features: Sequence[int]) -> Encoder:
        """The encoder of some features alone, for those that do not compete."""
        index = torch.as_tensor(list(features), dtype=torch.long)
        threshold = None if self.threshold is None else self.threshold[index]
        return replace(
            self, weight=self.weight[:, index], bias=self.bias[index], threshold=threshold
        )

    def to(self, device: torch.device | str) -> Encoder:
        """The same encoder on another device."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                moved[item.name] = move(value, device)
            elif item.name == "centers":
                moved[item.name] = {k: move(v, device) for k, v in value.items()}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of a dictionary that an edit of some features needs.

    Attributes:
        features: Their numbers in the whole dictionary, t of them.
        encoder: Of those features alone, or of all where features compete.
        decoder: [t, d], their decoder rows.
        n_features: Size of the whole dictionary.
        columns: [t], where the features stand in the encoder's codes; None for all in order.
    """

    features: tuple[int, ...]
    encoder: Encoder
    decoder: Tensor
    n_features: int
    columns: Tensor | None = None

    def codes(
        self, x: Tensor, stream: str | None = None, image: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Codes [..., t] of the features, and the norm's scale."""
        codes, scale = self.encoder(x, stream, image)
        return codes if self.columns is None else codes[..., self.columns], scale

    def to(self, device: torch.device | str) -> Slice:
        """The same slice on another device."""
        return replace(
            self,
            encoder=self.encoder.to(device),
            decoder=move(self.decoder, device),
            columns=None if self.columns is None else move(self.columns, device),
        )


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An SAE, or raw neurons: features of activations at a site.

    ``code = encode(x)``, ``x ~ decode(code)``, with the decoder's directions as rows.

    Attributes:
        encoder: From activations to codes.
        decoder: [m, d].
        decoder_bias: [d].
        info: What the file says it was trained on, such as ``model_name`` and ``hook_name``;
            ``site`` is compared with the site it is used at.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> neurons = Dictionary.identity(width=3)
        >>> neurons.encode(torch.tensor([[1.0, -2.0, 0.0]]))
        tensor([[ 1., -2.,  0.]])
    """

    encoder: Encoder
    decoder: Tensor
    decoder_bias: Tensor
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that both halves have the same shapes."""
        d, m = self.encoder.weight.shape
        _expect("decoder", self.decoder, (m, d))
        _expect("decoder bias", self.decoder_bias, (d,))

    @classmethod
    def identity(cls, width: int, norm: Norm = "none") -> Dictionary:
        """Raw neurons: one feature per dimension, signed.

        Args:
            width: Size of the site's last axis.
            norm: As in ``Encoder``. For dominance at a joint embedding use
                ``constant_norm_rescale``: the host ignores the embeddings' lengths, which may
                differ between streams by any factor.
        """
        eye = torch.eye(width)
        encoder = Encoder(eye, torch.zeros(width), "identity", norm=norm)
        return cls(encoder, eye, torch.zeros(width))

    def expect_site(self, site: str) -> None:
        """Refuse another site than the one the dictionary's file says it was trained at.

        Raises:
            VlmEditError: ``info["site"]`` is there and differs.
        """
        trained = self.info.get("site", site)
        if trained != site:
            raise VlmEditError(
                f"the dictionary was trained at site {trained!r}, not at {site!r}, where its "
                "features mean nothing; dataclasses.replace(dictionary, info={}) lets it through"
            )

    def to(self, device: torch.device | str) -> Dictionary:
        """The same dictionary on another device."""
        return replace(
            self,
            encoder=self.encoder.to(device),
            decoder=self.decoder.to(device),
            decoder_bias=self.decoder_bias.to(device),
        )

    @property
    def width(self) -> int:
        """Size d of the activations."""
        return self.encoder.weight.shape[0]

    @property
    def n_features(self) -> int:
        """Number m of features."""
        return self.encoder.weight.shape[1]

    def encode(self, x: Tensor, stream: str | None = None, image: Tensor | None = None) -> Tensor:
        """Codes of activations.

        Args:
            x: [..., d], any float dtype.
            stream: ``image``, ``text`` or ``mixed``, for dictionaries that centre each apart.
            image: [...] bool, image tokens of a mixed stream.

        Returns:
            [..., m] float32.

        Raises:
            VlmEditError: Wrong width, or a stream is needed.
        """
        return self.encoder(x, stream, image)[0]

    def decode(self, codes: Tensor) -> Tensor:
        """Activations of codes, in the dictionary's space: normed and centred.

        Args:
            codes: [..., m].

        Returns:
            [..., d] float32.
        """
        with autocast_off(codes.device):
            return codes.float() @ self.decoder + self.decoder_bias

    def explained_variance(self, x: Tensor, stream: str | None = None) -> float:
        """Share of the variance of activations that the reconstruction explains.

        Args:
            x: [n, d].
            stream: As in ``encode``.

        Returns:
            1 minus the squared error over the variance about the mean; at most 1.
        """
        normed, _ = self.encoder.normalise(x.float())
        if self.encoder.centers:
            normed = normed - self.encoder.center(stream)
        error = (normed - self.decode(self.encode(x, stream))).square().sum()
        return float(1 - error / (normed - normed.mean(0)).square().sum())

    def slice(self, features: Sequence[int]) -> Slice:
        """What an edit of these features needs of the dictionary.

        Raises:
            VlmEditError: A feature that the dictionary does not have.
        """
        wrong = [f for f in features if not 0 <= f < self.n_features]
        if wrong:
            raise VlmEditError(
                f"feature {wrong[0]} is not in this dictionary: it has features 0 to "
                f"{self.n_features - 1}"
            )
        index = torch.as_tensor(list(features), dtype=torch.long)
        rows = self.decoder[index]
        if self.encoder.competes:
            return Slice(tuple(features), self.encoder, rows, self.n_features, index)
        return Slice(tuple(features), self.encoder.select(features), rows, self.n_features)


def autocast_off(device: torch.device) -> AbstractContextManager[None]:
    """Float32 stays float32 inside. Costs next to nothing where autocast is off already."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def move(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, fit for a forward with gradients even if made without."""
    moved = tensor.to(device)
    return moved.clone() if moved.is_inference() else moved


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise VlmEditError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != torch.float32:
        raise VlmEditError(f"{name} is {tensor.dtype}; dictionaries are float32: call .float()")
