"""What an edit changed: answers as they come, chances of labels, a drawing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image

from vlm_edit.app.desk import Desk
from vlm_edit.ground.errors import BadArgument, line
from vlm_edit.host import Host
from vlm_edit.patches import Patch
from vlm_edit.tasks.adversarial import ZeroShot
from vlm_edit.tasks.answers import Answer, Decoding, answer, behind
from vlm_edit.tasks.generation import draw

MOST_LABELS = 50
MOST_WORDS = 2000  # characters of a question, or of a prompt
_PAUSE = 0.05  # seconds between two looks at what was said
T = TypeVar("T")
_Speak = Callable[[Callable[[str], None]], Answer]


@dataclass(frozen=True)
class Said:
    """Answers to one question, as far as they have come.

    Attributes:
        texts: One for each patch.
        reports: What each patch has really edited; empty where it is not known yet, or nothing.
        notes: What a reader could overlook.
        whole: Whether all are.
    """

    texts: tuple[str, ...]
    reports: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Chances:
    """How likely each label is, as it is and edited.

    Attributes:
        labels: As typed.
        before: One for each; they add up to 1.
        after: Likewise.
        report: What the patch has really edited.
        notes: What a reader could overlook.
    """

    labels: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    report: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A drawing as it is and edited.

    Attributes:
        before: As it is.
        after: Edited.
        report: What the patch has really edited.
        notes: What a reader could overlook.
    """

    before: Image.Image
    after: Image.Image
    report: str
    notes: tuple[str, ...] = ()


def edited(host: Host, patch: Patch, call: Callable[[], T]) -> tuple[T, str, tuple[str, ...]]:
    """Call behind a patch that acts in this thread alone.

    Args:
        host: What is edited.
        patch: Of the visitor whose call it is.
        call: Runs the host, in this thread.

    Returns:
        What it gave, what was really edited, and a note where that is nothing.

    Raises:
        VlmEditError: The patch does not fit the host.
    """
    given, report, acted = behind(host, patch, call, scope="thread")
    nothing = "nothing was edited: no token was one of those chosen"
    return given, report, () if acted else (nothing,)


class _Voice:
    """One answer on its way, in a thread of its own, in which alone a patch acts."""

    def __init__(self, desk: Desk, patch: Patch | None, speak: _Speak) -> None:
        self.text, self.report = "", ""
        self.notes: tuple[str, ...] = ()
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self._desk, self._patch, self._speak = desk, patch, speak
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            with self._desk.turns.together():
                self._answer()
        except BaseException as error:  # whoever waits for it raises it
            self.error = error

    def _answer(self) -> None:
        if self._patch is None:
            self.answer = self._speak(self._say)
        else:
            self.answer, self.report, self.notes = edited(
                self._desk.host, self._patch, lambda: self._speak(self._say)
            )

    def _say(self, words: str) -> None:
        self.text += words

    def told(self) -> str:
        if self.answer is not None:
            return self.answer.text or "(no words)"
        return self.text.lstrip()


def say(
    desk: Desk,
    image: Image.Image,
    question: str,
    patches: Sequence[Patch | None],
    most: int = 64,
    stop: threading.Event | None = None,
) -> Iterator[Said]:
    """Let the host answer behind each patch, all at once, each in a thread of its own.

    Args:
        desk: With a host that speaks.
        image: RGB.
        question: As a person asks it.
        patches: Each acts on its answer alone, and on nobody else's; None for none.
        most: New tokens of each answer, at most.
        stop: Ends all after the next token when it is set; it is, where nobody listens on.

    Yields:
        The answers, as far as they have come; the last is whole.

    Raises:
        VlmEditError: An empty or very long question, or a patch that does not fit.

    Example:
        >>> from vlm_edit import Clamp, Host, zoo
        >>> dictionary = zoo.load_dictionary("language.0")
        >>> desk = Desk(Host.load("zoo:emoji-llava"), dictionary, "language.0")
        >>> yellow = Clamp([342, 110, 49, 501], 8.0)
        >>> patch = Patch("language.0", dictionary, yellow, tokens="image")
        >>> picture, question = zoo.load_pairs().open(1), "what colour is the background?"
        >>> *_, last = say(desk, picture, question, [None, patch])
        >>> last.texts
        ('blue', 'yellow')
    """
    expect_words(question, "question")
    enough, how = stop or threading.Event(), Decoding(int(most))
    for patch in filter(None, patches):
        patch.check(desk.host)  # refused before any answer

    def speak(told: Callable[[str], None]) -> Answer:
        return answer(desk.host, image, question, how, told, enough.is_set)

    voices = [_Voice(desk, patch, speak) for patch in patches]
    for voice in voices:
        voice.thread.start()
    try:
        last = None
        while alive := [voice for voice in voices if voice.thread.is_alive()]:
            alive[0].thread.join(_PAUSE)
            now = Said(tuple(voice.told() for voice in voices))
            if now != last:
                yield now
                last = now
    except GeneratorExit:
        enough.set()
        raise
    for voice in voices:
        if voice.error is not None:
            raise voice.error
    yield _whole(voices, how, enough.is_set())


