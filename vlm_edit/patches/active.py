"""An edit in force: a binding with what the user says of this run, and a count of what it edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias, cast

import torch
from einops import repeat
from torch import Tensor

from vlm_edit.dictionaries import STREAMS, move
from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.ground.modality import Modality, stands_for
from vlm_edit.hooks import Beside, Chosen, Tokens, meant, unplaced
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.report import Tally

Strength: TypeAlias = (
    float
    | Sequence[float]
    | Sequence[Sequence[float]]
    | Tensor
    | Mapping[str, float | Sequence[float] | Tensor]
)

_FEW = 8  # strengths that are told one by one


@dataclass(frozen=True, eq=False)
class Run:
    """The user's words at ``attach`` on the inputs to come; not part of a patch.

    Attributes:
        strength: [B] float, one per row of the batch; or [B, P], one per token of the prompt;
            or [B] of each stream; None for 1 everywhere.
        mask: [B, P] bool, the tokens of the prompt to edit; None to go by the patch.
        image_mask: [B, P] bool, the image tokens of the prompt; None to go by the host's call.
        chosen: What plug-ins of the tracker are asked which rows are meant; None for all rows.
    """

    strength: Tensor | Mapping[str, Tensor] | None = None
    mask: Tensor | None = None
    image_mask: Tensor | None = None
    chosen: tuple[Chosen, ...] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is said."""
        return all(getattr(self, item.name) is None for item in fields(self))

    def acts(self, stream: str) -> Tensor:
        """Return which rows of a stream are changed at all, bool; one value stands for all."""
        strength = self.strength
        rows = strength[stream] if isinstance(strength, Mapping) else strength
        return torch.ones(1, dtype=torch.bool) if rows is None else rows != 0

    @classmethod
    def of(
        cls,
        strength: Strength = 1.0,
        mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Run:
        """Check what the user says, and put it in one form.

        Raises:
            VlmEditError: Not finite, of another shape, or a mask that is not bool.
        """
        for name, value in (("mask", mask), ("image_mask", image_mask)):
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.dtype != torch.bool or not value.ndim:
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise BadArgument(f"{name} must be a tensor of bool, [B, tokens], got {kind}")
        if isinstance(strength, Mapping):
            return cls(_by_stream(strength), mask, image_mask)
        rows = _rows(strength, "strength")
        plain = rows.ndim == 0 and float(rows) == 1.0
        return cls(None if plain else torch.atleast_1d(rows), mask, image_mask)


def _rows(strength: object, name: str) -> Tensor:
    try:
        rows = torch.as_tensor(strength, dtype=torch.float32).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadArgument(
            f"{name} is {strength!r}; give a number, or one per row of the batch"
        ) from error
    if rows.ndim > 2 or not rows.numel() or not bool(rows.isfinite().all()):
        raise BadArgument(
            f"{name} is {strength!r}; give a finite number, one per row of the batch, or "
            "[B, P], one per token of the prompt"
        )
    return rows


def _by_stream(strength: Mapping[str, object]) -> dict[str, Tensor]:
    if {*strength} != {*STREAMS}:
        raise BadArgument(
            f"strength is given for {', '.join(map(repr, strength)) or 'no stream'}; give both "
            "streams, such as strength={'image': [1.0, 0.5], 'text': 1.0}"
        )
    rows = {name: _rows(strength[name], f"strength[{name!r}]") for name in STREAMS}
    if any(values.ndim > 1 for values in rows.values()):
        raise BadArgument(
            "strength by stream has a number, or one per row of the batch, for each: strengths "
            "per token go without streams"
        )
    return {name: torch.atleast_1d(values) for name, values in rows.items()}


def said_strength(strength: Tensor | Mapping[str, Tensor] | None) -> str:
    """Say in words how strongly an edit acts.

    Example:
        >>> said_strength(torch.tensor([0.5, 1.0]))
        'strength 0.5, 1'
    """
    if strength is None:
        return "strength 1"
    if isinstance(strength, Mapping):
        return ", ".join(f"{name} {said_strength(rows)}" for name, rows in strength.items())
    if strength.numel() > _FEW:
        return f"strength of {tuple(strength.shape)} values"
    return f"strength {', '.join(f'{value:g}' for value in strength.flatten().tolist())}"


@dataclass(eq=False)
class Active:
    """A binding in force at one site.

    Attributes:
        binding: What is done.
        run: What the user says of the inputs.
        tally: What was done so far.
        beside: Keeps what the binding reads at other sites; None where it reads its own.
        paused: Whether it lets everything pass for now.
    """

    binding: Binding
    run: Run
    tally: Tally
    beside: Beside | None = None
    paused: bool = field(default=False, init=False)
    _answer: bool | None = field(init=False, repr=False)
    _centers: bool = field(init=False, repr=False)
    _devices: dict[tuple[str | None, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Put what the edit needs where the site's outputs will most likely be."""
        self.binding.splice.place(self.tally.device)
        self._centers = bool(self.binding.splice.slice.encoder.centers)
        # What generated text is told where nothing but the patch decides.
        plain = self.run.is_plain and not self.binding.schedule
        self._answer = self.binding.selection.generated if plain else None
        for stream, rows in _parts(self.run.strength).items():
            self._rows_on(rows, self.tally.device, stream)
        if self.binding.schedule:
            self._on((1.0, *self.binding.schedule), self.tally.device)

    def __call__(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """Return the output of one of the site's modules, edited."""
        source = None if self.beside is None else self.beside.take(hidden)
        if self.paused:
            return hidden
        if tokens.generated and self._answer is not None:
            self.tally.note(tokens, self._answer)
            if not self._answer:
                return hidden
            stream = "text" if self._centers else None
            return self.binding.splice(hidden, None, stream, source=source)
        run, selection = self.run, self.binding.selection
        rows = True if run.chosen is None else self._meant(run.chosen, tokens)
        if rows is False:
            self.tally.add(selection, tokens, False)
            return hidden
        tokens = tokens.told(run.image_mask)
        chosen = selection.choose(tokens, run.mask, self.tally.special)
        if isinstance(rows, Tensor) and chosen is not False:
            chosen = rows.expand(hidden.shape[:-1]) if chosen is True else rows & chosen
        strength = None if chosen is False else self._strength(tokens)
        if strength is not None:
            moved = strength != 0
            chosen = moved.expand(hidden.shape[:-1]) if chosen is True else moved & chosen
        self.tally.add(selection, tokens, chosen)
        if chosen is False:
            return hidden
        mask = None if chosen is True else chosen
        modality = _centred(tokens) if self._centers else None
        return self.binding.splice(hidden, mask, modality, strength, source)

    def _meant(self, chosen: tuple[Chosen, ...], tokens: Tokens) -> Tensor | bool:
        """Return the rows plug-ins mean, broadcast against the tokens; or one answer for all."""
        rows = meant(chosen, tokens.call, self.tally.site)
        if isinstance(rows, bool):
            return rows
        if rows.ndim == 2:
            return self._sequences(rows, tokens)
        names = ", ".join(one.choice.name for one in chosen)
        return _of_rows(rows.to(tokens.device), tokens, names)

    def _sequences(self, rows: Tensor, tokens: Tokens) -> Tensor:
        """Fit a mask of a call whose rows hold several sequences to the output."""
        fitted = None if tokens.is_sensed else tokens.fit(rows)
        if fitted is None:
            raise CannotKnow(
                f"this site's output ({tokens.stream}) is {tuple(tokens.shape)}, in which nobody "
                "can tell requests apart: use another site"
            )
        return fitted

    def _rows_on(self, rows: Tensor, device: torch.device, stream: str | None) -> Tensor:
        key = (stream, device)
        if key not in self._devices:
            self._devices[key] = _own(rows, device)
        return self._devices[key]

    def set_strength(self, strength: Tensor | Mapping[str, Tensor]) -> None:
        """Give another, [B], [1] or such by stream; tensors in use change in place if they fit."""
        self.run, self._answer = replace(self.run, strength=strength), None
        parts = _parts(strength)
        for (stream, device), tensor in [*self._devices.items()]:
            rows = parts.get(stream)
            if rows is None:  # of the other form, by stream or not
                del self._devices[stream, device]
            elif len(rows) in (1, len(tensor)):
                tensor.copy_(rows)
            else:
                self._devices[stream, device] = _own(rows, device)
        for stream, rows in parts.items():  # now: compiled code could not
            self._rows_on(rows, self.tally.device, stream)

    def _strength(self, tokens: Tokens) -> Tensor | None:
        """Return what multiplies an output's change, broadcast against its tokens; None for 1."""
        factor = self._scheduled(tokens) if self.binding.schedule else None
        rows = self.run.strength
        if rows is None:
            return factor
        strength: Tensor | None
        if isinstance(rows, Mapping):
            strength = self._of_streams(rows, tokens)
        elif rows.ndim == 2:
            strength = self._of_tokens(rows, tokens)
        else:
            strength = self._of_rows(rows, tokens)
        return strength if factor is None or strength is None else strength * factor

    def _scheduled(self, tokens: Tokens) -> Tensor | None:
        """Return the schedule's factor of each token, [B, S]; None where all are the prompt's."""
        schedule = self.binding.schedule
        assert schedule is not None
        if not tokens.in_rows:
            tokens.expect_rows(f"schedule={list(schedule)}")
        if not tokens.in_rows or tokens.phase == "prompt":
            return None
        step = tokens.steps()
        if step is None:
            raise CannotKnow(
                f"a schedule counts decode steps, and {unplaced(tokens.placed)}: use the host's "
                "generate, on a padded batch, or give the whole prompt to one call"
            )
        table = self._on((1.0, *schedule), tokens.device)  # the prompt's factor, then the steps'
        factor = table[(step + 1).clamp(0, len(schedule))]
        return factor if factor.ndim == 2 else factor.unsqueeze(0)

    def _on(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        if device not in self._tables:
            with torch.inference_mode(False):
                self._tables[device] = torch.tensor(values, device=device)
        return self._tables[device]

    def _of_tokens(self, given: Tensor, tokens: Tokens) -> Tensor | None:
        """Return the strength of each token, [B, S]; None where all were generated."""
        given = self._rows_on(given, tokens.device, None)
        if not tokens.in_rows or tokens.is_sensed:
            if given.shape != tokens.shape[:-1]:
                raise BadArgument(
                    f"strength is {tuple(given.shape)}, this site's output ({tokens.stream}) is "
                    f"{tuple(tokens.shape)}: one per token is {tuple(tokens.shape[:-1])} here"
                )
            return given
        strength = tokens.given(given, 1.0, "strength")
        return tokens.fit(strength) if isinstance(strength, Tensor) else None

    def _of_streams(self, rows: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
        """Return the strength of each row of an output, or of each token where streams mix."""
        if tokens.stream != "mixed":
            return self._of_rows(rows[tokens.stream], tokens, tokens.stream)
        modality = tokens.modality
        if isinstance(modality, str):
            return self._of_rows(rows[modality], tokens, modality)
        if modality is None:
            raise CannotKnow(
                "strength is given by stream, and this call of the host does not show which tokens "
                "are image: give one for both, or say which are with attach(..., image_mask=)"
            )
        strength = self._of_rows(rows["text"], tokens, "text")
        for name, mask in modality.masks.items():
            own = stands_for(name, rows)
            if own is None:
                raise CannotKnow(f"strength is given by stream, and has none of {name} tokens")
            strength = torch.where(mask, self._of_rows(rows[own], tokens, own), strength)
        return strength

    def _of_rows(self, rows: Tensor, tokens: Tokens, stream: str | None = None) -> Tensor:
        """Return the strength of each row of an output."""
        rows_of_one = len(rows) == 1
        rows = self._rows_on(rows, tokens.device, stream)
        if rows_of_one and tokens.shape[0] != len(rows):
            rows = rows[:1]  # held for another batch before ``set_strength`` gave one for all
        return _of_rows(rows, tokens, "strength" if stream is None else f"strength[{stream!r}]")


def _parts(strength: Tensor | Mapping[str, Tensor] | None) -> dict[str | None, Tensor]:
    """Return the strengths by stream, or the one of both under None."""
    if strength is None:
        return {}
    return dict(strength.items()) if isinstance(strength, Mapping) else {None: strength}


def _of_rows(rows: Tensor, tokens: Tokens, name: str) -> Tensor:
    """Return a value of each row of an output: [B, 1] for [B, S, D], [N] for packed [N, D].

    Where a row holds several sequences, it is one of each token, [B, S].
    """
    count = tokens.shape[0]
    if len(rows) > 1:
        own = tokens.row_among(len(rows), name)
        if own is not None:
            return rows[own]
        tokens.expect_rows(f"a {name} for each of {len(rows)} rows")
        requests = tokens.requests
        if requests is not None:
            images = len(cast("Tensor", tokens.call.grid))
            if len(rows) != images:
                raise _other_rows(name, rows, images, "images", tokens)
            return rows[requests]
        if count != len(rows):
            # Beams repeat each row in a language model. Images may come as any number of tiles.
            if tokens.is_sensed or count % len(rows):
                raise _other_rows(name, rows, count, "rows", tokens)
            rows = repeat(rows, "b -> (b k)", k=count // len(rows))
    return rows.reshape(-1, *[1] * (len(tokens.shape) - 2))


def _own(rows: Tensor, device: torch.device) -> Tensor:
    """Return a copy that ``set_strength`` can write to, wherever it is called."""
    with torch.inference_mode(False):
        return move(rows, device).clone()


def _other_rows(name: str, rows: Tensor, count: int, what: str, tokens: Tokens) -> VlmEditError:
    streams = ""
    if name == "strength" and tokens.stream != "mixed":
        streams = (
            "; where image and text differ in number, one of each: strength={'image': [...], "
            "'text': 1.0}"
        )
    return VlmEditError(
        f"{name} has {len(rows)} values, this site's output ({tokens.stream}) has {count} {what}: "
        f"give one value per row of the batch there, or one for all{streams}"
    )


def _centred(tokens: Tokens) -> Modality:
    modality = tokens.modality
    if modality is None:
        tokens.expect_rows("the dictionary centres image and text tokens apart", pooled=False)
        raise CannotKnow(
            "the dictionary centres image and text tokens apart, and this call of the host shows "
            "neither input_ids nor image inputs: say which are image with attach(..., image_mask=)"
        )
    return modality
