"""Fold a patch into a host's weights, where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_edit.edits import Ablate, Blend, Clamp, Keep, Move, Project, Rule, Scale, Splice, Steer
from vlm_edit.ground.errors import CannotKnow, VlmEditError
from vlm_edit.ground.modality import SENSED, is_among
from vlm_edit.host import Host, Site, Tap, find_module
from vlm_edit.patches.binding import Binding
from vlm_edit.patches.card import further

if TYPE_CHECKING:
    from vlm_edit.patches.patch import Patch

_ATTACH = "attach the patch instead"
_KNOWN = {"site", "splice", "selection", "model_name", "dictionary", "reads", "across"}


class Linear(NamedTuple):
    """A linear map, ``hidden' = hidden @ matrix + shift``, in float64.

    Attributes:
        matrix: [d, d]; None for the identity.
        shift: [d].
    """

    matrix: Tensor | None
    shift: Tensor


def linear_of(splice: Splice, stream: str | None = None) -> Linear:
    """Return an edit as a linear map of the hidden state.

    Args:
        splice: The edit.
        stream: Of the tokens, for dictionaries that centre each stream apart.

    Raises:
        VlmEditError: It is none.

    Example:
        >>> from vlm_edit import Ablate, Dictionary
        >>> linear_of(Splice.of(Dictionary.identity(2), [Ablate([1])]))
        Linear(matrix=tensor([[1., 0.],
                [0., 0.]], dtype=torch.float64), shift=tensor([0., 0.], dtype=torch.float64))
    """
    if splice.gate is not None:
        raise VlmEditError("a gate looks at each token")
    part = splice.slice
    decoder = part.decoder.detach().cpu().double()
    rules = [rule.acting() for rule in splice.rules]
    walk = _Walk(part.features, decoder, _Codes.of(splice, stream))
    for rule in rules:
        if type(rule) is Project:
            walk.project(rule, part.n_features)
        elif isinstance(rule, Move) or type(rule) not in _AFFINE:
            raise VlmEditError(f"the rule {type(rule).__name__} is not linear")
        else:
            walk.change(rule, part.n_features)
    return walk.end()


_AFFINE: dict[type[Rule], Callable[[Any], tuple[float, Any]]] = {
    Ablate: lambda _: (0.0, 0.0),
    Keep: lambda _: (0.0, 0.0),
    Scale: lambda rule: (rule.factor, 0.0),
    Clamp: lambda rule: (0.0, rule.value),
    Blend: lambda rule: (0.0, torch.tensor(rule.reference, dtype=torch.float64)),
    Steer: lambda rule: (1.0, rule.amount),
}


@dataclass(frozen=True, eq=False)
class _Codes:
    """Codes of the touched features as a linear map: ``hidden @ weight + bias``.

    Attributes:
        weight: [d, t].
        bias: [t].
        nonlinear: Why they are none; None where they are one.
        normed: Whether a norm lies between codes and the hidden state.
    """

    weight: Tensor
    bias: Tensor
    nonlinear: str | None
    normed: bool

    @classmethod
    def of(cls, splice: Splice, stream: str | None) -> _Codes:
        part, encoder = splice.slice, splice.slice.encoder
        norm = encoder.normaliser
        pick = slice(None) if part.columns is None else part.columns.cpu()
        weight = encoder.weight.detach().cpu()[:, pick].double()
        bias = encoder.bias.detach().cpu()[pick].double()
        nonlinear = None
        if not encoder.activator.linear:
            nonlinear = f"its activation {encoder.activation} is not linear"
        elif not norm.plain:
            nonlinear = f"its norm {encoder.norm} is not linear"
        elif encoder.soft_cap is not None:
            nonlinear = "its soft_cap is not linear"
        elif encoder.centers and stream not in encoder.centers:
            nonlinear = "it centres each stream apart, and both pass here"
        if nonlinear is None:
            for offset in (encoder.subtract, encoder.centers.get(stream or "")):
                if offset is not None:
                    bias = bias - offset.detach().cpu().double() @ weight
        return cls(weight, bias, nonlinear, not (norm.plain or norm.reads))


class _Walk:
    """The linear map that the rules so far make of a hidden state."""

    def __init__(self, features: tuple[int, ...], decoder: Tensor, codes: _Codes) -> None:
        t, d = decoder.shape
        self._places = {feature: i for i, feature in enumerate(features)}
        self._decoder, self._codes = decoder, codes
        # The code is ``gain * (what was encoded) + plus`` by now, and the last that was decoded.
        self._gain, self._plus = torch.ones(t).double(), torch.zeros(t).double()
        self._decoded = (self._gain.clone(), self._plus.clone())
        self._matrix, self._shift = torch.eye(d).double(), torch.zeros(d).double()
        self._moved = False

    def _index(self, rule: Rule, n_features: int) -> Tensor:
        return torch.tensor([self._places[f] for f in rule.touches(n_features)])

    def change(self, rule: Rule, n_features: int) -> None:
        """Go on by a rule on codes."""
        factor, amount = _AFFINE[type(rule)](rule)
        if factor != 1.0 and self._codes.nonlinear and rule.strength:
            raise VlmEditError(
                f"the rule {type(rule).__name__} looks at the dictionary's code, and "
                f"{self._codes.nonlinear}"
            )
        if self._codes.normed:
            raise VlmEditError("the dictionary's norm scales the change token by token")
        index, s = self._index(rule, n_features), rule.strength
        gain = 1 + s * (factor - 1)
        self._gain[index] *= gain
        self._plus[index] = self._plus[index] * gain + s * amount

    def project(self, rule: Project, n_features: int) -> None:
        """Go on by a rule that takes a span out."""
        self._decode()
        basis = rule.prepare(self._decoder[self._index(rule, n_features)].float()).double()
        inside = basis.mT @ basis * rule.strength
        self._matrix = self._matrix - self._matrix @ inside
        self._shift = self._shift - self._shift @ inside
        self._moved = True

    def _decode(self) -> None:
        gain, plus = self._gain - self._decoded[0], self._plus - self._decoded[1]
        if bool(gain.any()):
            self._matrix = self._matrix + (self._codes.weight * gain) @ self._decoder
            self._shift = self._shift + (self._codes.bias * gain) @ self._decoder
            self._moved = True
        self._shift = self._shift + plus @ self._decoder
        self._decoded = (self._gain.clone(), self._plus.clone())

    def end(self) -> Linear:
        """Return the map of all rules."""
        self._decode()
        return Linear(self._matrix if self._moved else None, self._shift)


@dataclass(eq=False)
class _Written:
    """A parameter with other values."""

    path: str
    parameter: Tensor
    before: Tensor
    after: Tensor


@dataclass(eq=False)
class Baked:
    """A patch in a host's weights, until ``undo`` or the end of a with-block.

    Attributes:
        weights: Paths of the parameters that have changed.

    Example:
        >>> from vlm_edit import Ablate, Dictionary, Patch, zoo
        >>> host, _ = zoo.load_host()
        >>> before = host.text_projection.weight.clone()
        >>> patch = Patch("joint", Dictionary.identity(192), Ablate([3]), tokens="text")
        >>> with patch.bake(host) as baked:
        ...     print(baked.weights, float(host.text_projection.weight[3].detach().norm()))
        ('text_projection.weight',) 0.0
        >>> bool((host.text_projection.weight == before).all())
        True
    """

    weights: tuple[str, ...]
    _written: list[_Written] = field(repr=False)

    def undo(self) -> None:
        """Bring back the former weights, bit for bit; calling it twice does nothing.

        Raises:
            VlmEditError: They have been changed since; nothing is brought back then.
        """
        for entry in self._written:
            if not torch.equal(entry.parameter.detach(), entry.after.to(entry.parameter.device)):
                raise VlmEditError(
                    f"{entry.path} has changed since the patch was baked, and to undo it would "
                    "lose that: undo what came later first, or load the host anew"
                )
        with torch.no_grad():
            while self._written:
                entry = self._written.pop()
                entry.parameter.copy_(entry.before)

    def __enter__(self) -> Baked:
        """Return itself: it is in force already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Bring back the former weights, also after an exception."""
        self.undo()


def bake(patch: Patch, host: Host, check_host: bool = True) -> Baked:
    """Fold a patch into a host's weights, as ``Patch.bake`` says."""
    if host.is_pipeline:
        raise VlmEditError(
            "weights of a pipeline's encoder act on the negative prompt too, which an edit of a "
            f"pipeline leaves alone; {_ATTACH}"
        )
    folds: dict[nn.Linear, _Fold] = {}
    for binding, site in patch.check(host, check_host=check_host):
        try:
            _expect_every_token(binding, site, host)
            for tap in site.taps:
                change = linear_of(binding.splice, tap.stream)
                path, module, added = _last_linear(site, tap)
                if module not in folds:
                    _expect_own(host.root, module, path)
                    folds[module] = _Fold(path, module)
                folds[module].add(change, added)
        except VlmEditError as error:
            raise VlmEditError(
                f"the edit at {site.name!r} cannot be baked: {error}; {_ATTACH}"
            ) from error
    return _write([entry for fold in folds.values() for entry in fold.written()])


