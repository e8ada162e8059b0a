"""Rebuilds the emoji pairs from npm packages.

    python docs/experiments recipes.pairs --npm npm --out build/emoji
    python docs/experiments recipes.pairs --npm npm --out build/emoji --ship vlm_edit/zoo/pairs

The first renders every drawing once into `OUT`; the second also writes the pairs that ship in the
wheel. Packages that are not in the folder `--npm` are fetched with `npm pack`. Needs `resvg-py`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import multiprocessing
import random
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from recipes import icons, splits
from recipes.captions import PHRASINGS, caption
from recipes.concepts import LANGUAGES, Names, Variant, read_names, read_variants
from recipes.icons import Icon

SIZE = 64
BACKGROUNDS = {
    "white": (250, 250, 250),
    "red": (240, 140, 130),
    "yellow": (245, 225, 120),
    "green": (150, 215, 150),
    "blue": (140, 185, 240),
    "grey": (150, 150, 155),
}
SHIPPED = 1024
MIN_VENDORS = 4
COLUMNS = ("vendor", "concept", "label", "group", "gender", "tone", "split")


def rasterise(svg: str) -> np.ndarray:
    """Draw an SVG on a transparent square of `SIZE` pixels, keeping its proportions."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE))
    image = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(canvas)


def composite(drawing: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Lay an RGBA drawing on a plain colour.

    Args:
        drawing: Array of shape (height, width, 4), `uint8`.
        background: Red, green and blue.

    Returns:
        Array of shape (height, width, 3), `uint8`.
    """
    alpha = drawing[..., 3:].astype(np.float32) / 255
    laid = drawing[..., :3] * alpha + np.asarray(background, np.float32) * (1 - alpha)
    return np.rint(laid).astype(np.uint8)


def collect(npm: Path) -> tuple[list[Icon], dict[str, Variant], dict[str, dict[str, Names]]]:
    """Read all drawings of the labels that at least `MIN_VENDORS` shipped vendors draw.

    Args:
        npm: Folder of npm packages.

    Returns:
        The drawings, the variant by code, and the names by label and language.
    """
    emojibase = icons.package_folder(npm, icons.EMOJIBASE)
    variants = read_variants(emojibase)
    by_code = {v.code: v for v in variants}
    matcher = icons.Matcher(npm, variants)
    drawings = [i for vendor in icons.VENDORS for i in icons.read_icons(npm, vendor, matcher)]
    vendors: dict[str, set[str]] = defaultdict(set)
    for icon in drawings:
        if icon.vendor not in splits.HELD_OUT_VENDORS:
            vendors[by_code[icon.code].label].add(icon.vendor)
    drawings = [i for i in drawings if len(vendors[by_code[i.code].label]) >= MIN_VENDORS]
    names = read_names(emojibase, {v.code: v.label for v in variants if v.tone == "none"})
    return drawings, by_code, names


def drop_twins(pixels: np.ndarray, rows: list[dict[str, str]]) -> list[int]:
    """Drop drawings that a vendor uses unchanged for two labels.

    Older sets draw "person running" as the man; the gendered label keeps the drawing.

    Args:
        pixels: All drawings.
        rows: Their columns.

    Returns:
        The indices to keep, in order.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["gender"] == "person", i))
    owner: dict[tuple[str, bytes], str] = {}
    keep = []
    for i in order:
        key = (rows[i]["vendor"], pixels[i].tobytes())
        if owner.setdefault(key, rows[i]["label"]) == rows[i]["label"]:
            keep.append(i)
    return sorted(keep)


def render(npm: Path, out: Path) -> None:
    """Render every drawing and write `drawings.npy`, `drawings.csv` and `names.json`.

    Args:
        npm: Folder of npm packages.
        out: Folder to write to.
    """
    drawings, by_code, names = collect(npm)
    with multiprocessing.Pool() as pool:
        pixels = np.stack(pool.map(rasterise, [i.svg for i in drawings], chunksize=64))
    genders: dict[str, set[str]] = defaultdict(set)
    for icon in drawings:
        genders[by_code[icon.code].concept].add(by_code[icon.code].gender)
    held_out = splits.held_out_concepts(genders)
    rows = []
    for icon in drawings:
        row = {"vendor": icon.vendor, **asdict(by_code[icon.code])}
        row["split"] = splits.split_of(icon.vendor, row["concept"], held_out)
        rows.append({c: row[c] for c in COLUMNS})
    keep = drop_twins(pixels, rows)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "drawings.npy", pixels[keep])
    _write_csv(out / "drawings.csv", COLUMNS, [rows[i] for i in keep])
    labels = {r["label"] for r in rows}
    words = {n: {k: asdict(w) for k, w in names[n].items()} for n in sorted(labels)}
    (out / "names.json").write_text(json.dumps(words, ensure_ascii=False, indent=0), "utf-8")
    print(f"{len(keep)} drawings ({len(rows) - len(keep)} twins dropped), {len(labels)} labels")
    for split, count in sorted(Counter(rows[i]["split"] for i in keep).items()):
        print(f"  {split:8} {count}")


