"""Steps in compiled code are the same steps, and where nothing can be compiled that is said."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_edit.dictionaries import TrainConfig, train_dictionary
from vlm_edit.dictionaries.training.checkpoint import Checkpoint
from vlm_edit.dictionaries.training.compiling import compiled
from vlm_edit.dictionaries.training.data import Data
from vlm_edit.dictionaries.training.objective import Objective
from vlm_edit.dictionaries.training.trainer import Trainer
from vlm_edit.ground.errors import BadArgument

CONFIG = TrainConfig(n_features=24, k=2, steps=60, batch_size=64, dead_after=5, auxiliary=0.5)
KINDS: dict[str, dict[str, Any]] = {
    "batchtopk": {"mask": 0.2, "group": 0.01},
    "gated": {"target_l0": 3.0},
    "jumprelu": {"target_l0": 3.0},
    "archetypal": {"points": 30, "align": 0.1},
}
CPU = torch.device("cpu")


def streams() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=g)
    return {"image": x, "text": x + 0.3 * torch.randn(400, 8, generator=g)}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code of another run, made with other kernels of the processor, would not compile here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def has_compiler() -> bool:
    try:
        torch.compile(lambda a: a + 1)(torch.ones(2))
    except RuntimeError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_give_the_dictionary_of_plain_ones(kind: str) -> None:
    if not has_compiler():
        pytest.skip("nothing can be compiled here")
    config = replace(CONFIG, kind=kind, **KINDS[kind])  # type: ignore[arg-type]
    plain = train_dictionary(streams(), config, progress=False)
    torch._dynamo.utils.counters.clear()
    fast = train_dictionary(streams(), replace(config, compile=True), progress=False)
    frames = torch._dynamo.utils.counters["frames"]
    # With and without dead features, and in parts where a part is left as it is.
    assert 0 < frames["ok"] == frames["total"] < 12
    for name in ("weight", "bias", "threshold"):
        ours = getattr(fast.encoder, name)
        if ours is not None:
            torch.testing.assert_close(ours, getattr(plain.encoder, name), rtol=0, atol=2e-4)
    torch.testing.assert_close(fast.decoder, plain.decoder, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_bits_and_not_as_another(tmp_path: Path) -> None:
    if not has_compiler():
        pytest.skip("nothing can be compiled here")
    config = replace(CONFIG, compile=True)
    whole = train_dictionary(streams(), config, progress=False)
    trainer = Trainer(Data.of(streams(), config), config, CPU)
    for _ in range(25):
        trainer.step()
    Checkpoint(tmp_path / "c", 0.0, trainer).keep(last=True)
    with pytest.raises(BadArgument, match="with another config"):
        train_dictionary(streams(), CONFIG, checkpoint=tmp_path / "c", progress=False)
    again = train_dictionary(streams(), config, checkpoint=tmp_path / "c", progress=False)
    assert again.digest() == whole.digest()


def test_what_would_be_compiled_anew_for_each_step_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda made: made)
    monkeypatch.setattr(
        torch.compiler, "disable", lambda method: left.append(method.__name__) or method
    )
    objective = Objective(torch.eye(3), torch.zeros(3), TrainConfig(n_features=3, k=1))
    assert compiled(objective, CPU) is objective
    assert left == ["_cut", "_auxiliary"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no\ncompiler"), r"a compiler of C\+\+ .* failed on cpu \(no compiler\)"),
        (ImportError("no triton"), "failed on cpu .no triton.: install it, or leave compile out"),
        (OSError("full"), "full"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_any_step(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        def called(*_: Any) -> Any:
            raise error

        return called

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(BadArgument, match=told):
        train_dictionary(streams(), replace(CONFIG, compile=True), progress=False)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told_what_is_missing() -> None:
    script = (
        "import torch; from vlm_edit.dictionaries import TrainConfig, train_dictionary\n"
        "config = TrainConfig(8, 2, 5, 8, compile=True)\n"
        "train_dictionary({'image': torch.randn(20, 4)}, config, progress=False)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CXX": "/no/such/compiler", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "BadArgument: compile asks for a compiler of C++" in ran.stderr.splitlines()[-1]


def test_a_contrastive_head_is_not_compiled() -> None:
    with pytest.raises(BadArgument, match="kind 'ncl' has no compile"):
        TrainConfig(kind="ncl", compile=True).expect()
