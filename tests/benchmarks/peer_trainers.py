"""Train dictionaries with other libraries' own trainers, and read what they made as ours.

For ``planted_dictionaries`` and ``training_steps``, in the environment that ``.ci/peers`` makes.
Alike are the rows of every batch and their order, the number of features, k, the steps, a rate that
is warmed up over the first twentieth and decayed over the last fifth, and after how many steps a
feature counts as dead (200 where nothing else is said; overcomplete asks for no number). All else
is each library's default.

Where a kind has a penalty, its coefficient begins at the library's default and follows the L0 that
is missing by the rule that ours follows (``training.target``), unless the library has a target of
its own, as the JumpReLU of dictionary-learning and of sae-lens (its quadratic mode) has. What each
library asks its users to do to activations is done: dictionary-learning's are brought to a root
mean square norm of 1 where its ``trainSAE`` can take that back, sae-lens estimates its scale
itself, and overcomplete's are standardised by one mean and one deviation, since its decoder has no
bias.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch
from torch import Tensor

from vlm_edit import Dictionary, load_dictionary
from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.target import Target

DEAD_AFTER = 200
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
PENALISED = ("relu", "jumprelu", "gated")


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be trained.

    Attributes:
        kind: As ``TrainConfig`` names it.
        x: [n, d] activations.
        features: Size m.
        k: Features active per activation, or the target of those with a penalty.
        steps: Of the optimiser.
        batch: Rows of each.
        seed: Of weights and batches.
        lr: The rate; None for the library's own.
        dead_after: Steps after which a feature counts as dead.
        longest: As ours is told of, which the others have nothing for.
    """

    kind: str
    x: Tensor
    features: int
    k: int
    steps: int
    batch: int
    seed: int
    lr: float | None = None
    dead_after: int = DEAD_AFTER
    longest: float | None = None

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """Yield batches of activations, the same for every library."""
        g = torch.Generator().manual_seed(self.seed)
        while True:
            yield x[torch.randint(len(x), (self.batch,), generator=g)]

    def follows(self, sparsity: float) -> Target:
        """Return a coefficient that begins at a number and goes where the target asks for."""
        return Target(
            TrainConfig(
                self.features, self.k, self.steps, self.batch, kind=self.kind,  # type: ignore[arg-type]
                sparsity=sparsity, target_l0=self.k,
            )
        )  # fmt: skip


def l0(codes: Tensor) -> float:
    """Return the mean number of active features."""
    return float((codes.detach() != 0).sum(1).double().mean())


