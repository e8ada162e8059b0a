"""Which part of a picture each image token stands for: by the formulas of each family."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from any_hosts import build
from PIL import Image
from placed_hosts import hosted, of_any_type
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3ImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.vision_utils import get_vision_window_index

from vlm_edit import Dictionary, Host, Pairs, record, zoo
from vlm_edit.ground.errors import BadArgument, CannotKnow, UnknownName
from vlm_edit.measuring import Places, PlacesFinder, Reader
from vlm_edit.measuring.firing.shades import Canvas

TILES = [[16, 16], [16, 32], [32, 16], [32, 32]]
QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NONE = [math.nan] * 4
Box = list[float]


def grid(
    columns: int, rows: int, within: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> list[Box]:
    """The cells of a part of the picture, row by row."""
    left, top, right, bottom = within
    wide, high = (right - left) / columns, (bottom - top) / rows
    return [
        [left + i * wide, top + j * high, left + (i + 1) * wide, top + (j + 1) * high]
        for j in range(rows)
        for i in range(columns)
    ]


def found(host: Host, site: str, size: tuple[int, int]) -> Tensor:
    places = PlacesFinder(host, site).of(size)
    assert places.boxes is not None, places.why
    assert places.boxes.dtype == torch.float32
    return places.boxes


def expect_near(boxes: Tensor, expected: list[Box], within: float = 0.006) -> None:
    torch.testing.assert_close(boxes, torch.tensor(expected), rtol=0, atol=within, equal_nan=True)


@pytest.fixture(scope="module")
def clip() -> Host:
    return Host.load("zoo:emoji-clip", device="cpu")


@pytest.mark.parametrize("site", ["vision.0", "vision.3", "vision.1.mlp", "vision.2.head.1"])
@pytest.mark.parametrize("size", [(48, 48), (200, 77), (1000, 1400)])
def test_a_class_token_has_no_place_and_patches_lie_in_rows(
    clip: Host, site: str, size: tuple[int, int]
) -> None:
    expect_near(found(clip, site, size), [NONE, *grid(6, 6)], within=0.013)


@pytest.mark.parametrize("site", ["vision.1", "projector", "language.0", "language.3"])
def test_a_real_llava_sees_patches_where_its_tower_does(site: str) -> None:
    host = Host.load("zoo:emoji-llava", device="cpu")
    expect_near(found(host, site, (90, 60)), [NONE, *grid(6, 6)])


def tower(side: int, patch: int, dtype: torch.dtype = torch.float32) -> Host:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=side, patch_size=patch)
    torch.manual_seed(0)
    maker = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)

    def prompt(maker: Any, images: Any, _: Any) -> dict[str, Any]:
        return dict(maker(list(images), return_tensors="pt"))

    return Host.of(CLIPVisionModel(config).eval().to(dtype), maker, prompt=prompt)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "patch"), [(336, 14), (224, 32)])
def test_a_tower_of_usual_size_sees_no_more_than_the_crop(
    side: int, patch: int, dtype: torch.dtype
) -> None:
    width, height = size = (640, 480)
    margin = (1 - height / width) / 2
    cells = grid(side // patch, side // patch, (margin, 0, 1 - margin, 1))
    expect_near(found(tower(side, patch, dtype), "vision.1", size), [NONE, *cells])


def test_neighbours_meet(clip: Host) -> None:
    for size in ((48, 48), (101, 67)):
        boxes = found(clip, "vision.0", size)[1:].view(6, 6, 4)
        assert torch.equal(boxes[:, 1:, 0], boxes[:, :-1, 2])
        assert torch.equal(boxes[1:, :, 1], boxes[:-1, :, 3])


def test_pixels_that_no_patch_takes_are_of_no_token() -> None:
    boxes = found(tower(50, 8), "vision.1", (50, 50))
    expect_near(boxes, [NONE, *grid(6, 6, (0, 0, 0.96, 0.96))])


def test_a_host_that_norms_its_patches_tells_them_apart() -> None:
    host = of_any_type(build("gemma4_unified"))
    expect_near(found(host, "language.0", (64, 48)), grid(2, 2))


def test_a_picture_of_few_pixels_is_refused_where_it_has_fewer_than_tokens(clip: Host) -> None:
    finder = PlacesFinder(clip, "vision.1")
    why = finder.of((2, 200)).why
    assert why.startswith("a picture of 2 pixels a side is too small for ")
    assert finder.of((1, 1)).boxes is None
    expect_near(found(clip, "vision.1", (12, 9)), [NONE, *grid(6, 6)])


def test_llava_sees_the_crop_of_a_picture_that_is_no_square() -> None:
    maker = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    boxes = found(hosted("llava", maker, 16), "language.2", (64, 40))
    # 64 x 40 becomes 25 x 16, of which columns 4 to 20 are left
    expect_near(boxes, grid(4, 4, (4 / 25, 0, 20 / 25, 1)))


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("llava_next", LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size=16,
                                                  image_grid_pinpoints=TILES)),
        ("llava_onevision", LlavaOnevisionImageProcessorPil(size={"height": 16, "width": 16},
                                                            image_grid_pinpoints=TILES)),
    ],
)  # fmt: skip
def test_tiles_lie_behind_the_whole_without_padding_each_row_with_its_newline(
    name: str, maker: Any
) -> None:
    def prepare(config: Any) -> None:
        config.image_grid_pinpoints = TILES

    # 60 x 40 becomes 32 x 22 in 32 x 32, 5 rows of padding above; of 4 x 4 patches of 8 rows the
    # two in the middle are kept
    lines = [3 / 22, 11 / 22, 19 / 22]
    rows = [
        grid(4, 1, (0, above, 1, below)) for above, below in zip(lines, lines[1:], strict=False)
    ]
    expected = [*grid(2, 2), *rows[0], NONE, *rows[1], NONE]
    boxes = found(hosted(name, maker, len(expected), prepare), "language.2", (60, 40))
    expect_near(boxes, expected, within=0.025)


def qwen(name: str) -> Host:
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 1}
    maker = Qwen2VLImageProcessorPil(**sizes, min_pixels=64, max_pixels=4096)
    return hosted(name, maker, 5 * 3)


@pytest.mark.parametrize("site", ["projector", "language.0", "language.2"])
@pytest.mark.parametrize("name", QWEN)
def test_packed_patches_are_merged_two_by_two(name: str, site: str) -> None:
    expect_near(found(qwen(name), site, (40, 24)), grid(5, 3))


def test_early_layers_that_are_added_lie_where_the_late_ones_do() -> None:
    expect_near(found(qwen("qwen3_vl"), "deepstack.1", (40, 24)), grid(5, 3))


BLOCKS = torch.tensor(grid(10, 6)).view(3, 2, 5, 2, 4).transpose(1, 2).reshape(15, 4, 4)


@pytest.mark.parametrize("name", QWEN)
def test_patches_stand_block_by_block_in_the_tower(name: str) -> None:
    expect_near(found(qwen(name), "vision.1", (40, 24)), BLOCKS.flatten(0, 1).tolist())


def test_patches_that_are_sorted_by_window_stand_so() -> None:
    host = qwen("qwen2_5_vl")
    host.root.model.visual.window_size = 16
    sizes = {"spatial_merge_size": 2, "window_size": 16, "patch_size": 4}
    order, _ = get_vision_window_index(torch.tensor([[1, 6, 10]]), **sizes)
    assert order.tolist() != sorted(order.tolist())
    expect_near(found(host, "vision.1", (40, 24)), BLOCKS[order].flatten(0, 1).tolist())
    expect_near(found(host, "language.0", (40, 24)), grid(5, 3))


def test_gemma_pools_patches_and_crops_follow_the_whole() -> None:
    maker = Gemma3ImageProcessorPil(
        size={"height": 16, "width": 16},
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=16,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    thirds = [cell for i in range(3) for cell in grid(2, 2, (i / 3, 0, (i + 1) / 3, 1))]
    boxes = found(hosted("gemma3", maker, 16), "language.2", (96, 32))
    expect_near(boxes, [*grid(2, 2), *thirds], within=0.035)


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("idefics3", Idefics3ImageProcessorPil(size={"longest_edge": 32},
                                               max_image_size={"longest_edge": 16})),
        ("smolvlm", Idefics3ImageProcessorPil(size={"longest_edge": 32},
                                              max_image_size={"longest_edge": 16})),
        ("internvl", GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, min_patches=1,
                                              crop_to_patches=True, max_patches=4)),
    ],
)  # fmt: skip
def test_shuffled_tokens_of_tiles_come_before_those_of_the_whole(name: str, maker: Any) -> None:
    halves = [*grid(2, 2, (0, 0, 0.5, 1)), *grid(2, 2, (0.5, 0, 1, 1))]
    boxes = found(hosted(name, maker, 12), "language.2", (64, 32))
    expect_near(boxes, [*halves, *grid(2, 2)], within=0.025)


def test_mistral_sees_rows_of_a_picture_of_any_shape() -> None:
    maker = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8)
    host = hosted("mistral3", maker, 8)
    expect_near(found(host, "vision.1", (64, 32)), grid(8, 4))
    expect_near(found(host, "language.2", (64, 32)), grid(4, 2))


@pytest.mark.parametrize(("name", "site"), [("paligemma", "language.1"), ("siglip", "vision.1")])
def test_a_picture_that_is_squeezed_is_seen_whole(name: str, site: str) -> None:
    maker = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    expect_near(found(hosted(name, maker, 16), site, (70, 20)), grid(4, 4))


def test_patches_that_overlap_meet_in_the_middle() -> None:
    boxes = found(of_any_type(build("florence2")), "encoder.0", (64, 48))
    # two convolutions of 3 pixels, every second kept: of 16 pixels those from 4 i - 3 to 4 i + 3
    ends = [(max(0, 4 * i - 3) / 16, min(16, 4 * i + 4) / 16) for i in range(4)]
    middles = [(a[1] + b[0]) / 2 for a, b in zip(ends, ends[1:], strict=False)]
    lines = [0.0, *middles, 1.0]
    cells = [[lines[i], lines[j], lines[i + 1], lines[j + 1]] for j in range(4) for i in range(4)]
    expect_near(boxes, [[0.0, 0.0, 1.0, 1.0], *cells])  # behind the mean of all


@pytest.mark.parametrize(
    ("name", "site", "why"),
    [
        ("blip-2", "language.0", "no token shows anything of the picture"),
        ("blip-2", "qformer.1", "no token shows anything of the picture"),
        ("idefics2", "language.0", "each of its tokens looks at the whole picture"),
        ("kosmos-2", "projector", "each of its tokens looks at the whole picture"),
        ("got_ocr2", "language.0", "what one place of the picture shows reaches 3 of its tokens"),
        ("chameleon", "language.0", "its tokens are chosen from a codebook"),
        ("mllama", "language.0", "no image tokens pass at site 'language.0'"),
        ("clip", "joint", "one vector stands for the whole picture"),
        ("mistral3", "projector", "4 rows pass for 1 picture, and nobody can tell whose"),
        ("diffusion_gemma", "encoder.0", "the host fails while its layers are bypassed"),
    ],
)
def test_where_nobody_can_tell_it_says_why(name: str, site: str, why: str) -> None:
    places = PlacesFinder(of_any_type(build(name)), site).of((64, 48))
    assert places.boxes is None
    assert places.why.startswith(why)


def painted(size: tuple[int, int], box: Tensor, color: int) -> Image.Image:
    """Grey with the middle of a box in another grey."""
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    left, top, right, bottom = (float(v) for v in box)
    x, y = (right - left) / 4, (bottom - top) / 4
    rows = slice(round((top + y) * size[1]), round((bottom - y) * size[1]))
    columns = slice(round((left + x) * size[0]), round((right - x) * size[0]))
    pixels[rows, columns] = color
    return Image.fromarray(pixels)


def changed_most(host: Host, size: tuple[int, int], site: str, number: int) -> int:
    """Which token a layer that is not bypassed gives another value, once its box is painted."""
    box = found(host, site, size)[number]
    states = []
    for color in (128, 255):
        inputs = host.inputs([painted(size, box, color)], [""])
        with record(host, site) as recording, torch.no_grad():
            host(**inputs.values)
        hidden = recording.captures[0].hidden
        states.append(hidden.reshape(-1, hidden.shape[-1]))
    return int((states[0] - states[1]).norm(dim=-1).argmax())


@pytest.mark.parametrize("number", [1, 9, 22, 36])
def test_what_is_painted_into_a_box_changes_its_token_most(clip: Host, number: int) -> None:
    assert changed_most(clip, (120, 90), "vision.0", number) == number


@pytest.mark.parametrize("number", [0, 7, 33, 59])
@pytest.mark.parametrize("name", QWEN)
def test_what_is_painted_into_a_box_changes_its_packed_patch_most(name: str, number: int) -> None:
    host = qwen(name)
    if name == "qwen2_5_vl":
        host.root.model.visual.window_size = 16
    assert changed_most(host, (40, 24), "vision.0", number) == number


def keys(module: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What lies on each module of a host."""
    return {
        name: (tuple(m._forward_hooks), tuple(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in module.named_modules()
    }


@pytest.mark.parametrize("fails", [False, True])
def test_a_host_is_itself_afterwards_also_where_it_failed(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = qwen("qwen2_vl")
    inputs = host.inputs([Image.new("RGB", (40, 24), "red")], [""]).values
    with torch.no_grad():
        before = host(**inputs).logits
    weights = copy.deepcopy(host.root.state_dict())
    lies = keys(host.root)
    with monkeypatch.context() as patch:
        if fails:
            merger = type(host.root.model.visual.merger)
            patch.setattr(merger, "forward", lambda *_: 1 / 0)
        places = PlacesFinder(host, "language.1").of((40, 24))
    assert (places.boxes is None) == fails
    assert ("ZeroDivisionError" in places.why) == fails
    assert keys(host.root) == lies
    assert all(torch.equal(v, weights[k]) for k, v in host.root.state_dict().items())
    with torch.no_grad():
        assert torch.equal(host(**inputs).logits, before)


def test_what_was_found_for_a_size_is_kept(clip: Host) -> None:
    calls: list[int] = []
    handle = clip.root.vision_model.register_forward_hook(lambda *_: calls.append(1))
    finder = PlacesFinder(clip, "vision.1")
    first = finder.of((50, 40))
    handle.remove()
    count = len(calls)
    assert count > 0
    assert finder.of((50, 40), "another text") is first
    assert len(calls) == count
    assert isinstance(finder.of((40, 50)), Places)


SIZES = [(64, 40), (40, 64), (300, 200), (64, 64), (61, 43), (9, 16)]


@pytest.mark.parametrize(
    ("name", "maker", "tokens"),
    [
        ("llava", CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16), 16),
        ("paligemma", SiglipImageProcessorPil(size={"height": 16, "width": 16}), 16),
    ],
)
def test_sizes_that_are_laid_out_alike_are_tried_once(name: str, maker: Any, tokens: int) -> None:
    host = hosted(name, maker, tokens)
    finder, calls = PlacesFinder(host, "language.1"), []
    handle = host.root.register_forward_pre_hook(lambda *_: calls.append(1))
    after = []
    for size in SIZES:
        boxes = finder.of(size).boxes
        after.append(len(calls))
        torch.testing.assert_close(boxes, found(host, "language.1", size), rtol=0, atol=0.01)
        calls.clear()
    handle.remove()
    assert after[0] > 10
    assert after[2:4] == [0, 0]


def test_sizes_that_are_laid_out_otherwise_are_tried_anew() -> None:
    host = qwen("qwen2_vl")
    finder = PlacesFinder(host, "vision.1")
    for width, height in ((40, 24), (24, 40), (42, 25)):
        boxes = finder.of((width, height)).boxes
        assert boxes is not None
        expect_near(boxes, found(host, "vision.1", (width, height)).tolist())


def test_inputs_that_are_no_batch_are_tried_one_by_one() -> None:
    host = tower(48, 8)
    maker = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=48)
    sizes: list[int] = []

    def prompt(_: Any, images: Any, __: Any) -> dict[str, Any]:
        values = maker(list(images), return_tensors="pt")["pixel_values"]
        sizes.append(len(images))
        return {"pixel_values": values.flip(0) if len(images) == 1 else values[:1]}

    alone, rows = Host.of(host.model, maker, prompt=prompt), set()

    def look(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        rows.add(len(kwargs["pixel_values"]))

    handle = host.root.register_forward_pre_hook(look, with_kwargs=True)
    expect_near(found(alone, "vision.1", (48, 48)), [NONE, *grid(6, 6)])
    handle.remove()
    assert max(sizes) > 1
    assert rows == {1}


def test_what_the_picture_changes_in_other_ways_is_not_guessed() -> None:
    host = tower(48, 8)
    maker = host.processor

    def by_brightness(_: Any, images: Any, __: Any) -> dict[str, Any]:
        values = maker(list(images), return_tensors="pt")["pixel_values"]
        return {"pixel_values": values, "seed": (values.mean() > 0).long()}

    def cropped(_: Any, images: Any, __: Any) -> dict[str, Any]:
        values = maker(list(images), return_tensors="pt")["pixel_values"]
        return {"pixel_values": values[..., : 40 if values.mean() > 0 else 48]}

    def blind(_: Any, images: Any, __: Any) -> dict[str, Any]:
        return {"pixel_values": torch.zeros(len(images), 3, 48, 48)}

    for prompt, why in (
        (by_brightness, "the host's 'seed' hangs on what the picture shows"),
        (cropped, "the shape of the host's 'pixel_values' hangs on what the picture shows"),
        (blind, "none of the host's inputs shows the picture"),
    ):
        places = PlacesFinder(Host.of(host.model, maker, prompt=prompt), "vision.1").of((48, 48))
        assert places.boxes is None and places.why.startswith(why)


class Shuffled(nn.Module):
    """Embed patches, and add what no picture shows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        states: Tensor = self.inner(*args, **kwargs)
        return states + torch.randn(states.shape)


class Blurred(nn.Module):
    """Embed patches, and add what the two before and behind hold."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        states: Tensor = self.inner(*args, **kwargs)
        return sum((states.roll(i, 1) for i in range(-2, 3)), torch.zeros(()))


def test_tokens_that_hold_some_of_others_have_no_places() -> None:
    host = tower(48, 8)
    vision = getattr(host.root, "vision_model", host.root)
    vision.embeddings = Blurred(vision.embeddings)
    places = PlacesFinder(host, "vision.1").of((48, 48))
    assert places.boxes is None
    assert places.why == "what one place of the picture shows reaches 5 of its tokens"


def test_tiles_that_lie_otherwise_are_tried_anew() -> None:
    sizes = {"size": {"height": 16, "width": 16}, "min_patches": 1, "max_patches": 4}
    host = hosted("internvl", GotOcr2ImageProcessorPil(**sizes, crop_to_patches=True), 12)
    finder = PlacesFinder(host, "language.1")
    finder.of((64, 32))
    boxes = finder.of((32, 64)).boxes
    halves = [*grid(2, 2, (0, 0, 1, 0.5)), *grid(2, 2, (0, 0.5, 1, 1))]
    assert boxes is not None
    expect_near(boxes, [*halves, *grid(2, 2)], within=0.025)


@pytest.mark.parametrize("told", [False, True])
def test_a_picture_whose_size_the_host_is_told_is_laid_out_otherwise(told: bool) -> None:
    maker = SiglipImageProcessorPil(size={"height": 16, "width": 16})

    def prompt(maker: Any, images: Any, _: Any) -> dict[str, Any]:
        sizes = {"image_sizes": torch.tensor([i.size for i in images])} if told else {}
        return {**maker(list(images), return_tensors="pt"), **sizes}

    host = Host.of(build("siglip").model, maker, prompt=prompt)
    wide, high = (Canvas.of(host, size, "") for size in ((64, 40), (40, 64)))
    assert (wide.onto(high) is None) == told


def test_a_host_that_draws_at_random_tells_nothing() -> None:
    host = tower(48, 8)
    vision = getattr(host.root, "vision_model", host.root)
    vision.embeddings = Shuffled(vision.embeddings)
    places = PlacesFinder(host, "vision.1").of((48, 48))
    assert places.boxes is None
    assert places.why == "the host's tokens differ from run to run"


def test_a_compiled_host_is_asked_as_it_was_before() -> None:
    host = tower(48, 8)
    compiled = Host.of(
        torch.compile(host.model, backend="eager"), host.processor, prompt=host.prompt
    )
    places = PlacesFinder(compiled, "vision.1").of((48, 48))
    assert places.boxes is None and "is compiled" in places.why


def test_wrong_sites_sizes_and_modes_are_refused(clip: Host) -> None:
    with pytest.raises(UnknownName, match="has no site 'vision.99'"):
        PlacesFinder(clip, "vision.99")
    with pytest.raises(BadArgument, match="size is"):
        PlacesFinder(clip, "vision.1").of((0, 5))
    host = Host.of(*zoo.load_host())
    host.root.train()
    with pytest.raises(BadArgument, match="train mode"):
        PlacesFinder(host, "vision.1").of((5, 5))


@pytest.mark.parametrize("site", ["vision.1", "language.1"])
def test_boxes_are_as_many_as_tokens_are_measured_and_in_their_order(site: str) -> None:
    host = Host.load("zoo:emoji-llava", device="cpu")
    size = (96, 96)
    boxes = found(host, site, size)
    states = []
    for color in (0, 255):  # the last quarter of the picture is of another colour
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        pixels[48:, 48:] = color
        pairs = Pairs([Image.fromarray(pixels)], ["a"], name="one")
        reader = Reader(host, Dictionary.identity(host.site(site).width), site, progress=False)
        states += [rows["image"] for rows in reader.tokens(pairs)]
    assert [len(rows) for rows in states] == [len(boxes)] * 2
    moved = (states[0] - states[1]).norm(dim=-1)
    inside = (boxes[:, :2] > 0.49).all(1)
    assert int(inside.sum()) == 9
    assert moved[inside].median() > 2 * moved[~inside].median()


def test_a_host_without_a_processor_says_what_is_missing(clip: Host) -> None:
    with pytest.raises(CannotKnow, match="needs the host's processor"):
        PlacesFinder(Host.of(clip.root), "vision.1").of((48, 48))


def test_an_error_of_the_processor_is_its_own(clip: Host) -> None:
    def prompt(*_: Any) -> dict[str, Any]:
        raise LookupError("no such word")

    with pytest.raises(LookupError, match="no such word"):
        PlacesFinder(Host.of(clip.root, prompt=prompt), "vision.1").of((48, 48))
