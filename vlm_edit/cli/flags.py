"""Say in words of the command what the library advises in Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from vlm_edit.cli.loading import Loading
from vlm_edit.ground.errors import VlmEditError

_ARGUMENT = re.compile(
    rf"\b({'|'.join(each.name for each in fields(Loading))})=(?:True\b|'([^']*)'|(\S+))"
)
# What an error of the library advises, and what does the same here.
_ADVICE = {
    "; pass Host.of(model, processor)": "",
    "Pass Host.of(model, adapter=Adapter.of({...})) with the paths of its modules": (
        "Name one of your own with --adapter MODULE:NAME"
    ),
    "; name it, Pairs.of(..., image='...'), or call": "; name it with --image-column, or call",
    "; name it, Pairs.of(..., text='...'), or call": "; name it with --text-column, or call",
    "leave image= and text= out": "leave --image-column and --text-column out",
    "dataclasses.replace(dictionary, info={}) lets it through": "--any-origin lets it through",
    "dataclasses.replace(transcoder, inner=dataclasses.replace(transcoder.inner, info={})) lets it "
    "through": "--any-origin lets it through",
    "check_host=False": "--no-check-host",
    "until_width": "--until-width",
    "until_features": "--until-features",
    "until_share": "--until-share",
    "with verify=False": "with --no-verify",
    "embed the texts yourself and pass them to ZeroShot": (
        "attack what it answers, with --question, or take a model of images and texts"
    ),
    "overwrite=True replaces it": "--overwrite replaces it",
    "collect anew with overwrite=True": "collect anew with --overwrite",
    "held_out ": "--held-out ",
    "collect(..., out=folder) or vlm-edit collect writes them": "vlm-edit collect writes them",
    "give back what it began with, or another file": (
        "give the same command on the same pairs and model, or another folder with --out, or "
        "delete it to begin anew"
    ),
    "can be loaded in Python and given an adapter": "takes one with --adapter MODULE:NAME",
}


@contextmanager
def in_flags() -> Iterator[None]:
    """Say in words of the command what an error of the library advises."""
    try:
        yield
    except VlmEditError as error:
        raise type(error)(_ARGUMENT.sub(_flag, in_words(str(error)))) from error


@contextmanager
def in_words_of_the_command(file: str) -> Iterator[None]:
    """Say so what any error of the library advises.

    Args:
        file: The flag that names one file of several, as the verb calls it.
    """
    try:
        yield
    except VlmEditError as error:
        told = in_words(str(error)).replace("with file=", f"with {file} ")
        told = told.replace(f"{file} :", f"{file}:").replace(f"{file} ;", f"{file};")
        raise type(error)(told.replace(f"{file} ,", f"{file},").rstrip()) from error


def in_words(told: str) -> str:
    """Return what the library tells with flags for its arguments."""
    for theirs, ours in _ADVICE.items():
        told = told.replace(theirs, ours)
    return told


def _flag(found: re.Match[str]) -> str:
    flag = f"--{found[1].replace('_', '-')}"
    value = found[2] or (found[3] or "").rstrip(",;:.")
    rest = (found[3] or "")[len(value) :] if found[3] else ""
    return f"{flag} {value}".rstrip() + rest


def file_of(options: object) -> str:
    """Return the flag by which a verb names one file of several."""
    for flag in ("dictionary_file", "patch_file", "file"):
        if hasattr(options, flag):
            return f"--{flag.replace('_', '-')}"
    return "--file"
