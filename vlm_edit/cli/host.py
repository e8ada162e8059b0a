"""Load the host that the command names."""

from __future__ import annotations

from vlm_edit.ground.errors import VlmEditError
from vlm_edit.host import Host, quiet_when_piped

ZOO = "zoo:"


def load_host(name: str) -> Host:
    """The model and its processor.

    Raises:
        VlmEditError: There is none of that name, it cannot be loaded, or has no processor.
    """
    host = load_model(name)
    if host.is_pipeline:
        raise VlmEditError(
            f"{name} is a pipeline ({host.kind.__name__}), which has no processor of "
            "images and texts: name the folder of one model"
        )
    host.expect_processor("this command")
    return host


def load_model(name: str) -> Host:
    """The model, or the pipeline of models, with a processor where there is one.

    Raises:
        VlmEditError: There is none of that name, or it cannot be loaded.
    """
    quiet_when_piped()
    return Host.load(name, device="cpu")
