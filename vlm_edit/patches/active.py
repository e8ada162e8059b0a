"""An edit in force: a binding with what the user says of this run, and a count of what it edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from einops import repeat
from torch import Tensor

from vlm_edit.dictionaries.encoder import move
from vlm_edit.errors import VlmEditError
from vlm_edit.hooks import Branch, Where
from vlm_edit.hooks.where import expect_rows, fit, given_in, unplaced
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.report import Tally


@dataclass(frozen=True, eq=False)
class Run:
    """What is said at ``attach`` of the inputs to come; not part of a patch.

    Attributes:
        strength: [B] float, one per row of the batch; or [B, P], one per token of the prompt;
            None for 1 everywhere.
        mask: [B, P] bool, the tokens of the prompt to edit; None to go by the patch.
        image_mask: [B, P] bool, the image tokens of the prompt; None to go by the host's call.
        branch: Whose calls in a pipeline are edited; None for all calls of any host.
    """

    strength: Tensor | None = None
    mask: Tensor | None = None
    image_mask: Tensor | None = None
    branch: Branch | None = None

    @classmethod
    def of(
        cls,
        strength: float | Sequence[float] | Sequence[Sequence[float]] | Tensor = 1.0,
        mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Run:
        """Check and normalise.

        Raises:
            VlmEditError: Not finite, of another shape, or a mask that is not bool.
        """
        try:
            rows = torch.as_tensor(strength, dtype=torch.float32).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise VlmEditError(
                f"strength is {strength!r}; give a number, or one per row of the batch"
            ) from error
        if rows.ndim > 2 or not rows.numel() or not bool(rows.isfinite().all()):
            raise VlmEditError(
                f"strength is {strength!r}; give a finite number, one per row of the batch, or "
                "[B, P], one per token of the prompt"
            )
        for name, given in (("mask", mask), ("image_mask", image_mask)):
            if given is None:
                continue
            if not isinstance(given, Tensor) or given.dtype != torch.bool or not given.ndim:
                kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
                raise VlmEditError(f"{name} must be a tensor of bool, [B, tokens], got {kind}")
        plain = rows.ndim == 0 and float(rows) == 1.0
        if rows.ndim == 0:
            rows = rows.reshape(1)
        return cls(None if plain else rows, mask, image_mask)


@dataclass(eq=False)
class Active:
    """A binding in force at one site.

    Attributes:
        binding: What is done.
        run: What the user says of the inputs.
        tally: What was done so far.
        paused: Whether it lets everything pass for now.
    """

    binding: Binding
    run: Run
    tally: Tally
    paused: bool = field(default=False, init=False)
    _devices: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Be ready where the site's outputs will most likely be."""
        self.binding.splice.place(self.tally.device)
        if self.run.strength is not None:
            self._rows_on(self.run.strength, self.tally.device)
        if self.binding.schedule:
            self._on((1.0, *self.binding.schedule), self.tally.device)

    def __call__(self, hidden: Tensor, where: Where) -> Tensor:
        """The output of one of the site's modules, edited."""
        if self.paused:
            return hidden
        run, selection = self.run, self.binding.selection
        meant = True if run.branch is None else self._meant(where)
        if meant is False:
            self.tally.add(selection, where, hidden, False)
            return hidden
        if run.image_mask is not None and where.stream == "mixed":
            where = Where(where.stream, where.call, run.image_mask)
        chosen = selection.choose(where, hidden, run.mask)
        if isinstance(meant, Tensor) and chosen is not False:
            rows = meant.to(hidden.device).reshape(-1, *[1] * (hidden.ndim - 2))
            chosen = rows.expand(hidden.shape[:-1]) if chosen is True else rows & chosen
        strength = None if chosen is False else self._strength(hidden, where)
        if strength is not None:
            moved = strength != 0
            chosen = moved.expand(hidden.shape[:-1]) if chosen is True else moved & chosen
        self.tally.add(selection, where, hidden, chosen)
        if chosen is False:
            return hidden
        splice, stream, image = self.binding.splice, str(where.stream), None
        if stream == "mixed" and splice.slice.encoder.centers:
            stream, image = _centred(where, hidden)
        return splice(hidden, None if chosen is True else chosen, stream, image, strength)

    def _meant(self, where: Where) -> Tensor | bool:
        """Whether a pipeline's encoder is called for the branch that is edited; [B] if for both."""
        branch = where.call.branch
        if branch is None:
            raise VlmEditError(
                f"branch={self.run.branch!r}: nobody can tell whether this call, which reaches "
                f"{self.tally.site!r}, is for the prompt or for the negative one: it does not come "
                "from the pipeline the patch is attached to, or its token ids are those of neither."
                " Attach with branch='both', only while what is to be edited is encoded"
            )
        if isinstance(branch, Tensor):
            return branch if self.run.branch == "cond" else ~branch
        return branch == self.run.branch

    def _rows_on(self, rows: Tensor, device: torch.device) -> Tensor:
        if device not in self._devices:
            self._devices[device] = _own(rows, device)
        return self._devices[device]

    def set_strength(self, rows: Tensor) -> None:
        """Give another strength, [B] or [1]; tensors in use change in place where they fit."""
        self.run = replace(self.run, strength=rows)
        for device, held in self._devices.items():
            if len(rows) in (1, len(held)):
                held.copy_(rows)
            else:
                self._devices[device] = _own(rows, device)

    def _strength(self, hidden: Tensor, where: Where) -> Tensor | None:
        """What multiplies an output's change, broadcast against its tokens; None for 1."""
        found = self._scheduled(hidden, where) if self.binding.schedule else None
        rows = self.run.strength
        if rows is None:
            return found
        if rows.ndim == 2:
            given = self._of_tokens(rows, hidden, where)
        else:
            given = self._of_rows(rows, hidden, where)
        return given if found is None or given is None else given * found

    def _scheduled(self, hidden: Tensor, where: Where) -> Tensor | None:
        """[1, S], the schedule's factor of each token; None where all are the prompt's."""
        call, schedule = where.call, self.binding.schedule
        assert schedule is not None
        if where.stream == "image" or hidden.ndim != 3:
            expect_rows(where, hidden, f"schedule={list(schedule)}")
            return None
        if call.prompt is None or call.start is None or call.shape is None:
            raise VlmEditError(
                f"a schedule counts decode steps, and {unplaced(call)}: use the host's generate, "
                "on a padded batch, or give the whole prompt to one call"
            )
        if isinstance(call.start, int) and call.start + call.shape[1] <= call.prompt:
            return None
        table = self._on((1.0, *schedule), hidden.device)  # the prompt's factor, then the steps'
        step = call.places(hidden.device) - call.prompt
        return table[(step + 1).clamp(0, len(schedule))].unsqueeze(0)

    def _on(self, values: tuple[float, ...], device: torch.device) -> Tensor:
        if device not in self._tables:
            with torch.inference_mode(False):
                self._tables[device] = torch.tensor(values, device=device)
        return self._tables[device]

    def _of_tokens(self, given: Tensor, hidden: Tensor, where: Where) -> Tensor | None:
        """[B, S], the strength of each token; None where all were generated."""
        given = self._rows_on(given, hidden.device)
        if hidden.ndim != 3 or where.stream == "image":
            if given.shape != hidden.shape[:-1]:
                raise VlmEditError(
                    f"strength is {tuple(given.shape)}, this site's output ({where.stream}) is "
                    f"{tuple(hidden.shape)}: one per token is {tuple(hidden.shape[:-1])} here"
                )
            return given
        found = given_in(given, where.call, 1.0, "strength")
        return fit(found, hidden) if isinstance(found, Tensor) else None

    def _of_rows(self, rows: Tensor, hidden: Tensor, where: Where) -> Tensor:
        """The strength of each row of an output: [B, 1] for [B, S, D], [N] for packed [N, D]."""
        one, rows = len(rows) == 1, self._rows_on(rows, hidden.device)
        if one and len(hidden) != len(rows):
            rows = rows[:1]  # held for another batch before ``set_strength`` gave one for all
        if len(rows) > 1:
            expect_rows(where, hidden, f"a strength for each of {len(rows)} rows")
        images = where.images_at(hidden)
        if len(rows) > 1 and images is not None:
            if where.call.grid is not None and len(rows) != len(where.call.grid):
                raise _other_rows(rows, len(where.call.grid), "images")
            return rows[images]
        count = len(hidden)
        if len(rows) > 1 and count != len(rows):
            # Beams repeat each row in a language model. Images may come as any number of tiles.
            if where.stream == "image" or count % len(rows):
                raise _other_rows(rows, count, "rows")
            rows = repeat(rows, "b -> (b k)", k=count // len(rows))
        return rows.reshape(-1, *[1] * (hidden.ndim - 2))


def _own(rows: Tensor, device: torch.device) -> Tensor:
    """A copy that ``set_strength`` can write to, wherever it is called."""
    with torch.inference_mode(False):
        return move(rows, device).clone()


def _other_rows(rows: Tensor, count: int, what: str) -> VlmEditError:
    return VlmEditError(
        f"strength has {len(rows)} values, this site's output has {count} {what}: give one value "
        "per row of the batch there, or one for all"
    )


def _centred(where: Where, hidden: Tensor) -> tuple[str, Tensor | None]:
    image = where.image
    if image is None:
        raise VlmEditError(
            "the dictionary centres image and text tokens apart, and this call of the host shows "
            "neither input_ids nor image inputs: say which are image with attach(..., image_mask=)"
        )
    if isinstance(image, Tensor):
        return "mixed", where.image_at(hidden)
    return ("image" if image else "text"), None
