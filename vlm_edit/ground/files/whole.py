"""Files that are written whole or not at all, and folders that one process at a time changes."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import os
import platform
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from vlm_edit.ground.errors import BadArgument, VlmEditError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_LOCK = ".vlm-edit.lock"
_own = threading.local()  # the locks that a thread holds
_PARTIAL = re.compile(r"([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}\.partial")
_LEFT = 3600  # seconds after which what another machine has not finished is left for good
_LONGEST = 200  # bytes of a name that still leave room for a partial file's marks
_MENDS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "no file may grow so large there; name another place",
    errno.EACCES: "name a place that you may write to",
    errno.EPERM: "name a place that you may write to",
    errno.EROFS: "name a place that you may write to",
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "make its folder first",
    errno.EISDIR: "name a file in it",
}


def write_bytes(path: str | os.PathLike[str], data: bytes, what: str = "file") -> None:
    """Write a file: first beside the target, then moved there whole.

    Args:
        path: The file; its folder must exist. Where it is a link, what it leads to is written; to
            what is no regular file, such as a terminal, the bytes go at once.
        data: What it holds; ``packed`` gives that of what writes to files, such as pictures.
        what: Name of what the file holds, for messages.

    Raises:
        VlmEditError: It cannot be written; what was there before is still there.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "told.txt")
        ...     write_bytes(file, b"all of it")
        ...     file.read_bytes()
        b'all of it'
    """
    write_together({Path(path): data}, what)


def write_text(path: str | os.PathLike[str], text: str, what: str = "file") -> None:
    """Write text as ``write_bytes`` does; halves of characters, which UTF-8 lacks, become ``?``."""
    write_bytes(path, text.encode("utf-8", "replace"), what)


def packed(write: Callable[[BinaryIO], object]) -> bytes:
    """Return the bytes that a function writes into a buffer."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def write_together(files: Mapping[Path, bytes], what: str = "files") -> None:
    """Write several files: all of them beside their targets, then each moved there, in this order.

    Args:
        files: What each holds, by path, as for ``write_bytes``.
        what: Name of what they hold, for messages.

    Raises:
        VlmEditError: One cannot be written, and where there was no room for all, none was.
    """
    with contextlib.ExitStack() as stack:
        moves = []
        for path, data in files.items():
            with _refusing(path, what):
                if path.exists() and not path.is_file():
                    with path.open("wb") as stream:
                        stream.write(data)
                    continue
                target = path.resolve() if path.is_symlink() else path
                partial = stack.enter_context(beside(target))
                _fill(partial, (data,), target)
                moves.append((partial, target))
        for number, (partial, target) in enumerate(moves):
            with _refusing(target, what, number):
                partial.replace(target)


def write_pieces(
    path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview], what: str = "file"
) -> None:
    """Write a file as ``write_bytes`` does, piece after piece, so that they are never joined.

    Raises:
        VlmEditError: It cannot be written; what was there before is still there.
    """
    target = Path(path)
    target = target.resolve() if target.is_symlink() else target
    with _refusing(path, what), beside(target) as partial:
        _fill(partial, pieces, target)
        partial.replace(target)


