"""What is typed: help, choices and defaults, completion, and what is told of a mistake."""

import inspect
import json
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from vlm_edit import dictionaries, measuring
from vlm_edit.cli import arguments, bias, drawing, editing, main, pipeline
from vlm_edit.cli.command import VERBS
from vlm_edit.cli.examples import EXAMPLES
from vlm_edit.edits import RULES
from vlm_edit.measures import dominance, nulls
from vlm_edit.measuring.collecting import Kept
from vlm_edit.selection import by_class
from vlm_edit.selection.scores import Kind
from vlm_edit.tasks.bias import Way

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    kind: ("patch", verb) if module == "patching" else (verb,)
    for kind, (module, verb) in ((kind, where.split(".")) for kind, where in VERBS.items())
}


def process(code: str, **environment: str) -> str:
    """What a process of its own prints."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_help_of_every_verb_brings_no_torch() -> None:
    typed = [[*words, "--help"] for words in [(), ("patch",), *WORDS.values()]]
    code = (
        "import json, sys\n"
        "from vlm_edit.cli import main\n"
        f"assert [main(words) for words in {typed}] == [0] * {len(typed)}\n"
        "heavy = ('torch', 'transformers', 'numpy', 'nnsight', 'PIL')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    lines = process(code).splitlines()
    assert json.loads(lines[-1]) == []
    assert sum(line.startswith("Usage: vlm-edit") for line in lines) == len(typed)


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_help_in_a_pipe_is_plain_and_names_every_option(
    kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS[kind], "--help"]) == 0
    told = capsys.readouterr().out
    summary = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
    assert summary in told and told.isascii() and "\x1b" not in told
    assert max(map(len, told.splitlines())) <= 80
    main(["patch" if WORDS[kind][0] == "patch" else "--help", "--help"])
    assert summary in capsys.readouterr().out  # whole, in the list of verbs
    for field in get_type_hints(kind):
        name = {"name": "class", "classes": "class"}.get(field, field)
        assert name.replace("_", "-") in told or name.upper() in told


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_every_verb_is_run_by_a_function_that_takes_its_arguments(kind: type) -> None:
    module, verb = VERBS[kind].split(".")
    function = getattr(import_module(f"vlm_edit.cli.{module}"), verb)
    assert get_type_hints(function) == {"options": kind, "return": int}


def choices(kind: type, field: str) -> set[str]:
    """What a field may be."""
    kinds = [get_type_hints(kind)[field]]
    while not all(get_origin(one) is Literal for one in kinds):
        kinds = [arg for one in kinds for arg in get_args(one) or (one,) if arg is not type(None)]
    return {word for one in kinds for word in get_args(one)}


def test_choices_are_those_of_the_library() -> None:
    assert choices(arguments.Train, "kind") == set(get_args(dictionaries.Kind))
    assert choices(arguments.Measure, "zeros") == set(get_args(dominance.Zeros))
    assert set(get_args(arguments.Cut)) == set(get_args(dominance.Cut))
    assert choices(arguments.Bias, "way") == set(get_args(Way))
    assert choices(arguments.Bias, "aim") == set(bias.AIMS)
    assert choices(arguments.Edit, "rule") < set(RULES.names())
    assert choices(arguments.Draw, "rule") == set(drawing.STRENGTHS) == set(drawing.IDLE)
    assert set(get_args(arguments.Class)) < set(get_args(Kind))
    assert {*get_args(arguments.Class), "whole"} == set(arguments.Taken)
    skip = get_type_hints(arguments.Census, include_extras=True)["skip"].__metadata__[0].help
    assert all(f" {name}" in skip for name in nulls.ROWS if name != "data")


def defaults(callable_: Any) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(callable_).parameters.items()}


def test_defaults_are_those_of_the_library() -> None:
    typed, known = defaults(arguments.Train), defaults(dictionaries.TrainConfig)
    for field in ("kind", "k", "steps", "seed", "lr", "clip"):
        assert typed[field] == known[field]
    assert (typed["features"], typed["rows"]) == (known["n_features"], known["batch_size"])
    typed, known = defaults(arguments.Measure), defaults(measuring.measure)
    for field in ("site", "batch_size", "zeros", "keep", "every"):
        assert typed[field] == known[field]
    assert typed["keep"] == max(measuring.EXAMPLES)
    typed, known = defaults(arguments.Collect), defaults(measuring.collect)
    for field in ("site", "batch_size", "most", "seed"):
        assert typed[field] == known[field]
    assert (typed["stored_as"], typed["part_size"] << 20) == (known["dtype"], known["part_size"])
    assert choices(arguments.Collect, "stored_as") == set(get_args(Kept))
    typed, known = defaults(arguments.Census), defaults(measuring.census)
    for field in ("site", "batch_size", "factor", "deleted", "steps", "seed"):
        assert typed[field] == known[field]
    assert defaults(arguments.Draw)["pipeline"] == pipeline.SHIPPED


def test_one_rule_for_classes_is_the_default_of_every_verb_and_of_the_library() -> None:
    rule = defaults(dominance.Dominance.classes)["rule"]
    assert rule == defaults(by_class)["rule"] == defaults(measuring.Measurement.top)["rule"]
    typed = {kind.__name__: defaults(kind)["cuts"] for kind in VERBS if "cuts" in defaults(kind)}
    assert typed == {"Edit": None, "Draw": rule, "Census": rule}
    cuts = get_type_hints(arguments.Edit, include_extras=True)["cuts"]
    assert rule == editing.CUTS and f"({rule})" in cuts.__metadata__[0].help


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_examples_in_help_can_be_typed(
    kind: type, taken: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*WORDS[kind], "--help"])
    told = capsys.readouterr().out.split("Examples:\n")[1]
    typed = told.replace("\\\n", " ").splitlines()
    for line in typed:
        assert main(shlex.split(line)[1:]) == 0
    assert [type(one) for one in taken] == [kind, kind]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What verbs are given, which do nothing else."""
    given: list[Any] = []

    def keep(options: Any) -> int:
        given.append(options)
        return 0

    for where in VERBS.values():
        monkeypatch.setattr(f"vlm_edit.cli.{where}", keep)
    return given


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["attack", "m", "p"], "eps", [1, 2, 4, 8]),
        (["attack", "m", "p", "--eps", "1", "4"], "eps", [1, 4]),
        (["attack", "--eps", "1", "-.5", "1e-1", "m", "p"], "eps", [1, -0.5, 0.1]),
        (["attack", "--eps", "2", "--eps", "3", "--class", "cross", "m", "p"], "eps", [2, 3]),
        (["attack", "--eps=2", "m", "p"], "eps", [2]),
        (["edit", "m", "p", "--features", "1", "--strength", "-2"], "strength", -2.0),
        (["ask", "m", "i", "q", "--strength", "-2", "--strength", ".5"], "strength", [-2, 0.5]),
        (["ask", "m", "i", "q", "--patch", "a", "--patch", "b"], "patch", ["a", "b"]),
        (["ask", "m", "i", "what is it?"], "question", "what is it?"),
        (["draw", "a cat", "--strength", "-1,1"], "strength", "-1,1"),
        (["draw", "-1"], "prompt", None),
        (["draw", "--", "-1"], "prompt", "-1"),
        (["draw", "a \udce9"], "prompt", "a \udce9"),
        (["draw", "a", "--class", "cross", "--class", "whole"], "classes", ["cross", "whole"]),
        (["draw", "a", "--reference", "b", "--reference", "c"], "reference", ["b", "c"]),
        (["bias", "m", "d"], "prompt", []),
        (["train", "m", "p", "--out", "o", "--clip", "none"], "clip", None),
        (["patch", "merge", "a", "b", "--out", "c"], "patches", ["a", "b"]),
        (["patch", "info", "--no-verify", "a"], "no_verify", True),
        (["check", "m", "p", "--dictionary", "d", "--dictionary-k", "4"], "dictionary_k", 4),
    ],
)
def test_what_is_typed_is_what_a_verb_is_given(
    words: list[str], field: str, value: Any, taken: list[Any]
) -> None:
    if words == ["draw", "-1"]:
        assert main(words) == 2 and not taken
        return
    assert main(words) == 0
    assert getattr(taken[0], field) == value


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_help_ends_with_two_examples_that_are_taken(
    kind: type, taken: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS[kind], "--help"]) == 0
    last = [line.strip() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert last == [f"vlm-edit {words}" for words in EXAMPLES[kind]] and len(set(last)) == 2
    for words in last:
        capsys.readouterr()
        assert main(shlex.split(words)[1:]) == 0
    assert [type(options) for options in taken] == [kind] * 2


@pytest.mark.parametrize("kind", VERBS, ids=lambda kind: kind.__name__)
def test_every_verb_can_tell_its_results_as_one_object(
    kind: type, taken: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(EXAMPLES[kind][0])
    assert main([*words, *(["--json"] if "--json" not in words else [])]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == 0 and not told["tables"] and taken[0].json


@pytest.mark.parametrize(
    ("words", "message", "verb"),
    [
        (["train", "m", "p", "--out", "o", "--kind", "x"], "'--kind': 'x' is not one of", "train"),
        (["train", "m", "p", "--out", "o", "--k", "1.5"], "'--k'", "train"),
        (["train", "m", "p", "--out", "o", "--k", "many"], "an integer, got 'many'", "train"),
        (["train", "m", "p", "--out", "o", "--clip", "x"], "to float: 'x'", "train"),
        (["attack", "m", "p", "--eps", "wide"], "'--eps'", "attack"),
        (["attack", "m", "p", "--eps", "1", "wide"], "extra argument(s) (wide)", "attack"),
        (["collect", "m"], "Missing argument 'PAIRS'", "collect"),
        (["train", "m", "p"], "Missing option '--out'", "train"),
        (["measure", "m", "p"], "Missing option '--dictionary'", "measure"),
        (["patch", "merge", "--out", "o"], "Missing argument 'PATCHES'", "patch merge"),
        (["sites", "m", "--sight", "x"], "No such option: --sight", "sites"),
        (["trian"], "No such command 'trian'. Did you mean 'train'?", ""),
        (["patch", "inform"], "No such command 'inform'", "patch"),
        (["sites", "m", "\x1b[2J"], "unexpected extra argument", "sites"),
    ],
)
def test_a_word_that_cannot_be_meant_is_named_in_a_line_with_where_help_is(
    words: list[str], message: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    first, *usage, second = told.err.splitlines()
    asked = " ".join(["Usage: vlm-edit", verb]).strip()
    assert " ".join(usage).startswith(f"{asked} ")
    assert first.startswith("vlm-edit: ") and message in first and first.isprintable()
    assert second == f"Try '{' '.join(['vlm-edit', verb]).strip()} --help'."
    assert not told.out


def test_an_option_without_its_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "m", "p", "--out"]) == 2
    assert capsys.readouterr().err.startswith("vlm-edit: Option '--out' requires an argument.")


@pytest.mark.parametrize("words", [[], ["patch"]])
def test_without_a_verb_the_help_is_told(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("Usage: vlm-edit")


@pytest.mark.parametrize(
    "ways", [[], ["--class", "vision", "--features", "1"], ["--patch", "p", "--class", "cross"]]
)
def test_an_edit_is_made_in_one_way(ways: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "zoo:emoji-clip", "zoo:pairs", *ways]) == 2
    got = " and ".join(ways[::2]) or "none"
    assert f"takes one of --patch, --class and --features, got {got}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "vlm-edit: interrupted\n"),
        (BrokenPipeError(32, "closed"), 0, ""),
        (OSError("disk\x1b full"), 2, "vlm-edit: disk  full\n"),
        (None, 1, ""),
    ],
)
def test_how_a_verb_ends_is_told_by_the_status(
    error: BaseException | None,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def end(_: object) -> int:
        if error is not None:
            raise error
        return 1

    monkeypatch.setattr("vlm_edit.cli.verbs.sites", end)
    assert main(["sites", "m"]) == status
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: object) -> int:
        raise RuntimeError("ours")

    monkeypatch.setattr("vlm_edit.cli.verbs.sites", end)
    hook = sys.excepthook
    with pytest.raises(RuntimeError, match="ours"):
        main(["sites", "m"])
    assert sys.excepthook is hook


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_of_completion_is_written(shell: str) -> None:
    script = process(
        "from vlm_edit.cli import main; main([])", _VLM_EDIT_COMPLETE=f"source_{shell}"
    )
    assert "_VLM_EDIT_COMPLETE" in script and "vlm-edit" in script


@pytest.mark.parametrize(
    ("words", "last", "offered"),
    [
        ("vlm-edit pa", 1, {"patch"}),
        ("vlm-edit patch ", 2, {"info", "apply", "merge", "diff"}),
        ("vlm-edit train --kind ma", 3, {"matryoshka"}),
        ("vlm-edit measure --dictionary-f", 2, {"--dictionary-file", "--dictionary-format"}),
    ],
)
def test_verbs_options_and_choices_are_completed(words: str, last: int, offered: set[str]) -> None:
    said = process(
        "from vlm_edit.cli import main; main([])",
        _VLM_EDIT_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(last),
    )
    assert set(said.split()) == offered
