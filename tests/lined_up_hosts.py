"""Tiny random hosts that put image and text into one sequence by position, and inputs for them.

host = HOSTS["vilt"]
model = host.make()
model(**host.inputs())  # two pictures of their own size, two texts, the second padded
model(**host.inputs(pictures=(7, 1)))  # another picture in the first row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tiny_hosts import IMAGE_TOKEN, OPT, TINY, VISION, VOCABULARY, filled, library
from torch import Tensor, nn

Words = Sequence[Sequence[int]]
BEGIN, END = 1, 2  # ids that are no words
WORDS: Words = ((BEGIN, 5, 6, 7, END), (BEGIN, 9, END))
SIZES = {
    **{"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3},
    **{"num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 40},
    **{"pad_token_id": 0, "image_size": 16, "patch_size": 4},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
FORMER = {
    **{**TINY, "hidden_size": 16, "encoder_hidden_size": 24, "vocab_size": VOCABULARY},
    "cross_attention_frequency": 2,
}
BRIDGE = {**SIZES, "hidden_size": 64, "intermediate_size": 64}


@dataclass(frozen=True)
class LinedUp:
    """A tiny host and its inputs.

    Attributes:
        build: Makes the host, with the weights its library gives it.
        encode: Images [n, 3, 16, 16], ids [n, S] and their mask to the host's inputs.
        site: What the sites are called whose sequence holds both.
        path: Of the layers there.
        image: The columns of that sequence with image tokens, of texts of ``length`` tokens.
        neither: Columns with tokens of neither.
        reads: Whether those layers read the image themselves, through cross-attention.
    """

    build: Callable[[], nn.Module]
    encode: Callable[[Tensor, Tensor, Tensor], dict[str, Any]]
    site: str
    path: str
    image: Callable[[int], range]
    neither: range = range(0)
    reads: bool = False

    def make(self) -> nn.Module:
        """The host in eval mode, with weights large enough that every edit shows."""
        torch.manual_seed(0)
        return filled(self.build())

    def inputs(self, pictures: Sequence[int] = (0, 1), words: Words = WORDS) -> dict[str, Any]:
        """A batch of pictures, each fixed by its number, and as many texts."""
        images = []
        for number in pictures:
            generator = torch.Generator().manual_seed(number)
            images.append(torch.randn(3, 16, 16, generator=generator))
        rows = [torch.tensor(row) for row in words]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return self.encode(torch.stack(images), ids, (ids != 0).long())


def plain(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images}


def in_sizes(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Each second picture is 12 high and 8 wide, the rest of its square no part of it."""
    shown = torch.ones(len(images), 16, 16, dtype=torch.long)
    shown[1::2, 12:] = shown[1::2, :, 8:] = 0
    return {**plain(images * shown[:, None], ids, mask), "pixel_mask": shown}


