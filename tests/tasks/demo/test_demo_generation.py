"""The demonstration on the LLaVA, on fewer pairs, and that its checks can fail."""

import pytest
import torch

from vlm_edit import Host, zoo
from vlm_edit.cli import main
from vlm_edit.measuring import load_measurement
from vlm_edit.tasks.demo import generation
from vlm_edit.tasks.demo.ablation import Ablation
from vlm_edit.tasks.demo.generation import SITE
from vlm_edit.tasks.demo.interview import Interview, Sizes, guess
from vlm_edit.tasks.demo.steering import Steering

SMALL = Sizes(edited=64, control=48, target=8, draws=1)


@pytest.fixture(scope="module")
def interview():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, processor = zoo.load_llava()
    order = torch.randperm(1024, generator=torch.Generator().manual_seed(5))
    pairs = zoo.load_pairs().select(order[:400].tolist())
    yield Interview(Host.of(model, processor), pairs, zoo.load_dictionary(SITE), SITE)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def read(interview):
    return generation.read(interview)


def test_without_vision_dominant_features_it_loses_the_picture(interview, read):
    found, codes = read
    table, checks = Ablation(interview, found.dominance.classes("fixed"), codes, SMALL).table()
    assert [check.holds for check in checks] == [True, True], checks
    assert [row[0] for row in table.rows][1] == "nothing" and len(table.rows) == 8
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_with_the_classes_exchanged_it_keeps_the_picture_and_the_checks_fail(interview, read):
    found, codes = read
    classes = found.dominance.classes("fixed")
    swapped = {**classes, "vision": classes["language"], "language": classes["vision"]}
    _, checks = Ablation(interview, swapped, codes, SMALL).table()
    assert not any(check.holds for check in checks)


def test_carriers_of_the_background_steer_the_answer_and_random_features_do_not(interview, read):
    steering = Steering(interview, read[1]["image"], SMALL)
    assert not set(steering.learned) & set(steering.asked)
    table, checks = steering.table()
    assert all(check.holds for check in checks), checks
    assert [row[0] for row in table.rows][0] == "nothing"


def test_with_the_codes_shuffled_over_pairs_nothing_carries_the_background(interview, read):
    codes = read[1]["image"]
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))
    true = Steering(interview, codes, SMALL)
    assert len(Steering(interview, codes[order], SMALL).carriers) < len(true.carriers) / 4


def test_a_guess_is_the_share_of_the_commonest_answer():
    assert guess(["a", "b", "a", "c"]).value == 0.5


@pytest.mark.slow
def test_the_command_prints_every_table_and_every_check_holds_and_writes_a_page(capsys, tmp_path):
    assert main(["demo", "--llava", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "steered to" in page and "Ablate features at image tokens" in page
    assert load_measurement(tmp_path).site == "language.0"
    for part in ("Ablate features at image tokens", "Steer the background", "before and after"):
        assert part in printed
    assert printed.count("\nholds: ") == 3 and "NOT SHOWN" not in printed
    assert all(len(line) <= 140 for line in printed.splitlines())
