"""Ask the hub, or its cache here, for a repository; what it answers is told in a line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from vlm_edit.ground.errors import BadArgument, VlmEditError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 10
_T = TypeVar("_T")


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

    cache = cached(name, revision)
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


def cached(name: str, revision: str | None) -> Path | None:
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


def listed(names: Sequence[str]) -> str:
    """List names, the first of them where there are many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
