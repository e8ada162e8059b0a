"""The rooms of `vlm_edit` and the arrows between them: the table of docs/architecture.md, held."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "vlm_edit"
ADAPTERS = ROOT / "adapters" / "vlm_edit_adapters"
EXPERIMENTS = ROOT / "docs" / "experiments"  # not installed

# A room is a module or a package right below vlm_edit; each may import the rooms in its set.
# docs/architecture.md says the same in words: change both together.
ARROWS: dict[str, set[str]] = {
    "ground": set(),
    "_version": set(),
    "host": {"ground"},
    "dictionaries": {"ground"},
    "hooks": {"ground", "host"},
    "edits": {"ground", "dictionaries"},
    "patches": {"ground", "host", "dictionaries", "hooks", "edits", "_version"},
    "measures": {"ground", "dictionaries"},
    "measuring": {"ground", "host", "dictionaries", "hooks", "measures"},
    "selection": {"ground", "host", "dictionaries", "hooks", "measures", "measuring"},
    "zoo": {"ground", "dictionaries", "measuring"},
    "report": {"ground", "measures", "measuring"},
    "tuning": {"ground", "host", "patches", "report"},
    "testing": {"ground", "host", "dictionaries", "edits", "patches"},
}
ARROWS["tasks"] = set(ARROWS)
ARROWS["app"] = set(ARROWS)
ARROWS["cli"] = set(ARROWS)
ARROWS["__main__"] = {"cli"}

# Rows of the table whose room is still to be built.
PLANNED: set[str] = set()

# The package's face re-exports: it may import any room, and no room imports it.
FACE = "__init__"

# Rooms whose modules are doors of their own: heavy, or with nothing to do with each other.
OPEN = {"ground", "measures", "tasks", "zoo"}
# And modules of other rooms that are.
INNER = {("hooks", "tracing")}

# Where something else than the room of files may write, by path below vlm_edit, and why.
WRITERS = {
    "ground/files/": "writes whole files",
    "cli/patching.py": "bakes into a folder beside the target, which is moved there whole",
    "testing.py": "cuts off copies in a temporary folder",
    "cli/kept.py": "encodes a picture into a buffer, and moves damaged files aside",
    "report/picture.py": "encodes a picture into a buffer",
    "report/sprites.py": "encodes a picture into a buffer",
    "dictionaries/formats/saving.py": "writes as another library does, beside the targets",
}
# Of these, ``save`` is our own, which writes by the room of files.
SAVED = {
    "self",
    "patch",
    "measurement",
    "merged",
    "saved",
    "state",
    "maps",
    "found",
    "next(iter(named.values()))",
}
WRITING = {
    *("write_text", "write_bytes", "touch", "tofile", "savefig", "dump", "save_file", "savez"),
    *("save_pretrained", "copy", "copy2", "copyfile", "copytree", "rename", "link", "symlink_to"),
    *("hardlink_to", "truncate", "mkstemp", "NamedTemporaryFile", "to_parquet", "to_pickle"),
}
WRITE_MODE = re.compile(r"[rbt]*[wax+][wax+rbt]*")

HOOK_CALL = re.compile(r"^register_(module_)?forward(_pre)?_hook$")


def room_of(path: Path, core: Path) -> str:
    return path.relative_to(core).parts[0].removesuffix(".py")


def door_of(path: Path, core: Path) -> str:
    """The room, or the module of one whose modules are doors of their own."""
    parts = [part.removesuffix(".py") for part in path.relative_to(core).parts]
    return ".".join(parts[: 2 if len(parts) > 1 and is_door(core, parts[:2]) else 1])


def modules(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"no modules below {folder}"
    return found


def imports(path: Path, package: tuple[str, ...]) -> Iterator[tuple[int, str, str | None]]:
    """Each import of a module: its line, the module named, and the name taken from it.

    Imports inside functions, under TYPE_CHECKING and by import_module("...") count too.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, module, alias.name
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if (
                called in ("import_module", "__import__")
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield node.lineno, first.value, None


def package_of(path: Path, top: Path) -> tuple[str, ...]:
    return (top.name, *path.relative_to(top).parts[:-1])


def room_arrows(core: Path) -> Iterator[tuple[str, str, str]]:
    """Each import of one room by another: (where, room, imported room)."""
    for path in modules(core):
        room = room_of(path, core)
        for line, module, name in imports(path, package_of(path, core)):
            parts = module.split(".")
            if parts[0] != "vlm_edit":
                continue
            where = f"{path.relative_to(core.parent)}:{line}"
            if len(parts) > 1:
                target = parts[1]
            elif name is not None and is_room(core, name):
                target = name
            else:
                target = FACE
            if target != room:
                yield where, room, target


def back_doors(core: Path) -> list[str]:
    """Imports of a module inside another room, which are to go by what the room itself gives."""
    behind = []
    for path in modules(core):
        own = door_of(path, core)
        for line, module, name in imports(path, package_of(path, core)):
            parts = [*module.split("."), *([name] if name else [])]
            if parts[0] != "vlm_edit" or len(parts) < 3:
                continue
            door = 3 if is_door(core, parts[1:3]) else 2
            if ".".join(parts[1:door]) == own:
                continue
            if len(parts) == door + 1 and name in given_by(core.joinpath(*parts[1:door])):
                continue  # a function named as its file
            if len(parts) > door and is_module(core, parts[1 : door + 1]):
                where = f"{path.relative_to(core.parent)}:{line}"
                behind.append(f"{where}: {'.'.join(parts[: door + 1])} is behind a door")
    return behind


def is_door(core: Path, parts: list[str]) -> bool:
    return (parts[0] in OPEN or tuple(parts) in INNER) and is_module(core, parts)


def given_by(room: Path) -> set[str | None]:
    """What a room's door imports, by name."""
    door = room / "__init__.py"
    return {name for _, _, name in imports(door, ())} if door.is_file() else set()


def is_module(core: Path, parts: list[str]) -> bool:
    place = core.joinpath(*parts)
    return len(parts) > 1 and (place.is_dir() or place.with_suffix(".py").is_file())


def is_room(core: Path, name: str) -> bool:
    return (core / f"{name}.py").is_file() or (core / name).is_dir()


def rooms(core: Path) -> set[str]:
    return {room_of(path, core) for path in modules(core)} - {FACE}


def forbidden_arrows(core: Path) -> list[str]:
    return [
        f"{where}: {room} may not import {'the face of vlm_edit' if target == FACE else target}"
        for where, room, target in room_arrows(core)
        if room != FACE and target not in ARROWS.get(room, set())
    ]


def cycle(core: Path) -> list[str] | None:
    """A circle of rooms, or of doors of one room."""
    graph: dict[str, set[str]] = {}
    for _, room, target in room_arrows(core):
        if room != FACE:
            graph.setdefault(room, set()).add(target)
    return cycle_in(graph) or cycle_in(door_arrows(core))


def door_arrows(core: Path) -> dict[str, set[str]]:
    """Which doors each door of an open room imports of its own room."""
    graph: dict[str, set[str]] = {}
    for path in modules(core):
        own = door_of(path, core)
        for _, module, name in imports(path, package_of(path, core)):
            parts = [*module.split("."), *([name] if name else [])][1:3]
            target = ".".join(parts)
            if len(parts) > 1 and parts[0] in OPEN and is_door(core, parts) and target != own:
                graph.setdefault(own, set()).add(target)
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def importers_of(package: str, core: Path) -> set[str]:
    return {
        door_of(path, core)
        for path in modules(core)
        for _, module, _ in imports(path, package_of(path, core))
        if module.split(".")[0] == package
    }


def forward_hook_calls(folder: Path) -> list[str]:
    """Where a forward hook is registered, by attribute or by its name in a string."""
    return [
        f"{path.relative_to(folder.parent)}:{node.lineno}"
        for path in modules(folder)
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path)))
        if (isinstance(node, ast.Attribute) and HOOK_CALL.match(node.attr))
        or (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and HOOK_CALL.match(node.value)
        )
        or (isinstance(node, ast.Name) and HOOK_CALL.match(node.id))
    ]


