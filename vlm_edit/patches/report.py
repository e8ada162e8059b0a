"""What an attached patch has really edited."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from vlm_edit.hooks import Selection, Where

STREAMS = ("image", "text", "unknown")
PHASES = ("prompt", "decode", "unknown")


@dataclass(frozen=True)
class SiteReport:
    """What was edited at a site by one binding.

    Attributes:
        site: Its name.
        calls: How often the host ran it.
        tokens: Tokens edited, all in all; outputs without tokens count as one per row.
        streams: Of those, by stream; ``unknown`` where an edit of all tokens did not need to know.
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
        """One line."""
        told = [f"{n:,} {name}" for name, n in self.streams.items() if n] or ["none"]
        when = [f"{n:,} {name}" for name, n in self.phases.items() if n]
        tokens, calls = _number(self.tokens, "token"), _number(self.calls, "call")
        line = f"{self.site}: {tokens} edited in {calls}"
        if self.tokens:
            line += f" ({', '.join(told)}; {', '.join(when)})"
        if self.steps is not None:
            line += f", decode steps {self.steps[0]} to {self.steps[1]}"
        return line


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Report:
    """What a patch has edited since it was attached, binding by binding.

    Attributes:
        sites: One entry per binding, in the patch's order.
    """

    sites: tuple[SiteReport, ...]

    @property
    def edited_tokens(self) -> int:
        """Tokens edited at all sites together."""
        return sum(site.tokens for site in self.sites)

    def __str__(self) -> str:
        """One line per binding."""
        return "\n".join(map(str, self.sites))


class Tally:
    """Counts what one binding edits, without waiting for the device.

    What is known without looking at a tensor is counted in Python; the rest in small tensors on
    the device, which compiled code can do too. Threads that run one host count in turn.
    """

    def __init__(self, site: str, device: torch.device) -> None:
        self.device = device
        self.site = site
        self._calls = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self._steps: list[int] | None = None
        self._noted: deque[tuple[tuple[int, int | None] | None, int, int, int]] = deque()
        self._held = {device: _Held.on(device)}
        self._lock = threading.Lock()

    def add(
        self, selection: Selection, where: Where, hidden: Tensor, chosen: Tensor | bool
    ) -> None:
        """Count one output.

        Args:
            selection: What was asked for.
            where: What is known of the tokens.
            hidden: The output, [B, S, D] or without a sequence.
            chosen: Mask of the tokens edited, or one answer for all.
        """
        if torch.compiler.is_compiling():  # no lock there
            self._add(selection, where, hidden, chosen)
            return
        step = where.call.step
        if chosen is True and step is not None and where.stream == "mixed" and where.image is False:
            # Nearly all of a generation's calls: noted now, which needs no lock, and counted later.
            shape = hidden.shape
            if len(shape) == 3:
                rows, length, _ = shape
                self._noted.append((selection.steps, step, rows, length))
                if len(self._noted) < _MOST_NOTED:
                    return
                with self._lock:
                    self._count_noted()
                return
        with self._lock:
            self._add(selection, where, hidden, chosen)

    def _count_noted(self) -> None:
        """Count what was only noted; holds the lock."""
        while self._noted:
            asked, first, rows, length = self._noted.popleft()
            self._calls += 1
            self._counts["text", "decode"] += rows * length
            self._widen(asked, first, length)

    def _add(
        self, selection: Selection, where: Where, hidden: Tensor, chosen: Tensor | bool
    ) -> None:
        phase = _phase(where, hidden)
        on_device = torch.compiler.is_compiling() or phase is None
        if on_device:
            self._on(hidden.device).calls.add_(1)
        else:
            self._calls += 1
        if chosen is False:
            return
        image = where.image if where.stream == "mixed" else where.stream == "image"
        if on_device or phase is None:
            self._on(hidden.device).add(phase, image, where, hidden, _as_mask(chosen, hidden))
            return
        if isinstance(chosen, bool) and not isinstance(image, Tensor):
            self._counts[_STREAM[image], phase] += hidden.numel() // hidden.size(-1)
        else:
            self._on(hidden.device).put(phase, image, where, hidden, _as_mask(chosen, hidden))
        step = where.call.step
        if phase == "decode" and step is not None:
            self._widen(selection.steps, step, hidden.size(1))

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
        """The count so far; waits for the device."""
        with self._lock:
            self._count_noted()
            calls, steps, counts = self._calls, list(self._steps or ()), Counter(self._counts)
            everywhere = list(self._held.values())
        for held in everywhere:
            calls += int(held.calls)
            first, last = held.steps.tolist()
            steps += [first, last] if last >= 0 else []
            for i, row in enumerate(held.counts.tolist()):
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
    """What is counted on a device: [streams, phases], [1], and the first and last decode step."""

    counts: Tensor
    calls: Tensor
    steps: Tensor

    @classmethod
    def on(cls, device: torch.device) -> _Held:
        with torch.inference_mode(False):
            counts = torch.zeros(len(STREAMS), len(PHASES), dtype=torch.int64, device=device)
            calls = torch.zeros(1, dtype=torch.int64, device=device)
            return cls(counts, calls, torch.tensor([_NEVER, -1], device=device))

    def put(
        self,
        phase: str,
        image: Tensor | bool | None,
        where: Where,
        hidden: Tensor,
        chosen: Tensor,
    ) -> None:
        self.counts[:, PHASES.index(phase)].add_(_by_stream(image, where, hidden, chosen))

    def add(
        self,
        phase: str | None,
        image: Tensor | bool | None,
        where: Where,
        hidden: Tensor,
        chosen: Tensor,
    ) -> None:
        if phase is not None:
            self.put(phase, image, where, hidden, chosen)
            return
        step = where.call.places(hidden.device) - cast("Tensor", where.call.prompt)
        decoded = step >= 0
        self.put("prompt", image, where, hidden, chosen & ~decoded)
        self.put("decode", image, where, hidden, chosen & decoded)
        used = (chosen & decoded).any(0)
        first = torch.where(used, step, _NEVER).min()
        last = torch.where(used, step, -1).max()
        self.steps.copy_(
            torch.stack([torch.minimum(self.steps[0], first), torch.maximum(self.steps[1], last)])
        )


