"""Writes docs/hosts.md from hosts themselves, so that the page says nothing that was not run."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from vlm_edit import Host
from vlm_edit.host import Adapter, Site, SiteRule, find_adapter, layouts_in

PAGE = Path(__file__).resolve().parents[3] / "docs" / "hosts.md"
WRITE = "VLM_EDIT_WRITE_DOCS"


def expect_section(mark: str, text: str) -> None:
    """The page says this between two markers; with the environment variable set it is made to."""
    page = PAGE.read_text("utf-8")
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    assert page.count(begin) == page.count(end) == 1, f"docs/hosts.md has not one section {mark!r}"
    head, rest = page.split(begin)
    old, tail = rest.split(end)
    if os.environ.get(WRITE) == "1":
        PAGE.write_text(f"{head}{begin}{text}{end}{tail}", "utf-8")
        return
    assert old == text, f"docs/hosts.md is behind its hosts: run this test with {WRITE}=1"


def describe(hosts: Iterable[tuple[nn.Module, str]]) -> str:
    """For each adapter file what it says of itself, and a table per layout of its hosts.

    Args:
        hosts: Each with a note that tells it from others of its class, or an empty one.
    """
    files: dict[str, dict[str, list[str]]] = {}
    for host, note in hosts:
        adapter = find_adapter(host)
        layouts = files.setdefault(file_of(adapter), {})
        layouts.setdefault(sites_table(host, adapter), []).append(f"{named(host)}{note}")
    parts = []
    for file, layouts in files.items():
        title, _, rest = (inspect.getdoc(importlib.import_module(file)) or "").partition("\n")
        name, _, what = title.partition(": ")
        parts.append(f"### {name}\n\n{what[:1].upper()}{what[1:]}\n{rest}".rstrip() + "\n")
        parts += [f"{', '.join(hosts)}:\n\n{table}" for table, hosts in layouts.items()]
    return "\n" + "\n".join(parts) + "\n"


def file_of(adapter: Adapter) -> str:
    """The module of ours that this very adapter comes from."""
    (folder,) = importlib.import_module("vlm_edit_adapters").__path__
    for path in sorted(Path(folder).glob("[a-z]*.py")):
        module = importlib.import_module(f"vlm_edit_adapters.{path.stem}")
        if any(value is adapter for value in vars(module).values()):
            return module.__name__
    raise AssertionError("an adapter of another package")


def named(host: nn.Module) -> str:
    model_type = getattr(getattr(host, "config", None), "model_type", None)
    kind = type(host).__name__
    return f"`{kind}` (`{model_type}`)" if model_type else f"`{kind}`"


def sites_table(host: nn.Module, adapter: Adapter) -> str:
    found = Host.of(host, adapter=adapter).sites
    rows = ["| site | stream | width | where |", "| --- | --- | --- | --- |"]
    for rule in adapter.sites:
        sites = [site for site in found.values() if fits(site, rule)]
        if sites:
            rows.append(f"| {' | '.join(row(host, rule, sites))} |")
    text = "\n".join(rows) + "\n"
    facts = [
        f"layers behind `{rule.consumed}` are never read" for rule in adapter.sites if rule.consumed
    ]
    if adapter.image_token is not None:
        facts.append(f"image tokens have the id `config.{adapter.image_token}`")
        for kind, named in (("video", adapter.video_token), ("audio", adapter.audio_token)):
            if hasattr(host.config, str(named)):
                facts.append(f"those of {kind} `config.{named}`")
    calls = [path for path in adapter.calls if has(host, path)]
    if calls:
        facts.append(f"calls of {', '.join(f'`{path}`' for path in calls)} are followed too")
    for path, layout in layouts_in(host, adapter).items():
        ahead = f" behind {layout.ahead} of its own" if layout.ahead else ""
        facts.append(f"`{path}` has {' tokens, then '.join(layout.parts)} tokens{ahead}")
    if adapter.grid is not None:
        facts.append(f"`{adapter.grid}` tells which patches are whose")
    if facts:
        text += f"\n{'; '.join(facts)[:1].upper()}{'; '.join(facts)[1:]}.\n"
    return text


def row(host: nn.Module, rule: SiteRule, sites: list[Site]) -> tuple[str, ...]:
    places = []
    for rule_of, tap in zip(rule.taps, sites[0].taps, strict=True):
        (path,) = [path for path in rule_of.paths if fills(path, tap.path)]
        axis = "" if tap.axis == -1 else f", axis {tap.axis}"
        places.append(f"`{path}`{axis}")
    streams = {"mixed": "image and text in one sequence"}
    widths = [str(name) for name in rule.width if reads(host, str(name))]
    return (
        f"`{rule.name}`",
        ", ".join(streams.get(tap.stream, tap.stream) for tap in sites[0].taps),
        f"`{widths[0]}`",
        ", ".join(places),
    )


def fits(site: Site, rule: SiteRule) -> bool:
    return fills(rule.name, site.name)


def fills(pattern: str, text: str) -> bool:
    """Whether numbers for {i} and {j} make the text of the pattern."""
    return bool(re.fullmatch(re.sub(r"\\\{[ij]\\\}", r"\\d+", re.escape(pattern)), text))


def reads(host: nn.Module, dotted: str) -> bool:
    for thing in (getattr(host, "config", None), host):
        for name in dotted.split("."):
            thing = getattr(thing, name, None)
        if thing is not None:
            return True
    return False


def has(host: nn.Module, path: str) -> bool:
    return path in dict(host.named_modules())
