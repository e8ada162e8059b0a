"""A reader whose forwards end behind its site reads the bits of one whose forwards run whole."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conftest import IMAGE_TOKEN, make_clip, make_llava, random_dictionary
from PIL import Image
from torch import Tensor, nn

from vlm_edit import Host, Pairs
from vlm_edit.host import Inputs
from vlm_edit.measuring import Batch, Reader

PAIRS = Pairs(
    [Image.new("RGB", (16, 16), (9 * i, 40 + i, 200 - 7 * i)) for i in range(11)],
    tuple(" ".join(str(5 + (i * j) % 40) for j in range(1, 2 + i % 4)) for i in range(11)),
)


def inputs_of(kind: str) -> Any:
    """What makes inputs of images and texts, which are words of ids."""

    def make(_processor: Any, images: list[Any], texts: list[str]) -> Inputs:
        image = [] if kind == "clip" else [IMAGE_TOKEN] * 4
        rows = [[1, *image, *map(int, text.split()), *[63][: kind == "clip"]] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        pixels = [torch.tensor(list(image.tobytes())).reshape(16, 16, 3) for image in images]
        values = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        values["pixel_values"] = torch.stack(pixels).movedim(-1, 1) / 255
        return Inputs(values, caption=(ids > 1) & (ids != IMAGE_TOKEN) & (ids != 63))

    return make


def reader(site: str) -> Reader:
    kind = "llava" if site.startswith("language") else "clip"
    host = Host.of(make_llava() if kind == "llava" else make_clip(), prompt=inputs_of(kind))
    dictionary = random_dictionary(host.site(site).width)
    return Reader(host, dictionary, site, batch_size=3, progress=False, sizes=True)


def parts(batch: Batch) -> list[Tensor]:
    codes = [code.dense() for code in batch.codes.values()]
    return [*batch.hidden.values(), *codes, *batch.normed.values()]


class Layers:
    """Counts the calls of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.count += 1


SITES = ["joint", "vision.1", "text.0", "language.0", "language.1.mlp"]


@pytest.mark.parametrize("site", SITES)
def test_batches_and_tokens_are_those_of_whole_forwards(site: str) -> None:
    ended, whole = reader(site), reader(site)
    calls = Layers(whole.host.root)  # a hook of somebody, for which all forwards run whole
    assert whole.host.root is not ended.host.root
    for one, other in zip(ended.read(PAIRS), whole.read(PAIRS), strict=True):
        assert (one.numbers, one.texts) == (other.numbers, other.texts)
        assert len(parts(one)) == len(parts(other)) >= 3
        assert all(map(torch.equal, parts(one), parts(other)))
    assert calls.count == 4
    for tokens, others in zip(ended.tokens(PAIRS), whole.tokens(PAIRS), strict=True):
        assert tokens.keys() == others.keys()
        assert all(torch.equal(tokens[stream], others[stream]) for stream in tokens)
    assert calls.count == 8


@pytest.mark.parametrize("how", ["read", "tokens"])
def test_one_forward_of_a_reading_runs_whole(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, whole = reader("language.0"), []
    kind = type(reading.host.root)
    forward = kind.forward

    @functools.wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        whole.append(output.logits.shape[1])
        return output

    monkeypatch.setattr(kind, "forward", counted)
    assert len(list(getattr(reading, how)(PAIRS))) == 4
    assert whole == [1]  # and makes the logits of one token
