"""Load the host that the command names, and tell in a line what was loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vlm_edit.cli.flags import in_flags
from vlm_edit.cli.loading import Asking, Loading
from vlm_edit.ground.errors import VlmEditError, line
from vlm_edit.host import Host, loaded_as, quiet_when_piped

ZOO = "zoo:"


def load_host(name: str, how: Loading | None = None, prompts: bool = False) -> Host:
    """The model and its processor.

    Args:
        name: A folder, a name on the hub, or of the zoo.
        how: Arguments of the verb.
        prompts: Whether it is given prompts alone, which a pipeline encodes.

    Raises:
        VlmEditError: There is none of that name, it cannot be loaded, or has no processor.
    """
    with in_flags():
        host = _load(name, how)
        if host.is_pipeline and not prompts:
            raise VlmEditError(
                f"{name} is a pipeline ({host.kind.__name__}), which has no processor of "
                "images and texts: name the folder of one model; train and check take prompts "
                "alone, in a .txt file with one on each line"
            )
        if not host.is_pipeline:
            host.expect_processor("this command")
    tell(host, how)
    return host


def load_model(name: str, how: Loading | None = None) -> Host:
    """The model, or the pipeline of models, with a processor where there is one.

    Args:
        name: As for ``load_host``.
        how: Likewise.

    Raises:
        VlmEditError: There is none of that name, or it cannot be loaded.
    """
    with in_flags():
        host = _load(name, how)
    tell(host, how)
    return host


def _load(name: str, how: Loading | None) -> Host:
    quiet_when_piped()
    with _modules_here():
        host = Host.load(name, **(how or Loading()).loading())
    _ = host.adapter  # known to be there before anything long begins
    if isinstance(how, Asking) and how.prompt is not None:
        _ = host.template  # likewise understood
    return host


@contextmanager
def _modules_here() -> Iterator[None]:
    """Let an adapter lie in the working folder, behind all that is installed."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def tell(host: Host, how: Loading | None = None) -> None:
    """Tell on standard error, where no result is, what was loaded and how, and what it is asked.

    Args:
        host: What was loaded.
        how: Arguments of the verb.
    """
    if getattr(how, "quiet", False):
        return
    told = loaded_as(host)
    devices = {str(p.device).replace("meta", "disk") for p in host.root.parameters()}
    text = f"{host.kind.__name__} on {' and '.join(sorted(devices))} in {told['dtype']}"
    more = [told["quantization"], told["revision"] and f"commit {told['revision'][:12]}"]
    print(f"vlm-edit: {line(', '.join([text, *filter(None, more)]))}", file=sys.stderr)
    if not hasattr(how, "pairs") or host.processor is None:
        return
    asked = host.asks()
    if asked != "{text}":
        print(f"vlm-edit: each pair is asked as {line(repr(asked))}", file=sys.stderr)
