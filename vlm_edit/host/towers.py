"""Families of two towers, one for each stream, that end in a joint embedding: their rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vlm_edit.ground.errors import BadArgument
from vlm_edit.host.declare import Adapter, SiteRule, TapRule

# What layers of a tower are called, by its stream.
_NAMES = {"image": "vision.{i}", "text": "text.{i}"}


@dataclass(frozen=True)
class Tower:
    """A declaration of one tower, as a part of its host or alone.

    Attributes:
        stream: ``image``, whose layers are ``vision.{i}``, or ``text``, whose are ``text.{i}``.
        layers: Candidates of its layers' path, seen from the tower.
        joint: Candidates of the path where it ends in the joint embedding, seen from the host.
        width: Candidates for the layers' width, seen from the tower's config.
        path: Where the tower lies in the host; empty where the host holds its parts itself.
        config: The tower's config within the host's; empty where there is none.
        ends: What a layer ends in, as in ``TapRule``.
        joint_ends: What the joint embedding ends in, likewise.

    Example:
        >>> eye = Tower("image", ("layers.{i}",), ("head",), path="eye", config="eye_config")
        >>> rule = eye.alone().sites[0]
        >>> rule.name, rule.taps[0].paths, rule.width
        ('vision.{i}', ('layers.{i}', 'eye.layers.{i}'), ('hidden_size',))
    """

    stream: Literal["image", "text"]
    layers: tuple[str, ...]
    joint: tuple[str, ...]
    width: tuple[str | int, ...] = ("hidden_size",)
    path: str = ""
    config: str = ""
    ends: tuple[str, ...] = ()
    joint_ends: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a stream that no tower has."""
        if self.stream not in _NAMES:
            raise BadArgument(f"a tower's stream is 'image' or 'text', not {self.stream!r}")

    def alone(self, joint: tuple[str | int, ...] = (), optional: bool = True) -> Adapter:
        """Return the adapter of the tower as a host of its own.

        Its parts may then lie where the whole host has them, or right in it.

        Args:
            joint: Candidates for the width of the joint embedding; none if it never has one.
            optional: Whether such hosts may lack it.
        """
        paths = (*self.layers, *_below(self.path, self.layers))
        layers = self._layers(_once(paths), self.width)
        if not joint:
            return Adapter((layers,))
        inner = [path.removeprefix(f"{self.path}.") for path in self.joint]
        tap = self._joint(_once([*inner, *self.joint]))
        return Adapter((SiteRule("joint", (tap,), joint, optional=optional), layers))

    def within(self) -> SiteRule:
        """Return the rule of its layers in the whole host."""
        width = (n if isinstance(n, int) else _below(self.config, (n,))[0] for n in self.width)
        return self._layers(_below(self.path, self.layers), tuple(width))

    def embedding(self) -> TapRule:
        """Return the rule of its side of the joint embedding in the whole host."""
        return self._joint(self.joint)

    def _layers(self, paths: tuple[str, ...], width: tuple[str | int, ...]) -> SiteRule:
        taps = (TapRule(paths, self.stream, ends=self.ends),)
        return SiteRule(_NAMES[self.stream], taps, width)

    def _joint(self, paths: tuple[str, ...]) -> TapRule:
        return TapRule(paths, self.stream, ends=self.joint_ends)


def two_towers(image: Tower, text: Tower, width: tuple[str | int, ...]) -> Adapter:
    """Return the adapter of hosts of two towers: a joint embedding, and the layers of both.

    Args:
        image: The tower of images.
        text: The tower of texts. Where it is one module, calls of it are followed too, since hosts
            embed texts without their forward.
        width: Candidates for the joint embedding's width, as in ``SiteRule``.

    Raises:
        VlmEditError: Towers of other streams.

    Example:
        >>> eye = Tower("image", ("layers.{i}",), ("eye.head",), path="eye", config="eye_config")
        >>> words = Tower("text", ("layers.{i}",), ("words.head",), path="words")
        >>> [site.name for site in two_towers(eye, words, ("size",)).sites]
        ['joint', 'vision.{i}', 'text.{i}']
    """
    if (image.stream, text.stream) != ("image", "text"):
        raise BadArgument(
            f"two towers are image='image' and text='text', not {image.stream!r} and "
            f"{text.stream!r}"
        )
    joint = SiteRule("joint", (image.embedding(), text.embedding()), width)
    calls = (text.path,) if text.path else ()
    return Adapter((joint, image.within(), text.within()), calls=calls)


def _once(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(paths))


def _below(stem: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{stem}.{name}" for name in names) if stem else names
