"""``vlm-edit patch``: look at saved patches, check and bake, merge and compare them."""

from __future__ import annotations

import functools
import operator
import re
import shutil
from pathlib import Path
from typing import Any

from vlm_edit import patches
from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Apply, Diff, Info, Merge, One, Verified
from vlm_edit.cli.host import ZOO, load_model
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError, line
from vlm_edit.ground.files import beside, write_text
from vlm_edit.host import Host
from vlm_edit.patches import Patch, load_patch
from vlm_edit.report import Table

_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
    ".index.json",
)
# What an error about which patch is meant advises, and what does the same here.
_ADVICE = (
    (re.compile(r"\bsay which with file=:"), "say which with {file}:"),
    (re.compile(r"\bfile=('[^']*'|None)"), r"{file} \1"),
    (re.compile(r"\brevision=('[^']*'|None)"), r"{revision} \1"),
)
_MODEL = ("config.json", "model_index.json")


def info(options: Info) -> int:
    """Print what is in a patch."""
    patch = _load(options.patch, options)
    if options.card:
        print(patch.card(), end="")
        return 0
    columns = ("site", "tokens", "rule", "features", "how many")
    rows = [row for binding in patch.bindings for row in patches.binding_rows(binding)]
    telling.table(Table(options.patch, columns, [[line(cell) for cell in row] for row in rows]))
    print(f"\nhost:        {line(patches.host_text(patch.host))}")
    for text in dict.fromkeys(f"{b.site}: {patches.dictionary_text(b)}" for b in patch.bindings):
        print(f"dictionary:  {line(text)}")
    for key, value in patch.info.items():
        print(f"{line(key) + ':':12} {line(value)}")
    made = ", ".join(f"{name} {version}" for name, version in patch.versions.items())
    print(f"written by:  {line(made) or 'a version that kept neither versions nor dictionary'}")
    return 0


def apply(options: Apply) -> int:
    """Check that a patch fits a model, or bake it in."""
    _expect_order(options)
    patch = _load(options.patch, options)
    if options.bake:
        return _bake(patch, options, options.bake)
    host = load_model(options.model, options)
    check_host = not options.no_check_host
    patch.attach(host, check_host=check_host).remove()
    rows = [
        (site.name, str(site.width), ", ".join(tap.path for tap in site.taps))
        for _, site in patch.check(host, check_host=check_host)
    ]
    telling.table(
        Table(f"{options.patch} fits {options.model}", ("site", "width", "modules"), rows)
    )
    return 0


def merge(options: Merge) -> int:
    """Write several patches as one."""
    target = _new(options.out)
    merged = functools.reduce(operator.add, [_load(name, options) for name in options.patches])
    merged.save(target)
    print(f"{len(merged.bindings)} edits of {len(options.patches)} patches\n")
    telling.wrote("patch", target)
    return 0


def diff(options: Diff) -> int:
    """Print in what two patches differ: 1 if they do."""
    apart = patches.differences(*(_load(name, options) for name in (options.first, options.second)))
    if not apart:
        print("the same edits, of the same host")
        return 0
    columns = ("where", "what", options.first, options.second)
    rows = [[line(cell) for cell in one] for one in apart]
    telling.table(Table(f"{len(apart)} differences", columns, rows))
    return 1


def _load(name: str, options: Verified) -> Patch:
    file, revision = None, None
    if isinstance(options, One):
        file, revision = options.file, options.revision
    elif isinstance(options, Apply):
        file, revision = options.patch_file, options.patch_revision
    flags = ("--patch-file", "--patch-revision") if isinstance(options, Apply) else _NAMES
    return open_patch(name, file, revision, not options.no_verify, flags)


_NAMES = ("--file", "--revision")


def open_patch(
    name: str,
    file: str | None = None,
    revision: str | None = None,
    verify: bool = True,
    flags: tuple[str, str] | None = None,
) -> Patch:
    """Load the patch that the command names: a file, a folder's, the hub's or the zoo's.

    Args:
        name: Of it.
        file: As for ``load_patch``.
        revision: Likewise.
        verify: Likewise.
        flags: The options that file and revision come from; none where the verb has none.
    """
    if name.startswith(ZOO):
        from vlm_edit import zoo

        name = str(zoo.patch_file(name.removeprefix(ZOO)))
    file_flag, revision_flag = flags or ("the path of one", "its revision")
    try:
        return load_patch(name, file=file, revision=revision, verify=verify)
    except VlmEditError as error:
        told = str(error)
        for theirs, ours in _ADVICE:
            told = theirs.sub(ours.format(file=file_flag, revision=revision_flag), told)
        raise type(error)(told) from error


def _expect_order(options: Apply) -> None:
    """Refuse a patch in the model's place, and a model in the patch's."""
    right = f"vlm-edit patch apply {options.patch} {options.model}"
    if _is_patch_file(options.model):
        raise BadArgument(f"{options.model} is a patch, and the model comes first: {right}")
    if _is_model(options.patch) and not _is_model(options.model):
        raise BadArgument(f"{options.patch} is a model, and it comes first: {right}")


def _is_patch_file(name: str) -> bool:
    return Path(name).is_file() and bool(patches.is_patch(name))


def _is_model(name: str) -> bool:
    """Tell whether a name is of a model for sure: of the zoo's, or of a folder of one alone."""
    if name.startswith(ZOO):
        from vlm_edit import zoo

        try:
            zoo.patch_file(name.removeprefix(ZOO))
        except UnknownName:
            return True
        return False
    folder = Path(name)
    if not any((folder / file).is_file() for file in _MODEL):
        return False
    return not any(patches.is_patch(file) for file in folder.rglob("*.safetensors"))


def _new(name: str) -> Path:
    """Return a place to write to that is not there, in a folder that is."""
    place = Path(name).absolute()
    if place.exists():
        raise VlmEditError(f"{name} is there already: remove it, or name another place")
    expect_folder_of(place, name)
    return place


def expect_folder_of(place: Path, name: str) -> None:
    """Refuse a place whose folder is not there; the name is the user's for it."""
    if not place.absolute().parent.is_dir():
        raise VlmEditError(f"{name}: its folder does not exist; make it first")


def _bake(patch: Patch, options: Apply, folder: str) -> int:
    """Write a copy of the model's folder with the edit in its weights, whole or not at all."""
    target = _new(folder)
    host = load_model(options.model, options)
    baked = patch.bake(host, check_host=not options.no_check_host)
    with beside(target) as partial:
        _write(host, Path(options.model), partial)
        write_text(partial / "README.md", patches.baked_card(patch, host), "card")
        partial.replace(target)
    print("\n".join(f"changed: {path}" for path in baked.weights))
    print()
    telling.wrote("model", target)
    return 0


def _write(host: Host, source: Path, target: Path) -> None:
    """Write the model, and what lies beside its weights but its card, which tells of another."""
    model: Any = host.model
    model.save_pretrained(target)
    if not source.is_dir():  # the zoo's, or the hub's
        if host.processor is not None:
            host.processor.save_pretrained(target)
        return
    for file in source.iterdir():
        there = (target / file.name).exists() or file.name == "README.md"
        if file.is_file() and not there and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, target / file.name)
