"""Pages from templates, ours and those of tasks that extend ours."""

from __future__ import annotations

import os
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

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


def write_plain(path: str | os.PathLike[str], name: str, package: str, **values: Any) -> None:
    """Write a page without scripts that needs no other file and no network.

    Args:
        path: The file, written whole or not at all.
        name: A template that extends ``plain.html.jinja``.
        package: Whose folder ``web`` holds it.
        values: What it shows, ``title`` among them.
    """
    # A caption or a path may hold halves of characters that UTF-8 cannot write.
    write_text(path, template(name, package).render(values), "page")
