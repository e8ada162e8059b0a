"""``vlm-edit draw``: draw with a class of features taken from a reference, scaled or kept."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vlm_edit.cli import telling
from vlm_edit.cli.arguments import Draw, Taken
from vlm_edit.cli.choosing import choose, said
from vlm_edit.cli.kept import save_picture
from vlm_edit.cli.patching import expect_folder_of
from vlm_edit.cli.pipeline import embed, load_pipeline, read
from vlm_edit.cli.subject import load_dictionary, load_pairs, run_of
from vlm_edit.cli.writing import expect_free
from vlm_edit.dictionaries import Dictionary, PairedDictionary, Transcoder
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.ground.files import packed, write_bytes
from vlm_edit.host import Host, quiet_when_piped
from vlm_edit.measuring import Measurement, measure
from vlm_edit.patches import Patch
from vlm_edit.report import Picture
from vlm_edit.selection import Chosen
from vlm_edit.tasks import generation as gen

WHOLE = Taken.WHOLE
STRENGTHS = {"blend": "0,0.5,1", "scale": "0,1,2", "keep": "0,0.5,1"}
_FARTHEST = 8
IDLE = {"blend": 0.0, "scale": 1.0, "keep": 0.0}  # the strength that changes nothing


def draw(options: Draw) -> int:
    """Draw a grid: a row for each class and reference, a column for each strength."""
    quiet_when_piped()
    strengths = _strengths(options.strength or STRENGTHS[options.rule])
    classes = _expect_reference(options)
    _expect_numbers(options)
    _expect_out(options)
    source = read(options.prompt)
    references = [(name, read(name)) for name in dict.fromkeys(options.reference)]
    pipe = load_pipeline(options.pipeline, options)
    dictionary = load_dictionary(options.dictionary, options)
    if isinstance(dictionary, PairedDictionary):
        raise BadArgument("draw takes codes over, and a paired dictionary has one per stream")
    if isinstance(dictionary, Transcoder):
        raise BadArgument("draw edits joint embeddings, and a transcoder is of layers")
    run = run_of(options.run, Host.of(pipe.clip), dictionary) if options.run else None
    features = _features(options, pipe, dictionary, run, [c for c in classes if c != WHOLE])
    taken: list[tuple[str, str | Image.Image | None, Tensor | None]] = [
        (name, what, embed(pipe, options.site, what)) for name, what in references
    ] or [("", None, None)]
    plain = (
        gen.draw(pipe, source, options.steps, options.seed)
        if IDLE[options.rule] in strengths
        else None
    )
    rows = []
    for name in classes:
        for named, reference, embedding in taken:
            drawings = []
            for strength in strengths:
                if plain is not None and strength == IDLE[options.rule]:
                    drawings.append(plain)
                    continue
                chosen = features.get(name)
                patch = _patch(options, dictionary, chosen, reference, embedding, strength)
                drawings.append(_edited(pipe, source, options, patch))
            rows.append(gen.Row(_title(name, features), reference, drawings))
            print(f"{rows[-1].title}: {named}" if named else rows[-1].title, flush=True)
    _save(options, rows, strengths, run)
    return 0


def _expect_reference(options: Draw) -> list[Taken]:
    """Return the classes asked for; whether there is a reference must go with the rule."""
    if options.rule == "blend":
        if not options.reference:
            raise BadArgument("--rule blend takes features of something: name it with --reference")
        return list(dict.fromkeys(options.classes or Taken))
    if options.reference:
        raise BadArgument(
            f"--rule {options.rule} changes the prompt's own features: leave --reference out"
        )
    if WHOLE in options.classes:
        raise VlmEditError(f"--class {WHOLE} is a baseline of --rule blend: name a class")
    return list(dict.fromkeys(options.classes or [name for name in Taken if name != WHOLE]))


def _expect_numbers(options: Draw) -> None:
    if options.steps is not None and options.steps < 1:
        raise BadArgument(f"--steps {options.steps}: it must be at least 1")
    if not 0 <= options.seed < 2**63:
        raise BadArgument(f"--seed {options.seed}: give a number from 0 to 2**63 - 1")


def _expect_out(options: Draw) -> None:
    """Refuse before anything is drawn what could not be written, or would overwrite an input."""
    out = Path(options.out)
    Image.init()
    if Image.EXTENSION.get(out.suffix.lower()) not in Image.SAVE:
        raise VlmEditError(f"--out {options.out}: name a picture, such as draw.png")
    expect_folder_of(out, f"--out {out}")
    if out.is_dir():
        raise VlmEditError(f"--out {out} is a folder: name a picture in it")
    for source in (options.prompt, *options.reference):
        if os.path.isfile(source) and out.exists() and out.samefile(source):
            raise VlmEditError(f"--out {out} is what is drawn from: name another file")
    expect_free([out], options.overwrite, "name another picture with --out")


def _save(
    options: Draw, rows: Sequence[gen.Row], strengths: Sequence[float], run: Measurement | None
) -> None:
    """Write the picture, and a copy for the run's page."""
    picture = _picture(options, rows, strengths)
    kind = Image.EXTENSION[Path(options.out).suffix.lower()]
    try:
        data = packed(partial(picture.image.save, format=kind))
    except (OSError, ValueError) as error:
        raise VlmEditError(f"--out {options.out} could not be written ({error})") from error
    write_bytes(options.out, data, "picture")
    print()
    telling.wrote("picture", options.out)
    if run is not None and options.run:
        save_picture(Path(options.run), picture, run.checksum())
        telling.wrote("page", f"vlm-edit report {options.run}")


