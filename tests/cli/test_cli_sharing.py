"""Processes that share a measurement: who merges, whoever ends last, and what a kill leaves."""

import csv
import os
import random
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from vlm_edit import zoo
from vlm_edit.cli import main, subject
from vlm_edit.cli import measuring as verb
from vlm_edit.cli.arguments import Measure
from vlm_edit.cli.sharing import own_device
from vlm_edit.ground.files import whole as files
from vlm_edit.ground.launch import Share, share_of
from vlm_edit.measuring import Measurement, Sharing, load_measurement
from vlm_edit.measuring import sharing as room

COUNT = 60
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
# A process that is killed where its n-th batch is added, or when its merge has loaded one part.
KILLED = """
import os, sys
from vlm_edit.cli import main
from vlm_edit.measuring import MeasurementAccumulator
from vlm_edit.measuring.state import State
left = [{left}]
def killed(what):
    def call(*given):
        if not left[0]:
            os.kill(os.getpid(), 9)
        left[0] -= 1
        return what(*given)
    return call
{target} = killed({target})
main({words!r})
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, whoever runs the tests."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    ours = zoo.load_pairs()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i in range(COUNT):
            ours.open(i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", ours.texts[i]])
    return folder / "pairs.csv"


@pytest.fixture
def words(pairs: Path, tmp_path: Path) -> list[str]:
    """A measurement of eight batches."""
    size = ["--batch-size", "8", "--out", str(tmp_path / "run")]
    return ["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint", *size]


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    out = tmp_path_factory.mktemp("whole") / "run"
    size = ["--batch-size", "8", "--out", str(out)]
    assert main(["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint", *size]) == 0
    return load_measurement(out)


def expect_run(out: Path, whole: Measurement) -> None:
    """The folder holds what one process measures, and nothing else."""
    run = load_measurement(out)
    for name in ("counts", "ratios", "levels"):
        assert torch.equal(getattr(run.dominance, name), getattr(whole.dominance, name))
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(run.dominance.masses, whole.dominance.masses, **close)
    for stream in ("image", "text"):
        assert torch.equal(run.examples[stream].numbers, whole.examples[stream].numbers)
        assert torch.equal(run.examples[stream].values, whole.examples[stream].values)
    assert run.provenance == whole.provenance
    there = sorted(file.name for file in out.iterdir())
    assert there == ["features.csv", "measurement.safetensors", "summary.json"]


LOADING = threading.Lock()


@pytest.fixture(autouse=True)
def loaded_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers loads one model at a time in a process: it patches torch meanwhile."""
    load = subject.load_host

    def in_turn(*given, **more):
        with LOADING:
            return load(*given, **more)

    monkeypatch.setattr(subject, "load_host", in_turn)
    # typer sets this variable while it reads words, and deletes what a second thread has deleted.
    monkeypatch.setenv("PYDANTIC_DISABLE_PLUGINS", "1")


