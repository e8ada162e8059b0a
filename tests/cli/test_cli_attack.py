"""``vlm-edit attack``, as typed, on the zoo and on a folder of one's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_edit import Ablate, Host, Patch, zoo
from vlm_edit.cli import main

SMALL = ("--most", "8", "--steps", "4", "--queries", "10", "--eps", "2", "4")


def folder_of(path: Path, count: int = 10) -> Path:
    """Images of the zoo with their captions, as a person keeps them."""
    pairs = zoo.load_pairs()
    for i in range(count):
        pairs.open(i).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(pairs.texts[i], "utf-8")
    return path


def test_one_command_fools_a_model_on_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    out = tmp_path / "out"
    given = ["attack", "zoo:emoji-clip", str(folder_of(data)), *SMALL, "--out", str(out)]
    assert main(given) == 0
    told = json.loads((out / "attack.json").read_text("utf-8"))
    (table,) = told["tables"]
    assert f"Read among {len(told['read among'])} texts" in table["note"]
    assert set(told["read among"]) <= set(zoo.load_pairs().texts[:10])
    assert f"Read among {len(told['read among'])} texts" in (out / "index.html").read_text("utf-8")
    assert table["columns"] == ["", "radius", "clean", "PGD", "APGD-CE", "APGD-DLR", "Square"]
    assert [row[1] for row in table["rows"]] == ["2/255", "4/255"]
    assert "still read rightly" in capsys.readouterr().out
    files = sorted((out / "images").iterdir())
    assert len(files) == 8
    page = (out / "index.html").read_text("utf-8")
    assert page.count("<figure>") == 24 and "attacked:" in page


def test_attacked_images_are_within_the_radius_of_the_hosts_own(tmp_path: Path) -> None:
    given = ["attack", "zoo:emoji-clip", "zoo:pairs", "--label", "label", *SMALL]
    assert main([*given, "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "attack.json").read_text("utf-8"))
    assert told["arguments"]["label"] == "label"
    assert "labels that the 8 images drawn have" in told["tables"][0]["note"]
    from vlm_edit.tasks.adversarial import ImageHost
    from vlm_edit.tasks.adversarial.page import drawn

    pairs = zoo.load_pairs()
    numbers = drawn(len(pairs), 8, 0)
    pixels = ImageHost.of(Host.of(*zoo.load_host())).pixels.read([pairs.open(i) for i in numbers])
    for true, file in zip(pixels, sorted((tmp_path / "images").iterdir()), strict=True):
        found = np.asarray(Image.open(file)).astype(float)
        assert np.abs(found - 255 * true.permute(1, 2, 0).numpy()).max() <= 4 + 0.51


@pytest.mark.slow
def test_a_class_is_attacked_beside_as_many_random_features(tmp_path: Path) -> None:
    given = ["attack", "zoo:emoji-clip", "zoo:pairs", "--label", "label", *SMALL]
    more = ["--dictionary", "zoo:joint", "--class", "vision", "--target", "teapot"]
    assert main([*given, *more, "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "attack.json").read_text("utf-8"))["tables"]
    titles = [table["title"] for table in told]
    assert titles[1:] == [
        "Images taken for 'teapot'",
        "What moves at joint under PGD at 4/255",
        "Attacks through one class of features: images misread",
    ]
    names = [row[0] for row in told[3]["rows"]]
    assert names[::2] == ["vision", "50 random", "vision less random"]
    # A share less another is what the difference says, of the same images.
    for i in range(2):
        own, random, less = (told[3]["rows"][k + i][3] for k in (0, 2, 4))
        value, counts = (less.split()[0], less.split("; ")[1])
        gap = float(own.split()[0]) - float(random.split()[0])
        assert float(value) == pytest.approx(gap, abs=0.011) and " of 8, p " in counts
    assert "50 features for vision, 50 of them proven" in told[3]["note"]
    moved = {row[0]: row[1:] for row in told[2]["rows"]}
    assert list(moved) == ["vision", "language", "cross", "random", "residual"]
    assert [moved[kind][0] for kind in ("vision", "language")] == ["50 (50)", "50 (50)"]
    assert moved["cross"][0] == "50 (5)" and moved["random"][0] == "50"
    for kind in ("vision", "language", "cross"):
        shares = [float(moved[name][1].split()[0]) for name in (kind, "random")]
        assert float(moved[kind][2].split()[0]) == pytest.approx(shares[0] - shares[1], abs=0.011)
    assert "Features that moved most" in (tmp_path / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_a_patch_is_attacked_through(tmp_path: Path) -> None:
    model, _ = zoo.load_host()
    file = tmp_path / "patch.safetensors"
    Patch("joint", zoo.load_dictionary("joint"), Ablate(range(100)), "image").save(file, model)
    given = ["attack", "zoo:emoji-clip", "zoo:pairs", "--label", "label", *SMALL]
    assert main([*given, "--patch", str(file), "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "attack.json").read_text("utf-8"))["tables"][0]
    assert [row[0] for row in told["rows"]] == ["the model"] * 2 + ["behind the patch"] * 2
    assert "surrogate" in told["columns"]
    # Of the same images, so that as many more stand as its counts differ by.
    apart = re.findall(r"(\d)/255: (\d+) and (\d+) of 8, p ", told["note"])
    assert [radius for radius, _, _ in apart] == ["2", "4"]
    shares = [float(next(c for c in row[::-1] if c).split()[0]) for row in told["rows"]]
    for i, (_, gained, lost) in enumerate(apart):
        assert shares[2 + i] - shares[i] == pytest.approx((int(gained) - int(lost)) / 8, abs=0.011)


def test_classes_that_few_pairs_show_are_compared_in_the_smallest_number(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    given = ["attack", "zoo:emoji-clip", str(folder_of(data, 40)), *SMALL]
    assert main([*given, "--dictionary", "zoo:joint", "--out", str(tmp_path / "out")]) == 0
    moved = json.loads((tmp_path / "out" / "attack.json").read_text("utf-8"))["tables"][1]["rows"]
    *classes, random, residual = moved
    assert random[0] == "random" and residual[0] == "residual"
    sizes = {int(row[1].split()[0]) for row in [*classes, random]}
    assert len(sizes) == 1 and 0 < sizes.pop() < 50 and 1 <= len(classes) <= 3


def test_a_model_that_speaks_is_asked(tmp_path: Path) -> None:
    given = ["attack", "zoo:emoji-llava", "zoo:pairs", "--question", "what is it?", *SMALL]
    assert main([*given, "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "attack.json").read_text("utf-8"))["tables"]
    assert table["title"] == "Answers to 'what is it?' that change"
    assert main([*given, "--target", "red apple", "--out", str(tmp_path)]) == 2
    assert main([*given, "--target", "red apple", "--out", str(tmp_path), "--overwrite"]) == 0
    (table,) = json.loads((tmp_path / "attack.json").read_text("utf-8"))["tables"]
    assert "become 'red apple'" in table["title"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--class", "vision"], "name --dictionary"),
        (["--label", "nonsense"], "no column 'nonsense'"),
        (["--question", "what is it?", "--label", "label"], "leave --label out"),
        (["--eps", "0"], "must be above 0"),
        (["--label", "label", "--label-prompt", "a picture"], "where the label goes"),
        (["--patch", "zoo:nothing"], "no bundled patch 'nothing'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    given: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["attack", "zoo:emoji-clip", "zoo:pairs", *given, *out]) == 2
    assert told in capsys.readouterr().err
