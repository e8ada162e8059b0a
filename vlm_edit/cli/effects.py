"""What an edit does, as ``vlm-edit edit`` shows it: to retrieval, or to answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm_edit.cli.arguments import Edit
from vlm_edit.cli.beside import NO_WORDS
from vlm_edit.cli.subject import Subject
from vlm_edit.ground.errors import VlmEditError, line
from vlm_edit.ground.notebook import several
from vlm_edit.measuring import as_seen
from vlm_edit.patches import Patch
from vlm_edit.report import Examples, Table
from vlm_edit.tasks.answers import Answer, Decoding, answer, counted

NOTHING = "nothing"
_MOST = 24  # new tokens of an answer, which is to fit in a table


@dataclass(frozen=True, eq=False)
class Effect:
    """What is shown of an edit.

    Attributes:
        table: For the screen, and the page of a run.
        examples: For the page, of the first patch.
        edited: What the first patch has really edited, where that is told.
    """

    table: Table
    examples: Examples
    edited: str = ""


def retrieval(subject: Subject, named: Mapping[str, Patch], options: Edit) -> Effect:
    """Compare what images find among the texts."""
    before = subject.retrieval(None)
    check_host = not options.no_check_host
    after = {name: subject.retrieval(patch, check_host) for name, patch in named.items()}
    of = f"{subject.images} images, {subject.read} pairs;"
    if subject.images == subject.read:
        of = f"{subject.read} pairs;"
    table = Table(
        "Retrieval of a text by its image, before and after",
        ("edited", "R@1", "R@5", "R@1 lost and won", "embeddings moved by"),
        [(name, *shown.row(before)) for name, shown in {NOTHING: before, **after}.items()],
        f"{of} 95 % Wilson intervals; a text equal to one of the image's own counts.\nLost and "
        "won: images that find theirs only before, and only after, and p by McNemar's exact test, "
        f"{several(len(after), 'comparison')}.\nMoved: mean of |after - before| / |before|. "
        "Random: one draw of live features.",
    )
    name, first = next(iter(after.items()))
    return Effect(table, first.changed(before, f"What images find, before and after: {name}"))


def answers(subject: Subject, named: Mapping[str, Patch], options: Edit) -> Effect:
    """Compare what the host answers about the first pairs' images."""
    numbers = _readable(subject, options.shown)
    asked = [options.ask or subject.pairs.texts[number] for number in numbers]
    before, first = _said(subject, numbers, asked), next(iter(named))
    subject.truncated = sum(each.asked_less for each in before)
    said, edited = {NOTHING: _words(before)}, []
    for name, patch in named.items():
        check_host = not options.no_check_host
        with counted(), patch.attach(subject.host, check_host=check_host) as attached:
            said[name] = _words(_said(subject, numbers, asked))
        edited.append(str(attached.report()))
    changed = sum(a != b for a, b in zip(said[NOTHING], said[first], strict=True))
    about = f"{options.ask!r} was asked" if options.ask else "Each pair's text was asked"
    note = (
        f"{about} about its image, of the first {len(numbers)} pairs; greedy decoding, at most "
        f"{_MOST} new tokens.\n{changed} of {len(numbers)} answers changed by {first}."
    )
    note += " Random: one draw of live features." if len(named) > 1 else ""
    if options.ask is None and set(said[NOTHING]) == {NO_WORDS}:
        note += "\nIt answers none of these texts: ask a question with --ask."
    columns = {"pair": [str(number) for number in numbers]}
    columns |= {"asked": asked} if options.ask is None else {}
    columns |= said
    rows = [tuple(map(line, row)) for row in zip(*columns.values(), strict=True)]
    title = "Answers, before and after"
    shown = zip(numbers, asked, said[NOTHING], said[first], strict=True)
    items = [
        (number, (f"asked: {question}", f"before: {then}", f"after: {now}"))
        for number, question, then, now in shown
    ]
    table = Table(title, [*columns], rows, note)
    return Effect(table, Examples(f"{title}: {first}", items, note), edited[0])


def _said(subject: Subject, numbers: Sequence[int], asked: Sequence[str]) -> list[Answer]:
    """Let the host answer about some pairs, one by one: padding changes nothing then."""
    return [
        answer(subject.host, as_seen(subject.pairs.open(number)), question, Decoding(_MOST))
        for number, question in zip(numbers, asked, strict=True)
    ]


def _words(answers: Sequence[Answer]) -> list[str]:
    return [each.text or NO_WORDS for each in answers]


def _readable(subject: Subject, most: int) -> list[int]:
    """Return the first pairs whose image can be read; those before that cannot are told."""
    numbers: list[int] = []
    skipped: list[tuple[int, str]] = []
    for number in range(len(subject.pairs)):
        if len(numbers) == most:
            break
        try:
            subject.pairs.open(number)
            numbers.append(number)
        except VlmEditError as error:
            skipped.append((number, str(error)))
    if not numbers:
        raise VlmEditError(f"not one of {len(skipped)} images can be read: {skipped[0][1]}")
    subject.skipped = tuple(skipped)
    return numbers
