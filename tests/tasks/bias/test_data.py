"""Readers, on tiny folders of the layouts in which the data sets are published."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vlm_edit import VlmEditError
from vlm_edit.tasks.bias.data import (
    read_any,
    read_celeba,
    read_fairface,
    read_utkface,
    read_waterbirds,
)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "grey").save(path)


def fairface(folder: Path) -> Path:
    rows = ["file,age,gender,race,service_test"]
    for i, (gender, race) in enumerate((("Male", "East Asian"), ("Female", "Black")), start=1):
        picture(folder / "val" / f"{i}.jpg")
        rows.append(f"val/{i}.jpg,20-29,{gender},{race},{i == 1}")
    (folder / "fairface_label_val.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return folder


def celeba(folder: Path, kind: str = "txt") -> Path:
    names, rows = ["Blond_Hair", "Male"], [("000001.jpg", -1, 1, 0), ("000002.jpg", 1, -1, 2)]
    for name, *_ in rows:
        picture(folder / "img_align_celeba" / name)
    if kind == "txt":
        lines = ["2", " ".join(names), *(f"{n}  {a:2d} {b:2d}" for n, a, b, _ in rows)]
        parts = [f"{n} {p}" for n, *_, p in rows]
    else:
        lines = [",".join(["image_id", *names]), *(f"{n},{a},{b}" for n, a, b, _ in rows)]
        parts = ["image_id,partition", *(f"{n},{p}" for n, *_, p in rows)]
    (folder / f"list_attr_celeba.{kind}").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / f"list_eval_partition.{kind}").write_text("\n".join(parts) + "\n", "utf-8")
    return folder


def waterbirds(folder: Path) -> Path:
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for i, (y, split, place) in enumerate(((0, 2, 1), (1, 2, 1), (1, 0, 0))):
        picture(folder / "001.Albatross" / f"{i}.jpg")
        rows.append(f"{i},001.Albatross/{i}.jpg,{y},{split},{place},/o/ocean/{i}.jpg")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return folder


def test_fairface_gives_age_gender_and_race(tmp_path: Path) -> None:
    pairs = read_fairface(fairface(tmp_path))
    assert pairs.columns["gender"] == ("Male", "Female")
    assert pairs.columns["race"] == ("East Asian", "Black")
    assert pairs.open(1).size == (8, 8)


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_celeba_is_read_from_either_kind_of_list(tmp_path: Path, kind: str) -> None:
    pairs = read_celeba(celeba(tmp_path, kind))
    assert pairs.columns == {"Blond_Hair": ("yes",), "Male": ("no",), "gender": ("female",)}
    assert read_celeba(tmp_path, split="all").columns["gender"] == ("male", "female")


def test_celeba_as_unpacked_in_a_folder_of_its_own_name_is_found(tmp_path: Path) -> None:
    celeba(tmp_path)
    (tmp_path / "img_align_celeba").rename(tmp_path / "inner")
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "inner").rename(tmp_path / "img_align_celeba" / "img_align_celeba")
    assert read_celeba(tmp_path).open(0).size == (8, 8)


def test_waterbirds_gives_bird_place_and_their_group(tmp_path: Path) -> None:
    pairs = read_waterbirds(waterbirds(tmp_path))
    assert pairs.columns["group"] == ("landbird on water", "waterbird on water")
    assert read_waterbirds(tmp_path, "train").columns["place"] == ("land",)


def test_utkface_is_read_from_names_and_tells_of_those_it_cannot_read(tmp_path: Path) -> None:
    for name in ("26_1_3_2017.jpg.chip.jpg", "5_0_4_2018.jpg", "39_1_20170116174525125.jpg"):
        picture(tmp_path / name)
    with pytest.warns(UserWarning, match="1 of 3 images are left out.*39_1_20170116174525125"):
        pairs = read_utkface(tmp_path)
    assert sorted(zip(*pairs.columns.values(), strict=True)) == [
        ("26", "female", "Indian"),
        ("5", "male", "Others"),
    ]


@pytest.mark.parametrize(
    ("make", "column"),
    [(fairface, "race"), (celeba, "Blond_Hair"), (waterbirds, "place")],
)
def test_a_folder_is_recognised_by_its_layout(tmp_path: Path, make, column: str) -> None:  # type: ignore[no-untyped-def]
    assert column in read_any(make(tmp_path)).columns


def test_a_folder_of_ones_own_is_read_as_pairs(tmp_path: Path) -> None:
    picture(tmp_path / "1_a_b.png")
    (tmp_path / "1_a_b.txt").write_text("a person", "utf-8")
    assert read_any(tmp_path).texts == ("a person",)
    (tmp_path / "pairs.csv").write_text("image,text,sex\n1_a_b.png,a person,f\n", "utf-8")
    assert read_any(tmp_path).columns == {"sex": ("f",)}
    with pytest.raises(VlmEditError, match="no splits"):
        read_any(tmp_path, split="val")


def test_an_image_that_is_gone_is_named_with_its_list(tmp_path: Path) -> None:
    (fairface(tmp_path) / "val" / "2.jpg").unlink()
    with pytest.raises(VlmEditError, match=r"1 of 2 images are not there, the first is .*2\.jpg"):
        read_fairface(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "fairface_label_val.csv").unlink(), "fairface_label_val.csv is missing"),
        (lambda f: (f / "fairface_label_val.csv").write_text("file,age\n"), "no column 'gender'"),
        (
            lambda f: (f / "fairface_label_val.csv").write_text(
                "file,age,gender,race\nval/1.jpg\n"
            ),
            "row 2 does not have 4 fields",
        ),
        (
            lambda f: (f / "fairface_label_val.csv").write_text("file,age,gender,race\n"),
            "a header but no rows",
        ),
        (
            lambda f: (f / "fairface_label_val.csv").write_bytes(b"file,age,gender,race\n\xff\n"),
            "not a readable UTF-8",
        ),
    ],
)
def test_a_damaged_list_is_named_with_what_is_wrong(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    damage(fairface(tmp_path))
    with pytest.raises(VlmEditError, match=words):
        read_fairface(tmp_path)


def test_what_is_wrong_in_the_others_is_named_too(tmp_path: Path) -> None:
    birds = waterbirds(tmp_path / "birds")
    with pytest.raises(VlmEditError, match="split is 'dev'"):
        read_waterbirds(birds, "dev")
    table = birds / "metadata.csv"
    table.write_text(table.read_text("utf-8").replace(",1,2,1,", ",1,2,5,"), "utf-8")
    with pytest.raises(VlmEditError, match="y and place must be 0 or 1"):
        read_waterbirds(birds)
    faces = celeba(tmp_path / "faces")
    with pytest.raises(VlmEditError, match="no image of list_attr_celeba is of split 'val'"):
        read_celeba(faces, "val")
    (faces / "list_eval_partition.txt").unlink()
    with pytest.raises(VlmEditError, match="list_eval_partition.txt is missing"):
        read_celeba(faces)
    attributes = faces / "list_attr_celeba.txt"
    attributes.write_text("1\nMale\n000001.jpg 7\n", "utf-8")
    with pytest.raises(VlmEditError, match="without 1 or -1 for 'Male'"):
        read_celeba(faces, "all")
    with pytest.raises(VlmEditError, match="no folder"):
        read_utkface(tmp_path / "nowhere")
    with pytest.raises(VlmEditError, match="holds no images"):
        read_utkface(tmp_path)
    picture(tmp_path / "portrait.jpg")
    with pytest.raises(VlmEditError, match="no image is named age_gender_race_date"):
        read_utkface(tmp_path)