def _expect_every_token(binding: Binding, site: Site, host: Host) -> None:
    selection = binding.selection
    # Where each stream has a module of its own, its outputs are embeddings of whole texts.
    is_joint = len(host.site(site.name).taps) > 1
    narrowed = (
        selection.phase != "both" or selection.steps is not None or selection.positions is not None
    )
    whole = {"all", "text+special"} | ({"text"} if is_joint else set())
    if any(tap.stream != "text" for tap in site.taps):
        names = (*SENSED, "visual")
        whole = {"all"} | {n for n in names if all(is_among(tap.stream, n) for tap in site.taps)}
    if narrowed or selection.tokens not in whole:
        raise VlmEditError(f"it is made to some tokens only ({selection})")
    if binding.reads:
        raise VlmEditError("it reads other sites than its own")
    extras = [item.name for item in further(binding, _KNOWN)]
    if extras:
        raise VlmEditError(f"it has a {extras[0]}, which weights cannot follow")


def _last_linear(site: Site, tap: Tap) -> tuple[str, nn.Linear, bool]:
    """Return the Linear that makes a tap's output, and whether that is only added to it."""
    if tap.columns is not None:
        raise VlmEditError(f"{site.name} is what {tap.path} is called with, not what it gives")
    if tap.method is not None or tap.axis != -1:
        raise VlmEditError(f"{tap.path} is no module whose weights give its output")
    path, module, added = tap.path, tap.module, False
    if tap.ends is not None:
        inner = tap.ends.removeprefix("+")
        child = find_module(module, inner)
        path, added = f"{path}.{inner}", inner != tap.ends
        if child is None:
            raise VlmEditError(f"there is no {path}")
        module = child
    elif type(module) is not nn.Linear:
        raise CannotKnow(
            f"{path} is a {type(module).__name__}, and its adapter does not say which nn.Linear "
            "its output ends in (TapRule.ends)"
        )
    if type(module) is not nn.Linear:
        raise VlmEditError(f"{path} is a {type(module).__name__}, not a plain nn.Linear")
    if module.out_features != site.width:
        raise VlmEditError(f"{path} is {module.out_features} wide, the site {site.width}")
    return path, module, added


