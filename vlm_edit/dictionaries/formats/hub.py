"""Find a dictionary: a path, or a repository on the hub."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Sequence
from glob import escape
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TypeVar

from vlm_edit.dictionaries.formats.source import INDEX
from vlm_edit.ground.errors import BadArgument, VlmEditError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = (".safetensors", ".pt", ".pth", ".npz")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 10
_T = TypeVar("_T")
_LOOKED_AT = 5000


def locate(path: str | os.PathLike[str], file: str | None, revision: str | None) -> Path:
    """Return the file or folder that is meant.

    Args:
        path: A path, which wins, or ``owner/name`` of a repository on the hub.
        file: A file or folder in it; None for the whole, if it holds one dictionary.
        revision: Of a repository.

    Returns:
        A path that exists. Of a repository only what is meant, and the JSON files beside and
        above it, are fetched into huggingface_hub's cache, or taken from there.

    Raises:
        VlmEditError: There is none, it cannot be fetched, or it holds several.
    """
    root = Path(path)
    if root.exists():
        if revision is not None:
            raise BadArgument(f"{root} is a path: revision={revision!r} goes with a repository")
        return _inside(root, file)
    if not REPOSITORY.fullmatch(str(path)):
        raise BadArgument(f"no dictionary at {str(path)!r}: the path does not exist")
    return _fetch(str(path), file, revision)


def candidates(path: Path) -> list[str]:
    """List folders below a folder that hold weights, as ``file`` would name them."""
    files = (p for p in islice(path.rglob("*"), _LOOKED_AT) if p.suffix in _WEIGHTS)
    return sorted({p.relative_to(path).parent.as_posix() for p in files} - {"."})


def _inside(root: Path, file: str | None) -> Path:
    place = root if file is None else root / file
    if not place.exists():
        there = listed(candidates(root)) if root.is_dir() else ""
        raise BadArgument(
            f"no dictionary at {str(place)!r}: {file!r} is not in {str(root)!r}"
            + (f", which has {there}" if there else "")
        )
    return place


def _fetch(name: str, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    files, cache = listing(name, revision)
    place = _wanted(name, files, file)
    if cache is not None:
        return cache / place
    patterns = [escape(f) for f in files if _belongs(PurePosixPath(f), PurePosixPath(place))]
    folder = asked(
        name, lambda: snapshot_download(name, revision=revision, allow_patterns=patterns)
    )
    return Path(folder) / place


def listing(
    name: str, revision: str | None, what: str = "dictionary"
) -> tuple[list[str], Path | None]:
    """List a repository's files, as the hub tells them, or its cache where it cannot be reached.

    The hub is asked once, without trying again, for as long as ``HF_HUB_ETAG_TIMEOUT`` says.

    Args:
        name: The repository's.
        revision: Branch, tag or commit.
        what: As for ``asked``.

    Returns:
        The files, and the folder of huggingface_hub's cache that they are in, if it was the cache
        that told them.

    Raises:
        VlmEditError: Neither knows the repository and the revision.
    """
    from huggingface_hub import HfApi, constants

    cache = _cached(name, revision)
    if constants.HF_HUB_OFFLINE:
        if cache is None:
            raise VlmEditError(_missing(name, revision, what))
        return _files(cache), cache

    def ask() -> list[str] | None:
        seconds = constants.HF_HUB_ETAG_TIMEOUT
        try:
            repository = HfApi().model_info(name, revision=revision, timeout=seconds)
        except Exception as error:
            if cache is None or not _unreachable(error):
                raise
            return None
        return [file.rfilename for file in repository.siblings or ()]

    files = asked(name, ask, what, revision=revision)
    if files is not None:
        return files, None
    assert cache is not None
    if cache.name != revision:  # a branch may have moved on, a commit does not
        warnings.warn(
            f"the hub cannot be reached for {name}: taking what its cache has of it, commit "
            f"{cache.name[:12]}",
            stacklevel=2,
        )
    return _files(cache), cache


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of the cache with what was fetched of a revision."""
    home, revision = _home(name), revision or "main"
    if ".." in PurePosixPath(revision).parts:
        return None
    ref = home / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = home / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def _home(name: str) -> Path:
    """Return where the cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _missing(name: str, revision: str | None, what: str) -> str:
    """Say of a revision of a repository that it cannot be fetched and is not cached."""
    home = _home(name)
    refs = (path for path in (home / "refs").rglob("*") if path.is_file())
    known = {path.relative_to(home / "refs").as_posix(): path.read_text().strip() for path in refs}
    commits = {path.name for path in (home / "snapshots").glob("*")}
    revisions = [f"{ref} ({known[ref][:12]})" for ref in sorted(known) if known[ref] in commits]
    revisions += sorted(commits - set(known.values()))
    if not revisions:
        return (
            f"no {what} at {name!r}: there is no such path, and the repository is not in the "
            "cache of huggingface_hub and cannot be fetched (offline?): fetch it where there is a "
            "network, or name a folder"
        )
    return (
        f"revision {revision or 'main'!r} of the repository {name} is not in the cache of "
        f"huggingface_hub and cannot be fetched (offline?): fetch it where there is a network; the "
        f"cache has {', '.join(revisions[:_SHOWN])}"
    )


def _unreachable(error: Exception) -> bool:
    """Say whether the hub did not answer, or only that it is out of order."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status) >= 500
    # Without a network the client's own errors come through: httpx's or requests', by version.
    ours = type(error).__module__.startswith(("httpx", "httpcore", "requests"))
    return ours or isinstance(error, ConnectionError | TimeoutError)