def writing_calls(core: Path) -> list[str]:
    """Calls that write to files, and by what they do."""
    return [
        f"{path.relative_to(core).as_posix()}:{node.lineno}: {name}"
        for path in modules(core)
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path)))
        if isinstance(node, ast.Call)
        and (name := getattr(node.func, "attr", getattr(node.func, "id", "")))
        and writes(node, name)
    ]


def writes(call: ast.Call, name: str) -> bool:
    of = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else None
    if name == "open":
        given = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        modes = [a.value for a in given if isinstance(a, ast.Constant)]
        flags = of == "os" and len(given) > 1 and "O_RDONLY" not in ast.unparse(given[1])
        return flags or any(isinstance(m, str) and WRITE_MODE.fullmatch(m) for m in modes)
    if name == "replace":  # of a path; of a text it takes two
        return of == "os" or (of is not None and len(call.args) == 1 and not call.keywords)
    if name == "save":
        return of is not None and of not in SAVED
    if name in ("copy", "dump"):
        return of in ("shutil", "json", "pickle", "torch")
    if name in ("write_text", "write_bytes"):
        return of is not None
    return name in WRITING


def test_every_room_is_in_the_table_and_every_row_has_a_room() -> None:
    built = rooms(CORE)
    assert not built - set(ARROWS), "a new room: add it to ARROWS and to docs/architecture.md"
    assert not set(ARROWS) - built - PLANNED, "a row of ARROWS without a room"
    assert not PLANNED & built, "built by now: take it out of PLANNED"


