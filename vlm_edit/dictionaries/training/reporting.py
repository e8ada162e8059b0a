"""Tell a run's figures to who asked for them: functions, and services that draw curves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError
from vlm_edit.ground.files import make_folder

Service = Literal["tensorboard", "trackio", "wandb"]
_PROJECT = "vlm-edit"
# What is imported of each, and what is installed for it.
_MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Callback(Protocol):
    """What is called as a run goes on."""

    def __call__(self, step: int, figures: Mapping[str, float], /) -> object:
        """Take the figures of a step; what is returned is not looked at."""


@contextmanager
def reporter(
    service: Service, folder: str | os.PathLike[str], settings: Mapping[str, Any] | None = None
) -> Iterator[Callback]:
    """Lend a callback that tells a service what a run's figures are, and end its run there.

    The service's package is imported here and nowhere else. A run that goes on after a kill tells
    the same figures of the same steps again.

    Args:
        service: ``tensorboard``, whose files are written to the folder; ``trackio`` or ``wandb``,
            whose project is "vlm-edit" and whose run is called as the folder is.
        folder: Of the run; made where it is missing, for ``tensorboard``.
        settings: What the run is told to have been trained with, for ``trackio`` and ``wandb``.

    Yields:
        What ``train_dictionary`` takes as one of its ``callbacks``.

    Raises:
        VlmEditError: An unknown service, one that is not installed, or a folder that cannot be
            written.

    Example:
        >>> with reporter("pigeon", "sae"):
        ...     pass
        Traceback (most recent call last):
        vlm_edit.ground.errors.UnknownName: no service 'pigeon': use tensorboard, trackio, wandb
    """
    module = service_of(service)
    if service == "tensorboard":
        writer = module.SummaryWriter(os.fspath(make_folder(folder)))
        try:
            yield lambda step, figures: _scalars(writer, step, figures)
        finally:
            writer.close()
        return
    run = module.init(project=_PROJECT, name=Path(folder).name, config=dict(settings or {}))
    try:
        yield lambda step, figures: run.log(dict(figures), step=step)
    finally:
        module.finish()


def service_of(service: Service) -> Any:
    """Import what tells a service of figures.

    Raises:
        VlmEditError: An unknown service, or one that is not installed.
    """
    if service not in get_args(Service):
        raise UnknownName(f"no service {service!r}: use {', '.join(get_args(Service))}")
    try:
        return import_module(_MODULES[service])
    except ImportError as error:
        raise VlmEditError(
            f"{service} cannot be imported ({error}): pip install {service}, or leave it out"
        ) from error


def expect_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse what cannot be called, before it would be.

    Raises:
        BadArgument: One of them is no function.
    """
    for callback in callbacks:
        if not callable(callback):
            raise BadArgument(
                f"callbacks holds {callback!r}, which cannot be called: give functions of a step "
                "and a dict of figures"
            )


def _scalars(writer: Any, step: int, figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        writer.add_scalar(f"train/{name}", value, step)
