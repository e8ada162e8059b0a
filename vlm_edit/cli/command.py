"""The verbs of the command, and what becomes of what is typed."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from typer import Exit, Option, Typer, TyperException
from typer.main import get_command

from vlm_edit._version import __version__
from vlm_edit.cli import arguments as of
from vlm_edit.cli.asked import Ask
from vlm_edit.cli.examples import EXAMPLES
from vlm_edit.cli.named import Name
from vlm_edit.cli.served import App
from vlm_edit.ground.errors import VlmEditError, VlmEditWarning, printable

# What a verb takes: the module here, and in it the function of the verb's name, that runs it.
VERBS: dict[type, str] = {
    of.Demo: "verbs.demo",
    of.Sites: "verbs.sites",
    of.Doctor: "verbs.doctor",
    of.Collect: "collecting.collect",
    of.Train: "training.train",
    of.Check: "training.check",
    of.Measure: "measuring.measure",
    of.Report: "reporting.report",
    of.Maps: "mapped.maps",
    of.Census: "census.census",
    Name: "naming.name",
    of.Edit: "editing.edit",
    Ask: "asking.ask",
    App: "serving.app",
    of.Bias: "bias.bias",
    of.Attack: "attack.attack",
    of.Draw: "drawing.draw",
    of.Info: "patching.info",
    of.Apply: "patching.apply",
    of.Merge: "patching.merge",
    of.Diff: "patching.diff",
}
_EPS = "--eps"
_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: As typed after ``vlm-edit``; by default the process's own.

    Returns:
        0; 1 if a verdict of the demonstration is not the known one, something does not work on a
        model that ``doctor`` tries, or two patches differ; 2 with a
        message on standard error for what the user can mend.

    Example:
        >>> main(["--version"])
        vlm-edit 0.1.0
        0
    """
    typed = list(_spread(sys.argv[1:] if arguments is None else arguments))
    taken: object = None
    try:
        taken = get_command(_app())(typed, prog_name="vlm-edit", standalone_mode=False)
        return taken if isinstance(taken, int) else _run(taken)
    except TyperException as error:
        _refuse(error)
    except BrokenPipeError:
        return 0
    except (VlmEditError, OSError) as error:
        _tell(str(error))
    except KeyboardInterrupt:
        from vlm_edit.cli.resuming import on_interrupt  # brings torch

        _tell(on_interrupt(taken))
        return 130
    return 2


def _app() -> Typer:
    """Make a command of each class of arguments: typing it gives an instance."""
    app, patch = (
        Typer(
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode="rich" if sys.stdout.isatty() else None,  # plain in files and pipes
        )
        for _ in range(2)
    )
    app.callback()(_every_verb)
    for taken, where in VERBS.items():
        module, verb = where.split(".")
        told = "".join(f"\n  vlm-edit {words}" for words in EXAMPLES[taken])
        epilog = f"\b\nExamples:{told}"
        (patch if module == "patching" else app).command(verb, epilog=epilog)(taken)
    app.add_typer(patch, name="patch", help="Look at saved patches, bake, merge and compare them.")
    return app


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"vlm-edit {__version__}")
        raise Exit


def _every_verb(
    version: Annotated[
        bool, Option("--version", callback=_tell_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Measure which features of a vision-language model belong to vision, to language or to both.

    Edit them without training.
    """


def _run(taken: object) -> int:
    """Import what runs a verb only now, since it brings torch."""
    module, verb = VERBS[type(taken)].split(".")
    from vlm_edit.cli import flags, telling, together

    with warnings.catch_warnings(), together.hushed(taken) as taken:
        warnings.showwarning = partial(_warn, warnings.showwarning)
        if getattr(taken, "quiet", False):
            telling.hush()
        function = getattr(import_module(f"vlm_edit.cli.{module}"), verb)
        file = flags.file_of(taken)
        into: AbstractContextManager[None] = nullcontext()
        if folder := getattr(taken, "tables", None):
            into = telling.tables_into(Path(folder), getattr(taken, "overwrite", False))
        if not getattr(taken, "json", False):
            with flags.in_words_of_the_command(file), into:
                return int(function(taken))
        with telling.as_json() as result, flags.in_words_of_the_command(file), into:
            result.status = int(function(taken))
        return result.status


def _warn(otherwise: Callable[..., None], message: Any, category: Any, *more: Any) -> None:
    """Tell a warning of ours as an error is told, without the line of code it comes from."""
    if issubclass(category, VlmEditWarning):
        from vlm_edit.cli import telling

        telling.warn(str(message))
    else:
        otherwise(message, category, *more)


def _spread(words: Iterable[str]) -> Iterator[str]:
    """Write ``--eps 1 2`` as ``--eps 1 --eps 2``, the one way that typer reads several."""
    numbers: int | None = None
    for word in words:
        if word == _EPS:
            numbers = 0
        elif numbers is not None:
            numbers = numbers + 1 if _NUMBER.fullmatch(word) else None
        if numbers is not None and numbers > 1:
            yield _EPS
        yield word


def _refuse(error: TyperException) -> None:
    """Tell what is wrong with the words themselves; of a verb without any, its help is the message.

    What typer raises is a class of its own, so what hangs on it is asked for by name.
    """
    message = error.format_message().replace("Value error, ", "")
    if not message or message.startswith("Usage:"):
        print(message, file=sys.stderr)
        return
    for problem in getattr(error.__cause__, "errors", list)():
        if repr(problem["input"]) not in message:
            message += f", got {problem['input']!r}"
    _tell(message)
    if context := getattr(error, "ctx", None):
        print(context.get_usage(), file=sys.stderr)
        print(f"Try '{context.command_path} --help'.", file=sys.stderr)


def _tell(message: str) -> None:
    lines = "\n".join(map(printable, message.split("\n")))
    print(f"vlm-edit: {lines}", file=sys.stderr)
