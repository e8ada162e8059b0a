"""Conformance suites: whether a rule, a dictionary format or an adapter of one's own holds.

Each raises an ``AssertionError`` that says what does not hold, so that one line is a test::

    def test_my_rule():
        check_rule(Halve([3, 5]))
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_edit.dictionaries import (
    Dictionary,
    Encoder,
    PairedDictionary,
    StoredDictionary,
    Transcoder,
    load_dictionary,
)
from vlm_edit.edits import Rule, Splice, expect_savable
from vlm_edit.ground.errors import VlmEditError
from vlm_edit.host import (
    Host,
    Model,
    Site,
    answers,
    is_reached,
    may_rest,
    same_answers,
    some_inside,
)
from vlm_edit.patches import try_edit

_WIDTH = 12
_CLOSE = 1e-4
_HALF = 0.5


def check_rule(rule: Rule) -> None:
    """Hold a rule to what patches promise of every rule.

    It is finite, differentiable and out of place; it acts on a token as if that were alone; unless
    it is a move, it goes along its features' directions only; at strength 0 no bit changes, and at
    a half it goes half the way; and a file of it can be loaded.

    Args:
        rule: With features of its own choice.

    Raises:
        AssertionError: Something does not hold; the message says what.

    Example:
        >>> from vlm_edit import Scale
        >>> check_rule(Scale([3, 5], 0.5))
    """
    _hold(isinstance(rule, Rule), f"{type(rule).__name__} is no vlm_edit.edits.Rule")
    generator = torch.Generator().manual_seed(0)
    m = max(rule.features) + 3
    weight, decoder = (
        torch.randn(*shape, generator=generator) for shape in ((_WIDTH, m), (m, _WIDTH))
    )
    dictionary = Dictionary(Encoder(weight, torch.zeros(m)), decoder, torch.zeros(_WIDTH))
    x = torch.randn(4, 3, _WIDTH, generator=generator)
    name, original = type(rule).__name__, x.clone()

    def change(strength: float) -> Tensor:
        return Splice.of(dictionary, [replace(rule, strength=strength)])(x) - x

    whole = change(1.0)
    _hold(torch.equal(x, original), f"{name} changes the hidden state in place")
    _hold(bool(whole.isfinite().all()), f"{name} makes NaN or infinity of finite activations")
    _hold(bool(whole.any()), f"{name} changes nothing of random activations")
    _hold(not bool(change(0.0).any()), f"{name} changes something at strength 0")
    _near(change(_HALF), _HALF * whole, f"{name} at strength .5 does not go half the way")
    splice = Splice.of(dictionary, [rule])
    alone = torch.stack([torch.stack([splice(t[None])[0] for t in row]) for row in x])
    _near(splice(x), alone, f"{name} acts on a token otherwise where others stand beside it")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(splice(leaf).square().sum(), leaf)
    _hold(bool(gradient.isfinite().all()), f"{name} has no finite gradient")
    half = splice(x.bfloat16())
    _hold(half.dtype == torch.bfloat16, f"{name} gives {half.dtype} for hidden states of bfloat16")
    if not hasattr(rule.acting(), "move"):
        rows = decoder[list(rule.acting().touches(m))]
        back = whole @ torch.linalg.pinv(rows) @ rows
        _near(back, whole, f"{name} moves hidden states beside the directions of what it touches")
    try:
        expect_savable([rule])
    except VlmEditError as error:
        raise AssertionError(str(error)) from error


def check_format(folder: str | os.PathLike[str], format: str | None = None, **options: Any) -> None:
    """Hold a dictionary on disk to what ``load_dictionary`` promises of every format.

    It is recognised, read alike whole and row by row, in parts and in slices; and whatever is cut
    off of its files, nothing but a ``VlmEditError`` comes of it.

    Args:
        folder: A folder, or a file, with a dictionary in the format.
        format: The format's name; by default it must be recognised by what is there.
        **options: For ``load_dictionary``, where files do not keep all.

    Raises:
        AssertionError: Something does not hold; the message says what.

    Example:
        >>> import tempfile, torch
        >>> from vlm_edit import Dictionary
        >>> from vlm_edit.dictionaries import Encoder, save_saelens
        >>> relu = Dictionary(Encoder(torch.eye(4), torch.zeros(4)), torch.eye(4), torch.zeros(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_saelens(relu, folder)
        ...     check_format(folder)
    """
    try:
        whole = load_dictionary(folder, format, **options)
        lazy = load_dictionary(folder, format, lazy=True, **options)
    except VlmEditError as error:
        raise AssertionError(f"{folder} does not load: {error}") from error
    if isinstance(whole, PairedDictionary) and isinstance(lazy, PairedDictionary):
        for stream in ("image", "text"):
            _alike(whole.of(stream), lazy.of(stream))
    elif isinstance(whole, Transcoder) and isinstance(lazy, Transcoder):
        _alike(whole.inner, lazy.inner)
    elif isinstance(whole, Dictionary) and isinstance(lazy, StoredDictionary):
        _alike(whole, lazy)
    else:
        kinds = f"{type(whole).__name__} whole and a {type(lazy).__name__} lazily"
        raise AssertionError(f"{folder} is read as a {kinds}")
    place = Path(folder)
    for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if file.is_file():
            _cut_off(place, file, format, options)


def check_adapter(host: Host | Model, inputs: Mapping[str, Any]) -> None:
    """Hold an adapter to what every host's adapter must say rightly.

    Each site is there and as wide as said, and so are those inside a layer of each kind; an edit of
    a live one changes what the host gives, one of a dead one is refused; and with the patch gone
    the host is bit for bit what it was. Sounds' sites are tried where the inputs bring one.

    Args:
        host: With its adapter, in eval mode.
        inputs: Of its forward, image and text, which must reach every live site.

    Raises:
        AssertionError: Something does not hold; the message says what.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vlm_edit import Adapter, Host
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
        >>> adapter = Adapter.of({"hidden": ("0", "image", 4)})
        >>> check_adapter(Host.of(model, adapter=adapter), {"input": torch.ones(2, 3)})
    """
    host = Host.of(host)
    _hold(not host.root.training, f"{host.kind.__name__} is in train mode: call model.eval()")
    with torch.no_grad():
        before = answers(host, inputs)
        _hold(same_answers(before, answers(host, inputs)), "the host is random")
        for site in (*host.sites.values(), *some_inside(host.sites)):
            if is_reached(site, inputs):
                _check_site(host, site, inputs, before)


def _check_site(
    host: Host, site: Site, inputs: Mapping[str, Any], before: Sequence[Tensor]
) -> None:
    name = site.name
    try:
        edited, acts = try_edit(host, site, inputs, before)
    except (RuntimeError, VlmEditError) as error:
        _hold(site.dead is not None, f"an edit at {name!r} fails: {error}")
        return
    if not edited and may_rest(site):
        return
    _hold(edited > 0, f"nothing was edited at {name!r}: the forward does not run its modules")
    _hold(acts, f"an edit at {name!r} changes nothing the host gives: dead?")
    after = answers(host, inputs)
    _hold(same_answers(before, after), f"the host is not what it was after a patch of {name!r}")


def _alike(whole: Dictionary, lazy: StoredDictionary | Dictionary) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, whole.width, generator=generator)
    for stream in whole.encoder.centers or (None,):
        codes = whole.encode(x, stream)
        _hold(bool(codes.isfinite().all()), "it makes NaN or infinity of finite activations")
        _near(lazy.encode_sparse(x, stream).dense(), codes, "read row by row it encodes otherwise")
        features = sorted({0, whole.n_features // 2, whole.n_features - 1})
        part = lazy.slice(features)
        _near(part.codes(x, stream)[0], codes[:, features], "a slice of it encodes otherwise")
    _near(part.decoder, whole.decoder[features], "a slice of it has other decoder rows")


def _cut_off(place: Path, file: Path, format: str | None, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, place.name)
        shutil.copytree(place, copy) if place.is_dir() else shutil.copyfile(place, copy)
        target = copy / file.relative_to(place) if place.is_dir() else copy
        data = file.read_bytes()
        target.write_bytes(data[: len(data) // 2])
        try:
            load_dictionary(copy, format, **options)
        except VlmEditError:
            return
        except Exception as error:
            raise AssertionError(
                f"half of {file.name} gives a {type(error).__name__}, not a VlmEditError: {error}"
            ) from error


def _near(found: Tensor, expected: Tensor, otherwise: str) -> None:
    if not torch.allclose(found, expected, rtol=_CLOSE, atol=_CLOSE):
        distance = float((found - expected).abs().max())
        raise AssertionError(f"{otherwise}: off by {distance:.2g} at most")


def _hold(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
