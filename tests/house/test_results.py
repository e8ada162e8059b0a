"""The pages of results are what their scripts print, and the scripts reproduce what they stored."""

import importlib
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.kernels

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = DOCS / "experiments" / "results"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Imports a script of docs/experiments/results by name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"results.{name}")

    yield load
    torch.set_num_threads(threads)


def expect_close(found: Any, stored: Any, where: str = "", near: float = 0.02) -> None:
    """Equal in structure, and in numbers but for what another machine's arithmetic does."""
    if isinstance(stored, dict):
        assert list(found) == list(stored), where
        for key, value in stored.items():
            if key == "expected":  # by chance
                expect_drawn(found[key], value, f"{where}/{key}")
            else:
                expect_close(found[key], value, f"{where}/{key}", near)
    elif isinstance(stored, list | tuple):
        assert len(found) == len(stored), where
        for i, value in enumerate(stored):
            expect_close(found[i], value, f"{where}/{i}", near)
    elif isinstance(stored, float | int) and not isinstance(stored, bool):
        assert math.isclose(found, stored, rel_tol=near, abs_tol=0.02), (where, found, stored)
    else:
        assert found == stored, where


def expect_drawn(found: dict[str, Any], stored: dict[str, Any], where: str) -> None:
    """Of the same draws' spread: a mean over draws to its error, a bound to that of a quantile."""
    assert list(found) == list(stored), where
    for kind, (mean, low, high, draws) in stored.items():
        spread = max((high - low) / 4, 0.1)  # of one draw; 0.1 where hardly any drew anything
        told = (where, kind, found[kind], stored[kind])
        assert abs(found[kind][0] - mean) <= 5 * spread / draws**0.5, told
        assert abs(found[kind][1] - low) <= spread and abs(found[kind][2] - high) <= spread, told
        assert found[kind][3] == draws, told


def expect_searched(found: dict[str, Any], stored: dict[str, Any], step: float, where: str) -> None:
    """Of a strength that was searched for: to the search's step, and what hangs on it likewise.

    Whether a strength is enough may hang on one image, which another processor reads otherwise.
    """
    strength = stored["strength"]
    assert abs(found["strength"] - strength) <= 1.001 * step, (where, found, stored)
    # Where an edit brings all images to one place, rounding says which text is the nearest to it.
    if found["strength"] == strength and stored["away"] > 1e-6:
        expect_close(found, stored, where)
        return
    for key in ("effect", "zero_shot", "retrieval"):
        (_, low, high, n), (_, least, most, count) = stored[key], found[key]
        assert least <= high and low <= most and count == n, (where, found, stored)
    scales = ("moved", "away")
    expect_close(
        {key: found[key] for key in scales}, {key: stored[key] for key in scales}, where,
        near=0.02 + 2 * step / strength,
    )  # fmt: skip
    assert found["reached"] == stored["reached"], where


