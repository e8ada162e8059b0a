import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_edit import Pairs, VlmEditError, read_pairs

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save_image(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    Image.new("RGB", (8, 6), colour).save(path)
    return path


def csv_file(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(size: int = 8) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# CSV


def test_a_csv_gives_images_texts_and_further_columns_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, colour in (("b", RED), ("a", GREEN)):
        save_image(tmp_path / "pictures" / f"{name}.png", colour)
    rows = "id,image,text,source\n7,pictures/b.png,a red one,x\n8,pictures/a.png,a green one,y\n"
    path = csv_file(tmp_path, rows)
    pairs = read_pairs(path)
    assert len(pairs) == 2
    assert pairs.texts == ("a red one", "a green one")
    assert pairs.columns == {"id": ("7", "8"), "source": ("x", "y")}
    assert pairs.name == str(path)
    assert [pairs.open(i).getpixel((0, 0)) for i in range(2)] == [RED, GREEN]
    assert pairs.describe(0) == str(tmp_path / "pictures" / "b.png")


def test_a_csv_may_quote_texts_with_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    rows = 'image,text\na.png,"red, ""deep"" red"\nb.png,"two\nlines"\n'
    assert read_pairs(csv_file(tmp_path, rows)).texts == ('red, "deep" red', "two\nlines")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_csv_of_a_spreadsheet_program_reads_the_same(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    rows = newline.join(["image,text", "a.png,gödel 🐈", ""])
    pairs = read_pairs(csv_file(tmp_path, rows, encoding=encoding))
    assert pairs.texts == ("gödel 🐈",)
    assert pairs.images == [tmp_path / "a.png"]


def test_an_absolute_path_in_a_csv_stays_as_it_is(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image = save_image(elsewhere / "a.png")
    (tmp_path / "lists").mkdir()
    pairs = read_pairs(csv_file(tmp_path / "lists", f"image,text\n{image},a red one\n"))
    assert pairs.open(0).getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("header", "image", "text"),
    [("file_name,caption", 0, 1), ("title,path", 1, 0), ("caption,filepath", 1, 0)],
)
def test_the_usual_names_of_columns_are_known(
    tmp_path: Path, header: str, image: int, text: int
) -> None:
    pairs = read_pairs(csv_file(tmp_path, f"{header}\nfirst,second\n"))
    values = ("first", "second")
    assert pairs.images == [tmp_path / values[image]]
    assert pairs.texts == (values[text],)
    assert pairs.columns == {}


def test_of_several_columns_of_texts_the_first_known_is_taken_and_the_others_kept(
    tmp_path: Path,
) -> None:
    pairs = read_pairs(csv_file(tmp_path, "title,text,image\none,two,a.png\n"))
    assert pairs.texts == ("two",)
    assert pairs.columns == {"title": ("one",)}


def test_a_nameless_column_such_as_pandas_writes_does_no_harm(tmp_path: Path) -> None:
    pairs = read_pairs(csv_file(tmp_path, ",image,text\n0,a.png,a cat\n1,b.png,a dog\n"))
    assert pairs.texts == ("a cat", "a dog")
    assert pairs.columns == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "picture,text\na,b\n",
            "no column of images: it has picture, text; name it, .*or call one image or",
        ),
        (
            "image,words\na,b\n",
            "no column of texts: it has image, words; name it, .*or call one text or",
        ),
        ("", "no column of images: it has none"),
        ("image,text\n", "holds a header but no pairs"),
        ("image,text\na.png,one\nb.png\n", "line 3 does not have 2 fields but 1, at column 'text'"),
        (
            "image,text\na.png,one,two\n",
            "line 2 does not have 2 fields but 3, at column 'text'; quote texts with commas",
        ),
        ("image,text\n,one\n", "line 2 names no image in column 'image'"),
        ('image,text\na.png,"one\n', "not a readable UTF-8 CSV file"),
        (
            "image,text\na.png,one\nb.png,  \n",
            "1 of 2 pairs have no text.*line 3, in column 'text'",
        ),
    ],
)
def test_a_csv_that_does_not_hold_pairs_is_told_what_is_wrong(
    tmp_path: Path, rows: str, message: str
) -> None:
    path = csv_file(tmp_path, rows)
    with pytest.raises(VlmEditError, match=message) as raised:
        read_pairs(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_no_text_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(VlmEditError, match="not a readable UTF-8 file"):
        read_pairs(save_image(tmp_path / "a.png"))
    with pytest.raises(VlmEditError, match="not a readable UTF-8 file"):
        read_pairs(csv_file(tmp_path, "image,text\na,größe\n", encoding="latin-1"))


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(VlmEditError, match=r"nowhere\.csv'.*does not exist"):
        read_pairs(tmp_path / "nowhere.csv")


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    assert len(read_pairs(str(csv_file(tmp_path, "image,text\na.png,one\n")))) == 1


def test_reading_pairs_opens_no_image(tmp_path: Path) -> None:
    pairs = read_pairs(csv_file(tmp_path, "image,text\nmissing.png,one\n"))
    with pytest.raises(VlmEditError, match=r"missing\.png"):
        pairs.open(0)


# Folders


def test_a_folder_gives_images_by_name_each_with_the_text_beside_it(tmp_path: Path) -> None:
    for name, colour in (("b.PNG", RED), ("a.jpeg", BLUE), ("c.webp", GREEN)):
        save_image(tmp_path / name, colour)
        (tmp_path / name).with_suffix(".txt").write_text(f" text of {name}\n", "utf-8")
    (tmp_path / "notes.md").write_text("not an image")
    pairs = read_pairs(tmp_path)
    assert pairs.texts == ("text of a.jpeg", "text of b.PNG", "text of c.webp")
    assert [Path(str(image)).name for image in pairs.images] == ["a.jpeg", "b.PNG", "c.webp"]


@pytest.mark.parametrize("name", ["metadata.csv", "pairs.csv"])
def test_a_folder_with_a_list_is_read_by_the_list(tmp_path: Path, name: str) -> None:
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "unlisted.png")
    csv_file(tmp_path, "file_name,text\na.png,a red one\n", name)
    pairs = read_pairs(tmp_path)
    assert pairs.texts == ("a red one",)
    assert pairs.open(0).getpixel((0, 0)) == RED


