"""A judge: an encoder that is not the host, and says which examples are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.measuring.pairs import Pairs


@dataclass(frozen=True)
class Judge:
    """Encoders other than the host's, by which a feature's examples are compared.

    A feature is called interpretable if what activates it is alike; who says so must not be the
    model that is measured.

    Attributes:
        image: From n images to [n, d]; None to leave images out.
        text: From n texts to [n, d]; None to leave texts out.
        shared: Whether both are one space, as a CLIP's: then images are compared with texts too.
        name: What it is called in results.

    Example:
        >>> import torch
        >>> judge = Judge(text=lambda texts: torch.eye(9)[[len(t) for t in texts]], name="length")
        >>> judge.streams
        ('text',)
    """

    image: Callable[[Sequence[Image.Image]], Tensor] | None = None
    text: Callable[[Sequence[str]], Tensor] | None = None
    shared: bool = False
    name: str = "unnamed"

    def __post_init__(self) -> None:
        """Check that there is something to judge by."""
        if self.image is None and self.text is None:
            raise BadArgument("a judge needs an encoder of images, of texts, or both")
        if self.shared and (self.image is None or self.text is None):
            raise BadArgument("shared=True says that images and texts share a space: pass both")

    @property
    def streams(self) -> tuple[str, ...]:
        """Return the streams it can judge."""
        both = {"image": self.image, "text": self.text}
        return tuple(stream for stream, encoder in both.items() if encoder is not None)

    def embed(self, stream: str, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Embed one side of some pairs, [n, d] on the CPU.

        Raises:
            VlmEditError: The encoder gives another number of rows.
        """
        with torch.no_grad():
            if stream == "image":
                assert self.image is not None
                rows, count = self.image(images), len(images)
            else:
                assert self.text is not None
                rows, count = self.text(texts), len(texts)
        if rows.ndim != 2 or len(rows) != count:
            raise BadArgument(
                f"the judge's encoder of {stream}s gives {tuple(rows.shape)} for {count} of them: "
                f"it must give [{count}, d]"
            )
        return rows.detach().cpu()

    def embed_pairs(self, stream: str, pairs: Pairs, numbers: Sequence[int]) -> Tensor:
        """Embed one side of the pairs of these numbers, [n, d]."""
        some = pairs.select(numbers)
        images = [some.open(i) for i in range(len(some))] if stream == "image" else []
        return self.embed(stream, images, some.texts)
