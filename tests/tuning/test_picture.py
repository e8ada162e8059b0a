import io

import pytest
from PIL import Image

from vlm_edit import VlmEditError
from vlm_edit.ground.statistics import Estimate
from vlm_edit.tuning import Point, Tuning, picture
from vlm_edit.tuning.picture import Axis, Mark, scale

BLUE, GREY, ORANGE = (31, 98, 189), (150, 156, 166), (196, 78, 30)


def points() -> tuple[Point, ...]:
    return (
        Point(0.0, None, 0.9, Estimate(0.8, 0.7, 0.9, 50)),
        Point(0.5, 4, 0.95, 0.5),
        Point(1.0, 4, Estimate(0.3, 0.2, 0.4, 50), 0.6),
    )


def places(image: Image.Image) -> tuple:
    """Where the picture puts its figures: the same spans as its points have."""
    across, _ = scale([(0.2, 0.3, 0.95)], 150, 1280 - 50)
    up, _ = scale([(0.5, 0.6, 0.9)], 960 - 120, 70)
    return lambda x, y: image.getpixel((round(across(x)), round(up(y))))


def test_a_png_comes_out_with_every_point_in_its_place_and_colour(tmp_path) -> None:
    path = tmp_path / "front.png"
    Tuning(points(), "lower").plot(path)
    with Image.open(path) as opened:
        assert opened.format == "PNG" and opened.size == (1280, 960)
        at = places(opened.convert("RGB"))
    assert at(0.9, 0.8) == ORANGE and at(0.3, 0.6) == BLUE and at(0.95, 0.5) == GREY
    assert at(0.6, 0.7) == BLUE  # the front's line, half way
    assert at(0.5, 0.55) in {(255, 255, 255), (226, 229, 234)}


def test_intervals_are_as_long_as_they_are(tmp_path) -> None:
    Tuning(points(), "lower").plot(tmp_path / "front.png")
    with Image.open(tmp_path / "front.png") as opened:
        at = places(opened.convert("RGB"))
    light_blue, light_orange = (168, 196, 232), (236, 190, 168)
    for x, seen in ((0.19, False), (0.21, True), (0.39, True), (0.41, False)):
        assert (light_blue in {at(x, 0.6), at(x, 0.6005), at(x, 0.5995)}) == seen
    for y, seen in ((0.69, False), (0.71, True), (0.89, True)):
        assert (light_orange in {at(0.9, y), at(0.901, y), at(0.899, y)}) == seen


def test_the_names_of_the_axes_and_which_way_is_better_are_written() -> None:
    mark = [Mark((0, 0, 0), (0, 0, 0), "a", True, False)]
    axes = Axis("skill", "raise"), Axis("bias", "lower")
    base = picture.picture(mark, *axes).tobytes()
    assert picture.picture(mark, *axes).tobytes() == base
    for other in ((axes[0], Axis("harm", "lower")), (Axis("skill", "lower"), axes[1])):
        assert picture.picture(mark, *other).tobytes() != base
    assert picture._named(axes[0]) == "skill (higher is better)"
    assert picture._named(axes[1]) == "bias (lower is better)"


def test_points_that_are_all_alike_are_drawn_too(tmp_path) -> None:
    for figure in (0.0, -3.0, 1e6):
        Tuning((Point(0.0, None, figure, figure),)).plot(tmp_path / "one.png")
        with Image.open(tmp_path / "one.png") as opened:
            middle = ((150 + 1230) / 2, (70 + 840) / 2)
            assert opened.convert("RGB").getpixel(tuple(map(round, middle))) == ORANGE


def test_labels_do_not_cover_each_other_or_points(monkeypatch) -> None:
    written = []
    meant = picture._label

    def label(pen, text, x, y, taken):
        before = list(taken)
        meant(pen, text, x, y, taken)
        written.extend((box, before) for box in taken[len(before) :])

    monkeypatch.setattr(picture, "_label", label)
    crowd = [
        Mark((x, x, x), (1 - x, 1 - x, 1 - x), f"{x:.2f}", True, x == 0)
        for x in (i / 20 for i in range(21))
    ]
    picture.picture(crowd, Axis("a", "raise"), Axis("b", "raise"))
    assert len(written) > 15
    for box, before in written:
        assert box[0] > 150 and box[2] < 1230 and box[1] > 70 and box[3] < 840
        for other in before:
            apart = box[2] <= other[0] or other[2] <= box[0]
            assert apart or box[3] <= other[1] or other[3] <= box[1]


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-0.02, 0.01), (0.5, 0.5), (-7e5, 3e6)])
def test_ticks_are_round_within_the_axis_and_evenly_apart(low, high) -> None:
    place, ticks = scale([(low, low, low), (high, high, high)], 100, 900)
    assert 3 <= len(ticks) <= 8
    assert all(100 <= place(tick) <= 900 for tick in ticks)
    assert 100 < place(low) <= place(high) < 900
    step = ticks[1] - ticks[0]
    digit = f"{step:e}"[0]
    assert digit in "125" and float(f"{step:.3e}") == pytest.approx(float(f"{step:.0e}"))
    for tick in ticks:
        assert tick / step == pytest.approx(round(tick / step), abs=1e-6)
        assert float(picture._figure(tick, ticks)) == pytest.approx(tick, abs=step / 100)


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
