"""What docs/writing-an-adapter.md says of a package of one's own."""

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from pages import blocks_of

from vlm_edit.host import ENTRY_POINTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "writing-an-adapter.md"


def test_the_page_writes_an_adapter_that_the_library_does_not_ship() -> None:
    known = {point.name for point in entry_points(group=ENTRY_POINTS)}
    assert "vipllava" not in known


def test_an_adapter_in_a_package_of_ones_own_is_found_by_its_entry_point(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    toml = re.search(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert toml is not None
    group, entry = toml[1].strip().splitlines()
    assert group == f'[project.entry-points."{ENTRY_POINTS}"]'
    look, declare, *_ = (block.code for block in blocks_of(PAGE))
    # What an installer makes of them.
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "vipllava.py").write_text(declare, "utf-8")
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{entry.replace(chr(34), '')}\n")
    use = (
        "import vlm_edit as v\nassert list(v.find_sites(model))[3:5] == ['vision.3', 'projector']\n"
    )
    (tmp_path / "use.py").write_text(f"{look}\n{use}", "utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "use.py")],
        cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
