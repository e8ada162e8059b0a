"""The demonstration on the zoo, and that its checks can fail."""

import csv
from pathlib import Path

import pytest
import torch

from vlm_edit import load_patch, zoo
from vlm_edit.cli import main
from vlm_edit.demo.factors import Reading, checks, factor_table, over_draws
from vlm_edit.dominance import modality_dominance
from vlm_edit.measurement import Reader


@pytest.fixture(scope="module")
def codes() -> dict[str, torch.Tensor]:
    host, processor = zoo.load_host()
    reader = Reader(host, processor, zoo.load_dictionary("joint"), progress=False)
    batches = list(reader.read(zoo.load_pairs()))
    return {s: torch.cat([batch.codes[s].dense() for batch in batches]) for s in ("image", "text")}


def verdicts(codes: dict[str, torch.Tensor]) -> dict[str, bool]:
    found = modality_dominance(codes["image"], codes["text"])
    pairs = zoo.load_pairs()
    decoder = zoo.load_dictionary("joint").decoder
    _, right = factor_table(Reading(pairs), codes, decoder, found.classes("sd"))
    return {check.claim: check.holds for check in checks(found, codes, pairs, right)}


def test_the_command_shows_the_whole_way_and_every_check_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nholds: ") == 9 and "DOES NOT HOLD" not in printed
    for part in ("vision-dominant", "Keep one class", "random", "Ablate a class", "took "):
        assert part in printed
    assert all(len(line) <= 130 for line in printed.splitlines())
    patch = load_patch(tmp_path / "out" / "no-vision-dominant.safetensors")
    with (tmp_path / "out" / "features.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    vision = [int(row["feature"]) for row in rows if row["class_sd"] == "vision"]
    assert list(patch.bindings[0].splice.slice.features) == vision
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="sheet"') >= 1 and "before: " in page


def test_all_checks_hold_on_the_zoo(codes: dict[str, torch.Tensor]) -> None:
    assert all(verdicts(codes).values())


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
    assert any("fire on both sides" in claim for claim in failed)
    assert any("retrieval" in claim for claim in failed)


def test_random_rows_show_the_mean_of_the_draws_and_their_range() -> None:
    draws = [[torch.tensor([True, True])], [torch.tensor([True, False])]]
    assert str(over_draws(draws)[0]) == ".750 [.500, 1.000]"
