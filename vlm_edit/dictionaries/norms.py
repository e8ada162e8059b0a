"""Norms: what a dictionary divides out of activations before it reads them, a class for each."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.registry import Registry


class Norm:
    """What turns activations into normed ones, and back.

    Subclasses give the call, and ``restore`` where more than a scale was taken away. Files keep the
    name; ``Encoder`` and whatever is made of one find the class by it once ``register_norm`` knows
    it.

    Example:
        >>> import torch
        >>> class Largest(Norm):
        ...     name = "largest"
        ...
        ...     def __call__(self, x):
        ...         scale = x.abs().amax(-1, keepdim=True)
        ...         return x / scale, scale
        >>> x = torch.tensor([[1.0, -4.0]])
        >>> normed, _ = Largest()(x)
        >>> normed, Largest().restore(normed, x)
        (tensor([[ 0.2500, -1.0000]]), tensor([[ 1., -4.]]))
    """

    name: ClassVar[str] = ""
    # Whether it leaves activations as they are.
    plain: ClassVar[bool] = False
    # Whether the encoder alone reads normed activations, and the decoder writes them as they are.
    # There is no scale then, and ``restore`` gives back what it is given.
    reads: ClassVar[bool] = False

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return normed activations [..., d], and the scale [..., 1] divided out, if any."""
        raise NotImplementedError

    def target(self, x: Tensor) -> Tensor:
        """Return activations [..., d] as the decoder writes them: normed, unless it only reads."""
        return x if self.reads else self(x)[0]

    def restore(self, normed: Tensor, x: Tensor) -> Tensor:
        """Return normed activations [..., d] in the space of x, from which they were made."""
        _, scale = self(x)
        return normed if scale is None else normed * scale


NORMS: Registry[type[Norm]] = Registry("norm", "vlm_edit.norms", type, Norm)
_Kind = TypeVar("_Kind", bound=type[Norm])


def register_norm(kind: _Kind) -> _Kind:
    """Make a norm known by its name; a decorator.

    A package that others install declares it as an entry point of the group ``vlm_edit.norms``
    instead, under the same name.

    Raises:
        VlmEditError: No name, or one that another class has.
    """
    NORMS.add(kind.name, kind)
    return kind


def norm_of(name: str) -> Norm:
    """Return the norm of a name.

    Raises:
        VlmEditError: An unknown name.
    """
    return NORMS.find(name)()


def norm_names() -> tuple[str, ...]:
    """Return the names of all norms that are known."""
    return NORMS.names()


@register_norm
class NoNorm(Norm):
    """The norm that leaves x as it is."""

    name = "none"
    plain = True

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        """Return x itself and no scale, as ``Norm.__call__``."""
        return x, None


@register_norm
class LayerNorm(Norm):
    """The norm (x - mean) / (unbiased std + 1e-5)."""

    name = "layer_norm"

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return normed activations and their scale, as ``Norm.__call__``."""
        centred = x - x.mean(dim=-1, keepdim=True)
        scale = centred.std(dim=-1, keepdim=True)
        return centred / (scale + 1e-5), scale

    def restore(self, normed: Tensor, x: Tensor) -> Tensor:
        """Put mean and scale back, as ``Norm.restore``."""
        return super().restore(normed, x) + x.mean(-1, keepdim=True)


@register_norm
class ConstantNormRescale(Norm):
    """The norm x * sqrt(d) / |x|."""

    name = "constant_norm_rescale"

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return normed activations and their scale, as ``Norm.__call__``."""
        scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / scale.clamp_min(1e-12), scale


@register_norm
class RmsNormOfInput(Norm):
    """The norm x / sqrt(mean of x squared + 1e-6): Gemma's before its weight, of what is read.

    It brings no scale back: a transcoder behind it writes another place's own numbers.
    """

    name = "rms_norm_of_input"

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        """Return normed activations and no scale, as ``Norm.__call__``."""
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt(), None


@register_norm
class UnitRead(Norm):
    """The norm x / |x| of what is read; what is written is as long as x."""

    name = "unit_read"
    reads = True

    def __call__(self, x: Tensor) -> tuple[Tensor, None]:
        """Return activations of length 1 and no scale, as ``Norm.__call__``."""
        return F.normalize(x, dim=-1), None
