"""Patch: edits bound to sites of a host."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_edit import hooks
from vlm_edit.dictionaries import AnyDictionary, expect_model
from vlm_edit.edits import Rule
from vlm_edit.ground import notebook
from vlm_edit.ground.errors import BadArgument, VlmEditError, WrongHost
from vlm_edit.ground.files import write_text
from vlm_edit.ground.plugs import plugged
from vlm_edit.hooks import Beside, Phase, Scope, Special, TokenChoice, tracing
from vlm_edit.host import (
    Host,
    Model,
    Site,
    expect_host,
    fingerprint,
    other_family,
    unguarded,
)
from vlm_edit.patches import baking, card, hub, storage
from vlm_edit.patches.active import Active, Run, Strength
from vlm_edit.patches.attaching import Engine, put
from vlm_edit.patches.attachment import Attachment
from vlm_edit.patches.binding import Binding, bind
from vlm_edit.patches.report import Tally
from vlm_edit.patches.targets import device_of, target_of


class Patch:
    """Edits bound to sites, independent of any one model in memory; a value that never changes.

    Args:
        site: The site's name, e.g. ``joint``.
        dictionary: Whose features the rules name. Only what they need of it is kept. One for
            each stream acts on each stream's tokens by its own.
        rules: Applied in order on one code.
        tokens: ``image`` for images' tokens only, or ``text`` for the texts' own and for what is
            generated; ``text+special`` takes along those of beginning, end, template and turns.
        info: What to say of the patch, free text by key.
        phase: ``prompt`` for the prompt's tokens only, ``decode`` for generated ones. Outside
            ``generate`` a call without a cache is all prompt.
        steps: First and one past the last decode step; None for all. Step 0 is the one whose
            input is the first token generated. With ``phase="both"`` the prompt is edited too.
        positions: Places in the prompt, padding not counted, negative from its end (-1 is the
            last token); then no other token is edited. Padding is what ``attention_mask``
            [B, S] says; a mask of four dimensions does not tell.
        schedule: Factors of the change at decode steps 0, 1, ...; the last one stays. The
            prompt's is 1.
        gate: Leave tokens alone of which the dictionary explains a smaller share: see
            ``edits.Gate``. The whole dictionary is kept then, and used at every token.

    Attributes:
        bindings: What is edited where; several at one site act one after the other.
        host: Fingerprint of the host it was saved for; None until then.
        info: What its maker says of it: free text by key.
        versions: Of vlm_edit, torch and transformers, when the file it comes from was written.

    Raises:
        VlmEditError: Another kind of argument, no rule, a feature that the dictionary does not
            have, an unknown or contradictory choice of tokens, or another site than the dictionary
            was trained at.

    Example:
        >>> from vlm_edit import Ablate, Patch, zoo
        >>> host, processor = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7, 12]))
        >>> patch
        Patch(joint: ablate 2 features at all tokens)
        >>> inputs = processor(text=["a cat"], return_tensors="pt")
        >>> before = host.get_text_features(**inputs).pooler_output
        >>> with patch.attach(host):
        ...     during = host.get_text_features(**inputs).pooler_output
        >>> after = host.get_text_features(**inputs).pooler_output
        >>> bool((before == after).all())
        True
    """

    __slots__ = ("__weakref__", "bindings", "host", "info", "versions")

    bindings: tuple[Binding, ...]
    host: Mapping[str, Any] | None
    info: Mapping[str, str]
    versions: Mapping[str, str]

    def __init__(
        self,
        site: str,
        dictionary: AnyDictionary,
        rules: Sequence[Rule] | Rule,
        tokens: TokenChoice = "all",
        info: Mapping[str, str] | None = None,
        *,
        phase: Phase = "both",
        steps: tuple[int, int | None] | None = None,
        positions: Sequence[int] | None = None,
        schedule: Sequence[float] | None = None,
        gate: float | None = None,
    ) -> None:
        selection = {"phase": phase, "steps": steps, "positions": positions}
        self._hold(
            bind(site, dictionary, rules, tokens, selection, schedule, gate), None, info or {}
        )

    @classmethod
    def joined(
        cls,
        bindings: Iterable[Binding],
        host: Mapping[str, Any] | None = None,
        info: Mapping[str, str] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Patch:
        """Make a patch of bindings that are there, such as those of other patches.

        Args:
            bindings: At least one.
            host: As the attribute, like the rest.
            info: Likewise.
            versions: Likewise.

        Raises:
            VlmEditError: No binding.
        """
        patch = object.__new__(cls)
        patch._hold(tuple(bindings), host, info or {}, versions or {})
        return patch

    def _hold(
        self,
        bindings: tuple[Binding, ...],
        host: Mapping[str, Any] | None,
        info: Mapping[str, str],
        versions: Mapping[str, str] | None = None,
    ) -> None:
        if not bindings:
            raise BadArgument(
                "a patch needs at least one binding: make it with Patch(site, dictionary, rules)"
            )
        values = {"bindings": bindings, "host": host, "info": info, "versions": versions or {}}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to change: a patch is a value."""
        raise AttributeError(f"a patch does not change, so its {name} stays; make another one")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by what it holds."""
        return (Patch.joined, (self.bindings, self.host, self.info, self.versions))

    def __repr__(self) -> str:
        """Say on a line what it edits where."""
        words = "; ".join(binding.words() for binding in self.bindings)
        return notebook.one_line(f"Patch({words})")

    def _repr_html_(self) -> str:
        """Say it in a notebook."""
        facts = {"host": self.host["architecture"]} if self.host else {}
        rows = [
            (b.site, card.rule_text(rule), card.features_text(rule.features), b.selection)
            for b in self.bindings
            for rule in b.splice.rules
        ]
        columns = ("site", "rule", "features", "tokens")
        return notebook.card("Patch", {**facts, **self.info}, columns, rows)

    def __add__(self, other: Patch) -> Patch:
        """Join both patches to one, this one's edits first.

        Raises:
            VlmEditError: They were saved for different hosts.
        """
        host = self.host or other.host
        if self.host and other.host:
            shared = {k: v for k, v in self.host["sites"].items() if k in other.host["sites"]}
            try:
                expect_host({**self.host, "sites": shared}, other.host)
            except VlmEditError as error:
                raise WrongHost(f"these patches do not belong to one host: {error}") from error
            host = {**self.host, "sites": {**self.host["sites"], **other.host["sites"]}}
        return Patch.joined(self.bindings + other.bindings, host, {**self.info, **other.info})

    def attach(
        self,
        host: Host | Model | tracing.NNsight,
        *,
        check_host: bool = True,
        strength: Strength = 1.0,
        mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        via: Engine = "hooks",
        scope: Scope = "process",
        **choices: Any,
    ) -> Attachment:
        """Put the patch on a host: in force from now on, whole or not at all.

        Args:
            host: The host, its model, an nnsight model around it, or a pipeline that holds
                hosts. Neither its code nor its weights change.
            check_host: Whether to compare the host with the one the patch was saved for, and its
                name with the one its dictionaries were trained on.
            strength: Multiplies what the patch changes; one number, or one per row of the batch
                (0 leaves a row bit for bit as it is), or [B, P], one per token of the prompt,
                padding included; generated tokens have 1 then. Beams of a row share its strength.
                ``{"image": [...], "text": 1.0}`` gives each stream its own, where a call has
                other images than texts.
            mask: [B, P] bool, the tokens of the prompt to edit instead of those the patch chooses
                by modality, padding included in P. Generated tokens are chosen as without it.
            image_mask: [B, P] bool, which tokens of the prompt are image, for calls that do not
                tell because image features are merged into ``inputs_embeds`` already.
            via: What calls the edits: forward ``hooks``, or ``nnsight``, whose traces then see
                what they did; ``docs/nnsight.md`` tells the two apart. Outputs are the same to
                the bit.
            scope: In whose forwards it acts: the whole ``process``'s; the calling ``thread``'s
                only, until that ends; or those of the calling ``context`` of ``contextvars``, which
                an asyncio task has of its own, and of what is started from it. Attached so by
                several threads or tasks, patches of one host do not mix. ``docs/loops.md``
                compares them.
            **choices: Which rows of the host's calls are meant, by words that plug-ins of the
                tracker declare (``hooks.Choice``): ``docs/text-to-image.md`` has the one that
                tells a pipeline's prompt from its negative prompt, and ``requests=`` names the
                requests of continuous batching that ``docs/loops.md`` tells of.

        Returns:
            A handle with ``remove`` and ``report``, and a context manager that removes the patch
            at the end.

        Raises:
            VlmEditError: A site the host lacks, a dead site, another width, a stream that does
                not pass there, another host than the patch was saved for or its dictionaries
                were trained on, a site that nnsight does not see, or a choice that this host
                does not offer.
            TypeError: A word that nothing declares.
        """
        host = tracing.host_of(host)
        chosen = hooks.chosen_in(host, choices) or None
        run = replace(Run.of(strength, mask, image_mask), chosen=chosen)
        return put(host, [(self, run)], check_host=check_host, via=via, scope=scope)

    def prepare(
        self, host: Host | Model, *, check_host: bool = True, run: Run | None = None
    ) -> list[tuple[Site, Active]]:
        """Return what ``attach`` attaches: each binding's site, and what edits its outputs.

        Raises:
            VlmEditError: As ``attach``.
        """
        host = Host.of(host)
        actives = []
        for binding, site in self.check(host, check_host=check_host):
            tally = Tally(site.name, device_of(site, host), Special.at(host, site.name))
            beside = None
            if binding.reads:
                beside = Beside([host.site(name) for name in binding.reads], site.name)
            actives.append((site, Active(binding, run or Run.of(), tally, beside)))
        return actives

    def check(self, host: Host | Model, *, check_host: bool = True) -> list[tuple[Binding, Site]]:
        """Check everything that ``attach`` checks, without attaching.

        Returns:
            Each binding with its site, whose taps are those it acts on.

        Raises:
            VlmEditError: As ``attach``.
        """
        host = Host.of(host)
        targets = [(binding, target_of(host, binding)) for binding in self.bindings]
        if check_host:
            try:
                self._expect_model(host)
                sites = [host.site(name) for name in (self.host or {"sites": ()})["sites"]]
            except VlmEditError as error:
                raise type(error)(f"{error}; or pass check_host=False") from error
            self._expect_host(host, sites)
        return targets

    def _expect_host(self, host: Host, sites: list[Site]) -> None:
        if self.host is not None:
            blind = expect_host(self.host, fingerprint(host, sites, like=self.host))
            if blind:
                warnings.warn(
                    f"whether this is the host the patch was made for cannot be told {_at(blind)}: "
                    "another one with other weights is let in too; check_host=False says that you "
                    "know which it is",
                    stacklevel=6,  # the line of attach
                )

    def _sites(self) -> list[str]:
        """Return the names of all sites that are edited or read, each once."""
        return list(dict.fromkeys(name for b in self.bindings for name in (b.site, *b.reads)))

    def save(
        self,
        path: str | os.PathLike[str],
        host: Host | Model | None = None,
    ) -> None:
        """Write the patch as one safetensors file.

        Args:
            path: The file, by custom ``*.safetensors``.
            host: The host it is for, whose fingerprint goes into the file. Not needed for a
                patch that was loaded from one.

        Raises:
            VlmEditError: Neither a host nor a fingerprint, or the patch does not fit the host.
        """
        identity = self.host
        if host is not None:
            host = Host.of(host)
            self.check(host, check_host=False)
            self._expect_model(host)
            sites = [host.site(name) for name in self._sites()]
            identity = {**fingerprint(host, sites), "name": host.hub_name}
            identity |= {"licence": host.licence} if host.licence else {}
            if unguarded(identity):
                warnings.warn(
                    "the patch is saved without samples of the host's weights "
                    f"{_at(unguarded(identity))}: it cannot tell another host; save it from one "
                    "whose weights lie in memory",
                    stacklevel=2,
                )
        known = () if identity is None else identity["sites"]
        missing = [name for name in self._sites() if name not in known]
        if identity is None or missing:
            raise BadArgument(
                f"a patch file names the host it is for, and none is known for {missing}: call "
                "patch.save(path, host)"
            )
        storage.write(path, self.bindings, identity, self.info)

    def compare(
        self, host: Host | Model, image: Any, question: str | Sequence[str], **options: Any
    ) -> Any:
        """Ask a host about an image without the patch and with it, by ``tasks.comparing.compare``.

        Args:
            host: One that speaks, one that embeds, or a pipeline that draws.
            image: The image, or its file; None for a pipeline.
            question: A question, a list of labels, or a prompt.
            options: As for ``compare``.

        Returns:
            A small table with pictures, in a notebook and at a prompt.

        Example:
            >>> from vlm_edit import Clamp, Host, Patch, zoo
            >>> dictionary, host = zoo.load_dictionary("language.0"), Host.of(*zoo.load_llava())
            >>> yellow = Clamp([342, 110, 49, 501], 8.0)
            >>> patch = Patch("language.0", dictionary, yellow, tokens="image")
            >>> picture = zoo.load_pairs().open(1)
            >>> compared = patch.compare(host, picture, "what colour is the background?")
            >>> compared.rows
            [('answer', 'blue', 'yellow')]
        """
        return plugged("compare")(host, self, image, question, **options)

    def card(
        self,
        *,
        effect: Mapping[str, Any] | None = None,
        cost: Mapping[str, Any] | None = None,
        license: str | None = None,
        repository: str = "owner/name",
        file: str = "patch.safetensors",
    ) -> str:
        """Write the card of a repository with this patch, in Markdown with metadata.

        Args:
            effect: What was measured of it, free text or numbers by name.
            cost: What it costs, likewise.
            license: The hub's name of one, such as ``apache-2.0``; None says that none is stated.
            repository: Where it will be, for the lines that load it.
            file: Likewise.

        Example:
            >>> from vlm_edit import Ablate, Patch, zoo
            >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
            >>> text = patch.card(effect={"R@1": ".66 before, .58 after"}, license="apache-2.0")
            >>> [line for line in text.splitlines() if "joint" in line or "R@1" in line][:1]
            ['| joint | all tokens | ablate | 7 | 1 |']
        """
        return card.card(
            self, file=file, repository=repository, effect=effect, cost=cost, license=license
        )

    def push_to_hub(
        self,
        name: str,
        host: Host | Model | None = None,
        *,
        file: str = "patch.safetensors",
        effect: Mapping[str, Any] | None = None,
        cost: Mapping[str, Any] | None = None,
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
    ) -> str:
        """Put the patch and its card into a repository on the hub, in one commit.

        Args:
            name: ``owner/name``; it is made if it is not there.
            host: As for ``save``.
            file: Place in the repository. The card lies beside it as ``README.md``, so that
                patches in folders of their own keep a card each.
            effect: As for ``card``, like ``cost`` and ``license``.
            cost: Likewise.
            license: Likewise.
            private: Whether a new repository is; None for the owner's default.
            revision: An existing branch; None for the main one.

        Returns:
            The commit's address.

        Raises:
            VlmEditError: As ``save``; or the hub cannot be reached or refuses.
        """
        hub.expect_target(name, file)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.save(target, host)
            text = load_patch(target).card(
                effect=effect, cost=cost, license=license, repository=name, file=file
            )
            write_text(target.with_name("README.md"), text, "card")
            return hub.push(
                name, Path(folder), message=f"Add {file}", private=private, revision=revision
            )

    def bake(self, host: Host | Model, *, check_host: bool = True) -> baking.Baked:
        """Fold the patch into the host's weights: no hook, no cost. Only where that is exact.

        Exact are rules that are linear in the hidden state (``Project``, ``Steer``, all but
        ``Cap`` of raw neurons without a norm), on all tokens, where an ``nn.Linear`` gives the
        site's output (joint embeddings, projectors); constants also where its output is added to
        it last (layers of CLIP and SigLIP). Padding, which an attached patch leaves alone, is
        edited too; weights are rounded to their dtype.

        Args:
            host: The host, whose weights are written to, in place.
            check_host: As for ``attach``.

        Returns:
            What has ``undo`` and undoes it at the end of a with-block. Forget it to keep the edit.

        Raises:
            VlmEditError: As ``attach``; or it is not exact, says why, and nothing has changed.
        """
        return baking.bake(self, Host.of(host), check_host)

    def _expect_model(self, host: Host) -> None:
        for binding in self.bindings:
            other = other_family(host.model, binding.model_name)
            expect_model(binding.model_name, host.name, other)


def _at(reasons: Mapping[str, str]) -> str:
    """Say at which sites, and why."""
    return "; ".join(f"at {name} ({why})" for name, why in reasons.items())


def load_patch(
    path: str | os.PathLike[str],
    *,
    file: str | None = None,
    revision: str | None = None,
    verify: bool = True,
) -> Patch:
    """Read a patch from a file or from the hub; no code from it is run.

    Args:
        path: A file written by ``Patch.save``, a folder with one, or ``owner/name`` of a
            repository on the hub, which huggingface_hub fetches into its cache (offline: takes
            from there).
        file: A file inside, where there are several.
        revision: Branch, tag or commit of a repository.
        verify: Whether to refuse a file of which a byte has changed since it was written.

    Returns:
        The patch, ready to attach.

    Raises:
        VlmEditError: Not such a file, damaged, or written by a newer version; or no such
            repository, or one that cannot be fetched.

    Example:
        >>> import tempfile, pathlib
        >>> from vlm_edit import Ablate, Patch, load_patch, zoo
        >>> host, _ = zoo.load_host()
        >>> patch = Patch("joint", zoo.load_dictionary("joint"), Ablate([7]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "no-seven.safetensors")
        ...     patch.save(file, host)
        ...     load_patch(file).bindings[0].site
        'joint'
    """
    return Patch.joined(*storage.read(hub.locate(path, file, revision), verify))
