"""``vlm-edit draw``: draw, taking a class of features from a reference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.cli.host import ZOO, quiet_when_piped
from vlm_edit.cli.subject import load_dictionary, load_pairs
from vlm_edit.dictionaries import Dictionary, PairedDictionary
from vlm_edit.dominance import Cut
from vlm_edit.errors import VlmEditError
from vlm_edit.measurement import load_measurement, measure
from vlm_edit.pairs import IMAGE_ENDINGS
from vlm_edit.patches import Patch
from vlm_edit.selection import by_class
from vlm_edit.tasks.generation import Row, Stream, grid, interpolate, read_reference, take

WHOLE = "whole"
CHOICES = ("vision", "cross", "language", WHOLE)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Arguments of the verb."""
    parser = commands.add_parser(
        "draw", help="draw from a prompt or image, taking a class of features from a reference"
    )
    parser.add_argument("prompt", help="what to draw: a text, or an image file")
    parser.add_argument(
        "--reference",
        action="append",
        required=True,
        help="what to take from: an image file, or a text; may be given again",
    )
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        choices=CHOICES,
        help="of features to take, or the whole embedding; may be given again (all four)",
    )
    parser.add_argument(
        "--strength",
        default="0,0.5,1",
        help="0 draws the prompt, 1 takes the features over; several with commas (%(default)s)",
    )
    parser.add_argument(
        "--pipeline",
        default=f"{ZOO}emoji-unclip",
        help="folder of an UnclipPipeline, or %(default)s",
    )
    parser.add_argument("--site", default="joint", help="(%(default)s)")
    parser.add_argument("--dictionary", default=f"{ZOO}joint", help="(%(default)s)")
    parser.add_argument(
        "--run", dest="run_folder", metavar="RUN", help="folder that measure wrote, for the classes"
    )
    parser.add_argument(
        "--pairs", default=f"{ZOO}pairs", help="measure on these without --run (%(default)s)"
    )
    parser.add_argument(
        "--cuts", choices=get_args(Cut), default="sd", help="for the classes (%(default)s)"
    )
    parser.add_argument("--steps", type=int, help="of the scheduler (the pipeline's)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--out", default="draw.png", help="the picture (%(default)s)")
    parser.set_defaults(run=draw)


def draw(options: argparse.Namespace) -> int:
    """``vlm-edit draw``."""
    quiet_when_piped()
    strengths = _strengths(options.strength)
    out = Path(options.out)
    if not out.absolute().parent.is_dir():
        raise VlmEditError(f"--out {out}: its folder does not exist; make it first")
    pipe = load_pipeline(options.pipeline)
    dictionary = load_dictionary(options)
    if isinstance(dictionary, PairedDictionary):
        raise VlmEditError("draw takes codes over, and a paired dictionary has one per stream")
    source, classes = read(options.prompt), options.classes or list(CHOICES)
    references = [read(told) for told in options.reference]
    features = _features(options, pipe, dictionary, [c for c in classes if c != WHOLE])
    embeddings = [embed(pipe, options.site, reference) for reference in references]
    plain = _draw(pipe, source, options) if 0.0 in strengths else None
    rows = []
    for name in classes:
        title, chosen = _title(name, features), features.get(name)
        for told, reference, found in zip(options.reference, references, embeddings, strict=True):
            drawings = []
            for strength in strengths:
                if plain is not None and strength == 0:
                    drawings.append(plain)
                    continue
                patch = _patch(options.site, dictionary, chosen, reference, found, strength)
                with patch.attach(pipe.clip):
                    drawings.append(_draw(pipe, source, options))
            rows.append(Row(title, reference, drawings))
            print(f"{title}: {told}", flush=True)
    grid(rows, strengths, _short(options.prompt)).save(out)
    print(f"\npicture:  {out}")
    return 0


def load_pipeline(name: str) -> Any:
    """The zoo's pipeline, or a folder's.

    Raises:
        VlmEditError: diffusers is missing, or the folder holds no ``UnclipPipeline`` with a host.
    """
    try:
        from diffusers.utils import logging

        from vlm_edit.zoo.unclip import UnclipPipeline
    except ImportError as error:
        raise VlmEditError(
            f"drawing needs diffusers ({error}): pip install 'vlm-edit[diffusion]'"
        ) from error
    logging.disable_progress_bar()
    if name.startswith(ZOO):
        if name != f"{ZOO}emoji-unclip":
            raise VlmEditError(f"no pipeline {name!r}; the zoo has {ZOO}emoji-unclip")
        from vlm_edit import zoo

        pipe = zoo.load_unclip()
    elif not (Path(name) / "model_index.json").is_file():
        raise VlmEditError(f"no pipeline at {name!r}: it must be a folder with a model_index.json")
    else:
        pipe = UnclipPipeline.from_pretrained(name, local_files_only=True)
    if pipe.clip is None:
        raise VlmEditError(
            f"{name} holds no CLIP to embed prompts: save the pipeline with its clip"
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read(told: str) -> str | Image.Image:
    """An image if there is such a file, else the text itself.

    Raises:
        VlmEditError: It looks like an image file and is none.
    """
    path = Path(told)
    if path.suffix.lower() not in IMAGE_ENDINGS:
        return told
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise VlmEditError(f"{told}: no image could be read there ({error})") from error


def embed(pipe: Any, site: str, what: str | Image.Image) -> Tensor:
    """What a prompt or an image is at the site, [d]."""
    if isinstance(what, str):
        return read_reference(pipe.clip, site, lambda: pipe.encode_prompt(what), "text")
    return read_reference(pipe.clip, site, lambda: pipe.encode_image(what), "image")


def _patch(
    site: str,
    dictionary: Dictionary,
    features: list[int] | None,
    reference: str | Image.Image,
    embedding: Tensor,
    strength: float,
) -> Patch:
    """What takes the features of a reference, or without any its whole embedding."""
    if features is None:
        return interpolate(site, embedding, strength)
    stream: Stream = "text" if isinstance(reference, str) else "image"
    return take(site, dictionary, features, embedding, strength, stream)


def _draw(pipe: Any, source: str | Image.Image, options: argparse.Namespace) -> Image.Image:
    given = {"prompt": source} if isinstance(source, str) else {"image": source}
    generator = torch.Generator().manual_seed(options.seed)
    found = pipe(**given, num_inference_steps=options.steps, generator=generator).images[0]
    assert isinstance(found, Image.Image)
    return found


def _features(
    options: argparse.Namespace, pipe: Any, dictionary: Dictionary, classes: Sequence[str]
) -> dict[str, list[int]]:
    """Each class's features, by a run or measured now."""
    if not classes:
        return {}
    if options.run_folder:
        found = load_measurement(options.run_folder)
    else:
        pairs = load_pairs(options.pairs)
        found = measure(pipe.clip, pipe.processor, pairs, dictionary, options.site, progress=False)
    return {name: by_class(found.dominance, cast("Any", name), options.cuts) for name in classes}


def _strengths(told: str) -> list[float]:
    try:
        found = sorted({float(part) for part in told.split(",")})
    except ValueError:
        raise VlmEditError(f"--strength {told}: give numbers, such as 0,0.5,1") from None
    if any(not -8 <= value <= 8 for value in found):
        raise VlmEditError(f"--strength {told}: 1 takes the features over; give at most 8")
    return found


def _title(name: str, features: dict[str, list[int]]) -> str:
    return "whole embedding" if name == WHOLE else f"{name} ({len(features[name])})"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
