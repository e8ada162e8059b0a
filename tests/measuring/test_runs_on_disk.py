"""A run in a folder: one or the other, never half of two, whoever is killed or comes second."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlm_edit import Host, Measurement, VlmEditError, measure, zoo
from vlm_edit.cli import kept, main
from vlm_edit.ground.files import read_tensors
from vlm_edit.measuring import load_measurement, save_runs
from vlm_edit.report import Examples, Picture, Table

TABLE, SHOWN = Table("moved", ("a",), [("b",)], ""), Examples("texts", [(0, ["x"])], "")


@pytest.fixture(scope="module")
def both() -> tuple[Measurement, Measurement]:
    """Two measurements of other settings."""
    host, pairs = zoo.load_host(), zoo.load_pairs().select(range(16))
    one, two = (
        measure(Host.of(*host), pairs, zoo.load_dictionary("joint"), keep=keep, progress=False)
        for keep in (50, 10)
    )
    return one, two


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``measure`` of some pairs, but for where to."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = zoo.load_pairs()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i in range(16):
            pairs.open(i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", pairs.texts[i]])
    told = ["zoo:emoji-clip", str(folder / "pairs.csv"), "--dictionary", "zoo:joint"]
    return ["measure", *told, "--batch-size", "8", "--out"]


def fork() -> int:
    """Fork; the child does without the pool of threads, of which it has only the memory."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
    return pid


