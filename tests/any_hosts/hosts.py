"""Building a host of a type and making its inputs."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_hosts import filled
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from any_hosts import pixels, sizes
from any_hosts.decoders import DECODERS
from any_hosts.others import OTHERS
from any_hosts.recipes import Recipe, merged

RECIPES = {**DECODERS, **OTHERS}


class NotBuilt(Exception):
    """A host cannot be built here; says why in the host's own words."""


READING: dict[str, Any] = {
    **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "phi4_multimodal": "Phi4MultimodalForCausalLM",
}
MATCHING: dict[str, Any] = modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES


def first(name: str | Sequence[str]) -> str:
    return name if isinstance(name, str) else name[0]


# Every type that sees images, and its class.
TYPES: dict[str, str] = {k: first(v) for k, v in sorted({**MATCHING, **READING}.items())}

# Types that also have a class which matches images and texts, and that class.
SECOND: dict[str, str] = {k: first(v) for k, v in MATCHING.items() if k in READING}


@dataclass(frozen=True)
class AnyHost:
    """A tiny host of one type.

    Attributes:
        type: ``model_type`` of its config.
        model: The host in eval mode, its weights random.
        side: Where its texts are padded.
        tokens: Placeholders of one image; 0 where a text shows none.
        video_tokens: Those of one video.
        videos: Whether it takes videos.
        several: Whether a row may have several images.
        generates: Whether it has ``generate``.
    """

    type: str
    model: nn.Module
    side: str = "left"
    tokens: int = 0
    video_tokens: int = 0
    videos: bool = False
    several: bool = True
    generates: bool = True
    recipe: Recipe = field(default_factory=Recipe, repr=False)

    def inputs(
        self,
        rows: list[list[int | str]],
        padded_side: str | None = None,
        numbers: Iterable[int] | None = None,
    ) -> dict[str, Any]:
        """Arguments of the host's forward.

        Args:
            rows: Ids of words, "I" where an image stands and "V" where a video does.
            padded_side: Where shorter rows are padded; None: where this host's are.
            numbers: Which images and which videos stand there; None: 0, 1, 2, ...
        """
        self.check(rows)
        made = self.texts(rows, padded_side or self.side)
        chosen = list(numbers or range(sum(map(len, rows))))
        for letter, packing in (("I", self.packing), ("V", self.video_packing)):
            every = iter(pixels.pictures(chosen, self.recipe.size))
            pictures = [list(itertools.islice(every, row.count(letter))) for row in rows]
            if any(pictures):
                made |= packing(self.model.config, pictures)
        finish = self.recipe.finish
        return finish(self.model.config, made) if finish else made

    def check(self, rows: list[list[int | str]]) -> None:
        """Refuse rows that the host cannot take."""
        if not self.videos and any("V" in row for row in rows):
            raise ValueError(f"{self.type} takes no videos")
        if not self.several and any(row.count("I") != 1 for row in rows):
            raise ValueError(f"{self.type} takes one image a row")

    @property
    def packing(self) -> pixels.Packing:
        """How images are laid out for it."""
        read = reader(self.model, "image")
        asked_for = set(inspect.signature(read or self.model.forward).parameters)
        if "args" in asked_for:
            asked_for = taken(self.model)
        return self.recipe.pixels or pixels.by_signature(asked_for)

    @property
    def video_packing(self) -> pixels.Packing:
        return self.recipe.videos or pixels.packed_videos

    def spelled(self, row: list[int | str]) -> list[tuple[int, int]]:
        """Ids of a row, images and videos as many placeholders as they take; and which is what.

        A word is a 0, an image's placeholder 1 and a video's 2.
        """
        before, after = self.recipe.around or around(self.model.config)
        made: list[tuple[int, int]] = []
        for place in row:
            if isinstance(place, int):
                made.append((place, 0))
            elif self.recipe.mixed and place == "I":
                made += between(before, [(self.recipe.shown, 1)] * self.tokens, after)
            elif self.recipe.mixed:
                made += self.spelled_video(before, after)
        return [*made, *((word, 0) for word in self.recipe.ending)]

    def spelled_video(self, before: list[int], after: list[int]) -> list[tuple[int, int]]:
        way = self.recipe.video_text
        if way == "together":
            return between(before, [(sizes.VIDEO, 2)] * self.video_tokens, after)
        shown = sizes.IMAGE if way == "images" else sizes.VIDEO
        frames = between(before, [(shown, 2)] * (self.video_tokens // 2), after) * 2
        if way == "images":
            return between([sizes.VIDEO_START], frames, [sizes.VIDEO_END])
        return frames

    def texts(self, rows: list[list[int | str]], side: str) -> dict[str, Any]:
        """Ids of the rows, which of them are real, and what kind each is where the host asks."""
        spelled = [self.spelled(row) for row in rows]
        ids = padded([[word for word, _ in row] for row in spelled], side)
        kinds = padded([[kind for _, kind in row] for row in spelled], side)
        names = {"mm_token_type_ids", "token_type_ids"} if self.recipe.mixed else set()
        return {
            "input_ids": ids,
            "attention_mask": padded([[1] * len(row) for row in spelled], side),
            **{name: kinds for name in names & taken(self.model)},
        }


def between(
    before: list[int], body: list[tuple[int, int]], after: list[int]
) -> list[tuple[int, int]]:
    return [*((word, 0) for word in before), *body, *((word, 0) for word in after)]


def padded(rows: list[list[int]], side: str) -> Tensor:
    """Rows of one length, filled with 0."""
    longest = max(map(len, rows))
    fills = [[0] * (longest - len(row)) for row in rows]
    pairs = zip(fills, rows, strict=True)
    return torch.tensor([[*f, *row] if side == "left" else [*row, *f] for f, row in pairs])


def reader(model: nn.Module, kind: str) -> Any:
    """The host's or its inner model's function that makes features of an image or a video."""
    name = f"get_{kind}_features"
    return getattr(model, name, None) or getattr(getattr(model, "model", model), name, None)


def sees(model: nn.Module) -> bool:
    return any("pixel" in name or "image" in name for name in taken(model))


def taken(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def around(config: Any) -> tuple[list[int], list[int]]:
    """The ids that the config says stand before and after an image's."""
    ids = {name for name, value in config.to_dict().items() if value is not None}
    marks = {value: name for name, value in sizes.IDS.items() if name in ids}
    return [i for i in [sizes.START] if i in marks], [i for i in [sizes.END] if i in marks]


def places(features: Any) -> int:
    """For how many places a host made features."""
    if isinstance(features, (list, tuple)):
        return sum(map(places, features))
    if isinstance(features, Tensor):
        return features[..., 0].numel()
    return places(features.pooler_output)


def asked(host: AnyHost, kind: str) -> int:
    """How many placeholders one image or video wants, by what the host makes of it."""
    packing = host.packing if kind == "image" else host.video_packing
    made = packing(host.model.config, [pixels.pictures(range(1), host.recipe.size)])
    read = reader(host.model, kind)
    if read is None:  # frames are read as images are
        read = reader(host.model, "image")
        made = {name.removesuffix("_videos"): value for name, value in made.items()}
    names = set(inspect.signature(read).parameters)
    if "args" not in names and f"{kind}_merge_sizes" not in made:
        made = {name: value for name, value in made.items() if name in names}
    with torch.no_grad():
        return places(read(**made))


def made(model_type: str, class_name: str, recipe: Recipe) -> nn.Module:
    """The host with the library's own first weights."""
    config = sizes.tiny(model_type, lambda entries: merged(entries, recipe.config or {}))
    return getattr(importlib.import_module("transformers"), class_name)(config)


def build(model_type: str, class_name: str | None = None) -> AnyHost:
    """A tiny random host of a type.

    Args:
        model_type: One of ``TYPES``.
        class_name: Its class in ``SECOND``; None: the one in ``TYPES``.

    Raises:
        NotBuilt: It cannot be built here.
    """
    recipe = RECIPES.get(class_name or model_type, Recipe())
    class_name = class_name or TYPES[model_type]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = filled(made(model_type, class_name, recipe))
    except ImportError as error:
        raise NotBuilt(str(error).strip().split(". ")[0]) from error
    if not (model_type in RECIPES or sees(model)):
        raise NotBuilt(f"{class_name} takes no images")
    if recipe.prepare:
        recipe.prepare(model)
    host = AnyHost(
        model_type,
        model,
        recipe.side,
        videos=recipe.videos is not None or "video_grid_thw" in taken(model),
        several=recipe.several,
        generates=hasattr(model, "generate") and model.can_generate(),
        recipe=recipe,
    )
    return counted(host)


def counted(host: AnyHost) -> AnyHost:
    """``host`` that knows how many placeholders an image and a video take."""
    shared = {k: v for k, v in vars(host).items() if k not in ("tokens", "video_tokens")}
    recipe = host.recipe
    tokens = recipe.tokens if recipe.tokens is not None else asked(host, "image")
    return AnyHost(**shared, tokens=tokens, video_tokens=asked(host, "video") if host.videos else 0)