def _whole(voices: Sequence[_Voice], how: Decoding, stopped: bool) -> Said:
    texts = tuple(voice.told() for voice in voices)
    notes = list(dict.fromkeys(note for voice in voices for note in voice.notes))
    if stopped:
        notes.append("stopped before all was said")
    elif len(texts) > 1 and len(set(texts)) == 1:
        notes.append("the answers are equal")
    answers = [voice.answer for voice in voices if voice.answer is not None]
    if not stopped and any(each.cut for each in answers):
        notes.append(f"an answer ends at {how.most} new tokens: it may go on")
    if any(each.asked_less for each in answers):
        notes.append("the question is longer than the model takes and was cut")
    return Said(texts, tuple(voice.report for voice in voices), tuple(notes), whole=True)


def chances(
    desk: Desk, image: Image.Image, labels: str, patch: Patch, template: str = "a picture of {}"
) -> Chances:
    """Tell how likely labels are for a picture, as the host is and behind a patch.

    Args:
        desk: With a host that embeds images and texts in one space.
        image: RGB.
        labels: As typed, with commas between.
        patch: Acts on images and texts of the second, in this thread alone.
        template: What each label is put into, at ``{}``.

    Raises:
        VlmEditError: Fewer than two labels or very many, no ``{}``, or the patch does not fit.

    Example:
        >>> from vlm_edit import Ablate, Host, zoo
        >>> dictionary = zoo.load_dictionary("joint")
        >>> desk = Desk(Host.load("zoo:emoji-clip"), dictionary, "joint")
        >>> patch = Patch("joint", dictionary, Ablate([7]))
        >>> given = chances(desk, zoo.load_pairs().open(0), "dog face, car", patch)
        >>> given.labels, round(sum(given.after), 4)
        (('dog face', 'car'), 1.0)
    """
    words = tuple(dict.fromkeys(line(part) for part in labels.split(",") if part.strip()))
    if not 2 <= len(words) <= MOST_LABELS:
        raise BadArgument(
            f"{len(words)} labels: type 2 to {MOST_LABELS} of them, with commas between"
        )
    expect_words(labels, "list of labels")
    if "{}" not in template:
        raise BadArgument(f"{line(repr(template))} has no {{}} where the label goes")

    @torch.inference_mode()
    def choose() -> tuple[float, ...]:
        zero_shot = ZeroShot.of(desk.host, [template.replace("{}", word) for word in words])
        pixels = zero_shot.host.pixels.read([image]).to(desk.host.device)
        return tuple(zero_shot(pixels)[0].softmax(0).tolist())

    with desk.turns.together():
        before = choose()
        after, report, notes = edited(desk.host, patch, choose)
    if not notes and before == after:
        notes = ("nothing changed",)
    return Chances(words, before, after, report, notes)


def drawn(desk: Desk, prompt: str, patch: Patch, steps: int | None = None, seed: int = 0) -> Drawn:
    """Draw a prompt as the host is and behind a patch, from one noise.

    Args:
        desk: With a pipeline.
        prompt: What to draw.
        patch: Acts on the second, in this thread alone.
        steps: Of the scheduler; None for the pipeline's own.
        seed: Of the noise.

    Raises:
        VlmEditError: An empty or very long prompt, or the patch does not fit.
    """
    expect_words(prompt, "prompt")

    def once() -> Image.Image:
        return draw(desk.pipe, prompt, steps, seed)

    # A pipeline keeps in its scheduler how far it has come, which two drawings would share.
    with desk.turns.alone():
        before = once()
        after, report, notes = edited(desk.host, patch, once)
    if not notes and before.tobytes() == after.tobytes():
        notes = ("both drawings are equal",)
    return Drawn(before, after, report, notes)


def expect_words(text: str, what: str) -> None:
    """Refuse an empty text, and one that is longer than anybody types.

    Args:
        text: As typed.
        what: It is.

    Raises:
        BadArgument: It is one of those.

    Example:
        >>> expect_words(" ", "question")
        Traceback (most recent call last):
        vlm_edit.ground.errors.BadArgument: the question is empty: type one
    """
    if not text.strip():
        raise BadArgument(f"the {what} is empty: type one")
    if len(text) > MOST_WORDS:
        raise BadArgument(
            f"the {what} has {len(text):,} characters, and at most {MOST_WORDS:,} are taken"
        )
