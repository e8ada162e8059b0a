"""The same patch inside nnsight: the only room that imports nnsight, and only when used.

Importing nnsight changes torch for the whole process (it patches ``Tensor.backward`` among
others), so nothing else of this library does. ``docs/nnsight.md`` tells the ways apart.

Example:
    >>> import nnsight, torch
    >>> from vlm_edit import Ablate, Patch, zoo
    >>> from vlm_edit.hooks import tracing
    >>> host, processor = zoo.load_host()
    >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]), tokens="text")
    >>> inputs = processor(text=["a cat"], return_tensors="pt")
    >>> model = nnsight.NNsight(host)
    >>> with patch.attach(model, via="nnsight") as attached:
    ...     with torch.no_grad(), model.trace(**inputs, fn=host.get_text_features):
    ...         joint = tracing.at(model, "joint", "text").output.save()
    >>> print(attached.report())
    joint: 1 token edited in 1 call (1 text; 1 prompt)
"""

from typing import TYPE_CHECKING

from vlm_edit.hooks.tracing.models import at
from vlm_edit.hooks.tracing.models import host_of as host_of
from vlm_edit.hooks.tracing.stored import edited, interleaved
from vlm_edit.hooks.tracing.workers import attach

if TYPE_CHECKING:
    from nnsight import NNsight as NNsight

__all__ = [
    "at",
    "attach",
    "edited",
    "interleaved",
]
