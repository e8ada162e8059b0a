"""``vlm-edit ask``: what a model answers about an image, before and after patches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from vlm_edit.cli.asked import Ask
from vlm_edit.cli.beside import Screen
from vlm_edit.cli.host import load_host
from vlm_edit.cli.patching import open_patch
from vlm_edit.ground.errors import BadArgument, line
from vlm_edit.host import Host
from vlm_edit.measuring import as_seen, open_image
from vlm_edit.patches import Attachment
from vlm_edit.tasks.answers import Answer, Decoding, answer, counted, expect_speaks

PLAIN = "as it is"


def ask(options: Ask) -> int:
    """Print what a model answers, as it is and behind the patches, and what they edited."""
    how = _decoding(options)
    strengths = _strengths(options)
    if not options.question.strip():
        raise BadArgument("the question is empty: ask something, such as 'what is it?'")
    with open_image(options.image) as opened:
        image = as_seen(opened)
    patches = [open_patch(name, verify=not options.no_verify) for name in options.patch]
    host = load_host(options.model, options)
    expect_speaks(host, "name one that does, such as zoo:emoji-llava")
    for patch, strength in zip(patches, strengths, strict=True):  # refused before any answer
        check_host = not options.no_check_host
        patch.attach(host, strength=strength, check_host=check_host).remove()
    names = _names(options.patch)
    titles = [PLAIN, f"with {' and '.join(names)}"] if patches else [PLAIN]
    print(f"vlm-edit: asked in {line(repr(host.asks(answer=True)))}; {how}", file=sys.stderr)
    with Screen(titles) as screen:
        answers = [_answer(screen, 0, host, image, options.question, how)]
        with counted(), ExitStack() as stack:
            attached = [
                stack.enter_context(
                    patch.attach(host, strength=strength, check_host=False)  # told already
                )
                for patch, strength in zip(patches, strengths, strict=True)
            ]
            if patches:
                answers.append(_answer(screen, 1, host, image, options.question, how))
            told = [_edited(name, each) for name, each in zip(names, attached, strict=True)]
    for lines in told:
        print(f"\n{lines}" if lines is told[0] else lines)
    _tell_notes(answers, how, attached, names, strengths)
    return 0


def _answer(
    screen: Screen, number: int, host: Host, image: Image.Image, question: str, how: Decoding
) -> Answer:
    screen.begin(number)
    say = (lambda words: screen.say(number, words)) if screen.streams else None
    given = answer(host, image, question, how, say)
    screen.finish(number, given.text)
    return given


def _edited(name: str, attached: Attachment) -> str:
    """Tell what one patch has really edited, a line for each of its edits."""
    return "\n".join(f"{name}: {site}" for site in attached.report().sites)


def _tell_notes(
    answers: Sequence[Answer],
    how: Decoding,
    attached: Sequence[Attachment],
    names: Sequence[str],
    strengths: Sequence[float],
) -> None:
    """Tell what a reader of the answers could overlook."""
    for name, each, strength in zip(names, attached, strengths, strict=True):
        if strength == 0:
            print(f"note: {name} changed nothing, since its strength is 0")
        elif not each.report().edited_tokens:
            print(f"note: {name} edited nothing: no token of question or answer was one of those")
    if len(answers) == 2 and answers[0].text == answers[1].text:
        print("note: both answers are equal")
    if any(each.cut for each in answers):
        print(
            f"vlm-edit: an answer ends at --max-new-tokens {how.most}: it may go on",
            file=sys.stderr,
        )
    if answers[0].asked_less:
        print("vlm-edit: the question is longer than the model takes and was cut", file=sys.stderr)


def _decoding(options: Ask) -> Decoding:
    if options.max_new_tokens < 1:
        raise BadArgument(f"--max-new-tokens {options.max_new_tokens}: it must be at least 1")
    if options.temperature is None:
        if options.seed is not None:
            raise BadArgument(
                "--seed is of what is drawn, and decoding is greedy: add --temperature, or leave "
                "--seed out"
            )
        return Decoding(options.max_new_tokens)
    if not 0 < options.temperature <= 100:
        raise BadArgument(
            f"--temperature {options.temperature:g}: it must be above 0, and at most 100; leave it "
            "out for greedy decoding"
        )
    seed = options.seed or 0
    if not 0 <= seed < 2**63:
        raise BadArgument(f"--seed {seed}: give a number from 0 to 2**63 - 1")
    return Decoding(options.max_new_tokens, options.temperature, seed)


def _strengths(options: Ask) -> list[float]:
    """Return a strength for each patch."""
    given, count = options.strength, len(options.patch)
    if given and not count:
        raise BadArgument("--strength is of patches: name one with --patch")
    if len(given) not in (0, 1, count):
        raise BadArgument(
            f"--strength was given {len(given)} times for {count} patches: give it once, or once "
            "for each"
        )
    return list(given) if len(given) == count else (given or [1.0]) * count


def _names(given: Sequence[str]) -> list[str]:
    """Return short names of patches that tell them apart."""
    short = [line(Path(name).name or name) for name in given]
    return short if len(set(short)) == len(short) else [line(name) for name in given]