def expect_names(found: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """Ways by name, each found one with the stored: how many random features match is not exact."""
    pairs = dict(zip(found, stored, strict=True))
    for here, there in pairs.items():
        (name, count), (wanted, stored_count) = _counted(here), _counted(there)
        assert name == wanted and abs(count - stored_count) <= 0.01 * stored_count, (here, there)
    return pairs


def _counted(name: str) -> tuple[str, int]:
    told = re.fullmatch(r"(random, as far as \w+) \((\d+)\)", name)
    return (told[1], int(told[2])) if told else (name, 0)


def test_examples_on_other_pages_are_what_the_stored_results_say(scripts) -> None:
    page = scripts("page")
    for file, name in page.EXAMPLES.items():
        text = (DOCS / file).read_text("utf-8")
        assert text == page.filled(file, name), "run: python docs/experiments results.page"


def test_the_pages_of_results_are_what_the_stored_results_say(scripts) -> None:
    for file, text in scripts("page").pages().items():
        told = (DOCS / file).read_text("utf-8")
        assert told == text, f"{file}: run: python docs/experiments results.page"


def test_every_stored_result_is_on_a_page_with_its_command(scripts) -> None:
    page = scripts("page")
    named = {name for name, _, _ in page.SECTIONS}
    stored = {file.stem for file in RESULTS.glob("*.json")} - {"groups_tags"}
    assert stored == named
    pages = page.pages()
    for name in named:
        options = getattr(scripts(name), "OPTIONS", "")
        told = pages[page.file_of(name)]
        assert f"python docs/experiments results.{name}{options}\n" in told
        assert f"]({page.file_of(name)})" in pages["results.md"]


def test_a_page_opens_with_three_sentences_and_says_what_came_of_it(scripts) -> None:
    page, common, openings = scripts("page"), scripts("common"), scripts("openings")
    assert list(openings.OPENINGS) == [name for name, _, _ in page.SECTIONS]
    verdicts = ("Holds", "Does not hold", "Not shown", "Cannot be tried here")
    for name, opening_of in openings.OPENINGS.items():
        opening = opening_of(common.load(name))
        assert len(re.split(r"\.\s+(?=[A-Z`])", opening.sentences)) == 3, name
        assert opening.verdict.startswith(verdicts) and opening.claim and opening.done


def test_what_is_said_of_a_real_clip_is_stored(scripts) -> None:
    stored = scripts("common").load("real_clip")
    for rule in ("interval", "significant"):
        sizes = {name: line["classes"][rule] for name, line in stored["census"].items()}
        for kind in ("vision", "language"):  # no fewer where there is nothing but covariance
            assert sizes["Gaussians, unpaired"][kind][0] >= sizes["CLIP"][kind][0]
            assert sizes["images beside other images"][kind][0] < 1
        assert sizes["CLIP"]["cross"][0] == 0 or rule == "significant"
    paired = {name: line["paired"] for name, line in stored["census"].items()}
    assert paired["Gaussians, unpaired"][2] == 0 < paired["joint Gaussian"][1]
    lines = stored["deletion"][stored["rule"]]
    for name in ("cross", "as many by Fisher's p"):
        low, high = lines[name]["beyond"][1:3]
        assert low < 0 < high
    assert len({tuple(line["features"]) for name, line in lines.items() if "all" not in name}) == 1
    low, high = lines["as many by Fisher's p"]["more than cross"][1:3]
    assert low < 0 < high
    gap = stored["gap"]["no centre"]
    for rule in ("interval", "significant"):
        unimodal, random = (
            gap[f"{what} ({rule})"] for what in ("unimodal features", "random ones, as many")
        )
        means, before = gap["the means of both streams"], gap["nothing"]
        for far in ("as many", "as far"):
            less = gap[f"random ones, {far} ({rule})"]["gap of unimodal, less this"]
            assert less[2] < 0
        assert unimodal["gap"][2] < random["gap"][1] and unimodal["R@1"][2] < before["R@1"][1] / 2
        assert means["gap"][0] < 1.2 * unimodal["gap"][0]
        assert means["R@1"][0] > before["R@1"][0] - 0.02


def test_what_is_cut_from_pages_is_a_table_that_its_command_prints(scripts) -> None:
    page, common = scripts("page"), scripts("common")
    printed = {t.title for n, _, _ in page.SECTIONS for t in scripts(n).tables(common.load(n))}
    assert set(page.CUT) <= printed
    assert not [cut for cut in page.CUT for told in page.pages().values() if f"**{cut}**" in told]


def test_classes_of_the_joint_dictionary_come_out_as_stored(scripts) -> None:
    common = scripts("common")
    subject = common.subject("clip", "joint")
    stored = common.load("classes")[subject.name]
    expect_close(scripts("classes").compute([subject])[subject.name], stored)


@pytest.mark.slow
def test_scores_against_the_truth_come_out_as_stored(scripts) -> None:
    common = scripts("common")
    subject = common.subject("clip", "joint")
    stored = common.load("ground_truth")[subject.name]
    expect_close(scripts("ground_truth").compute([subject])[subject.name], stored)


@pytest.mark.slow
def test_likeness_of_examples_comes_out_as_stored(scripts) -> None:
    common, script = scripts("common"), scripts("interpretability")
    subject = common.subject("clip", "joint")
    stored = common.load("interpretability")[subject.name]
    expect_close(script.compute([subject], script.judges())[subject.name], stored)


@pytest.mark.slow
def test_a_layer_of_the_generative_host_comes_out_as_stored(scripts) -> None:
    common, script = scripts("common"), scripts("layers")
    found = script.compute(script.both(("language.3",)))
    expect_close(found, {k: v for k, v in common.load("layers").items() if k in found})


def test_scores_know_the_truth_only_where_it_is_there(scripts) -> None:
    common, script = scripts("common"), scripts("ground_truth")
    truth = script.truth(common.subject("clip", "joint"))
    assert {name: int(found.sum()) for name, found in truth.items()} == {
        name: common.load("ground_truth")["emoji-clip joint, dictionary"][name]["positive"]
        for name in script.QUESTIONS
    }


@pytest.mark.slow
def test_what_needs_no_training_is_worth_what_the_table_of_trainings_says(scripts) -> None:
    common, script = scripts("common"), scripts("training")
    data = script.embeddings()
    found = script.figures(script.train("raw neurons", 0, data), data)
    for stored in common.load("training")["raw neurons"]:
        expect_close(
            {k: common.rounded(v) for k, v in found.items()},
            {k: v for k, v in stored.items() if k != "seed"},
        )


def test_every_way_of_training_is_there_with_every_seed(scripts) -> None:
    common, script = scripts("common"), scripts("training")
    stored = common.load("training")
    assert list(stored) == list(script.WAYS)
    for lines in stored.values():
        assert [line["seed"] for line in lines] == list(script.SEEDS)
        assert all(set(line) == {"seed", *script.FIGURES} for line in lines)


def test_the_cost_of_rules_comes_out_as_stored(scripts) -> None:
    common, script = scripts("common"), scripts("edits")
    found, stored = script.compute(), common.load("edits")
    for task in script.MOST:
        lines, wanted = found.pop(task), stored.pop(task)
        assert list(lines) == list(wanted)
        for name, line in lines.items():
            expect_searched(line, wanted[name], script.step(task), f"{task}/{name}")
    expect_close(found, stored)


@pytest.mark.slow
def test_the_gap_without_unimodal_features_comes_out_as_stored(scripts, monkeypatch) -> None:
    common, script = scripts("common"), scripts("unimodal")
    kind, stored = "no centre", common.load("unimodal")
    monkeypatch.setattr(script, "SEEDS", (0,))
    monkeypatch.setattr(script, "KINDS", {kind: script.KINDS[kind]})
    monkeypatch.setattr(script, "CUTS", script.CUTS[-1:])
    found = script.compute()
    expect_close(found["nothing"], stored["nothing"])
    (line,), before = found["deleted"][kind], stored["deleted"][kind][-1]
    # With other kernels training goes another way, as with another seed.
    count, counts = line["features"]["own"][0], before["features"]["own"]
    assert abs(count - sum(counts) / len(counts)) <= 2 * max(counts) ** 0.5
    for name in script.FIGURES:
        seeds = before[f"{name} by seed"]
        spread = max(seeds) - min(seeds)
        assert min(seeds) - spread <= line[f"{name} by seed"][0] <= max(seeds) + spread, name


def test_what_is_said_of_the_gap_without_unimodal_features_is_stored(scripts) -> None:
    stored = scripts("common").load("unimodal")["deleted"]
    for line in stored["no centre"]:
        for control in ("size", "norm"):
            assert line[control]["gap ahead"][2] < 0 < line[control]["R@1 ahead"][1]
    unedited = scripts("common").load("unimodal")["nothing"]["gap by seed"][0]
    assert all(min(line["gap by seed"]) > unedited for line in stored["a centre per stream"])
    assert all(max(line["gap by seed"]) < unedited for line in stored["no centre"])


@pytest.mark.slow
def test_what_is_left_of_gender_comes_out_as_stored(scripts) -> None:
    common, script = scripts("common"), scripts("bias")
    stored = common.load("bias")
    expect_close(script.by_prompt(), stored["prompts"])
    expect_close(script.leaning(), stored["leanings"])
    (one, two), ways = script.halves(), script.ways()
    assert list(stored["ways"]) == list(ways)
    found = {
        name: script.Outcome.of(ways[name](one, two)) + script.Outcome.of(ways[name](two, one))
        for name in (script.BASELINE, "nothing", "ablate 8 features", "LEACE")
    }
    for name, outcome in found.items():
        expect_close(script.figures(outcome, found[script.BASELINE]), stored["ways"][name], name)
    chance = script.dealt(found["nothing"])
    expect_close(chance, stored["chance"]["nothing"])


def test_the_picture_of_the_rules_is_what_they_draw(scripts) -> None:
    script = scripts("pictures")
    assert script.OUT.read_text("utf-8") == script.picture(), (
        "run: python docs/experiments results.pictures"
    )


@pytest.mark.slow
def test_drawings_are_made_and_read_for_every_way_and_table(scripts) -> None:
    common, script = scripts("common"), scripts("generation")
    told = script.parse(["--pairs", "2", "--seeds", "2", "--steps", "1"])
    one, stored = script.Subject(told), common.load("generation")
    some = {"image": "", "text": "prompt", "captions": "whole", "own": "keep vision"}
    found = {kind: script.compute(one, kind, only) for kind, only in some.items()}
    names = expect_names(found["image"], stored["image"])
    found["image"] = {names[name]: line for name, line in found["image"].items()}
    assert list(found["text"]) == ["nothing", script.PROMPTED]
    for kind, lines in found.items():
        for name, line in lines.items():
            assert list(line) == list(stored[kind][name])
            assert all(len(line[key]) == len(stored[kind][name][key]) for key in script.READ)
    mixed = {kind: stored[kind] | lines for kind, lines in found.items()}
    tables = script.tables(mixed | {"about": script.about(one)})
    assert [len(t.rows) for t in tables] == [len(t.rows) for t in script.tables(stored)]
