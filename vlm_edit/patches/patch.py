"""Patch: edits bound to sites of a host."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from vlm_edit import hooks, tracing
from vlm_edit.dictionaries import STREAMS, AnyDictionary, PairedDictionary
from vlm_edit.dictionaries.origin import expect_model
from vlm_edit.edits import Rule, Splice
from vlm_edit.errors import VlmEditError
from vlm_edit.fingerprint import expect_host, fingerprint, host_name
from vlm_edit.hooks import Handle, Phase, Selection, Threads, Tokens
from vlm_edit.patches import storage
from vlm_edit.patches.active import Active, Run
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.report import Tally
from vlm_edit.sites import Adapter, Site, expect_width, find_site, unwrap

Engine = Literal["hooks", "nnsight"]


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
        dictionary: AnyDictionary,
        rules: Sequence[Rule] | Rule,
        tokens: Tokens = "all",
        info: Mapping[str, str] | None = None,
        *,
        phase: Phase = "both",
        steps: tuple[int, int | None] | None = None,
        positions: Sequence[int] | None = None,
    ) -> Patch:
        """A patch of one site.

        Args:
            site: The site's name, e.g. ``joint``.
            dictionary: Whose features the rules name. Only what they need of it is kept. One for
                each stream acts on each stream's tokens by its own.
            rules: Applied in order on one code.
            tokens: ``image`` or ``text`` for one stream's tokens only.
            info: What to say of the patch, free text by key.
            phase: ``prompt`` for the prompt's tokens only, ``decode`` for generated ones. Outside
                ``generate`` a call without a cache is all prompt.
            steps: First and one past the last decode step; None for all. Step 0 is the one whose
                input is the first token generated. With ``phase="both"`` the prompt is edited too.
            positions: Places in the prompt, padding not counted, negative from its end (-1 is the
                last token); then no other token is edited. Padding is what ``attention_mask``
                [B, S] says; a mask of four dimensions does not tell.

        Raises:
            VlmEditError: No rule, a feature that the dictionary does not have, an unknown or
                contradictory choice of tokens, or another site than the dictionary was trained at.
        """
        if isinstance(dictionary, PairedDictionary):
            # No image is generated, so that decode steps leave only text.
            streams: tuple[Tokens, ...] = STREAMS
            if tokens == "all" and phase == "decode":
                streams = ("text",)
            parts = [
                cls.at(
                    site,
                    dictionary.of(stream),
                    rules,
                    tokens=stream,
                    info=info,
                    phase=phase,
                    steps=steps,
                    positions=positions,
                )
                for stream in streams
                if tokens in ("all", stream)
            ]
            return sum(parts[1:], start=parts[0])
        dictionary.expect_site(site)
        listed = [rules] if isinstance(rules, Rule) else list(rules)
        places = cast("tuple[int, ...] | None", positions)  # made one there
        selection = Selection(tokens, phase, steps, places)
        trained_on = dictionary.info.get("model_name")
        binding = Binding(site, Splice.of(dictionary, listed), selection, trained_on)
        return cls((binding,), info=info or {})

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
        self,
        model: nn.Module | tracing.NNsight,
        adapter: Adapter | None = None,
        check_host: bool = True,
        *,
        strength: float | Sequence[float] | Tensor = 1.0,
        mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        via: Engine = "hooks",
        threads: Threads = "all",
    ) -> Attachment:
        """Put the patch on a host: in force from now on, whole or not at all.

        Args:
            model: The host, or an nnsight model around it. Neither its code nor its weights
                change.
            adapter: The host's adapter; by default found.
            check_host: Whether to compare the host with the one the patch was saved for, and its
                name with the one its dictionaries were trained on.
            strength: Multiplies what the patch changes; one number, or one per row of the batch
                (0 leaves a row bit for bit as it is). Beams of a row share its strength.
            mask: [B, P] bool, the tokens of the prompt to edit instead of those the patch chooses
                by modality, padding included in P. Generated tokens are chosen as without it.
            image_mask: [B, P] bool, which tokens of the prompt are image, for calls that do not
                tell because image features are merged into ``inputs_embeds`` already.
            via: What calls the edits: forward ``hooks``, or ``nnsight``, whose traces then see
                what they did; ``docs/nnsight.md`` tells the two apart. Outputs are the same to
                the bit.
            threads: In whose forwards it acts: those of ``all`` threads, or of the calling
                thread's ``own`` only, until that ends. Attached so by several threads, patches of
                one host do not mix.

        Returns:
            A handle with ``remove`` and ``report``, and a context manager that removes the patch
            at the end.

        Raises:
            VlmEditError: A site the host lacks, a dead site, another width, a stream that does
                not pass there, another host than the patch was saved for or its dictionaries
                were trained on, or a site that nnsight does not see.
        """
        if via not in get_args(Engine):
            raise VlmEditError(f"via is {via!r}; use 'hooks' or 'nnsight'")
        put = hooks.attach if via == "hooks" else tracing.attach
        host = tracing.host_of(model)
        actives = self.prepare(host, adapter, check_host, Run.of(strength, mask, image_mask))
        undo: list[Callable[[], None]] = []
        try:
            for site, active in actives:
                undo.append(put(host, site, active, adapter, threads=threads).remove)
        except BaseException:
            Handle(undo).remove()
            raise
        return Attachment(undo, [active for _, active in actives])

    def prepare(
        self,
        model: nn.Module,
        adapter: Adapter | None = None,
        check_host: bool = True,
        run: Run | None = None,
    ) -> list[tuple[Site, Active]]:
        """What ``attach`` attaches: each binding's site in a host, and what edits its outputs.

        Raises:
            VlmEditError: As ``attach``.
        """
        return [
            (site, Active(binding, run or Run.of(), Tally(site.name, _device(site, model))))
            for binding, site in self.check(model, adapter, check_host)
        ]

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
        if check_host:
            self._expect_model(model)
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
            self._expect_model(model)
            sites = [find_site(model, binding.site, adapter) for binding in self.bindings]
            host = fingerprint(model, sites)
        missing = [b.site for b in self.bindings if host is None or b.site not in host["sites"]]
        if host is None or missing:
            raise VlmEditError(
                f"a patch file names the host it is for, and none is known for {missing}: call "
                "patch.save(path, model)"
            )
        storage.write(path, self.bindings, host, self.info)

    def _expect_model(self, model: nn.Module) -> None:
        for binding in self.bindings:
            expect_model(binding.model_name, host_name(model))


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
    tokens = binding.selection.tokens
    if tokens != "all":
        taps = tuple(tap for tap in site.taps if tap.stream in (tokens, "mixed"))
        if not taps:
            raise VlmEditError(
                f"no {tokens} tokens pass site {site.name!r} (only "
                f"{', '.join(site.streams)}): an edit of them there would change nothing"
            )
        site = replace(site, taps=taps)
    if binding.selection.phase == "decode" and site.streams == ("image",):
        raise VlmEditError(
            f"phase='decode' at site {site.name!r} would change nothing: images are encoded with "
            "the prompt. Use phase='prompt', or a language site"
        )
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


def _device(site: Site, model: nn.Module) -> torch.device:
    """Where a site's output will most likely be."""
    for module in (site.taps[0].module, unwrap(model)):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type != "meta":
                return tensor.device
    return torch.device("cpu")