def test_the_document_of_the_architecture_names_every_room() -> None:
    words = set(re.findall(r"\w+", (ROOT / "docs" / "architecture.md").read_text("utf-8")))
    assert not rooms(CORE) - words


def test_the_picture_of_the_house_is_that_of_its_imports() -> None:
    """``python tests/benchmarks/house.py --draw`` draws it anew."""
    code = (
        "import sys; sys.path.insert(0, 'tests/benchmarks'); import house; print(house.picture())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == (ROOT / "docs" / "house.svg").read_text("utf-8").strip()


def test_each_room_imports_only_rooms_below_it() -> None:
    assert not forbidden_arrows(CORE)


def test_only_doors_are_imported_across_rooms() -> None:
    assert not back_doors(CORE)


def test_the_table_has_no_circle() -> None:
    assert cycle_in(ARROWS) is None


def test_the_rooms_import_each_other_in_no_circle() -> None:
    assert cycle(CORE) is None


def test_only_tracing_imports_nnsight() -> None:
    assert importers_of("nnsight", CORE) == {"hooks.tracing"}
    assert importers_of("nnsight", ADAPTERS) == set()


def test_only_hooks_registers_forward_hooks() -> None:
    elsewhere = [
        where
        for where in forward_hook_calls(CORE)
        if not where.startswith(("vlm_edit/hooks.py", "vlm_edit/hooks/"))
    ]
    assert not elsewhere
    assert not forward_hook_calls(ADAPTERS)


def test_only_files_writes_to_files() -> None:
    elsewhere = [where for where in writing_calls(CORE) if not where.startswith(tuple(WRITERS))]
    assert not elsewhere, "write it by vlm_edit.ground.files"
    assert not writing_calls(ADAPTERS)


def test_adapters_import_nothing_of_the_core_but_the_host() -> None:
    others = [
        f"{path.name}:{line}: {module} {name or ''}"
        for path in modules(ADAPTERS)
        for line, module, name in imports(path, package_of(path, ADAPTERS))
        if module.split(".")[0] == "vlm_edit"
        and module != "vlm_edit.host"
        and (module, name) != ("vlm_edit", "host")
    ]
    assert not others


def test_adapters_are_declarations_without_logic() -> None:
    logic = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.For, ast.While, ast.Try)
    places = [
        f"{path.name}:{node.lineno}"
        for path in modules(ADAPTERS)
        for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path)))
        if isinstance(node, logic)
    ]
    assert not places


