"""What a visitor turns, and what becomes of it: patches, Python, features, files, words."""

import json
import struct
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from desks import YELLOW, clip_desk, controls, llava_desk
from PIL import Image

from vlm_edit import Ablate, Clamp, Dictionary, Host, Patch, Scale, VlmEditError, load_patch, zoo
from vlm_edit.app import Desk, show
from vlm_edit.app import pictures as pictures_module
from vlm_edit.app.acts import LOADED, Controls, Running
from vlm_edit.app.effect import Chances
from vlm_edit.app.pictures import read_picture
from vlm_edit.app.saved import read_patch, save_patch
from vlm_edit.app.turn import KINDS, Turn
from vlm_edit.selection import by_class

HOSTILE = "<img src=x onerror=window.harmed=1>${alert(1)}{{7*7}}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_of_the_page_makes_the_patch_of_the_page(kind: str) -> None:
    dictionary = zoo.load_dictionary("joint")
    own = {} if kind == "keep" else {12: 0.5}
    turn = Turn([7, 12, 31], kind, 2.5, 1.5, own, tokens="image", phase="prompt")
    made = {"dictionary": dictionary}
    exec(turn.code("joint"), made)
    ours, theirs = turn.patch("joint", dictionary).bindings[0], made["patch"].bindings[0]
    assert ours.splice.rules == theirs.splice.rules
    assert (ours.site, ours.selection) == (theirs.site, theirs.selection)
    assert len(ours.splice.rules) == (1 if kind == "keep" else 2)


def test_plain_values_are_not_written_out() -> None:
    assert Turn([7, 12]).code("joint").splitlines()[-1] == (
        'patch = Patch("joint", dictionary, Ablate([7, 12]))'
    )


def test_features_of_their_own_strength_have_a_rule_of_their_own() -> None:
    rules = Turn([3, 1, 2], "scale", 2.0, 1.0, {1: 0.25, 2: 1.0}).rules()
    assert rules == [Scale([3, 2], 2.0), Scale([1], 2.0, strength=0.25)]


def test_keeping_has_one_strength_since_it_is_about_all_others() -> None:
    with pytest.raises(VlmEditError, match="keep loses all features but the chosen ones"):
        Turn([3, 1], "keep", own={1: 0.5}).rules()
    with pytest.raises(VlmEditError, match="no rule 'project': the page has ablate, scale"):
        Turn([3], "project").rules()
    with pytest.raises(VlmEditError, match="no feature is chosen"):
        Turn([]).rules()


def test_features_are_found_by_class_as_a_selection_ranks_them() -> None:
    desk = llava_desk()
    found = desk.find("class", kind="language", most=6)
    assert list(found.features) == by_class(desk.run.dominance, "language", n=6)
    assert found.told == "6 features for language, 6 of them proven"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # how few there are is said, not warned of
        few = desk.find("class", kind="cross", most=500)
    assert f"{len(few.features)} features for cross" in few.told and len(few.features) < 500


def test_numbers_are_taken_as_they_are_typed_each_once() -> None:
    desk = clip_desk()
    assert desk.find("number", numbers=" 3;17, 3\n40 ").features == (3, 17, 40)
    assert desk.find("name", names=[5, 5, 2]).features == (5, 2)
    for numbers, told in [
        ("", "no feature is chosen: type some"),
        ("3, x<b>", "such as 3, 17, got 'x<b>'"),
        ("-1", "got '-1'"),
        ("512", "512"),
        ("9" * 4000, "such as 3, 17"),
    ]:
        with pytest.raises(VlmEditError, match=told):
            desk.find("number", numbers=numbers)


def test_without_a_run_classes_are_refused_and_all_features_are_live() -> None:
    plain = Desk(clip_desk().host, clip_desk().dictionary, "joint")
    with pytest.raises(VlmEditError, match="classes are not known, since nothing was measured"):
        plain.find("class", kind="vision", most=3)
    assert list(plain.live) == list(range(512)) and plain.named == [] and plain.examples() == []
    drawn = plain.random([1, 2, 3])
    assert len(set(drawn.features) - {1, 2, 3}) == 3 and "not known" in drawn.told
    with pytest.raises(VlmEditError, match="no example pictures"):
        plain.picture(0)


