"""A host as an attack sees it: pixels in [0, 1] to embeddings, and to a choice among texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.host import Host, Model

Classifier = Callable[[Tensor], Tensor]  # images [n, 3, h, w] to logits [n, c]


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixel space of a host: what its processor makes of images, before it normalises.

    An attack's budget is counted here, after the image was brought to the host's size.

    Attributes:
        processor: Of images, such as a ``CLIPImageProcessor``.
        mean: Of each channel, as the processor subtracts it.
        std: As it divides by it.
    """

    processor: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Pixels:
        """Return the space of a processor of images, or of one of images and texts.

        Raises:
            VlmEditError: It handles no images, or does not bring pixels to [0, 1] first.
        """
        own = getattr(processor, "image_processor", processor)
        if not hasattr(own, "image_mean"):
            raise BadArgument(
                f"{type(processor).__name__} does not say how it normalises images: pass a "
                "transformers processor, or make Pixels(processor, mean, std) yourself"
            )
        if not getattr(own, "do_rescale", True) or abs(own.rescale_factor * 255 - 1) > 1e-6:
            raise BadArgument(
                f"{type(own).__name__} does not rescale pixels to [0, 1], where a budget such as "
                "4/255 is counted: set do_rescale=True and rescale_factor=1/255"
            )
        if not own.do_normalize:
            return cls(own, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return cls(own, tuple(own.image_mean), tuple(own.image_std))

    def read(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images as the host sees them, [n, 3, h, w] in [0, 1].

        Raises:
            VlmEditError: The processor cuts images into parts, or gives them several sizes.
        """
        batch = self.processor(images=list(images), do_normalize=False, return_tensors="pt")
        pixels = batch["pixel_values"]
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or len(pixels) != len(images):
            raise CannotKnow(
                f"{type(self.processor).__name__} makes no [n, 3, h, w] of {len(images)} images: "
                "hosts that cut images into parts cannot be attacked by pixels yet"
            )
        return pixels.float().clamp(0, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """Return what the host takes, of images [n, 3, h, w] in [0, 1]; differentiable."""
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


@dataclass(frozen=True, eq=False)
class ImageHost:
    """The image side of a host with a joint embedding; patches that are attached act.

    Attributes:
        host: Such as a ``CLIPModel``; open_clip's work too.
        pixels: Its pixel space.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> host = ImageHost.of(Host.of(*zoo.load_host()))
        >>> images = host.pixels.read([zoo.load_pairs().open(0)])
        >>> images.shape, host(images).shape
        (torch.Size([1, 3, 48, 48]), torch.Size([1, 192]))
    """

    host: Host
    pixels: Pixels

    @classmethod
    def of(cls, host: Host | Model) -> ImageHost:
        """Make the image side of a host, which has its processor.

        Raises:
            VlmEditError: The host embeds no images, or is in train mode.
        """
        host = Host.of(host)
        inner = host.root
        if not (hasattr(inner, "get_image_features") or hasattr(inner, "encode_image")):
            raise BadArgument(
                f"{type(inner).__name__} has neither get_image_features nor encode_image: an "
                "attack on embeddings needs a contrastive host; for one that speaks use captions"
            )
        host.expect_eval("an attack's gradients random")
        return cls(host, Pixels.of(host.expect_processor("an attack on pixels")))

    @property
    def device(self) -> torch.device:
        """Return where its weights are."""
        return self.host.device

    def __call__(self, images: Tensor) -> Tensor:
        """Return joint embeddings [n, d] of images [n, 3, h, w] in [0, 1]; differentiable."""
        inner: Any = self.host.root
        pixels = self.pixels.normalise(images).to(next(inner.parameters()).dtype)
        if hasattr(inner, "get_image_features"):
            return _embedding(inner.get_image_features(pixel_values=pixels))
        return cast("Tensor", inner.encode_image(pixels)).float()


@torch.no_grad()
def embed_texts(host: Host, texts: Sequence[str], batch_size: int = 256, **options: Any) -> Tensor:
    """Return joint embeddings of texts, of length 1; patches that are attached act.

    Args:
        host: One of transformers with ``get_text_features``, and its processor.
        texts: At least one.
        batch_size: Texts per forward.
        **options: For the processor, such as ``padding``; SigLIP's texts are padded to its limit.

    Returns:
        [c, d] float32.

    Raises:
        VlmEditError: No text, or another kind of host.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> embed_texts(Host.of(*zoo.load_host()), ["a cat", "a dog"]).shape
        torch.Size([2, 192])
    """
    host = Host.of(host)
    inner: Any = host.root
    processor = host.expect_processor("embedding texts")
    if not texts:
        raise BadArgument("no texts: a choice needs at least one")
    if not hasattr(inner, "get_text_features"):
        raise CannotKnow(
            f"{type(inner).__name__} has no get_text_features: embed the texts yourself and pass "
            "them to ZeroShot"
        )
    siglip = str(getattr(inner.config, "model_type", "")).startswith("siglip")
    settings = {"padding": "max_length" if siglip else True, "truncation": True} | options
    parts = []
    for start in range(0, len(texts), batch_size):
        some = list(texts[start : start + batch_size])
        inputs = processor(text=some, return_tensors="pt", **settings)
        parts.append(_embedding(inner.get_text_features(**inputs.to(host.device))))
    return F.normalize(torch.cat(parts), dim=1)


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """A choice of the text that is nearest to an image.

    Attributes:
        host: Embeds images.
        texts: [c, d], of length 1.
        scale: Multiplies cosines.
        centre: [d], subtracted from embeddings of length 1 of images; None for none. (Whoever
            centres texts too passes them so.)

    Example:
        >>> from vlm_edit import Host, zoo
        >>> host = Host.of(*zoo.load_host())
        >>> choose = ZeroShot.of(host, ["a picture of dog face", "a picture of car"])
        >>> choose(choose.host.pixels.read([zoo.load_pairs().open(0)])).shape
        torch.Size([1, 2])
    """

    host: ImageHost
    texts: Tensor
    scale: float = 100.0
    centre: Tensor | None = None

    @classmethod
    def of(cls, host: Host | Model, texts: Sequence[str], **options: Any) -> ZeroShot:
        """Make a choice among texts, which are embedded now, with the patches that are attached.

        Args:
            host: One of transformers with a joint embedding, and its processor.
            texts: One per class.
            **options: As for ``embed_texts``.

        Raises:
            VlmEditError: As ``ImageHost.of`` and ``embed_texts``.
        """
        host = Host.of(host)
        images = ImageHost.of(host)
        logit = getattr(host.root, "logit_scale", None)
        scale = float(logit.detach().exp()) if isinstance(logit, Tensor) else cls.scale
        return cls(images, embed_texts(host, texts, **options), scale)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [n, c] of images [n, 3, h, w] in [0, 1]; differentiable."""
        embeddings = F.normalize(self.host(images), dim=1)
        if self.centre is not None:
            embeddings = F.normalize(embeddings - self.centre, dim=1)
        return self.scale * embeddings @ self.texts.mT


def _embedding(found: Any) -> Tensor:
    """Return [n, d] float32 of what get_*_features returns, which transformers 5 wraps."""
    return cast("Tensor", getattr(found, "pooler_output", found)).float()
