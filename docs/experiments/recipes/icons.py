"""Drawings of emoji from iconify's npm packages, matched to code point sequences."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.concepts import Variant, plain_code

# Where two vendors share a name, the earlier one decides which code points it means.
VENDORS = {
    "noto": "iconify-json-noto",
    "noto-v1": "iconify-json-noto-v1",
    "twemoji": "iconify-json-twemoji",
    "fluent": "iconify-json-fluent-emoji",
    "fluent-flat": "iconify-json-fluent-emoji-flat",
    "fluent-high-contrast": "iconify-json-fluent-emoji-high-contrast",
    "emojione": "iconify-json-emojione",
    "openmoji": "iconify-json-openmoji",
    "fxemoji": "iconify-json-fxemoji",
}
EMOJIBASE = "emojibase-data"
_VERSIONS = {
    "iconify-json-noto": "1.2.9",
    "iconify-json-noto-v1": "1.2.5",
    "iconify-json-twemoji": "1.2.5",
    "iconify-json-fluent-emoji": "1.2.7",
    "iconify-json-fluent-emoji-flat": "1.2.6",
    "iconify-json-fluent-emoji-high-contrast": "1.2.6",
    "iconify-json-emojione": "1.2.3",
    "iconify-json-openmoji": "1.2.29",
    "iconify-json-fxemoji": "1.2.2",
    EMOJIBASE: "17.0.0",
}
_SHORTCODES = ("emojibase", "github", "iamcal", "joypixels", "cldr")


@dataclass(frozen=True)
class Icon:
    """One drawing: the vendor's name for it, the emoji it shows and its SVG."""

    vendor: str
    name: str
    code: str
    svg: str


def package_folder(npm: Path, package: str) -> Path:
    """Give the unpacked folder of an npm package, packing it with npm where it is absent.

    Args:
        npm: Folder that holds `NAME-VERSION/package` for each package.
        package: Name as npm writes it in the file, such as `iconify-json-noto`.

    Returns:
        The folder with the package's files.
    """
    stem = f"{package}-{_VERSIONS[package]}"
    folder = npm / stem
    if not folder.is_dir():
        npm.mkdir(parents=True, exist_ok=True)
        archive = npm / f"{stem}.tgz"
        if not archive.is_file():
            registry_name = package.replace("iconify-json-", "@iconify-json/")
            spec = f"{registry_name}@{_VERSIONS[package]}"
            subprocess.run(["npm", "pack", spec], cwd=npm, check=True, capture_output=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder / "package"


class Matcher:
    """Finds the code point sequence that a vendor's icon name means."""

    def __init__(self, npm: Path, variants: list[Variant]) -> None:
        """Collect every known name of every emoji.

        Args:
            npm: Folder of unpacked packages.
            variants: The emoji to match to.
        """
        self._codes = {v.code for v in variants}
        self._names: dict[str, str] = {}
        for variant in variants:
            tone = "" if variant.tone == "none" else f" {variant.tone} skin tone"
            self._names.setdefault(_slug(variant.label + tone), variant.code)
        for package in VENDORS.values():
            for code, name in _chars(package_folder(npm, package)).items():
                if plain_code(code) in self._codes:
                    self._names.setdefault(name, plain_code(code))
        self._squashed: dict[str, str] = {}
        for name, code in self._names.items():
            self._squashed.setdefault(name.replace("-", ""), code)
        self._add_unicode_names()
        self._add_shortcodes(package_folder(npm, EMOJIBASE))

    def find(self, name: str, own: dict[str, str]) -> str | None:
        """Give the code point sequence of an icon name, or `None`.

        Args:
            name: The vendor's icon name.
            own: Code by name as the vendor's package says it, where it does.
        """
        code = own.get(name) or self._names.get(name) or self._squashed.get(name.replace("-", ""))
        return code if code in self._codes else None

    def _add_unicode_names(self) -> None:
        for code in self._codes:
            if "-" not in code:
                name = _slug(unicodedata.name(chr(int(code, 16)), ""))
                self._squashed.setdefault(name.replace("-", ""), code)

    def _add_shortcodes(self, emojibase: Path) -> None:
        for source in _SHORTCODES:
            path = emojibase / "en" / "shortcodes" / f"{source}.json"
            for code, names in json.loads(path.read_text("utf-8")).items():
                if plain_code(code) in self._codes:
                    for name in [names] if isinstance(names, str) else names:
                        self._squashed.setdefault(_slug(name).replace("-", ""), plain_code(code))


def read_icons(npm: Path, vendor: str, matcher: Matcher) -> list[Icon]:
    """Read one vendor's drawings, one for each emoji that it draws.

    Args:
        npm: Folder of unpacked packages.
        vendor: A key of `VENDORS`.
        matcher: Finds the emoji of a name.

    Returns:
        The drawings; icons that match no emoji are left out.
    """
    folder = package_folder(npm, VENDORS[vendor])
    data = json.loads((folder / "icons.json").read_text("utf-8"))
    own = {name: plain_code(code) for code, name in _chars(folder).items()}
    icons: dict[str, Icon] = {}
    for name in [*data["icons"], *data.get("aliases", {})]:
        code = matcher.find(name, own)
        if code is not None and code not in icons:
            icons[code] = Icon(vendor, name, code, _svg(data, name))
    return list(icons.values())


def _svg(data: dict[str, Any], name: str) -> str:
    icon: dict[str, Any] = {}
    flips = [False, False]
    while name in data.get("aliases", {}):
        alias = data["aliases"][name]
        flips = [flips[0] ^ bool(alias.get("hFlip")), flips[1] ^ bool(alias.get("vFlip"))]
        name = alias["parent"]
    icon = data["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", data.get("width", 16))
    height = icon.get("height", data.get("height", 16))
    sx, sy = (-1 if flip else 1 for flip in flips)
    tx, ty = (2 * left + width) * flips[0], (2 * top + height) * flips[1]
    body = icon["body"].replace("currentColor", "#000")
    if any(flips):
        body = f'<g transform="translate({tx} {ty}) scale({sx} {sy})">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )


def _chars(folder: Path) -> dict[str, str]:
    path = folder / "chars.json"
    chars: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return chars


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’]", "", plain)).strip("-")
