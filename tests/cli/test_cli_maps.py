"""``vlm-edit measure`` keeps where features fire, beside the run and of it alone."""

import csv
import re
from pathlib import Path

import pytest

from vlm_edit import zoo
from vlm_edit.cli import kept, main
from vlm_edit.measuring import load_maps, load_measurement


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, ours = tmp_path_factory.mktemp("pairs"), zoo.load_pairs()
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for i in range(24):
            ours.open(i).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", ours.texts[i]])
    return folder / "pairs.csv"


@pytest.fixture
def words(pairs: Path, tmp_path: Path) -> list[str]:
    of = ["--dictionary", "zoo:language.2", "--site", "language.2"]
    return ["measure", "zoo:emoji-llava", str(pairs), *of, "--out", str(tmp_path / "run")]


def test_maps_are_kept_with_the_run_and_made_once(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words) == 0
    assert f"maps:   {run / 'maps.safetensors'}" in capsys.readouterr().out
    measured = load_measurement(run)
    maps = kept.maps(run, measured.checksum())
    assert maps is not None and len(maps) > 0 and maps.boxes
    stamp = (run / "maps.safetensors").stat().st_mtime_ns
    assert main(words) == 0
    assert "maps:" not in capsys.readouterr().out
    assert (run / "maps.safetensors").stat().st_mtime_ns == stamp
    # What a killed process did not come to is done by the same command.
    (run / "maps.safetensors").unlink()
    assert main(words) == 0 and kept.maps(run, measured.checksum()) is not None
    (run / "maps.safetensors").write_bytes(b"half")
    assert main(words) == 0 and kept.maps(run, measured.checksum()) is not None


def test_maps_of_another_run_are_not_shown_and_go_with_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words) == 0
    assert kept.maps(run, "another") is None
    assert kept.others(run, "another") == [run / "maps.safetensors"]
    assert main([*words, "--zeros", "half", "--maps", "0", "--overwrite"]) == 0
    assert not (run / "maps.safetensors").exists()
    capsys.readouterr()


def test_parts_are_mapped_by_the_one_that_merges(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*words, "--part", "1/2"]) == 0
    assert not (run / "maps.safetensors").exists()
    assert main([*words, "--part", "2/2"]) == 0
    merged = load_maps(run / "maps.safetensors")
    alone = words[: words.index("--out")]
    assert main([*alone, "--out", str(tmp_path / "alone")]) == 0
    whole = load_maps(tmp_path / "alone" / "maps.safetensors")
    assert merged is not None and whole is not None
    assert merged.features.tolist() == whole.features.tolist()


def test_where_one_vector_stands_for_a_picture_nothing_is_said_of_maps(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["measure", "zoo:emoji-clip", str(pairs), "--dictionary", "zoo:joint", *out]) == 0
    printed = capsys.readouterr()
    assert "maps" not in printed.out + printed.err
    assert not (tmp_path / "run" / "maps.safetensors").exists()


def test_the_verb_writes_a_page_of_a_tower(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    of = ["--dictionary", "zoo:vision.2", "--site", "vision.2", "--out", str(out)]
    typed = ["maps", "zoo:emoji-clip", str(pairs), *of, "--per", "2", "--quiet"]
    assert main([*typed, "--shown", "5"]) == 0
    maps = load_maps(out / "maps.safetensors")
    assert maps is not None
    page = (out / "index.html").read_text("utf-8")
    shown = [int(n) for n in re.findall(r"<b>feature (\d+)</b>", page)]
    assert shown == maps.strongest()[:5]
    assert "<title>Where features of zoo:vision.2 fire at vision.2 of CLIPModel</title>" in page
    assert f"5 features of {len(maps.strongest()):,}, the strongest first" in page
    assert main(typed) == 2
    assert "is there already, and nothing has changed" in capsys.readouterr().err
    assert main([*typed, "--overwrite", "--features", "683,x"]) == 2
    assert "--features takes numbers of features, such as 3,17" in capsys.readouterr().err
    assert main([*typed, "--overwrite", "--features", "683"]) == 0
    page = (out / "index.html").read_text("utf-8")
    assert re.findall(r"<b>feature (\d+)</b>", page) == ["683"]
