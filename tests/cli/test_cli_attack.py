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
    assert names[0] == "vision" and names[2].endswith(" random")
    moved = [row[:2] for row in told[2]["rows"]]
    assert [name for name, _ in moved[::2]] == [
        "vision",
        "language",
        "cross",
        "undecided",
        "residual",
    ]
    assert all(name == f"{size} random" for name, size in moved[1::2])
    assert [size for _, size in moved[:-1:2]] == [size for _, size in moved[1::2]]
    assert "features that moved most" in (tmp_path / "index.html").read_text("utf-8")


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


def test_features_that_nothing_activated_have_no_random_ones_beside_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    given = ["attack", "zoo:emoji-clip", str(folder_of(data, 4)), *SMALL, "--most", "4"]
    assert main([*given, "--dictionary", "zoo:joint", "--out", str(tmp_path / "out")]) == 0
    moved = json.loads((tmp_path / "out" / "attack.json").read_text("utf-8"))["tables"][1]["rows"]
    names = [name for name, _, _ in moved]
    sizes = {name: int(size) for name, size, _ in moved if size}
    assert sizes["dead"] > 256  # more than there are live ones
    assert f"{sizes['dead']} random" not in names and names[-2:] == ["dead", "residual"]


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
