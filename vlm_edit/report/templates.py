"""Pages from templates, ours and those of tasks that extend ours."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from vlm_edit.ground.files import write_text


def template(name: str, package: str = "vlm_edit.report") -> Template:
    """Return a template of a package's folder ``web``, which may extend those of this room.

    Everything that is put into it is escaped, and what it names and is not given is an error.
    """
    packages = dict.fromkeys((package, "vlm_edit.report"))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(one, "web") for one in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def web(name: str) -> str:
    """Return the text of a file of this room's folder ``web``."""
    return (files("vlm_edit.report") / "web" / name).read_text("utf-8")


def style() -> Markup:
    """Return the style that all pages share."""
    return Markup(web("page.css"))


def policy(scripts: Iterable[str]) -> Markup:
    """Return the policy of a page: only these scripts run, and nothing is loaded from anywhere."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return Markup(
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()


def write_plain(
    path: str | os.PathLike[str], name: str, package: str, back: str | None = None, **values: Any
) -> None:
    """Write a page that only shows, in the style of all pages, and needs no file and no network.

    Args:
        path: The file, written whole or not at all.
        name: A template that extends ``plain.html.jinja``.
        package: Whose folder ``web`` holds it.
        back: The page it leads back to, as seen from this one; None for none.
        values: What it shows, ``title`` among them.
    """
    early = web("early.js")
    scripts = {
        "early": early,
        "theme": f'"use strict";\n{web("theme.js")}\nsetUpTheme(() => {{}});',
    }
    values |= {"back": back, "look": style(), "csp": policy(scripts.values())}
    values["scripts"] = {key: Markup(script) for key, script in scripts.items()}
    # A caption or a path may hold halves of characters that UTF-8 cannot write.
    write_text(path, template(name, package).render(values), "page")
