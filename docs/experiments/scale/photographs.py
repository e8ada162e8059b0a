"""Photographs that nobody took, as large as real ones, and the hosts that read them."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from vlm_edit import Dictionary, Host, zoo

# Width and height of a file, by what tables call it.
SIZES = {".2 megapixels": (512, 384), "2 megapixels": (1632, 1224), "24 megapixels": (6000, 4000)}
_OCTAVES = ((4, 60.0), (16, 30.0), (64, 15.0), (256, 8.0))  # cells a side, and grey levels
_GRAIN, _TILE, _QUALITY = 5.0, 512, 88


def content(width: int, height: int) -> np.ndarray:
    """Return smooth random colours with some grain, uint8 [height, width, 3]."""
    random = np.random.default_rng(0)
    grain = random.normal(0, _GRAIN, (_TILE, _TILE, 1)).astype(np.float32)
    tiles = (-(-height // _TILE), -(-width // _TILE), 1)
    levels = 128 + np.tile(grain, tiles)[:height, :width] + np.zeros(3, np.float32)
    for cells, strength in _OCTAVES:
        for channel in range(3):
            coarse = Image.fromarray(random.normal(0, strength, (cells, cells)).astype(np.float32))
            smooth = coarse.resize((width, height), Image.Resampling.BICUBIC)
            levels[..., channel] += np.asarray(smooth)
    return levels.clip(0, 255).astype(np.uint8)


def photographs(size: str, count: int) -> list[bytes]:
    """Return JPEG files, each of other pixels: the same content, begun at another row.

    Args:
        size: One of ``SIZES``.
        count: How many.
    """
    pixels, files = content(*SIZES[size]), []
    for i in range(count):
        file = io.BytesIO()
        turned = np.roll(pixels, i * (len(pixels) // count), axis=0)
        Image.fromarray(turned).save(file, "JPEG", quality=_QUALITY)
        files.append(file.getvalue())
    return files


def as_folder(files: list[bytes], folder: Path) -> str:
    """Write files beside a CSV file that lists them with a text each, and return its path."""
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("image", "text"))
        for i, data in enumerate(files):
            (folder / f"{i:06d}.jpg").write_bytes(data)
            rows.writerow((f"{i:06d}.jpg", caption(i)))
    return str(folder / "pairs.csv")


def as_tar(files: list[bytes], folder: Path) -> str:
    """Write a tar file as webdataset does, and return its path."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for i, data in enumerate(files):
            for ending, value in (("jpg", data), ("txt", caption(i).encode())):
                member = tarfile.TarInfo(f"{i:06d}.{ending}")
                member.size = len(value)
                archive.addfile(member, io.BytesIO(value))
    return str(path)


def as_parquet(files: list[bytes], folder: Path) -> str:
    """Write a parquet file of the images' bytes and texts, and return its path."""
    import pyarrow
    from pyarrow import parquet

    path = folder.with_suffix(".parquet")
    table = {"image": files, "text": [caption(i) for i in range(len(files))]}
    parquet.write_table(pyarrow.table(table), path)
    return str(path)


def caption(number: int) -> str:
    """Return the text of a photograph."""
    return f"photograph number {number}"


def emoji_clip() -> tuple[Host, Dictionary]:
    """Return the zoo's CLIP, which reads 48 pixels, and its dictionary."""
    return Host.of(*zoo.load_host()), zoo.load_dictionary("joint")


def random_clip(side: int = 224) -> tuple[Host, Dictionary]:
    """Return a random CLIP of one layer that reads images as large as CLIP L/14 does.

    What it takes to make its inputs is what it takes for CLIP L/14; its forward is next to nothing.

    Args:
        side: Of the images, in pixels.
    """
    torch.manual_seed(0)
    tokenizer = zoo.load_host()[1].tokenizer
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    small["num_attention_heads"] = 2
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**small, **text, "bos_token_id": tokenizer.bos_token_id},
        vision_config={**small, "image_size": side, "patch_size": 32 if side > 32 else 8},
        projection_dim=32,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    host = Host.of(CLIPModel(config).eval(), CLIPProcessor(images, tokenizer))
    return host, Dictionary.identity(32)
