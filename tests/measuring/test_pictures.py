"""Images are opened as large as a processor needs them, and no larger."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from vlm_edit.measuring.gathering import Stretch
from vlm_edit.measuring.pictures import opened, side_needed


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise[None], (height, width), mode="bicubic")[0]
    pixels = (smooth.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous()
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize(
    ("size", "least"), [((1200, 800), 100), ((400, 1000), 48), ((900, 899), 30)]
)
def test_a_large_image_is_shrunk_to_no_less_than_twice_what_is_needed(
    ending: str, size: tuple[int, int], least: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{ending}"
    photograph(*size).save(path, quality=95)
    small, whole = opened(path, "a", least), opened(path, "a")
    assert whole.size == size
    assert 2 * least <= min(small.size) < 4 * least + 4
    assert abs(small.width / small.height - size[0] / size[1]) < 0.03 * size[0] / size[1]
    # What a processor makes of either is nearly the same.
    a, b = (
        torch.tensor(list(image.resize((least, least), 3).tobytes())).float()
        for image in (small, whole)
    )
    assert float((a - b).abs().mean()) < 0.01 * 255


@pytest.mark.parametrize("least", [None, 64])
def test_an_image_that_is_not_four_times_as_large_comes_as_it_is(
    least: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    photograph(250, 250).save(path, quality=95)
    assert opened(path, "a", least).tobytes() == Image.open(path).convert("RGB").tobytes()


def test_a_photograph_on_its_side_stands_upright_when_it_is_shrunk(tmp_path: Path) -> None:
    image, exif = photograph(800, 400), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    shrunk = opened(tmp_path / "a.jpg", "a", 40)
    assert shrunk.height > shrunk.width


PROCESSORS: dict[str, tuple[dict[str, Any], int | None]] = {
    "CLIPImageProcessor": ({"size": {"shortest_edge": 224}}, 224),
    "SiglipImageProcessor": ({"size": {"height": 384, "width": 384}}, 384),
    "ViltImageProcessor": ({}, 384),
    "Qwen2VLImageProcessor": ({}, None),
    "LlavaNextImageProcessor": ({}, None),
    "Idefics3ImageProcessor": ({}, None),
    "PixtralImageProcessor": ({}, None),
    "MllamaImageProcessor": ({}, None),
    "GotOcr2ImageProcessor": ({}, None),
    "Siglip2ImageProcessor": ({}, None),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_side_is_known_of_processors_that_resize_to_one_size_alone(name: str) -> None:
    options, side = PROCESSORS[name]
    maker = getattr(transformers, name)(**options)
    assert side_needed(SimpleNamespace(image_processor=maker)) == side
    assert side_needed(maker) == side


def test_a_processor_that_resizes_nothing_and_one_of_ones_own_need_all() -> None:
    maker = transformers.CLIPImageProcessor(do_resize=False)
    assert side_needed(maker) is None and side_needed(lambda image: image) is None


def test_a_stretch_of_an_archive_that_ends_within_it_is_damaged(tmp_path: Path) -> None:
    data = io.BytesIO()
    photograph(20, 20).save(data, "PNG")
    path = tmp_path / "archive"
    path.write_bytes(b"before" + data.getvalue())
    whole = Stretch(path, 6, len(data.getvalue()), "one")
    assert opened(whole, "one").size == (20, 20)
    for broken in (
        Stretch(path, 7, len(data.getvalue()), "late"),
        Stretch(tmp_path / "gone", 6, 5, "gone"),
        Stretch(path, 0, 6, "no image"),
    ):
        with pytest.raises(Exception, match=broken.name) as caught:
            opened(broken, broken.name)
        assert type(caught.value).__name__ == "DamagedFile"


LARGE = r"""
import re, sys
from pathlib import Path
import torch
from vlm_edit import Host, Pairs, zoo
from vlm_edit.measuring import Reader

torch.set_num_threads(1)
host, dictionary = Host.of(*zoo.load_host()), zoo.load_dictionary("joint")
reader = Reader(host, dictionary, batch_size=64, progress=False)
list(reader.read(zoo.load_pairs().select(range(64))))
def peak():  # getrusage tells that of the process it was forked from, too
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
batches = list(reader.read(Pairs([Path(sys.argv[1])] * 64, ("a photograph",) * 64)))
assert sum(len(batch.numbers) for batch in batches) == 64
print(before, peak())
"""


def test_64_photographs_of_24_megapixels_take_less_than_a_gigabyte_and_a_half(
    tmp_path: Path,
) -> None:
    photograph(6000, 4000).save(tmp_path / "a.jpg", quality=92)
    out = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "a.jpg")],
        capture_output=True, text=True, check=True, timeout=300,
    ).stdout.split()  # fmt: skip
    before, after = map(int, out)
    assert after < 1_500_000  # KiB, of the whole process
    assert after - before < 300_000  # whole they are 4.6 GB
