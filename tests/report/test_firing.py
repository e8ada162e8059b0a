"""Where a feature fires, as it is drawn: boxes and words hold the numbers of the maps."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from vlm_edit import Host, Measurement, Pairs, VlmEditError, measure, zoo
from vlm_edit.measuring import Firing, Maps, map_examples
from vlm_edit.report import FeatureSheet, write_maps

HOSTILE = "</span><script>alert(1)</script><img src=x onerror=alert(1)>"


TAGS = {"section", "div", "b", "span", "figure", "img", "svg", "rect", "title", "figcaption"}


def tree_of(sheet: Any) -> ElementTree.Element:
    return ElementTree.fromstring(sheet._repr_html_())


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return zoo.load_pairs().select(range(24))


@pytest.fixture(scope="module")
def run(pairs: Pairs) -> tuple[Measurement, Maps]:
    what = Host.of(*zoo.load_llava()), pairs, zoo.load_dictionary("language.2")
    measurement = measure(*what, "language.2", progress=False)
    return measurement, map_examples(*what, measurement, progress=False)


def test_boxes_lie_where_tokens_fire_and_are_as_strong(run, pairs) -> None:
    measurement, maps = run
    feature = measurement.top("vision", 1)[0]
    firings = maps.of(feature)
    sheet = tree_of(measurement.show(feature, pairs, maps))
    most = max(float(v.abs().max()) for f in firings for v in f.values.values())
    figures = sheet.findall(".//figure")
    assert len(figures) == len(firings)
    order = sorted(firings, key=lambda f: -max(float(v.max()) for v in f.values.values()))
    drawn = 0
    for figure, firing in zip(figures, order, strict=True):
        assert firing.boxes is not None
        image = firing.values["image"]
        wanted = [
            i for i in image.nonzero().flatten().tolist() if not firing.boxes[i].isnan().any()
        ]
        rects = figure.findall(".//{*}rect")
        assert len(rects) == len(wanted)
        for rect, i in zip(rects, wanted, strict=True):
            left, top, right, bottom = firing.boxes[i].tolist()
            assert float(rect.get("x")) == pytest.approx(left, abs=1e-3)
            assert float(rect.get("y")) == pytest.approx(top, abs=1e-3)
            assert float(rect.get("width")) == pytest.approx(right - left, abs=1e-3)
            assert float(rect.get("height")) == pytest.approx(bottom - top, abs=1e-3)
            share = float(rect.get("fill-opacity"))
            assert share == pytest.approx(0.85 * float(image[i]) / most, abs=2e-3)
            drawn += 1
    assert drawn > 10


def test_words_stand_as_they_were_said_and_shine_as_they_fire(run, pairs) -> None:
    measurement, maps = run
    feature = measurement.top("language", 1)[0]
    sheet = tree_of(measurement.show(feature, pairs, maps))
    shining = 0
    for figure in sheet.findall(".//figure"):
        spans = figure.findall(".//figcaption/span")
        said = "".join(map(text_of, spans)).strip()
        assert said in pairs.texts
        for span in spans:
            fires = float(span.get("title")) != 0
            assert fires == ("background" in span.get("style"))
            shining += fires
    assert shining > 0


def test_a_feature_without_maps_has_its_pictures_and_says_so(run, pairs) -> None:
    measurement, maps = run
    sheet = measurement.show(3, pairs)
    bare = sheet._repr_html_()
    assert "No maps of this feature: map_examples makes them." in bare
    assert "<rect" not in bare and "<img" in bare
    assert "feature 3" in bare and re.search(r"MDS [\d.]+ \[", text_of(tree_of(sheet)))
    with pytest.raises(VlmEditError, match="feature 512 is not in this dictionary"):
        measurement.show(512, pairs, maps)
    with pytest.raises(VlmEditError):
        measurement.show(3, pairs.select(range(20)), maps)


def test_nothing_of_the_data_becomes_code() -> None:
    pairs = Pairs([Image.new("RGB", (8, 8), "red")], (HOSTILE,))
    values = {"image": torch.tensor([1.0, 0.0]), "text": torch.tensor([2.0])}
    boxes = torch.tensor([[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    for words in ([HOSTILE], []):
        firing = Firing(0, values, boxes, words)
        sheet = FeatureSheet.of(1, pairs, [firing], {HOSTILE: HOSTILE}, note=HOSTILE)
        tree = tree_of(sheet)
        assert {e.tag for e in tree.iter()} <= TAGS
        assert not any(name.startswith("on") for e in tree.iter() for name in e.attrib)
        assert HOSTILE in text_of(tree)


def test_a_picture_that_is_gone_leaves_the_words(tmp_path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pairs = Pairs([tmp_path / "a.png"], ("a picture",))
    (tmp_path / "a.png").unlink()
    firing = Firing(0, {"text": torch.tensor([1.0, 0.0])}, None, ["a", " picture"])
    tree = tree_of(FeatureSheet.of(1, pairs, [firing]))
    assert not tree.findall(".//img") and "a picture" in text_of(tree)


def test_the_page_shows_the_features_in_the_order_given(run, pairs, tmp_path) -> None:
    _, maps = run
    write_maps(tmp_path / "maps.html", maps, pairs, "Some <script>alert(1)</script>", [71, 5])
    page = (tmp_path / "maps.html").read_text("utf-8")
    assert re.findall(r"<b>(.*?)</b>", page) == ["feature 71", "feature 5"]
    assert "<h1>Some &lt;script&gt;alert(1)" in page and "<script>alert" not in page
