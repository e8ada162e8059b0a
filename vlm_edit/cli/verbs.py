"""What the verbs that need no pairs do."""

from __future__ import annotations

from pathlib import Path

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Demo, Doctor, Sites
from vlm_edit.cli.host import load_host, load_model
from vlm_edit.cli.writing import expect_free
from vlm_edit.ground.errors import BadArgument
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
    telling.keep(*done.tables)
    return 0 if as_known(done.checks) else 1


def doctor(options: Doctor) -> int:
    """Try a model: 1 if anything does not hold."""
    from vlm_edit.measuring import as_seen, open_image
    from vlm_edit.tasks.doctor import examine

    host = load_host(options.model, options)
    if options.image is None:
        findings = examine(host, text=options.text)
    else:
        with open_image(options.image) as opened:
            findings = examine(host, as_seen(opened), options.text)
    words = {None: "", True: "holds", False: "FAILS"}
    rows = [(finding.what, finding.told, words[finding.holds]) for finding in findings]
    failed = sum(finding.holds is False for finding in findings)
    note = f"{failed} of {len(rows)} fail" if failed else "Nothing fails."
    telling.table(Table(f"What works on {host.kind.__name__}", ("what", "found", ""), rows, note))
    return 1 if failed else 0


def sites(options: Sites) -> int:
    """Print the sites of a model."""
    host = load_model(options.model, options)
    sites = host.inside(options.inside) if options.inside else host.sites
    if not sites:
        raise BadArgument(f"nothing is known of what is inside {options.inside}: name a layer")
    rows = [
        (site.name, str(site.width), ", ".join(site.streams), site.dead or "")
        for site in sites.values()
    ]
    columns = ("site", "width", "streams", "dead")
    telling.table(Table(f"Sites of {host.kind.__name__}", columns, rows))
    return 0
