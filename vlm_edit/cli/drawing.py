"""``vlm-edit draw``: draw with a class of features taken from a reference, scaled or kept."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.cli.host import ZOO
from vlm_edit.cli.kept import save_picture
from vlm_edit.cli.patching import expect_folder_of
from vlm_edit.cli.pipeline import KIND, SHIPPED, embed, load_pipeline, read
from vlm_edit.cli.subject import load_dictionary, load_pairs, run_of
from vlm_edit.dictionaries import Dictionary, PairedDictionary
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.ground.files import packed, write_bytes
from vlm_edit.host import Host, quiet_when_piped
from vlm_edit.measures.dominance import Cut
from vlm_edit.measuring import Measurement, measure
from vlm_edit.patches import Patch
from vlm_edit.report import Picture
from vlm_edit.selection import by_class
from vlm_edit.tasks.generation import (
    Row,
    Stream,
    grid,
    interpolate,
    keep,
    scale,
    take,
)

WHOLE = "whole"
CLASSES = ("vision", "cross", "language")
STRENGTHS = {"blend": "0,0.5,1", "scale": "0,1,2", "keep": "0,0.5,1"}
_FARTHEST = 8
IDLE = {"blend": 0.0, "scale": 1.0, "keep": 0.0}  # the strength that changes nothing


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Arguments of the verb."""
    parser = commands.add_parser(
        "draw",
        help="draw from a prompt or image, with a class of features taken from a reference, "
        "scaled, or kept alone",
    )
    parser.add_argument("prompt", help="what to draw: a text, or an image file")
    parser.add_argument(
        "--reference",
        action="append",
        help="what to take from: an image file, or a text; may be given again",
    )
    parser.add_argument(
        "--rule",
        choices=tuple(STRENGTHS),
        default="blend",
        help="blend toward the reference; or of the prompt's own features scale some, or keep them "
        "and lose all others (%(default)s)",
    )
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        choices=(*CLASSES, WHOLE),
        help="of features, or the reference's whole embedding; may be given again (all)",
    )
    parser.add_argument(
        "--strength",
        help="several with commas: 0 draws the prompt, 1 takes the features over, or keeps nothing "
        "else (0,0.5,1); for scale the factor (0,1,2); --strength=-1,1 if the first is negative",
    )
    parser.add_argument(
        "--pipeline",
        default=SHIPPED,
        help=f"folder of an {KIND} (%(default)s)",
    )
    parser.add_argument("--site", default="joint", help="(%(default)s)")
    parser.add_argument("--dictionary", default=f"{ZOO}joint", help="(%(default)s)")
    parser.add_argument(
        "--run",
        dest="run_folder",
        metavar="RUN",
        help="folder that measure wrote: for the classes, and its page shows the picture",
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
    strengths = _strengths(options.strength or STRENGTHS[options.rule])
    classes = _expect_reference(options)
    _expect_numbers(options)
    _expect_out(options)
    source = read(options.prompt)
    references = [(told, read(told)) for told in dict.fromkeys(options.reference or ())]
    pipe = load_pipeline(options.pipeline)
    dictionary = load_dictionary(options)
    if isinstance(dictionary, PairedDictionary):
        raise BadArgument("draw takes codes over, and a paired dictionary has one per stream")
    run = run_of(options.run_folder, Host.of(pipe.clip), dictionary) if options.run_folder else None
    features = _features(options, pipe, dictionary, run, [c for c in classes if c != WHOLE])
    taken: list[tuple[str, str | Image.Image | None, Tensor | None]] = [
        (told, what, embed(pipe, options.site, what)) for told, what in references
    ] or [("", None, None)]
    plain = _draw(pipe, source, options) if IDLE[options.rule] in strengths else None
    rows = []
    for name in classes:
        for told, reference, embedding in taken:
            drawings = []
            for strength in strengths:
                if plain is not None and strength == IDLE[options.rule]:
                    drawings.append(plain)
                    continue
                chosen = features.get(name)
                patch = _patch(options, dictionary, chosen, reference, embedding, strength)
                with patch.attach(pipe.clip) as attached:
                    drawings.append(_draw(pipe, source, options))
                if not attached.report().edited_tokens:
                    raise VlmEditError(
                        f"--site {options.site} was not passed when {options.prompt!r} was "
                        "embedded, and nothing was edited: name one that was, such as joint"
                    )
            rows.append(Row(_title(name, features), reference, drawings))
            print(f"{rows[-1].title}: {told}" if told else rows[-1].title, flush=True)
    _save(options, rows, strengths, run)
    return 0


def _expect_reference(options: argparse.Namespace) -> list[str]:
    """The classes asked for; whether there is a reference must go with the rule."""
    if options.rule == "blend":
        if not options.reference:
            raise BadArgument("--rule blend takes features of something: name it with --reference")
        return list(dict.fromkeys(options.classes or [*CLASSES, WHOLE]))
    if options.reference:
        raise BadArgument(
            f"--rule {options.rule} changes the prompt's own features: leave --reference out"
        )
    if WHOLE in (options.classes or ()):
        raise VlmEditError(f"--class {WHOLE} is a baseline of --rule blend: name a class")
    return list(dict.fromkeys(options.classes or CLASSES))


def _expect_numbers(options: argparse.Namespace) -> None:
    if options.steps is not None and options.steps < 1:
        raise BadArgument(f"--steps {options.steps}: it must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise BadArgument(f"--seed {options.seed}: give a number from 0 to 2**63 - 1")


def _expect_out(options: argparse.Namespace) -> None:
    """Refuse before anything is drawn what could not be written, or would overwrite an input."""
    out = Path(options.out)
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        raise VlmEditError(f"--out {options.out}: name a picture, such as draw.png")
    expect_folder_of(out, f"--out {out}")
    if out.is_dir():
        raise VlmEditError(f"--out {out} is a folder: name a picture in it")
    for told in (options.prompt, *(options.reference or ())):
        if os.path.isfile(told) and out.exists() and out.samefile(told):
            raise VlmEditError(f"--out {out} is what is drawn from: name another file")


def _save(
    options: argparse.Namespace,
    rows: Sequence[Row],
    strengths: Sequence[float],
    run: Measurement | None,
) -> None:
    """The picture, and a copy for the run's page."""
    picture = _picture(options, rows, strengths)
    kind = Image.EXTENSION[Path(options.out).suffix.lower()]
    try:
        data = packed(partial(picture.image.save, format=kind))
    except (OSError, ValueError) as error:
        raise VlmEditError(f"--out {options.out} could not be written ({error})") from error
    write_bytes(options.out, data, "picture")
    print(f"\npicture:  {options.out}")
    if run is not None:
        save_picture(Path(options.run_folder), picture, run.checksum())
        print(f"page:     vlm-edit report {options.run_folder}")


def _picture(
    options: argparse.Namespace, rows: Sequence[Row], strengths: Sequence[float]
) -> Picture:
    """The grid, and what it shows in words."""
    title = f"{options.rule}: {_short(options.prompt)}"
    across = ", ".join(f"{strength:g}" for strength in strengths)
    told = f"A grid of drawings. Across, strengths {across}. Down, features: "
    told += "; ".join(dict.fromkeys(row.title for row in rows))
    if options.reference:
        told += f"; each of the references {', '.join(map(_short, options.reference))}"
    steps = "the pipeline's number of steps" if options.steps is None else f"{options.steps} steps"
    note = (
        f"By vlm-edit draw with {options.pipeline}, at {options.site}, classes by {options.cuts}, "
        f"{steps}, seed {options.seed}. One noise for all drawings."
    )
    return Picture(title, grid(rows, strengths, title), f"{told}.", note)


def _patch(
    options: argparse.Namespace,
    dictionary: Dictionary,
    features: list[int] | None,
    reference: str | Image.Image | None,
    embedding: Tensor | None,
    strength: float,
) -> Patch:
    """The rule on these features; without any, toward the reference's whole embedding."""
    if reference is None or embedding is None:
        change = scale if options.rule == "scale" else keep
        return change(options.site, dictionary, features or [], strength)
    if features is None:
        return interpolate(options.site, embedding, strength)
    stream: Stream = "text" if isinstance(reference, str) else "image"
    return take(options.site, dictionary, features, embedding, strength, stream)


def _draw(pipe: Any, source: str | Image.Image, options: argparse.Namespace) -> Image.Image:
    given = {"prompt": source} if isinstance(source, str) else {"image": source}
    generator = torch.Generator().manual_seed(options.seed)
    found = pipe(**given, num_inference_steps=options.steps, generator=generator).images[0]
    assert isinstance(found, Image.Image)
    return found


def _features(
    options: argparse.Namespace,
    pipe: Any,
    dictionary: Dictionary,
    found: Measurement | None,
    classes: Sequence[str],
) -> dict[str, list[int]]:
    """Each class's features, by a run or measured now."""
    if found is not None:
        if found.site != options.site:
            raise VlmEditError(
                f"{options.run_folder} measured {found.site}: draw with --site {found.site}"
            )
    elif classes:
        pairs = load_pairs(options.pairs)
        found = measure(
            Host.of(pipe.clip, pipe.processor), pairs, dictionary, options.site, progress=False
        )
    else:
        return {}
    chosen = {name: by_class(found.dominance, cast("Any", name), options.cuts) for name in classes}
    for name, features in chosen.items():
        if not features:
            raise BadArgument(
                f"no feature is of class {name} by the cuts {options.cuts}: leave it out, or try "
                "other --cuts"
            )
    return chosen


def _strengths(told: str) -> list[float]:
    found = set()
    for part in told.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not -_FARTHEST <= value <= _FARTHEST:
            raise BadArgument(
                f"--strength {told}: give numbers from -{_FARTHEST} to {_FARTHEST}, such as "
                f"0,0.5,1, got {part!r}"
            )
        found.add(value)
    return sorted(found)


def _title(name: str, features: dict[str, list[int]]) -> str:
    return "whole embedding" if name == WHOLE else f"{name} ({len(features[name])})"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
