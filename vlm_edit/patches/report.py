"""What an attached patch has really edited."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from vlm_edit.ground.modality import SENSED, Mixed, Modality
from vlm_edit.hooks import Selection, Special, Tokens

STREAMS = ("image", "video", "audio", "text", "special", "unknown")
_WITHOUT_WORDS = (*SENSED, None)
PHASES = ("prompt", "decode", "unknown")


@dataclass(frozen=True)
class SiteReport:
    """The count of what one binding edited at a site.

    Attributes:
        site: Its name.
        calls: How often the host ran it.
        tokens: Tokens edited, all in all; outputs without tokens count as one per row.
        streams: Of those, by stream: ``special`` tokens are apart from ``text`` where it is known
            which they are; ``unknown`` where an edit of all tokens did not need to know.
        phases: Of those, by phase; ``unknown`` in calls that do not tell.
        steps: First and last decode step that were edited; None if none was.
    """

    site: str
    calls: int
    tokens: int
    streams: dict[str, int]
    phases: dict[str, int]
    steps: tuple[int, int] | None

    def __str__(self) -> str:
        """Say it on one line."""
        streams = [f"{n:,} {name}" for name, n in self.streams.items() if n] or ["none"]
        phases = [f"{n:,} {name}" for name, n in self.phases.items() if n]
        tokens, calls = _number(self.tokens, "token"), _number(self.calls, "call")
        line = f"{self.site}: {tokens} edited in {calls}"
        if self.tokens:
            line += f" ({', '.join(streams)}; {', '.join(phases)})"
        if self.steps is not None:
            line += f", decode steps {self.steps[0]} to {self.steps[1]}"
        return line


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Report:
    """The count of what a patch has edited since it was attached, binding by binding.

    Attributes:
        sites: One entry per binding, in the patch's order.
    """

    sites: tuple[SiteReport, ...]

    @property
    def edited_tokens(self) -> int:
        """Return the number of tokens edited at all sites together."""
        return sum(site.tokens for site in self.sites)

    def __str__(self) -> str:
        """Write one line per binding."""
        return "\n".join(map(str, self.sites))


class Tally:
    """Count what one binding edits, without waiting for the device.

    What is known without looking at a tensor is counted in Python; the rest in small tensors on
    the device, which compiled code can do too. Threads that run one host count in turn.
    """

    def __init__(self, site: str, device: torch.device, special: Special | None = None) -> None:
        self.device = device
        self.special = special
        self.site = site
        self._calls = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._steps: list[int] | None = None
        self._noted: deque[tuple[torch.Size, Any, Any] | None] = deque()
        self._held = {device: _Held.on(device)}
        self._lock = threading.Lock()

    def note(self, tokens: Tokens, chosen: bool) -> None:
        """Count an output of generated text later, all of it or none, which needs no lock now."""
        call = tokens.call
        self._noted.append((tokens.shape, call.start, call.prompt) if chosen else None)
        if len(self._noted) >= _MOST_NOTED:
            with self._lock:
                self._count_noted()

    def add(self, selection: Selection, tokens: Tokens, chosen: Tensor | bool) -> None:
        """Count an output's edited tokens.

        Args:
            selection: What was asked for.
            tokens: What is known of its tokens.
            chosen: Mask of those edited, or one answer for all.
        """
        if torch.compiler.is_compiling():  # no lock there
            self._add(selection, tokens, chosen)
            return
        with self._lock:
            self._add(selection, tokens, chosen)

    def _count_noted(self) -> None:
        """Count what was only noted; holds the lock."""
        while self._noted:
            entry = self._noted.popleft()
            self._calls += 1
            if entry is not None:
                shape, start, prompt = entry
                self._counts["text", "decode"] += shape[0] * shape[1]
                self._widen(None, start - prompt, shape[1])

    def _add(self, selection: Selection, tokens: Tokens, chosen: Tensor | bool) -> None:
        phase = tokens.phase
        on_device = torch.compiler.is_compiling() or phase is None
        if on_device:
            self._on(tokens.device).calls.add_(1)
        else:
            self._calls += 1
        if chosen is False:
            return
        modality = tokens.modality
        if phase is None or on_device:
            self._on(tokens.device).add(phase, tokens, chosen, self.special)
            return
        special = None if modality in _WITHOUT_WORDS else tokens.special_rows(self.special)
        if isinstance(chosen, bool) and not isinstance(modality, Mixed) and special is None:
            self._counts[modality or "unknown", phase] += tokens.shape[:-1].numel()
        else:
            self._on(tokens.device).put(phase, tokens, _as_mask(chosen, tokens), special)
        if phase == "decode" and tokens.step is not None:
            self._widen(selection.steps, tokens.step, tokens.shape[1])

    def _widen(self, asked: tuple[int, int | None] | None, first: int, length: int) -> None:
        """Count a call of generated tokens among the steps."""
        last = first + length - 1
        if asked is not None:
            first = max(first, asked[0])
            last = last if asked[1] is None else min(last, asked[1] - 1)
        if self._steps is None:
            self._steps = [first, last]
        if first < self._steps[0]:
            self._steps[0] = first
        if last > self._steps[1]:
            self._steps[1] = last

    @property
    def report(self) -> SiteReport:
        """Return the count so far; waits for the device."""
        with self._lock:
            self._count_noted()
            calls, steps, counts = self._calls, list(self._steps or ()), Counter(self._counts)
            parts = list(self._held.values())
        for part in parts:
            calls += int(part.calls)
            first, last = part.steps.tolist()
            steps += [first, last] if last >= 0 else []
            for i, row in enumerate(part.counts.tolist()):
                counts.update({(STREAMS[i], PHASES[j]): n for j, n in enumerate(row)})
        return SiteReport(
            self.site,
            calls,
            sum(counts.values()),
            {s: sum(counts[s, p] for p in PHASES) for s in STREAMS},
            {p: sum(counts[s, p] for s in STREAMS) for p in PHASES},
            (min(steps), max(steps)) if steps else None,
        )

    def _on(self, device: torch.device) -> _Held:
        if device not in self._held:
            self._held[device] = _Held.on(device)
        return self._held[device]


@dataclass(frozen=True, eq=False)
class _Held:
    """The counts on a device: [streams, phases], [1], and the first and last decode step."""

    counts: Tensor
    calls: Tensor
    steps: Tensor

    @classmethod
    def on(cls, device: torch.device) -> _Held:
        with torch.inference_mode(False):
            counts = torch.zeros(len(STREAMS), len(PHASES), dtype=torch.int64, device=device)
            calls = torch.zeros(1, dtype=torch.int64, device=device)
            return cls(counts, calls, torch.tensor([_NEVER, -1], device=device))

    def put(self, phase: str, tokens: Tokens, chosen: Tensor, special: Tensor | None) -> None:
        self.counts[:, PHASES.index(phase)].add_(_by_stream(tokens.modality, chosen, special))

    def add(
        self, phase: str | None, tokens: Tokens, chosen: Tensor | bool, ids: Special | None
    ) -> None:
        mask = _as_mask(chosen, tokens)
        special = None if tokens.modality in _WITHOUT_WORDS else tokens.special_rows(ids)
        if phase is not None:
            self.put(phase, tokens, mask, special)
            return
        step = cast("Tensor", tokens.steps())
        decoded = step >= 0
        self.put("prompt", tokens, mask & ~decoded, special)
        self.put("decode", tokens, mask & decoded, special)
        used = mask & decoded
        first = torch.where(used, step, _NEVER).min()
        last = torch.where(used, step, -1).max()
        self.steps.copy_(
            torch.stack([torch.minimum(self.steps[0], first), torch.maximum(self.steps[1], last)])
        )


_NEVER = 2**62
_MOST_NOTED = 1024  # calls between two counts


def _as_mask(chosen: Tensor | bool, tokens: Tokens) -> Tensor:
    return chosen if isinstance(chosen, Tensor) else tokens.fill(chosen)


def _by_stream(modality: Modality | None, chosen: Tensor, special: Tensor | None = None) -> Tensor:
    """Count the chosen tokens of each stream, and those of unknown stream, [streams]."""
    total = chosen.sum()
    counts = dict.fromkeys(STREAMS, torch.zeros_like(total))
    if special is not None:
        counts["special"] = (chosen & special).sum()
        chosen = chosen & ~special
        total = total - counts["special"]
    if isinstance(modality, Mixed):
        for name in modality.masks:
            counts[name] = (chosen & modality.at(name)).sum()
            total = total - counts[name]
        modality = "text"
    counts[modality or "unknown"] = total
    return torch.stack([counts[name] for name in STREAMS])
