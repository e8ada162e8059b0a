"""Try an edit at a site: does a forward pass it, and does what the host says change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Scale
from vlm_edit.host import Host, Site, answers, same_answers
from vlm_edit.patches.patch import Patch


class Trial(NamedTuple):
    """What an edit at a site did: how many tokens it edited, and whether any answer changed."""

    edited: int
    acts: bool


def try_edit(host: Host, site: Site, inputs: Mapping[str, Any], before: Sequence[Tensor]) -> Trial:
    """Try an edit at a site in one forward, and tell what became of it.

    Every second number of the activations is turned over and doubled. Not all of them: a host that
    compares two normalized embeddings says the same when both are multiplied by one number.

    Args:
        host: In eval mode.
        site: A live one of it.
        inputs: Of its forward.
        before: What the host answers to them, unedited.

    Raises:
        VlmEditError, RuntimeError: The edit is refused, or the host fails with it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vlm_edit import Adapter
        >>> host = Host.of(nn.Linear(3, 2), adapter=Adapter.of({"it": ("", "image", 2)}))
        >>> inputs = {"input": torch.ones(1, 3)}
        >>> try_edit(host, host.site("it"), inputs, answers(host, inputs))
        Trial(edited=1, acts=True)
    """
    every_second = Scale(range(0, site.width, 2), -2.0)
    patch = Patch(site.name, Dictionary.identity(site.width), every_second)
    with patch.attach(host) as attached:
        during = answers(host, inputs)
    return Trial(attached.report().edited_tokens, not same_answers(before, during))
