"""Files under their final names are whole, whoever dies, wherever room ends, however many write."""

import contextlib
import os
import resource
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlm_edit import VlmEditError
from vlm_edit.cli import main
from vlm_edit.ground.errors import DamagedFile
from vlm_edit.ground.files import (
    append_text,
    beside,
    locked,
    make_folder,
    read_header,
    read_tensors,
    write_bytes,
    write_joined,
    write_new,
    write_tensors,
    write_text,
    write_together,
)

OLD, NEW = b"old" * 1000, b"new" * 100_000


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow above so many bytes: the kernel's own error, as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def forked(work: Callable[[], object]) -> int:
    """A child that does some work: its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return pid


def end_of(pid: int) -> int:
    """How a child ended: its code, or the signal that killed it below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cut(path: Path, data: bytes, size: int) -> None:
    """Write in a process that the kernel kills once so many bytes are written."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        write_bytes(path, data)

    assert end_of(forked(work)) == -signal.SIGXFSZ


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Whole or not at all


def test_without_room_the_old_file_stays_whole_and_the_error_says_what_helps(tmp_path) -> None:
    file = tmp_path / "page.html"
    write_bytes(file, OLD)
    with room_for(len(NEW) - 1), pytest.raises(VlmEditError) as told:
        write_bytes(file, NEW, "page")
    assert "cannot write the page to " in str(told.value) and repr(str(file)) in str(told.value)
    assert "File too large; nothing has changed there: " in str(told.value)
    assert file.read_bytes() == OLD and names(tmp_path) == ["page.html"]
    with room_for(len(NEW)):
        write_bytes(file, NEW)
    assert file.read_bytes() == NEW


@pytest.mark.parametrize("size", [0, 1, 4096, len(NEW) - 1])
def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file(tmp_path, size) -> None:
    file = tmp_path / "page.html"
    write_bytes(file, OLD)
    cut(file, NEW, size)
    assert file.read_bytes() == OLD


def test_of_several_files_none_is_written_if_there_is_no_room_for_one(tmp_path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        write_bytes(file, OLD)
    with room_for(len(NEW) - 1), pytest.raises(VlmEditError, match="nothing has changed"):
        write_together({files[0]: b"x", files[1]: b"y", files[2]: NEW})
    assert [file.read_bytes() for file in files] == [OLD] * 3 and names(tmp_path) == list("abc")


def test_what_is_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch) -> None:
    order: list[str] = []
    synced, moved = os.fsync, os.replace

    def fsync(number: int) -> None:
        order.append(f"sync of {os.fstat(number).st_size}")
        synced(number)

    def replace(source: str, target: str) -> None:
        order.append("move")
        moved(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_bytes(tmp_path / "x", OLD)
    assert order == [f"sync of {len(OLD)}", "move"]


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nowhere/x", "No such file or directory; nothing has changed there: make its folder"),
        ("file/x", "Not a directory; nothing has changed there: make its folder first"),
        ("folder", "Is a directory; nothing has changed there: name a file in it"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_named(tmp_path, place, told) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(VlmEditError, match=told):
        write_bytes(tmp_path / place, NEW)
    assert names(tmp_path) == ["file", "folder"] and not names(tmp_path / "folder")


def test_a_folder_that_may_not_be_written_to_is_refused_before_and_when_it_is(
    tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "read"
    folder.mkdir()
    write_bytes(folder / "x", OLD)
    folder.chmod(0o555)
    monkeypatch.chdir(folder)
    wanted = []

    def refused() -> None:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        for write in (lambda: write_bytes("x", NEW), lambda: make_folder(".")):
            try:
                write()
            except VlmEditError as error:
                wanted.append("name a place that you may write to" in str(error))
        if wanted != [True, True]:
            raise AssertionError

    try:
        assert end_of(forked(refused)) == 0
    finally:
        folder.chmod(0o755)
    assert (folder / "x").read_bytes() == OLD and names(folder) == ["x"]


def test_a_link_stays_one_and_rights_stay_as_they_were(tmp_path) -> None:
    (tmp_path / "far").mkdir()
    write_bytes(tmp_path / "far" / "x", OLD)
    (tmp_path / "far" / "x").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "x")
    write_bytes(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "x").read_bytes() == NEW
    assert (tmp_path / "far" / "x").stat().st_mode & 0o777 == 0o640


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(fifo, b"told")
    assert os.read(reader, 10) == b"told" and fifo.is_fifo()
    os.close(reader)


def test_halves_of_characters_become_question_marks(tmp_path) -> None:
    write_text(tmp_path / "x", "gr\u00f6\u00dfe \ud83d")
    assert (tmp_path / "x").read_text("utf-8") == "gr\u00f6\u00dfe ?"


# What killed processes leave


def test_the_next_writer_of_a_name_deletes_what_a_killed_one_left(tmp_path) -> None:
    file = tmp_path / "state"
    cut(file, NEW, 4096)
    cut(tmp_path / "other", NEW, 4096)
    assert len(names(tmp_path)) == 2 and not file.exists()
    write_bytes(file, NEW)
    left = names(tmp_path)
    assert len(left) == 2 and left[0].startswith(".other.") and left[1] == "state"


def test_what_a_living_process_is_writing_is_left_alone(tmp_path) -> None:
    file = tmp_path / "state"
    with beside(file) as mine:
        mine.write_bytes(OLD)
        write_bytes(file, NEW)
        assert mine.read_bytes() == OLD
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize(("minutes", "stays"), [(59, True), (61, False)])
def test_what_another_machine_began_is_left_alone_for_an_hour(tmp_path, minutes, stays) -> None:
    file = tmp_path / "state"
    with beside(file) as mine:
        machine, rest = mine.name.removeprefix(".state.").split("-", 1)
    elsewhere = f"{int(machine, 16) ^ 1:08x}"
    foreign = mine.with_name(f".state.{elsewhere}-{rest}")
    foreign.write_bytes(OLD)
    then = time.time() - 60 * minutes
    os.utime(foreign, (then, then))
    write_bytes(file, NEW)
    assert foreign.exists() == stays


def test_a_file_that_only_looks_alike_is_never_deleted(tmp_path) -> None:
    for name in (".state.backup", ".state.12345", ".state.old.partial", ".state.0-1-2.partial"):
        (tmp_path / name).write_bytes(OLD)
        os.utime(tmp_path / name, (0, 0))
    write_bytes(tmp_path / "state", NEW)
    assert len(names(tmp_path)) == 5


def test_a_name_as_long_as_the_system_lets_it_be_is_written(tmp_path) -> None:
    file = tmp_path / ("x" * 255)
    write_bytes(file, OLD)
    cut(file, NEW, 100)
    write_bytes(file, NEW)
    assert file.read_bytes() == NEW and len(names(tmp_path)) == 1


# Many writers


def test_eight_threads_that_write_one_file_never_show_half_of_it(tmp_path) -> None:
    file = tmp_path / "x"
    whole = [bytes([65 + i]) * (20_000 + 1000 * i) for i in range(8)]
    write_bytes(file, whole[0])
    failed: list[BaseException] = []
    torn, done = 0, threading.Event()

    def write(data: bytes) -> None:
        try:
            for _ in range(150):
                write_bytes(file, data)
        except BaseException as error:
            failed.append(error)

    def read() -> None:
        nonlocal torn
        while not done.is_set():
            torn += file.read_bytes() not in whole

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(data,)) for data in whole]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not failed and not torn and names(tmp_path) == ["x"]


def test_of_processes_that_want_one_new_name_one_gets_it(tmp_path) -> None:
    def take(mark: bytes) -> None:
        for number in range(40):
            while not write_new(tmp_path / f"{number}", mark):
                number += 1

    children = [forked(lambda mark=mark: take(mark)) for mark in (b"a", b"b")]
    assert [end_of(child) for child in children] == [0, 0]
    kept = [file.read_bytes() for file in tmp_path.iterdir()]
    assert len(kept) == 80 and kept.count(b"a") == 40


def test_where_there_are_no_links_a_new_name_is_taken_once_all_the_same(
    tmp_path, monkeypatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert write_new(tmp_path / "x", OLD) and not write_new(tmp_path / "x", NEW)
    assert (tmp_path / "x").read_bytes() == OLD and names(tmp_path) == ["x"]


def test_one_after_the_other_changes_a_folder(tmp_path) -> None:
    (tmp_path / "count").write_text("0")

    def count() -> None:
        for _ in range(50):
            with locked(tmp_path), locked(tmp_path):
                found = int((tmp_path / "count").read_text())
                time.sleep(0.0005)
                (tmp_path / "count").write_text(str(found + 1))

    children = [forked(count) for _ in range(2)]
    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [end_of(child) for child in children] == [0, 0]
    assert (tmp_path / "count").read_text() == "200" and names(tmp_path) == ["count"]


def test_a_killed_process_lets_go_of_a_folder(tmp_path) -> None:
    def hold() -> None:
        with locked(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)

    child = forked(hold)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert end_of(child) == -signal.SIGKILL
    with locked(tmp_path):
        pass
    assert names(tmp_path) == ["held"]


# Lines


def test_a_line_without_room_for_all_of_it_is_not_added(tmp_path) -> None:
    file = tmp_path / "log.csv"
    append_text(file, "one\n")
    with room_for(6), pytest.raises(VlmEditError, match="cannot write the log to .*too large"):
        append_text(file, "two\n")
    assert file.read_text() == "one\n"
    append_text(file, "two\n")
    assert file.read_text() == "one\ntwo\n"


# Tensors


def test_every_flipped_bit_of_a_tensor_and_a_changed_number_of_the_header_are_noticed(
    tmp_path,
) -> None:
    file = tmp_path / "x"
    write_tensors(file, {"a": torch.arange(3.0), "b": torch.tensor([True])}, {"n": 1}, "sums")
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    told = data.index(b'\\"n\\": 1') + 7  # the header's own number
    for place in (told, *range(begin, len(data))):
        for bit in range(1 if place == told else 8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(VlmEditError, match=f"^{file} is damaged: .*the sums has changed"):
                read_tensors(file, "sums")
    assert read_tensors(file, "sums", verify=False)[0]["n"] == 1


def test_tensors_in_pieces_are_the_file_of_the_joined_ones(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    pieces = {
        "b": [torch.randn(n, 3, generator=g).bfloat16() for n in (2, 0, 5)],
        "a": [torch.randn(4, 3, generator=g)],
        "n": [torch.arange(3), torch.arange(2)],
        "none": [torch.empty(0, 3)],
        "one": [torch.tensor(2.5)],
    }
    joined = {name: some[0] if len(some) == 1 else torch.cat(some) for name, some in pieces.items()}
    told = write_joined(tmp_path / "pieces", pieces, {"version": 1})
    write_tensors(tmp_path / "joined", joined, {"version": 1})
    (header, ours), (other, theirs) = (read_tensors(tmp_path / f) for f in ("pieces", "joined"))
    assert header == other and header["checksum"] == told
    for found in (ours, load_file(tmp_path / "pieces")):  # the library's own reader
        assert set(found) == set(theirs)
        for name, x in theirs.items():
            assert found[name].dtype == x.dtype and torch.equal(found[name], x)


def test_a_file_without_a_checksum_is_read_as_before(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x", metadata={"vlm_edit": '{"n": 1}'})
    header, tensors = read_tensors(tmp_path / "x")
    assert header == {"n": 1} and torch.equal(tensors["a"], torch.ones(2))


def test_numbers_as_keys_of_a_header_keep_the_checksum(tmp_path) -> None:
    write_tensors(tmp_path / "x", {}, {"by number": {2: "a", 10: "b"}, "pair": (1, 2)})
    assert read_tensors(tmp_path / "x")[0]["pair"] == [1, 2]


def test_a_command_without_room_ends_in_one_line(tmp_path, capsys) -> None:
    patch = Path(__file__).parents[1] / "patches" / "golden" / "version-2" / "joint.safetensors"
    target = tmp_path / "b"
    with room_for(1000):
        assert main(["patch", "merge", str(patch), str(patch), "--out", str(target)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vlm-edit: cannot write the patch to ") and told.count("\n") == 1
    assert not names(tmp_path)


def test_a_header_is_read_without_the_tensors_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"x": torch.ones(1000)}, {"version": 1, "name": "ä"})
    header, _ = read_tensors(file)
    assert read_header(file) == header
    file.write_bytes(file.read_bytes()[:-3000])  # of the tensors
    assert read_header(file) == header
    from safetensors.torch import save_file

    plain = tmp_path / "plain.safetensors"
    save_file({"x": torch.ones(1)}, plain)
    assert read_header(plain) is None


@pytest.mark.parametrize(
    "data",
    [b"", b"short", b"\xff" * 64, struct.pack("<Q", 3) + b"{{{", struct.pack("<Q", 2) + b"[]"],
)
def test_a_header_that_cannot_be_read_is_damaged(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(DamagedFile, match="not a readable safetensors file"):
        read_header(tmp_path / "a.safetensors")
