"""Begin a run with a dictionary that is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.ground.errors import BadArgument

# Activations whose features are pre-activations that are above something.
_TRAINED = ("relu", "topk", "jumprelu")


@dataclass(frozen=True, eq=False)
class Start:
    """A dictionary's weights in the units of a run, with decoder rows of norm 1.

    Attributes:
        weight: [d, m].
        bias: [m].
        decoder: [m, d].
        decoder_bias: [d].
        threshold: [m], 0 where it has none.
    """

    weight: Tensor
    bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    threshold: Tensor

    @classmethod
    def of(cls, dictionary: Dictionary, data: Data, config: TrainConfig) -> Start:
        """Bring a dictionary into the units of a run.

        Its centres are left behind: the run has those of its own activations.

        Raises:
            BadArgument: A dictionary of another shape, norm or centring, or one that this kind of
                run cannot have.
        """
        _expect(dictionary, data, config)
        encoder, scale = dictionary.encoder, data.scale
        sizes = dictionary.decoder.float().norm(dim=1)
        if not bool((sizes > 0).all()):
            raise BadArgument("start has decoder rows of zeros: train those features anew")
        middle = dictionary.decoder_bias.float()
        subtract = torch.zeros_like(middle) if encoder.subtract is None else encoder.subtract
        weight = encoder.weight.float()
        bias = encoder.bias.float() + (middle - subtract.float()) @ weight
        threshold = torch.zeros_like(bias)
        if encoder.threshold is not None:
            threshold = threshold + encoder.threshold.float()
        return cls(
            weight * sizes,
            bias * sizes / scale,
            dictionary.decoder.float() / sizes[:, None],
            middle / scale,
            threshold * sizes / scale,
        )


def _expect(dictionary: Dictionary, data: Data, config: TrainConfig) -> None:
    if not isinstance(dictionary, Dictionary):
        raise BadArgument(
            f"start is a {type(dictionary).__name__}: give a Dictionary, loaded whole, of both "
            "streams"
        )
    if config.kind in ("ncl", "archetypal"):
        raise BadArgument(
            f"start goes with kinds whose decoder rows are trained themselves, not {config.kind}"
        )
    encoder = dictionary.encoder
    if encoder.activation not in _TRAINED or encoder.soft_cap is not None:
        raise BadArgument(
            f"start has activation {encoder.activation!r}, or a soft cap, and runs train none like "
            f"it: use one of {', '.join(_TRAINED)}"
        )
    for name, its, ours in (
        ("width", dictionary.width, len(data.mean)),
        ("n_features", dictionary.n_features, config.n_features),
        ("norm", encoder.norm, config.norm),
        ("center", bool(encoder.centers), config.center),
    ):
        if its != ours:
            raise BadArgument(f"start has {name} {its!r}, and this run {ours!r}: take the same")
