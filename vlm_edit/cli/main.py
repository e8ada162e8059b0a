"""Arguments of the command, and what each verb does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vlm_edit import __version__
from vlm_edit.cli import verbs
from vlm_edit.errors import VlmEditError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: As typed after ``vlm-edit``; by default the process's own.

    Returns:
        0; 1 if a check of the demonstration does not hold; 2 with a message on standard error
        for what the user can mend.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except VlmEditError as error:
        print(f"vlm-edit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:
        print(f"vlm-edit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-edit: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlm-edit",
        description="Measure which features of a vision-language model belong to vision, to "
        "language or to both, and edit them without training.",
    )
    parser.add_argument("--version", action="version", version=f"vlm-edit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_sites(commands)
    _add_measure(commands)
    _add_edit(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo", help="the whole way on the bundled emoji-clip, checked against what is known of it"
    )
    demo.add_argument("--out", help="folder to write (vlm-edit-demo)")
    demo.add_argument(
        "--llava", action="store_true", help="instead ask emoji-llava about images; writes nothing"
    )
    demo.set_defaults(run=verbs.demo)


def _add_sites(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sites = commands.add_parser("sites", help="list the sites of a model")
    sites.add_argument("model", help="model folder, as save_pretrained writes it")
    sites.set_defaults(run=verbs.sites)


def _add_measure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    measure = commands.add_parser("measure", help="dominance of a dictionary's features on pairs")
    _add_subject(measure)
    measure.add_argument("--out", default="vlm-edit-measure", help="folder to write (%(default)s)")
    measure.set_defaults(run=verbs.measure)


def _add_edit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    edit = commands.add_parser(
        "edit",
        help="make a patch from a class of features or from feature numbers, show retrieval "
        "before and after, and save it; or apply a saved patch",
    )
    _add_subject(edit, dictionary_required=False)
    what = edit.add_mutually_exclusive_group(required=True)
    what.add_argument("--patch", help="apply this saved patch")
    what.add_argument("--class", dest="name", choices=("vision", "language", "cross"))
    what.add_argument("--features", help="numbers, such as 3,17,40")
    edit.add_argument("--cuts", choices=("sd", "fixed"), help="rule for --class (sd)")
    edit.add_argument("--rule", choices=("ablate", "scale", "clamp", "steer"), help="(ablate)")
    edit.add_argument("--factor", type=float, help="for scale")
    edit.add_argument("--value", type=float, help="for clamp")
    edit.add_argument("--amount", type=float, help="for steer")
    edit.add_argument("--strength", type=float, help="of the rule (1)")
    edit.add_argument("--tokens", choices=("all", "image", "text"), help="(all)")
    edit.add_argument("--save", dest="save_to", metavar="FILE", help="write the patch here")
    edit.set_defaults(run=verbs.edit)


def _add_subject(parser: argparse.ArgumentParser, dictionary_required: bool = True) -> None:
    parser.add_argument("model", help="model folder, as save_pretrained writes it")
    parser.add_argument("pairs", help="CSV of images and texts, or folder: see README")
    parser.add_argument(
        "--dictionary",
        required=dictionary_required,
        help="folder of a dictionary in SAELens v6 format, or 'neurons' for the raw dimensions",
    )
    parser.add_argument("--site", default="joint", help="where (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="pairs per forward (%(default)s)"
    )