def asked(
    name: str,
    call: Callable[[], _T],
    what: str = "dictionary",
    done: str = "fetched",
    revision: str | None = None,
) -> _T:
    """Return what the hub, or its cache, answers.

    Args:
        name: The repository's.
        call: Asks.
        what: Is looked for, for messages.
        done: To the repository, likewise.
        revision: Of the repository, likewise.

    Raises:
        VlmEditError: It refuses, or cannot be reached.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return call()
    except GatedRepoError as error:
        raise VlmEditError(
            f"the repository {name} is gated: ask for access on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise VlmEditError(
            f"no {what} at {name!r}: there is no such path, and no such repository on the hub "
            "that you may read"
        ) from error
    except RevisionNotFoundError as error:
        raise BadArgument(f"the repository {name} has no such revision: {error}") from error
    except LocalEntryNotFoundError as error:
        raise VlmEditError(_missing(name, revision, what)) from error
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise VlmEditError(f"the repository {name} cannot be {done}: {reason}") from error
    except Exception as error:
        if not _unreachable(error):
            raise
        raise VlmEditError(
            f"the hub cannot be reached for {name} ({error}); {_missing(name, revision, what)}"
        ) from error


def _wanted(name: str, files: Sequence[str], file: str | None) -> str:
    """Return the file or folder of a repository that is meant."""
    if file is not None:
        place = PurePosixPath(file).as_posix()
        if place in files or any(f.startswith(f"{place}/") for f in files):
            return place
        raise BadArgument(
            f"the repository {name} (or what is cached of it) has no {file!r}; it has "
            f"{listed(_places(files)) or 'no weights'}"
        )
    places = _places(files)
    if len(places) == 1:
        return places[0]
    if places == ["image", "text"]:  # one dictionary for each stream
        return "."
    if not places:
        raise VlmEditError(f"the repository {name} (or what is cached of it) has no weights")
    raise BadArgument(
        f"the repository {name} holds several dictionaries: say which with file=, one of "
        f"{listed(places)}"
    )


def _places(files: Sequence[str]) -> list[str]:
    """List folders with weights, or the files where a folder has several that stand alone."""
    folders: dict[str, list[str]] = {}
    for file in files:
        if file.endswith(_WEIGHTS):
            folders.setdefault(PurePosixPath(file).parent.as_posix(), []).append(file)
    places = []
    for folder, contents in folders.items():
        alone = [file for file in contents if not file.endswith(".safetensors")]
        places += alone if len(alone) > 1 else [folder]
    return sorted(places)


def _belongs(file: PurePosixPath, wanted: PurePosixPath) -> bool:
    """Say whether a file is needed: in what is wanted, a part of it, or JSON beside or above."""
    if wanted == PurePosixPath("."):
        return len(file.parts) == 1 or str(file.parent) in ("image", "text")
    if wanted == file or wanted in file.parents:
        return True
    whole = wanted.name.removesuffix(f".safetensors{INDEX}")
    if whole != wanted.name and file.parent == wanted.parent and file.suffix == ".safetensors":
        return file.name.startswith(f"{whole}-")  # model-00001-of-00002.safetensors
    return file.suffix == ".json" and file.parent in wanted.parents


def listed(names: Sequence[str]) -> str:
    """List names, the first of them where there are many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