def test_the_core_imports_no_adapter() -> None:
    assert importers_of("vlm_edit_adapters", CORE) == set()


def test_nothing_that_is_installed_imports_an_experiment() -> None:
    names = {path.parent.name for path in EXPERIMENTS.glob("*/*.py")}
    names |= {path.stem for path in EXPERIMENTS.glob("*.py")}
    assert {"planted", "recipes", "results"} <= names
    for name in names - {"__main__"}:
        assert importers_of(name, CORE) == importers_of(name, ADAPTERS) == set(), name


def test_importing_the_library_loads_nothing_heavy_but_torch() -> None:
    code = (
        "import json, sys, torch\n"
        "before = set(sys.modules)\n"
        "import vlm_edit\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    brought = json.loads(done.stdout)
    assert "vlm_edit" in brought
    heavy = ("nnsight", "matplotlib", "scipy", "sklearn", "pandas", "resvg_py", "vlm_edit_adapters")
    modelling = ("transformers.models", "transformers.modeling_utils", "transformers.generation")
    assert not [
        name
        for name in brought
        if name.split(".")[0] in heavy
        or any(name == part or name.startswith(f"{part}.") for part in modelling)
    ]


# The checks themselves, on small trees that break one rule each.


def tree(folder: Path, files: dict[str, str]) -> Path:
    core = folder / "vlm_edit"
    for name, text in {"__init__.py": "", **files}.items():
        (core / name).parent.mkdir(parents=True, exist_ok=True)
        (core / name).write_text(text, "utf-8")
    return core


def test_an_arrow_that_points_up_is_found(tmp_path: Path) -> None:
    core = tree(tmp_path, {"host.py": "x = 1\n\nfrom vlm_edit.hooks import attach\n"})
    assert forbidden_arrows(core) == ["vlm_edit/host.py:3: host may not import hooks"]


@pytest.mark.parametrize(
    ("line", "behind"),
    [
        ("from vlm_edit.host.resolve import find", "vlm_edit.host.resolve"),
        ("from vlm_edit.host import resolve", "vlm_edit.host.resolve"),
        ("import vlm_edit.host.resolve", "vlm_edit.host.resolve"),
        ("from vlm_edit.tasks.bias.bench import Bench", "vlm_edit.tasks.bias.bench"),
    ],
)
def test_an_import_through_a_back_door_is_found(line: str, behind: str, tmp_path: Path) -> None:
    inside = {"host/resolve.py": "", "tasks/bias/bench.py": "", "tasks/bias/__init__.py": ""}
    core = tree(tmp_path, {**inside, "hooks/a.py": line})
    assert back_doors(core) == [f"vlm_edit/hooks/a.py:1: {behind} is behind a door"]
    core = tree(tmp_path, {**inside, "hooks/a.py": "from vlm_edit.tasks.bias import Bench\n"
                           "from vlm_edit.host import Site\nimport vlm_edit.host"})  # fmt: skip
    assert not back_doors(core)


@pytest.mark.parametrize(
    "line",
    [
        "import vlm_edit.cli",
        "import vlm_edit.cli as c",
        "from vlm_edit import cli",
        "from vlm_edit.cli import main",
        "from .. import cli",
        "from ..cli import main",
        "import importlib; importlib.import_module('vlm_edit.cli')",
        "def f():\n    from vlm_edit import cli",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vlm_edit.cli import main",
    ],
)
def test_every_way_to_import_a_room_is_seen(line: str, tmp_path: Path) -> None:
    core = tree(tmp_path, {"cli.py": "", "zoo/__init__.py": "", "zoo/unclip.py": line})
    (message,) = forbidden_arrows(core)
    assert message.endswith("zoo may not import cli")


def test_an_arrow_to_the_face_is_found(tmp_path: Path) -> None:
    core = tree(
        tmp_path,
        {
            "patches.py": "from vlm_edit._version import __version__",
            "cli.py": "from vlm_edit import __version__",
            "_version.py": "",
            "edits.py": "from vlm_edit import Patch",
            "hooks.py": "import vlm_edit",
        },
    )
    assert forbidden_arrows(core) == [
        "vlm_edit/cli.py:1: cli may not import the face of vlm_edit",
        "vlm_edit/edits.py:1: edits may not import the face of vlm_edit",
        "vlm_edit/hooks.py:1: hooks may not import the face of vlm_edit",
    ]


def test_a_room_that_is_not_in_the_table_is_found(tmp_path: Path) -> None:
    core = tree(tmp_path, {"cellar/__init__.py": "", "attic.py": "from vlm_edit import host"})
    assert rooms(core) - set(ARROWS) == {"attic", "cellar"}
    assert forbidden_arrows(core)


def test_a_circle_between_rooms_is_found_but_none_inside_a_room(tmp_path: Path) -> None:
    inside = {"a/__init__.py": "from vlm_edit.a.b import x", "a/b.py": "from vlm_edit import a"}
    assert cycle(tree(tmp_path / "one", inside)) is None
    across = {"a/__init__.py": "", "a/b.py": "import vlm_edit.c", "c.py": "import vlm_edit.a.b"}
    assert set(cycle(tree(tmp_path / "two", across)) or ()) == {"a", "c"}
    doors = {"ground/a.py": "from vlm_edit.ground import b", "ground/b/__init__.py": "",
             "ground/b/c.py": "from vlm_edit.ground.a import x"}  # fmt: skip
    assert set(cycle(tree(tmp_path / "three", doors)) or ()) == {"ground.a", "ground.b"}


def test_every_way_to_register_a_forward_hook_is_found(tmp_path: Path) -> None:
    core = tree(
        tmp_path,
        {
            "one.py": "m.register_forward_hook(f)",
            "two.py": "m.register_forward_pre_hook(f)",
            "three.py": "getattr(m, 'register_forward_hook')(f)",
            "four.py": "torch.nn.modules.module.register_module_forward_hook(f)",
            "five.py": "m.register_buffer('x', y)",
        },
    )
    assert [where.split("/")[1] for where in forward_hook_calls(core)] == [
        *("four.py:1", "one.py:1", "three.py:1", "two.py:1")
    ]


@pytest.mark.parametrize(
    "line",
    [
        *("open(p, 'w')", "open(p, mode='ab')", "p.open('r+')", "p.open(mode='x')"),
        *("os.open(p, os.O_WRONLY)", "p.write_text(t)", "p.write_bytes(b)", "p.touch()"),
        *("json.dump(x, f)", "torch.save(x, p)", "image.save(p)", "np.save(p, x)", "p.replace(q)"),
        *("os.replace(p, q)", "p.rename(q)", "shutil.copyfile(p, q)", "save_file(t, p)"),
        *("shutil.copy(p, q)", "model.save_pretrained(p)"),
    ],
)
def test_every_way_to_write_a_file_is_found(line: str, tmp_path: Path) -> None:
    assert len(writing_calls(tree(tmp_path, {"edits.py": line}))) == 1


def test_what_reads_files_or_writes_by_files_is_not_taken_for_writing(tmp_path: Path) -> None:
    lines = [
        *(
            "open(p)",
            "p.open('rb')",
            "p.open(newline='')",
            "os.open(p, os.O_RDONLY)",
            "pairs.open(3)",
        ),
        *("write_text(p, t)", "write_bytes(p, b)", "measurement.save(p)", "t.replace('a', 'b')"),
        *("replace(x, a=1)", "x.copy()", "torch.load(p)", "json.dumps(x)"),
    ]
    assert not writing_calls(tree(tmp_path, {"edits.py": "\n".join(lines)}))


def test_an_import_of_nnsight_inside_a_function_is_found(tmp_path: Path) -> None:
    core = tree(
        tmp_path, {"hooks/tracing.py": "", "edits.py": "def f():\n    import nnsight.tracing"}
    )
    assert importers_of("nnsight", core) == {"edits"}