def killed(work: Callable[[], object], before: Callable[[str, Any], bool]) -> int:
    """Save in a child that is killed before a file operation: its code, or -9.

    For files alone: a fork that measures would run a model beside threads it has not got.
    """
    pid = fork()
    if pid == 0:
        code = 1
        try:
            sys.addaudithook(
                lambda event, given: os.kill(os.getpid(), 9) if before(event, given) else None
            )
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_until_killed(command: list[str], event: str, name: str) -> None:
    """Run a command in a process of its own that is killed before it moves or deletes a file."""
    program = f"""
import os, sys
path = 1 if {event!r} == "os.rename" else 0
def watch(event, given):
    if event == {event!r} and {name!r} in str(given[path]):
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
from vlm_edit.cli import main
sys.exit(main({command!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def nth_change(number: int) -> Callable[[str, Any], bool]:
    """The n-th file that takes a name or is deleted."""
    seen = [0]

    def before(event: str, _: Any) -> bool:
        changes = event in ("os.rename", "os.remove", "os.link", "os.rmdir")
        seen[0] += changes
        return changes and seen[0] == number

    return before


def takes(name: str) -> Callable[[str, Any], bool]:
    """A file takes this name."""
    return lambda event, given: event == "os.rename" and str(given[1]).endswith(name)


def state(run: Path, tmp_path: Path) -> str:
    """The checksum of the run, all of whose files are of it; or that a change is unfinished."""
    try:
        found = load_measurement(run)
    except VlmEditError as error:
        assert "holds an unfinished change: " in str(error)
        return "unfinished"
    found.to_csv(tmp_path / "table.csv")
    assert (run / "features.csv").read_bytes() == (tmp_path / "table.csv").read_bytes()
    assert json.loads((run / "summary.json").read_text("utf-8")) == found.summary()
    return found.checksum()


def titles(run: Path) -> list[str]:
    return [table.title for table in kept.edits(run)[0]]


def test_a_run_saved_over_another_is_one_of_both_or_told_to_be_unfinished(both, tmp_path) -> None:
    one, two = both
    seen = []
    for number in range(1, 30):
        run = tmp_path / str(number)
        one.save(run)
        code = killed(lambda run=run: two.save(run), nth_change(number))
        seen.append(state(run, tmp_path))
        if seen[-1] == "unfinished":
            shutil.copytree(run, tmp_path / "copy", dirs_exist_ok=True)
            for name in ("summary.json", "features.csv"):
                (tmp_path / "copy" / name).unlink()
            assert load_measurement(tmp_path / "copy").checksum() == one.checksum()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        two.save(run)
        assert state(run, tmp_path) == two.checksum()
        assert not [file for file in run.iterdir() if file.name.startswith(".")]
    assert set(seen) == {one.checksum(), "unfinished", two.checksum()}
    assert seen == sorted(seen, key=[one.checksum(), "unfinished", two.checksum()].index)


def test_two_runs_saved_together_change_together(both, tmp_path) -> None:
    one, two = both
    seen = set()
    for number in range(1, 30):
        run = tmp_path / str(number)
        save_runs({run: one, run / "centred": one})
        code = killed(
            lambda run=run: save_runs({run: two, run / "centred": two}), nth_change(number)
        )
        seen.add((state(run, tmp_path), state(run / "centred", tmp_path)))
        if code == 0:
            break
    a, b = one.checksum(), two.checksum()
    assert {(a, a), (b, b)} < seen
    assert {outer for outer, inner in seen if outer != inner} == {"unfinished"}


def test_of_two_processes_that_save_into_one_folder_the_last_wins_whole(both, tmp_path) -> None:
    run, (one, two) = tmp_path / "run", both
    slow = fork()
    if slow == 0:  # stops when two of its three files have their names
        last = takes("measurement.safetensors")
        sys.addaudithook(
            lambda e, given: os.kill(os.getpid(), signal.SIGSTOP) if last(e, given) else None
        )
        try:
            one.save(run)
        finally:
            os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(slow, os.WUNTRACED)[1])
    second = threading.Thread(target=lambda: two.save(run))
    second.start()
    second.join(0.5)
    os.kill(slow, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(slow, 0)[1]) == 0
    second.join()
    assert state(run, tmp_path) == two.checksum()


@pytest.mark.slow
def test_measuring_again_loses_nothing_before_the_new_run_is_whole(
    command, tmp_path, capsys
) -> None:
    run = tmp_path / "run"
    assert main([*command, str(run)]) == 0
    old = load_measurement(run)
    kept.save_edit(run, TABLE, SHOWN, old.checksum())
    again = [*command, str(run), "--keep", "10", "--overwrite"]
    for name in ("summary.json", "features.csv", "measurement.safetensors"):
        run_until_killed(again, "os.rename", name)
        assert titles(run) == ["moved"]
        if name == "summary.json":  # the first to change: all is as it was
            assert state(run, tmp_path) == old.checksum()
    capsys.readouterr()
    assert main(["report", str(run)]) == 2
    assert "measure again, which takes up what was measured" in capsys.readouterr().err
    assert main(again) == 0
    assert state(run, tmp_path) != old.checksum()
    assert sorted(file.name for file in run.iterdir()) == [
        *("features.csv", "measurement.safetensors", "summary.json"),
    ]


def test_an_edit_of_a_former_run_is_left_out_of_the_page_and_told(
    command, both, tmp_path, capsys
) -> None:
    run = tmp_path / "run"
    assert main([*command, str(run)]) == 0
    picture = Picture("drawn before", Image.new("RGB", (4, 4)), "told", "note")
    for of in (both[0].checksum(), load_measurement(run).checksum()):
        kept.save_edit(run, TABLE, SHOWN, of)
        kept.save_picture(run, picture, of)
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr().err
    assert told.count("left out") == 2 and "edits/001.json" in told and "drawings/001.png" in told
    page = (run / "index.html").read_text("utf-8")
    assert page.count("drawn before</h3>") == 1
    assert len(kept.pictures(run)) == 2 and len(kept.edits(run)[0]) == 2


def test_two_processes_that_keep_edits_in_one_run_lose_none(tmp_path) -> None:
    def keep(mark: str) -> None:
        for number in range(40):
            kept.save_edit(tmp_path, Table(f"{mark}{number}", ("a",), [("b",)], ""), SHOWN, "x")

    children = []
    for mark in "ab":
        pid = os.fork()
        if pid == 0:
            try:
                keep(mark)
            finally:
                os._exit(0)
        children.append(pid)
    for child in children:
        os.waitpid(child, 0)
    assert len(titles(tmp_path)) == 80
    assert set(titles(tmp_path)) == {f"{mark}{number}" for mark in "ab" for number in range(40)}


def test_what_is_damaged_is_named_and_set_aside_when_more_is_kept(tmp_path, capsys) -> None:
    picture = Picture("drawn", Image.new("RGB", (40, 40), "red"), "told", "note")
    for _ in range(2):
        kept.save_edit(tmp_path, TABLE, SHOWN, "x")
        kept.save_picture(tmp_path, picture, "x")
    files = [tmp_path / "edits" / "001.json", tmp_path / "drawings" / "001.png"]
    for file in files:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(
        VlmEditError, match=f"001.json is damaged: .* edit again with --run {tmp_path}"
    ):
        kept.edits(tmp_path)
    with pytest.raises(
        VlmEditError, match=f"001.png is damaged: .* draw again with --run {tmp_path}"
    ):
        kept.pictures(tmp_path)
    kept.save_edit(tmp_path, TABLE, SHOWN, "x")
    kept.save_picture(tmp_path, picture, "x")
    assert len(kept.edits(tmp_path)[0]) == len(kept.pictures(tmp_path)) == 2
    told = capsys.readouterr().err
    for file in files:
        assert f"set aside, since it is damaged: {file}.damaged" in told
        assert len(file.with_name(f"{file.name}.damaged").read_bytes()) == 60


def test_a_process_killed_while_it_keeps_an_edit_leaves_none_or_all(tmp_path) -> None:
    for number in range(1, 10):
        run = tmp_path / str(number)
        run.mkdir()
        work = lambda run=run: kept.save_edit(run, TABLE, SHOWN, "x")  # noqa: E731
        code = killed(work, nth_change(number))
        before = titles(run)
        assert before in ([], ["moved"])
        kept.save_edit(run, TABLE, SHOWN, "x")
        assert titles(run) == [*before, "moved"]
        if code == 0:
            return
    raise AssertionError("it never came to its end")


# Parts


def test_a_part_started_again_beside_its_run_says_that_it_is_there(
    command, tmp_path, capsys
) -> None:
    part = [*command, str(tmp_path), "--part"]
    for i in ("1/2", "2/2"):
        assert main([*part, i]) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    capsys.readouterr()
    assert main([*part, "2/2"]) == 0
    assert f"{tmp_path} holds this measurement, whole" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    another = [*part, "2/2", "--keep", "10"]
    assert main(another) == 2 and "holds another measurement" in capsys.readouterr().err
    assert main([*another, "--overwrite"]) == 0
    assert "part 2 of 2 is done; 1 to go" in capsys.readouterr().out
    assert read_tensors(tmp_path / "part-2-of-2.checkpoint")[0]["told"][0]["settings"]["keep"] == 10


def test_a_run_whose_parts_a_killed_process_did_not_delete_is_whole(command, tmp_path) -> None:
    part = [*command, str(tmp_path), "--part"]
    assert main([*part, "1/2"]) == 0
    run_until_killed([*part, "2/2"], "os.remove", ".checkpoint")
    assert len(list(tmp_path.glob("*.checkpoint"))) == 2
    assert main([*part, "1/2"]) == 0
    assert load_measurement(tmp_path).n_pairs == 16 and not list(tmp_path.glob("*.checkpoint"))
