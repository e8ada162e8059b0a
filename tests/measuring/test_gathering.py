"""Pairs of lists, tables and datasets: the same as of images and texts given one by one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from vlm_edit import Host, Pairs, VlmEditError, measure, zoo
from vlm_edit.ground.errors import BadArgument, UnknownName
from vlm_edit.measuring import collect

TEXTS = ("a red square", "a green square", "a blue square")
COLOURS = ("red", "green", "blue")


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for colour in COLOURS:
        picture(colour).save(tmp_path / f"{colour}.png")
    return [tmp_path / f"{colour}.png" for colour in COLOURS]


def seen(pairs: Pairs) -> list[tuple[tuple[int, ...], str]]:
    """The first pixel of every image, beside its text."""
    return [(pairs.open(i).getpixel((0, 0)), text) for i, text in enumerate(pairs.texts)]


RGB = [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
EXPECTED = list(zip(RGB, TEXTS, strict=True))

Maker = Callable[[list[Path]], Any]
KINDS: dict[str, Maker] = {
    "tuples of images": lambda _: [(picture(c), t) for c, t in zip(COLOURS, TEXTS, strict=True)],
    "tuples of paths": lambda files: list(zip(files, TEXTS, strict=True)),
    "tuples of names": lambda files: [(str(f), t) for f, t in zip(files, TEXTS, strict=True)],
    "lists": lambda files: [[str(f), t] for f, t in zip(files, TEXTS, strict=True)],
    "an iterator": lambda files: zip(files, TEXTS, strict=True),
    "mappings": lambda fs: [{"image": f, "text": t} for f, t in zip(fs, TEXTS, strict=True)],
    "a table": lambda files: {"file_name": list(map(str, files)), "caption": list(TEXTS)},
    "a DataFrame": lambda files: pandas.DataFrame({"path": map(str, files), "caption": TEXTS}),
    "a DataFrame of images": lambda _: pandas.DataFrame(
        {"image": [picture(c) for c in COLOURS], "text": TEXTS}, index=[7, 3, 5]
    ),
    "a DataFrame of bytes": lambda files: pandas.DataFrame(
        {"image": [{"bytes": f.read_bytes(), "path": f.name} for f in files], "text": TEXTS}
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_pairs(kind: str, files: list[Path]) -> None:
    pairs = Pairs.of(KINDS[kind](files))
    assert seen(pairs) == EXPECTED
    assert seen(pairs.select([2, 0])) == [EXPECTED[2], EXPECTED[0]]
    assert Pairs.of(pairs) is pairs
    assert pairs.columns == {}


def test_pairs_take_names_of_files_and_lists_of_texts(files: list[Path]) -> None:
    pairs = Pairs(list(map(str, files)), list(TEXTS))  # type: ignore[arg-type]
    assert seen(pairs) == EXPECTED
    assert pairs.images == files
    assert pairs.texts == TEXTS


def test_a_file_is_read_as_read_pairs_does(files: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    rows = [f"{f.name},{t}" for f, t in zip(files, TEXTS, strict=True)]
    table.write_text("\n".join(["image,text", *rows]))
    assert seen(Pairs.of(table)) == seen(Pairs.of(str(table))) == EXPECTED


def test_columns_are_named_or_go_by_usual_names_and_others_are_kept(files: list[Path]) -> None:
    frame = pandas.DataFrame(
        {"picture": map(str, files), "says": TEXTS, "n": [1, 2, 3], "score": [0.5, None, 1.0],
         "box": [[1, 2]] * 3}
    )  # fmt: skip
    pairs = Pairs.of(frame, image="picture", text="says")
    assert seen(pairs) == EXPECTED
    assert pairs.columns == {"n": ("1", "2", "3"), "score": ("0.5", "", "1.0")}
    with pytest.raises(UnknownName, match="no column of images: it has picture, says, n, score"):
        Pairs.of(frame)
    with pytest.raises(UnknownName, match=r"no column of texts.*Pairs.of\(..., text='...'\)"):
        Pairs.of(frame, image="picture")
    with pytest.raises(UnknownName, match="the DataFrame has no column 'pictures': it has picture"):
        Pairs.of(frame, image="pictures", text="says")


MISTAKES: list[tuple[Any, str]] = [
    (5, r"pairs is 5 \(int\); give Pairs, a list of"),
    (None, "pairs is None"),
    (b"pairs.csv", "pairs is b'pairs.csv'"),
    ([("a.png", "one"), "b.png"], "number 1 is str: give .image, text. for each"),
    ([("a.png", "one", "more")], "number 0 is 3 things: give .image, text."),
    ([picture("red")], "number 0 is Image: give .image, text. for each; of two lists, Pairs"),
    ([("a cat", picture("red"))], "number 0 is .text, image.: give .image, text."),
    ([(np.zeros((2, 2)), "one")], "image 0 is a ndarray: pass PIL .* Image.fromarray makes one"),
    ([(torch.zeros(3, 2, 2), "one")], "image 0 is a Tensor: pass PIL images or paths"),
    ([(None, "one")], "image 0 is missing"),
    ([("a.png", "one"), ("b.png", None)], "1 of 2 pairs have no text, the first is number 1"),
    ([("a.png", ["one", "two"])], "number 0 has 2 texts, and a pair has one: take one of each"),
    ({"image": ["a.png"], "text": [["one", "two"]]}, "number 0 has 2 texts in 'text'"),
    (pandas.DataFrame({"image": ["a.png", None], "text": ["a", "b"]}), "image 1 is"),
    (pandas.DataFrame({"image": ["a.png"], "text": [float("nan")]}), "1 of 1 pairs have no text"),
]


@pytest.mark.parametrize(("source", "message"), MISTAKES)
def test_a_mistake_is_named_with_what_to_give(source: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        Pairs.of(source)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a.png", ("a cat",)), "images is a str: give a list"),
        ((["a.png"], "a cat"), "texts is a str: give a list"),
        (([("a.png", "a cat")],), r"image 0 is a tuple: .*Pairs.of"),
        ((["a.png"],), "1 images but 0 texts"),
    ],
)
def test_pairs_made_by_hand_say_what_they_are_of(given: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        Pairs(*given)


def test_names_of_columns_go_with_tables_alone(files: list[Path]) -> None:
    with pytest.raises(BadArgument, match="has no columns"):
        Pairs.of([(files[0], "one")], image="image")
    with pytest.raises(BadArgument, match="this is none"):
        Pairs.of(Pairs.of([(files[0], "one")]), text="text")


def test_bytes_of_no_image_are_told_when_they_are_opened() -> None:
    cell = {"bytes": b"%!PS-Adobe", "path": "evil.eps"}
    pairs = Pairs.of({"image": [cell, {"bytes": b"", "path": None}], "text": ["a", "b"]})
    assert [reason.split(":")[0] for _, reason in pairs.readable()[1]] == ["evil.eps", "image 1"]


def test_measuring_takes_a_list_in_the_place_of_pairs() -> None:
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    pairs = zoo.load_pairs().select(range(12))
    listed = list(zip(pairs.images, pairs.texts, strict=True))
    one = measure(host, pairs, dictionary, progress=False)
    other = measure(host, listed, dictionary, progress=False)
    assert torch.equal(one.dominance.ratios, other.dominance.ratios)
    streams = collect(host, listed, progress=False)
    assert streams["image"].shape == (12, 192)
    with pytest.raises(VlmEditError, match=r"give Pairs.*a processor goes into Host.of"):
        measure(host, host.processor, dictionary)


# Datasets of Hugging Face, by the library itself.


@pytest.fixture
def dataset(files: list[Path]) -> Any:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    made = datasets.Dataset.from_dict(
        {"image": list(map(str, files)), "caption": list(TEXTS), "label": [0, 1, 0], "n": [1, 2, 3]}
    )
    made = made.cast_column("label", datasets.ClassLabel(names=["warm", "cold"]))
    return made.cast_column("image", datasets.Image())


def encoded(colour: str) -> bytes:
    buffer = io.BytesIO()
    picture(colour).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_a_dataset_gives_the_same_pairs_in_any_format(dataset: Any, form: str | None) -> None:
    pairs = Pairs.of(dataset.with_format(form))
    assert seen(pairs) == EXPECTED
    assert seen(pairs.select([2, 0])) == [EXPECTED[2], EXPECTED[0]]
    assert pairs.columns == {"label": ("warm", "cold", "warm"), "n": ("1", "2", "3")}
    assert "3 pairs from the dataset" in repr(pairs)


def test_a_dataset_that_holds_bytes_under_another_name_is_read_when_it_is_opened() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = {"img": [{"bytes": encoded(c), "path": f"{c}.png"} for c in COLOURS], "title": TEXTS}
    features = datasets.Features({"img": datasets.Image(), "title": datasets.Value("string")})
    made = datasets.Dataset.from_dict(rows, features=features)
    assert isinstance(made[0]["img"], Image.Image)
    pairs = Pairs.of(made)  # its only column of images
    assert seen(pairs) == EXPECTED
    assert pairs.describe(1) == "green.png"
    assert not isinstance(pairs.images[0], Image.Image)  # not decoded


def test_a_dataset_of_paths_alone_is_a_table_of_paths(files: list[Path]) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    made = datasets.Dataset.from_dict({"path": list(map(str, files)), "text": list(TEXTS)})
    assert seen(Pairs.of(made)) == EXPECTED


def test_mistakes_with_datasets_are_named(dataset: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    with pytest.raises(BadArgument, match=r"the splits train, test: pass one, such as dataset\["):
        Pairs.of(datasets.DatasetDict({"train": dataset, "test": dataset}))
    with pytest.raises(BadArgument, match=r"is a stream, which has no length"):
        Pairs.of(dataset.to_iterable_dataset())
    with pytest.raises(UnknownName, match="no column 'words': it has image, caption, label, n"):
        Pairs.of(dataset, text="words")
    several = datasets.Dataset.from_dict({"image": ["a.png"], "caption": [["one", "two"]]})
    with pytest.raises(BadArgument, match="number 0 has 2 texts in 'caption'"):
        Pairs.of(several)


def test_a_dataset_is_measured_as_its_files_and_a_checkpoint_goes_on(
    tmp_path: Path,
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
    pairs = zoo.load_pairs().select(range(10))
    rows = {"image": [pairs.open(i) for i in range(10)], "text": list(pairs.texts)}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict(rows, features=features)
    one = measure(host, pairs, dictionary, progress=False)
    options: dict[str, Any] = {"checkpoint": tmp_path / "state.safetensors", "progress": False}
    other = measure(host, made, dictionary, **options)
    assert torch.equal(one.dominance.ratios, other.dominance.ratios)
    again = measure(host, made, dictionary, **options)
    assert again.checksum() == other.checksum()
    with pytest.raises(VlmEditError, match="another pairs"):
        measure(host, made.select(range(9, -1, -1)), dictionary, **options)
