"""End forwards behind the last site that is read, where that leaves nothing half done."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks.bypass import BypassStandIn
from vlm_edit.hooks.calls import cache_in
from vlm_edit.hooks.dispatch import Dispatcher, Handle, attach, place_of
from vlm_edit.hooks.on_host import OnHost
from vlm_edit.hooks.tokens import Tokens
from vlm_edit.hooks.tracker import CallTracker
from vlm_edit.host import Host, Model, Site, Tap

_FIRST = "the first forward of a kind runs whole, to see how often each site passes"
_KEPT = "logits_to_keep"
# Classes of such modules run their weights on several devices, or keep them elsewhere.
_SPREADING = ("torch.distributed.", "torch.nn.parallel.", "deepspeed.", "fairscale.")
_MOVING = ("_hf_hook", "_diffusers_hook")
# Where hooks are from that keep nothing for a call that was ended.
_HARMLESS = ("transformers.utils.output_capturing", "torch.nn.utils.")

Kind = tuple[Any, ...]


class EarlyStop:
    """Run forwards for what is read at some sites, and end each behind the last of them.

    What lies behind them is not run, which changes no bit of what passes there. The first forward
    of a kind runs whole: only where each site passes once is the next one of that kind ended. Nor
    is a forward ended that would leave something half done or unheard: of a host that is compiled,
    offloaded or spread over devices, of a pipeline, and where hooks or recordings of others wait.

    Args:
        host: The host.
        names: Of one or several sites.

    Attributes:
        reason: Why the last forward ran whole, or the next one will; None where the last was ended.

    Raises:
        VlmEditError: No site, an unknown one, or no adapter.

    Example:
        >>> from vlm_edit import Host, zoo
        >>> from vlm_edit.hooks import EarlyStop, record
        >>> host = Host.of(*zoo.load_host())
        >>> pairs, early = zoo.load_pairs(), EarlyStop(host, "text.0", "vision.0")
        >>> for numbers in ((0, 1), (2, 3)):
        ...     inputs = host.inputs([pairs.open(n) for n in numbers], ["a cat", "a dog"])
        ...     with record(host, "text.0", "vision.0") as recording:
        ...         early.run(inputs.values, rows=2)
        ...     print(len(recording.captures), early.reason)
        2 the first forward of a kind runs whole, to see how often each site passes
        2 None
    """

    def __init__(self, host: Host | Model, *names: str) -> None:
        if not names:
            raise BadArgument("no site is named: give those that are read, such as 'joint'")
        self._host, self._names = Host.of(host), names
        self._taps: tuple[Tap, ...] = ()
        self._learnt: dict[Kind, str | None] = {}
        self._find_taps()
        self.reason: str | None = _obstacle(self._host) or _FIRST

    def run(self, values: Mapping[str, Any], rows: int) -> None:
        """Run the host as ``Host.run`` does, as far as the sites need it.

        Args:
            values: As ``Inputs`` has them.
            rows: How many pairs they hold: a tower that is called once per image passes once
                where there is one.

        Raises:
            VlmEditError: As the host's forward raises it.
        """
        self._find_taps()
        self.reason = _obstacle(self._host) or _obstacle_in_call(values)
        heard = _heard(self._host, self._taps)
        if heard is None and _may_spare(self._host, self._taps, values):
            values = {**values, _KEPT: 1}
        if self.reason or heard:
            self.reason = self.reason or heard
            self._host.run(values)
            return
        kind = (min(rows, 2), *sorted((name, _form(value)) for name, value in values.items()))
        passes = _Passes(self._taps, ends=self._learnt.get(kind, _FIRST) is None)
        self._pass(values, passes)
        if not passes.ended:
            known = self._learnt.get(kind)
            self._learnt[kind] = verdict = passes.verdict()
            self.reason = known or verdict or _FIRST

    def _pass(self, values: Mapping[str, Any], passes: _Passes) -> None:
        handles: list[Handle] = []
        try:
            for number, tap in enumerate(self._taps):

                def note(hidden: Tensor, tokens: Tokens, number: int = number) -> Tensor:
                    passes.note(number, tokens)
                    return hidden

                handles.append(attach(self._host, Site(tap.path, (tap,), 0), note))
            self._host.run(values)
        except _AllPassed:
            CallTracker.abandon()
            passes.ended = True
        finally:
            for handle in handles:
                handle.remove()

    def _find_taps(self) -> None:
        """Look up where the sites are now; other modules may pass otherwise."""
        sites = (self._host.site(name) for name in self._names)
        taps = tuple(tap for site in sites for tap in site.taps)
        if [tap.module for tap in taps] != [tap.module for tap in self._taps]:
            self._learnt.clear()
        self._taps = taps


class _AllPassed(BaseException):
    """End a forward; no host's own ``except Exception`` goes on with it."""