def write_new(path: str | os.PathLike[str], data: bytes, what: str = "file") -> bool:
    """Write a file where none is, whole or not at all; False if one is there.

    Of several processes that write one name at once, one gets True.

    Raises:
        VlmEditError: It cannot be written.
    """
    target = Path(path)
    with _refusing(target, what), beside(target) as partial:
        _fill(partial, (data,))
        try:
            os.link(partial, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the empty file takes the name
            try:
                target.open("xb").close()
            except FileExistsError:
                return False
            partial.replace(target)
    return True


def append_text(path: str | os.PathLike[str], text: str, what: str = "log") -> None:
    """Write behind what a file holds, all of it or nothing, unless the process is killed meanwhile.

    Raises:
        VlmEditError: It cannot be written; the file is as it was.
    """
    data = memoryview(text.encode("utf-8", "replace"))
    with _refusing(path, what), open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder that files are to be written to, and those it lies in, if need be.

    Raises:
        VlmEditError: It cannot be made, or may not be written to.
    """
    folder = Path(path)
    with _refusing(folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return folder


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Lend a name of one's own beside a file or folder, for what is moved there once it is whole.

    What a killed process has left of the same target is deleted first; what is left under the name
    when the block ends, last.
    """
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    _sweep(target, f".{name}.")
    own = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    partial = target.with_name(f".{name}.{own}.partial")
    try:
        yield partial
    finally:
        _remove(partial)


def expect_place(path: str | os.PathLike[str], name: str) -> None:
    """Refuse a file that could not be written when the time for it has come.

    A file is begun beside it and deleted again, since permissions alone do not tell: a file system
    may take no files at all. What is there already stays as it is.

    Args:
        path: The file.
        name: What the caller calls it, such as ``log`` or ``--log``.

    Raises:
        VlmEditError: There is no such folder, the place is a folder, or it takes no file.

    Example:
        >>> expect_place("losses.csv", "log")
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise BadArgument(f"{name} is {os.fspath(path)!r}, a folder: name a file in it")
    if not target.parent.is_dir():
        raise BadArgument(
            f"{name} is {os.fspath(path)!r}, and there is no folder {str(Path(path).parent)!r}: "
            "make it first"
        )
    with _refusing(path, name), beside(target) as partial:
        partial.touch()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one thread or process after the other change a folder; a killed one lets go.

    Who has it may ask for it again. Where the file system, or the operating system, has no locks,
    nobody waits.

    Raises:
        VlmEditError: The folder cannot be written to.
    """
    path = folder.resolve() / _LOCK
    locks: set[Path] = _own.__dict__.setdefault("held", set())
    file = None if fcntl is None or path in locks else _lock(path)
    if file is None:
        yield
        return
    locks.add(path)
    try:
        yield
    finally:
        locks.remove(path)
        with contextlib.suppress(OSError):
            path.unlink()
        fcntl.flock(file, fcntl.LOCK_UN)  # closing alone leaves it to a child forked meanwhile
        file.close()


@contextlib.contextmanager
def _refusing(path: str | os.PathLike[str], what: str, moved: int = 0) -> Iterator[None]:
    """Raise errors of the operating system as ours, with what helps."""
    try:
        yield
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "try again, or name another place")
        state = f"{moved} files were written already" if moved else "nothing has changed there"
        raise VlmEditError(
            f"cannot write the {what} to {os.fspath(path)!r}: {error.strerror or error}; {state}: "
            f"{mend}"
        ) from error


def _fill(partial: Path, pieces: Iterable[bytes | memoryview], target: Path | None = None) -> None:
    """Write a new file to the disk itself, as readable as the target that it will replace."""
    with partial.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
                raise
    if target is not None:
        with contextlib.suppress(OSError):
            partial.chmod(stat.S_IMODE(target.stat().st_mode))


def _sweep(target: Path, mark: str) -> None:
    """Delete what writers of the target have left that do not live any more."""
    try:
        names = os.listdir(target.parent)
    except OSError:
        return
    for name in names:
        if name.startswith(mark) and (match := _PARTIAL.fullmatch(name[len(mark) :])):
            machine, pid = match.groups()
            there = target.with_name(name)
            if (machine == _machine() and not _lives(int(pid))) or _age(there) > _LEFT:
                _remove(there)


def _age(path: Path) -> float:
    """Return the seconds since something was written; 0 for what is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def _lives(pid: int) -> bool:
    """Return whether there is a process of this number, which may be another by now."""
    if os.name != "posix":  # elsewhere asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """Return what tells processes of this machine, since its start, from those of the same number.

    Containers of one machine number their processes apart.
    """
    marks = [platform.node()]
    with contextlib.suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\n".join(marks).encode(), digest_size=4).hexdigest()


def _lock(path: Path) -> BinaryIO | None:
    """Return the file, locked; None where there are no locks."""
    while True:
        with _refusing(path, "lock"):
            file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            file.close()
            _remove(path)
            return None
        with contextlib.suppress(FileNotFoundError):
            # Who had it before has deleted it: only the file that still has the name counts.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