_NEVER = 2**62
_MOST_NOTED = 1024  # calls between two counts
_STREAM: dict[bool | None, str] = {True: "image", False: "text", None: "unknown"}


def _phase(where: Where, hidden: Tensor) -> str | None:
    """The phase of all tokens of an output; None where it holds both, or a tensor tells."""
    call = where.call
    if where.stream == "image":
        return "prompt"
    if hidden.ndim != 3:
        pooled = call.shape is not None and len(hidden) == call.shape[0]
        return "prompt" if pooled or where.stream == "text" else "unknown"
    if call.decodes:
        return "decode"
    if call.prompt is None or call.start is None or call.shape is None:
        return "unknown"
    if isinstance(call.start, int) and call.start + call.shape[1] <= call.prompt:
        return "prompt"
    return None


def _as_mask(chosen: Tensor | bool, hidden: Tensor) -> Tensor:
    if isinstance(chosen, Tensor):
        return chosen
    return torch.full(hidden.shape[:-1], chosen, dtype=torch.bool, device=hidden.device)


def _by_stream(image: Tensor | bool | None, where: Where, hidden: Tensor, chosen: Tensor) -> Tensor:
    """How many chosen tokens are image, text and unknown, [3]."""
    total = chosen.sum()
    zero = torch.zeros_like(total)
    if not isinstance(image, Tensor):
        place = STREAMS.index(_STREAM[image])
        return torch.stack([total if i == place else zero for i in range(len(STREAMS))])
    seen = where.image_at(hidden)
    if seen is None:  # nobody can tell which of its rows are whose
        return torch.stack([zero, zero, total])
    images = (chosen & seen).sum()
    return torch.stack([images, total - images, zero])