def test_a_folder_of_two_lists_is_read_by_its_metadata(tmp_path: Path) -> None:
    csv_file(tmp_path, "file_name,text\na.png,one\n", "metadata.csv")
    csv_file(tmp_path, "file_name,text\na.png,two\n", "pairs.csv")
    assert read_pairs(tmp_path).texts == ("one",)


@pytest.mark.parametrize("text", [None, "", " \n", "\ufeff"])
def test_an_image_without_a_text_beside_it_is_named(tmp_path: Path, text: str | None) -> None:
    for name in ("a", "b", "c"):
        save_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("something")
    (tmp_path / "b.txt").unlink()
    if text is not None:
        (tmp_path / "b.txt").write_text(text, "utf-8")
    with pytest.raises(VlmEditError, match=r"1 of 3 pairs have no text.*number 1 .*b\.png"):
        read_pairs(tmp_path)


def test_a_text_file_with_a_byte_order_mark_reads_without_it(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red one", "utf-8-sig")
    assert read_pairs(tmp_path).texts == ("a red one",)


def test_a_text_file_of_another_encoding_is_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(VlmEditError, match=r"a\.txt is not UTF-8 text"):
        read_pairs(tmp_path)


def test_a_folder_named_like_an_image_is_not_a_pair(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red one")
    (tmp_path / "b.png").mkdir()
    (tmp_path / "b.txt").write_text("a folder")
    assert read_pairs(tmp_path).texts == ("a red one",)


def test_a_link_to_a_missing_image_is_a_pair_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "a.txt").write_text("a red one")
    pairs = read_pairs(tmp_path)
    assert len(pairs) == 1
    with pytest.raises(VlmEditError, match=r"a\.png"):
        pairs.open(0)


def test_a_folder_without_images_says_which_endings_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text alone")
    with pytest.raises(VlmEditError, match=r"holds no images \(\.png, \.jpg"):
        read_pairs(tmp_path)


# Images


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode_open_as_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (5, 7))
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    for source in (image, path):
        opened = Pairs([source], ("one",)).open(0)
        assert (opened.mode, opened.size) == ("RGB", (5, 7))