def vlm_edit(task: Task) -> Dictionary:
    """Train with our defaults."""
    target = task.k if task.kind in PENALISED else None
    config = TrainConfig(
        task.features, task.k, task.steps, task.batch, kind=task.kind,  # type: ignore[arg-type]
        target_l0=target, seed=task.seed, dead_after=task.dead_after, prefixes=PREFIXES,
        longest=task.longest,
    )  # fmt: skip
    if task.lr is not None:
        config = replace(config, lr=task.lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a target that is missed: the table shows it
        return train_dictionary({"image": task.x}, config, progress=False)


# Module, trainer, and what it must be told.
_LEARNING = {
    "relu": ("standard", "StandardTrainer"),
    "topk": ("top_k", "TopKTrainer"),
    "batchtopk": ("batch_top_k", "BatchTopKTrainer"),
    "jumprelu": ("jumprelu", "JumpReluTrainer"),
    "gated": ("gdm", "GatedSAETrainer"),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
}


def learning_trainer(task: Task) -> Any:
    """Return dictionary-learning's trainer of a kind, whose rate is scheduled as ours."""
    import importlib

    if "nnsight" not in sys.modules:  # which it wants below 0.4, for its buffers alone
        sys.modules["nnsight"] = types.ModuleType("nnsight")
        sys.modules["nnsight"].LanguageModel = object  # type: ignore[attr-defined]
    module, name = _LEARNING[task.kind]
    told: dict[str, Any] = {
        "steps": task.steps, "activation_dim": task.x.shape[1], "dict_size": task.features,
        "layer": 0, "lm_name": "none", "device": "cpu", "seed": task.seed,
        "warmup_steps": task.steps // 20, "decay_start": task.steps * 4 // 5,
    }  # fmt: skip
    if task.lr is not None:
        told["lr"] = task.lr
    if task.kind in PENALISED:
        told["sparsity_warmup_steps"] = task.steps // 20
    else:
        told |= {"k": task.k, "threshold_start_step": task.steps // 2}
    if task.kind == "jumprelu":
        told["target_l0"] = float(task.k)
    if task.kind == "matryoshka":
        shares = (PREFIXES[0], *(b - a for a, b in zip(PREFIXES, PREFIXES[1:], strict=False)))
        told["group_fractions"] = list(shares)
    trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)(
        **told
    )
    trainer.dead_feature_threshold = task.dead_after * task.batch
    return trainer


def dictionary_learning(task: Task) -> Dictionary:
    """Train with dictionary-learning's trainer."""
    torch.manual_seed(task.seed)
    trainer = learning_trainer(task)
    scales = hasattr(trainer.ae, "scale_biases")
    scale = float(task.x.square().sum(1).mean().sqrt()) if scales else 1.0
    batches = task.rows(task.x / scale)
    if task.kind in ("relu", "gated"):
        _follow_codes(trainer, task)
    for step in range(task.steps):
        trainer.update(step, next(batches))
    if scales:
        trainer.ae.scale_biases(scale)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(trainer.ae.state_dict(), Path(folder, "ae.pt"))
        Path(folder, "config.json").write_text(json.dumps({"trainer": trainer.config}))
        return load_dictionary(folder)


def _follow_codes(trainer: Any, task: Task) -> None:
    """Let a trainer's penalty follow the L0 of what its dictionary encodes."""
    target, encode = task.follows(trainer.l1_penalty), trainer.ae.encode

    def seen(*args: Any, **kwargs: Any) -> Any:
        result = encode(*args, **kwargs)
        target.follow(l0(result[0] if isinstance(result, tuple) else result))
        trainer.l1_penalty = target.coefficient
        return result

    trainer.ae.encode = seen


def sae_lens_trainer(task: Task, batches: Iterator[Tensor]) -> Any:
    """Return sae-lens' trainer of a kind."""
    import sae_lens as library
    from sae_lens.config import SAETrainerConfig

    stem = {
        "relu": "Standard", "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU",
        "gated": "Gated", "matryoshka": "MatryoshkaBatchTopK",
    }[task.kind]  # fmt: skip
    told: dict[str, Any] = {
        "d_in": task.x.shape[1], "d_sae": task.features,
        "normalize_activations": "expected_average_only_in",
    }  # fmt: skip
    if task.kind not in PENALISED:
        told["k"] = task.k
    elif task.kind == "jumprelu":
        told |= {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(task.k)}
        told["l0_warm_up_steps"] = task.steps // 20
    else:
        told["l1_warm_up_steps"] = task.steps // 20
    if task.kind == "matryoshka":
        told["matryoshka_widths"] = [round(share * task.features) for share in PREFIXES]
    config = getattr(library, f"{stem}TrainingSAEConfig")(**told)
    sae = getattr(library, f"{stem}TrainingSAE")(config)
    rate = {} if task.lr is None else {"lr": task.lr}
    return library.SAETrainer(
        SAETrainerConfig(
            total_training_samples=task.steps * task.batch, train_batch_size_samples=task.batch,
            lr_end=0.0, lr_warm_up_steps=task.steps // 20, lr_decay_steps=task.steps // 5,
            dead_feature_window=task.dead_after, n_batches_for_norm_estimate=50, **rate,
        ),
        sae,
        batches,
    )  # fmt: skip


def sae_lens(task: Task) -> Dictionary:
    """Train with sae-lens' trainer, and take what it saves for use."""
    torch.manual_seed(task.seed)
    trainer = sae_lens_trainer(task, task.rows(task.x))
    if task.kind in ("relu", "gated"):
        scheduler = next(iter(trainer.coefficient_schedulers.values()))
        target, step = task.follows(scheduler.final_value), trainer.step

        def followed(batch: Tensor) -> Any:
            output = step(batch)
            target.follow(l0(output.feature_acts))
            scheduler.final_value = target.coefficient
            return output

        trainer.step = followed
    sae = trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return load_dictionary(folder)


def overcomplete_model(task: Task) -> tuple[Any, Any, Any]:
    """Return overcomplete's model of a kind, its optimiser and the schedule of its rate."""
    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE

    size = (task.x.shape[1], task.features)
    model = {
        "relu": lambda: SAE(*size),
        "topk": lambda: TopKSAE(*size, top_k=task.k),
        "batchtopk": lambda: BatchTopKSAE(*size, top_k=task.k * task.batch),
        "jumprelu": lambda: JumpSAE(*size),
    }[task.kind]()
    # No default: the rate of the library's own examples.
    optimiser = torch.optim.Adam(model.parameters(), lr=task.lr or 5e-4)

    def rate(step: int) -> float:
        done = step / task.steps
        return min(1.0, done / 0.05 + 1e-3, max(0.0, (1 - done) / 0.2))

    return model, optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, rate)


def overcomplete(task: Task) -> Dictionary:
    """Train with overcomplete's ``train_sae``, its auxiliary loss or its L1 penalty."""
    from overcomplete.sae import train_sae
    from overcomplete.sae.losses import mse_l1, top_k_auxiliary_loss

    torch.manual_seed(task.seed)
    mean, deviation = task.x.mean(0), float(task.x.std())
    model, optimiser, schedule = overcomplete_model(task)
    loss: Callable[..., Tensor] = top_k_auxiliary_loss
    if task.kind in PENALISED:
        target = task.follows(1.0)

        def loss(x: Tensor, x_hat: Tensor, pre: Tensor, z: Tensor, dictionary: Tensor) -> Tensor:
            target.follow(l0(z))
            penalty = target.coefficient * min(1.0, 20 * schedule.last_epoch / task.steps)
            return mse_l1(x, x_hat, pre, z, dictionary, penalty=penalty)

    batches = task.rows((task.x - mean) / deviation)
    given = (next(batches) for _ in range(task.steps))
    train_sae(model, given, loss, optimiser, schedule, nb_epochs=1, monitoring=0)
    model.eval()
    told: dict[str, Any] = {
        "relu": {"activation": "relu"},
        "topk": {"k": task.k},
        "batchtopk": {"threshold": float(getattr(model, "running_threshold", 0.0))},
        "jumprelu": {},
    }[task.kind]
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder, "sae.pt"))
        return load_dictionary(Path(folder, "sae.pt"), **told).standardised(mean, deviation)


# Who trains which kinds.
TRAINERS: dict[str, Callable[[Task], Dictionary]] = {
    "vlm_edit": vlm_edit,
    "dictionary-learning": dictionary_learning,
    "sae-lens": sae_lens,
    "overcomplete": overcomplete,
}
LACKS = {("overcomplete", "gated"), ("overcomplete", "matryoshka")}
