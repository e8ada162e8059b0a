"""Train a dictionary by a config, step by step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.training.checkpoint import Checkpoint, Log
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data, Given, opened
from vlm_edit.dictionaries.training.distributed import expect_alike, world
from vlm_edit.dictionaries.training.reporting import Callback, expect_callbacks
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import BadArgument, VlmEditWarning
from vlm_edit.ground.files import expect_place

# Steps between lines of the log and figures on the bar.
_TELL = 100


def train_dictionary(
    streams: Given,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    info: Mapping[str, str] | None = None,
    *,
    start: Dictionary | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    log: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callback] = (),
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Dictionary:
    """Train a dictionary, shared by the streams.

    With ``batchtopk`` and ``matryoshka`` the ``k * batch`` largest codes of a batch stay. In use a
    threshold takes their place, the running mean of the smallest code that stayed, so that one
    activation's code does not depend on the others: the result has activation ``jumprelu``.

    With ``ncl`` only the encoder is trained. When it is done the decoder is the closed-form ridge
    regression from all codes to all normed and centred activations, see ``fit_decoder``.

    Where ``torch.distributed`` is initialised, each process takes an equal part of every batch,
    and all get the dictionary that one process would, up to rounding. Each must be given all
    activations: they are compared first.

    Args:
        streams: [n, d] activations by stream, ``image``, ``text`` or both, of any floating dtype;
            n may differ. Or a safetensors file with tensors of these names, or what ``collect``
            wrote (``load_activations``, or its folder): only batches are read into memory.
        config: Kind, sizes and steps.
        info: What it is trained on, kept in the dictionary; of an NCL head its ``kind``, too.
        start: A dictionary of the same size, norm and centring, whose weights the run begins with
            in place of random ones; the learning rate is warmed up all the same. Features without
            a threshold above 0 begin ``jumprelu`` with that of a new run.
        checkpoint: File for the state of the run. If it exists, the run goes on from there, to
            the same weights bit for bit. It stays when the run ends.
        every: Seconds between writes of the checkpoint.
        log: CSV file for step, explained variance, L0, dead features and coefficient; of ``ncl``,
            which reconstructs nothing while it is trained, for step, loss, accuracy (share of a
            batch's codes whose most similar one of the other side is their pair's), L0 and dead
            features.
        callbacks: Called with the step and its figures, those of the log by name, each time that
            the log gets a line: any function, or a ``reporter``. Of several processes the first
            calls them.
        device: Where to train; activations may lie there or elsewhere.
        progress: Whether to show a bar with explained variance (of ``ncl``, loss and accuracy), L0
            and dead features.

    Returns:
        The dictionary, on the CPU. Its decoder's rows have norm 1, unless it is of kind ``ncl``, or
        ``archetypal``, whose rows lie among the normed and centred activations themselves.

    Raises:
        VlmEditError: Activations, a config or a device that cannot be trained with or on, or that
            are not the same in all processes; a checkpoint or log that cannot be written, a
            checkpoint of another config or other activations. Training that diverges ends at the
            first step whose figures are not finite.

    Example:
        >>> import torch
        >>> from vlm_edit.dictionaries import TrainConfig, train_dictionary
        >>> config = TrainConfig(n_features=16, k=2, steps=50, batch_size=64)
        >>> dictionary = train_dictionary({"image": torch.randn(200, 8)}, config, progress=False)
        >>> dictionary.n_features
        16
    """
    config.expect()
    _expect_device(device)
    for name, path in {"checkpoint": checkpoint, "log": log}.items():
        if path is not None and world()[0] == 0:
            expect_place(path, name)
    expect_callbacks(callbacks)
    trainer = _begun(streams, config, torch.device(device), start)
    saved = Checkpoint(checkpoint, every, trainer) if checkpoint is not None else None
    if saved is not None:
        saved.resume()
    lines = Log(log, trainer.done, trainer.figures, config.steps)
    _take_steps(trainer, saved, (lines, *callbacks), progress)
    kind = {"kind": "ncl"} if config.kind == "ncl" else {}  # what it explains is not its purpose
    counts = [f"{count} {name}" for name, count in trainer.data.left_out.items() if count]
    told = {"left_out": ", ".join(counts)} if counts else {}
    return trainer.result({**kind, **told, **(info or {})}, progress)


def _begun(
    streams: Given, config: TrainConfig, device: torch.device, start: Dictionary | None
) -> Trainer:
    """Return a run at its first step, whose processes all have the same."""
    processes = world()[1]
    if processes > 1:
        told = repr(config) if start is None else f"{config!r} {start.digest()}"
        expect_alike(opened(streams), told, device)
    data = Data.of(streams, config)
    if config.batch_size // len(data.streams) % processes:
        raise BadArgument(
            f"batch_size is {config.batch_size}; each stream's part of it must divide by the "
            f"{processes} processes"
        )
    return Trainer(data, config, device, start)


def _take_steps(
    trainer: Trainer, saved: Checkpoint | None, callbacks: Sequence[Callback], progress: bool
) -> None:
    """Take the steps that are left; keep the state, and tell figures."""
    steps, rank = trainer.config.steps, world()[0]
    hidden = None if progress and rank == 0 else True
    figures: dict[str, float] = {}
    with tqdm(total=steps, initial=trainer.done, desc="train dictionary", disable=hidden) as bar:
        while trainer.done < steps:
            figures = trainer.step()
            bar.update()
            if trainer.done % _TELL == 0 or trainer.done == steps:
                for callback in callbacks if rank == 0 else ():
                    callback(trainer.done, figures)
                values = {name: figures[name] for name in trainer.figures if name != "coefficient"}
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
            if saved is not None:
                saved.keep(last=trainer.done == steps)
    if figures:
        _warn_of(figures, trainer.config)


def _warn_of(figures: dict[str, float], config: TrainConfig) -> None:
    """Warn of a training that came to nothing."""
    if not figures["l0"]:
        warnings.warn(
            VlmEditWarning(
                "no feature was active in the last batch: the dictionary is of no use. Train with "
                f"a smaller lr (it was {config.lr}), sparsity or mask"
            ),
            stacklevel=4,
        )
    elif figures.get("explained", 1.0) < 0:
        warnings.warn(
            VlmEditWarning(
                f"the dictionary explains {figures['explained']:.3g} of the variance of the last "
                f"batch, less than its mean does: train with a smaller lr (it was {config.lr})"
            ),
            stacklevel=4,
        )


def _expect_device(device: torch.device | str) -> None:
    """Refuse a device before anything is worked out for it."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BadArgument(f"device {str(device)!r} cannot be used here: {reason}") from error
