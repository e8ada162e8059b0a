"""Errors tell their kind apart, for a server that goes on by itself; all are one library's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlm_edit import (
    Ablate,
    Dictionary,
    Host,
    Pairs,
    Patch,
    load_dictionary,
    load_patch,
    measure,
    zoo,
)
from vlm_edit.ground.errors import (
    BadArgument,
    CannotKnow,
    DamagedFile,
    UnknownName,
    VlmEditError,
    VlmEditWarning,
    WrongHost,
    expect_kind,
)


def patch(feature: int = 1, site: str = "joint") -> Patch:
    return Patch(site, zoo.load_dictionary("joint"), Ablate([feature]))


def another_host(folder: Path) -> None:
    model, _ = zoo.load_host()
    patch().save(folder / "patch", model)
    with torch.no_grad():
        model.visual_projection.weight.mul_(2)
    load_patch(folder / "patch").attach(model)


def another_width(_: Path) -> None:
    Patch("joint", Dictionary.identity(3), Ablate([1])).attach(zoo.load_host()[0])


def damaged(folder: Path) -> None:
    patch().save(folder / "patch", zoo.load_host()[0])
    text = (folder / "patch").read_bytes()
    (folder / "patch").write_bytes(text[:-4] + b"abcd")
    load_patch(folder / "patch")


def cut_off(folder: Path) -> None:
    patch().save(folder / "patch", zoo.load_host()[0])
    (folder / "patch").write_bytes((folder / "patch").read_bytes()[:200])
    load_patch(folder / "patch")


def unknown_site(_: Path) -> None:
    Host.of(zoo.load_host()[0]).site("vision.99")


def unknown_format(folder: Path) -> None:
    load_dictionary(folder)


def unknown_host(_: Path) -> None:
    patch().attach(torch.nn.Linear(2, 2))


def bad_strength(_: Path) -> None:
    patch().attach(zoo.load_host()[0], strength=float("nan"))


def no_processor(_: Path) -> None:
    pairs = zoo.load_pairs().select(range(2))
    measure(zoo.load_host()[0], pairs, zoo.load_dictionary("joint"), progress=False)


@pytest.mark.parametrize(
    ("does", "kind"),
    [
        (another_host, WrongHost),
        (another_width, WrongHost),
        (damaged, DamagedFile),
        (cut_off, DamagedFile),
        (unknown_site, UnknownName),
        (unknown_format, UnknownName),
        (unknown_host, UnknownName),
        (bad_strength, BadArgument),
        (lambda _: patch(9999), BadArgument),
        (lambda _: Pairs([], ("a",)), BadArgument),
        (no_processor, CannotKnow),
    ],
)
def test_a_server_can_tell_what_went_wrong(
    does: Callable[[Path], object], kind: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(kind) as raised:
        does(tmp_path)
    assert isinstance(raised.value, VlmEditError) and isinstance(raised.value, ValueError)


def test_no_kind_of_error_is_another() -> None:
    kinds = (BadArgument, CannotKnow, DamagedFile, UnknownName, WrongHost)
    for kind in kinds:
        assert [other for other in kinds if issubclass(kind, other)] == [kind]
    assert issubclass(VlmEditWarning, UserWarning)


def test_an_argument_of_another_kind_is_shown_shortly_and_on_one_line() -> None:
    with pytest.raises(BadArgument) as raised:
        expect_kind("rules", "a\n\x1b[2J" * 100, list, "a list of rules")
    text = str(raised.value)
    assert text.startswith("rules is 'a") and text.endswith("... (str); give a list of rules")
    assert "\n" not in text and "\x1b" not in text and len(text) < 130
