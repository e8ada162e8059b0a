"""What a tally says of calls that hold several steps, and of both streams."""

import pytest
import torch
from conftest import NO_TOKENS

from vlm_edit.ground.modality import Mixed
from vlm_edit.hooks import Call, Selection, Tokens
from vlm_edit.patches.report import Tally


@pytest.mark.parametrize(
    ("asked", "steps", "count"), [(None, (2, 5), 4), ((3, 5), (3, 4), 2), ((0, None), (2, 5), 4)]
)
@pytest.mark.parametrize("measured", [int, torch.tensor])
def test_steps_are_those_of_a_call_within_the_window(asked, steps, count, measured):
    start, prompt = measured(7), measured(5)
    columns = start + torch.arange(4) if measured is not int else None
    call = Call((1, 4), "text", start=start, columns=columns, prompt=prompt)
    tokens = Tokens.of("mixed", call, torch.zeros(1, 4, 3))
    selection = Selection(phase="decode", steps=asked)
    tally = Tally("language.0", torch.device("cpu"))
    tally.add(selection, tokens, selection.choose(tokens))
    assert (tally.report.steps, tally.report.tokens) == (steps, count)
    assert tally.report.streams == NO_TOKENS | {"text": count}


def test_only_chosen_tokens_count_in_their_stream():
    image = torch.tensor([[True, True, False, False]])
    tokens = Tokens.of("mixed", Call((1, 4), Mixed.of(image=image), prompt=4), torch.zeros(1, 4, 3))
    tally = Tally("language.0", torch.device("cpu"))
    chosen = torch.tensor([[True, False, True, True]])
    tally.add(Selection(), tokens, chosen)
    assert tally.report.streams == NO_TOKENS | {"image": 1, "text": 2}
    assert tally.report.phases == {"prompt": 3, "decode": 0, "unknown": 0}


@pytest.mark.parametrize("stream", ["image", "text"])
def test_outputs_without_steps_are_of_the_prompt(stream):
    tokens = Tokens.of(stream, Call((2, 4), None, start=4, prompt=4), torch.zeros(2, 3))
    tally = Tally("joint", torch.device("cpu"))
    tally.add(Selection(), tokens, True)
    assert tally.report.phases == {"prompt": 2, "decode": 0, "unknown": 0}
    assert tally.report.streams[stream] == 2