def attach_rows(
    model: nn.Module | tracing.NNsight,
    patches: Sequence[Patch | None],
    adapter: Adapter | None = None,
    check_host: bool = True,
    *,
    via: Engine = "hooks",
    threads: Threads = "all",
) -> Attachment:
    """Attach another patch for each row of the batches to come, all or none of them.

    Args:
        model: The host.
        patches: One per row; None leaves a row as it is. Beams of a row share its patch.
        adapter: The host's adapter; by default found.
        check_host: As for ``Patch.attach``.
        via: As for ``Patch.attach``.
        threads: As for ``Patch.attach``.

    Returns:
        One attachment for all; its report has the distinct patches' bindings in their order.

    Raises:
        VlmEditError: No patch at all, or one that does not fit the host.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> host, processor = zoo.load_host()
        >>> patch = Patch.at("joint", zoo.load_dictionary("joint"), Ablate([7]), tokens="text")
        >>> inputs = processor(text=["a cat", "a cat"], return_tensors="pt")
        >>> with attach_rows(host, [None, patch]) as attached:
        ...     _ = host.get_text_features(**inputs)
        >>> attached.report().edited_tokens
        1
    """
    distinct = list({id(patch): patch for patch in patches if patch is not None}.values())
    if not distinct:
        raise VlmEditError("attach_rows needs a patch for at least one row: all are None")
    undo: list[Callable[[], None]] = []
    actives: list[Active] = []
    shares: list[Tensor] = []
    try:
        for patch in distinct:
            rows = [float(own is patch) for own in patches]
            own = patch.attach(model, adapter, check_host, strength=rows, via=via, threads=threads)
            undo.append(own.detach)
            actives += own.actives
            shares += [torch.tensor(rows)] * len(own.actives)
    except BaseException:
        Handle(undo).remove()
        raise
    return Attachment(undo, actives, shares)
