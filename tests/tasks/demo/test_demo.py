"""The demonstration on the zoo, and that its checks can fail."""

import csv
import re
from pathlib import Path

import pytest
import torch

from vlm_edit import Host, load_patch, zoo
from vlm_edit.cli import main
from vlm_edit.measures.dominance import Cut, modality_dominance
from vlm_edit.measuring import Reader
from vlm_edit.tasks.demo.factors import (
    QUANTITIES,
    Check,
    Reading,
    alive,
    as_known,
    as_many,
    checks,
    factor_table,
    over_draws,
)


@pytest.fixture(scope="module")
def codes() -> dict[str, torch.Tensor]:
    host, processor = zoo.load_host()
    reader = Reader(Host.of(host, processor), zoo.load_dictionary("joint"), progress=False)
    batches = list(reader.read(zoo.load_pairs()))
    return {s: torch.cat([batch.codes[s].dense() for batch in batches]) for s in ("image", "text")}


ROOT = Path(__file__).resolve().parents[3]
NOT_SHOWN = {
    "group is read best from cross features",
    "MDS finds the features of image-only factors (background, vendor), among as active ones too",
    "cross-modal features fire together on matched rather than shuffled pairs more than as many "
    "random ones",
}


def expect_shown(printed: str) -> None:
    """docs/demo.md shows lines of the command, but for what another machine's arithmetic does."""
    shown = (ROOT / "docs" / "demo.md").read_text("utf-8")
    lines = [line for line in shown.split("```text\n")[1].split("```")[0].splitlines() if line]
    for line in lines:
        if line != "..." and set(line) != {"-", " "}:
            alike = [
                numbers(other) for other in printed.splitlines() if words(other) == words(line)
            ]
            assert any(near(found, numbers(line)) for found in alike), (line, alike)


def near(found: list[str], shown: list[str]) -> bool:
    """Whether figures are the same to 2 %, and counts, some of random draws, to 2."""
    return len(found) == len(shown) and all(
        abs(float(a) - float(b)) <= max(0.02 * abs(float(b)), 2 if b.isdigit() else 0.02)
        for a, b in zip(found, shown, strict=True)
    )


NUMBER = re.compile(r"-?\d*\.?\d+(?:e[+-]\d+)?")


def words(line: str) -> str:
    """A line without its figures, which may also have moved its columns."""
    return " ".join(NUMBER.sub("#", line).split())


def numbers(line: str) -> list[str]:
    return NUMBER.findall(line)


def verdicts(codes: dict[str, torch.Tensor], rule: Cut = "significant") -> dict[str, bool]:
    found = modality_dominance(codes["image"], codes["text"])
    pairs = zoo.load_pairs()
    decoder = zoo.load_dictionary("joint").decoder
    classes = found.classes(rule)
    _, right = factor_table(Reading(pairs), codes, decoder, classes)
    return {check.claim: check.holds for check in checks(found, classes, codes, pairs, right)}