def _expect_own(root: nn.Module, module: nn.Linear, path: str) -> None:
    """Refuse weights that cannot be written, or that something else reads too."""
    if hasattr(module, "_hf_hook"):
        raise VlmEditError(f"{path} is under a hook of accelerate's, which may bring other weights")
    for name in ("weight", "bias"):
        own = module._parameters.get(name)
        if own is None and name == "bias":
            continue
        plain = type(own) is nn.Parameter and not hasattr(own, "full_tensor")
        if own is None or not plain or own.is_meta or not own.is_floating_point():
            raise VlmEditError(f"{path}.{name} is quantised, offloaded or sharded")
        users = [n for n, p in root.named_parameters(remove_duplicate=False) if _overlap(own, p)]
        if len(users) != 1:
            others = ", ".join(n for n in users if n != f"{path}.{name}")
            raise VlmEditError(f"{path}.{name} is tied: {others or 'nothing'} reads it too")


def _overlap(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if b.is_meta or a.device != b.device or not b.numel():
        return False
    try:
        first, other = a.data_ptr(), b.data_ptr()
    except RuntimeError:
        return False
    return first < other + b.nbytes and other < first + a.nbytes


class _Fold:
    """The values that become of one Linear's parameters."""

    def __init__(self, path: str, module: nn.Linear) -> None:
        self._path, self._module = path, module
        self._weight = module.weight.detach().cpu().double()
        self._bias = None if module.bias is None else module.bias.detach().cpu().double()
        self._turned = False

    def add(self, change: Linear, added: bool) -> None:
        """Make the output ``output @ matrix + shift``."""
        if change.matrix is not None:
            if added:
                raise VlmEditError(
                    f"{self._path} is only added to the site's output, and the edit is more than a "
                    "constant"
                )
            self._turned = True
            self._weight = change.matrix.mT @ self._weight
            if self._bias is not None:
                self._bias = self._bias @ change.matrix
        if self._bias is not None:
            self._bias = self._bias + change.shift
        elif bool(change.shift.any()):
            raise VlmEditError(f"{self._path} has no bias, and the edit adds a constant")

    def written(self) -> list[_Written]:
        """Return the parameters that change."""
        entries = []
        pairs: list[tuple[str, Tensor, Tensor]] = []
        if self._turned:
            pairs.append(("weight", self._module.weight, self._weight))
        if self._bias is not None:
            pairs.append(("bias", self._module.bias, self._bias))
        for name, parameter, value in pairs:
            path, before = f"{self._path}.{name}", parameter.detach().clone()
            after = value.to(parameter.device, parameter.dtype)
            if not bool(after.isfinite().all()):
                raise VlmEditError(f"{path} would not be finite: {_ATTACH}")
            entries.append(_Written(path, parameter, before, after))
        return entries


def _write(written: list[_Written]) -> Baked:
    """Write all of it or nothing."""
    entries: list[_Written] = []
    try:
        with torch.no_grad():
            for entry in written:
                entries.append(entry)
                entry.parameter.copy_(entry.after)
    except BaseException as error:
        with torch.no_grad():
            for entry in entries[:-1]:
                entry.parameter.copy_(entry.before)
        if isinstance(error, RuntimeError):
            raise VlmEditError(
                f"{entries[-1].path} cannot be written: {error}; {_ATTACH}"
            ) from error
        raise
    return Baked(tuple(entry.path for entry in written), written)
