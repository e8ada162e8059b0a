"""What a newer transformers adds against the page is named, and how far it gets."""

from __future__ import annotations

import pytest
from any_hosts import newer

PAGE = newer.PAGE.read_text("utf-8")


def without(model_type: str) -> str:
    lines = PAGE.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(f"| `{model_type}` | `"))


@pytest.mark.parametrize("model_type", ["llava", "clip", "udop", "qwen2_5_omni_thinker"])
def test_a_type_that_has_no_row_is_named_and_no_other(model_type: str) -> None:
    known = set(newer.added(PAGE))
    named = set(newer.added(without(model_type))) - known
    assert {newer.BY_A_PART.get(name, name) for name in named} == {model_type}


def test_all_that_is_said_names_the_way_and_the_sites(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = without("llava").replace("| `clip` | `", "| clip | `")

    class Page:
        @staticmethod
        def read_text(_: str) -> str:
            return page

    monkeypatch.setattr(newer, "PAGE", Page)
    monkeypatch.setattr(newer, "takes_images", lambda _: False)  # of the rest, in other tests
    newer.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("2 types without a row")
    sites = "declared: joint, vision.{i}, text.{i}"
    assert said[1] == f"clip (CLIPModel): builds, {sites}"
    assert said[2].startswith("llava (LlavaForConditionalGeneration): builds, declared: vision.{i}")


def test_what_does_not_build_says_why() -> None:
    assert "does not build: EvollaForProteinText2Text takes no images" in newer.told("evolla")


def test_a_host_that_is_refused_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_edit.host.host.find_adapter", refuse)
    assert newer.told("clip") == "clip (CLIPModel): builds, refused: no adapter here"


def refuse(_: object) -> None:
    raise newer.VlmEditError("no adapter here")


def test_no_type_that_speaks_of_sounds_alone_is_asked_for() -> None:
    assert not newer.takes_images("qwen2_audio")
    assert newer.takes_images("llava")