def test_transparent_images_lie_on_white_whatever_colour_is_hidden_below(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255, 128))
    palette = image.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    for kind in (image, image.convert("LA"), palette):
        kind.save(tmp_path / "a.png")
        for source in (kind, tmp_path / "a.png"):
            assert Pairs([source], ("one",)).open(0).getpixel((0, 0)) == (255, 255, 255)
    assert Pairs([image], ("one",)).open(0).getpixel((1, 0)) == (127, 127, 255)


def test_photographs_stand_as_their_camera_was_held(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "blue")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    image.save(tmp_path / "a.png", exif=exif)
    opened = Pairs([tmp_path / "a.png"], ("one",)).open(0)
    assert (opened.size, opened.getpixel((1, 0))) == ((2, 4), (255, 0, 0))


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    opened = Pairs([tmp_path / "a.png"], ("one",)).open(0)
    assert [opened.getpixel((i, 0))[0] for i in range(4)] == [0, 1, 128, 255]


def broken_files() -> dict[str, bytes]:
    png, big = encoded(noise(), "PNG"), encoded(noise(300), "PNG")
    second = [found.start() for found in re.finditer(b"IDAT", big)][1]
    return {
        "empty.png": b"",
        "text.jpg": b"this is no image",
        "cut-header.png": png[:20],
        "cut.jpg": encoded(noise(64), "JPEG")[:-300],
        "cut.png": png[: len(png) // 2],
        "broken-chunk.png": big[:second] + b"\x00" + big[second + 1 :],
        "cut.gif": encoded(noise(), "GIF")[:100],
        "cut.webp": encoded(noise(), "WEBP")[:60],
        "cut.tif": encoded(noise(), "TIFF")[:60],
    }


@pytest.mark.parametrize(("name", "data"), broken_files().items(), ids=list(broken_files()))
def test_a_broken_image_is_one_kind_of_error_that_names_it(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VlmEditError, match=re.escape(str(tmp_path / name))) as raised:
        Pairs([tmp_path / name], ("one",)).open(0)
    assert len(str(raised.value)) > len(f"{tmp_path / name}: ")


def test_a_folder_in_place_of_an_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(VlmEditError, match=r"a\.png"):
        Pairs([tmp_path / "a.png"], ("one",)).open(0)


def test_an_image_too_large_to_be_honest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(VlmEditError, match="decompression bomb"):
        Pairs([path], ("one",)).open(0)


# Pairs in memory


def test_pairs_of_unequal_numbers_are_refused() -> None:
    image = Image.new("RGB", (2, 2))
    with pytest.raises(VlmEditError, match="mine: 2 images but 1 texts"):
        Pairs([image, image], ("one",), name="mine")
    with pytest.raises(VlmEditError, match="mine: 1 images but 2 id"):
        Pairs([image], ("one",), {"id": ("1", "2")}, "mine")


@pytest.mark.parametrize("text", ["", " \t", None, float("nan")])
def test_a_pair_without_text_is_named_by_its_number(text: object) -> None:
    image = Image.new("RGB", (2, 2))
    with pytest.raises(VlmEditError, match=r"1 of 2 pairs have no text.*number 1 \(image 1\)"):
        Pairs([image, image], ("one", text))  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), 3, ("a.png", "a cat"), ""])
def test_an_image_that_is_neither_pil_nor_a_path_is_refused(image: object) -> None:
    with pytest.raises(VlmEditError, match=f"image 0 is a {type(image).__name__}: pass PIL"):
        Pairs([image], ("one",))  # type: ignore[list-item]


