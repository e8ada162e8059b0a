"""Plug-ins of the tracker: they follow a host's own methods, and tell what they learn of calls."""

import ast
import gc
import inspect
import warnings
from pathlib import Path

import pytest
import torch
from conftest import IMAGE_TOKEN, make_llava
from torch import nn

import vlm_edit
from vlm_edit import Adapter, Clamp, Dictionary, Host, Patch, VlmEditError
from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks import StandIn, attach, choices, forget_follower, register_follower, tracker
from vlm_edit.patches import attach_rows

ADAPTER = Adapter.of({"hidden": ("layer", "text", 4)})


class Speaker(nn.Module):
    """Encodes within a method of its own, or without."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)

    def speak(self, x):
        return self(x)


class Ear:
    """Tells calls under ``speak`` by another number of given ids than the rest."""

    def __init__(self, host):
        self.speaking, self.paths = False, []
        self.undo = [StandIn(host, "speak", self._speak).remove]

    def _speak(self, original, args, kwargs):
        self.speaking = True
        try:
            return original(*args, **kwargs)
        finally:
            self.speaking = False

    def tell(self, call, path, inputs):
        self.paths.append((path, sorted(inputs)))
        call.given = 7 if self.speaking else 5


@pytest.fixture
def ears():
    made = []

    @register_follower
    def make(root, adapter):
        if not isinstance(root, Speaker) or adapter is not ADAPTER:
            return None
        made.append(Ear(root))
        return made[-1]

    yield made
    forget_follower(make)


def put(model, adapter, callback):
    host = Host.of(model, adapter=adapter)
    return attach(host, host.site("hidden"), callback)


def test_a_plug_in_follows_a_method_and_tells_of_the_calls_in_it(ears):
    host, told = Speaker(), []

    def look(hidden, where):
        told.append(where.call.given)
        return hidden

    handle = attach(
        Host.of(host, adapter=ADAPTER), Host.of(host, adapter=ADAPTER).site("hidden"), look
    )
    host.speak(torch.ones(1, 2, 4))
    host(torch.ones(1, 2, 4))
    host.layer(torch.ones(1, 2, 4))
    (ear,) = ears
    assert told == [7, 5, 5]
    assert ear.paths == [("", ["x"]), ("", ["x"]), (None, [])]
    handle.remove()
    assert "speak" not in vars(host)
    host.speak(torch.ones(1, 2, 4))
    assert len(told) == len(ear.paths) == 3


def test_one_plug_in_serves_all_patches_of_a_host_and_none_serves_another(ears):
    host, other = Speaker(), nn.Sequential(nn.Linear(4, 4))
    handles = [put(host, ADAPTER, lambda hidden, _: hidden) for _ in range(2)]
    adapter = Adapter.of({"hidden": ("0", "text", 4)})
    seen = []

    def look(hidden, where):
        seen.append(where.call.given)
        return hidden

    handles.append(
        attach(
            Host.of(other, adapter=adapter), Host.of(other, adapter=adapter).site("hidden"), look
        )
    )
    other(torch.ones(1, 2, 4))
    assert len(ears) == 1
    assert seen == [None]
    for handle in handles:
        handle.remove()


def test_it_ends_with_a_host_that_is_dropped_while_patched():
    host, undone = Speaker(), []
    make = register_follower(lambda root, _: Undoing(undone) if isinstance(root, Speaker) else None)
    try:
        attach(
            Host.of(host, adapter=ADAPTER),
            Host.of(host, adapter=ADAPTER).site("hidden"),
            lambda hidden, _: hidden,
        )
    finally:
        forget_follower(make)
    del host, make
    gc.collect()
    assert undone == [True]


class Undoing:
    """Follows nothing, and notes that it is to end."""

    def __init__(self, undone):
        self.undo = [lambda: undone.append(True)]

    def tell(self, call, path, inputs):
        """Nothing."""


def test_the_tracker_knows_no_plug_in():
    source = inspect.getsource(tracker)
    assert "hooks.guidance" not in source
    assert "PipelineHost" not in source
    assert "branch" not in source


class Listener:
    """Notes of each call who speaks in its rows."""

    def __init__(self, speakers):
        self.speakers, self.undo = speakers, []

    def tell(self, call, _path, _inputs):
        call.note("speaker", self.speakers)


class Speaking:
    """Means the rows of one speaker."""

    name = "speaker"

    def read(self, _host, value):
        if value is not None and (type(value) is not int or value < 0):
            raise BadArgument(f"speaker is {value!r}; count from 0")
        return value

    def rows(self, value, call, site):
        speakers = call.fact("speaker")
        if speakers is None:
            raise CannotKnow(f"speaker={value}: nobody speaks at {site!r}")
        return speakers == value


class Shown(Speaking):
    """Means all rows or none, and edits none unless it is asked."""

    name = "shown"

    def read(self, _host, value):
        return bool(value)

    def rows(self, value, _call, _site):
        return value


@pytest.fixture
def plug():
    """Registers a follower that is asked of every host, with a choice of its own."""
    made = []

    def register(speakers, choice):
        def make(_root, _adapter):
            return Listener(speakers)

        made.append(register_follower(make, choice))

    yield register
    for make in made:
        forget_follower(make)


LLAVA = make_llava()
SPEAKERS = torch.tensor([0, 1])
QUIET = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
SITES = {"language.1": 32, "vision.0": 24, "projector": 32}


def clamp(site, **choice):
    return Patch(site, Dictionary.identity(SITES[site]), Clamp([3], 4.25), **choice)


def answer(attached, inputs, **options):
    """What the host says with a patch on it, and what was edited."""
    scores = {"return_dict_in_generate": True, "output_scores": True}
    with attached, torch.no_grad():
        out = LLAVA.generate(**inputs, **QUIET, **scores, **options)
    return torch.stack(out.scores), attached.report()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"use_cache": False}, {"guidance_scale": 1.5}]
)
def test_a_choice_of_ones_own_limits_the_rows(plug, llava_inputs, site, options):
    expected = answer(clamp(site).attach(LLAVA, strength=[0.0, 1.0]), llava_inputs, **options)
    assert expected[1].edited_tokens
    plug(SPEAKERS, Speaking())
    limited = answer(clamp(site).attach(LLAVA, speaker=1), llava_inputs, **options)
    assert torch.equal(limited[0], expected[0])
    assert limited[1] == expected[1]
    everyone = answer(clamp(site).attach(LLAVA), llava_inputs, **options)
    ones = answer(clamp(site).attach(LLAVA, strength=[1.0] * 2), llava_inputs, **options)
    assert torch.equal(everyone[0], ones[0])
    assert everyone[1] == ones[1]
    assert everyone[1].edited_tokens > limited[1].edited_tokens


def test_a_choice_meets_the_tokens_that_the_patch_chooses(plug, llava_inputs):
    patch = clamp("language.1", tokens="text+special", phase="prompt")
    expected = answer(patch.attach(LLAVA, strength=[0.0, 1.0]), llava_inputs)
    plug(SPEAKERS, Speaking())
    limited = answer(patch.attach(LLAVA, speaker=1), llava_inputs)
    assert torch.equal(limited[0], expected[0])
    assert limited[1] == expected[1]


def test_compiled_code_limits_the_rows_too(plug, llava_inputs):
    plug(SPEAKERS, Speaking())
    patch = clamp("language.1")
    with patch.attach(LLAVA, speaker=1) as attached, torch.no_grad():
        expected, plain = LLAVA(**llava_inputs).logits, attached.report()
    with patch.attach(LLAVA, speaker=1) as attached, torch.no_grad():
        limited = torch.compile(LLAVA, backend="eager")(**llava_inputs).logits
    assert torch.equal(limited, expected)
    assert attached.report() == plain


def test_a_row_is_edited_where_every_choice_means_it(plug, llava_inputs):
    plug(SPEAKERS, Speaking())
    plug(SPEAKERS, Shown())

    def edited(**said):
        attached = clamp("language.1").attach(LLAVA, **said)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing was edited
            return answer(attached, llava_inputs)[1].edited_tokens

    assert 0 < edited(speaker=1, shown=True) < edited(shown=True)
    assert edited(speaker=1, shown=False) == edited(shown=False) == 0


def test_rows_of_their_own_patches_take_the_choice_too(plug, llava_inputs):
    first, second = clamp("language.1"), clamp("language.1", tokens="text+special")
    expected = answer(second.attach(LLAVA, strength=[0.0, 1.0]), llava_inputs)
    plug(SPEAKERS, Speaking())
    limited = answer(attach_rows(LLAVA, [first, second], speaker=1), llava_inputs)
    assert torch.equal(limited[0], expected[0])
    assert [site.tokens for site in limited[1].sites] == [0, expected[1].edited_tokens]


def test_a_choice_has_errors_of_its_own(plug, llava_inputs):
    plug(None, Speaking())
    patch = clamp("language.1")
    with pytest.raises(BadArgument, match="speaker is 'Ann'; count from 0"):
        patch.attach(LLAVA, speaker="Ann")
    with (
        pytest.raises(CannotKnow, match=r"speaker=1: nobody speaks at 'language\.1'"),
        patch.attach(LLAVA, speaker=1),
    ):
        LLAVA(**llava_inputs)
    assert not LLAVA.model.language_model.layers[1]._forward_hooks


def test_as_many_rows_as_the_output_has_are_asked_for(plug, llava_inputs):
    plug(torch.tensor([0, 1, 1]), Speaking())
    with (
        pytest.raises(VlmEditError, match="speaker has 3 values, .* has 2 rows"),
        clamp("language.1").attach(LLAVA, speaker=1),
    ):
        LLAVA(**llava_inputs)


def test_the_warning_of_nothing_edited_names_every_choice(plug, llava_inputs):
    plug(SPEAKERS, Speaking())
    with (
        pytest.warns(UserWarning, match="positions, requests, branch and speaker it names"),
        clamp("language.1").attach(LLAVA, speaker=2),
    ):
        LLAVA(**llava_inputs)


def test_a_word_that_nothing_declares_is_no_argument(plug):
    patch = clamp("language.1")
    assert list(choices()) == ["requests", "branch"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'speaker'.*branch"):
        patch.attach(LLAVA, speaker=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speaker'"):
        attach_rows(LLAVA, [patch], speaker=1)
    plug(None, Speaking())
    assert list(choices()) == ["requests", "branch", "speaker"]
    with pytest.raises(BadArgument, match="'speaker' is there already"):
        register_follower(lambda *_: None, Speaking())


ROOM = Path(vlm_edit.__file__).parent


def test_only_the_plug_in_of_guidance_knows_of_branches():
    """As a name; texts on the hub's branches are others'."""
    naming = set()
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = (getattr(node, field, None) for field in ("id", "attr", "arg", "name"))
            if any(isinstance(name, str) and "branch" in name.lower() for name in names):
                naming.add(path.relative_to(ROOM).as_posix())
    assert naming == {"hooks/guidance.py"}
