"""Patch: edits bound to sites of a host."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from torch import nn

from vlm_edit.dictionaries import Dictionary
from vlm_edit.edits import Rule, Splice, Tokens
from vlm_edit.errors import VlmEditError
from vlm_edit.hooks import Handle, attach
from vlm_edit.patches import storage
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.fingerprint import expect_host, fingerprint
from vlm_edit.sites import Adapter, Site, expect_width, find_site


class Attachment:
    """A patch on a host, until ``remove`` or the end of a with-block."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def remove(self) -> None:
        """Leave the host bit for bit as it was; calling it twice does nothing."""
        self._handle.remove()

    def __enter__(self) -> Attachment:
        """The attachment itself: it is in force already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the patch, also after an exception."""
        self.remove()


@dataclass(frozen=True, eq=False)
class Patch:
    """Edits bound to sites, independent of any one model in memory.

    Attributes:
        bindings: What is edited where; several at one site act one after the other.
        host: Fingerprint of the host it was saved for; None until then.
        info: What its maker says of it: free text by key.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> host, processor = zoo.load_host()
        >>> patch = Patch.at("joint", zoo.load_dictionary("joint"), [Ablate([7, 12])])
        >>> inputs = processor(text=["a cat"], return_tensors="pt")
        >>> before = host.get_text_features(**inputs).pooler_output
        >>> with patch.attach(host):
        ...     during = host.get_text_features(**inputs).pooler_output
        >>> after = host.get_text_features(**inputs).pooler_output
        >>> bool((before == after).all())
        True
    """

    bindings: tuple[Binding, ...]
    host: Mapping[str, Any] | None = None
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a patch that would do nothing."""
        if not self.bindings:
            raise VlmEditError("a patch needs at least one binding: make it with Patch.at")

    @classmethod
    def at(
        cls,
        site: str,
        dictionary: Dictionary,
        rules: Sequence[Rule] | Rule,
        tokens: Tokens = "all",
        info: Mapping[str, str] | None = None,
    ) -> Patch:
        """A patch of one site.

        Args:
            site: The site's name, e.g. ``joint``.
            dictionary: Whose features the rules name. Only what they need of it is kept.
            rules: Applied in order on one code.
            tokens: ``image`` or ``text`` for one stream's tokens only.
            info: What to say of the patch, free text by key.

        Raises:
            VlmEditError: No rule, a feature that the dictionary does not have, unknown tokens, or
                another site than the dictionary was trained at.
        """
        dictionary.expect_site(site)
        listed = [rules] if isinstance(rules, Rule) else list(rules)
        return cls((Binding(site, Splice.of(dictionary, listed), tokens),), info=info or {})

    def __add__(self, other: Patch) -> Patch:
        """Both patches in one, this one's edits first.

        Raises:
            VlmEditError: They were saved for different hosts.
        """
        host = self.host or other.host
        if self.host and other.host:
            shared = {k: v for k, v in self.host["sites"].items() if k in other.host["sites"]}
            try:
                expect_host({**self.host, "sites": shared}, dict(other.host))
            except VlmEditError as error:
                raise VlmEditError(f"these patches do not belong to one host: {error}") from error
            host = {**self.host, "sites": {**self.host["sites"], **other.host["sites"]}}
        return Patch(self.bindings + other.bindings, host, {**self.info, **other.info})

    def attach(
        self, model: nn.Module, adapter: Adapter | None = None, check_host: bool = True
    ) -> Attachment:
        """Put the patch on a host: in force from now on, whole or not at all.

        Args:
            model: The host. Neither its code nor its weights change.
            adapter: The host's adapter; by default found.
            check_host: Whether to compare the host with the one the patch was saved for.

        Returns:
            A handle with ``remove``, and a context manager that removes the patch at the end.

        Raises:
            VlmEditError: A site the host lacks, a dead site, another width, a stream that does
                not pass there, or another host than the patch was saved for.
        """
        targets = self.check(model, adapter, check_host)
        undo: list[Callable[[], None]] = []
        try:
            for binding, site in targets:
                undo.append(attach(model, site, binding, adapter).remove)
        except BaseException:
            Handle(undo).remove()
            raise
        return Attachment(Handle(undo))

    def check(
        self, model: nn.Module, adapter: Adapter | None = None, check_host: bool = True
    ) -> list[tuple[Binding, Site]]:
        """Everything that ``attach`` checks, without attaching.

        Returns:
            Each binding with its site, whose taps are those it acts on.

        Raises:
            VlmEditError: As ``attach``.
        """
        targets = [(binding, _target(model, binding, adapter)) for binding in self.bindings]
        if check_host and self.host is not None:
            sites = [find_site(model, name, adapter) for name in self.host["sites"]]
            expect_host(dict(self.host), fingerprint(model, sites))
        return targets

    def save(
        self,
        path: str | os.PathLike[str],
        model: nn.Module | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """Write the patch as one safetensors file.

        Args:
            path: The file, by custom ``*.safetensors``.
            model: The host it is for, whose fingerprint goes into the file. Not needed for a
                patch that was loaded from one.
            adapter: The host's adapter; by default found.

        Raises:
            VlmEditError: Neither a host nor a fingerprint, or the patch does not fit the host.
        """
        host = self.host
        if model is not None:
            self.check(model, adapter, check_host=False)
            sites = [find_site(model, binding.site, adapter) for binding in self.bindings]
            host = fingerprint(model, sites)
        missing = [b.site for b in self.bindings if host is None or b.site not in host["sites"]]
        if host is None or missing:
            raise VlmEditError(
                f"a patch file names the host it is for, and none is known for {missing}: call "
                "patch.save(path, model)"
            )
        storage.write(path, self.bindings, host, self.info)


def load_patch(path: str | os.PathLike[str]) -> Patch:
    """Read a patch file.

    Args:
        path: A file written by ``Patch.save``.

    Returns:
        The patch, ready to attach.

    Raises:
        VlmEditError: Not such a file, damaged, or written by a newer version.

    Example:
        >>> import tempfile, pathlib
        >>> from vlm_edit import Ablate, Patch, load_patch, zoo
        >>> host, _ = zoo.load_host()
        >>> patch = Patch.at("joint", zoo.load_dictionary("joint"), Ablate([7]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "no-seven.safetensors")
        ...     patch.save(file, host)
        ...     load_patch(file).bindings[0].site
        'joint'
    """
    return Patch(*storage.read(path))


def _target(model: nn.Module, binding: Binding, adapter: Adapter | None) -> Site:
    """The binding's site with the taps it acts on, after every check that can be made now."""
    site = find_site(model, binding.site, adapter)
    if site.dead:
        raise VlmEditError(f"an edit at {site.name!r} would change nothing: {site.dead}")
    expect_width(model, site, binding.splice.slice.decoder.shape[1])
    if binding.tokens != "all":
        taps = tuple(tap for tap in site.taps if tap.stream in (binding.tokens, "mixed"))
        if not taps:
            raise VlmEditError(
                f"no {binding.tokens} tokens pass site {site.name!r} (only "
                f"{', '.join(site.streams)}): an edit of them there would change nothing"
            )
        site = replace(site, taps=taps)
    centers = binding.splice.slice.encoder.centers
    missing = [s for s in site.streams if centers and s not in centers]
    if missing:
        mixed = any(tap.stream == "mixed" for tap in site.taps)
        mend = "add the center" if mixed else "pass tokens= to edit those alone"
        raise VlmEditError(
            f"the dictionary has no center for the {missing[0]} stream of site {site.name!r}, "
            f"only for {', '.join(centers)}: {mend}"
        )
    return site
