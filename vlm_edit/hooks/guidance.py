"""Tell apart what a pipeline encodes to draw towards, and what to be led away from."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import BadArgument, CannotKnow
from vlm_edit.hooks.calls import Call
from vlm_edit.hooks.followers import register_follower
from vlm_edit.hooks.methods import StandIn
from vlm_edit.host import Adapter, Host, Pipeline, PipelineAdapter, PipelineEncoder, PipelineHost

# Whom a call is for: what is to be drawn, or what guidance leads away from.
Branch = Literal["cond", "uncond"]
Branches = Literal["cond", "uncond", "both"]

_GUIDED = "do_classifier_free_guidance"
_runs: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Encoding:
    """A call under way of a method that encodes.

    Attributes:
        arguments: The texts among its arguments, by name; negative ones too.
        cond: Whether the prompt may come.
        uncond: Whether the negative prompt may come.
        appended: How many negative prompts stand behind the prompts.
        seen: Calls so far whose tokens are both the prompt's and the negative one's, by path.
    """

    arguments: Mapping[str, Any]
    cond: bool
    uncond: bool
    appended: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def only(self) -> Branch | None:
        """Return the branch, where there is but one."""
        if self.cond == self.uncond:
            return None
        return "cond" if self.cond else "uncond"


class Guide:
    """Follow the methods of a pipeline that encode, and say whom an encoder is called for.

    A call is told by what it is called with: its token ids are those of the prompt or of the
    negative prompt, and no image is an image of zeros. Only where the two texts are the same do
    calls count: the prompt's is the first, as in every pipeline of diffusers that does both.
    """

    def __init__(self, host: PipelineHost, rules: PipelineAdapter) -> None:
        self._rules = rules
        self._state = threading.local()
        self._host = weakref.ref(host)
        # A tokenizer is not to be compiled along with an encoder.
        self._compare: Callable[..., bool] = torch.compiler.disable(self._matches)
        self.undo: list[Callable[[], None]] = []
        pipeline = host.pipeline
        for name in rules.methods:
            if pipeline is not None and callable(getattr(type(pipeline), name, None)):
                self.undo.append(StandIn(pipeline, name, self._encode).remove)

    def tell(self, call: Call, path: str | None, inputs: Mapping[str, Any]) -> None:
        """Note whom a call is for, as ``Follower.tell`` asks."""
        call.note(BRANCH.name, self.only if path is None else self.branch_of(path, inputs))

    def branch_of(self, path: str, inputs: Mapping[str, Any]) -> Branch | Tensor | None:
        """Say whom a call of an encoder is for; None where nobody can tell.

        Args:
            path: Of the module that is called, in the pipeline.
            inputs: The call's arguments by name.

        Returns:
            One branch for all, or [B] bool, True at rows of the prompt.
        """
        branch, encoding, ids = self._branch_of(path, inputs), self._now, inputs.get("input_ids")
        if branch != "cond" or encoding is None or not encoding.appended:
            return branch
        if not isinstance(ids, Tensor):
            return branch
        return torch.arange(len(ids), device=ids.device) < len(ids) - encoding.appended

    def _branch_of(self, path: str, inputs: Mapping[str, Any]) -> Branch | None:
        if not self._rules.methods:
            return "cond"
        pixels = inputs.get("pixel_values")
        if isinstance(pixels, Tensor):
            return "cond" if bool(pixels.any()) else "uncond"
        encoding, encoder = self._now, self._rules.encoder(path)
        if encoding is None or encoder is None or encoding.only is not None:
            return self.only
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor):
            return None
        cond = self._compare(ids, encoder, _texts(encoding.arguments, encoder.prompts))
        negative = [self._rules.negative + name for name in encoder.prompts]
        uncond = self._compare(ids, encoder, _texts(encoding.arguments, negative))
        if cond and uncond:
            encoding.seen[path] += 1
            cond, uncond = encoding.seen[path] == 1, encoding.seen[path] == 2
        if cond == uncond:
            return None
        return "cond" if cond else "uncond"

    @property
    def only(self) -> Branch | None:
        """Return the branch of all that is encoded now, where there is but one."""
        if not self._rules.methods:
            return "cond"
        encoding = self._now
        return None if encoding is None else encoding.only

    @property
    def _now(self) -> Encoding | None:
        encoding: Encoding | None = getattr(self._state, "encoding", None)
        return encoding

    def _encode(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before, host = self._now, self._host()
        if host is not None:
            _runs[host] = _runs.get(host, 0) + 1
        self._state.encoding = self._read(original, args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            self._state.encoding = before

    def _read(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Encoding | None:
        signature, negative = inspect.signature(original), self._rules.negative
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return None  # the method itself will say so
        bound.apply_defaults()
        arguments = bound.arguments
        if _GUIDED in arguments or any(name.startswith(negative) for name in arguments):
            encodings = [name for name in self._rules.given if arguments.get(name) is not None]
            negatives = [negative + name for name in self._rules.given]
            cond = not encodings
            uncond = bool(arguments.get(_GUIDED, True)) and all(
                arguments.get(n) is None for n in negatives
            )
            appended = _appended(arguments, negative) if self._rules.appended else 0
            return Encoding(arguments, cond, uncond, appended)
        around = _arguments_around(getattr(original, "__self__", None))
        if around is None or not any(name.startswith(negative) for name in around):
            return Encoding(arguments, True, False)
        names = {name for encoder in self._rules.encoders for name in encoder.prompts}
        texts = [name for name in arguments if name in names]
        cond = all(_same(arguments[name], around.get(name)) for name in texts)
        uncond = all(_same(arguments[name], around.get(negative + name)) for name in texts)
        return Encoding(arguments, cond, uncond) if cond != uncond else None

    @property
    def _pipeline(self) -> Pipeline | None:
        host = self._host()
        return None if host is None else host.pipeline

    def _matches(self, ids: Tensor, encoder: PipelineEncoder, texts: list[str] | None) -> bool:
        """Return whether these ids [B, S] are what the encoder's tokenizer makes of texts."""
        pipeline = self._pipeline
        tokenizer = getattr(pipeline, encoder.tokenizer or "", None)
        if tokenizer is None or texts is None:
            return False
        convert = getattr(pipeline, "maybe_convert_prompt", None)  # textual inversion's own words
        if convert is not None:
            texts = convert(texts, tokenizer)
        tokens = tokenizer(
            texts,
            padding="max_length",
            max_length=ids.shape[1],
            truncation=True,
            return_tensors="pt",
        ).input_ids
        if tokens.shape[1] != ids.shape[1] or len(tokens) not in (1, len(ids)):
            return False
        return bool((ids == tokens.to(ids.device)).all())


