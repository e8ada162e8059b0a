"""Pages in a headless Chromium, opened from disk, and what they are made of."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlm_edit import Pairs
from vlm_edit.measures.dominance import DominanceAccumulator
from vlm_edit.measures.interpretability import TopExamples
from vlm_edit.measures.sizes import ActivationSizes
from vlm_edit.measuring import Measurement
from vlm_edit.report import has_plotly

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NEEDED = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not has_plotly(), reason="needs plotly: pip install plotly"),
]

HOSTILE = (
    '</script><script>window.harmed=1</script><img src=x onerror="window.harmed=1"> \u202e"\'&'
)


def measured(n: int, m: int) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.rand(2, n, m, generator=generator)
    lean = torch.linspace(-0.4, 0.4, m)[torch.randperm(m, generator=generator)]
    image, text = (image - 0.8 + lean).relu(), (text - 0.8 - lean).relu()
    image[:, 5] = text[:, 5] = 0
    accumulator = DominanceAccumulator(m)
    accumulator.update(image, text)
    examples = {"image": TopExamples(m, 12), "text": TopExamples(m, 12)}
    examples["image"].update(image, list(range(n)))
    examples["text"].update(text, list(range(n)))
    scores = {"ms_image": torch.rand(m, generator=generator).double()}
    sizes = {"image": ActivationSizes(m), "text": ActivationSizes(m)}
    sizes["image"].update(image)
    sizes["text"].update(text)
    return Measurement(
        accumulator.compute(), 0.5, examples, "joint", n, interpretability=scores,
        provenance={"host": {"class": "CLIPModel"}}, sizes=sizes,
    )  # fmt: skip


def pairs_of(n: int) -> Pairs:
    images = [Image.new("RGB", (64, 48), (i % 256, i * 7 % 256, 90)) for i in range(n)]
    return Pairs(
        images, tuple(f"caption {i} {HOSTILE if i % 3 == 0 else 'Ärger'}" for i in range(n))
    )


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page; afterwards nothing may have gone wrong in it."""
    contexts, troubles = [], []

    def go(address: str = "", file: Path = page_file, plain: bool = False, **options: Any) -> Any:
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda m: m.type == "error" and troubles.append(m.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda r: r.url.split(":")[0] not in ("file", "data", "blob")
                and troubles.append(r.url))  # fmt: skip
        page.goto(f"{file.as_uri()}{address}")
        if not plain:
            page.wait_for_selector("html[data-ready] #scatter .main-svg", state="attached")
        return page

    yield go
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.harmed") is None
        context.close()
    assert not troubles


def numbers(page: Any) -> list[int]:
    return [int(a) for a in page.locator("#features tbody th a").all_inner_texts()]
