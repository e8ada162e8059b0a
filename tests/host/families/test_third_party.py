"""An adapter that somebody else packages is found once pip has installed it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "martian-models"
version = "1.0"

[project.entry-points."vlm_edit.adapters"]
martian = "martian.adapters:by_type"
"martian.Explorer" = "martian.adapters:by_class"

[tool.hatch.build.targets.wheel]
packages = ["martian"]
"""

HOSTS = """
from types import SimpleNamespace
from torch import nn

class Typed(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(model_type="martian", size=4)
        self.eye = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

class Explorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.eye = nn.Linear(4, 6)

class Rover(Explorer):
    pass
"""

ADAPTERS = """
from vlm_edit.host import Adapter, SiteRule, TapRule

by_type = Adapter((SiteRule("vision.{i}", (TapRule(("eye.{i}",), "image"),), ("size",)),))
by_class = Adapter.of({"joint": ("eye", "image", "eye.out_features")})
"""

USE = """
from martian import Explorer, Rover, Typed
from vlm_edit import VlmEditError, find_sites

try:
    for kind in (Typed, Explorer, Rover):
        print(*(f"{site.name}={site.width}" for site in find_sites(kind()).values()))
except VlmEditError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "martian").mkdir()
    (source / "pyproject.toml").write_text(PROJECT, "utf-8")
    (source / "martian/__init__.py").write_text(HOSTS, "utf-8")
    (source / "martian/adapters.py").write_text(ADAPTERS, "utf-8")
    run(
        *("-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"),
        *("--target", str(target), str(source)),
    )
    return target


def run(*arguments: str, path: Path | None = None) -> str:
    before = [str(path)] if path else []
    after = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*before, *filter(None, [after])])}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_adapter_is_found_by_model_type_and_by_class(installed: Path) -> None:
    answer = run("-c", USE, path=installed).splitlines()
    assert answer == ["vision.0=4 vision.1=4", "joint=6", "joint=6"]


def test_it_is_not_found_before_it_is_installed(installed: Path, tmp_path: Path) -> None:
    """Its code alone, without what pip wrote beside it."""
    (tmp_path / "martian").symlink_to(installed / "martian")
    answer = run("-c", USE, path=tmp_path)
    assert "no adapter for Typed (config.model_type is 'martian', the class" in answer
