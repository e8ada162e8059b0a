"""What a user installs: the wheel and an editable install, each in a throw-away environment.

The environments see the packages of the running one (torch is 200 MB) by a .pth file, after their
own, so that what is installed in them wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import site
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"vlm_edit": ROOT / "vlm_edit", "vlm_edit_adapters": ROOT / "adapters/vlm_edit_adapters"}
ZOO_SUFFIXES = {".csv", ".json", ".md", ".safetensors", ".webp"}
MARK = "vlm-edit-test:"


def environment() -> dict[str, str]:
    """The process's environment without what would leak packages of this checkout."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment with vlm-edit in it."""

    kind: str
    python: Path
    empty: Path  # an empty folder to run in
    packages: Path  # its site-packages

    def ask(self, code: str) -> Any:
        """What `code` leaves in `answer`, run in the environment alone."""
        code = f"{code}\nimport json\nprint({MARK!r} + json.dumps(answer))\n"
        out = run(self.python, "-I", "-c", code, cwd=self.empty)
        return json.loads(out.rpartition(MARK)[2])


def make_environment(kind: str, folder: Path, *install: str | Path) -> Environment:
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    python = Path(venv.EnvBuilder().ensure_directories(folder / "venv").env_exe)
    empty = folder / "empty"
    empty.mkdir()
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-I", "-c", where, cwd=empty).strip())
    paths = sysconfig.get_paths()
    host = dict.fromkeys([paths["purelib"], paths["platlib"], *site.getsitepackages()])
    (packages / "zz_host_packages.pth").write_text("\n".join(host) + "\n", "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]
    run(*pip, *offline, *install, cwd=empty)
    return Environment(kind, python, empty, packages)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (found,) = distributions.glob("*.whl")
    return found


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Environment:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "wheel":
        return make_environment("wheel", folder, request.getfixturevalue("wheel"))
    return make_environment("editable", folder, "--editable", ROOT)


def source_files() -> dict[str, Path]:
    """Every file of both packages, named as it is installed."""
    return {
        f"{package}/{path.relative_to(folder).as_posix()}": path
        for package, folder in SOURCES.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix != ".pyc"
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def test_each_package_comes_from_where_it_was_installed(installed: Environment) -> None:
    answer = installed.ask(
        "import vlm_edit, vlm_edit_adapters\n"
        "answer = {m.__name__: m.__file__ for m in (vlm_edit, vlm_edit_adapters)}"
    )
    for package, source in SOURCES.items():
        folder = source if installed.kind == "editable" else installed.packages / package
        assert Path(answer[package]) == folder / "__init__.py"


def test_the_installed_version_is_the_one_in_the_package(installed: Environment) -> None:
    versions = installed.ask(
        "import vlm_edit, importlib.metadata\n"
        "answer = [vlm_edit.__version__, importlib.metadata.version('vlm-edit')]"
    )
    source = (ROOT / "vlm_edit/_version.py").read_text("utf-8")
    (written,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert versions == [written, written]


def test_each_adapter_loads_by_its_entry_point(installed: Environment) -> None:
    answer = installed.ask(
        "from importlib.metadata import entry_points\n"
        "found = entry_points(group='vlm_edit.adapters')\n"
        "answer = {e.name: [e.value, type(e.load()).__name__] for e in found}"
    )
    kinds = {name: kind for name, (_, kind) in answer.items()}
    assert {name: value for name, (value, _) in answer.items()} == declared()
    assert kinds.pop("diffusers.DiffusionPipeline") == "dict"
    assert kinds.pop("vlm_edit.UnclipPipeline") == "PipelineAdapter"
    assert set(kinds.values()) == {"Adapter"}


def declared() -> dict[str, str]:
    """The entry points that pyproject.toml declares for the adapters of this repository."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    found: dict[str, str] = told["project"]["entry-points"]["vlm_edit.adapters"]
    assert {"clip", "blip-2", "open_clip.CLIP"} <= set(found)
    return found


def test_every_file_is_installed_with_the_same_bytes(installed: Environment) -> None:
    """Among them the zoo's data and py.typed."""
    expected = {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in source_files().items()
    }
    answer = installed.ask(
        "import hashlib, importlib.resources\n"
        "answer = {}\n"
        f"for name in {sorted(expected)!r}:\n"
        "    package, *parts = name.split('/')\n"
        "    file = importlib.resources.files(package)\n"
        "    for part in parts:\n"
        "        file = file / part\n"
        "    data = file.read_bytes() if file.is_file() else b'missing'\n"
        "    answer[name] = hashlib.sha256(data).hexdigest()\n"
    )
    assert answer == expected


def test_the_zoo_brings_each_kind_of_data_file() -> None:
    zoo = [path for name, path in source_files().items() if name.startswith("vlm_edit/zoo/")]
    assert {path.suffix for path in zoo} >= ZOO_SUFFIXES
    assert all(path.stat().st_size for path in zoo if path.suffix in ZOO_SUFFIXES)


def test_both_packages_are_marked_as_typed() -> None:
    assert {"vlm_edit/py.typed", "vlm_edit_adapters/py.typed"} <= set(source_files())


def test_the_command_prints_its_help(installed: Environment) -> None:
    command = installed.python.with_name("vlm-edit")
    assert "Usage: vlm-edit" in run(command, "--help", cwd=installed.empty)


def test_a_type_checker_sees_the_types_of_an_install(
    installed: Environment, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import vlm_edit, vlm_edit.host, vlm_edit_adapters.clip\n"
        "reveal_type((vlm_edit.__version__, vlm_edit_adapters.clip.adapter))\n"
        "vlm_edit.host.no_such_name\n"
    )
    # What torch and transformers bring is not asked about here, and takes a minute to read.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*,transformers.*,numpy.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(installed.python), str(script)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    revealed = r"tuple\[(builtins\.)?str, vlm_edit\.host\.\w+\.Adapter\]"
    assert re.search(revealed, done.stdout), done.stdout + done.stderr
    assert 'script.py:3: error: Module has no attribute "no_such_name"' in done.stdout
    assert "Found 1 error in 1 file" in done.stdout, done.stdout


def test_the_wheel_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    (info,) = [top for top in tops if top.endswith(".dist-info")]
    assert tops == {*SOURCES, info}
    assert {name for name in names if not name.startswith(info)} == set(source_files())


def test_the_experiments_are_in_the_sdist_and_not_installed(
    installed: Environment, distributions: Path
) -> None:
    names = ("planted", "recipes", "results", "vlm_edit.zoo.recipes")
    answer = installed.ask(
        "from importlib.util import find_spec\n"
        f"answer = [name for name in {names!r} if find_spec(name) is not None]"
    )
    assert answer == []
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    experiments = (ROOT / "docs" / "experiments").rglob("*.py")
    assert {path.relative_to(ROOT).as_posix() for path in experiments} <= held


def test_the_wheel_and_the_sdist_carry_the_licences(wheel: Path, distributions: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        licences = {name.split("/")[-1] for name in archive.namelist() if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "constraints.txt"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in source_files().values()} <= names


def test_a_package_named_adapters_is_not_shadowed(installed: Environment, tmp_path: Path) -> None:
    """AdapterHub's package has that name; an editable install has our folder on the path."""
    find = "import importlib.util\nspec = importlib.util.find_spec('adapters')\n"
    assert installed.ask(f"{find}answer = None if spec is None else spec.origin") is None
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters/__init__.py").write_text("")
    origin = installed.ask(
        f"import sys\nsys.path.append({str(tmp_path)!r})\n{find}answer = spec.origin"
    )
    assert Path(origin) == tmp_path / "adapters/__init__.py"


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = [line.partition(";")[0].strip().partition("==") for line in lines if line[:1] != "#"]
    return {name: version for name, _, version in pinned}


def test_the_constraints_pin_public_versions_only() -> None:
    assert constraints()["torch"]
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in constraints().values())


def test_the_constraints_pin_every_dependency(installed: Environment) -> None:
    """The whole closure, the test tools included; pip itself is the user's."""
    needed = installed.ask(
        "import importlib.metadata as metadata\n"
        "from packaging.requirements import Requirement\n"
        "from packaging.utils import canonicalize_name\n"
        "todo, answer = [('vlm-edit', ('', 'test'))], []\n"
        "seen = set()\n"
        "while todo:\n"
        "    name, extras = todo.pop()\n"
        "    if (name, extras) in seen:\n"
        "        continue\n"
        "    seen.add((name, extras))\n"
        "    for text in metadata.requires(name) or ():\n"
        "        need = Requirement(text)\n"
        "        if need.marker and not any(need.marker.evaluate({'extra': e}) for e in extras):\n"
        "            continue\n"
        "        answer.append(canonicalize_name(need.name))\n"
        "        todo.append((need.name, ('', *sorted(need.extras))))\n"
    )
    # On Linux PyPI's torch brings its CUDA libraries, which its own metadata pins.
    by_torch = ("nvidia-", "cuda-", "triton")
    assert not {name for name in needed if not name.startswith(by_torch)} - {*constraints(), "pip"}


def test_pre_commit_pins_the_linters_of_the_constraints() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    pins = re.findall(r"\[(\w+)==([\w.]+)\]", text)
    assert pins
    assert all(constraints()[name] == version for name, version in pins)
