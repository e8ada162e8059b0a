"""Patches by name: switched, listed, unloaded, and nothing left behind."""

import random
import threading
import warnings

import pytest
import torch
from conftest import make_clip, random_dictionary
from engines import left
from torch._dynamo.utils import counters

from vlm_edit import Patch, Scale, Steer, VlmEditError
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditWarning
from vlm_edit.patches import PatchSet, attached, detach_all

CLIP = make_clip()  # shared: every test leaves it as it was
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
DICTIONARY = random_dictionary(24)
PATCHES = {
    "a": Patch("vision.1", DICTIONARY, Scale(range(20), 3.0)),
    "b": Patch("vision.0", DICTIONARY, Steer([3], 2.0)),
    "c": Patch("vision.1", DICTIONARY, Steer([7], -2.0)),
}


@torch.no_grad()
def look(host=CLIP):
    return host.vision_model(pixel_values=PIXELS).last_hidden_state


def by_hand(*chosen):
    """What the host gives under (name, strength), attached in this order."""
    attachments = [PATCHES[name].attach(CLIP, strength=strength) for name, strength in chosen]
    found = look()
    for attachment in attachments:
        attachment.remove()
    return found


@pytest.fixture(autouse=True)
def _nothing_stays():
    lying, plain = left(CLIP), look()
    yield
    assert left(CLIP) == lying
    assert torch.equal(look(), plain)


def test_what_is_active_acts_as_attached_and_what_is_not_changes_no_bit():
    plain = look()
    expected = [
        ("a", 1.0, by_hand(("a", 1.0))),
        (["c", "a"], 0.5, by_hand(("a", 0.5), ("c", 0.5))),
        ({"b": 2.0, "c": [0.0, 1.0]}, 1.0, by_hand(("b", 2.0), ("c", [0.0, 1.0]))),
        ([], 1.0, plain),
        ("b", [0.0, 1.0], by_hand(("b", [0.0, 1.0]))),
    ]
    assert len({found.sum().item() for *_, found in expected}) == len(expected)
    both, one = by_hand(("a", 1.0), ("b", 1.0)), by_hand(("b", 1.0))
    with PatchSet(CLIP, PATCHES) as patches:
        assert torch.equal(look(), plain)
        for _ in range(2):
            for names, strength, found in expected:
                patches.activate(names, strength)
                assert torch.equal(look(), found)
        patches.activate(["a", "b"])
        assert patches.active == ["a", "b"]
        assert torch.equal(look(), both)
        patches.deactivate("a")
        assert torch.equal(look(), one)
        patches.deactivate()
        assert patches.active == []
        assert torch.equal(look(), plain)


def test_patches_are_listed_loaded_from_files_and_unloaded(tmp_path):
    path = tmp_path / "a.safetensors"
    PATCHES["a"].save(path, CLIP)
    expected = by_hand(("a", 1.0))
    with PatchSet(CLIP) as patches:
        patches.add("file", path)
        patches.add("b", PATCHES["b"])
        assert [*patches] == patches.names == ["file", "b"]
        assert len(patches) == 2
        assert "b" in patches
        assert patches["b"] is PATCHES["b"]
        patches.activate("file")
        assert repr(patches) == "PatchSet(file (active), b)"
        assert torch.equal(look(), expected)
        patches.unload("file")
        assert patches.names == ["b"]
        assert len(attached(CLIP)) == 1


def test_an_unknown_name_is_refused_with_the_choices_and_nothing_changes():
    with PatchSet(CLIP, PATCHES) as patches:
        patches.activate("a")
        before = look()
        for call in (
            lambda: patches.activate(["b", "x"]),
            lambda: patches.deactivate(["a", "x"]),
            lambda: patches.unload("x"),
            lambda: patches["x"],
            lambda: patches.attach(["b", "x"]).__enter__(),
        ):
            with pytest.raises(UnknownName, match=r"no patch 'x' in this set; it has 'a', 'b', 'c"):
                call()
        for strength in (float("nan"), [[1.0]], {"image": 1.0}):
            with pytest.raises(VlmEditError, match="strength"):
                patches.activate({"b": 1.0, "a": strength})
        with pytest.raises(BadArgument, match="'a' is there already: unload"):
            patches.add("a", PATCHES["b"])
        with pytest.raises(VlmEditError, match="no site"):
            patches.add("d", Patch("vision.9", DICTIONARY, Scale([0], 2.0)))
        assert patches.names == ["a", "b", "c"]
        assert patches.active == ["a"]
        assert torch.equal(look(), before)
    with PatchSet(CLIP) as patches, pytest.raises(UnknownName, match="it has none yet: add"):
        patches.activate("a")


