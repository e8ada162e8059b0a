"""The pipeline of `emoji-unclip`: draws emoji from joint embeddings of `emoji-clip`.

Its UNet and its scheduler are diffusers' own classes, and the embeddings come from the host's own
`get_image_features` and `get_text_features`: a patch attached to the host acts on what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from vlm_edit.ground.errors import BadArgument

PATCH = 2


def condition(embeds: Tensor) -> Tensor:
    """Bring joint embeddings to the length that the UNet was trained on; zeros stay zeros.

    Args:
        embeds: Shape (batch, dim), of any length.

    Returns:
        Shape (batch, dim), each row of length `sqrt(dim)`.

    Example:
        >>> condition(torch.tensor([[3.0, 4.0, 0.0, 0.0]]))
        tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """
    return math.sqrt(embeds.shape[1]) * F.normalize(embeds, dim=1)


class UnclipPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draw images from joint embeddings of a CLIP, as unCLIP's decoder does.

    The UNet sees pixels, two by two unshuffled into channels, and predicts the velocity of a
    rectified flow from images to noise. The embedding enters as the UNet's class embedding;
    without one (zeros) it draws any image, which classifier-free guidance leads away from.

    Based on Ramesh et al. 2022 (https://arxiv.org/abs/2204.06125), Liu et al. 2022
    (https://arxiv.org/abs/2209.03003) and Ho and Salimans 2022 (https://arxiv.org/abs/2207.12598).

    Args:
        unet: Takes embeddings as `class_labels`.
        scheduler: Steps from noise to an image.
        clip: The host; only needed for prompts and images.
        processor: Its processor.
        guidance_scale: What a call takes that names none.
        num_inference_steps: What a call takes that names none.
    """

    _optional_components = ["clip", "processor"]
    model_cpu_offload_seq = "clip->unet"

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        clip: CLIPModel | None = None,
        processor: CLIPProcessor | None = None,
        guidance_scale: float = 2.0,
        num_inference_steps: int = 20,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, clip=clip, processor=processor)
        self.register_to_config(
            guidance_scale=guidance_scale, num_inference_steps=num_inference_steps
        )

    def encode_prompt(self, prompt: str | Sequence[str]) -> Tensor:
        """Embed texts by the host.

        Args:
            prompt: One text or several.

        Returns:
            Shape (texts, dim), as the host gives them.

        Raises:
            VlmEditError: The pipeline holds no host.
        """
        self._need_host()
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        inputs = self.processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        return _features(self.clip.get_text_features(**inputs.to(self.clip.device)))

    def encode_image(self, image: Image.Image | Sequence[Image.Image]) -> Tensor:
        """Embed images by the host.

        Args:
            image: One image or several.

        Returns:
            Shape (images, dim), as the host gives them.

        Raises:
            VlmEditError: The pipeline holds no host.
        """
        self._need_host()
        images = [image] if isinstance(image, Image.Image) else list(image)
        inputs = self.processor(images=images, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.clip.device, self.clip.dtype)
        return _features(self.clip.get_image_features(pixel_values=pixels))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: Image.Image | Sequence[Image.Image] | None = None,
        embeds: Tensor | None = None,
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw one image of each prompt, image or embedding.

        Args:
            prompt: Texts to embed by the host.
            image: Images to embed by the host.
            embeds: Joint embeddings, shape (batch, dim); their length does not matter.
            guidance_scale: 1 follows the embedding as it was learned, more follows it closer.
            num_inference_steps: Steps of the scheduler.
            num_images_per_prompt: Images of each; those of one lie together.
            generator: Draws the noise.
            latents: The noise itself, shape (images, 12, 32, 32).
            output_type: `pil`, `np` (height, width, 3 in [0, 1]) or `pt` (3, height, width).
            return_dict: Whether to wrap the images in diffusers' `ImagePipelineOutput`.

        Returns:
            The output, whose `images` are 64x64; a tuple of them where `return_dict` is false.

        Raises:
            VlmEditError: Not one of prompt, image and embeds, embeddings of another width, or no
                step.
        """
        embeddings = self._embeddings(prompt, image, embeds)
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        steps = num_inference_steps
        steps = self.config.num_inference_steps if steps is None else steps
        if steps < 1:
            raise BadArgument(f"num_inference_steps is {steps}: it must be at least 1")
        device, dtype = self._execution_device, self.unet.dtype
        embeddings = condition(embeddings.to(device, torch.float32)).to(dtype)
        embeddings = embeddings.repeat_interleave(num_images_per_prompt, dim=0)
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        shape = (len(embeddings), channels, size, size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise BadArgument(f"latents must be {shape}, got {tuple(latents.shape)}")
        sample = latents.to(device, dtype)
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=device)
        for time in self.progress_bar(self.scheduler.timesteps):
            velocity = self._velocity(sample, time, embeddings, scale)
            sample = self.scheduler.step(velocity, time, sample, return_dict=False)[0]
        pixels = (F.pixel_shuffle(sample.float(), PATCH) / 2 + 0.5).clamp(0, 1)
        images = _as_output(pixels, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _velocity(self, sample: Tensor, time: Tensor, given: Tensor, scale: float) -> Tensor:
        velocity: Tensor
        if scale == 1:
            times = time.expand(len(sample))
            velocity = self.unet(sample, times, None, class_labels=given).sample
            return velocity
        twice = torch.cat([given, torch.zeros_like(given)])
        times = time.expand(len(twice))
        both = self.unet(torch.cat([sample, sample]), times, None, class_labels=twice).sample
        led, free = both.chunk(2)
        velocity = free + scale * (led - free)
        return velocity

    def _embeddings(
        self,
        prompt: str | Sequence[str] | None,
        image: Image.Image | Sequence[Image.Image] | None,
        embeds: Tensor | None,
    ) -> Tensor:
        arguments = {"prompt": prompt, "image": image, "embeds": embeds}
        names = [name for name, value in arguments.items() if value is not None]
        if len(names) != 1:
            raise BadArgument(f"give one of prompt, image and embeds, got {names or 'none'}")
        if prompt is not None:
            embeds = self.encode_prompt(prompt)
        elif image is not None:
            embeds = self.encode_image(image)
        assert embeds is not None
        width = self.unet.config.projection_class_embeddings_input_dim
        if embeds.ndim != 2 or embeds.shape[1] != width:
            raise BadArgument(
                f"embeddings must be [batch, {width}], as the UNet was trained on, "
                f"got {list(embeds.shape)}"
            )
        return embeds

    def _need_host(self) -> None:
        if self.clip is None or self.processor is None:
            raise BadArgument(
                "the pipeline holds no CLIP to embed prompts and images: load it by "
                "zoo.load_unclip(), pass clip= and processor= to from_pretrained, or give embeds"
            )


def _features(output: Any) -> Tensor:
    """Return the embeddings of transformers 5, which wraps them, and of transformers 4."""
    features: Tensor = getattr(output, "pooler_output", output)
    return features


def _as_output(pixels: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return pixels
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return arrays
    if output_type == "pil":
        return [Image.fromarray(a) for a in np.rint(arrays * 255).astype(np.uint8)]
    raise BadArgument(f"output_type is pil, np or pt, got {output_type!r}")