def test_random_features_are_as_many_live_others_about_as_active() -> None:
    desk = llava_desk()
    chosen = desk.find("class", kind="vision", most=12).features
    drawn = desk.random(chosen, seed=3).features
    assert len(drawn) == len(set(drawn)) == 12
    assert set(drawn) <= set(desk.live) and not set(drawn) & set(chosen)
    sums = desk.run.dominance.masses[:2].sum(0)
    ranks = sums.argsort().argsort()
    apart = (ranks[list(drawn)] - ranks[list(chosen)]).abs()
    assert int(apart.max()) < 60  # of 512, by 10 nearest that are not taken yet
    assert desk.random(chosen, seed=4).features != drawn


def test_a_feature_is_named_by_what_is_known_of_it() -> None:
    desk = llava_desk()
    feature = desk.find("class", kind="vision", most=1).features[0]
    number = int(desk.run.examples["image"].numbers[feature, 0])
    name = desk.name(feature)
    assert name.startswith(f"{feature} · vision · MDS ")
    assert desk.pairs.texts[number].split()[0] in name
    named = Desk(desk.host, desk.dictionary, desk.site, names={feature: f"red {HOSTILE}"})
    assert named.name(feature) == f"{feature} · red {HOSTILE}"
    assert named.named == [(named.name(feature), feature)]


def test_a_desk_that_could_show_nothing_is_refused_at_once() -> None:
    desk = clip_desk()
    with pytest.raises(VlmEditError, match="7 wide, site 'joint' of CLIPModel is 192"):
        Desk(desk.host, Dictionary.identity(7), "joint")
    tower = desk.host.model.vision_model
    with pytest.raises(VlmEditError, match="neither answers, nor draws, nor embeds labels"):
        Desk(Host.of(tower), Dictionary.identity(192), "vision.1")


def test_controls_become_the_patch_they_say() -> None:
    desk = llava_desk()
    patch, _ = Controls.of(controls()).act(desk)
    assert patch.bindings[0].splice.rules == (Clamp(YELLOW, 8.0),)
    own = [1.0, 0.5, *[1.0] * 6]
    patch, code = Controls.of(controls(own=own)).act(desk)
    assert Clamp([110], 8.0, strength=0.5) in patch.bindings[0].splice.rules
    assert "strength=0.5" in code
    many = ", ".join(map(str, range(9)))  # more than have sliders: theirs are not meant
    patch, _ = Controls.of(controls(many, own=own)).act(desk)
    assert patch.bindings[0].splice.rules == (Clamp(range(9), 8.0),)
    with pytest.raises(VlmEditError, match="the strength is empty: give a number"):
        Controls.of(controls(strength=None, own=[])).act(desk)


def test_a_loaded_patch_acts_where_it_is_chosen_and_has_no_random_one() -> None:
    desk = clip_desk()
    loaded = Patch("joint", desk.dictionary, Ablate([3]))
    given = Controls.of(controls(source=LOADED, patch=loaded))
    assert given.act(desk)[0] is loaded
    with pytest.raises(VlmEditError, match="random features stand beside those turned here"):
        given.random(desk, 0)
    with pytest.raises(VlmEditError, match="no patch was loaded"):
        Controls.of(controls(source=LOADED)).act(desk)


def test_the_same_edit_of_random_features_is_of_one_strength() -> None:
    desk = llava_desk()
    given = Controls.of(controls(strength=0.5, own=[2.0] * 8))
    patch, found = given.random(desk, 1)
    assert patch.bindings[0].splice.rules == (Clamp(found.features, 8.0, strength=0.5),)
    assert not set(found.features) & set(YELLOW)


def test_what_is_newer_takes_the_place_of_what_is_under_way() -> None:
    running = Running()
    with running.of("ann") as first, running.of("bob") as other:
        with running.of("ann") as second:
            assert first.is_set() and not second.is_set() and not other.is_set()
            assert running.is_newest("ann", second) and not running.is_newest("ann", first)
        running.stop("bob")
        running.stop("nobody")
        assert other.is_set()
    assert not running._events


