"""Bridge Score: which features of images and which of texts carry the alignment of pairs.

After Papadimitriou et al., "Interpreting the Linear Structure of Vision-language Model Embedding
Spaces" (arXiv 2504.11695): ``B = E over pairs [z_image' z_text] * (D D')``, the product by entry.

Read so here: D are the decoder's rows as they are, and codes keep their sign. Then the entries of
B sum to the mean inner product of the reconstructed image and text (without the decoder's bias),
and B stays the same if a feature's code is scaled by what its row is divided by.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument
from vlm_edit.measures.interpretability.sums import add_weighted

MOST_FEATURES = 4096
_SCRATCH = 1 << 20  # float64 numbers of dense text codes at once: 8 MiB


class BridgeAccumulator:
    """Gather the Bridge Score over pairs that come in batches.

    Args:
        n_features: Size m of the dictionary.
        full: All pairs of features, [m, m], which keeps 8 * m * m bytes; otherwise each feature
            with itself only, [m].

    Raises:
        VlmEditError: ``full`` for more than 4096 features.

    Example:
        >>> import torch
        >>> bridge = BridgeAccumulator(n_features=2, full=True)
        >>> bridge.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 3.0]]))
        >>> bridge.compute(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        tensor([[2.0000, 3.6000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """

    def __init__(self, n_features: int, *, full: bool = False) -> None:
        if full and n_features > MOST_FEATURES:
            raise BadArgument(
                f"the full Bridge Score of {n_features} features has {n_features**2} entries; at "
                f"most {MOST_FEATURES} features: take full=False for each feature with itself, "
                "or pass the codes and decoder rows of fewer features"
            )
        shape = (n_features, n_features) if full else (n_features,)
        self._products = torch.zeros(shape, dtype=torch.float64)
        self._n = torch.zeros((), dtype=torch.int64)

    @property
    def full(self) -> bool:
        """Whether all pairs of features are kept."""
        return self._products.ndim == 2

    def update(self, image: Tensor | SparseCodes, text: Tensor | SparseCodes) -> None:
        """Add pairs, given by the codes of both streams.

        Args:
            image: [n, m], dense or sparse.
            text: [n, m], of the same pairs.

        Raises:
            VlmEditError: Other shapes.
        """
        codes = [
            SparseCodes.of(c.detach() if isinstance(c, Tensor) else c).to("cpu")
            for c in (image, text)
        ]
        images, texts = codes
        if images.shape != texts.shape or images.n_features != len(self._products):
            raise BadArgument(
                f"codes of images and texts must both be [n, {len(self._products)}], got "
                f"{images.shape} and {texts.shape}"
            )
        if self.full:
            self._add_full(images, texts)
        else:
            self._add_diagonal(images, texts)
        self._n += len(images)

    def merge(self, other: BridgeAccumulator) -> None:
        """Add the pairs of another accumulator.

        Raises:
            VlmEditError: Another number of features, or one is ``full`` and the other is not.
        """
        if other._products.shape != self._products.shape:
            raise BadArgument(
                f"Bridge accumulators of {tuple(self._products.shape)} and "
                f"{tuple(other._products.shape)} do not merge"
            )
        self._products = self._products + other._products
        self._n = self._n + other._n

    def compute(self, decoder: Tensor) -> Tensor:
        """Return the score, [m, m] image by text if ``full``, its diagonal [m] otherwise.

        Args:
            decoder: [m, width], the dictionary's rows.

        Returns:
            float64; NaN everywhere without pairs.

        Raises:
            VlmEditError: A decoder of other features.
        """
        if decoder.ndim != 2 or len(decoder) != len(self._products):
            raise BadArgument(
                f"the decoder must be [{len(self._products)}, width], got {tuple(decoder.shape)}"
            )
        rows = decoder.detach().to("cpu", torch.float64)
        alignment = rows @ rows.mT if self.full else rows.square().sum(1)
        return self._products / self._n * alignment

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was summed, to go on from: ``products`` and ``n``."""
        return {"products": self._products.clone(), "n": self._n.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            VlmEditError: A state of another number of features, or of the other ``full``.
        """
        for name in ("products", "n"):
            mine = getattr(self, f"_{name}")
            shape = tuple(state[name].shape) if name in state else "nothing"
            if shape != tuple(mine.shape):
                raise BadArgument(
                    f"{name} of a BridgeAccumulator must be {tuple(mine.shape)}, "
                    f"the state has {shape}"
                )
            setattr(self, f"_{name}", state[name].to("cpu", mine.dtype, copy=True))

    def _add_diagonal(self, images: SparseCodes, texts: SparseCodes) -> None:
        m = images.n_features
        order = (keys := texts.rows * m + texts.features).argsort()
        keys = keys[order]
        if not len(keys):
            return
        image_keys = images.rows * m + images.features
        place = torch.searchsorted(keys, image_keys).clamp_max(len(keys) - 1)
        both = keys[place] == image_keys
        products = images.values[both].double() * texts.values[order[place[both]]].double()
        self._products.index_add_(0, images.features[both], products)

    def _add_full(self, images: SparseCodes, texts: SparseCodes) -> None:
        m = images.n_features
        rows = max(1, _SCRATCH // max(m, 1))
        for start in range(0, len(images), rows):
            end = min(start + rows, len(images))
            part, other = _rows(images, start, end), _rows(texts, start, end)
            dense = torch.zeros(end - start, m, dtype=torch.float64)
            dense[other[0], other[1]] = other[2]
            add_weighted(self._products, part, dense)


def bridge_score(
    image: Tensor | SparseCodes,
    text: Tensor | SparseCodes,
    decoder: Tensor,
    *,
    full: bool = True,
) -> Tensor:
    """Compute the Bridge Score of all pairs at once.

    Args:
        image: [n, m], dense or sparse.
        text: [n, m], of the same pairs.
        decoder: [m, width], the dictionary's rows.
        full: All pairs of features, for at most 4096 of them; otherwise the diagonal.

    Returns:
        [m, m] float64, features of images by features of texts; [m] for the diagonal.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
        >>> bridge_score(codes, codes, torch.eye(2), full=False)
        tensor([5., 2.], dtype=torch.float64)
    """
    accumulator = BridgeAccumulator(image.shape[-1], full=full)
    accumulator.update(image, text)
    return accumulator.compute(decoder)


def _rows(codes: SparseCodes, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.searchsorted(codes.rows, torch.tensor([start, end])).tolist()
    part = slice(low, high)
    return codes.rows[part] - start, codes.features[part], codes.values[part].double()
