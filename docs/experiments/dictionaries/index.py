"""Write the index of public dictionaries, and its table in docs/dictionaries.md.

    python docs/experiments dictionaries.index --releases sae_lens/pretrained_saes.yaml
    python docs/experiments dictionaries.index        # the table alone

``--releases`` is the file of that name in sae-lens (6.54.12 when this was last run). Of it those
are taken that are of language models which vision-language models are built on, or are such models
themselves, that a format here reads, and that need no options of sae-lens's own. Each name in it is
held to lead to the file that it gives. Rows of other libraries' dictionaries stand below; what
nobody says stays empty.
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
BEGIN, END = "<!-- index: begin -->", "<!-- index: end -->"

# What each was compared with: files that its library wrote, or its formula.
READ = {
    **dict.fromkeys(
        ("saelens", "dictionary_learning", "prisma", "saev", "clipscope", "msae", "sparsify"),
        "golden",
    ),
    **dict.fromkeys(
        ("overcomplete", "mayfull", "gemma_scope", "qwen_scope", "gemma_scope_1", "goodfire"),
        "golden",
    ),
    "visaebench": "golden",
    "llama_scope": "layout",
    "gytdau": "layout",
}
MARKS = {
    "golden": "files of its library, or of sae-lens's reader of it",
    "layout": "files built to its formula",
    "untried": "",
}

_CLIP = "openai/clip-vit-large-patch14"
_VISAEBENCH = {
    "clip-vitb16": "openai/clip-vit-base-patch16",
    "siglip-vitb16": "google/siglip-base-patch16-224",
    "dinov2-vitb14": "facebook/dinov2-base",
}
OWN: list[dict[str, Any]] = [
    {"family": "LMMs-Lab", "repo": "lmms-lab/llama3-llava-next-8b-hf-sae-131k", "k": "256",
     "host": "llava-hf/llama3-llava-next-8b-hf", "site": "language.24", "width": "131072",
     "format": "sparsify", "example": "model.layers.24"},
    {"family": "sae-for-vlm", "repo": "mateuszpach/sae-for-vlm", "k": "20",
     "host": "CLIP L/14 at 336, SigLIP so400m",
     "site": "vision.{11, 17, 22, 23}, projection", "format": "dictionary_learning"},
    {"family": "MSAE", "repo": "WolodjaZ/MSAE", "host": "CLIP L/14 and B/16", "site": "joint",
     "format": "msae"},
    {"family": "saev", "repo": "osunlp/SAE_CLIP_24K_ViT-B-16_IN1K", "width": "24576",
     "host": "CLIP B/16", "site": "vision.10", "format": "saev"},
    {"family": "clipscope", "repo": "lewington/CLIP-ViT-L-scope", "width": "65536", "k": "32",
     "host": "laion CLIP-L/14", "site": "vision.{}", "format": "clipscope"},
    {"family": "gytdau", "repo": "gytdau/clip-sae-128", "site": "joint", "format": "gytdau"},
    {"family": "Mayfull", "repo": "Mayfull/CLIP_TopKSAE", "host": _CLIP, "site": "joint",
     "k": "32", "format": "mayfull"},
    {"family": "Heinz217", "repo": "Heinz217/mllm-retrieval-analysis-sae", "width": "32768",
     "k": "50", "site": "last hidden state",
     "host": "Qwen2-VL-7B, Qwen3-VL-8B, PaliGemma2-3B, CLIP B/32, SigLIP2",
     "format": "overcomplete"},
    {"family": "MAIRA-2", "repo": "microsoft/maira-2-sae", "host": "microsoft/maira-2",
     "site": "language.15", "format": "dictionary_learning"},
    *({"family": "VisAEBench", "repo": f"visaebench/{name}-saes", "host": host,
       "k": "64, 128, 192, 256", "format": "visaebench",
       "example": "batchtopk_16x_k128"} for name, host in _VISAEBENCH.items()),
]  # fmt: skip

_HOSTS = {
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
}
_FORMATS = {
    "gemma_3": "gemma_scope",
    "gemma_2": "gemma_scope_1",
    "llama_scope": "llama_scope",
    "goodfire": "goodfire",
    "qwen_scope": "qwen_scope",
    "dictionary_learning_1": "dictionary_learning",
    None: "saelens",
}
_FAMILIES = (
    ("gemma-scope-2-", "Gemma Scope 2"),
    ("gemma-scope-", "Gemma Scope"),
    ("llama_scope_", "Llama Scope"),
    ("qwen-scope-", "Qwen-Scope"),
    ("goodfire-", "Goodfire"),
    ("llama-3-8b-it-res-jh", "Juliushanhanhan"),
    ("gemma-2-2b-res-", "chanind's Matryoshka"),
    ("gemma-2-9b-res-", "chanind's Matryoshka"),
    ("gemma-3-1b-res-", "chanind's Matryoshka"),
    ("llama-3.1-8b-instruct-andyrdt", "andyrdt"),
    ("qwen2.5-7b-instruct-andyrdt", "andyrdt"),
)
_NUMBER = re.compile(r"\d+")


def of_sae_lens(known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows for the releases that are taken."""
    rows = []
    for name, release in known.items():
        family = next((family for start, family in _FAMILIES if name.startswith(start)), None)
        kind = release.get("conversion_func")
        taken = family and kind in _FORMATS and "config_overrides" not in release
        if not taken or "transcoders" in name:
            continue
        places = {sae["id"]: sae["path"] for sae in release["saes"]}
        host = "gemma-2-9b-it" if "9b-it" in name else release.get("model", "")
        row = {"family": family, "release": name, "repo": release["repo_id"]}
        row |= {"host": _HOSTS.get(host, host), "format": _FORMATS[kind]}
        rows.append(row | patterns(places) | {"example": next(iter(places))})
    return rows


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
    lines = ["| whose | releases, such as | host | site | features | k | format | compared with |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for family in dict.fromkeys(row["family"] for row in rows):
        of = [row for row in rows if row["family"] == family]
        hosts = list(dict.fromkeys(row.get("host", "") for row in of))
        shown = ", ".join(hosts) if len(hosts) < 4 else f"{hosts[0]} and {len(hosts) - 1} more"
        count = f"{len(of)}: " if len(of) > 1 else ""
        cells = [family, f"{count}`{of[0]['release']}`", shown]
        cells += [of[0].get(key, "") for key in ("site", "width", "k")]
        cells += [f"`{of[0]['format']}`", MARKS[of[0]["read"]]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
        rows = [{"release": row["repo"], **row} for row in OWN] + of_sae_lens(known)
        rows = [row | {"read": READ.get(row["format"], "untried")} for row in rows]
        lines = ",\n".join(json.dumps(row) for row in rows)
        INDEX.write_text(f"[\n{lines}\n]\n", "utf-8")
    PAGE.write_text(shown(PAGE.read_text("utf-8"), rows), "utf-8")
    print(f"{len(rows)} releases in {INDEX}")


if __name__ == "__main__":
    main()
