"""Have layers hand on what they are called with, so that no token looks at another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks.dispatch import hidden_of, replace_hidden
from vlm_edit.hooks.methods import StandIn
from vlm_edit.hooks.on_host import expect_there
from vlm_edit.host import Host, Model, Tap

Key = int | str


class BypassStandIn(StandIn):
    """Stand for the forward of a layer that hands on what it is called with.

    Args:
        tap: Of the layer. Its first call runs the layer, to see in what it gives its output.
    """

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap.module, "forward", self._hand_on)
        self._field = tap.field
        self._thread = threading.get_ident()  # others may be calling the host
        self._key: Key | None = None
        self._form: Any = None

    def _hand_on(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return original(*args, **kwargs)
        if self._key is not None:
            return replace_hidden(self._form, _given(self._key, args, kwargs), self._field)
        output = original(*args, **kwargs)
        hidden = hidden_of(output, self._module(), self._field)
        self._key = _key_of(hidden, args, kwargs)
        if self._key is None:
            return output
        self._form = replace_hidden(output, hidden.new_empty(0), self._field)
        return replace_hidden(output, _given(self._key, args, kwargs), self._field)


@contextmanager
def bypassed(host: Host | Model, *names: str) -> Iterator[None]:
    """Have layers hand on what they are called with, in this thread, while the block runs.

    A layer gives out its input in the form of its output, and is run only once, to see that form.
    One whose output has another shape than anything it is called with runs on as it is.

    Args:
        host: The host.
        *names: Sites that are layers, such as ``vision.0``.

    Raises:
        VlmEditError: An unknown site, no adapter, a site that is no output of a module, or a host
            that is compiled.

    Example:
        >>> import torch
        >>> from vlm_edit import Host, record, zoo
        >>> from vlm_edit.hooks import bypassed
        >>> host, pairs = Host.load("zoo:emoji-clip", device="cpu"), zoo.load_pairs()
        >>> inputs = host.inputs([pairs.open(0)], ["a cat"])
        >>> with bypassed(host, "vision.1"), record(host, "vision.0", "vision.1") as recording:
        ...     _ = host(**inputs.values)
        >>> torch.equal(recording.captures[0].hidden, recording.captures[1].hidden)
        True
    """
    host = Host.of(host)
    if hasattr(host.model, "_orig_mod") or any(
        module._compiled_call_impl is not None for module in host.root.modules()
    ):
        raise CannotKnow(
            f"{host.kind.__name__} is compiled, and its code would not see that layers are "
            "bypassed: give Host.of(...) the model as it was before it was compiled"
        )
    taps = {tap.module: tap for name in names for tap in host.site(name).taps}
    for tap in taps.values():
        expect_there(tap.module)
        if tap.method is not None or tap.columns is not None:
            raise BadArgument(
                f"{tap.path!r} is no output of a module, and cannot be bypassed: name the layer "
                "that it is in"
            )
    stand_ins: list[BypassStandIn] = []
    try:
        for tap in taps.values():
            stand_ins.append(BypassStandIn(tap))
        yield
    finally:
        for stand_in in stand_ins:
            stand_in.remove()


def _key_of(hidden: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Key | None:
    """Return which argument is the state that the output goes on from; None where none may be."""
    given: list[tuple[Key, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in given:
        alike = isinstance(value, Tensor) and value.is_floating_point()
        if alike and value.shape == hidden.shape:
            return key
    return None


def _given(key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    value: Tensor = args[key] if isinstance(key, int) else kwargs[key]
    return value
