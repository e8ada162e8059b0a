"""Write the index of public dictionaries, and its table in docs/dictionaries.md.

    python docs/experiments dictionaries.index --releases sae_lens/pretrained_saes.yaml
    python docs/experiments dictionaries.index        # the table alone

``--releases`` is the file of that name in sae-lens (6.54.12 when this was last run). Of it those
are taken that are of language models which vision-language models are built on, or are such models
themselves, that a format here reads, and that need no options of sae-lens's own. Each name in it is
held to lead to the file that it gives. Rows of other libraries' dictionaries stand in
``known.json`` beside this, and licences with the page that states each; what nobody says stays
empty.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
INDEX = ROOT / "vlm_edit" / "dictionaries" / "index.json"
PAGE = ROOT / "docs" / "dictionaries.md"
KNOWN: dict[str, Any] = json.loads(Path(__file__).with_name("known.json").read_text("utf-8"))
BEGIN, END = "<!-- index: begin -->", "<!-- index: end -->"

# Formats of which files that their library wrote are compared with it.
GOLDEN = {
    *("saelens", "dictionary_learning", "prisma", "saev", "clipscope", "msae", "sparsify"),
    *("overcomplete", "mayfull", "gemma_scope", "qwen_scope", "gemma_scope_1", "goodfire"),
    *("visaebench", "vlsae", "openai", "hypothesaes", "dncbm", "circuit_tracer"),
    *("circuit_tracer_layers", "gemma_scope_layers"),
}
# Published files that have been opened, by release: none, for want of a network.
READ: frozenset[str] = frozenset()
MARKS = {
    "read": "read",
    "golden": "read by its golden file",
    "untried": "not tried here",
}

_HOSTS = {
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    **{f"qwen3-{size}b": f"Qwen/Qwen3-{size}B" for size in ("0.6", "1.7", "4", "8", "14")},
}
_FORMATS = {
    "gemma_3": "gemma_scope",
    "gemma_2": "gemma_scope_1",
    "gemma_2_transcoder": "gemma_scope_1",
    "mwhanna_transcoder": "circuit_tracer",
    "llama_scope": "llama_scope",
    "goodfire": "goodfire",
    "qwen_scope": "qwen_scope",
    "llama_scope_r1_distill": "lm_saes",
    "dictionary_learning_1": "dictionary_learning",
    None: "saelens",
}
_FAMILIES = (
    ("gemma-scope-2-", "Gemma Scope 2"),
    ("gemma-scope-", "Gemma Scope"),
    ("llama_scope_r1_", "Llama Scope R1"),
    ("llama_scope_", "Llama Scope"),
    ("qwen-scope-", "Qwen-Scope"),
    ("goodfire-", "Goodfire"),
    ("llama-3-8b-it-res-jh", "Juliushanhanhan"),
    ("gemma-2-2b-res-", "chanind's Matryoshka"),
    ("gemma-2-9b-res-", "chanind's Matryoshka"),
    ("gemma-3-1b-res-", "chanind's Matryoshka"),
    ("llama-3.1-8b-instruct-andyrdt", "andyrdt"),
    ("qwen2.5-7b-instruct-andyrdt", "andyrdt"),
    ("mwhanna-qwen3-", "mwhanna"),
)
# Which part of a layer the names of releases tell.
_SITES = (
    (re.compile(r"[-_]transcoders([-_]|$)"), "language.{}.mlp_out"),
    (re.compile(r"(^|[-_])(res|lxr|r1|resid|goodfire|andyrdt|qwen-scope)([-_]|$)"), "language.{}"),
    (re.compile(r"[-_](mlp|lxm)([-_]|$)"), "language.{}.mlp_out"),
    (re.compile(r"[-_]lxa([-_]|$)"), "language.{}.attention"),
    (re.compile(r"[-_]att([-_]|$)"), "heads of language.{}"),
)
_WIDTH = re.compile(r"(?:^|[/_-])(?:width_|w-?)(\d+)([km])(?:[/_-]|$)")
_EXPANSIONS = {"8x": "32768", "32x": "131072"}  # of Llama 3.1's width, as hyperparams.json says
_NUMBER = re.compile(r"\d+")


def of_sae_lens(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows for the releases that are taken."""
    rows = []
    for name, release in known.items():
        family = next((family for start, family in _FAMILIES if name.startswith(start)), None)
        kind = release.get("conversion_func")
        taken = family and kind in _FORMATS and "config_overrides" not in release
        if not taken:
            continue
        family = f"{family}, transcoders" if "transcoders" in name else family
        places = {sae["id"]: sae["path"] for sae in release["saes"]}
        host = "gemma-2-9b-it" if "9b-it" in name else release.get("model", "")
        row = {"family": family, "release": name, "repo": release["repo_id"]}
        row |= {"host": _HOSTS.get(host, host), "format": _FORMATS[kind]}
        row |= {"site": site(name), "width": widths(name, release), "k": k_of(name)}
        rows.append(row | patterns(places) | {"example": next(iter(places))})
    return rows


