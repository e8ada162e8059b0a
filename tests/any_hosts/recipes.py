"""What the sizes and the signature alone do not say of a type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from any_hosts import pixels
from any_hosts.sizes import IMAGE, Config

Finish = Callable[[Any, dict[str, Any]], dict[str, Any]]


def merged(entries: Config, changes: Config) -> None:
    """Write ``changes`` over ``entries``, part by part."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(entries.get(name), dict) and value:
            merged(entries[name], value)
        else:
            entries[name] = value


@dataclass(frozen=True)
class Recipe:
    """How a type differs from what its names say.

    Attributes:
        config: Entries written over the shrunk config.
        pixels: How it takes images; None: as its forward's arguments say.
        tokens: Placeholders of an image; None: as many as it makes features of one.
        around: Ids before and after an image's placeholders; None: the config's.
        size: Of its images.
        side: Where its texts are padded.
        finish: Changes the made inputs: gets the config and them.
        prepare: What must be done to the library before its forward runs.
        several: Whether a row may have several images.
        videos: How it takes videos; None: as its forward's arguments say.
        video_text: How a video stands in a text: its frames' placeholders "together", each frame
            between an image's ids ("framed"), or as an image each between the video's ids
            ("images").
        shown: Id of an image's placeholder.
        mixed: Whether images stand in its texts.
        ending: Ids that close every text.
    """

    config: Config | None = None
    pixels: pixels.Packing | None = None
    tokens: int | None = None
    around: tuple[list[int], list[int]] | None = None
    size: int = 16
    side: str = "left"
    finish: Finish | None = None
    prepare: Callable[[Any], None] | None = None
    several: bool = True
    shown: int = IMAGE
    mixed: bool = True
    videos: pixels.Packing | None = None
    video_text: str = "together"
    ending: tuple[int, ...] = ()


def text(**entries: Any) -> Config:
    return {"text_config": entries}


def seen(**entries: Any) -> Config:
    return {"vision_config": entries}
