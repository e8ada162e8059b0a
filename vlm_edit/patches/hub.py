"""Patches on the hub: find one, and put one there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vlm_edit.ground.errors import BadArgument
from vlm_edit.ground.hub import REPOSITORY, asked, listed, listing
from vlm_edit.patches.storage import is_patch

_ENDING = ".safetensors"


def locate(path: str | os.PathLike[str], file: str | None, revision: str | None) -> Path:
    """Return the patch file that is meant.

    Args:
        path: A file, a folder that holds one, or ``owner/name`` of a repository on the hub; what
            is there wins.
        file: A file, or a folder with one, in a folder or repository; None for the only one
            whose header says that it is a patch, where it lies on this machine.
        revision: Branch, tag or commit of a repository.

    Returns:
        A path, which need not exist. Of a repository only the file is fetched, into
        huggingface_hub's cache; offline it is taken from there.

    Raises:
        VlmEditError: There is none, it cannot be fetched, or it is not said which of several.
    """
    root, name = Path(path), str(path)
    if root.is_dir():
        _expect_none(name, revision=revision)
        files = [p.relative_to(root).as_posix() for p in root.rglob(f"*{_ENDING}")]
        return root / _wanted(f"the folder {name}", sorted(files), file, root)
    if root.exists() or name.endswith(_ENDING) or not REPOSITORY.fullmatch(name):
        _expect_none(name, revision=revision, file=file)
        return root
    return _fetch(name, file, revision)


def push(
    name: str,
    folder: Path,
    *,
    message: str,
    private: bool | None = None,
    revision: str | None = None,
) -> str:
    """Put a folder's files into a repository, which is made if it is not there, in one commit.

    Returns:
        The commit's address.

    Raises:
        VlmEditError: It cannot be reached or may not be written to.
    """
    from huggingface_hub import HfApi

    api = HfApi()

    def send() -> str:
        api.create_repo(name, exist_ok=True, private=private)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, revision=revision
        )
        return str(commit.commit_url)

    return asked(name, send, "patch", "written")


def expect_target(name: str, file: str) -> None:
    """Refuse what is no name of a repository, or no place for a patch in one.

    Raises:
        VlmEditError: One of the two.
    """
    if not REPOSITORY.fullmatch(name):
        raise BadArgument(f"{name!r} is no repository of the hub: write it as 'owner/name'")
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts or place.suffix != _ENDING or "\\" in file:
        raise BadArgument(
            f"file is {file!r}; it is a place in the repository, such as 'patch{_ENDING}'"
        )


def _expect_none(name: str, **given: str | None) -> None:
    for key, value in given.items():
        if value is not None:
            raise BadArgument(f"{name!r} is a path: {key}={value!r} goes with a repository")


def _fetch(name: str, file: str | None, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    where = f"the repository {name} (or what is cached of it)"
    files, folder = listing(name, revision, "patch")
    place = _wanted(where, [f for f in files if f.endswith(_ENDING)], file, folder)
    if folder is not None:
        return folder / place
    return Path(asked(name, lambda: hf_hub_download(name, place, revision=revision), "patch"))


def _wanted(where: str, files: Sequence[str], file: str | None, folder: Path | None) -> str:
    """Return the one file that is meant: what is no patch, such as a model's weights, is not."""
    matches = list(files)
    if file is not None:
        place = PurePosixPath(file).as_posix()
        if place in files:
            return place
        matches = [f for f in files if f.startswith(f"{place}/")]
    lack = f"no {file!r}" if file is not None and not matches else f"no {_ENDING} file"
    if folder is not None and matches:
        # A file that cannot be read may be the patch, damaged: reading it tells.
        matches = [f for f in matches if is_patch(folder / f) is not False]
        lack = f"no {_ENDING} file that is a patch"
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise BadArgument(f"{where} holds several patches: say which with file=: {listed(matches)}")
    contents = f"; it has {listed(files)}" if files else ""
    raise BadArgument(f"no patch at {where}: there is {lack}{contents}")
