"""What the verbs that need no pairs do."""

from __future__ import annotations

from pathlib import Path

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Demo, Sites
from vlm_edit.cli.host import load_model
from vlm_edit.cli.writing import expect_free
from vlm_edit.host import quiet_when_piped
from vlm_edit.report import Table


def demo(options: Demo) -> int:
    """Run the demonstration: 1 if a verdict is not the known one."""
    from vlm_edit.tasks.demo import as_known, run, run_generation

    out = options.out or (None if options.llava else "vlm-edit-demo")
    if out is not None:
        there = sorted(Path(out).iterdir()) if Path(out).is_dir() else [Path(out)]
        expect_free(there, options.overwrite, "name another folder with --out")
    quiet_when_piped()
    done = run_generation(out) if options.llava else run(str(out))
    return 0 if as_known(done.checks) else 1


def sites(options: Sites) -> int:
    """Print the sites of a model."""
    host = load_model(options.model, options)
    rows = [
        (site.name, str(site.width), ", ".join(site.streams), site.dead or "")
        for site in host.sites.values()
    ]
    columns = ("site", "width", "streams", "dead")
    telling.table(Table(f"Sites of {host.kind.__name__}", columns, rows))
    return 0
