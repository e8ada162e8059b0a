"""Who runs for hours can follow by Python's logging; nothing is printed unasked."""

import logging
import re

import pytest
import torch

from vlm_edit import Host, measure, zoo
from vlm_edit.dictionaries import TrainConfig, train_dictionary


def test_a_measurement_tells_where_it_is(caplog, tmp_path) -> None:
    host, pairs = Host.load("zoo:emoji-clip", device="cpu"), zoo.load_pairs().select(range(12))
    place = tmp_path / "state"
    with caplog.at_level(logging.INFO, "vlm_edit"):
        for _ in range(2):
            measure(
                *(host, pairs, zoo.load_dictionary()),
                batch_size=4,
                checkpoint=place,
                every=0,
                progress=False,
            )
    lines = [r.getMessage() for r in caplog.records if r.name == "vlm_edit.measuring.state"]
    assert lines[0] == f"joint: 3 of 3 batches of {pairs.name} to read"
    assert [line for line in lines if line.startswith("wrote")][:3] == [
        f"wrote {place} at batch {n}" for n in (1, 2, 3)
    ]
    assert f"going on from {place} at batch 3" in lines
    assert lines.count("joint: 12 pairs read, 0 left out") == 2


def test_a_training_tells_where_it_is(caplog, tmp_path) -> None:
    config = TrainConfig(n_features=16, k=2, steps=150, batch_size=32)
    with caplog.at_level(logging.INFO, "vlm_edit"):
        train_dictionary(
            {"image": torch.randn(64, 8)}, config, checkpoint=tmp_path / "state", progress=False
        )
    lines = [r.getMessage() for r in caplog.records]
    assert re.fullmatch(r"step 100 of 150: .*l0 2\S*, .*", lines[0])
    assert lines[-1] == f"wrote {tmp_path / 'state'} at step 150"


def test_nothing_is_said_unasked(caplog: pytest.LogCaptureFixture, capfd) -> None:
    config = TrainConfig(n_features=16, k=2, steps=150, batch_size=32)
    train_dictionary({"image": torch.randn(64, 8)}, config, progress=False)
    assert not caplog.records and capfd.readouterr() == ("", "")
