"""Simple defences that need no dictionary: noise, JPEG, a low-pass, centred embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument

# Annex K of the JPEG standard (ITU-T T.81): quantisation of luminance and of chrominance.
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *([99] * 32),
)
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on pixels; the choice is the mean over several draws.

    Attributes:
        sigma: Standard deviation, in units of pixels of [0, 1].
        seed: Of the draws, which go on from call to call.
    """

    sigma: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Start the generators of the draws."""
        if not self.sigma > 0:
            raise BadArgument(f"sigma is {self.sigma}: noise needs one above 0")
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(self.seed))
        object.__setattr__(self, "_here", {})

    def __call__(self, images: Tensor) -> Tensor:
        """Add noise to images [n, 3, h, w]; differentiable."""
        generator: torch.Generator = self._generator  # type: ignore[attr-defined]
        if images.device.type != "cpu":
            here: dict[torch.device, torch.Generator] = self._here  # type: ignore[attr-defined]
            if images.device not in here:
                here[images.device] = torch.Generator(images.device).manual_seed(self.seed)
            generator = here[images.device]
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return images + self.sigma * noise.to(images.dtype)


@dataclass(frozen=True)
class LowPass:
    """A low-pass: down to fewer pixels by area means, and up again; what is fine is gone.

    Attributes:
        size: Pixels per side in between.
    """

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Return images [n, 3, h, w] without what is fine; linear."""
        small = F.interpolate(images, size=(self.size, self.size), mode="area")
        return F.interpolate(small, size=images.shape[2:], mode="bilinear")


@dataclass(frozen=True)
class Jpeg:
    """JPEG and back, colours at full resolution, as Pillow's ``subsampling=0`` makes it.

    The gradient goes through the rounding as if it were not there (BPDA, Athalye et al. 2018,
    arXiv 1802.00420), and through all else as it is.

    Attributes:
        quality: 1 to 100, as libjpeg counts.

    Example:
        >>> import torch
        >>> image = torch.full((1, 3, 8, 8), 0.5)
        >>> bool((Jpeg(75)(image) - image).abs().max() < 0.01)
        True
    """

    quality: int = 75

    def __post_init__(self) -> None:
        """Check that the quality lies between 1 and 100."""
        if not 1 <= self.quality <= 100:
            raise BadArgument(f"JPEG quality is {self.quality}: it lies between 1 and 100")

    def __call__(self, images: Tensor) -> Tensor:
        """Return images [n, 3, h, w] as JPEG leaves them; differentiable."""
        to_ycc = images.new_tensor(_TO_YCC)
        ycc = torch.einsum("rc,nchw->nrhw", to_ycc, images * 255)
        ycc = _rounded(ycc) - ycc.new_tensor([128.0, 0, 0]).view(3, 1, 1)
        height, width = images.shape[2:]
        padded = F.pad(ycc, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
        cosines = _cosines(images)
        frequencies = torch.einsum("ui,nchwij,vj->nchwuv", cosines, blocks, cosines)
        table = images.new_tensor(self._tables()).view(3, 1, 1, 8, 8)
        spectrum = _rounded(frequencies / table) * table
        back = torch.einsum("ui,nchwuv,vj->nchwij", cosines, spectrum, cosines)
        whole = back.permute(0, 1, 2, 4, 3, 5).reshape(padded.shape)[..., :height, :width]
        whole = _rounded(whole) + whole.new_tensor([128.0, 0, 0]).view(3, 1, 1)
        rgb = torch.einsum("cr,nrhw->nchw", torch.linalg.inv(to_ycc.double()).to(images), whole)
        return _rounded(rgb.clamp(0, 255)) / 255

    def _tables(self) -> list[list[int]]:
        scale = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        tables = (_LUMINANCE, _CHROMINANCE, _CHROMINANCE)
        return [[min(max((v * scale + 50) // 100, 1), 255) for v in table] for table in tables]


def _cosines(like: Tensor) -> Tensor:
    """Return the orthonormal DCT-II, [8, 8]."""
    i = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi / 8 * (i + 0.5) * i[:, None]) / 2
    rows[0] /= math.sqrt(2)
    return rows.to(like)


def _rounded(x: Tensor) -> Tensor:
    """Round x, with the gradient of x."""
    return x + (x.round() - x).detach()
