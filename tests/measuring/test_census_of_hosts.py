"""A census of the zoo: known figures, and what of pairs is left out."""

from pathlib import Path

import pytest

from vlm_edit import Host, Pairs, zoo
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.measures.nulls import QUICK
from vlm_edit.measuring import census


def test_on_the_zoo_gaussians_have_the_classes_of_the_data_but_pair_nothing() -> None:
    host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs()
    dictionary = zoo.load_dictionary("joint")
    rows = census(host, pairs, dictionary, rows=QUICK, rule="significant", factor="background",
                  progress=False)  # fmt: skip
    data, unpaired, joint = (rows.row(name) for name in ("data", "unpaired", "joint"))
    for kind in ("vision", "language", "cross"):
        assert unpaired.sizes[kind] == pytest.approx(data.sizes[kind], rel=0.25)
        assert joint.sizes[kind] == pytest.approx(data.sizes[kind], rel=0.25)
    assert (data.paired, unpaired.paired) == (413, 0)
    assert joint.paired is not None and joint.paired > 300
    assert rows.row("swapped").sizes["vision"] < 1
    random = rows.row("random-dictionary").read
    assert data.read is not None and random is not None
    assert data.read.without < 0.3 < 0.9 < data.read.random
    assert random.without > 0.9


def test_a_host_of_random_weights_gets_a_dictionary_of_its_own() -> None:
    host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(96))
    dictionary = zoo.load_dictionary("joint")
    rows = census(host, pairs, dictionary, rows=["data", "random-host"], steps=20, progress=False)
    data, random = rows.row("data"), rows.row("random-host")
    assert data.paired and not random.paired
    assert sum(random.sizes.values()) == dictionary.n_features


def test_labels_of_pairs_that_cannot_be_read_are_left_out_too(tmp_path: Path) -> None:
    host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(40))
    images = [*pairs.images]
    images[3] = tmp_path / "gone.png"
    broken = Pairs(images, pairs.texts, pairs.columns)
    skipped: list[tuple[int, str]] = []
    kept = [i for i in range(40) if i != 3]
    dictionary = zoo.load_dictionary("joint")
    options = {"rows": ["data"], "factor": "background", "progress": False}
    rows = census(host, broken, dictionary, left_out=skipped, **options)  # type: ignore[arg-type]
    assert [number for number, _ in skipped] == [3]
    assert rows == census(host, pairs.select(kept), dictionary, **options)  # type: ignore[arg-type]


def test_a_site_of_many_tokens_and_a_column_that_is_not_there_are_refused() -> None:
    host, pairs = Host.of(*zoo.load_host()), zoo.load_pairs().select(range(8))
    with pytest.raises(VlmEditError, match="at site 'vision.2' 8 pairs give"):
        census(host, pairs, zoo.load_dictionary("vision.2"), "vision.2", progress=False)
    with pytest.raises(VlmEditError, match="no column 'weather': it has"):
        census(host, pairs, zoo.load_dictionary(), factor="weather", progress=False)
