"""Arguments of the command, and what each verb does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from vlm_edit._version import __version__
from vlm_edit.cli import attack, bias, drawing, editing, measuring, patching, training, verbs
from vlm_edit.dictionaries import Kind, TrainConfig
from vlm_edit.ground.errors import VlmEditError, printable
from vlm_edit.measures.dominance import Cut, Zeros
from vlm_edit.measuring import EXAMPLES


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: As typed after ``vlm-edit``; by default the process's own.

    Returns:
        0; 1 if a verdict of the demonstration is not the known one, or two patches differ; 2 with a
        message on standard error for what the user can mend.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except VlmEditError as error:
        _tell(error)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:
        _tell(error)
        return 2
    except KeyboardInterrupt:
        print("vlm-edit: interrupted", file=sys.stderr)
        return 130


def _tell(error: Exception) -> None:
    told = "\n".join(printable(part) for part in str(error).split("\n"))
    print(f"vlm-edit: {told}", file=sys.stderr)


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
    _add_train(commands)
    _add_check(commands)
    _add_measure(commands)
    _add_report(commands)
    _add_edit(commands)
    _add_patch(commands)
    bias.add_parser(commands)
    attack.add_parser(commands)
    drawing.add_parser(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo", help="the whole way on the bundled emoji-clip, checked against what is known of it"
    )
    demo.add_argument("--out", help="folder to write (vlm-edit-demo; with --llava nothing)")
    demo.add_argument("--llava", action="store_true", help="instead ask emoji-llava about images")
    demo.set_defaults(run=verbs.demo)


def _add_sites(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sites = commands.add_parser("sites", help="list the sites of a model")
    sites.add_argument("model", help="model folder, as save_pretrained writes it")
    sites.set_defaults(run=verbs.sites)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train a dictionary on a model's activations")
    _add_places(train)
    train.add_argument(
        "--out",
        required=True,
        help="folder for the dictionary (SAELens v6; of two streams, a folder in it for each)",
    )
    train.add_argument("--kind", choices=get_args(Kind), default="batchtopk", help="(%(default)s)")
    train.add_argument(
        "--separate", action="store_true", help="one for each stream, matched over pairs"
    )
    train.add_argument("--features", type=int, default=512, help="(%(default)s)")
    train.add_argument("--k", type=int, default=16, help="active features (%(default)s)")
    train.add_argument("--steps", type=int, default=4000, help="(%(default)s)")
    train.add_argument("--rows", type=int, default=1024, help="activations a step (%(default)s)")
    train.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    train.add_argument(
        "--lr", type=float, default=TrainConfig.lr, help="learning rate (%(default)s)"
    )
    train.add_argument(
        "--clip",
        type=_norm,
        default=TrainConfig.clip,
        metavar="NORM",
        help="longest gradient of a step, or none (%(default)s)",
    )
    train.add_argument(
        "--held-out", type=float, default=0.1, help="share of pairs to check it on (%(default)s)"
    )
    train.add_argument("--most", type=int, help="tokens kept of a pair and stream (all)")
    train.set_defaults(run=training.train)


def _norm(text: str) -> float | None:
    return None if text == "none" else float(text)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check", help="whether a dictionary fits a model's activations, and what may be wrong"
    )
    _add_subject(check)
    check.add_argument("--most", type=int, help="tokens kept of a pair and stream (all)")
    check.set_defaults(run=training.check)


def _add_measure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    measure = commands.add_parser("measure", help="dominance of a dictionary's features on pairs")
    _add_subject(measure)
    measure.add_argument(
        "--out", default="vlm-edit-run", help="folder to write the run to (%(default)s)"
    )
    measure.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="an independent text encoder (sentence-transformers or transformers folder), to "
        "score how alike a feature's texts are",
    )
    measure.add_argument(
        "--image-encoder", metavar="FOLDER", help="likewise of images (transformers folder)"
    )
    measure.add_argument(
        "--shared-space",
        action="store_true",
        help="both encoders are one model's: compare images with texts too",
    )
    measure.add_argument("--zeros", choices=get_args(Zeros), default="skip", help="(%(default)s)")
    measure.add_argument(
        "--keep", type=int, default=max(EXAMPLES), help="top examples per feature (%(default)s)"
    )
    measure.add_argument(
        "--centred", action="store_true", help="measure again with each stream centred apart"
    )
    measure.add_argument(
        "--part",
        default="1/1",
        metavar="I/N",
        help="measure one of N parts, as one of N processes with the same --out; the last to "
        "finish makes the run",
    )
    measure.add_argument(
        "--every", type=float, default=60.0, help="seconds between two checkpoints (%(default)s)"
    )
    measure.set_defaults(run=measuring.measure)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser("report", help="write a run's page with pictures")
    report.add_argument(
        "folder", metavar="run", help="folder that measure wrote; edit --run adds to it"
    )
    report.add_argument("--pairs", help="the run's pairs, if they have moved")
    report.add_argument("--page", metavar="FILE", help="the page (RUN/index.html)")
    report.add_argument("--title", help="of the page")
    report.add_argument("--seed", type=int, default=0, help="of the random features (%(default)s)")
    report.set_defaults(run=measuring.report)


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
    edit.add_argument("--cuts", choices=get_args(Cut), help="rule for --class (significant)")
    edit.add_argument("--rule", choices=("ablate", "scale", "clamp", "steer"), help="(ablate)")
    edit.add_argument("--factor", type=float, help="for scale")
    edit.add_argument("--value", type=float, help="for clamp")
    edit.add_argument("--amount", type=float, help="for steer")
    edit.add_argument("--strength", type=float, help="of the rule (1)")
    edit.add_argument("--tokens", choices=("all", "image", "text"), help="(all)")
    edit.add_argument("--run", dest="into", metavar="RUN", help="show it on this run's page")
    edit.add_argument("--save", dest="save_to", metavar="FILE", help="write the patch here")
    edit.set_defaults(run=editing.edit)


def _add_patch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    patch = commands.add_parser("patch", help="look at saved patches, bake, merge, compare them")
    verbs_of = patch.add_subparsers(title="commands", required=True, metavar="COMMAND")
    told = "a patch file, a folder with one, or owner/name on the hub"

    info = verbs_of.add_parser("info", help="what is in a patch")
    info.add_argument("patch", help=told)
    info.add_argument("--card", action="store_true", help="as the card of a repository instead")
    info.set_defaults(run=patching.info)

    apply = verbs_of.add_parser("apply", help="check that a patch fits a model, or bake it in")
    apply.add_argument(
        "model", help="model folder, as save_pretrained writes it, or zoo:emoji-clip"
    )
    apply.add_argument("patch", help=told)
    apply.add_argument(
        "--bake", metavar="FOLDER", help="write a copy of the model with the edit in its weights"
    )
    apply.add_argument(
        "--no-check-host",
        dest="check_host",
        action="store_false",
        help="take a model that is not the one the patch was made for",
    )
    apply.set_defaults(run=patching.apply)

    merge = verbs_of.add_parser("merge", help="several patches of one model in one file")
    merge.add_argument("patches", nargs="+", metavar="patch", help=told)
    merge.add_argument("--out", required=True, metavar="FILE", help="a file that is not there yet")
    merge.set_defaults(run=patching.merge)

    diff = verbs_of.add_parser("diff", help="what two patches have not in common (then exit 1)")
    for name in ("first", "second"):
        diff.add_argument(name, help=told)
    diff.set_defaults(run=patching.diff)

    for parser in (info, apply):
        parser.add_argument("--file", help="which one, where a folder or repository has several")
        parser.add_argument("--revision", help="branch, tag or commit of a repository")
    for parser in (info, apply, merge, diff):
        parser.add_argument(
            "--no-verify",
            dest="verify",
            action="store_false",
            help="read a file even if a byte of it has changed since it was written",
        )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="model folder, as save_pretrained writes it, or zoo:emoji-clip"
    )
    parser.add_argument(
        "pairs", help="CSV of images and texts, or folder: see README; or zoo:pairs"
    )
    parser.add_argument("--site", default="joint", help="where (%(default)s)")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="pairs per forward (%(default)s)"
    )


def _add_subject(parser: argparse.ArgumentParser, dictionary_required: bool = True) -> None:
    _add_places(parser)
    parser.add_argument(
        "--dictionary",
        required=dictionary_required,
        help="folder or file of a dictionary in any known format, owner/name on the hub, "
        "'neurons' for the raw dimensions, or zoo:joint",
    )
    more = parser.add_argument_group("of the dictionary, where its files leave it open")
    more.add_argument("--dictionary-file", metavar="FILE", help="folder or file inside it")
    more.add_argument("--dictionary-format", metavar="NAME", help="its format (by content)")
    more.add_argument("--dictionary-revision", metavar="REV", help="branch, tag or commit")
    more.add_argument("--dictionary-k", type=int, metavar="K", help="active features")
    more.add_argument("--dictionary-threshold", type=float, metavar="T", help="of codes")
    more.add_argument("--dictionary-activation", metavar="NAME", help="such as topk or relu")
