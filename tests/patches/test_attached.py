"""What is on a host: listed, taken off, and warned of where the same patch comes twice."""

import gc
import threading

import nnsight
import pytest
import torch
from conftest import make_clip, random_dictionary
from engines import left

from vlm_edit import Ablate, Patch, Scale
from vlm_edit.ground.errors import VlmEditWarning
from vlm_edit.patches import attach_rows, attached, detach_all

CLIP = make_clip()  # shared: every test leaves it as it was
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def patch(site="vision.1", factor=3.0, **chosen) -> Patch:
    """Made anew each time, as a cell of a notebook makes it."""
    return Patch(site, random_dictionary(24), Scale(range(20), factor), **chosen)


@torch.no_grad()
def look(host=CLIP):
    return host.vision_model(pixel_values=PIXELS).last_hidden_state


@pytest.fixture(autouse=True)
def _nothing_stays():
    lying = left(CLIP)
    yield
    detach_all(CLIP)
    assert left(CLIP) == lying


def in_thread(run):
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("via", ["hooks", "nnsight"])
def test_patches_whose_handle_was_lost_are_listed_and_taken_off(via):
    plain, lying = look(), left(CLIP)
    patch().attach(CLIP, via=via)
    patch(factor=2.0).attach(CLIP, strength=[0.5, 1.0], via=via)
    gc.collect()
    assert [repr(one) for one in attached(CLIP)] == [
        "Attachment(vision.1: scale 20 features at all tokens; strength 1)",
        "Attachment(vision.1: scale 20 features at all tokens; strength 0.5, 1)",
    ]
    assert not torch.equal(look(), plain)
    assert detach_all(CLIP) == 2
    assert torch.equal(look(), plain)
    assert left(CLIP) == lying
    assert attached(CLIP) == []
    assert detach_all(CLIP) == 0


@pytest.mark.filterwarnings("error")
def test_what_was_removed_is_no_longer_listed():
    one, two = patch().attach(CLIP), patch(factor=2.0).attach(CLIP)
    one.remove()
    assert attached(CLIP) == [two]
    assert repr(one).endswith("; removed)")
    with two.paused():
        assert repr(attached(CLIP)[0]).endswith("; paused)")


@pytest.mark.filterwarnings("error")
def test_a_host_lists_what_is_on_its_parts_and_a_part_what_is_on_hosts_around_it():
    whole, part = patch().attach(CLIP), patch(factor=2.0).attach(CLIP.vision_model)
    text = Patch("text.1", random_dictionary(16), Ablate([3])).attach(CLIP)
    assert attached(CLIP) == [whole, part, text]
    assert attached(CLIP.vision_model) == [whole, part]
    assert attached(nnsight.NNsight(CLIP)) == [whole, part, text]
    assert attached(make_clip()) == []
    assert detach_all(CLIP.vision_model) == 2
    assert attached(CLIP) == [text]


@pytest.mark.filterwarnings("error")
def test_what_other_threads_attached_is_listed_and_taken_off():
    held, go_on = threading.Event(), threading.Event()
    plain, found = look(), []

    def hold():
        patch().attach(CLIP, scope="thread")
        held.set()
        assert go_on.wait(60)
        found.append(look())

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    assert [one.bounds.scope for one in attached(CLIP)] == ["thread"]
    assert detach_all(CLIP) == 1
    go_on.set()
    thread.join()
    assert torch.equal(found[0], plain)


def test_a_cell_that_is_run_twice_is_warned_of_at_its_line():
    patch().attach(CLIP)
    for again in (lambda: patch().attach(CLIP), lambda: attach_rows(CLIP, [patch(), None])):
        with pytest.warns(VlmEditWarning, match=r"CLIPModel already .*attached\(host\)") as warned:
            kept = again()
        assert [w.filename for w in warned] == [__file__]
        assert "detach_all(host)" in str(warned[0].message)
        kept.detach()
    with pytest.warns(VlmEditWarning, match="already"):  # the sum of both acts
        patch().attach(CLIP, strength=0.5)


def test_the_same_patch_from_a_file_is_the_same(tmp_path):
    path = tmp_path / "patch.safetensors"
    patch().save(path, CLIP)
    from vlm_edit import load_patch

    patch().attach(CLIP)
    with pytest.warns(VlmEditWarning, match="already"):
        load_patch(path).attach(CLIP)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "other",
    [
        patch(factor=2.0),
        patch("vision.0"),
        patch(positions=[0]),
        patch(schedule=[0.5]),
        patch(gate=0.2),
        Patch("vision.1", random_dictionary(24), Scale(range(19), 3.0)),
        Patch("vision.1", random_dictionary(24, seed=5), Scale(range(20), 3.0)),
        Patch("vision.1", random_dictionary(24, activation="topk"), Scale(range(20), 3.0)),
        patch() + patch("vision.0"),
    ],
)
def test_another_patch_is_not_warned_of(other):
    patch().attach(CLIP)
    other.attach(CLIP)


@pytest.mark.filterwarnings("error")
def test_the_same_patch_where_both_cannot_act_at_once_is_not_warned_of():
    patch().attach(CLIP, strength=[1.0, 0.0]), patch().attach(CLIP, strength=[0.0, 2.0])
    detach_all(CLIP)
    patch().attach(CLIP), patch().attach(CLIP, strength=0.0)
    detach_all(CLIP)
    mask = torch.arange(10).reshape(2, 5) < 4
    patch().attach(CLIP, mask=mask), patch().attach(CLIP, mask=~mask)
    detach_all(CLIP)
    first = patch().attach(CLIP)
    with first.paused(), patch().attach(CLIP, strength=2.0):
        pass
    detach_all(CLIP)
    attach_rows(CLIP, [patch(), patch()])
    detach_all(CLIP)
    patch().attach(CLIP, scope="thread")
    in_thread(lambda: patch().attach(CLIP, scope="thread", strength=0.5))
    in_thread(lambda: patch().attach(CLIP, scope="context"))
    patch().attach(make_clip())


def test_the_same_patch_of_two_scopes_that_meet_is_warned_of():
    patch().attach(CLIP, scope="context")
    for scope in ("context", "thread", "process"):
        with pytest.warns(VlmEditWarning, match=r"already \(.*scope context\)"):
            patch().attach(CLIP, scope=scope).detach()
    detach_all(CLIP)
    patch().attach(CLIP)
    with pytest.warns(VlmEditWarning, match="already"):
        patch().attach(CLIP, scope="thread")
