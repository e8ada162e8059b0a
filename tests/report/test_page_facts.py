"""What the page is told of single features, and what it does not tell of the machine."""

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edit.report.blocks import block, counts, rounded
from vlm_edit.report.details import bundles
from vlm_edit.report.folders import without_folders


def read(text: str) -> bytes:
    return gzip.decompress(base64.b64decode(text))


@settings(deadline=None)  # the first call of a busy machine takes longer than any other
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_keeps_four_digits_of_what_python_prints(values: list[float]) -> None:
    near = rounded(torch.tensor(values, dtype=torch.float64)).tolist()
    for value, kept in zip(values, near, strict=True):
        if abs(value) > 1e-290:
            assert kept == pytest.approx(float(f"{value:.4g}"), rel=1.1e-3 if kept == 0 else 1e-4)


def test_blocks_hold_what_is_put_into_them() -> None:
    values = torch.tensor([[1.5, torch.nan], [torch.inf, -2e-30]])
    held = block("x", rounded(values), "f4")
    again = np.frombuffer(read(held.text), "<f4")
    assert again[:1] == 1.5 and np.isnan(again[1:3]).all() and again[3] == np.float32(-2e-30)
    for most, kind in ((255, "u1"), (256, "u2"), (65536, "u4"), (2**32, "f8")):
        held = counts("n", torch.tensor([0, most]))
        assert held.kind == kind and np.frombuffer(read(held.text), f"<{kind}").tolist() == [
            0,
            most,
        ]


def test_heat_maps_of_the_most_wanted_features_are_kept_within_the_budget() -> None:
    generator = torch.Generator().manual_seed(0)

    def facts(feature: int) -> dict[str, object]:
        values = torch.rand(50, generator=generator).tolist()
        words = [f"word {i}" for i in range(50)]
        texts = [{"pair": 3, "words": words, "values": values}]
        return {"effects": {"up": [["cat", feature]]}, "maps": {"text": texts}}

    order = list(reversed(range(200)))
    whole = bundles(facts, order, 200, 10**7)
    assert not whole.left_out and set(whole.at) == set(range(200))
    bare = bundles(lambda k: {"effects": {"up": [["cat", k]]}}, order, 200, 0)
    budget = (whole.size - bare.size) // 2
    half = bundles(facts, order, 200, budget)
    assert half.size <= bare.size + budget
    assert half.left_out == order[-len(half.left_out) :] and 0 < len(half.left_out) < 200
    for feature in range(200):
        held = json.loads(read(half.texts[half.at[feature]]))[str(feature)]
        assert held["effects"]["up"] == [["cat", feature]]
        assert ("maps" in held) == (feature not in half.left_out)


def test_features_of_which_nothing_is_known_take_no_room() -> None:
    made = bundles({3: {"name": {"name": "cats", "score": 0.5}}, 4: {"near": None}}, range(9), 9, 0)
    assert made.at == {3: 0} and made.names == [(3, "cats", "0.50")]
    assert bundles(lambda _: {}, range(9), 9, 0).texts == []


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("/tmp/x/captions.csv", "captions.csv"),
        ("/home/jane doe/my pairs/captions.csv", "captions.csv"),
        (r"C:\Users\jane\captions.csv", "captions.csv"),
        ("~/models/clip", "clip"),
        ("file:///home/jane/a.csv", "a.csv"),
        ("/home/jane/broken.png: cannot identify image file '/home/jane/broken.png'",
         "broken.png: cannot identify image file 'broken.png'"),
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("cannot open '/home/jane doe/a b.png'", "cannot open 'a b.png'"),
        ("zoo:pairs", "zoo:pairs"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("3/4 of 1/2, and/or", "3/4 of 1/2, and/or"),
        ("1e-3 / 2", "1e-3 / 2"),
    ],
)  # fmt: skip
def test_paths_lose_their_folders_and_nothing_else_does(text: str, bare: str) -> None:
    assert without_folders(text) == bare


def test_no_folder_of_the_machine_is_named_by_a_page(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="needs plotly: pip install plotly")
    from PIL import Image

    from vlm_edit import Host, measure, read_pairs, zoo

    folder = tmp_path / "jane doe" / "secret"
    folder.mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "12.png").write_text("no image", "utf-8")
    rows = "".join(f"{i}.png,red {i}\n" for i in range(13))
    (folder / "pairs.csv").write_text(f"image,text\n{rows}", "utf-8")
    pairs = read_pairs(folder / "pairs.csv")
    host = Host.of(*zoo.load_host())
    found = measure(host, pairs, zoo.load_dictionary("joint"), progress=False)
    assert found.skipped
    found.page(tmp_path / "page.html", pairs)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "pairs.csv" in page and "12.png" in page
    for part in ("jane doe", "secret", str(tmp_path)):
        assert part not in page
    assert "<title>Features at joint of emoji-clip" in page or "of CLIPModel" in page
