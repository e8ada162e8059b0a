"""Another patch for each row of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks import Handle, Threads, tracing
from vlm_edit.host import Host, Model
from vlm_edit.patches.active import Active
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.patch import Engine, Patch


def attach_rows(
    host: Host | Model | tracing.NNsight,
    patches: Sequence[Patch | None],
    *,
    check_host: bool = True,
    via: Engine = "hooks",
    threads: Threads = "all",
    **choices: Any,
) -> Attachment:
    """Attach another patch for each row of the batches to come, all or none of them.

    Args:
        host: The host.
        patches: One per row; None leaves a row as it is. Beams of a row share its patch.
        check_host: As for ``Patch.attach``.
        via: As for ``Patch.attach``.
        threads: As for ``Patch.attach``.
        **choices: As for ``Patch.attach``.

    Returns:
        One attachment for all; its report has the distinct patches' bindings in their order.

    Raises:
        VlmEditError: No patch at all, or one that does not fit the host.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> host, processor = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]), tokens="text")
        >>> inputs = processor(text=["a cat", "a cat"], return_tensors="pt")
        >>> with attach_rows(host, [None, patch]) as attached:
        ...     _ = host.get_text_features(**inputs)
        >>> attached.report().edited_tokens
        1
    """
    distinct = list({id(patch): patch for patch in patches if patch is not None}.values())
    if not distinct:
        raise BadArgument("attach_rows needs a patch for at least one row: all are None")
    host = tracing.host_of(host)
    undo: list[Callable[[], None]] = []
    actives: list[Active] = []
    shares: list[Tensor] = []
    try:
        for patch in distinct:
            rows = [float(own is patch) for own in patches]
            own = patch.attach(
                host,
                check_host=check_host,
                strength=rows,
                via=via,
                threads=threads,
                **choices,
            )
            undo.append(own.detach)
            actives += own.actives
            shares += [torch.tensor(rows)] * len(own.actives)
    except BaseException:
        Handle(undo).remove()
        raise
    return Attachment(undo, actives, shares, host.root)
