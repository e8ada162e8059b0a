import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from vlm_edit import VlmEditError
from vlm_edit.ground.statistics import Estimate
from vlm_edit.tuning import Point, Tuning
from vlm_edit.tuning.picture import FRONT, OTHERS, START, Axis, Mark, picture

AXES = Axis("bias", "lower"), Axis("skill", "raise")
MARKS = [
    Mark((0.9, 0.9, 0.9), (0.7, 0.8, 0.9), "unedited", False, True),
    Mark((0.95, 0.95, 0.95), (0.5, 0.5, 0.5), "4 at 0.5", False, False),
    Mark((0.2, 0.3, 0.4), (0.6, 0.6, 0.6), "4 at 1", True, False),
    Mark((0.8, 0.8, 0.8), (0.75, 0.75, 0.75), "4 at 0.2", True, False),
]


def drawn(marks):
    """The colour at a place of the picture, in the axes' figures."""
    figure = picture(marks, *AXES)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255
    axes = figure.axes[0]

    def at(x, y, colour):
        across, up = axes.transData.transform((x, y))
        row, column = round(len(pixels) - 1 - up), round(across)
        near = pixels[row - 2 : row + 3, column - 2 : column + 3]
        return bool((abs(near - to_rgb(colour)) < 0.02).all(-1).any())

    return figure, at


def points() -> tuple[Point, ...]:
    return (
        Point(0.0, None, 0.9, Estimate(0.8, 0.7, 0.9, 50)),
        Point(0.5, 4, 0.95, 0.5),
        Point(1.0, 4, Estimate(0.3, 0.2, 0.4, 50), 0.6),
    )


def test_a_png_comes_out_for_a_tuning(tmp_path) -> None:
    path = tmp_path / "front.png"
    Tuning(points(), "lower").plot(path)
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.size == (1280, 960)


def test_every_point_is_in_its_place_and_colour() -> None:
    _, at = drawn(MARKS)
    assert at(0.9, 0.8, START) and at(0.3, 0.6, FRONT) and at(0.95, 0.5, OTHERS)
    assert at(0.55, 0.675, FRONT)  # the front's line, half way
    assert not any(at(0.5, 0.55, colour) for colour in (START, FRONT, OTHERS))


def test_intervals_are_as_long_as_they_are() -> None:
    _, at = drawn(MARKS)
    assert [at(x, 0.6, FRONT) for x in (0.19, 0.21, 0.39)] == [False, True, True]
    assert not at(0.41, 0.595, FRONT)
    assert [at(0.9, y, START) for y in (0.69, 0.71, 0.89)] == [False, True, True]


def test_the_names_of_the_axes_and_which_way_is_better_are_written() -> None:
    axes = picture(MARKS, *AXES).axes[0]
    assert axes.get_xlabel() == "bias (lower is better)"
    assert axes.get_ylabel() == "skill (higher is better)"


def test_points_that_are_all_alike_are_drawn_too() -> None:
    for value in (0.0, -3.0, 1e6):
        span = (value, value, value)
        _, at = drawn([Mark(span, span, "unedited", False, True)])
        assert at(value, value, START)


def test_labels_do_not_cover_each_other_or_points() -> None:
    crowd = [
        Mark((x, x, x), (1 - x, 1 - x, 1 - x), f"{x:.2f}", True, x == 0)
        for x in (i / 20 for i in range(21))
    ]
    figure = picture(crowd, *AXES)
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) > 15 and {text.get_gid() for text in axes.texts} == {"label"}
    frame = axes.get_window_extent()
    dots = axes.transData.transform([(m.x[1], m.y[1]) for m in crowd])
    for i, box in enumerate(boxes):
        assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(x, y) for x, y in dots)


def test_a_picture_that_cannot_be_written_leaves_the_former_one(tmp_path) -> None:
    with pytest.raises(VlmEditError, match="cannot write the picture to .*make its folder first"):
        Tuning(points()).plot(tmp_path / "nowhere" / "front.png")
    path = tmp_path / "front.png"
    Tuning(points()).plot(path, "bias", "skill")
    first = path.read_bytes()
    Tuning(points()).plot(path, "bias", "skill")
    assert path.read_bytes() == first and Image.open(io.BytesIO(first)).size == (1280, 960)
    Tuning(points()).plot(path, "other", "skill")
    assert path.read_bytes() != first


def test_without_matplotlib_the_mend_is_named() -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from vlm_edit.tuning import Point, Tuning\n"
        "Tuning((Point(0.0, None, 1.0, 1.0),)).plot('x.png')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "pip install 'vlm-edit[plots]'" in done.stderr