def load_drawings(out: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Load what `render` wrote.

    Args:
        out: The folder given to `render`.

    Returns:
        The drawings, shape (count, 64, 64, 4), and their columns.
    """
    with (out / "drawings.csv").open(encoding="utf-8", newline="") as file:
        return np.load(out / "drawings.npy"), list(csv.DictReader(file))


def load_names(out: Path) -> dict[str, dict[str, Names]]:
    """Load the names by label and language that `render` wrote."""
    words = json.loads((out / "names.json").read_text("utf-8"))
    return {
        label: {k: Names(w["name"], tuple(w["keywords"])) for k, w in by_language.items()}
        for label, by_language in words.items()
    }


def thin(rows: list[dict[str, str]], split: str) -> list[int]:
    """Choose the drawings that score a split: at most two skin tones of a vendor's label.

    Args:
        rows: Columns of all drawings.
        split: Name of the split.

    Returns:
        Indices, in order.
    """
    tones: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row["split"] == split:
            tones[row["vendor"], row["label"]].append(i)
    for (vendor, label), cell in tones.items():
        cell.sort(key=lambda i: splits.draw("tone", vendor, label, rows[i]["tone"]))
    return sorted(i for cell in tones.values() for i in cell[:2])


def _choose(rows: list[dict[str, str]], rng: random.Random) -> list[int]:
    """Choose the shipped drawings: every gendered person, the rest at random."""
    candidates = thin(rows, "hv-test")
    people = [i for i in candidates if rows[i]["gender"] != "none"]
    others = [i for i in candidates if rows[i]["gender"] == "none"]
    chosen = [*people, *rng.sample(others, min(SHIPPED - len(people), len(others)))]
    rng.shuffle(chosen)
    return chosen


def ship(out: Path, folder: Path) -> None:
    """Write what the wheel carries: `sheet.webp`, `pairs.csv` and `labels.txt`, all labels.

    The drawings are of the `hv-test` split. Background, language and phrasing are drawn at random,
    each independently of all else.

    Args:
        out: The folder given to `render`.
        folder: Folder to write to.
    """
    drawings, rows = load_drawings(out)
    names = load_names(out)
    rng = random.Random(splits.SEED)
    chosen = _choose(rows, rng)
    side = int(np.ceil(np.sqrt(len(chosen))))
    sheet = np.zeros((side * SIZE, side * SIZE, 3), np.uint8)
    pairs = []
    for index, i in enumerate(chosen):
        background = rng.choice(list(BACKGROUNDS))
        language, phrasing = rng.choice(LANGUAGES), rng.choice(PHRASINGS)
        y, x = divmod(index, side)
        tile = composite(drawings[i], BACKGROUNDS[background])
        sheet[y * SIZE : (y + 1) * SIZE, x * SIZE : (x + 1) * SIZE] = tile
        text = caption(names[rows[i]["label"]], language, phrasing, rng)
        factors = {"background": background, "language": language, "phrasing": phrasing}
        pairs.append({"index": str(index), "caption": text, **rows[i], **factors})
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(folder / "sheet.webp", lossless=True, quality=100, method=6)
    _write_csv(folder / "pairs.csv", tuple(pairs[0]), pairs)
    labels = sorted({r["label"] for r in rows})
    (folder / "labels.txt").write_text("\n".join(labels) + "\n", "utf-8")
    print(f"{len(pairs)} pairs, {(folder / 'sheet.webp').stat().st_size:,} bytes")


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Run the recipe from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--npm", type=Path, required=True, help="folder of npm packages")
    parser.add_argument("--out", type=Path, required=True, help="folder for the rendered drawings")
    parser.add_argument("--ship", type=Path, help="also write the wheel's pairs to this folder")
    options = parser.parse_args()
    if not (options.out / "drawings.npy").is_file():
        render(options.npm, options.out)
    if options.ship:
        ship(options.out, options.ship)


if __name__ == "__main__":
    main()