def on_page(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    boxes = torch.arange(4) * 10 * mask[..., None]
    return {**plain(images, ids, mask), "bbox": boxes}


def detected(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Six things seen in each first picture, four in each second."""
    seen = torch.ones(len(images), 6, dtype=torch.long)
    seen[1::2, 4:] = 0
    made = {"input_ids": ids, "attention_mask": mask, "visual_attention_mask": seen}
    return {**made, "visual_embeds": images.flatten(1)[:, :48].reshape(-1, 6, 8)}


def masked(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    return {**plain(images, ids, mask), "input_ids_masked": ids.where(ids != 6, 3)}


def asked(frames: int) -> Callable[[Tensor, Tensor, Tensor], dict[str, Any]]:
    """The words are the Q-Former's; the language model has placeholders and an answer's first."""

    def encode(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        shown = [BEGIN, *[IMAGE_TOKEN] * 4 * frames, 5]
        said = torch.tensor([shown] * len(images))
        film = torch.stack([images, images.flip(-1)], 1)
        return {
            "input_ids": said,
            "attention_mask": torch.ones_like(said),
            "qformer_input_ids": ids,
            "qformer_attention_mask": mask,
            "pixel_values": film if frames > 1 else images,
        }

    return encode


def matched(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    return {**plain(images, ids, mask), "use_image_text_matching_head": True}


def matched_behind_places(images: Tensor, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """As its processor makes them: a placeholder for each query before the words."""
    places = ids.new_full((len(ids), 4), IMAGE_TOKEN)
    ids, mask = torch.cat([places, ids], 1), torch.cat([torch.ones_like(places), mask], 1)
    return matched(images, ids, mask)


def configured(kind: str, model: str, **more: Any) -> Callable[[], nn.Module]:
    return lambda: library(model)(library(f"{kind}Config")(**{**SIZES, **more}))


def flava(model: str, cls: bool = True) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        parts = dict.fromkeys(("image_config", "text_config"), SIZES)
        config = library("FlavaConfig")(
            **parts,
            multimodal_config={**SIZES, "use_cls_token": cls},
            projection_dim=12,
            hidden_size=24,
            init_codebook=False,
            return_loss=False,
        )
        return library(model)(config)

    return build


def bridgetower(model: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        parts = dict.fromkeys(("text_config", "vision_config"), BRIDGE)
        config = library("BridgeTowerConfig")(
            **parts, hidden_size=64, num_hidden_layers=2, num_attention_heads=2
        )
        config.contrastive_hidden_size, config.logit_scale_init_value = 12, 2.6
        return library(model)(config)

    return build


def instructed(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        place = "video_token_index" if kind.endswith("Video") else "image_token_index"
        config = library(f"{kind}Config")(
            vision_config=VISION,
            qformer_config=FORMER,
            text_config=OPT,
            num_query_tokens=4,
            **{place: IMAGE_TOKEN},
        )
        return library(f"{kind}ForConditionalGeneration")(config)

    return build


def retrieving(image_token: int | None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        config = library("Blip2Config")(
            vision_config=VISION,
            qformer_config={**FORMER, "use_qformer_text_input": True},
            text_config=OPT,
            num_query_tokens=4,
            image_text_hidden_size=12,
            image_token_index=image_token,
        )
        return library("Blip2ForImageTextRetrieval")(config)

    return build


LAYOUTLM = {
    "input_size": 16,
    "coordinate_size": 4,
    "shape_size": 4,
    "max_2d_position_embeddings": 64,
}


def behind(count: int) -> Callable[[int], range]:
    return lambda length: range(length, length + count)


def before(count: int, ahead: int = 0) -> Callable[[int], range]:
    return lambda _: range(ahead, ahead + count)


HOSTS: dict[str, LinedUp] = {
    # 16 patches and the image's cls token
    "vilt": LinedUp(
        configured("Vilt", "ViltModel"), in_sizes, "encoder", "encoder.layer", behind(17)
    ),
    "vilt_answering": LinedUp(
        configured("Vilt", "ViltForQuestionAnswering"),
        *(in_sizes, "encoder", "vilt.encoder.layer", behind(17)),
    ),
    "layoutlmv3": LinedUp(
        configured("LayoutLMv3", "LayoutLMv3Model", **LAYOUTLM),
        *(on_page, "encoder", "encoder.layer", behind(17)),
    ),
    "layoutlmv3_answering": LinedUp(
        configured("LayoutLMv3", "LayoutLMv3ForQuestionAnswering", **LAYOUTLM),
        *(on_page, "encoder", "layoutlmv3.encoder.layer", behind(17)),
    ),
    "visual_bert": LinedUp(
        configured("VisualBert", "VisualBertModel", visual_embedding_dim=8),
        *(detected, "encoder", "encoder.layer", behind(6)),
    ),
    "flava": LinedUp(
        flava("FlavaModel"),
        *(plain, "multimodal", "multimodal_model.encoder.layer", before(17, 1), range(1)),
    ),
    "flava_without_cls": LinedUp(
        flava("FlavaModel", cls=False),
        *(plain, "multimodal", "multimodal_model.encoder.layer", before(17)),
    ),
    "flava_pretraining": LinedUp(
        flava("FlavaForPreTraining"),
        *(masked, "multimodal", "flava.multimodal_model.encoder.layer", before(17, 1), range(1)),
    ),
    "instructblip": LinedUp(
        instructed("InstructBlip"),
        *(asked(1), "qformer", "qformer.encoder.layer", before(4), range(0), True),
    ),
    "instructblipvideo": LinedUp(
        instructed("InstructBlipVideo"),
        *(asked(2), "qformer", "qformer.encoder.layer", before(4), range(0), True),
    ),
    "blip2_matching": LinedUp(
        retrieving(None),
        *(matched, "qformer", "qformer.encoder.layer", before(4), range(0), True),
    ),
    "blip2_matching_behind_places": LinedUp(
        retrieving(IMAGE_TOKEN),
        *(matched_behind_places, "qformer", "qformer.encoder.layer", before(4), range(0), True),
    ),
}
BRIDGETOWER = {
    name: LinedUp(bridgetower(name), plain, "multimodal", "", lambda _: range(0))
    for name in ("BridgeTowerModel", "BridgeTowerForContrastiveLearning")
}
