"""What is kept with a run of its features, on its page: names, effects, neighbours and maps."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from browsed_pages import HOSTILE, NEEDED, chromium

from vlm_edit import Host, VlmEditError, measure, zoo
from vlm_edit.cli import kept
from vlm_edit.cli.detailed import details_of
from vlm_edit.measuring import Measurement, load_measurement, map_examples
from vlm_edit.report.details import checked

__all__ = ["chromium"]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Measurement]:
    pairs = zoo.load_pairs().select(range(32))
    what = Host.of(*zoo.load_llava()), pairs, zoo.load_dictionary("language.2")
    measurement = measure(*what, "language.2", progress=False)
    measurement.save(tmp_path / "run")
    maps = map_examples(*what, measurement, per=2, progress=False)
    kept.save_maps(tmp_path / "run", maps, measurement.checksum())
    return tmp_path / "run", measurement


def named(run: Path, measurement: Measurement, feature: int, **more: Any) -> None:
    told = {"name": "hearts", "score": 0.8, "low": 0.7, "high": 0.9, "held": True}
    told |= {"words": [["heart", 0.5]], "promotes": {"up": [["a", 1.0]], "down": [["b", -1.0]]}}
    told |= {"neighbours": {"decoder": [[3, 0.5]], "examples": [[4, 0.25]]}} | more
    kept.save_names(run, {feature: told}, measurement.checksum())


def test_the_page_is_told_what_maps_and_names_hold(run) -> None:
    folder, measurement = run
    feature = measurement.top("vision", 1)[0]
    named(folder, measurement, feature)
    details = details_of(folder, measurement.checksum())
    assert details is not None and callable(details)
    facts = checked(details(feature), feature, 512)
    assert facts["name"]["name"] == "hearts" and facts["name"]["words"] == ["heart"]
    assert facts["effects"] == {"up": [["a", 1.0]], "down": [["b", -1.0]]}
    assert facts["near"] == {"decoder": [[3, 0.5]], "examples": [[4, 0.25]]}
    maps = kept.maps(folder, measurement.checksum())
    assert maps is not None
    for firing, drawn in zip(maps.of(feature), facts["maps"]["image"], strict=True):
        assert firing.boxes is not None and drawn["pair"] == firing.number
        there = (firing.values["image"] != 0) & ~firing.boxes.isnan().any(1)
        torch.testing.assert_close(
            torch.tensor(drawn["values"]), firing.values["image"][there], rtol=5e-3, atol=0
        )
        torch.testing.assert_close(
            torch.tensor(drawn["boxes"]).reshape(-1, 4), firing.boxes[there], rtol=0, atol=1e-4
        )
    assert details_of(folder, "another run") is None
    named(folder, measurement, feature, name="undescribed", held=False, score=None, low=None)
    again = details_of(folder, measurement.checksum())
    assert "score" not in checked(again(feature), 0, 512)["name"]


@pytest.mark.parametrize("spoil", ["names", "maps"])
def test_what_is_damaged_is_said(run, spoil) -> None:
    folder, measurement = run
    named(folder, measurement, 3)
    file = folder / (kept.NAMES if spoil == "names" else kept.MAPS)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(VlmEditError, match=file.name):
        details_of(folder, measurement.checksum())


class TestHostile:
    """A stranger's run puts no code on the page."""

    pytestmark = NEEDED

    def test_names_words_and_tokens_stand_there_as_they_are(self, run, chromium, tmp_path) -> None:
        folder, measurement = run
        feature = measurement.top("language", 1)[0]
        evil = {"name": HOSTILE, "words": [[HOSTILE, 1.0]]}
        evil |= {"promotes": {"up": [[HOSTILE, 1.0]], "down": []}}
        named(folder, measurement, feature, **evil)
        maps = kept.maps(folder, measurement.checksum())
        assert maps is not None
        pairs = [
            dataclasses.replace(pair, words=[HOSTILE] * len(pair.words)) for pair in maps.pairs
        ]
        kept.save_maps(folder, dataclasses.replace(maps, pairs=pairs), measurement.checksum())
        shown = load_measurement(folder)
        page_file = tmp_path / "page.html"
        details = details_of(folder, shown.checksum())
        shown.page(page_file, zoo.load_pairs().select(range(32)), details=details)
        page, errors = chromium.new_page(), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{page_file.as_uri()}#feature-{feature}")
        page.wait_for_selector("#detail .name strong")
        page.wait_for_selector("#detail .heat-word")
        assert page.locator("#detail .name strong").inner_text().startswith("</script>")
        assert page.evaluate("window.harmed") is None and errors == []
        assert page.locator("img[src='x']").count() == 0

    def test_maps_that_lie_outside_of_the_picture_are_refused(self, run) -> None:
        folder, measurement = run
        maps = kept.maps(folder, measurement.checksum())
        assert maps is not None
        boxes = [box * 1000 - 500 for box in maps.boxes]
        kept.save_maps(folder, dataclasses.replace(maps, boxes=boxes), measurement.checksum())
        facts = details_of(folder, measurement.checksum())(int(maps.features[0]))
        for one in checked(facts, 0, 512)["maps"].get("image", []):
            assert all(0 <= edge <= 1 for box in one["boxes"] for edge in box)


def test_names_that_are_no_names_are_refused(run) -> None:
    folder, measurement = run
    document = {"run": measurement.checksum(), "names": {"3": {"name": 5, "held": True}}}
    (folder / kept.NAMES).write_text(json.dumps(document))
    with pytest.raises(VlmEditError, match="is damaged: delete it, or name again"):
        details_of(folder, measurement.checksum())