class _Passes:
    """Count how often taps pass in a forward, and end it behind the last of them.

    Attributes:
        ended: Whether it was.
    """

    def __init__(self, taps: Sequence[Tap], ends: bool) -> None:
        self.ended = False
        self._taps, self._ends = taps, ends
        self._counts = [0] * len(taps)
        self._tokens: dict[int, Tokens] = {}
        self._known: dict[int, dict[str, Any]] = {}
        self._thread = threading.get_ident()  # others may be calling the host

    def note(self, number: int, tokens: Tokens) -> None:
        """Count a pass of a tap.

        Raises:
            _AllPassed: It was the last that is wanted.
        """
        if threading.get_ident() != self._thread:
            return
        self._counts[number] += 1
        self._tokens[number] = tokens
        self._known = {key: _facts(own) for key, own in self._tokens.items()}
        if self._ends and all(count == 1 for count in self._counts):
            raise _AllPassed

    def verdict(self) -> str | None:
        """Return why such a forward may not be ended, once one has run whole; None if it may."""
        for tap, count in zip(self._taps, self._counts, strict=True):
            if count != 1:
                return f"{tap.path!r} passes {count} times in a forward"
        for number, tokens in self._tokens.items():
            now, then = _facts(tokens), self._known[number]
            if now.keys() != then.keys() or any(now[key] is not then[key] for key in now):
                path = self._taps[number].path
                return f"whose the tokens of {path!r} are shows only after they have passed"
        return None


def _facts(tokens: Tokens) -> dict[str, Any]:
    """Return what is known of a call by now that tokens are told by."""
    facts = {name: value for name, value in vars(tokens.call).items() if name != "resolved"}
    if tokens.is_sensed:  # which are all of one modality, and only their images are asked for
        return {name: facts[name] for name in ("grid", "_facts") if name in facts}
    return facts


def _form(value: Any) -> str:
    """Return what tells arguments of one kind from those of another."""
    return f"{value.ndim}" if isinstance(value, Tensor) else type(value).__name__


def _obstacle(host: Host) -> str | None:
    """Return why no forward of a host can be ended; None where nothing shows."""
    if host.is_pipeline:
        return "a pipeline runs several models"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "the forward is being compiled or traced"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "hooks on all modules of the process would miss what is not run"
    if CallTracker.is_busy():
        return "it is run inside another call of a host"
    for path, module in _modules(host):
        reason = _obstacle_at(module)
        if reason is not None:
            return f"{path or 'the model'} ({type(module).__name__}) {reason}"
    return None


def _modules(host: Host) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules of a host by path, what wraps it too."""
    model = host.model if isinstance(host.model, nn.Module) else host.root
    yield from model.named_modules()


def _obstacle_at(module: nn.Module) -> str | None:
    """Return what about one module forbids to leave its forward by an exception."""
    kind, own = type(module), vars(module)
    if "_orig_mod" in module._modules or own.get("_compiled_call_impl") is not None:
        return "is compiled"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a script"
    if hasattr(kind.forward, "_torchdynamo_orig_callable"):
        return "has a compiled forward"
    if any(name in own for name in _MOVING):
        return "has its weights moved as it runs"
    homes = [type(weight) for weight in module._parameters.values() if weight is not None]
    for home in (*kind.__mro__, *homes):
        if home.__module__.startswith(_SPREADING):
            return "is spread over devices or processes"
    if own.get("_device_mesh") is not None:
        return "is spread over a mesh of devices"
    if "forward" in own and not isinstance(own["forward"], BypassStandIn):
        return "has a forward of its own, not its class's"
    return None


def _obstacle_in_call(values: Mapping[str, Any]) -> str | None:
    if cache_in(values) is not None:
        return "it fills a cache, which would stay half filled"
    return None


def _heard(host: Host, taps: Sequence[Tap]) -> str | None:
    """Return what of others waits for what may not be run."""
    wanted = {(tap.module, place_of(tap)) for tap in taps}
    for path, module in _modules(host):
        for place, dispatcher in Dispatcher.installed.get(module, {}).items():
            if dispatcher.heard and (module, place) not in wanted:
                return f"a recording or another callback waits at {path!r}"
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            home = getattr(hook, "__module__", None) or type(hook).__module__
            if not isinstance(hook, OnHost) and not home.startswith(_HARMLESS):
                return f"a hook of {home} is on {path or 'the model'!r}, and may wait for a call"
    return None


def _may_spare(host: Host, taps: Sequence[Tap], values: Mapping[str, Any]) -> bool:
    """Return whether the host may make logits of the last token alone.

    It takes them behind its inner model; what is read in the head must be of all tokens.
    """
    inner = getattr(host.root, "base_model", None)
    if not isinstance(inner, nn.Module) or inner is host.root or _KEPT in values:
        return False
    if values.get("labels") is not None:  # the loss is of all tokens
        return False
    if _KEPT not in inspect.signature(host.root.forward).parameters:
        return False
    modules = {*inner.modules()}
    return all(tap.module in modules for tap in taps)
