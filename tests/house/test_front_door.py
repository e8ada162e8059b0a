"""What one gets from ``import vlm_edit``: few names, each when it is first used."""

import copy
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vlm_edit
from vlm_edit import Ablate, Dictionary, Keep, Patch, Scale, VlmEditError
from vlm_edit.ground.errors import BadArgument

ROOT = Path(__file__).resolve().parents[2]


def ask(code: str) -> object:
    """What a process of its own prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_at_most_twenty_names_stand_at_the_front() -> None:
    names = [name for name in vlm_edit.__all__ if not name.startswith("_")]
    assert len(names) <= 20
    assert names == sorted(names)


def test_every_name_at_the_front_is_there_and_listed() -> None:
    for name in vlm_edit.__all__:
        assert getattr(vlm_edit, name) is not None
        assert name in dir(vlm_edit)
    star: dict[str, object] = {}
    exec("from vlm_edit import *", star)
    assert set(vlm_edit.__all__) <= set(star)


def test_a_name_that_is_not_there_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'vlm_edit' has no attribute 'Pach'"):
        _ = vlm_edit.Pach


def test_neither_the_import_nor_the_version_brings_torch() -> None:
    heavy = "('torch', 'transformers', 'numpy', 'nnsight')"
    brought = f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    assert ask(f"import vlm_edit\n{brought}") == []
    version = "from vlm_edit.cli import main\nassert main(['--version']) == 0"
    assert ask(f"{version}\n{brought}") == []
    assert ask(f"import vlm_edit\nvlm_edit.Patch\n{brought}") != []


def test_the_version_is_told_in_a_third_of_a_second() -> None:
    def seconds(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - start

    took = [
        seconds("-m", "vlm_edit", "--version") - seconds("-c", "import argparse") for _ in range(7)
    ]
    assert sorted(took)[3] < 0.3


def test_the_spelling_that_everybody_tries_first_makes_a_patch() -> None:
    patch = Patch("joint", Dictionary.identity(4), Ablate([1]))
    assert [binding.site for binding in patch.bindings] == ["joint"]
    assert patch.bindings[0].splice.rules == (Ablate([1]),)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ((Dictionary.identity(4), "joint", Ablate([1])), r"site is .*; give a site's name"),
        (("joint", torch.eye(4), Ablate([1])), r"dictionary is .*; give a Dictionary"),
        (("joint", Dictionary.identity(4), 1), r"rules is 1 \(int\); give a rule"),
        (("joint", Dictionary.identity(4), [1]), r"a rule is 1 \(int\); give a rule"),
        (("joint", Dictionary.identity(4), {"ablate": 1}), "rules is .* give a rule"),
        (("joint", Dictionary.identity(4), []), "needs at least one rule"),
    ],
)
def test_another_kind_of_argument_is_named_with_what_to_give(given: tuple, named: str) -> None:
    with pytest.raises(VlmEditError, match=named):
        Patch(*given)


def test_a_patch_shows_itself_on_one_line() -> None:
    dictionary = Dictionary.identity(4)
    patch = Patch("vision.1", dictionary, [Ablate([1]), Scale([0, 2], 2.0)], tokens="image")
    assert repr(patch) == ("Patch(vision.1: ablate 1 feature, scale 2 features at image tokens)")
    decode = Patch("language.2", dictionary, Keep([1]), phase="decode", steps=(0, 4))
    assert repr(decode) == (
        "Patch(language.2: keep 1 feature at all tokens, as generated, decode steps 0 to 3)"
    )
    last = Patch("joint", dictionary, Ablate([1]), positions=[-1])
    assert repr(last + last) == f"Patch({repr(last)[6:-1]}; {repr(last)[6:-1]})"
    assert len(repr(last + decode + patch)) < 120
    assert repr(last + decode + patch).startswith("Patch(joint: ablate 1 feature at all tokens, p")
    assert "at all tokens, positions -1" in repr(last)


def test_a_patch_does_not_change_and_can_be_copied_and_pickled() -> None:
    patch = Patch("joint", Dictionary.identity(4), Ablate([1]), info={"by": "us"})
    with pytest.raises(AttributeError, match="a patch does not change, so its info stays"):
        patch.info = {}
    for other in (copy.copy(patch), copy.deepcopy(patch), pickle.loads(pickle.dumps(patch))):
        assert repr(other) == repr(patch) and other.info == {"by": "us"}
        hidden = torch.ones(1, 4)
        assert torch.equal(other.bindings[0].splice(hidden), patch.bindings[0].splice(hidden))


def test_bindings_of_other_patches_are_joined_into_one() -> None:
    patch = Patch("joint", Dictionary.identity(4), Ablate([1]))
    joined = Patch.joined(patch.bindings * 2, info={"by": "us"})
    assert len(joined.bindings) == 2 and joined.info == {"by": "us"} and joined.host is None
    with pytest.raises(BadArgument, match="at least one binding: make it with Patch"):
        Patch.joined(())