class BranchChoice:
    """``branch=`` of ``Patch.attach``: whose encoding is edited in a pipeline with guidance.

    ``cond`` (its default) for what the pipeline draws towards, the prompt's; ``uncond`` for what
    it is led away from, that of the negative prompt; or ``both``.
    """

    name = "branch"

    def read(self, host: Host, value: Any) -> Branch | None:
        """Return, as ``Choice.read``, the one branch whose calls are edited; None for all calls.

        Raises:
            VlmEditError: An unknown word, or a branch of a host that is no pipeline.
        """
        if value is not None and value not in get_args(Branches):
            words = ", ".join(map(repr, get_args(Branches)))
            raise BadArgument(f"branch is {value!r}; use {words}")
        if host.is_pipeline:
            return None if value == "both" else value or "cond"
        if value is not None:
            raise BadArgument(
                f"branch={value!r} tells apart what a pipeline encodes, and {host.kind.__name__} "
                "is no pipeline: attach the patch to the pipeline, or leave branch out"
            )
        return None

    def rows(self, value: Branch, call: Call, site: str) -> Tensor | bool:
        """Return whether, as ``Choice.rows``, a call is for this branch; [B] if it is for both."""
        branch: Branch | Tensor | None = call.fact(self.name)
        if branch is None:
            raise CannotKnow(
                f"branch={value!r}: nobody can tell whether this call, which reaches "
                f"{site!r}, is for the prompt or for the negative one: it does not come "
                "from the pipeline the patch is attached to, or its token ids are those of neither."
                " Attach with branch='both', only while what is to be edited is encoded"
            )
        if isinstance(branch, Tensor):
            return branch if value == "cond" else ~branch
        return branch == value


BRANCH = BranchChoice()


def guide_of(root: nn.Module, adapter: Adapter) -> Guide | None:
    """Return what follows a pipeline's methods that encode; None for any other host."""
    if not isinstance(root, PipelineHost) or adapter.pipeline is None:
        return None
    return Guide(root, adapter.pipeline)


register_follower(guide_of, BRANCH)


def runs_of(host: nn.Module) -> int:
    """Count the calls of a pipeline's methods that encode while any patch was on it."""
    return _runs.get(host, 0)


def _texts(arguments: Mapping[str, Any], names: Iterable[str]) -> list[str] | None:
    """Return the first of these arguments that is given, as a list; of none, one empty text."""
    value = next((arguments[name] for name in names if arguments.get(name)), "")
    texts = [value] if isinstance(value, str) else value
    return list(texts) if isinstance(texts, list | tuple) else None


def _appended(arguments: Mapping[str, Any], negative: str) -> int:
    """Count the negative prompts behind the prompts: as many as there are prompts, or none."""
    texts, negatives = arguments.get("prompt"), arguments.get(f"{negative}prompt")
    if not isinstance(texts, list) or not isinstance(negatives, list) or len(texts) % 2:
        return 0
    half = len(texts) // 2
    return half if texts[half:] == negatives[:half] else 0


def _same(given: Any, known: Any) -> bool:
    """Return whether two arguments are the same texts, alone or in a list."""
    return ([given] if isinstance(given, str) else given) == (
        [known] if isinstance(known, str) else known
    )


def _arguments_around(pipeline: Any) -> Mapping[str, Any] | None:
    """Read the arguments of the pipeline's own call around this one off the stack.

    Python looks ``__call__`` up on the class, so that nothing can stand in for it here.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__call__" and frame.f_locals.get("self") is pipeline:
            variables, count = frame.f_locals, code.co_argcount + code.co_kwonlyargcount
            return {
                name: variables[name] for name in code.co_varnames[1:count] if name in variables
            }
        frame = frame.f_back
    return None
