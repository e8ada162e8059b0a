"""What the page's events call: values of controls in, what is shown out, errors as sentences."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from vlm_edit.app import show
from vlm_edit.app.acts import LOADED, OWN, Controls, Running
from vlm_edit.app.desk import Desk, Found
from vlm_edit.app.effect import chances, drawn, say
from vlm_edit.app.firing import firing
from vlm_edit.app.pictures import read_picture
from vlm_edit.app.saved import read_patch, save_patch
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.patches import Patch

logger = logging.getLogger(__name__)
ASKED = 5  # inputs before the controls: picture, words, template, length, seed


def sentence(error: Exception) -> str:
    """Return what the visitor is told of an error: what can be mended, and no trace.

    Args:
        error: Ours, whose message is for users; any other goes to the log.
    """
    if isinstance(error, VlmEditError):
        return str(error).replace("; or pass check_host=False", "")
    logger.error("an event of the page failed", exc_info=error)
    return f"this did not work ({type(error).__name__}); the server's log says more"


def visitor_of(request: gr.Request | None) -> str:
    """Return whose page asks.

    Args:
        request: As gradio gives it.
    """
    return str(getattr(request, "session_hash", None) or id(request))


class Handlers:
    """What is called when something is turned or pressed.

    Args:
        desk: What is turned.
        folder: Where patches to take home are written.
    """

    def __init__(self, desk: Desk, folder: Path) -> None:
        self.desk, self.folder, self.running = desk, folder, Running()
        self.examples = desk.examples()

    def choose(self, *values: Any) -> list[Any]:
        """Show which features are meant, and give the first of them sliders of their own."""
        controls = Controls.of(values)
        try:
            found = controls.found(self.desk)
        except Exception as error:
            hidden = [gr.update(visible=False) for _ in range(OWN)]
            return [show.trouble(sentence(error)), *hidden]
        return [self._listed(found), *self._sliders(found, controls.strength)]

    def _listed(self, found: Found) -> str:
        return show.chosen(found.told, [self.desk.name(feature) for feature in found.features])

    def _sliders(self, found: Found, strength: Any) -> list[Any]:
        few = found.features if len(found.features) <= OWN else ()
        shown = [
            gr.update(visible=True, value=strength, label=f"feature {self.desk.name(feature)}")
            for feature in few
        ]
        return shown + [gr.update(visible=False)] * (OWN - len(shown))

    def level(self, strength: Any) -> list[Any]:
        """Set the sliders of single features to the strength of all."""
        return [gr.update(value=strength)] * OWN

    def amounts(self, rule: str) -> Any:
        """Show the slider of the rule's number, where it takes one."""
        far = self.desk.far
        known = {
            "scale": ("Factor: 0 none, 1 as it is", 0, 10, 2.0),
            "clamp": ("Value", 0, far, round(far / 3, 1)),
            "steer": ("Amount added", -far, far, round(far / 4, 1)),
            "cap": ("At most", 0, far, round(far / 8, 1)),
        }
        if rule not in known:
            return gr.update(visible=False)
        label, low, high, value = known[rule]
        return gr.update(visible=True, label=label, minimum=low, maximum=high, value=value)

    def ways(self, way: str) -> list[Any]:
        """Show the controls of a way to choose features: class, how many, names, numbers."""
        own = {"class": (True, True, False, False), "name": (False, False, True, False)}
        return [gr.update(visible=one) for one in own.get(way, (False, False, False, True))]

    def example(self, event: gr.SelectData) -> Any:
        """Return the picture of the example that was chosen, whole."""
        return self.desk.picture(self.examples[event.index].number)

    def go(self, request: gr.Request, *given: Any) -> Iterator[list[Any]]:
        """Show what the edit changes: before, after (labels: both in one), report, trouble, code.

        Args:
            request: Whose page asks.
            *given: What is asked, then the controls.
        """
        asked, values = given[:ASKED], given[ASKED:]
        blank = [None, None] if self.desk.shows == "drawings" else ["", ""]
        blank = blank[: 1 if self.desk.shows == "labels" else 2]
        try:
            patch, code = Controls.of(values).act(self.desk)
            with self.running.of(visitor_of(request)) as stop:
                for shown, report in self._shown(asked, patch, stop):
                    if self.running.is_newest(visitor_of(request), stop):
                        yield [*shown, report, "", code]
        except Exception as error:
            yield [*blank, "", show.trouble(sentence(error)), gr.skip()]

    def again(self, request: gr.Request, live: bool, *given: Any) -> Iterator[list[Any]]:
        """Do it once more after something was turned, where that is wished and can be done.

        Args:
            request: Whose page asks.
            live: Whether it is wished.
            *given: As for ``go``.
        """
        if live and (given[0] or self.desk.shows == "drawings"):
            yield from self.go(request, *given)
        else:
            yield [gr.skip()] * (4 if self.desk.shows == "labels" else 5)

    def _shown(
        self, asked: tuple[Any, ...], patch: Patch, stop: Event
    ) -> Iterator[tuple[list[Any], Any]]:
        picture, words, template, length, seed = asked
        if self.desk.shows == "answers":
            image = read_picture(picture)
            for said in say(self.desk, image, words or "", [None, patch], length, stop):
                told = show.report(said.reports[1], said.notes) if said.whole else gr.skip()
                yield list(said.texts), told
        elif self.desk.shows == "labels":
            image = read_picture(picture)
            found = chances(self.desk, image, words or "", patch, template or "")
            yield [show.bars(found)], show.report(found.report, found.notes)
        else:
            both = drawn(self.desk, words or "", patch, seed=int(seed or 0))
            yield [both.before, both.after], show.report(both.report, both.notes)

    def random(self, request: gr.Request, draws: int, *given: Any) -> Iterator[list[Any]]:
        """Do the same to as many random features: what it gives, which they were, trouble, draws.

        Args:
            request: Whose page asks.
            draws: How often it was pressed, the seed of the draw.
            *given: As for ``go``.
        """
        try:
            patch, found = Controls.of(given[ASKED:]).random(self.desk, draws)
            listed = self._listed(found)
            with self.running.of(visitor_of(request)) as stop:
                for shown, report in self._lucky(given[:ASKED], patch, stop):
                    yield [gr.update(value=shown, visible=True), listed + report, "", draws + 1]
        except Exception as error:
            yield [gr.skip(), "", show.trouble(sentence(error)), draws]

    def _lucky(
        self, asked: tuple[Any, ...], patch: Patch, stop: Event
    ) -> Iterator[tuple[Any, str]]:
        picture, words, template, length, seed = asked
        if self.desk.shows == "answers":
            image = read_picture(picture)
            for said in say(self.desk, image, words or "", [patch], length, stop):
                yield said.texts[0], show.report(said.reports[0], said.notes) if said.whole else ""
        elif self.desk.shows == "labels":
            image = read_picture(picture)
            found = chances(self.desk, image, words or "", patch, template or "")
            report = show.report(found.report, found.notes)
            yield show.bars(found, "as many random features"), report
        else:
            both = drawn(self.desk, words or "", patch, seed=int(seed or 0))
            yield both.after, show.report(both.report, both.notes)

    def fires(self, picture: Any, question: str, answer: str, *values: Any) -> str:
        """Show where the features that are meant fire, in the picture and under the words."""
        try:
            features = Controls.of(values).found(self.desk).features
            said = answer if self.desk.shows == "answers" else ""
            text = f"{question or ''} {said or ''}".strip()
            sheets = firing(self.desk, read_picture(picture), text, features)
        except Exception as error:
            return show.trouble(sentence(error))
        return show.sheets(sheets)

    def stop(self, request: gr.Request) -> None:
        """End what the visitor has under way after its next token."""
        self.running.stop(visitor_of(request))

    def save(self, *values: Any) -> list[Any]:
        """Write what is edited as a file to take home: the file, trouble."""
        try:
            patch, _ = Controls.of(values).act(self.desk)
            return [
                gr.update(value=str(save_patch(self.desk, patch, self.folder)), visible=True),
                "",
            ]
        except Exception as error:
            return [gr.update(value=None, visible=False), show.trouble(sentence(error))]

    def load(self, path: str | None) -> list[Any]:
        """Take a patch that the visitor brings: it, what it is, what is edited."""
        if path is None:
            return [None, "", gr.skip()]
        try:
            patch = read_patch(self.desk, path)
        except Exception as error:
            return [None, show.trouble(sentence(error)), gr.skip()]
        return [patch, show.report(repr(patch)), LOADED]
