"""A dictionary: from activations to a code of features and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.dictionaries.check import Check, check
from vlm_edit.dictionaries.encoder import Encoder, autocast_off, expect, move
from vlm_edit.dictionaries.encodes import digest, facts, summary, words
from vlm_edit.dictionaries.origin import expect_site as expect_site
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.modality import Mixed, Modality
from vlm_edit.ground.notebook import card, one_line

_ROWS = 4096
_FEW = 64  # features up to which subtracting takes a share of the product worth saving


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
    _touched: Encoder | None = field(init=False, repr=False)
    _folded: Mapping[str | None, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Copy the columns of features that compete, and fold biases."""
        encoder, columns, touched = self.encoder, self.columns, None
        if columns is not None and encoder.competes and encoder.activator.sifts:
            weight, bias = encoder.weight[:, columns].contiguous(), encoder.bias[columns]
            raw: dict[str, Any] = {"activation": "identity", "k": None, "threshold": None}
            touched = replace(encoder, weight=weight, bias=bias, **raw)
        object.__setattr__(self, "_touched", touched)
        own = touched or (encoder if columns is None else None)
        few = own is not None and not own.competes and own.weight.shape[1] <= _FEW
        object.__setattr__(self, "_folded", own.folded() if own is not None and few else {})

    def codes(self, x: Tensor, stream: Modality | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the codes [..., t] of the features, and the norm's scale.

        With TopK a feature whose pre-activation is not above 0 has the code 0, whatever the
        others', so that all are encoded only for rows with one above: ``Activation.sifts``. On a
        CPU alone: elsewhere to look at the rows would wait for the device.
        """
        if self._touched is not None and self._is_final(x):
            if x.device.type == "cpu":
                return self._of_rows(self._touched, x, stream)
            return self._contested(x, stream)
        if self._touched is None and self._folded:
            folded = self.encoder.with_bias(x, self._folded, stream)
            if folded is not None:
                return folded, None
        codes, scale = self.encoder(x, stream)
        return codes if self.columns is None else codes[..., self.columns], scale

    @property
    def encode(self) -> Callable[[Tensor, Modality | None], tuple[Tensor, Tensor | None]]:
        """Return the shortest way to ``codes``: the encoder, where it is of the features alone."""
        return self.codes if self.columns is not None or self._folded else self.encoder

    def _is_final(self, x: Tensor) -> bool:
        """Say whether nobody follows what is worked out: no gradients, no compiler."""
        followed = torch.is_grad_enabled() and (
            x.requires_grad or self.encoder.weight.requires_grad
        )
        return not followed and not torch.compiler.is_compiling()

    def _contested(self, x: Tensor, stream: Modality | None) -> tuple[Tensor, Tensor | None]:
        assert self.columns is not None
        return self.encoder.contested(x, self.columns, stream)

    def _of_rows(
        self, touched: Encoder, x: Tensor, stream: Modality | None
    ) -> tuple[Tensor, Tensor | None]:
        before, scale = touched.with_bias(x, self._folded, stream), None
        if before is None:
            before, scale = touched(x, stream)
        flat = before.view(-1, before.shape[-1])
        some = flat > 0
        if len(flat) == 1:
            return self._contested(x, stream) if some.any() else (before.zero_(), scale)
        rows = some.any(1).nonzero()[:, 0]
        if len(rows) == len(flat):
            return self._contested(x, stream)
        codes = torch.zeros_like(before)
        if len(rows):
            streams = stream.flatten()[rows] if isinstance(stream, Mixed) else stream
            contested, _ = self._contested(x.reshape(-1, x.shape[-1])[rows], streams)
            codes.view(flat.shape)[rows] = contested
        return codes, scale

    def to(self, device: torch.device | str) -> Slice:
        """Return the same slice on another device."""
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
        info: What the file says it was trained on, such as ``model_name`` and ``hook_name``,
            which are compared with the host and the site it is used at.

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
        expect("decoder", self.decoder, (m, d))
        expect("decoder bias", self.decoder_bias, (d,))

    def __repr__(self) -> str:
        """Say on a line what it is."""
        return one_line(f"Dictionary({words(self)})")

    def _repr_html_(self) -> str:
        """Say it in a notebook."""
        return card("Dictionary", facts(self))

    @classmethod
    def identity(cls, width: int, norm: str = "none") -> Dictionary:
        """Make a dictionary of raw neurons: one feature per dimension, signed.

        Args:
            width: Size of the site's last axis.
            norm: As in ``Encoder``. For dominance at a joint embedding use
                ``constant_norm_rescale``: the host ignores the embeddings' lengths, which may
                differ between streams by any factor.
        """
        eye = torch.eye(width)
        encoder = Encoder(eye, torch.zeros(width), "identity", norm=norm)
        return cls(encoder, eye, torch.zeros(width))

    def read_at(self, site: str) -> str:
        """Return where the codes of a site's features are read: at the site itself."""
        return site

    def expect_site(self, site: str) -> None:
        """Refuse another site than the one the dictionary's file says it was trained at.

        Raises:
            VlmEditError: ``info`` names another site, layer or tower, or a place that is no site.
        """
        expect_site(self.info, site)

    def to(self, device: torch.device | str) -> Dictionary:
        """Return the same dictionary on another device."""
        return replace(
            self,
            encoder=self.encoder.to(device),
            decoder=self.decoder.to(device),
            decoder_bias=self.decoder_bias.to(device),
        )

    @property
    def width(self) -> int:
        """Return the size d of the activations."""
        return self.encoder.weight.shape[0]

    @property
    def n_features(self) -> int:
        """Return the number m of features."""
        return self.encoder.weight.shape[1]

    def normalise(self, x: Tensor, stream: Modality | None = None) -> Tensor:  # noqa: ARG002
        """Return activations as the decoder writes them: after the norm, before centring.

        Args:
            x: [..., d], any float dtype.
            stream: Makes no difference.

        Returns:
            [..., d] float32.
        """
        return self.encoder.normaliser.target(x.float())

    def digest(self) -> str:
        """Return 32 hexadecimal digits that another's weights do not have."""
        encoder = self.encoder
        vectors = [encoder.bias, encoder.threshold, encoder.subtract, self.decoder_bias]
        vectors += [encoder.centers[name] for name in sorted(encoder.centers)]
        # Row after row, as ``StoredDictionary`` reads them, and without a copy of the whole.
        matrices = [*encoder.weight.mT.split(_ROWS), self.decoder]
        return digest(encoder, [*vectors, *matrices])

    def summary(self) -> dict[str, Any]:
        """Return activation, norm and which streams are centred, JSON-able."""
        return summary(self.encoder)

    def encode(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Return the codes of activations.

        Args:
            x: [..., d], any float dtype.
            stream: For dictionaries that centre each apart: ``image``, ``text``, or for tokens of
                both ``Mixed.of(image=mask)``.

        Returns:
            [..., m] float32.

        Raises:
            VlmEditError: Wrong width, or a stream is needed.
        """
        return self.encoder(x, stream)[0]

    def encode_sparse(self, x: Tensor, stream: Modality | None = None) -> SparseCodes:
        """Return the codes of activations, kept sparse.

        Args:
            x: [n, d], any float dtype.
            stream: As in ``encode``.

        Returns:
            ``SparseCodes.of(encode(x))``, bit for bit, in less time and memory. For TopK, which of
            features with equal pre-activations stay in is left open, but is the same in both.

        Raises:
            VlmEditError: Wrong width or number of axes, or a stream is needed.

        Example:
            >>> import torch
            >>> from vlm_edit import Dictionary
            >>> codes = Dictionary.identity(width=3).encode_sparse(torch.tensor([[1.0, -2.0, 0.0]]))
            >>> codes.features, codes.values
            (tensor([0, 1]), tensor([ 1., -2.]))
        """
        return self.encoder.sparse(x, stream)

    def decode(self, codes: Tensor | SparseCodes) -> Tensor:
        """Return the activations of codes, in the dictionary's space: normed and centred.

        Args:
            codes: [..., m], dense, or sparse codes of n examples: those read only the decoder's
                rows that they name.

        Returns:
            [..., d] float32.

        Raises:
            VlmEditError: Codes of another dictionary's size.
        """
        if codes.shape[-1] != self.n_features:
            raise BadArgument(
                f"codes of {codes.shape[-1]} features meet a dictionary of {self.n_features}"
            )
        if isinstance(codes, SparseCodes):
            with autocast_off(codes.values.device):
                return self._gather(codes) + self.decoder_bias
        with autocast_off(codes.device):
            return codes.float() @ self.decoder + self.decoder_bias

    def reconstruct(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Return what the dictionary makes of activations, in their own space.

        Args:
            x: [..., d], any float dtype.
            stream: As in ``encode``.

        Returns:
            [..., d] float32: decoded, with the stream's center and the norm put back.

        Raises:
            VlmEditError: As in ``encode``.

        Example:
            >>> import torch
            >>> from vlm_edit import Dictionary
            >>> neurons = Dictionary.identity(width=3, norm="layer_norm")
            >>> neurons.reconstruct(torch.tensor([[1.0, 2.0, 6.0]])).round()
            tensor([[1., 2., 6.]])
        """
        decoded = self.decode(self.encode(x, stream))
        if self.encoder.centers:
            decoded = decoded + self.encoder.center(stream)
        return self.encoder.normaliser.restore(decoded, x.float())

    def standardised(self, mean: Tensor, scale: Tensor | float) -> Dictionary:
        """Return the same dictionary for activations that are not yet standardised.

        Some dictionaries were trained on ``(x - mean) / scale`` and their files do not keep the
        two: measure them on the host's activations and put them in here.

        Args:
            mean: [d].
            scale: [d], or one number; above 0.

        Returns:
            A dictionary whose codes of x are this one's codes of ``(x - mean) / scale``.

        Raises:
            VlmEditError: Shapes that do not fit, a scale that is not above 0, or a dictionary with
                a norm or centers, which would act on something else.

        Example:
            >>> import torch
            >>> from vlm_edit import Dictionary
            >>> mean, scale = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
            >>> Dictionary.identity(width=2).standardised(mean, scale).encode(
            ...     torch.tensor([3.0, 5.0])
            ... )
            tensor([1., 5.])
        """
        encoder, scale = self.encoder, torch.as_tensor(scale).float().expand(self.width)
        expect("mean", mean, (self.width,))
        if not bool((scale > 0).all()):
            raise BadArgument("every scale must be above 0: a dimension that never moves has 1")
        if not encoder.normaliser.plain or encoder.centers:
            raise BadArgument(
                "standardise activations only for a dictionary without norm and centers"
            )
        former = 0.0 if encoder.subtract is None else encoder.subtract
        moved = replace(
            encoder, weight=encoder.weight / scale[:, None], subtract=mean + former * scale
        )
        bias = self.decoder_bias * scale + mean
        return replace(self, encoder=moved, decoder=self.decoder * scale, decoder_bias=bias)

    def reordered(self, order: Sequence[int]) -> Dictionary:
        """Return the same dictionary with its features in another order.

        Args:
            order: Every feature's number once; the first becomes feature 0.

        Raises:
            VlmEditError: Not such an order, or an activation whose neighbours compete
                (``groupmax``).

        Example:
            >>> import torch
            >>> from vlm_edit import Dictionary
            >>> Dictionary.identity(width=2).reordered([1, 0]).encode(torch.tensor([3.0, 5.0]))
            tensor([5., 3.])
        """
        if sorted(order) != list(range(self.n_features)):
            raise BadArgument(f"an order names each of {self.n_features} features once")
        encoder = self.encoder
        if encoder.competes and encoder.activator.group(self.n_features) is not None:
            raise BadArgument(
                f"features of {encoder.activation} compete with their neighbours: keep the order"
            )
        return replace(self, encoder=encoder.select(order), decoder=self.decoder[list(order)])

    def _gather(self, codes: SparseCodes) -> Tensor:
        """Weight and sum the decoder's rows, [n, d]."""
        counts = codes.rows.bincount(minlength=len(codes))
        return F.embedding_bag(
            codes.features,
            self.decoder,
            counts.cumsum(0) - counts,
            mode="sum",
            per_sample_weights=codes.values.float(),
        )

    def explained_variance(self, x: Tensor, stream: Modality | None = None) -> float:
        """Return the share of the variance of activations that the reconstruction explains.

        Args:
            x: [n, d].
            stream: As in ``encode``.

        Returns:
            1 minus the squared error over the variance about the mean; at most 1.
        """
        normed = self.normalise(x)
        if self.encoder.centers:
            normed = normed - self.encoder.center(stream)
        error = (normed - self.decode(self.encode(x, stream))).square().sum()
        return float(1 - error / (normed - normed.mean(0)).square().sum())

    def check(
        self,
        activations: Tensor,
        stream: Modality | None = None,
        *,
        warn: bool = True,
        trained_here: bool = False,
    ) -> Check:
        """Say how well the dictionary fits activations, and what is probably wrong where not.

        Where little is explained it is tried what would explain more: another norm or scale,
        activations centred or standardised, a bias that is subtracted or not, matrices the other
        way round, the other stream. What helps most is named; if nothing helps, the activations
        are probably another layer's or another host's.

        Args:
            activations: [..., d], some hundreds or more, as the host gives them.
            stream: As in ``encode``.
            warn: Whether to tell what looks wrong by Python's warnings too.
            trained_here: Whether it is known to be trained on this host at this site: where little
                is explained it was trained too little, and nothing else is tried.

        Returns:
            Explained variance, L0, dead share, and warnings; print it.

        Raises:
            VlmEditError: As in ``encode``, or fewer than two activations that differ.

        Example:
            >>> from vlm_edit import Host, zoo
            >>> from vlm_edit.measuring import collect
            >>> host = Host.of(*zoo.load_host())
            >>> pairs = zoo.load_pairs().select(range(64))
            >>> streams = collect(host, pairs, "joint", progress=False)
            >>> check = zoo.load_dictionary("joint").check(streams["text"], "text")
            >>> round(check.explained_variance, 1), check.warnings
            (0.8, ())
        """
        report = check(self, activations, stream, trained_here)
        if warn and report.warnings:
            warnings.warn("; ".join(report.warnings), stacklevel=2)
        return report

    def slice(self, features: Sequence[int], codes: bool = True) -> Slice:
        """Return what an edit of these features needs of the dictionary.

        Args:
            features: Their numbers.
            codes: Whether it needs their codes; without, all of them are 0 and only the norm of
                the encoder is kept.

        Raises:
            VlmEditError: A feature that the dictionary does not have.
        """
        expect_features(features, self.n_features)
        index = torch.as_tensor(list(features), dtype=torch.long)
        rows = self.decoder[index]
        if not codes:
            blank = self.encoder.blank(len(index))
            return Slice(tuple(features), blank, rows, self.n_features)
        if self.encoder.competes:
            return Slice(tuple(features), self.encoder, rows, self.n_features, index)
        return Slice(tuple(features), self.encoder.select(features), rows, self.n_features)


def expect_features(features: Sequence[int], n_features: int) -> None:
    """Refuse a feature that a dictionary does not have."""
    wrong = [f for f in features if not 0 <= f < n_features]
    if wrong:
        raise BadArgument(
            f"feature {wrong[0]} is not in this dictionary: it has features 0 to {n_features - 1}"
        )
