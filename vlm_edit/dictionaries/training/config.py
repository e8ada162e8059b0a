"""How a dictionary is trained."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Literal, get_args

from vlm_edit.dictionaries.norms import RmsNormOfInput, norm_of
from vlm_edit.ground.errors import BadArgument, UnknownName

Kind = Literal["relu", "topk", "batchtopk", "jumprelu", "matryoshka", "ncl", "gated", "archetypal"]
Frozen = Literal["decoder"]
Middle = Literal["mean", "median"]
Precision = Literal["float32", "bfloat16"]

_OF_NCL = ("temperature", "ridge")
_OF_ARCHETYPES = ("points", "delta")
_WHOLE = ("n_features", "k", "steps", "batch_size", "seed")
_MAY_BE_NONE = ("points", "dead_after")
_PATIENCE = 200  # steps that the default of dead_after never exceeds
_NUMBERS = (
    *("lr", "sparsity", "group", "align", "auxiliary", "mask", "bandwidth", "temperature"),
    *("ridge", "delta"),
)
_NOT_OF_NCL = (
    *("k", "auxiliary", "sparsity", "target_l0", "bandwidth", "prefixes", "group", "mask"),
    *("align", "frozen", "middle", "precision", "compile"),
)


@dataclass(frozen=True)
class TrainConfig:
    """How a dictionary is trained.

    Losses are shares of the batch's variance (of ``ncl``, InfoNCE), and activations are scaled to a
    root mean square norm of 1, so that coefficients mean the same at every site.

    Attributes:
        n_features: Size m.
        k: Features active per activation: of each with ``topk``, on average over a batch with
            ``batchtopk`` and ``matryoshka``. Auxiliary losses use twice as many in every kind.
        steps: Optimiser steps.
        batch_size: Activations per step, in equal parts of each stream.
        lr: Adam's learning rate, warmed up over the first 5 % and decayed over the last 20 %.
        norm: As in ``Encoder``.
        center: Whether to subtract each stream's mean after the norm.
        auxiliary: Weight of the loss by which dead features learn the error that is left.
        dead_after: Steps without activity after which a feature counts as dead. None for a
            fortieth of all steps, and 200 at most.
        seed: Of the initialisation and the batches.
        kind: ``relu``, with a penalty on the sum of codes times their decoder rows' norms;
            ``topk`` (Gao et al. 2024); ``batchtopk`` (Bussmann et al. 2024); ``jumprelu``, with a
            penalty on L0 through a rectangle kernel (Rajamanoharan et al. 2024); ``matryoshka``,
            BatchTopK whose prefixes reconstruct too (Bussmann et al. 2025). ``ncl``, a multimodal
            non-negative contrastive head (Wang et al. 2024, "Non-negative Contrastive Learning"):
            codes ``relu(x W + b)`` of the two sides of a pair, brought to length 1, are matched by
            the symmetric InfoNCE loss among the batch; the decoder is fitted afterwards, by least
            squares. It keeps what the two sides share, and learns few pairs by heart. It has no
            k, auxiliary, sparsity, target_l0, bandwidth, prefixes, group, mask, align, frozen,
            middle, precision or compile. ``gated``, whose gates decide which features are active,
            with a penalty on them and a loss of their own, and whose size is scaled apart
            (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse
            Autoencoders"); in use it is a JumpReLU. ``archetypal``, a TopK whose decoder rows are
            mixtures of activations and lie within ``delta`` of their convex hull (Fel et al. 2025,
            "Archetypal SAE"); it has no frozen decoder, and begins with no ``start``.
        sparsity: Coefficient of the penalty of ``relu``, ``jumprelu`` and ``gated``, which are the
            kinds that have one; where ``target_l0`` is given, the one to begin with.
        target_l0: Features active per activation that these kinds should reach: the coefficient is
            moved until they do, and what is missing at the end one number for all features makes
            up: a factor of the thresholds of ``jumprelu``, what is added to those of ``gated``, and
            to the biases of ``relu``. Missed by more than 5 % it warns. None to keep the
            coefficient.
        bandwidth: Width of ``jumprelu``'s kernel.
        prefixes: Shares of the features that ``matryoshka`` reconstructs with, rising to 1.
        group: Weight of the group-sparse penalty: the sum over features k of
            ``sqrt(image_k^2 + text_k^2)`` of the codes of a pair. Row i of both streams is a pair.
        align: Weight of Iso-Energy alignment (Dhimoila et al. 2026, arXiv 2602.06218): less by so
            much times the mean cosine of the codes of the two sides of a pair. The authors take
            1e-4. Row i of both streams is a pair.
        mask: Share of the features dropped at random before the activation, the same for both
            sides of a pair.
        temperature: Of ``ncl``: what its cosines are divided by. Fixed, not learnt. Higher ones
            make codes sparser and tell pairs apart less well; the authors' runs have 0.2.
        ridge: Of ``ncl``: penalty on its decoder, in units of the features' mean variance.
        clip: Norm that the gradient of a step is cut to where it is longer, so that few activations
            much longer than the others do not throw the weights about. None to leave it.
        longest: How many times the median of its stream an activation may be long, behind the norm;
            longer ones are left out, with their pair where rows are pairs, and counted in the
            dictionary's info. 10 leaves out the massive ones that many models have. None for all.
        frozen: ``decoder`` leaves its rows as they were drawn, random directions, and trains the
            rest: a baseline (arXiv 2602.14111) that a dictionary which has learnt directions must
            beat. None to train all.
        middle: Where the decoder's bias begins: the ``mean`` of the activations or their geometric
            ``median``, which few long ones do not move.
        precision: Of the products of activations and weights: ``bfloat16`` rounds them, while
            weights, losses and the optimiser stay float32.
        points: Of ``archetypal``: how many centroids of k-means over activations its rows mix.
            They hang on the activations, not on the seed, which draws where features begin. None
            for twice as many as features, or as many as there are activations.
        delta: Of ``archetypal``: how far a row may lie from its mixture, in units of the
            activations' root mean square norm; 0 for rows in the hull itself.
        compile: Whether ``torch.compile`` makes the loss and its gradient, to the same figures up
            to rounding. It needs a compiler: for a CPU, one of C++; for a card, triton.
    """

    n_features: int = 512
    k: int = 16
    steps: int = 4000
    batch_size: int = 1024
    lr: float = 3e-3
    norm: str = "none"
    center: bool = True
    auxiliary: float = 1 / 32
    dead_after: int | None = None
    seed: int = 0
    kind: Kind = "batchtopk"
    sparsity: float = 1e-2
    target_l0: float | None = None
    bandwidth: float = 0.05
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    group: float = 0.0
    mask: float = 0.0
    temperature: float = 0.1
    ridge: float = 1e-2
    clip: float | None = 0.05
    frozen: Frozen | None = None
    middle: Middle = "mean"
    precision: Precision = "float32"
    align: float = 0.0
    points: int | None = None
    delta: float = 0.1
    compile: bool = False
    longest: float | None = None

    @property
    def patience(self) -> int:
        """Return after how many steps without activity a feature counts as dead."""
        if self.dead_after is not None:
            return self.dead_after
        return min(_PATIENCE, max(1, self.steps // 40))

    @property
    def paired(self) -> bool:
        """Whether row i of both streams is one pair."""
        return self.kind == "ncl" or self.group > 0 or self.mask > 0 or self.align > 0

    @property
    def penalised(self) -> bool:
        """Whether the kind's loss has a penalty on sparsity."""
        return self.kind in ("relu", "jumprelu", "gated")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of the nested dictionaries."""
        if self.kind != "matryoshka":
            return (self.n_features,)
        return tuple(sorted({max(1, round(share * self.n_features)) for share in self.prefixes}))

    def expect(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            VlmEditError: Names the field, its value and what it may be.
        """
        if self.kind not in get_args(Kind):
            raise UnknownName(f"unknown kind {self.kind!r}: use one of {', '.join(get_args(Kind))}")
        if self.frozen not in (None, *get_args(Frozen)):
            raise UnknownName(f"frozen is {self.frozen!r}: use 'decoder', or None to train all")
        for name, words in {"middle": Middle, "precision": Precision}.items():
            if getattr(self, name) not in get_args(words):
                known = " or ".join(map(repr, get_args(words)))
                raise UnknownName(f"{name} is {getattr(self, name)!r}: use {known}")
        if norm_of(self.norm).reads:
            raise BadArgument(
                f"norm {self.norm!r} is read from files: its decoder writes what was never normed, "
                "which is not trained here; take constant_norm_rescale"
            )
        if isinstance(norm_of(self.norm), RmsNormOfInput):
            raise BadArgument(
                f"norm {self.norm!r} is of transcoders, which are not trained here; take "
                "constant_norm_rescale"
            )
        self._expect_numbers()
        self._expect_kind()
        if self.kind != "ncl" and not 1 <= self.k <= self.n_features:
            raise BadArgument(f"k is {self.k}; it must lie between 1 and {self.n_features}")
        for name in ("steps", "lr", "sparsity", "group", "align", "auxiliary", "delta"):
            value, least = getattr(self, name), int(name == "steps")
            if not (math.isfinite(value) and value >= least):
                raise BadArgument(f"{name} is {value}; it must be at least {least}")
        if not 0 <= self.mask < 1:
            raise BadArgument(f"mask is {self.mask}; it is a share of features, 0 up to below 1")
        if not 0 < self.bandwidth < math.inf:
            raise BadArgument(f"bandwidth is {self.bandwidth}; it must be above 0")
        self._expect_target()
        shares = self.prefixes
        if not shares or shares[-1] != 1 or not all(0 < share <= 1 for share in shares):
            raise BadArgument(f"prefixes are {shares}; they are shares above 0, the last of them 1")

    def _expect_numbers(self) -> None:
        given = [name for name in _MAY_BE_NONE if getattr(self, name) is not None]
        for name in (*_WHOLE, *given):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or isinstance(value, bool):
                raise BadArgument(f"{name} is {value!r}; it must be a whole number")
        for name in ("n_features", "batch_size"):
            if getattr(self, name) < 1:
                raise BadArgument(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise BadArgument(f"seed is {self.seed}; it must be a whole number of 64 bits")
        for name in _NUMBERS:
            if not isinstance(getattr(self, name), numbers.Real):
                raise BadArgument(f"{name} is {getattr(self, name)!r}; it must be a number")
        if self.clip is not None and not (
            isinstance(self.clip, numbers.Real) and 0 < float(self.clip) < math.inf
        ):
            raise BadArgument(f"clip is {self.clip!r}; it must be above 0, or None for no clipping")
        if self.longest is not None and not (
            isinstance(self.longest, numbers.Real)
            and not isinstance(self.longest, bool)
            and 1 <= float(self.longest) < math.inf
        ):
            raise BadArgument(
                f"longest is {self.longest!r}; it must be at least 1 median, or None for all"
            )

    def _expect_kind(self) -> None:
        """Refuse what the kind has no use for, and what a contrast cannot do with."""
        ncl, archetypal = self.kind == "ncl", self.kind == "archetypal"
        strange = {*(_NOT_OF_NCL if ncl else _OF_NCL)}
        strange |= {"frozen"} if archetypal else {*_OF_ARCHETYPES}
        for name, default in ((item.name, item.default) for item in fields(self)):
            value = getattr(self, name)
            if name in strange and value != default:
                raise BadArgument(
                    f"{name} is {value}, and kind {self.kind!r} has no {name}: leave it out"
                )
            if name in _OF_NCL and not 0 < value < math.inf:
                raise BadArgument(f"{name} is {value}; it must be a number above 0")
        if self.points is not None and self.points < 1:
            raise BadArgument(f"points is {self.points}; it must be at least 1, or None")
        for name, least in {"n_features": 2, "batch_size": 4}.items() if ncl else ():
            if getattr(self, name) < least:
                raise BadArgument(
                    f"{name} is {getattr(self, name)}; ncl tells pairs apart by their codes, and "
                    f"needs at least {least}"
                )

    def _expect_target(self) -> None:
        if self.target_l0 is None:
            return
        if not self.penalised:
            raise BadArgument(
                f"target_l0 goes with relu, jumprelu and gated; {self.kind} takes k instead"
            )
        if not 0 < self.target_l0 <= self.n_features:
            raise BadArgument(
                f"target_l0 is {self.target_l0}; it must lie above 0 and up to {self.n_features}"
            )
        if not self.sparsity:
            raise BadArgument("target_l0 needs a sparsity above 0 to begin with")
