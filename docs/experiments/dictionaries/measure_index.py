"""Load each public dictionary of the index with its host, check it, measure it, write a page.

    python docs/experiments dictionaries.measure_index --pairs FOLDER
    python docs/experiments dictionaries.measure_index --pairs FOLDER --only visaebench
    python docs/experiments dictionaries.measure_index --pairs zoo:pairs --index build/zoo.json

It needs a network, and for most hosts a card; one that was loaded serves all that follow it. A row
of the page is what came of one dictionary; whatever fails is a row too, with what was said. The
page is written anew after every row. ``--index`` names another file of rows of the same kind, in
which ``path`` may stand for ``repo``; the dictionaries of the zoo make one with ``--zoo FOLDER``.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_edit import Host, VlmEditError, load_dictionary, read_pairs, zoo
from vlm_edit.dictionaries import Dictionary, PairedDictionary, save_saelens
from vlm_edit.dictionaries.releases import releases
from vlm_edit.ground.files import write_text
from vlm_edit.measuring import Pairs, collect, measure

HEAD = (
    *("release", "sae_id", "host", "site", "features"),
    *("image: explained, L0, dead", "text: explained, L0, dead", "features of each class"),
    *("seconds", "what was said"),
)


@dataclass
class Hosts:
    """The host that was loaded last, for the dictionaries that follow."""

    name: str = ""
    host: Host | None = None

    def load(self, name: str) -> Host:
        """Return a host by its name, the last one again."""
        if self.host is None or self.name != name:
            self.host = None  # two would not fit on one card
            self.host, self.name = Host.load(name), name
        return self.host


def entries(index: Path | None, only: str) -> list[dict[str, Any]]:
    """Return rows of an index whose release or family has a word in it, hosts together."""
    shipped = [vars(release) for release in releases().values()]
    rows = json.loads(index.read_text("utf-8")) if index else shipped
    asked = [row for row in rows if only.lower() in f"{row['release']} {row.get('family')}".lower()]
    return sorted(asked, key=lambda row: str(row.get("host")))


def zoo_index(folder: Path) -> Path:
    """Save the zoo's dictionaries as SAELens does, and the index of them."""
    rows = []
    for site in ("joint", "vision.2", "language.1"):
        save_saelens(zoo.load_dictionary(site), folder / site)
        host = "zoo:emoji-llava" if site.startswith("language") else "zoo:emoji-clip"
        rows.append({"release": f"zoo-{site}", "path": str(folder / site), "site": site,
                     "host": host, "family": "zoo"})  # fmt: skip
    index = folder / "zoo.json"
    write_text(index, json.dumps(rows, indent=1))
    return index


def load(row: dict[str, Any]) -> Dictionary | PairedDictionary[Dictionary]:
    """Load the one dictionary of a row that stands for it."""
    if "path" in row:
        return load_dictionary(row["path"])
    return load_dictionary(release=row["release"], sae_id=row.get("example") or None)


def site_of(row: dict[str, Any], dictionary: Any) -> str:
    """Return the site that a row names, or that of the layer which the dictionary tells of."""
    site, halves = row.get("site", ""), getattr(dictionary, "image", dictionary)
    hook = re.search(r"\.(\d+)(?:\.|$)", halves.info.get("hook_name", ""))
    layer = halves.info.get("layer", hook[1] if hook else None)
    if site and "{" not in site:
        return str(site)
    if layer is None:
        raise VlmEditError("neither the index nor the file says its site")
    return site.replace("{}", layer) if "{}" in site else f"language.{layer}"


def checked(dictionary: Any, streams: dict[str, Any], stream: str) -> str:
    """Return explained variance, L0 and share of dead features on a stream."""
    if stream not in streams or not len(streams[stream]):
        return ""
    half = dictionary.of(stream) if isinstance(dictionary, PairedDictionary) else dictionary
    found = half.check(streams[stream], stream)
    return f"{found.explained_variance:.3f}, {found.l0:.1f}, {found.dead:.1%}"


def row_of(row: dict[str, Any], hosts: Hosts, pairs: Pairs, most: int) -> list[str]:
    """Return the cells of a row, without the last two."""
    dictionary = load(row)
    site, host = site_of(row, dictionary), hosts.load(row["host"])
    streams = collect(host, pairs, site, most=most, progress=False)
    counts = "(one stream alone)"  # dominance compares two
    if all(len(streams.get(stream, ())) for stream in ("image", "text")):
        classes = measure(host, pairs, dictionary, site, progress=False).dominance.classes()
        counts = ", ".join(f"{len(features)} {kind}" for kind, features in classes.items())
    cells = [row["release"], row.get("example", ""), row["host"], site, str(dictionary.n_features)]
    cells += [checked(dictionary, streams, stream) for stream in ("image", "text")]
    return [*cells, counts]


def attempt(row: dict[str, Any], hosts: Hosts, pairs: Pairs, most: int) -> list[str]:
    """Return a row's cells, of a failure too."""
    begin = time.monotonic()
    try:
        cells, said = row_of(row, hosts, pairs, most), ""
    except Exception as error:  # a page that stops at one repository is of no use
        cells = [row["release"], row.get("example", ""), row.get("host", "")]
        cells += [""] * (len(HEAD) - 2 - len(cells))
        said = str(error) if isinstance(error, VlmEditError) else traceback.format_exc(limit=-1)
    seconds = f"{time.monotonic() - begin:.0f}"
    return [*cells, seconds, " ".join(said.split())[:300].replace("|", "\\|")]


def page(rows: list[list[str]], pairs: str, count: int) -> str:
    """Return the page."""
    failed = sum(bool(row[-1]) for row in rows)
    lines = [f"# Public dictionaries on {count} pairs of {pairs}", ""]
    lines += [f"{len(rows)} tried, {failed} of them failed; the last column says how.", ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", required=True, help="a folder or file of pairs, or zoo:pairs")
    parser.add_argument("--index", type=Path, help="another index than the one that ships")
    parser.add_argument(
        "--zoo", type=Path, help="a folder for the zoo's dictionaries, as the index"
    )
    parser.add_argument("--only", default="", help="a word of the releases' or families' names")
    parser.add_argument("--most", type=int, default=4096, help="activations to check on")
    parser.add_argument("--out", type=Path, default=Path("public-dictionaries.md"))
    options = parser.parse_args()
    pairs = zoo.load_pairs() if options.pairs == "zoo:pairs" else read_pairs(options.pairs)
    index = zoo_index(options.zoo) if options.zoo else options.index
    hosts, rows = Hosts(), list[list[str]]()
    for entry in entries(index, options.only):
        rows.append(attempt(entry, hosts, pairs, options.most))
        write_text(options.out, page(rows, options.pairs, len(pairs)))
        print(" | ".join(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
