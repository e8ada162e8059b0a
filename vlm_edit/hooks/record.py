"""Record what flows through sites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks.beside import Beside
from vlm_edit.hooks.dispatch import Callback, Handle, attach
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.host import Host, Model, Site, Stream


@dataclass(frozen=True, eq=False)
class Capture:
    """The output of one module in one call.

    Attributes:
        site: The site's name.
        hidden: [B, S, D] or [B, D], as it left the module, on its device, with its graph.
        tokens: What is known of its tokens.
    """

    site: str
    hidden: Tensor
    tokens: Tokens


@dataclass(eq=False)
class Recording:
    """The captures of a recording, in the order of the calls."""

    captures: list[Capture] = field(default_factory=list)

    def last(self, site: str, stream: Stream) -> Capture:
        """Return the newest capture of a stream at a site.

        Raises:
            VlmEditError: The host's forward did not run that module.
        """
        for capture in reversed(self.captures):
            if capture.site == site and capture.tokens.stream == stream:
                return capture
        raise BadArgument(
            f"nothing recorded of stream {stream!r} at site {site!r}: the host's forward did not "
            "run that module; call the host inside the with-block, with the inputs it needs"
        )


@contextmanager
def record(host: Host | Model, *names: str) -> Iterator[Recording]:
    """Record the outputs of sites while the block runs.

    Patches attached before the block show in the recording, patches attached inside do not.

    Args:
        host: The host.
        *names: Sites; of ``a+b``, several side by side, the states end to end.

    Yields:
        A Recording that grows with every call of the host.

    Raises:
        VlmEditError: An unknown site, or no adapter.

    Example:
        >>> import torch
        >>> from vlm_edit import zoo
        >>> host, processor = zoo.load_host()
        >>> inputs = processor(text=["a cat", "a dog"], return_tensors="pt", padding=True)
        >>> with record(host, "joint") as recording, torch.no_grad():
        ...     _ = host.get_text_features(**inputs)
        >>> recording.last("joint", "text").hidden.shape[0]
        2
    """
    host = Host.of(host)
    sites = [host.site(name) for name in names]
    recording = Recording()
    handles: list[Handle] = []
    try:
        for site in sites:
            for place, listen in _listeners(site, recording):
                handles.append(attach(host, place, listen))
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _listeners(site: Site, recording: Recording) -> Iterator[tuple[Site, Callback]]:
    """Yield where to listen for a site, and what notes it: of several side by side, the last."""
    beside = Beside(site.parts, site.parts[-1].name) if site.parts else None
    if beside is not None:
        yield from beside.listeners()

    def keep(hidden: Tensor, tokens: Tokens) -> Tensor:
        # The host may go on to add to it in place.
        whole = hidden.clone() if beside is None else beside.take(hidden)
        recording.captures.append(Capture(site.name, whole, tokens))
        return hidden

    yield (site.parts[-1] if site.parts else site), keep
