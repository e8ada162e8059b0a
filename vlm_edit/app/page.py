"""The page: its controls, and what each of them sets going."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from vlm_edit.app import show
from vlm_edit.app.acts import LOADED, OWN, TURNED
from vlm_edit.app.desk import CLASSES, Desk
from vlm_edit.app.handlers import Handlers
from vlm_edit.app.turn import KINDS

TITLE = "Turn features"
_PRESS = {"answers": "Ask", "labels": "Compare", "drawings": "Draw"}
_RULES = {
    "ablate": "Ablate: set to zero",
    "scale": "Scale: multiply",
    "clamp": "Clamp: set to a value everywhere",
    "steer": "Steer: add everywhere",
    "cap": "Cap: no more than",
    "keep": "Keep: lose all others",
}
# What runs the host: four visitors at once, others wait. What only changes the page shows no clock.
HOST: dict[str, Any] = {"concurrency_limit": 4, "concurrency_id": "host"}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
LAST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}  # of several that wait
_COPY = "(text) => { navigator.clipboard.writeText(text); }"


def _as_sent(payload: Any) -> Any:
    """Return where the server has put a picture, unopened: how large it is is looked at first."""
    return None if payload is None else payload.path


class Page:
    """Build the page of a desk.

    Args:
        desk: What is turned.
        folder: Where patches to take home are written.
        most: New tokens of an answer, at most; the page's first setting.
        patch: What is loaded at the beginning; None for nothing.
    """

    def __init__(self, desk: Desk, folder: Path, most: int = 64, patch: Any = None) -> None:
        self.desk, self.folder, self.most, self.patch = desk, folder, most, patch
        self.handlers = Handlers(desk, folder)
        self.examples = self.handlers.examples
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            gr.HTML(show.heading(desk.about()))
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    self._ask_about()
                with gr.Column(scale=3, min_width=300):
                    self._results()
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    self._choose()
                with gr.Column(scale=3, min_width=300):
                    self._turn()
                    self._take()
            with gr.Column(visible=self.desk.has_tokens):
                self.look = gr.Button("Where these features fire", size="md")
                self.sheets = gr.HTML(elem_classes="ve-slot")
            self.blocks = blocks
            self._wire()

    def _ask_about(self) -> None:
        shows = self.desk.shows
        first = self.desk.picture(self.examples[0].number) if self.examples else None
        self.picture = gr.Image(
            first, label="Picture", format="png", sources=["upload", "clipboard"], height=240,
            buttons=[], image_mode=None, type="filepath", visible=shows != "drawings",
        )  # fmt: skip
        self.picture.preprocess = _as_sent
        self.gallery = gr.Gallery(
            [(example.small, example.text) for example in self.examples],
            label="Examples", columns=8, rows=1, height="auto", allow_preview=False,
            interactive=False, buttons=[], object_fit="contain", elem_classes="ve-gallery",
            show_label=False, visible=bool(self.examples) and shows != "drawings",
        )  # fmt: skip
        words = {
            "answers": ("Question", "what is it?"),
            "labels": ("Labels, with commas between", "dog face, red apple, car, woman"),
            "drawings": ("What to draw", "a picture of dog face"),
        }[shows]
        self.words = gr.Textbox(words[1], label=words[0], lines=1, max_lines=4)
        self.template = gr.Textbox(
            "a picture of {}", label="Put each label into", visible=shows == "labels"
        )
        self.length = gr.Slider(
            1, 512, self.most, step=1, label="New tokens at most", visible=shows == "answers"
        )
        self.seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0,
                              visible=shows == "drawings")  # fmt: skip

    def _choose(self) -> None:
        measured, named = self.desk.run is not None, bool(self.desk.named)
        ways = [
            *([("by class", "class")] if measured else []),
            *([("by name", "name")] if named else []),
            ("by number", "number"),
        ]
        with gr.Group():
            self.way = gr.Radio(ways, value=ways[0][1], label="Features")
            self.kind = gr.Radio(list(CLASSES), value="vision", label="Class", visible=measured)
            self.count = gr.Slider(
                1, min(256, self.desk.n_features), min(OWN, self.desk.n_features), step=1,
                label="How many, the surest first", visible=measured,
            )  # fmt: skip
            self.names = gr.Dropdown(
                self.desk.named, value=[], multiselect=True, visible=False,
                label="Names: type a part of one",
            )  # fmt: skip
            self.numbers = gr.Textbox(
                "" if measured else "0", label="Numbers, with commas between",
                placeholder="3, 17, 40", visible=ways[0][1] == "number",
            )  # fmt: skip
        self.chosen = gr.HTML(elem_classes="ve-slot")

    def _turn(self) -> None:
        with gr.Group():
            self.rule = gr.Dropdown(
                [(_RULES[kind], kind) for kind in KINDS], value="ablate", label="Rule"
            )
            far = self.desk.far
            self.amount = gr.Slider(-far, far, 0.0, step=0.1, label="Amount", visible=False)
            self.strength = gr.Slider(
                0, 3, 1.0, step=0.05, label="Strength: 0 nothing, 1 the rule, more goes beyond"
            )
        with gr.Accordion("Strength of single features", open=False):
            gr.HTML(show.hint(f"A slider for each, where at most {OWN} are chosen."))
            self.own = [
                gr.Slider(0, 3, 1.0, step=0.05, label=f"feature {number}", visible=False)
                for number in range(OWN)
            ]
        with gr.Accordion("Which tokens, and when", open=False):
            tokens = ["all", "image", "text"]
            self.tokens = gr.Radio(tokens, value="all", label="Tokens")
            self.phase = gr.Radio(
                [("prompt and answer", "both"), ("prompt", "prompt"), ("answer", "decode")],
                value="both", label="Phase", visible=self.desk.shows == "answers",
            )  # fmt: skip
        self.live = gr.Checkbox(True, label="Again whenever something is turned")

    def _take(self) -> None:
        with gr.Accordion("Patch: save, load, copy", open=self.patch is not None):
            self.source = gr.Radio(
                [TURNED, LOADED], value=LOADED if self.patch else TURNED, label="What is edited"
            )
            self.save = gr.Button("Save as a patch file", size="sm")
            self.file = gr.File(label="Patch file to take home", interactive=False, visible=False)
            self.upload = gr.File(
                label="Load a patch file", file_types=[".safetensors"], type="filepath", height=110
            )
            told = repr(self.patch) if self.patch else ""
            self.loaded = gr.HTML(show.report(told), elem_classes="ve-slot")
            self.code = gr.Textbox(label="The same in Python", lines=4,
                                   interactive=False, elem_classes="ve-code")  # fmt: skip
            copied = gr.Button("Copy the Python", size="sm")
            copied.click(None, self.code, None, js=_COPY, **QUIET)
        self.state = gr.State(self.patch)
        self.draws = gr.State(0)

    def _results(self) -> None:
        shows = self.desk.shows
        with gr.Row():
            self.go = gr.Button(_PRESS[shows], variant="primary", min_width=100, scale=1)
            self.stop = gr.Button("Stop", interactive=shows == "answers", min_width=80, scale=1,
                                  visible=shows == "answers")  # fmt: skip
            self.dice = gr.Button("As many random features instead", min_width=280, scale=3)
        self.trouble = gr.HTML(elem_classes="ve-slot")
        titles = ("As it is", "With features turned", "As many random features")
        with gr.Row(equal_height=True):
            self.boxes = [
                gr.Textbox(
                    label=title,
                    lines=3,
                    max_lines=24,
                    interactive=False,
                    elem_classes="ve-answer",
                    visible=shows == "answers" and number < 2,
                    min_width=220,
                )  # fmt: skip
                for number, title in enumerate(titles)
            ]
            self.drawings = [
                gr.Image(
                    label=title,
                    interactive=False,
                    buttons=[],
                    height=300,
                    min_width=160,
                    visible=shows == "drawings" and number < 2,
                )  # fmt: skip
                for number, title in enumerate(titles)
            ]
        self.bars = gr.HTML(visible=shows == "labels", elem_classes="ve-slot")
        self.others = gr.HTML(visible=shows == "labels", elem_classes="ve-slot")
        self.report = gr.HTML(elem_classes="ve-slot")
        self.luck = gr.HTML(elem_classes="ve-slot")

    def _wire(self) -> None:
        """Say what each control sets going."""
        acts = self.handlers
        self.controls = [
            *(self.way, self.kind, self.count, self.names, self.numbers, self.rule, self.amount),
            *(self.strength, self.tokens, self.phase, self.source, self.state, *self.own),
        ]
        self.asked = [self.picture, self.words, self.template, self.length, self.seed]
        shows: dict[str, list[Any]] = {
            "answers": self.boxes,
            "labels": [self.bars, self.others],
            "drawings": self.drawings,
        }
        shown = shows[self.desk.shows]
        self.out = [*shown[:-1], self.report, self.trouble, self.code]
        asked = [*self.asked, *self.controls]
        gr.on([self.go.click, self.words.submit], acts.go, asked, self.out, api_name="go", **HOST)
        self.stop.click(acts.stop, None, None, queue=False, **QUIET)
        self.dice.click(
            acts.random, [self.draws, *asked], [shown[-1], self.luck, self.trouble, self.draws],
            api_name="random", **HOST,
        )  # fmt: skip
        said = self.boxes[0] if self.desk.shows == "answers" else self.template
        seen = [self.picture, self.words, said, *self.controls]
        self.look.click(acts.fires, seen, self.sheets, api_name="fires", **HOST)
        self._wire_features()
        self._wire_patches()

    def _again(self, event: Any) -> None:
        """Do it once more after an event, where that is wished; of several that wait the last."""
        event(
            self.handlers.again, [self.live, *self.asked, *self.controls], self.out, **HOST, **LAST
        )  # fmt: skip

    def _wire_features(self) -> None:
        acts, listed = self.handlers, [self.chosen, *self.own]
        turned = (self.amount, self.tokens, self.phase, self.source, *self.own)
        self._again(partial(gr.on, [control.input for control in turned]))
        self._again(self.rule.input(acts.amounts, self.rule, self.amount, **QUIET).then)
        self._again(self.strength.input(acts.level, self.strength, self.own, **QUIET).then)
        self.way.input(acts.ways, self.way, [self.kind, self.count, self.names, self.numbers],
                       **QUIET)  # fmt: skip
        chosen = [c.input for c in (self.way, self.kind, self.count, self.names)]
        chosen += [self.numbers.change, self.blocks.load]  # pasted numbers are no input to gradio
        self._again(gr.on(chosen, acts.choose, self.controls, listed, **LAST).then)
        if self.examples:
            self._again(self.gallery.select(acts.example, None, self.picture, **QUIET).then)
        self._again(self.picture.upload)

    def _wire_patches(self) -> None:
        acts = self.handlers
        self.save.click(acts.save, self.controls, [self.file, self.trouble], **QUIET)
        for event in (self.upload.upload, self.upload.clear):
            self._again(
                event(acts.load, self.upload, [self.state, self.loaded, self.source], **QUIET).then
            )
