"""The picture shows each drawing where its row and strength say."""

import pytest
from PIL import Image

from vlm_edit import VlmEditError
from vlm_edit.tasks.generation import Row, grid

COLOURS = ("red", "lime", "blue")


def tile(colour):
    return Image.new("RGB", (4, 4), colour)


def test_drawings_stand_in_their_row_by_strength_behind_the_reference():
    rows = [
        Row("vision", tile("yellow"), [tile(c) for c in COLOURS]),
        Row("cross", "some words that are long", [tile(c) for c in reversed(COLOURS)]),
    ]
    page = grid(rows, [0.0, 0.5, 1.0], "a title", side=40)
    bands = [[], []]
    for x in range(page.width):
        for band, y in zip(bands, (64, 110), strict=True):
            colour = page.getpixel((x, y))
            known = {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)}
            if colour in known and band[-1:] != [colour]:
                band.append(colour)
    red, lime, blue = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    assert bands[0] == [(255, 255, 0), red, lime, blue]
    assert bands[1] == [blue, lime, red]


def test_a_row_with_another_number_of_drawings_is_refused():
    with pytest.raises(VlmEditError, match="'vision' has 1 drawings for 2 strengths"):
        grid([Row("vision", "x", [tile("red")])], [0.0, 1.0])
    with pytest.raises(VlmEditError, match="at least one row"):
        grid([], [0.0])


def test_without_references_their_column_is_left_out():
    drawings = [tile(c) for c in COLOURS]
    page = grid([Row("vision", None, drawings)], [0.0, 0.5, 1.0], side=40)
    shown = grid([Row("vision", tile("yellow"), drawings)], [0.0, 0.5, 1.0], side=40)
    assert shown.width - page.width == 46
    across = [page.getpixel((8 + 144 + 46 * i + 20, 46)) for i in range(3)]
    assert across == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.slow
def test_words_stay_in_their_tile_and_say_where_they_were_cut():
    long = "Donaudampfschifffahrtsgesellschaft " * 9
    drawings = [tile("red"), tile("red")]
    page = grid([Row("vision", long, drawings)], [0.0, 1.0], f"title {long * 9}", side=64)
    assert {page.getpixel((x, y)) for x in range(222, 286) for y in range(44, 108)} == {(255, 0, 0)}
    assert {page.getpixel((page.width - 1, y)) for y in range(page.height)} == {(255, 255, 255)}
    below = {page.getpixel((x, y)) for x in range(152, 216) for y in range(110, page.height)}
    assert below == {(255, 255, 255)}
    other = grid([Row("vision", "Donau", drawings)], [0.0, 1.0], "title", side=64)
    assert page.tobytes() != other.tobytes()