def site(name: str) -> str:
    """Return where a release's dictionaries were trained, with ``{}`` for the layer."""
    return next((place for word, place in _SITES if word.search(name)), "")


def widths(name: str, release: Mapping[str, Any]) -> str:
    """Return the numbers of features that a release's names tell, as they write them."""
    told = [name, release["repo_id"], *(sae["path"] for sae in release["saes"])]
    found = {
        int(match[1]) * (1 if match[2] == "k" else 1024): match[1] + match[2]
        for text in told
        for match in _WIDTH.finditer(text.lower())
    }
    expansion = next((n for end, n in _EXPANSIONS.items() if name.endswith(f"_{end}")), "")
    return ", ".join(found[size] for size in sorted(found)) or expansion


def k_of(name: str) -> str:
    """Return the k that a name of Qwen-Scope tells."""
    match = re.fullmatch(r"qwen-scope-.*-l(\d+)", name)
    return match[1] if match else ""


def status(row: Mapping[str, Any]) -> str:
    """Return how far a row's dictionaries were tried."""
    return "read" if row["release"] in READ else "golden" if row["format"] in GOLDEN else "untried"


def patterns(places: Mapping[str, str]) -> dict[str, Any]:
    """Return one pattern that leads from all names to their files, or the names themselves."""
    (name, file) = next(iter(places.items()))
    guesses = [("{}", "{}"), ("{}", file.removesuffix(name) + "{}")]
    for number in _NUMBER.findall(name):
        guesses += [
            (name.replace(number, "{}", 1), file[:at.start()] + "{}" + file[at.end():])
            for at in re.finditer(number, file)
        ]  # fmt: skip
    guesses += [("resid_post_layer_{}_trainer_1", "resid_post_layer_{}/trainer_1")]
    for old, new in guesses:
        if old.count("{}") == 1 and all(leads(old, new, *place) for place in places.items()):
            return {"id": old, "file": new}
    return {"id": "", "file": "", "exact": dict(places)}


def leads(old: str, new: str, name: str, file: str) -> bool:
    """Say whether a pattern leads from a name to its file."""
    match = re.fullmatch(re.escape(old).replace(r"\{\}", "(.+)"), name)
    return match is not None and new.replace("{}", match[1]) == file


def table(rows: list[dict[str, Any]]) -> str:
    """Return a row per family."""
    head = ("whose", "releases, such as", "host", "site", "features", "k", "licence", "format")
    lines = ["| " + " | ".join(cells) + " |" for cells in ((*head, "status"), ["---"] * 9)]
    for family in dict.fromkeys(row["family"] for row in rows):
        of = [row for row in rows if row["family"] == family]
        count = f"{len(of)}: " if len(of) > 1 else ""
        cells = [family, f"{count}`{of[0]['release']}`"]
        cells += [several(of, key) for key in ("host", "site", "width", "k")]
        cells += [several(of, "licence", "not known"), several(of, "format", wrap="`")]
        lines.append("| " + " | ".join([*cells, MARKS[of[0]["read"]]]) + " |")
    return "\n".join(lines)


def several(rows: list[dict[str, Any]], key: str, otherwise: str = "", wrap: str = "") -> str:
    """Return what rows say of something, of many the first and how many more."""
    values = list(dict.fromkeys(row.get(key, "") or otherwise for row in rows))
    texts = [f"{wrap}{value}{wrap}" for value in values if value]
    if len(texts) > 3:
        return f"{texts[0]} and {len(texts) - 1} more"
    return "; ".join(texts) if any("," in text for text in texts) else ", ".join(texts)


def shown(page: str, rows: list[dict[str, Any]]) -> str:
    """Return a page with the table in its place."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=Path, help="pretrained_saes.yaml of sae-lens")
    options = parser.parse_args()
    rows = json.loads(INDEX.read_text("utf-8")) if INDEX.exists() else []
    if options.releases:
        import yaml

        known = yaml.safe_load(options.releases.read_text("utf-8"))
        rows = [{"release": row["repo"], **row} for row in KNOWN["rows"]] + of_sae_lens(known)
        licences = {repo: told["licence"] for repo, told in KNOWN["licences"].items()}
        rows = [row | {"licence": licences.get(row["repo"], "")} for row in rows]
        rows = [row | {"read": status(row)} for row in rows]
        lines = ",\n".join(json.dumps(row) for row in rows)
        INDEX.write_text(f"[\n{lines}\n]\n", "utf-8")
    PAGE.write_text(shown(PAGE.read_text("utf-8"), rows), "utf-8")
    print(f"{len(rows)} releases in {INDEX}")


if __name__ == "__main__":
    main()
