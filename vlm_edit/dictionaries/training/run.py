"""Train a dictionary by a config, step by step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm.auto import tqdm

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.training.checkpoint import Checkpoint, Log
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data, Given, opened
from vlm_edit.dictionaries.training.distributed import expect_alike, world
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import BadArgument

# Steps between lines of the log and figures on the bar.
_TELL = 100


def train_dictionary(
    streams: Given,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    info: Mapping[str, str] | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 60.0,
    log: str | os.PathLike[str] | None = None,
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
        checkpoint: File for the state of the run. If it exists, the run goes on from there, to
            the same weights bit for bit. It stays when the run ends.
        every: Seconds between writes of the checkpoint.
        log: CSV file for step, explained variance, L0, dead features and coefficient; of ``ncl``,
            which reconstructs nothing while it is trained, for step, loss, accuracy (share of a
            batch's codes whose most similar one of the other side is their pair's), L0 and dead
            features.
        device: Where to train; activations may lie there or elsewhere.
        progress: Whether to show a bar with explained variance (of ``ncl``, loss and accuracy), L0
            and dead features.

    Returns:
        The dictionary, on the CPU; with decoder rows of norm 1, unless it is of kind ``ncl``.

    Raises:
        VlmEditError: Activations, a config or a device that cannot be trained with or on, or that
            are not the same in all processes; a checkpoint or log that cannot be written, a
            checkpoint of another config or other activations, or weights that are no longer finite.

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
        _expect_place(name, path)
    rank, processes = world()
    if processes > 1:
        expect_alike(opened(streams), repr(config), torch.device(device))
    data = Data.of(streams, config)
    if config.batch_size // len(data.streams) % processes:
        raise BadArgument(
            f"batch_size is {config.batch_size}; each stream's part of it must divide by the "
            f"{processes} processes"
        )
    trainer = Trainer(data, config, torch.device(device))
    saved = Checkpoint(checkpoint, every, trainer, data) if checkpoint is not None else None
    if saved is not None:
        saved.resume()
    lines = Log(log, trainer.done, trainer.figures, config.steps)
    hidden = None if progress and rank == 0 else True
    with tqdm(
        total=config.steps, initial=trainer.done, desc="train dictionary", disable=hidden
    ) as bar:
        while trainer.done < config.steps:
            figures = trainer.step()
            bar.update()
            if trainer.done % _TELL == 0 or trainer.done == config.steps:
                lines.add(trainer.done, figures)
                values = {name: figures[name] for name in trainer.figures if name != "coefficient"}
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
            if saved is not None:
                saved.keep(last=trainer.done == config.steps)
            if trainer.done == config.steps and not figures["l0"]:
                warnings.warn(
                    "no feature was active in the last batch: the dictionary is of no use. Train "
                    f"with a smaller lr (it was {config.lr}), sparsity or mask",
                    stacklevel=2,
                )
    kind = {"kind": "ncl"} if config.kind == "ncl" else {}  # what it explains is not its purpose
    return trainer.result({**kind, **(info or {})}, progress)


def _expect_device(device: torch.device | str) -> None:
    """Refuse a device before anything is worked out for it."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BadArgument(f"device {str(device)!r} cannot be used here: {reason}") from error


def _expect_place(name: str, path: str | os.PathLike[str] | None) -> None:
    """Refuse a file that could not be written when the time for it has come."""
    if path is None:
        return
    if Path(path).is_dir():
        raise BadArgument(f"{name} is {os.fspath(path)!r}, a folder: name a file in it")
    if not Path(path).absolute().parent.is_dir():
        raise BadArgument(
            f"{name} is {os.fspath(path)!r}, and there is no folder {str(Path(path).parent)!r}: "
            "make it first"
        )
