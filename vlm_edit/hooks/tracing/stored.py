"""A patch as nnsight's own stored edits, and the host's own calls under such edits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, nn

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.hooks import Callback, StandIn, follow, hidden_of, replace_hidden
from vlm_edit.hooks.tracing.models import envoy_of, expect_model, wrapped_host
from vlm_edit.host import Host, Site

if TYPE_CHECKING:
    from nnsight import NNsight

ENTRIES = ("forward", "generate", "get_image_features", "get_text_features")
_BARE = SimpleNamespace(_batch_size=lambda *_, **__: 0, _batch=lambda *_: ((), {}))


class Edits(Protocol):
    """A patch, or what else can be stored."""

    def prepare(self, host: Host) -> Sequence[tuple[Site, Callback]]:
        """Return sites of a host, and what is done there, after every check."""


def edited(model: NNsight, patch: Edits, host: Host | None = None) -> NNsight:
    """Return a copy of an nnsight model whose traces run with a patch.

    The model itself stays as it is, and both share the host's weights. Outputs equal, bit for
    bit, those of the host with the patch attached by hooks.

    Args:
        model: An ``nnsight.NNsight`` around the host.
        patch: Checked against the host as by ``Patch.attach``.
        host: The host it wraps, where it has an adapter of its own; by default made anew.

    Returns:
        The edited model. Its ``trace`` and ``interleave`` run with the patch, at every step of
        ``generate`` too; calls of the host outside them do not.

    Raises:
        VlmEditError: Not an nnsight model, the patch does not fit the host, or it reads other sites
            than it edits.

    Example:
        >>> import nnsight, torch
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> from vlm_edit.hooks import tracing
        >>> host, processor = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
        >>> traced = tracing.edited(nnsight.NNsight(host), patch)
        >>> inputs = processor(
        ...     text=["a cat"], images=[zoo.load_pairs().open(0)], return_tensors="pt"
        ... )
        >>> with torch.no_grad(), traced.trace(**inputs):
        ...     logits = traced.output.logits_per_image.save()
        >>> logits.shape
        torch.Size([1, 1])
    """
    host = wrapped_host(model, "tracing.edited", host)
    prepared = patch.prepare(host)
    for site, callback in prepared:
        if getattr(callback, "beside", None) is not None:
            raise CannotKnow(
                f"the edit at {site.name!r} reads other sites than its own, as a transcoder's "
                "does, and an edit that nnsight stores sees one: attach the patch instead"
            )
    for site, callback in prepared:
        for tap in site.taps:
            envoy = envoy_of(model, tap.module, tap.path)
            run, release = follow(host.root, tap, callback, host.adapter)
            model = _store(model, envoy, tap.module, tap.field, run)
            weakref.finalize(run, release)  # nothing says when an edited model is done with
    return model


@contextmanager
def interleaved(model: NNsight) -> Iterator[NNsight]:
    """Let the edits stored in an nnsight model act on the host's own calls, while the block runs.

    nnsight applies them in traces only, and in what is given to its ``interleave``. Here that is
    done to whatever calls the host: its ``forward``, ``generate``, ``get_image_features`` and
    ``get_text_features``, by anybody's code. As in a trace, an edit of a module that a call does
    not run is an error of nnsight's.

    Args:
        model: An nnsight model with stored edits: one of ``edited``, or of your own.

    Yields:
        The same model.

    Raises:
        VlmEditError: Not an nnsight model.

    Example:
        >>> import nnsight
        >>> from vlm_edit import Clamp, Patch, zoo
        >>> from vlm_edit.hooks import tracing
        >>> host, processor = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Clamp([7], 9.0), tokens="text")
        >>> inputs = processor(text=["a cat"], return_tensors="pt")
        >>> plain = host.get_text_features(**inputs).pooler_output
        >>> with tracing.interleaved(tracing.edited(nnsight.NNsight(host), patch)):
        ...     edited = host.get_text_features(**inputs).pooler_output
        >>> bool((plain == edited).all())
        False
    """
    inner: Any = expect_model(model, "tracing.interleaved").model
    from nnsight.intervention.batching import Batcher

    def around(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if model.interleaver.interleaving:  # generate calls forward
            return original(*args, **kwargs)
        # Not the model's own batcher: it would prepare inputs, and these are prepared.
        return model.interleave(lambda: original(*args, **kwargs), batcher=Batcher(_BARE))

    names = [name for name in ENTRIES if callable(getattr(inner, name, None))]
    standing = [StandIn(inner, name, around) for name in names]
    try:
        yield model
    finally:
        for stand_in in standing:
            stand_in.remove()


def _store(
    model: Any,
    envoy: Any,
    module: nn.Module,
    field: str | None,
    run: Callable[[Tensor], Tensor],
) -> NNsight:
    """Store one edit per module: each may then wait for its own, whatever the host's order."""
    with model.edit() as (tracer, copy):
        step = 0
        try:
            for step in tracer.iter[:]:  # noqa: B007
                output = envoy.output
                hidden = run(hidden_of(output, module, field))
                envoy.output = replace_hidden(output, hidden, field)
        except Exception as error:
            # An open loop ends by this error, when the host makes no further step.
            if step == 0 or type(error).__name__ != "OutOfOrderError":
                raise
    return cast("NNsight", copy)