def test_the_command_shows_the_whole_way_and_says_what_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nholds: ") == 6
    told = [line for line in printed.splitlines() if line.startswith("NOT SHOWN: ")]
    assert set(told) == {f"NOT SHOWN: {claim}" for claim in NOT_SHOWN} and len(told) == 3
    expect_shown(printed)
    for part in ("vision-dominant", "Keep as many features", "random", "Ablate a class", "took "):
        assert part in printed
    assert all(len(line) <= 130 for line in printed.splitlines())
    patch = load_patch(tmp_path / "out" / "no-vision-dominant.safetensors")
    with (tmp_path / "out" / "features.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    vision = [int(row["feature"]) for row in rows if row["class"] == "vision"]
    assert list(patch.bindings[0].splice.slice.features) == vision
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="small"') >= 1 and "before: " in page


@pytest.mark.parametrize("rule", ["significant", "sd"])
def test_the_same_checks_hold_on_the_zoo_by_either_rule(
    codes: dict[str, torch.Tensor], rule: Cut
) -> None:
    # By mean -+ sd 314 features are cross-modal and 96 visual: all of the former tell the group
    # better than all of the latter, as many of them do not. So many fire together in more pairs
    # than as many random ones, which 117 and 96 do not.
    found = verdicts(codes, rule)
    shown = {claim for claim in NOT_SHOWN if rule == "sd" and "fire together" in claim}
    assert {claim for claim, holds in found.items() if not holds} == NOT_SHOWN - shown
    assert len(found) == 8


def test_classes_are_compared_by_as_many_features_of_each() -> None:
    classes = {
        "vision": [9, 8, 7, 6, 5], "language": [0, 1], "cross": [2], "undecided": [3], "dead": [4],
    }  # fmt: skip
    sets = as_many(classes, draws=4)
    assert list(sets) == ["vision", "language", "cross", "random"]
    assert {len(draw) for draws in sets.values() for draw in draws} == {1}
    assert sets["cross"] == [[2]] and len(sets["vision"]) == 4
    assert len({tuple(draw) for draw in as_many(classes, draws=40)["vision"]}) == 5
    drawn = {k for draw in as_many(classes, draws=200)["random"] for k in draw}
    assert drawn == set(alive(classes)) == {0, 1, 2, 3, 5, 6, 7, 8, 9}


def test_only_a_verdict_that_is_not_the_known_one_says_that_something_broke() -> None:
    true, untrue = Check("a", True, ""), Check("b", False, "", known=False)
    assert as_known([true, untrue])
    assert not as_known([true, Check("b", True, "", known=False)])
    assert not as_known([Check("a", False, ""), untrue])


def test_a_class_without_features_is_no_class_to_compare_with() -> None:
    sets = as_many({"vision": [1, 2], "language": [], "cross": [3], "undecided": [], "dead": []})
    assert list(sets) == ["vision", "cross", "random"]
    assert as_many({"vision": [], "language": [], "cross": [], "undecided": [5], "dead": []}) == {}


@pytest.mark.parametrize(("by_chance", "holds"), [(0.2, True), (0.9, False)])
def test_a_class_that_is_no_better_than_as_many_random_features_does_not_read_best(
    codes: dict[str, torch.Tensor], by_chance: float, holds: bool
) -> None:
    found, pairs = modality_dominance(codes["image"], codes["text"]), zoo.load_pairs()
    share = {"vision": 0.9, "language": 0.2, "cross": 0.2, "random": by_chance}
    generator = torch.Generator().manual_seed(0)
    right = {
        (name, column): torch.rand(5, len(pairs), generator=generator) < value
        for name, value in share.items()
        for column in QUANTITIES
    }
    told = checks(found, found.classes(), codes, pairs, right)
    claim = "background is read best from vision features"
    assert {check.claim: check.holds for check in told}[claim] is holds


def test_with_the_streams_exchanged_the_checks_of_one_modality_fail(
    codes: dict[str, torch.Tensor],
) -> None:
    found = verdicts({"image": codes["text"], "text": codes["image"]})
    assert not any(holds for claim, holds in found.items() if "read best from vision" in claim)
    assert not any(holds for claim, holds in found.items() if "read best from language" in claim)
    assert not any(holds for claim, holds in found.items() if "AUC" in claim)


def test_with_the_pairs_shuffled_cross_modal_features_no_longer_fire_together(
    codes: dict[str, torch.Tensor],
) -> None:
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(0))
    found = verdicts({"image": codes["image"], "text": codes["text"][order]})
    failed = {claim for claim, holds in found.items() if not holds}
    assert any("fire together" in claim for claim in failed)
    assert any("retrieval" in claim for claim in failed)


def planted(together: bool) -> dict[str, torch.Tensor]:
    """Codes of 20 features: 5 of backgrounds, 5 of texts, 5 of both sides and 5 of nothing."""
    generator = torch.Generator().manual_seed(0)
    codes = {s: torch.rand(1024, 20, generator=generator) for s in ("image", "text")}
    fires = torch.rand(1024, 20, generator=generator) < 0.3
    other = torch.rand(1024, 20, generator=generator) < 0.3
    colour = zoo.load_pairs().columns["background"]
    names = sorted(set(colour))
    number = torch.tensor([names.index(name) for name in colour])
    fires[:, :5] = number[:, None] == torch.arange(5)
    codes["image"] *= fires
    other[:, 10:15] = fires[:, 10:15] if together else other[:, 10:15]
    codes["text"] *= other
    codes["text"][:, :5] = 0
    codes["image"][:, 5:10] = 0
    return codes


def of_codes(codes: dict[str, torch.Tensor]) -> dict[str, bool]:
    """Verdicts that need no probe."""
    found = modality_dominance(codes["image"], codes["text"])
    classes = {"vision": range(5), "language": range(5, 10), "cross": range(10, 15)}
    named = {name: list(numbers) for name, numbers in classes.items()}
    rest = {"undecided": list(range(15, 20)), "dead": []}
    told = checks(found, named | rest, codes, zoo.load_pairs(), {})
    return {check.claim: check.holds for check in told}


@pytest.mark.parametrize("together", [True, False])
def test_features_that_fire_together_are_told_from_random_ones(together: bool) -> None:
    found = of_codes(planted(together))
    (holds,) = (holds for claim, holds in found.items() if "fire together" in claim)
    assert holds is together


def test_features_of_a_factor_are_found_only_if_as_active_ones_lean_elsewhere() -> None:
    (alone,) = (h for claim, h in of_codes(planted(True)).items() if "image-only" in claim)
    codes = planted(True)
    codes["text"][:, 10:] = 0  # whatever fires in images leans to them now
    (among,) = (h for claim, h in of_codes(codes).items() if "image-only" in claim)
    assert alone and not among


def test_random_rows_show_the_mean_of_the_draws_and_their_range() -> None:
    draws = [[torch.tensor([True, True])], [torch.tensor([True, False])]]
    assert str(over_draws(draws)[0]) == ".750 [.500, 1.000]"