def png(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("bomb.png", png(60_000, 60_000), "3600000000 pixels"),
        ("large.png", png(8_000, 8_000), "64,000,000 pixels, and at most 40,000,000"),
        ("not.png", b"<svg onload=alert(1)>", "cannot identify"),
        ("cut.png", png(8, 8), "could not be read"),
        ("empty.png", b"", "cannot identify"),
    ],
)
def test_a_hostile_picture_gives_a_sentence_without_the_servers_path(
    name: str, data: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(VlmEditError, match=told) as caught:
        read_picture(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_a_picture_of_too_many_bytes_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "noise.png"
    Image.effect_noise((64, 64), 80).save(path)
    assert read_picture(str(path)).size == (64, 64)
    monkeypatch.setattr(pictures_module, "MOST_BYTES", 1000)
    with pytest.raises(VlmEditError, match="at most"):
        read_picture(str(path))


def header(document: object) -> bytes:
    data = json.dumps(document).encode()
    return struct.pack("<Q", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95cposix\nsystem\n",
        struct.pack("<Q", 2**60),
        header({}),
        header({"__metadata__": {"vlm_edit": json.dumps({"version": 3, "bindings": "x"})}}),
        header({"__metadata__": {"vlm_edit": "[" * 100_000}}),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    ],
)
def test_a_hostile_patch_gives_a_sentence_without_the_servers_path(
    data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "<b>hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(VlmEditError, match=r"^<b>hostile\.safetensors was not taken: ") as caught:
        read_patch(clip_desk(), str(path))
    assert str(tmp_path) not in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_patch_is_taken_home_and_brought_back(tmp_path: Path) -> None:
    desk = clip_desk()
    patch = Patch("joint", desk.dictionary, [Ablate([3]), Scale([5], 2.0)])
    path = save_patch(desk, patch, tmp_path)
    again = read_patch(desk, str(path))
    hidden = torch.randn(4, 192, generator=torch.Generator().manual_seed(0))
    ours, theirs = (each.bindings[0].splice(hidden, stream="image") for each in (patch, again))
    assert torch.equal(ours, theirs) and not torch.equal(ours, hidden)
    assert load_patch(path).host["architecture"] == "CLIPModel"
    assert save_patch(desk, patch, tmp_path).parent != path.parent


def test_a_patch_for_another_host_is_refused_without_advice_that_nobody_can_follow(
    tmp_path: Path,
) -> None:
    desk = llava_desk()
    path = save_patch(desk, Patch(desk.site, desk.dictionary, Ablate([3])), tmp_path)
    with pytest.raises(VlmEditError, match="was not taken") as caught:
        read_patch(clip_desk(), str(path))
    assert "check_host" not in str(caught.value)


def test_whatever_comes_from_data_is_escaped() -> None:
    chances = Chances((HOSTILE, "b"), (0.25, 0.75), (0.5, 0.5), HOSTILE)
    shown = [
        show.heading(HOSTILE),
        show.chosen(HOSTILE, [HOSTILE]),
        show.report(HOSTILE, [HOSTILE]),
        show.trouble(HOSTILE),
        show.bars(chances, HOSTILE),
        show.hint(HOSTILE),
    ]
    assert all("<img" not in one and "&lt;img" in one for one in shown)
    assert show.trouble("") == "" and show.report("") == ""


def test_bars_are_as_long_as_the_chances_the_likeliest_first() -> None:
    told = show.bars(Chances(("a", "b"), (0.25, 0.75), (0.5, 0.5), ""))
    assert told.index(">b<") < told.index(">a<")
    assert "width:75.00%" in told and "width:25.00%" in told and told.count("width:50.00%") == 2


def test_a_long_choice_is_listed_in_part_and_counted() -> None:
    told = show.chosen("many", [str(i) for i in range(40)])
    assert told.count("<li>") == 13 and "and 28 more" in told


def test_examples_are_spread_over_the_pairs_and_small() -> None:
    examples = clip_desk().examples(4)
    assert [example.number for example in examples] == [0, 16, 32, 48]
    assert all(max(example.small.size) <= 256 for example in examples)
    assert clip_desk().picture(16).tobytes() == clip_desk().pairs.open(16).tobytes()
