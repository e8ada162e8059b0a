import base64
import gzip
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_edit import Dictionary, Pairs, VlmEditError
from vlm_edit.measures.dominance import CLASSES, DominanceAccumulator, null_histogram
from vlm_edit.measures.interpretability import TopExamples
from vlm_edit.measures.nulls import QUICK, ROWS, census_of
from vlm_edit.measuring import Measurement
from vlm_edit.report import (
    Examples,
    Picture,
    Table,
    class_table,
    feature_table,
    has_plotly,
    write_page,
)
from vlm_edit.report import page as page_module
from vlm_edit.report.columns import columns
from vlm_edit.report.payload import BINS
from vlm_edit.report.sprites import PER_SHEET, pack

HOSTILE = "</script><b onclick=alert(1)>\"quoted\" 'x' & <!--"
needs_plotly = pytest.mark.skipif(not has_plotly(), reason="needs plotly: pip install plotly")


class Reading(HTMLParser):
    """Collects elements with their attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.blocks: dict[str, np.ndarray] = {}
        self.bundles: list[dict[str, Any]] = []
        self.classed: list[tuple[str, str]] = []
        self._script: str | None = None
        self._block: dict[str, str | None] = {}
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id") or "" if tag == "script" else None
        self._block = dict(attrs) if tag == "script" else {}

    @property
    def sheets(self) -> dict[str, list[str]]:
        """The sheets of pictures, in base64."""
        return {
            size: [text for kind, text in self.classed if kind == size]
            for size in ("small", "large")
        }

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._script, self._block = None, {}

    def handle_data(self, data: str) -> None:
        if self._block.get("class") == "block":
            kind = np.dtype(f"<{self._block['data-kind']}")
            held = np.frombuffer(gzip.decompress(base64.b64decode(data)), kind)
            self.blocks[str(self._block["data-name"])] = held
        elif self._block.get("class") == "bundle":
            self.bundles.append(json.loads(gzip.decompress(base64.b64decode(data))))
        elif self._script is None:
            self.text += data
        elif self._block.get("class"):
            self.classed.append((str(self._block["class"]), data))
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts["data"])
        return found


def measured(image: torch.Tensor, text: torch.Tensor, **more: Any) -> Measurement:
    accumulator = DominanceAccumulator(image.shape[1])
    accumulator.update(image, text)
    examples = {"image": TopExamples(image.shape[1], 9), "text": TopExamples(image.shape[1], 9)}
    for stream, codes in (("image", image), ("text", text)):
        examples[stream].update(codes, list(range(len(codes))))
    return Measurement(accumulator.compute(), 0.3, examples, "joint", len(image), **more)


@pytest.fixture
def pairs() -> Pairs:
    images = [Image.new("RGB", (200, 100), (i * 12, 0, 0)) for i in range(20)]
    return Pairs(images, tuple(f"{HOSTILE} {i}" for i in range(20)), name="twenty reds")


@pytest.fixture
def found() -> Measurement:
    generator = torch.Generator().manual_seed(0)
    image = torch.relu(torch.randn(20, 30, generator=generator))
    text = torch.relu(torch.randn(20, 30, generator=generator))
    text[:, :6] = 0
    image[:, 6:12] = 0
    image[:, 29] = text[:, 29] = 0
    return measured(
        image,
        text,
        skipped=((7, "broken.png: cannot identify image file"),),
        interpretability={"ms_image": torch.arange(30.0), "embsim_image_20": torch.ones(30)},
        provenance={"host": {"class": "CLIPModel"}, "note": HOSTILE},
    )


@pytest.fixture
def reading(tmp_path: Path, found: Measurement, pairs: Pairs) -> Reading:
    table = Table("A <table>", ("name", "value"), (("<b>bold</b>", "1"),), "note & more")
    shown = Examples("Before and after", [(3, ["before: <i>", "after: cat"])], "chosen at random")
    write_page(tmp_path / "page.html", found, pairs, "A page", [table], [shown], shown=4)
    return Reading((tmp_path / "page.html").read_text(encoding="utf-8"))


@needs_plotly
def test_captions_and_cells_are_text_and_never_markup(reading: Reading) -> None:
    assert f"{HOSTILE} 3" in reading.data["captions"]
    assert "<b>bold</b>" in reading.text and HOSTILE in reading.text
    assert not [tag for tag, _ in reading.tags if tag in ("i", "b", "img")]


@needs_plotly
def test_the_page_names_nothing_to_load(reading: Reading) -> None:
    for tag, attributes in reading.tags:
        assert "src" not in attributes and not (tag == "link" and attributes["href"] != "data:,")
        if tag == "a":
            assert (attributes["href"] or "").startswith("#")


@needs_plotly
def test_pictures_are_held_by_the_page_with_words_for_who_does_not_see_them(
    tmp_path: Path, found: Measurement, pairs: Pairs
) -> None:
    noise = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8).numpy()
    shown = Picture(HOSTILE, Image.fromarray(noise), f"noise {HOSTILE}", "a <note>")
    path = tmp_path / "p.html"
    write_page(path, found, pairs, "A page", pictures=[shown], budget=5_300_000)
    assert path.stat().st_size <= 5_300_000
    reading = Reading(path.read_text("utf-8"))
    (img,) = [attributes for tag, attributes in reading.tags if tag == "img"]
    assert img["alt"] == f"noise {HOSTILE}"
    assert (img["width"], img["height"]) == ("120", "90")
    held = base64.b64decode((img["src"] or "").removeprefix("data:image/png;base64,"))
    assert (np.asarray(Image.open(io.BytesIO(held))) == noise).all()
    assert HOSTILE in reading.text and "a <note>" in reading.text
    assert ("a", {"href": "#pictures"}) in reading.tags


@needs_plotly
def test_the_histogram_counts_every_live_feature_once_by_every_rule(reading: Reading) -> None:
    for rule in reading.data["rules"]:
        assert sum(map(sum, rule["bars"])) == 29
        assert sum(rule["counts"]) == 30
        assert [rule["member"].count(str(i)) for i in range(len(CLASSES))] == rule["counts"]


@needs_plotly
def test_the_page_carries_every_figure_of_the_measurement(
    reading: Reading, found: Measurement
) -> None:
    carried = {c["name"]: reading.blocks[f"column {c['name']}"] for c in reading.data["columns"]}
    for column in columns(found):
        values = column.values.double().numpy()
        assert carried[column.name] == pytest.approx(values, rel=1e-3, nan_ok=True)
    assert carried["ms_image"].tolist() == list(range(30))
    assert carried["active"][29] == 0 and np.isnan(carried["mds"][29])


@needs_plotly
def test_the_page_says_what_was_left_out_and_where_it_comes_from(reading: Reading) -> None:
    assert "1 pair left out" in reading.text and "broken.png" in reading.text
    assert "host: class" in reading.text and "CLIPModel" in reading.text


@needs_plotly
def test_the_strongest_of_each_class_come_first(reading: Reading, found: Measurement) -> None:
    strength = found.strength()
    for rule in reading.data["rules"]:
        for name, members in found.dominance.classes(rule["name"]).items():
            best = sorted(members, key=lambda k: -float(strength[k]))[:4]
            assert rule["strongest"].get(name, []) == (best if name != "dead" else [])


@needs_plotly
def test_random_features_depend_on_the_seed_alone(
    tmp_path: Path, found: Measurement, pairs: Pairs
) -> None:
    def drawn(seed: int) -> list[int]:
        write_page(tmp_path / "p.html", found, pairs, "A page", shown=4, seed=seed)
        return list(Reading((tmp_path / "p.html").read_text("utf-8")).data["random"])

    assert drawn(0) == drawn(0) != drawn(1)
    assert 29 not in drawn(0) and len(set(drawn(0))) == 4


@needs_plotly
def test_a_page_keeps_to_its_budget_and_says_what_it_left_out(
    tmp_path: Path, found: Measurement, pairs: Pairs
) -> None:
    noise = torch.randint(0, 256, (20, 64, 64, 3), dtype=torch.uint8)
    loud = Pairs([Image.fromarray(i.numpy()) for i in noise], pairs.texts)
    path = tmp_path / "p.html"
    write_page(path, found, loud, "A page")
    large = len(Reading(path.read_text("utf-8")).sheets["large"][0])
    whole = path.stat().st_size - large
    write_page(path, found, loud, "A page", budget=whole - 30_000)
    assert path.stat().st_size <= whole - 30_000
    small = Reading(path.read_text("utf-8"))
    absent = small.data["sheets"]["small"]["places"].count(-1)
    assert 0 < absent < 20 and f"{absent} pictures did not fit" in small.text


@needs_plotly
def test_halves_of_characters_in_captions_do_not_keep_a_page_from_being_written(
    tmp_path: Path, found: Measurement, pairs: Pairs
) -> None:
    odd = Pairs(pairs.images, ("half \ud83d",) * 20)
    write_page(tmp_path / "p.html", found, odd, "A page")
    assert "half ?" in Reading((tmp_path / "p.html").read_text("utf-8")).data["captions"]


@needs_plotly
def test_a_dictionary_that_never_fires_still_gives_a_page_and_a_warning(
    tmp_path: Path, pairs: Pairs
) -> None:
    silent = measured(torch.zeros(20, 5), torch.zeros(20, 5))
    write_page(tmp_path / "p.html", silent, pairs, "A page", [class_table(silent)])
    assert "No feature is ever active" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_without_plotly_the_error_says_what_to_install(
    tmp_path: Path, found: Measurement, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "has_plotly", lambda: False)
    with pytest.raises(VlmEditError, match=r"pip install 'vlm-edit\[report\]'"):
        write_page(tmp_path / "p.html", found, pairs, "A page")


def test_a_page_of_other_pairs_is_refused(tmp_path: Path, found: Measurement, pairs: Pairs) -> None:
    file = tmp_path / "p.html"
    with pytest.raises(VlmEditError, match=r"'top images' names pair 19, .* \(0 to 18\)"):
        write_page(file, found, pairs.select(range(19)), "A page")
    other = Examples("An edit", [(3, ["x"]), (20, ["of other pairs"])])
    with pytest.raises(VlmEditError, match="'An edit' names pair 20"):
        write_page(file, found, pairs, "A page", examples=[other])
    assert not list(tmp_path.iterdir())


def test_a_feature_is_as_strong_as_its_examples_with_zeros_for_those_it_lacks() -> None:
    image, text = torch.zeros(12, 2), torch.zeros(12, 2)
    image[0, 0] = 9.0
    text[:, 1], image[:3, 1] = 2.0, 1.0
    assert measured(image, text).strength().tolist() == [1.0, 2.0]


def test_the_null_is_where_swapping_pairs_puts_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.rand(12, 400, generator=generator), torch.zeros(12, 400)
    text[::2] = torch.rand(6, 400, generator=generator)
    found = measured(image, text).dominance
    ratio = image / (image + text)
    coins = torch.rand(300, 12, 400, generator=generator) < 0.5
    drawn = torch.where(coins, ratio, 1 - ratio).mean(1)
    expected = torch.histc(drawn, 10, 0, 1) / 300
    assert null_histogram(found, 10) == pytest.approx(expected.tolist(), abs=4)
    assert sum(null_histogram(found, BINS)) == pytest.approx(400)


def test_every_picture_is_packed_once_where_its_place_says(tmp_path: Path) -> None:
    count = PER_SHEET + 20
    colours = [(i % 16 * 16, i // 16 * 14, 128) for i in range(count)]
    pairs = Pairs([Image.new("RGB", (30, 30), c) for c in colours], ("x",) * count)
    sprites = pack(pairs, [*range(count), 5, 7], 10**7)
    sheets = [Image.open(io.BytesIO(base64.b64decode(s))).convert("RGB") for s in sprites.sheets]
    assert len(sprites.places) == count and len(sheets) == 2
    for number, place in sprites.places.items():
        sheet, tile = divmod(place, PER_SHEET)
        seen = sheets[sheet].getpixel((tile % 16 * 64 + 32, tile // 16 * 64 + 32))
        assert all(abs(a - b) < 12 for a, b in zip(seen, colours[number], strict=True))
    broken = Pairs([tmp_path / "none.png", pairs.images[0]], ("x", "y"))
    assert pack(broken, [0, 1], 10**7).places == {1: 0}
    assert pack(broken, [0, 1], 10**7).unreadable == 1


def test_the_features_of_a_class_come_strongest_first(found: Measurement, pairs: Pairs) -> None:
    strength = found.strength()
    table = feature_table(found, pairs, shown=3)
    vision = [int(row[1]) for row in table.rows if row[0] == "vision-dominant"]
    members = found.dominance.classes("sd")["vision"]
    assert vision == sorted(members, key=lambda k: -float(strength[k]))[:3]


def test_the_class_table_counts_every_feature_once_per_rule(found: Measurement) -> None:
    for row in class_table(found).rows:
        assert sum(int(cell.split()[0]) for cell in row[2:]) == 30
        assert sum(int(cell.split()[1].strip("()")) for cell in row[2:]) == pytest.approx(30, abs=3)


def test_both_bounds_are_warned_of_where_no_feature_can_lie_beyond() -> None:
    codes = torch.eye(20)[:, :10]
    split = [torch.cat(parts, 1) for parts in ((codes, torch.zeros(20, 10)),
                                               (torch.zeros(20, 10), codes))]  # fmt: skip
    note = class_table(measured(*split)).note
    assert "be language-dominant; use" in note and "be vision-dominant; use" in note


def test_a_census_stands_below_the_classes_and_a_page_without_says_what_sizes_are_worth(
    tmp_path: Path, found: Measurement, pairs: Pairs
) -> None:
    generator = torch.Generator().manual_seed(1)
    streams = {name: torch.randn(50, 4, generator=generator) for name in ("image", "text")}
    census = census_of(streams, Dictionary.identity(4), QUICK)
    write_page(tmp_path / "with.html", found, pairs, "A page", census=census)
    write_page(tmp_path / "without.html", found, pairs, "A page")
    shown, bare = ((tmp_path / f"{n}.html").read_text("utf-8") for n in ("with", "without"))
    overview = shown.split('id="plane"')[0]
    assert all(ROWS[name] in overview for name in QUICK)
    assert not any(ROWS[name] in bare for name in QUICK if name != "data")
    assert "Class sizes say little" in bare


def test_a_page_can_show_only_what_recurs(
    tmp_path: Path, found: Measurement, pairs: Pairs, reading: Reading
) -> None:
    write_page(tmp_path / "page.html", found, pairs, "A page", recurring=[5, 3, 12])
    page = Reading((tmp_path / "page.html").read_text(encoding="utf-8"))
    boxes = [told for tag, told in page.tags if tag == "input" and told.get("id") == "recurs"]
    assert len(boxes) == 1 and page.data["recurring"] == [3, 5, 12]
    assert reading.data["recurring"] is None
    assert not any(told.get("id") == "recurs" for _, told in reading.tags)
    with pytest.raises(VlmEditError, match="feature 30 is not there"):
        write_page(tmp_path / "page.html", found, pairs, "A page", recurring=[30])