def _picture(options: Draw, rows: Sequence[gen.Row], strengths: Sequence[float]) -> Picture:
    """Lay out the grid, and say in words what it shows."""
    title = f"{options.rule}: {_short(options.prompt)}"
    across = ", ".join(f"{strength:g}" for strength in strengths)
    words = f"A grid of drawings. Across, strengths {across}. Down, features: "
    words += "; ".join(dict.fromkeys(row.title for row in rows))
    if options.reference:
        words += f"; each of the references {', '.join(map(_short, options.reference))}"
    steps = "the pipeline's number of steps" if options.steps is None else f"{options.steps} steps"
    note = (
        f"By vlm-edit draw with {options.pipeline}, at {options.site}, classes by {options.cuts}, "
        f"{steps}, seed {options.seed}. One noise for all drawings."
    )
    return Picture(title, gen.grid(rows, strengths, title), f"{words}.", note)


def _patch(
    options: Draw,
    dictionary: Dictionary,
    features: list[int] | None,
    reference: str | Image.Image | None,
    embedding: Tensor | None,
    strength: float,
) -> Patch:
    """Make a patch of the rule on these features; without any, toward a whole embedding."""
    if reference is None or embedding is None:
        change = gen.scale if options.rule == "scale" else gen.keep
        return change(options.site, dictionary, features or [], strength)
    if features is None:
        return gen.interpolate(options.site, embedding, strength)
    stream: gen.Stream = "text" if isinstance(reference, str) else "image"
    return gen.take(options.site, dictionary, features, embedding, strength, stream)


def _edited(pipe: Any, source: str | Image.Image, options: Draw, patch: Patch) -> Image.Image:
    """Draw under a patch, which must have edited something."""
    with patch.attach(pipe.clip) as attached:
        image = gen.draw(pipe, source, options.steps, options.seed)
    if not attached.report().edited_tokens:
        raise VlmEditError(
            f"--site {options.site} was not passed when {options.prompt!r} was embedded, and "
            "nothing was edited: name one that was, such as joint"
        )
    return image


def _features(
    options: Draw,
    pipe: Any,
    dictionary: Dictionary,
    run: Measurement | None,
    classes: Sequence[Taken],
) -> Mapping[str, Chosen]:
    """Find each class's features, by a run or measured now."""
    if run is not None:
        if run.site != options.site:
            raise VlmEditError(f"{options.run} measured {run.site}: draw with --site {run.site}")
    elif classes:
        pairs = load_pairs(options.pairs)
        run = measure(
            Host.of(pipe.clip, pipe.processor), pairs, dictionary, options.site, progress=False
        )
    else:
        return {}
    return {name: choose(run.dominance, name, options.cuts, options.most) for name in classes}


def _strengths(text: str) -> list[float]:
    strengths = set()
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not -_FARTHEST <= value <= _FARTHEST:
            raise BadArgument(
                f"--strength {text}: give numbers from -{_FARTHEST} to {_FARTHEST}, such as "
                f"0,0.5,1, got {part!r}"
            )
        strengths.add(value)
    return sorted(strengths)


def _title(name: str, features: Mapping[str, Chosen]) -> str:
    return "whole embedding" if name == WHOLE else f"{name} ({said(features[name])})"


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