def test_selected_pairs_keep_image_text_and_columns_together_in_the_order_asked() -> None:
    colours = (RED, GREEN, BLUE)
    images = [Image.new("RGB", (1, 1), colour) for colour in colours]
    pairs = Pairs(images, ("red", "green", "blue"), {"id": ("0", "1", "2")}, "mine")
    some = pairs.select([2, 0, 2])
    assert some.texts == ("blue", "red", "blue")
    assert some.columns == {"id": ("2", "0", "2")}
    assert [some.open(i).getpixel((0, 0)) for i in range(3)] == [BLUE, RED, BLUE]
    assert some.name == "mine"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_batches_cover_every_pair_once_in_order(size: int) -> None:
    pairs = Pairs([Image.new("RGB", (1, 1))] * 5, ("x",) * 5)
    batches = list(pairs.batches(size))
    assert [i for batch in batches for i in batch] == list(range(5))
    assert all(len(batch) == size for batch in batches[:-1])


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_at_least_one_pair(size: int) -> None:
    pairs = Pairs([Image.new("RGB", (1, 1))], ("x",))
    with pytest.raises(VlmEditError, match=f"batch size is {size}"):
        list(pairs.batches(size))


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.jsonl"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_pairs_are_the_same_however_their_fields_are_separated(tmp_path, name, delimiter):
    texts = ["one, two; three", "a\tb | c", 'said "no"\u2028', "line\nbreak"]
    rows = [{"image": f"{i}.png", "caption": t, "n": str(i)} for i, t in enumerate(texts)]
    with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
        if name.endswith("jsonl"):
            file.write("\n".join(json.dumps(row) for row in rows))
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    pairs = read_pairs(tmp_path / name)
    assert pairs.texts == tuple(texts) and pairs.columns == {"n": ("0", "1", "2", "3")}
    assert pairs.images == [tmp_path / f"{i}.png" for i in range(4)]
    if not name.endswith("tsv"):
        assert read_pairs(tmp_path) == pairs


def test_columns_are_named_where_they_are_called_otherwise(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("image;photo;words;text\n0.png;1.png;wanted;other\n", encoding="utf-8")
    assert read_pairs(file).texts == ("other",)
    for pairs in (read_pairs(file, "photo", "words"), Pairs.of(file, "photo", "words")):
        assert pairs.images == [tmp_path / "1.png"] and pairs.texts == ("wanted",)
        assert set(pairs.columns) == {"image", "text"}
    with pytest.raises(VlmEditError, match=r"no column 'foto': it has image, photo, words, text"):
        read_pairs(file, "foto")
    (tmp_path / "bad.csv").write_text("foto;wort\n1;2\n", encoding="utf-8")
    with pytest.raises(VlmEditError, match="no column of images: it has foto, wort; name it"):
        read_pairs(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a.png", "text": "one"}\n{"image": }', r"line 2, column 11 is no JSON"),
        ('{"image": "a.png", "text": "one"}\n\n[1]', r"line 3 is no JSON object"),
        ('{"image": "a.png", "text": "one"}\n{"image": "b.png"}', r"line 2, in column 'text'"),
        ('{"image": "a.png", "text": "one"}\n{"text": "b"}', r"line 2 names no image in column"),
        ("", "no column of images: it has none"),
    ],
)
def test_a_line_of_json_that_is_no_pair_is_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(VlmEditError, match=message) as caught:
        read_pairs(tmp_path / "x.jsonl")
    assert "x.jsonl" in str(caught.value)


def test_a_line_of_csv_is_named_by_where_it_begins(tmp_path):
    file = tmp_path / "x.csv"
    file.write_bytes(b'image,text\r\na.png,"one\r\ntwo"\r\n\r\nb.png\r\n')
    with pytest.raises(VlmEditError, match="x.csv: line 5 does not have 2 fields but 1"):
        read_pairs(file)
    file.write_bytes("image,text\na.png,one\nb.png,zwölf\n".encode("latin-1"))
    with pytest.raises(VlmEditError, match="not a readable UTF-8 file, at line 3"):
        read_pairs(file)
