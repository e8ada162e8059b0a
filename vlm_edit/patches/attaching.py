"""Putting patches on a host, all of them or none, and what is on a host now."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor, nn

from vlm_edit import hooks
from vlm_edit.ground.errors import BadArgument, VlmEditWarning
from vlm_edit.hooks import Bounds, Handle, Scope, tracing
from vlm_edit.host import Host, Model, Site
from vlm_edit.patches.active import Active, Run
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.sameness import act_on_the_same, of_one_edit, same_edit

if TYPE_CHECKING:
    from vlm_edit.patches.patch import Patch

Engine = Literal["hooks", "nnsight"]

_attachments: weakref.WeakKeyDictionary[nn.Module, tuple[Attachment, ...]] = (
    weakref.WeakKeyDictionary()
)
_lock = threading.RLock()


def put(
    host: Host,
    parts: Sequence[tuple[Patch, Run]],
    *,
    check_host: bool = True,
    via: Engine = "hooks",
    scope: Scope | Bounds = "process",
    shares: Sequence[Tensor] | None = None,
    paused: bool = False,
    stacklevel: int = 3,
) -> Attachment:
    """Put patches on a host, all of them or none.

    Args:
        host: The host.
        parts: Each patch with what is said of this run.
        check_host: As for ``Patch.attach``.
        via: Likewise.
        scope: Likewise.
        shares: Of each patch, 1 in the rows that are its own; None for all rows.
        paused: Whether they let everything pass at first.
        stacklevel: As of ``warnings.warn``, seen from here.

    Raises:
        VlmEditError: As ``Patch.attach``.
    """
    if via not in get_args(Engine):
        raise BadArgument(f"via is {via!r}; use 'hooks' or 'nnsight'")
    engine = partial(hooks.attach, edits=True) if via == "hooks" else tracing.attach
    prepared = [patch.prepare(host, check_host=check_host, run=run) for patch, run in parts]
    bounds = Bounds.of(scope)
    undo: list[Callable[[], None]] = [bounds.leave]
    try:
        for part in prepared:
            for group in _edits(part):
                # What is read for later places of an edit is read before its own change.
                for _, active in group:
                    active.paused = paused
                    for place, listen in () if active.beside is None else active.beside.listeners():
                        undo.append(engine(host, place, listen, scope=bounds).remove)
                undo += [engine(host, site, active, scope=bounds).remove for site, active in group]
    except BaseException:
        Handle(undo).remove()
        raise
    groups = [[active for _, active in part] for part in prepared]
    owned = None
    if shares is not None:
        owned = [own for own, group in zip(shares, groups, strict=True) for _ in group]
    actives = [active for group in groups for active in group]
    taps = [tap.module for part in prepared for site, _ in part for tap in site.taps]
    attachment = Attachment(undo, actives, owned, host.root, bounds, taps)
    try:
        hooks.warn_of_loop(bounds, stacklevel)
        if not paused:
            warn_of_doubles(host, attachment, groups, stacklevel + 1)
    except BaseException:  # a warning that is to be an error
        attachment.detach()
        raise
    _note(host.root, attachment)
    return attachment


def _edits(part: Sequence[tuple[Site, Active]]) -> list[list[tuple[Site, Active]]]:
    """Part what a patch does into edits: places that features of one dictionary write together."""
    edits: list[list[tuple[Site, Active]]] = []
    for site, active in part:
        before = edits[-1] if edits else []
        new = site.name not in [place.name for place, _ in before]
        if before and new and of_one_edit(before[-1][1].binding, active.binding):
            before.append((site, active))
        else:
            edits.append([(site, active)])
    return edits


def attached(host: Host | Model | tracing.NNsight) -> list[Attachment]:
    """List what is attached to a host now, also what nobody holds a handle of any more.

    Args:
        host: The host, its model, an nnsight model around it, or a pipeline.

    Returns:
        Attachments in the order they came: to this host, to modules inside it, and to hosts
        around it where they edit one of its modules.

    Raises:
        VlmEditError: No host.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> from vlm_edit.patches import attached, detach_all
        >>> host, _ = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
        >>> _ = patch.attach(host, strength=0.5)
        >>> attached(host)
        [Attachment(joint: ablate 1 feature at all tokens; strength 0.5)]
        >>> detach_all(host)
        1
        >>> attached(host)
        []
    """
    root = tracing.host_of(host).root
    modules = {*root.modules()}
    with _lock:
        found = [(own is root, a) for own, there in _attachments.items() for a in there]
    return sorted(
        (a for own, a in found if a.is_on and (own or a.touches(modules))),
        key=lambda attachment: attachment.number,
    )


def detach_all(host: Host | Model | tracing.NNsight) -> int:
    """Remove everything that is attached to a host, what other threads attached too.

    Args:
        host: As for ``attached``.

    Returns:
        How many attachments there were.

    Raises:
        VlmEditError: No host.
    """
    found = attached(host)
    for attachment in found:
        attachment.detach()
    return len(found)


@contextmanager
def detached(host: Host | Model | tracing.NNsight) -> Iterator[None]:
    """Take all that is on a host off while the block runs, recordings too, and put it back.

    Inside it the host can be pickled, and saved whole. Afterwards, also after an exception, all
    lies where it lay: handles still remove it and reports go on; what is removed inside stays
    away. No other thread may call the host meanwhile, which would run unedited.

    Args:
        host: As for ``attached``.

    Raises:
        VlmEditError: No host, or it is inside such a block already; attaching inside it.

    Example:
        >>> import io, torch
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> from vlm_edit.patches import detached
        >>> host, _ = zoo.load_host()
        >>> with Patch("joint", zoo.load_dictionary("joint"), Ablate([7])).attach(host):
        ...     with detached(host):
        ...         torch.save(host, io.BytesIO())
    """
    with hooks.bare(tracing.host_of(host)):
        yield


def warn_of_doubles(
    host: Host, attachment: Attachment, groups: Sequence[Sequence[Active]], stacklevel: int
) -> None:
    """Warn where a patch acts on what the same patch acts on already.

    Args:
        host: The host.
        attachment: What is attached.
        groups: Its edits, patch by patch.
        stacklevel: As of ``warnings.warn``, seen from here.
    """
    with _lock:
        there = [a for a in _attachments.get(host.root, ()) if a is not attachment and a.is_on]
    for other in there:
        if _meet(attachment, other) and any(_doubles(group, other) for group in groups):
            warnings.warn(
                f"the same patch is on this {host.kind.__name__} already ({other.words()}), and "
                "both act from now on: remove one. vlm_edit.patches.attached(host) lists what is "
                "on a host, detach_all(host) takes all of it off",
                VlmEditWarning,
                stacklevel=stacklevel,
            )
            return


def _meet(one: Attachment, other: Attachment) -> bool:
    """Return whether two attachments act in the same forwards, as far as the caller's tell."""
    if "process" in (one.bounds.scope, other.bounds.scope):
        return True
    return one.bounds.hold() and other.bounds.hold()


def _doubles(group: Sequence[Active], other: Attachment) -> bool:
    """Return whether every edit of a patch does again what one of others does."""
    free = [active for active in other.actives if not active.paused]
    for mine in group:
        for i, theirs in enumerate(free):
            if same_edit(mine.binding, theirs.binding) and act_on_the_same(mine.run, theirs.run):
                del free[i]
                break
        else:
            return False
    return True


def _note(root: nn.Module, attachment: Attachment) -> None:
    with _lock:
        _attachments[root] = (*_attachments.get(root, ()), attachment)
    host, own = weakref.ref(root), weakref.ref(attachment)

    def forget() -> None:
        root, gone = host(), own()
        if root is not None:
            with _lock:
                there = _attachments.get(root, ())
                _attachments[root] = tuple(a for a in there if a is not gone and a.is_on)

    attachment.when_off(forget)