def together(words: list[str], count: int = 2) -> list[int | str]:
    """What each of several parts, in threads, exits with; locks hold between threads too."""
    codes: list[int | str] = ["?"] * count

    def go(i: int) -> None:
        threading.current_thread().name = str(i)
        try:
            codes[i] = main([*words, "--part", f"{i + 1}/{count}"])
        except BaseException as error:
            codes[i] = repr(error)
            raise

    threads = [threading.Thread(target=go, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return codes


def me() -> int:
    return int(threading.current_thread().name)


def around(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, before: Callable) -> None:
    """Have something done before a function is called."""
    function = getattr(owner, name)

    def call(*given, **more):
        before()
        return function(*given, **more)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("first", [0, 1])
def test_of_two_last_parts_one_merges_and_both_end_well(
    first, words, whole, tmp_path, monkeypatch, capsys
) -> None:
    both, merging = threading.Barrier(2, timeout=60), threading.Event()
    run = Sharing.run

    def run_and_wait(self, *given):
        run(self, *given)
        both.wait()  # both have saved all they read, before either looks
        if me() != first:
            assert merging.wait(60)

    monkeypatch.setattr(Sharing, "run", run_and_wait)
    merges: list[int] = []
    # The other now comes to the lock, and must wait for all of the merge.
    around(monkeypatch, Sharing, "merge", lambda: (merges.append(me()), merging.set()))
    slow = threading.Event()
    around(monkeypatch, verb, "save_runs", lambda: slow.wait(0.5))
    assert together(words) == [0, 0]
    assert merges == [first]
    told = capsys.readouterr().out
    assert "holds this measurement, whole" in told and "to go" not in told
    expect_run(tmp_path / "run", whole)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file system where nobody waits."""
    monkeypatch.setattr(files, "fcntl", None)
    yield


@pytest.mark.slow
@pytest.mark.parametrize("when", ["missing", "merge", "loaded", "saved"])
@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.usefixtures("no_locks")
def test_where_there_are_no_locks_two_merges_at_once_end_well_too(
    slow, when, words, whole, tmp_path, monkeypatch
) -> None:
    """One stops at a point of its merge until the other has ended, which deletes the parts."""
    both, ended = threading.Barrier(2, timeout=60), threading.Event()
    waits = threading.local()

    def stop() -> None:
        if me() == slow and not getattr(waits, "done", False):
            waits.done = True
            assert ended.wait(60)

    def meet() -> None:
        if not getattr(waits, "met", False):
            waits.met = True
            both.wait()

    missing, merge = Sharing.missing, Sharing.merge

    def seen(self):
        meet()
        gone = missing(self)
        assert when == "missing" or not gone
        return gone

    def merged(self):
        both.wait()  # each has seen that all are finished
        if when == "merge":
            stop()
        result = merge(self)
        if when == "loaded":
            stop()
        return result

    change = verb._change

    def changed(runs, files):
        if when == "saved" and me() == slow:
            verb.save_runs(runs)
            stop()
        change(runs, files)
        ended.set()

    if when == "missing":
        around(monkeypatch, Sharing, "missing", lambda: (meet(), stop()))
    else:
        monkeypatch.setattr(Sharing, "missing", seen)
        monkeypatch.setattr(Sharing, "merge", merged)
    monkeypatch.setattr(verb, "_change", changed)
    assert together(words) == [0, 0]
    expect_run(tmp_path / "run", whole)


class _Killed(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("again", [1, 2])
@pytest.mark.parametrize("kept", [4, 3, 2, 1])
def test_a_merge_that_was_killed_is_done_by_the_next_call_of_any_part(
    kept, again, words, whole, tmp_path, monkeypatch
) -> None:
    """Killed before the run takes its name, or when some of what is left of parts is deleted."""
    out = tmp_path / "run"
    assert main([*words, "--part", "1/2"]) == 0
    with monkeypatch.context() as patch:
        left, unlink = [3 - kept], Path.unlink

        def stop() -> None:
            if kept == 4:
                raise _Killed

        def killed(path, *given, **more):
            if path.suffix == ".checkpoint" or path.name == room.PARTS:
                if not left[0]:
                    raise _Killed
                left[0] -= 1
            unlink(path, *given, **more)

        around(patch, verb, "save_runs", stop)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(_Killed):
            main([*words, "--part", "2/2"])
    names = {file.name for file in out.iterdir()}
    assert (room.PARTS in names) is (kept > 2)
    assert len([name for name in names if name.endswith(".checkpoint")]) == min(2, kept)
    assert main([*words, "--part", f"{again}/2"]) == 0
    expect_run(out, whole)
    # And so does who comes late: nothing is begun anew.
    monkeypatch.setattr(Sharing, "run", None)
    assert main([*words, "--part", f"{3 - again}/2"]) == 0
    expect_run(out, whole)


def test_a_process_killed_at_any_batch_or_with_the_lock_goes_on(words, whole, tmp_path) -> None:
    command = [*words, "--every", "0", "--part"]
    left = random.randrange(4)
    for part, target in (
        ("1/2", "MeasurementAccumulator.update"),  # four batches each
        ("2/2", "State.load"),  # the first part is loaded, by who holds the lock
    ):
        script = KILLED.format(
            left=left if part == "1/2" else 1, target=target, words=[*command, part]
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        if part == "1/2":
            there = (tmp_path / "run" / "part-1-of-2.checkpoint").exists()
            assert there is (left > 0), f"killed at batch {left}"
            assert main([*command, part]) == 0, f"killed at batch {left}"
    assert (tmp_path / "run" / ".vlm-edit.lock").exists()
    assert main([*command, "1/2"]) == 0
    expect_run(tmp_path / "run", whole)


def test_torchrun_shares_a_measurement(words, whole, tmp_path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "vlm_edit", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for i in range(2):
        assert f"vlm-edit: part {i + 1} of 2, by RANK={i} and WORLD_SIZE=2" in done.stderr
    assert done.stderr.count("CLIPModel on cpu") == 1
    assert done.stdout.count("Modality Dominance Score: classes of features") == 1
    expect_run(tmp_path / "run", whole)


def test_ranks_of_an_environment_are_parts_and_only_the_first_and_the_last_speak(
    words, whole, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    said = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(rank))
        assert main(words) == 0
        printed, told = capsys.readouterr()
        line = f"vlm-edit: part {rank + 1} of 3, by SLURM_PROCID={rank} and SLURM_STEP_NUM_TASKS=3"
        assert told.splitlines()[0] == line
        assert ("CLIPModel on cpu" in told) is (rank == 0)
        assert ("pairs/s" in told or "%|" in told) is False or rank == 0
        said.append(printed)
    assert said[0] == "" and said[1].startswith("part 1 of 3 is done; 1 to go, in ")
    assert "vision-dominant" in said[2]
    expect_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_batch_script_without_srun_measures_all_and_says_so(
    words, whole, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert main(words) == 0
    assert "alone, though SLURM_NTASKS is 8: srun before the command" in capsys.readouterr().err
    expect_run(tmp_path / "run", whole)


def test_a_part_that_is_typed_wins(words, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("RANK", "nonsense")
    assert main([*words, "--part", "2/2"]) == 0
    assert "part 2 of 2 is done; 1 to go" in capsys.readouterr().out
    assert main(words) == 2
    assert "RANK is nonsense and WORLD_SIZE is not set" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 2
    assert "in 2 parts, and here it would be 3" in capsys.readouterr().err
    assert main([*words, "--part", "1/1"]) == 2
    assert "in 2 parts, and here it would be 1" in capsys.readouterr().err
    assert main([*words, "--centred"]) == 2
    assert "cannot be cut into 3 parts" in capsys.readouterr().err
    assert not (tmp_path / "run" / "features.csv").exists()


def test_overwriting_a_run_by_parts_measures_it_anew(words, whole, tmp_path, monkeypatch) -> None:
    assert main(words) == 0
    runs: list[int] = []
    around(monkeypatch, Sharing, "run", lambda: runs.append(1))
    for part in ("1/2", "2/2"):
        assert main([*words, "--part", part, "--overwrite"]) == 0
        assert load_measurement(tmp_path / "run").n_pairs == COUNT  # the former, or the new one
    assert len(runs) == 2
    expect_run(tmp_path / "run", whole)
    assert main([*words, "--part", "1/2"]) == 0 and len(runs) == 2


@pytest.mark.parametrize(
    ("typed", "local", "count", "device"),
    [
        ({}, 3, 4, "cuda:3"),
        ({"device": "cuda"}, 3, 4, "cuda:3"),
        ({}, 5, 4, "cuda:1"),  # more processes than devices
        ({}, 3, 1, "cuda:0"),  # each is shown its own alone
        ({}, None, 4, "auto"),
        ({"device": "cpu"}, 3, 4, "cpu"),
        ({"device": "cuda:2"}, 3, 4, "cuda:2"),
        ({"device_map": "auto"}, 3, 4, "auto"),
        ({}, 3, 0, "auto"),
    ],
)
def test_each_process_of_a_machine_has_a_device_of_its_own(
    typed, local, count, device, monkeypatch
) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: count > 0)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: torch.device("cuda") if count else None
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    options = Measure(model="m", pairs="p", dictionary="d", also=[], **typed)
    assert own_device(options, Share(3, 8, "", local)) == device
    assert current == ([int(device[-1])] if device != "cuda:2" and ":" in device else [])


def test_what_the_page_of_clusters_says_to_type_is_understood(monkeypatch) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "clusters.md").read_text("utf-8")
    (job,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    spec = yaml.safe_load(job)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    shares = [
        share_of({**variables, "JOB_COMPLETION_INDEX": str(i)}) for i in range(spec["completions"])
    ]
    assert [(one.rank, one.of) for one in shares if one] == [(i, 8) for i in range(8)]
    lines = re.findall(r"^(?:srun )?(vlm-edit measure .*)$", text, re.MULTILINE)
    assert len(lines) == 3
    taken: list[Measure] = []
    monkeypatch.setattr(verb, "measure", lambda options: taken.append(options) or 0)
    (common,) = re.findall(r'^ARGS="(.*)"$', text, re.MULTILINE)
    typed = [shlex.split(line)[1:] for line in lines] + [container["command"][1:], common.split()]
    assert [main(words) for words in typed] == [0] * 5
    assert [options.part for options in taken] == [None] * 5
