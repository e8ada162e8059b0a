"""The page of what reading costs is what is stored, and what measures it does so evenly."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scale import page as script
from scale import photographs, tables, timing


@pytest.fixture(scope="module")
def stored() -> tables.Figures:
    return tables.Figures(script.load())


def test_the_page_of_scale_is_what_the_stored_figures_say() -> None:
    told = script.PAGE.read_text("utf-8")
    assert told == tables.page(script.load()), "run: python docs/experiments scale.page"


def test_the_page_shows_another_figure_where_another_is_stored() -> None:
    lines = script.load()
    shown = ("0 workers", tables.CPU, "pairs a second", "peak MiB", "load before")
    for i, line in enumerate(lines):
        if line.figure in shown:
            other = [*lines]
            other[i] = line._replace(value="7.89")
            assert "7.89" in tables.page(other), line


def test_every_section_is_stored_and_on_the_page_with_its_command(stored: tables.Figures) -> None:
    assert {section for section, _, _ in stored.by_name} == set(timing.SECTIONS)
    text = script.PAGE.read_text("utf-8")
    for name in timing.SECTIONS:
        assert f"python docs/experiments scale.page --measure --only {name}\n" in text, name


def test_stored_figures_lie_between_their_least_and_greatest(stored: tables.Figures) -> None:
    for line in stored.by_name.values():
        if line.low:
            assert 0 < float(line.low) <= float(line.value) <= float(line.high), line
            assert int(line.runs) >= 1


def test_what_is_claimed_of_memory_is_stored(stored: tables.Figures) -> None:
    for case in stored.cases("large", "peak MiB"):
        assert stored.value("large", case, "peak MiB") * 2**20 <= tables.MOST_LARGE
    # Keys and counts of two streams, and what the allocator keeps.
    for kind, most in (("measure", 100), ("cuts", 30)):
        peaks = [
            stored.value("memory", case, "peak MiB")
            for case in stored.cases("memory", "peak MiB")
            if case.startswith(kind)
        ]
        assert max(peaks) - min(peaks) < most, kind


def test_files_stay_and_only_what_is_measured_anew_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    before = script.load()
    fresh = timing.Row.of("early", "whole", "seconds", [3.0, 1.0, 2.0])
    assert fresh[3:] == (2.0, 1.0, 3.0, 3)
    monkeypatch.setitem(timing.SECTIONS, "early", lambda _: iter([fresh]))
    after = script.merged(script.measured("early"), before)
    rest = [line for line in before if line.section != "early"]
    assert [line for line in after if line.section != "early"] == rest
    early = [line for line in after if line.section == "early"]
    assert [line.figure for line in early] == ["seconds", *script.RUN]
    script.save(after, tmp_path / "scale.csv")
    assert script.load(tmp_path / "scale.csv") == after


def test_photographs_are_as_large_as_a_cameras_and_all_different() -> None:
    files = photographs.photographs("2 megapixels", 3)
    assert len(set(files)) == 3
    assert all(300_000 < len(data) < 1_000_000 for data in files)


def test_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []

    def way(name: str) -> Any:
        return lambda: float(len(calls.append(name) or calls))  # type: ignore[func-returns-value]

    assert timing.in_turn({"a": way("a"), "b": way("b")}, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert "".join(calls) == "ababab"


def test_pairs_that_are_drawn_are_all_different() -> None:
    pairs = [(image.tobytes(), text) for image, text in timing.drawn(300)]
    assert len({image for image, _ in pairs}) == len({text for _, text in pairs}) == 300


def test_numbers_are_told_in_three_digits() -> None:
    told = [tables.number(value) for value in (0.39641, 3.14159, 99.96, 12345.6, 103_412.0)]
    assert told == ["0.396", "3.14", "100", "12,300", "103,000"]
    assert not re.search(r"e[+-]", tables.number(1e9))
