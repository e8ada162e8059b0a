"""A census of planted features, whose classes are known, and of its nulls."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, Encoder, PairedDictionary
from vlm_edit.ground.errors import DamagedFile, VlmEditError
from vlm_edit.measures.dominance import CLASSES, RULE, modality_dominance
from vlm_edit.measures.nulls import QUICK, ROWS, Census, census_of
from vlm_edit.report import census_table

N, M = 600, 24


def planted() -> tuple[dict[str, Tensor], Dictionary, list[str]]:
    """Features 0 to 7 of images alone, 8 to 15 of texts alone, 16 to 23 of both sides of a pair.

    Feature 0 is the background: there or not.
    """
    generator = torch.Generator().manual_seed(5)

    def fire() -> Tensor:
        return (torch.rand(N, M, generator=generator) < 0.2) * (
            1 + torch.rand(N, M, generator=generator)
        )

    shared = fire()
    image, text = shared.clone(), shared.clone()
    image[:, :8], text[:, :8] = fire()[:, :8], 0
    image[:, 8:16], text[:, 8:16] = 0, fire()[:, 8:16]
    labels = torch.rand(N, generator=generator) < 0.5
    image[:, 0] = labels * 1.5
    turn, _ = torch.linalg.qr(torch.randn(M, M, generator=generator))
    cut = torch.full((M,), 0.5)
    encoder = Encoder(turn.T.contiguous(), torch.zeros(M), "jumprelu", threshold=cut)
    dictionary = Dictionary(encoder, turn.contiguous(), torch.zeros(M))
    noise = [0.1 * torch.randn(N, M, generator=generator) for _ in range(2)]
    streams = {"image": image @ turn + noise[0], "text": text @ turn + noise[1]}
    return streams, dictionary, ["grey" if label else "white" for label in labels]


@pytest.fixture(scope="module")
def census() -> Census:
    streams, dictionary, labels = planted()
    random = {name: torch.randn(N, M) for name in streams}
    return census_of(
        streams, dictionary, random=random, factor=("background", labels), deleted=8, steps=100
    )


def test_the_data_have_the_classes_that_were_planted(census: Census) -> None:
    streams, dictionary, _ = planted()
    row = census.row("data")
    sizes = [row.sizes[name] for name in CLASSES]
    codes = [dictionary.encode(streams[name]) for name in ("image", "text")]
    dominance = modality_dominance(*codes)
    assert sizes == [len(dominance.classes()[name]) for name in CLASSES]
    assert (sizes[0], sizes[1], row.paired) == (8, 8, 8)
    assert row.sd == dominance.sd
    assert [row.name for row in census.rows] == list(ROWS)


def test_each_null_lacks_what_it_destroys_and_keeps_what_it_does_not(census: Census) -> None:
    assert census.row("unpaired").paired == 0
    assert (census.row("joint").paired or 0) >= 6
    assert census.row("unpaired").sizes["vision"] > 0
    swapped = census.row("swapped")
    assert swapped.sizes["vision"] + swapped.sizes["language"] < 1
    assert swapped.sd < 0.5 * census.row("data").sd
    host = census.row("random-host")
    assert host.paired == 0
    assert all(sum(row.sizes.values()) == pytest.approx(M) for row in census.rows)


def test_deleting_features_takes_the_factor_out_and_random_directions_do_not(
    census: Census,
) -> None:
    data, random = census.row("data").read, census.row("random-dictionary").read
    assert data is not None and random is not None
    assert data.deleted == 8
    assert data.whole > 0.99 and data.without < 0.65
    assert data.random > data.without + 0.1
    assert random.without > 0.8
    assert all(census.row(name).read is None for name in ("swapped", "unpaired", "joint"))


def test_a_random_swap_of_every_pair_gives_the_spread_that_is_told() -> None:
    streams, dictionary, _ = planted()
    told = census_of(streams, dictionary, ["swapped"]).row("swapped").sd
    image, text = (dictionary.encode(streams[name]) for name in ("image", "text"))
    generator, spreads = torch.Generator().manual_seed(9), []
    for _ in range(60):
        swap = torch.rand(N, M, generator=generator) < 0.5
        one, other = torch.where(swap, text, image), torch.where(swap, image, text)
        spreads.append(modality_dominance(one, other).sd)
    assert told == pytest.approx(sum(spreads) / 60, rel=0.05)


def test_rows_are_those_asked_for_and_a_random_host_needs_activations() -> None:
    streams, dictionary, _ = planted()
    some = census_of(streams, dictionary, ["joint", "data", "random-host"])
    assert [row.name for row in some.rows] == ["joint", "data"]
    with pytest.raises(VlmEditError, match="no row 'swapped'"):
        some.row("swapped")
    assert not any(name in QUICK for name in ("frozen-dictionary", "retrained", "random-host"))


def test_the_rule_is_the_librarys_unless_another_is_named() -> None:
    streams, dictionary, _ = planted()
    assert census_of(streams, dictionary, ["data"]).rule == RULE
    fixed = census_of(streams, dictionary, ["data"], rule="fixed")
    assert fixed.rule == "fixed"
    assert fixed.row("data").sizes["undecided"] == 0


def test_a_census_comes_back_from_json_as_it_was(census: Census) -> None:
    text = json.dumps(census.as_json(), allow_nan=False)
    assert Census.of_json(json.loads(text)) == census


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [{"name": "data"}]},
        {"rule": 3, "more": 1},
        {"rows": 7},
        {"rows": [{"name": "?", "sizes": dict.fromkeys(CLASSES, 1), "paired": 0, "sd": 0,
                   "read": None}]},
    ],
)  # fmt: skip
def test_what_is_no_census_is_refused(census: Census, change: dict[str, Any]) -> None:
    with pytest.raises(DamagedFile, match="not a census"):
        Census.of_json({**census.as_json(), **change})


def test_a_table_shows_every_row_and_what_to_make_of_it(census: Census) -> None:
    table = census_table(census)
    assert [row[0] for row in table.rows] == list(ROWS.values())
    assert len(table.columns) == len(table.rows[0]) == 11
    assert table.columns[-2:] == ("less 8 vision", "less 8 random")
    assert "Class sizes say little" in str(table)
    assert "unpaired Gaussians" in census._repr_html_()
    assert repr(census).startswith("Census(data, swapped")


def test_what_cannot_be_counted_is_refused() -> None:
    streams, dictionary, labels = planted()
    with pytest.raises(VlmEditError, match="no row 'gaussian' of a census"):
        census_of(streams, dictionary, ["gaussian"])
    with pytest.raises(VlmEditError, match="row i of both a pair"):
        census_of({**streams, "text": streams["text"][:5]}, dictionary)
    with pytest.raises(VlmEditError, match="has 3 labels for 600 pairs"):
        census_of(streams, dictionary, ["data"], factor=("tone", labels[:3]))
    both = PairedDictionary(dictionary, dictionary)
    assert census_of(streams, both, ["data", "joint"]).row("data").paired == 8
    with pytest.raises(VlmEditError, match="no random counterpart"):
        census_of(streams, both, ["random-dictionary"])
