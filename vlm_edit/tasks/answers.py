"""What a host that speaks answers about an image, as commands and the page ask it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from vlm_edit.ground.errors import BadArgument, printable
from vlm_edit.hooks import Scope
from vlm_edit.host import Host
from vlm_edit.patches import Patch

T = TypeVar("T")


@contextmanager
def counted() -> Iterator[None]:
    """Leave out the library's warning of a patch that edited nothing: the count is shown here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the patch edited no token")
        yield


def behind(
    host: Host, patch: Patch, call: Callable[[], T], scope: Scope = "process"
) -> tuple[T, str, bool]:
    """Call behind a patch.

    Args:
        host: What is edited.
        patch: Is on the host meanwhile.
        call: Runs the host.
        scope: In whose forwards the patch acts.

    Returns:
        What it gave, what was really edited, and whether that is anything.

    Raises:
        VlmEditError: The patch does not fit the host.
    """
    with counted(), patch.attach(host, scope=scope) as attached:
        given = call()
        report = attached.report()
    return given, str(report), bool(report.edited_tokens)


def speaks(host: Host) -> bool:
    """Tell whether a host can be asked: it generates, and its processor reads texts back."""
    can = getattr(host.root, "can_generate", lambda: True)
    reads = getattr(host.processor, "tokenizer", None) is not None
    return callable(getattr(host.root, "generate", None)) and bool(can()) and reads


@dataclass(frozen=True)
class Decoding:
    """Say how words are chosen.

    Attributes:
        most: New tokens of an answer, at most.
        temperature: At which each is drawn; None for greedy decoding.
        seed: Of what is drawn.
    """

    most: int = 64
    temperature: float | None = None
    seed: int = 0

    def __str__(self) -> str:
        """Say it in a line."""
        how = "greedy decoding"
        if self.temperature is not None:
            how = f"drawn at temperature {self.temperature:g} with seed {self.seed}"
        return f"{how}, at most {self.most} new tokens"

    def arguments(self) -> dict[str, Any]:
        """Return what ``generate`` takes for it, whatever the checkpoint's own settings are."""
        kept = {"max_new_tokens": self.most, "num_beams": 1}
        if self.temperature is None:
            return {**kept, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        more = {"temperature": self.temperature, "top_p": 1.0, "top_k": 0}
        return {**kept, "do_sample": True, **more}


@dataclass(frozen=True)
class Answer:
    """What a host said.

    Attributes:
        text: Its words.
        cut: Whether it had more to say than it was let.
        asked_less: Whether the question was longer than the host takes.
    """

    text: str
    cut: bool
    asked_less: bool


@torch.inference_mode()
def answer(
    host: Host,
    image: Image.Image,
    question: str,
    how: Decoding,
    say: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Answer:
    """Let a host answer; patches that are attached to it act.

    Args:
        host: One that ``speaks``.
        image: RGB.
        question: As a person asks it; the host's prompt goes around it.
        how: To choose words.
        say: Receives the answer piece by piece, with each token that ends one.
        stop: Asked after each token whether that was enough; transformers may add one more.

    Raises:
        VlmEditError: The host does not understand its prompt.
    """
    inputs = host.inputs([image], [question], answer=True)
    torch.manual_seed(how.seed)
    more = {} if say is None else {"streamer": _streamer(host, say)}
    if stop is not None:
        more["stopping_criteria"] = [_criterion(stop)]
    model: Any = host.root
    ids = model.generate(**inputs.values, **how.arguments(), **more)
    new = _new(ids, inputs.values.get("input_ids"))[0]
    text = host.processor.tokenizer.decode(new, skip_special_tokens=True)
    ended = bool(torch.isin(new[-1:], _ends(model)).any())
    return Answer(shown(text).strip(), len(new) >= how.most and not ended, bool(inputs.cut))


def shown(text: str) -> str:
    r"""Return a model's words without what a terminal would obey; lines stay.

    Example:
        >>> shown("a\x1b[2J\ncat")
        'a [2J\ncat'
    """
    return "\n".join(map(printable, text.split("\n")))


def expect_speaks(host: Host, mend: str) -> None:
    """Refuse a host that cannot be asked.

    Args:
        host: Any.
        mend: What to do instead, in words of the command.

    Raises:
        BadArgument: It does not speak.
    """
    if not speaks(host):
        raise BadArgument(
            f"{host.kind.__name__} does not speak (it generates no text, so it cannot be asked): "
            f"{mend}"
        )


def _streamer(host: Host, say: Callable[[str], None]) -> Any:
    from transformers.generation import BaseStreamer

    class Streamer(BaseStreamer):  # type: ignore[misc]
        """Say what each token adds to the text, once that is whole characters."""

        def __init__(self) -> None:
            self.ids: list[int] | None = None
            self.said = ""

        def put(self, value: Tensor) -> None:
            if self.ids is None:  # the prompt comes first
                self.ids = []
                return
            self.ids += value.flatten().tolist()
            text = host.processor.tokenizer.decode(self.ids, skip_special_tokens=True)
            if text.startswith(self.said) and not text.endswith("\ufffd"):
                more, self.said = text[len(self.said) :], text
                if more:
                    say(shown(more))

        def end(self) -> None:
            """Nothing is kept back."""

    return Streamer()


def _criterion(stop: Callable[[], bool]) -> Callable[..., Tensor]:
    def enough(ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(ids),), stop(), dtype=torch.bool, device=ids.device)

    return enough


def _new(ids: Tensor, prompt: Tensor | None) -> Tensor:
    """Return tokens without the prompt, which some hosts repeat before their answer."""
    if prompt is None:
        return ids
    length = prompt.shape[1]
    repeated = ids.shape[1] >= length and torch.equal(ids[:, :length], prompt.to(ids.device))
    return ids[:, length:] if repeated else ids


def _ends(model: Any) -> Tensor:
    """Return the ids at which it stops."""
    end = getattr(model.generation_config, "eos_token_id", None)
    ends = [] if end is None else [end] if isinstance(end, int) else list(end)
    return torch.tensor(ends, dtype=torch.long, device=model.device)
