from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm_edit.measurement import Batch, Measurement, MeasurementAccumulator
from vlm_edit.pairs import Pairs
from vlm_edit.report import Examples, Table, class_table, feature_table, write_page
from vlm_edit.report.tables import strongest

HOSTILE = "<script>alert('x')</script> & \"quotes\""


class Reading(HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def pairs() -> Pairs:
    images = [Image.new("RGB", (200, 100), (i * 12, 0, 0)) for i in range(20)]
    return Pairs(images, tuple(f"{HOSTILE} {i}" for i in range(20)), name="twenty reds")


@pytest.fixture
def found() -> Measurement:
    generator = torch.Generator().manual_seed(0)
    codes = {
        "image": torch.relu(torch.randn(20, 30, generator=generator)),
        "text": torch.relu(torch.randn(20, 30, generator=generator)),
    }
    codes["text"][:, :6] = 0
    codes["image"][:, 6:12] = 0
    codes["image"][:, 29] = codes["text"][:, 29] = 0
    accumulator = MeasurementAccumulator(30)
    accumulator.update(Batch(list(range(20)), codes, codes))
    return accumulator.compute("joint", [(7, "broken.png: cannot identify image file")])


@pytest.fixture
def page(tmp_path: Path, found: Measurement, pairs: Pairs) -> str:
    table = Table("A <table>", ("name", "value"), (("<b>bold</b>", "1"),), "note & more")
    shown = Examples("Before and after", [(3, ["before: <i>", "after: cat"])], "chosen at random")
    write_page(tmp_path / "page.html", found, pairs, "A page", [table], [shown], shown=4)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_page_needs_nothing_from_outside(page: str) -> None:
    reading = Reading(page)
    assert not reading.of("script") and not reading.of("link")
    sources = [image["src"] or "" for image in reading.of("img")]
    assert sources and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "http" not in page


def test_captions_are_text_and_never_markup(page: str) -> None:
    reading = Reading(page)
    assert HOSTILE in reading.text
    assert not reading.of("i") and not reading.of("b")


def test_every_image_has_a_text_for_who_cannot_see_it(page: str) -> None:
    assert all(image.get("alt") for image in Reading(page).of("img"))


def test_the_bars_of_the_histogram_count_every_live_feature(page: str, found: Measurement) -> None:
    titles = Reading(page).text
    counts = [int(line.split(" features from")[0].split()[-1]) for line in titles.splitlines()
              if " features from " in line]  # fmt: skip
    assert sum(counts) == int((~found.dominance.dead).sum()) == 29


def test_a_page_says_which_pairs_were_left_out(page: str) -> None:
    assert "1 pairs left out" in page and "broken.png" in page


def test_random_features_do_not_depend_on_how_strong_they_are(
    tmp_path: Path, found: Measurement, pairs: Pairs
) -> None:
    def drawn(seed: int) -> str:
        write_page(tmp_path / "p.html", found, pairs, "A page", shown=4, seed=seed)
        return (tmp_path / "p.html").read_text(encoding="utf-8").split("Random features</h2>")[1]

    assert drawn(0) == drawn(0) != drawn(1)


def test_the_features_of_a_class_come_strongest_first(found: Measurement, pairs: Pairs) -> None:
    strength = strongest(found)
    table = feature_table(found, pairs, shown=3)
    vision = [int(row[1]) for row in table.rows if row[0] == "vision-dominant"]
    members = found.dominance.classes("sd")["vision"]
    assert vision == sorted(members, key=lambda k: -float(strength[k]))[:3]


def test_the_class_table_counts_every_feature_once_per_rule(found: Measurement) -> None:
    for row in class_table(found).rows:
        assert sum(int(cell) for cell in row[2:]) == 30


def test_a_dictionary_that_never_fires_still_gives_a_page_and_a_warning(
    tmp_path: Path, pairs: Pairs
) -> None:
    codes = {s: torch.zeros(20, 5) for s in ("image", "text")}
    hidden = {s: torch.ones(20, 3) for s in ("image", "text")}
    accumulator = MeasurementAccumulator(5)
    accumulator.update(Batch(list(range(20)), hidden, codes))
    silent = accumulator.compute("joint")
    write_page(tmp_path / "p.html", silent, pairs, "A page", [class_table(silent)])
    assert "no feature is ever active" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_both_bounds_are_warned_of_where_no_feature_can_lie_beyond() -> None:
    codes = torch.eye(20)[:, :10]
    split = {"image": torch.cat([codes, torch.zeros(20, 10)], 1),
             "text": torch.cat([torch.zeros(20, 10), codes], 1)}  # fmt: skip
    accumulator = MeasurementAccumulator(20)
    accumulator.update(Batch(list(range(20)), split, split))
    table = class_table(accumulator.compute("joint"))
    assert "language-dominant; use" in table.note and "vision-dominant; use" in table.note
