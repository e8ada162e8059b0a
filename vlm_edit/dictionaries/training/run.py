"""Train a dictionary."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.training.checkpoint import Checkpoint, Log
from vlm_edit.dictionaries.training.config import TrainConfig
from vlm_edit.dictionaries.training.data import Data, opened
from vlm_edit.dictionaries.training.distributed import expect_alike, world
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.errors import VlmEditError

# Steps between lines of the log and figures on the bar.
_TELL = 100


def train_dictionary(
    streams: Mapping[str, Tensor] | str | os.PathLike[str],
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
            n may differ. Or a safetensors file with tensors of these names, which is mapped: only
            batches are read into memory.
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
        VlmEditError: Activations or a config that cannot be trained with, or that are not the
            same in all processes; or a checkpoint of another config or other activations.

    Example:
        >>> import torch
        >>> from vlm_edit.dictionaries import TrainConfig, train_dictionary
        >>> config = TrainConfig(n_features=16, k=2, steps=50, batch_size=64)
        >>> found = train_dictionary({"image": torch.randn(200, 8)}, config, progress=False)
        >>> found.n_features
        16
    """
    config.expect()
    rank, processes = world()
    if processes > 1:
        given = streams if isinstance(streams, Mapping) else opened(streams)
        expect_alike(given, repr(config), torch.device(device))
    data = Data.of(streams, config)
    if config.batch_size // len(data.streams) % processes:
        raise VlmEditError(
            f"batch_size is {config.batch_size}; each stream's part of it must divide by the "
            f"{processes} processes"
        )
    trainer = Trainer(data, config, torch.device(device))
    saved = Checkpoint(checkpoint, every, trainer, data) if checkpoint is not None else None
    if saved is not None:
        saved.resume()
    lines = Log(log, trainer.done, trainer.figures)
    hidden = None if progress and rank == 0 else True
    with tqdm(
        total=config.steps, initial=trainer.done, desc="train dictionary", disable=hidden
    ) as bar:
        while trainer.done < config.steps:
            figures = trainer.step()
            bar.update()
            if trainer.done % _TELL == 0 or trainer.done == config.steps:
                lines.add(trainer.done, figures)
                told = {name: figures[name] for name in trainer.figures if name != "coefficient"}
                bar.set_postfix({name: f"{value:.3g}" for name, value in told.items()})
            if saved is not None:
                saved.keep(last=trainer.done == config.steps)
    kind = {"kind": "ncl"} if config.kind == "ncl" else {}  # what it explains is not its purpose
    return trainer.result({**kind, **(info or {})}, progress)
