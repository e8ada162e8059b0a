"""Patches of one host by name, switched on and off."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError, expect_kind
from vlm_edit.hooks import Scope, tracing
from vlm_edit.host import Host, Model
from vlm_edit.patches.active import Run, Strength
from vlm_edit.patches.attaching import put, warn_of_doubles
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.patch import Patch, load_patch

Names = str | Iterable[str] | Mapping[str, Strength]


class PatchSet:
    """Hold patches of one host by name, and switch them on and off for the whole process.

    Each is attached once, when it is added, and lets everything pass until it is active: then
    switching costs no attaching, and compiled code sees no other hooks. Patches act in the order
    they were added. Calls from several threads do not mix; a forward under way in another thread
    may see a switch between two of its layers. For a request of its own use ``attach``.

    Args:
        host: The host, its model, an nnsight model around it, or a pipeline.
        patches: By name, added in their order.
        check_host: As for ``Patch.attach``.

    Raises:
        VlmEditError: As ``add``.

    Example:
        >>> from vlm_edit import Ablate, Patch, Scale, zoo
        >>> from vlm_edit.patches import PatchSet
        >>> host, _ = zoo.load_host()
        >>> dictionary = zoo.load_dictionary("joint")
        >>> with PatchSet(host) as patches:
        ...     patches.add("without", Patch("joint", dictionary, Ablate([7])))
        ...     patches.add("more", Patch("joint", dictionary, Scale([12], 2.0)))
        ...     patches.activate("more", strength=0.5)
        ...     patches
        PatchSet(without, more (active))
    """

    def __init__(
        self,
        host: Host | Model | tracing.NNsight,
        patches: Mapping[str, Patch | str | os.PathLike[str]] | None = None,
        *,
        check_host: bool = True,
    ) -> None:
        self._host, self._check_host = tracing.host_of(host), check_host
        self._patches: dict[str, Patch] = {}
        self._attachments: dict[str, Attachment] = {}
        self._lock = threading.RLock()
        try:
            for name, patch in (patches or {}).items():
                self.add(name, patch)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        """Say on a line which patches it holds, and which are active."""
        active = self.active
        return f"PatchSet({', '.join(n + ' (active)' * (n in active) for n in self.names)})"

    @property
    def names(self) -> list[str]:
        """Return the names of all patches, in the order they act."""
        with self._lock:
            return [*self._patches]

    @property
    def active(self) -> list[str]:
        """Return the names of the patches that act now."""
        with self._lock:
            return [
                name
                for name, own in self._attachments.items()
                if own.is_on and not own.actives[0].paused
            ]

    def __getitem__(self, name: str) -> Patch:
        """Return the patch of a name.

        Raises:
            UnknownName: There is none; the message lists the names there are.
        """
        with self._lock:
            self._expect([name])
            return self._patches[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is a patch of a name."""
        return name in self._patches

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.names)

    def __len__(self) -> int:
        """Count the patches."""
        return len(self._patches)

    def add(self, name: str, patch: Patch | str | os.PathLike[str]) -> None:
        """Add a patch, which does not act yet.

        Args:
            name: Of the caller's choice.
            patch: A patch, or where ``load_patch`` finds one.

        Raises:
            VlmEditError: A name that is taken, or a patch that does not fit the host; nothing
                has changed then.
        """
        expect_kind("name", name, str, "a name of your choice, such as 'no-text'")
        if not isinstance(patch, Patch):
            patch = load_patch(patch)
        with self._lock:
            if name in self._patches:
                raise BadArgument(
                    f"a patch {name!r} is there already: unload({name!r}) first, or choose "
                    "another name"
                )
            self._attachments[name] = self._attach(patch)
            self._patches[name] = patch

    def unload(self, name: str) -> None:
        """Take a patch off the host and out of the set.

        Raises:
            UnknownName: There is none of that name.
        """
        with self._lock:
            self._expect([name])
            del self._patches[name]
            self._attachments.pop(name).detach()

    def activate(self, names: Names, strength: Strength = 1.0) -> None:
        """Let these patches act, and no other of the set.

        Args:
            names: A name, several, or a strength for each name.
            strength: Of all of them where they are not told each: as ``set_strength`` takes it.

        Raises:
            UnknownName: One that there is not; nothing has changed then.
            VlmEditError: A strength that is not possible; likewise.
        """
        wanted = _strengths(names, strength)
        with self._lock:
            self._expect(wanted)
            for value in wanted.values():
                _expect_rows(value)
            self._renew()
            chosen = {name: self._attachments[name] for name in wanted}
            for name, own in chosen.items():
                if own.actives[0].paused:
                    own.set_strength(wanted[name])
                    warn_of_doubles(self._host, own, [own.actives], stacklevel=3)
            for name, own in chosen.items():
                own.set_strength(wanted[name])
            for name, own in self._attachments.items():
                own.pause(name not in chosen)

    def deactivate(self, names: str | Iterable[str] | None = None) -> None:
        """Let these patches act no more, or none of the set.

        Args:
            names: A name, or several; None for all.

        Raises:
            UnknownName: One that there is not; nothing has changed then.
        """
        with self._lock:
            chosen = self.names if names is None else [*_strengths(names, 1.0)]
            self._expect(chosen)
            for name in chosen:
                self._attachments[name].pause(True)

    @contextmanager
    def attach(
        self, names: Names, strength: Strength = 1.0, scope: Scope = "context"
    ) -> Iterator[list[Attachment]]:
        """Attach patches of the set while a block runs, beside what is active: for one request.

        Args:
            names: As for ``activate``.
            strength: Likewise.
            scope: As for ``Patch.attach``; of this context only, by default.

        Yields:
            Their attachments, in the order of the names.

        Raises:
            UnknownName: One that there is not; nothing is attached then.
            VlmEditError: As ``Patch.attach``.

        Example:
            >>> from vlm_edit import Ablate, Patch, zoo
            >>> host, processor = zoo.load_host()
            >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
            >>> patches = PatchSet(host, {"without": patch})
            >>> with patches.attach("without", strength=0.5) as (attachment,):
            ...     _ = host.get_text_features(**processor(text=["a cat"], return_tensors="pt"))
            >>> attachment.report().edited_tokens
            1
            >>> patches.close()
        """
        wanted = _strengths(names, strength)
        with self._lock:
            self._expect(wanted)
            chosen = [(self._patches[name], value) for name, value in wanted.items()]
        with ExitStack() as stack:
            yield [
                stack.enter_context(self._attach(patch, value, scope)) for patch, value in chosen
            ]

    def close(self) -> None:
        """Take every patch off the host and out of the set."""
        with self._lock:
            for name in self.names:
                self.unload(name)

    def __enter__(self) -> PatchSet:
        """Return the set itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the set, also after an exception."""
        self.close()

    def _attach(
        self, patch: Patch, strength: Strength | None = None, scope: Scope = "process"
    ) -> Attachment:
        kept = strength is None
        run = Run.of(1.0 if strength is None else strength)
        return put(
            self._host,
            [(patch, run)],
            check_host=self._check_host,
            scope=scope,
            paused=kept,
            stacklevel=6,
        )

    def _renew(self) -> None:
        """Attach again what somebody else took off, such as ``detach_all``."""
        if all(attachment.is_on for attachment in self._attachments.values()):
            return
        for name, patch in self._patches.items():  # all of them, to keep their order
            self._attachments[name].detach()
            self._attachments[name] = self._attach(patch)

    def _expect(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._patches:
                raise UnknownName(
                    f"there is no patch {name!r} in this set; it has "
                    f"{', '.join(map(repr, self._patches)) or 'none yet: add(name, patch)'}"
                )


def _strengths(names: Names, strength: Strength) -> dict[str, Strength]:
    if isinstance(names, Mapping):
        return dict(names)
    return dict.fromkeys([names] if isinstance(names, str) else names, strength)


def _expect_rows(strength: Strength) -> None:
    rows = Run.of(strength).strength
    if rows is not None and not isinstance(rows, Mapping) and rows.ndim > 1:
        raise VlmEditError(
            "strengths per token belong to one prompt: give one number or one per row, or attach "
            "the patch for that prompt with attach(names, strength)"
        )
