"""``vlm-edit patch``: look at saved patches, check and bake, merge and compare them."""

from __future__ import annotations

import functools
import operator
import shutil
from pathlib import Path
from typing import Any

from vlm_edit import patches
from vlm_edit.cli.arguments import Apply, Diff, Info, Merge, One, Verified
from vlm_edit.cli.host import load_model
from vlm_edit.ground.errors import VlmEditError, line
from vlm_edit.ground.files import beside
from vlm_edit.host import Host
from vlm_edit.patches import Patch, load_patch
from vlm_edit.report import Table

_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"),
    ".index.json",
)


def info(options: Info) -> int:
    """Print what is in a patch."""
    patch = _load(options.patch, options)
    if options.card:
        print(patch.card(), end="")
        return 0
    columns = ("site", "tokens", "rule", "features", "how many")
    rows = [row for binding in patch.bindings for row in patches.binding_rows(binding)]
    print(Table(options.patch, columns, [[line(cell) for cell in row] for row in rows]))
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
    print(Table(f"{options.patch} fits {options.model}", ("site", "width", "modules"), rows))
    return 0


def merge(options: Merge) -> int:
    """Write several patches as one."""
    target = _new(options.out)
    merged = functools.reduce(operator.add, [_load(name, options) for name in options.patches])
    merged.save(target)
    print(f"{len(merged.bindings)} edits of {len(options.patches)} patches\n\npatch:  {target}")
    return 0


def diff(options: Diff) -> int:
    """Print in what two patches differ: 1 if they do."""
    apart = patches.differences(*(_load(name, options) for name in (options.first, options.second)))
    if not apart:
        print("the same edits, of the same host")
        return 0
    columns = ("where", "what", options.first, options.second)
    rows = [[line(cell) for cell in one] for one in apart]
    print(Table(f"{len(apart)} differences", columns, rows))
    return 1


def _load(name: str, options: Verified) -> Patch:
    file, revision = None, None
    if isinstance(options, One):
        file, revision = options.file, options.revision
    elif isinstance(options, Apply):
        file, revision = options.patch_file, options.patch_revision
    return load_patch(name, file=file, revision=revision, verify=not options.no_verify)


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
        partial.replace(target)
    print("\n".join(f"changed: {path}" for path in baked.weights))
    print(f"\nmodel:   {target}")
    return 0


def _write(host: Host, source: Path, target: Path) -> None:
    """Write the model, and what lies beside its weights but the card, which tells of another."""
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