def test_a_set_of_which_one_patch_does_not_fit_leaves_nothing():
    with pytest.raises(VlmEditError, match="no site"):
        PatchSet(CLIP, {**PATCHES, "d": Patch("vision.9", DICTIONARY, Scale([0], 2.0))})
    assert attached(CLIP) == []


def test_an_exception_in_the_block_takes_all_off():
    with pytest.raises(KeyError), PatchSet(CLIP, PATCHES) as patches:
        patches.activate(["a", "b"])
        raise KeyError
    assert patches.names == []
    patches.close()


def test_what_detach_all_took_off_comes_back_when_it_is_activated():
    expected = by_hand(("a", 1.0), ("c", 1.0))
    with PatchSet(CLIP, PATCHES) as patches:
        patches.activate("a")
        detach_all(CLIP)
        assert patches.active == []
        patches.activate(["c", "a"])
        assert torch.equal(look(), expected)


def test_a_patch_that_is_attached_by_hand_too_is_warned_of_when_it_is_activated():
    with PatchSet(CLIP, PATCHES) as patches:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            by_hand_too = PATCHES["a"].attach(CLIP)
            patches.activate("b")
        with pytest.warns(VlmEditWarning, match="already") as warned:
            patches.activate(["a", "b"])
        assert warned[0].filename == __file__
        by_hand_too.remove()


def test_a_request_of_its_own_acts_in_its_context_and_on_top_of_what_is_active():
    plain, one = look(), by_hand(("b", 1.0))
    two, both = by_hand(("a", 1.0), ("b", 0.5)), by_hand(("b", 1.0), ("a", 1.0))
    with PatchSet(CLIP, PATCHES) as patches:
        found = []
        with patches.attach({"a": 1.0, "b": 0.5}) as (first, _):
            thread = threading.Thread(target=lambda: found.append(look()))
            thread.start()
            thread.join()
            own = look()
        assert torch.equal(own, two)
        assert torch.equal(found[0], plain)
        assert not first.is_on
        patches.activate("b")
        with patches.attach("a"):
            assert torch.equal(look(), both)
        with pytest.raises(KeyError), patches.attach("a"):
            raise KeyError
        assert torch.equal(look(), one)


def test_threads_that_switch_add_and_unload_leave_a_set_that_holds():
    errors, expected = [], by_hand(("c", 1.0))
    with PatchSet(CLIP, PATCHES) as patches:

        def churn(seed):
            draw = random.Random(seed)
            try:
                for i in range(15):
                    patches.add(f"{seed} {i}", PATCHES["a"])
                    patches.activate(draw.sample(["a", "b", "c"], draw.randint(0, 3)))
                    look()
                    patches.deactivate()
                    patches.unload(f"{seed} {i}")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert not errors
        assert patches.names == ["a", "b", "c"]
        patches.activate("c")
        assert torch.equal(look(), expected)


def test_a_compiled_host_keeps_its_graphs_when_patches_are_switched():
    host = make_clip()
    compiled = torch.compile(host.vision_model, backend="eager", fullgraph=True)

    def run():
        with torch.no_grad():
            return compiled(pixel_values=PIXELS).last_hidden_state

    torch.compiler.reset()
    counters.clear()
    with PatchSet(host, PATCHES) as patches:
        graphs = []
        for _ in range(3):
            for names in ("a", ["b", "c"], []):
                patches.activate(names)
                torch.testing.assert_close(run(), look(host), rtol=1e-4, atol=1e-4)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2]
    assert not counters["graph_break"]
    torch.compiler.reset()
