"""Another patch for each row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from vlm_edit import hooks
from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks import Scope, tracing
from vlm_edit.host import Host, Model
from vlm_edit.patches.active import Run
from vlm_edit.patches.attaching import Engine, put
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.patch import Patch


def attach_rows(
    host: Host | Model | tracing.NNsight,
    patches: Sequence[Patch | None],
    *,
    check_host: bool = True,
    via: Engine = "hooks",
    scope: Scope = "process",
    **choices: Any,
) -> Attachment:
    """Attach another patch for each row of the batches to come, all or none of them.

    Args:
        host: The host.
        patches: One per row; None leaves a row as it is. Beams of a row share its patch.
        check_host: As for ``Patch.attach``.
        via: As for ``Patch.attach``.
        scope: As for ``Patch.attach``.
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
    chosen = hooks.chosen_in(host, choices) or None
    shares = [torch.tensor([float(own is patch) for own in patches]) for patch in distinct]
    runs = [replace(Run.of(rows), chosen=chosen) for rows in shares]
    return put(
        host,
        [*zip(distinct, runs, strict=True)],
        check_host=check_host,
        via=via,
        scope=scope,
        shares=shares,
    )
