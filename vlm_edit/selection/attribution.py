"""Features by their effect on what the host says: gradient attribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, PairedDictionary, expect_origin, expect_plain
from vlm_edit.ground.errors import BadArgument, CannotKnow, VlmEditError
from vlm_edit.ground.modality import Mixed, Modality, part_of
from vlm_edit.hooks import Selection, Special, TokenChoice, Tokens, attach
from vlm_edit.host import Host, Model, other_family
from vlm_edit.selection.scores import ordered

Encoding = Dictionary | PairedDictionary[Dictionary]
Sign = Literal["either", "raises", "lowers"]

_CELLS = 1 << 24  # codes held at once: 64 MiB


def by_effect(
    host: Host | Model,
    batches: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    dictionary: Encoding,
    output: Callable[[Any], Tensor],
    site: str = "joint",
    most: int | None = 20,
    *,
    sign: Sign = "either",
    tokens: TokenChoice = "all",
) -> list[int]:
    """Select the features that an output of the host owes most to, strongest first.

    By the mean of ``effects`` over examples: how much of the output would go, to first order, if
    the feature were ablated.

    Args:
        host: In eval mode.
        batches: The host's inputs, or several such.
        dictionary: Of the site; one for each stream acts on each stream's tokens.
        output: From what the host returns to what is attributed: one number, or one per row.
        site: The site's name.
        most: How many at most; None for all with an effect.
        sign: ``raises`` for features that raise the output, ``lowers`` for those that lower it.
        tokens: For the effect through some tokens only, as in ``Patch``.

    Raises:
        VlmEditError: As ``effects``, no batch, or an unknown sign.

    Example:
        >>> from vlm_edit import zoo
        >>> from vlm_edit.selection import by_effect
        >>> host, processor = zoo.load_host()
        >>> inputs = processor(
        ...     text=["a dog", "a car"], images=[zoo.load_pairs().open(0)] * 2, return_tensors="pt"
        ... )
        >>> likeness = lambda output: output.logits_per_image.diagonal()
        >>> dictionary = zoo.load_dictionary("joint")
        >>> len(by_effect(host, inputs, dictionary, likeness, most=5, tokens="text"))
        5
    """
    if sign not in get_args(Sign):
        raise BadArgument(f"sign is {sign!r}: use one of {get_args(Sign)}")
    host = Host.of(host)
    calls = [batches] if isinstance(batches, Mapping) else batches
    total, examples = torch.zeros(dictionary.n_features, dtype=torch.float64), 0
    for inputs in calls:
        scores = effects(host, inputs, dictionary, output, site, tokens=tokens)
        total += scores.sum(0)
        examples += len(scores)
    if not examples:
        raise BadArgument("no batch of inputs: there is nothing to attribute")
    strength = {"either": total.abs(), "raises": total, "lowers": -total}[sign]
    return ordered(strength, strength > 0, most)


def effects(
    host: Host | Model,
    inputs: Mapping[str, Any],
    dictionary: Encoding,
    output: Callable[[Any], Tensor],
    site: str = "joint",
    *,
    tokens: TokenChoice = "all",
) -> Tensor:
    """Compute what each feature adds to an output: its code times the gradient along its direction.

    ``sum over tokens of code * scale * (d output / d hidden) . decoder row``: to first order what
    the output loses if the feature is ablated there by the splice. Exact where the output is
    linear in the hidden state. One forward and one backward for the whole batch, in which rows
    must not see each other. Patches attached before act meanwhile. Weights keep their gradients
    as they are; ``model.requires_grad_(False)`` saves the memory of what lies before the site.

    Args:
        host: In eval mode.
        inputs: Of its forward; tensors on its device.
        dictionary: Of the site; one for each stream acts on each stream's tokens.
        output: From what the host returns to what is attributed: one number, or one per row, such
            as ``lambda output: output.logits[:, -1, 42]``.
        site: The site's name.
        tokens: As in ``Patch``.

    Returns:
        [B, m] float64, a row an example, positive where the feature raises the output.

    Raises:
        VlmEditError: An unknown site or one of another width or origin than the dictionary, a host
            in train mode, tokens that do not pass, or an output that does not depend on the site.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vlm_edit import Adapter, Dictionary, Host
        >>> host = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False)).eval()
        >>> _ = nn.init.constant_(host[1].weight, 3.0)
        >>> adapter = Adapter.of({"x": ("0", "image", 2)})
        >>> inputs = {"input": torch.tensor([[1.0, -2.0]])}
        >>> host = Host.of(host, adapter=adapter)
        >>> effects(host, inputs, Dictionary.identity(2), lambda y: y[:, 0], "x")
        tensor([[ 3., -6.]], dtype=torch.float64)
    """
    host = Host.of(host)
    expect_plain(dictionary, "an effect")
    place = host.site(site)
    host.expect_width(place, dictionary.width)
    other = other_family(host.model, dictionary.info.get("model_name"))
    expect_origin(dictionary.info, site, host.name, other)
    host.expect_eval("gradients random")
    apart = isinstance(dictionary, PairedDictionary) or bool(dictionary.encoder.centers)
    passages: list[_Taken] = []
    selection = Selection(tokens)
    special = Special.at(host, site)

    def take(hidden: Tensor, here: Tokens) -> Tensor:
        if tokens != "all" and here.stream not in (selection.modality, "mixed"):
            return hidden
        leaf = torch.zeros_like(hidden, requires_grad=True)
        # Read now: what is known of the call is gone once it is over.
        passages.append(_Taken(hidden, leaf, selection.choose(here, special=special), here, apart))
        return hidden + leaf

    handle = attach(host, place, take)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            target = output(host(**inputs))
            gradients = _gradients(target, passages, site, tokens)
    finally:
        handle.remove()
    with torch.no_grad():
        return _attributed(dictionary, passages, gradients)


class _Taken:
    """Hold what passed at one tap in one call: the chosen tokens, and whose they are."""

    def __init__(
        self, hidden: Tensor, leaf: Tensor, chosen: Tensor | bool, tokens: Tokens, apart: bool
    ) -> None:
        self.mask = chosen if isinstance(chosen, Tensor) else tokens.fill(chosen)
        self.leaf = leaf
        self.hidden = hidden.detach()[self.mask]
        images = tokens.requests
        self.rows = self.mask.nonzero()[:, 0] if images is None else images[self.mask]
        self.count = len(hidden) if images is None else int(images.max()) + 1
        self.modality = part_of(tokens.modality, self.mask) if apart else None


def _gradients(
    output: Any, taken: list[_Taken], site: str, tokens: TokenChoice
) -> tuple[Tensor | None, ...]:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise BadArgument(
            f"output must give a tensor of numbers, one or one per row, got {type(output).__name__}"
        )
    if not any(bool(one.mask.any()) for one in taken):
        raise BadArgument(
            f"no {'' if tokens == 'all' else f'{tokens} '}tokens passed at site {site!r}: call the "
            "host with the inputs it needs"
        )
    gradients = None
    if output.requires_grad:
        gradients = torch.autograd.grad(
            output.sum(), [one.leaf for one in taken], allow_unused=True
        )
    if gradients is None or all(gradient is None for gradient in gradients):
        raise CannotKnow(
            f"the output does not depend on site {site!r}, or the host cuts gradients: attribute "
            "an output that comes after the site"
        )
    return gradients


def _attributed(
    dictionary: Encoding, taken: list[_Taken], gradients: tuple[Tensor | None, ...]
) -> Tensor:
    """Sum the effects of all taps and calls, [B, m]."""
    count = max(one.count for one in taken)
    total = torch.zeros(count, dictionary.n_features, dtype=torch.float64)
    for one, gradient in zip(taken, gradients, strict=True):
        if gradient is None:
            continue
        if one.count != count:
            raise CannotKnow(
                f"the site's outputs have {one.count} and {count} rows in one forward of the host: "
                "they cannot be told apart by example; give one example at a time"
            )
        along = gradient[one.mask].float()
        for half, modality, tokens in _parts(dictionary, one):
            for some in tokens.split(max(1, _CELLS // dictionary.n_features)):
                codes, scale = half.encoder(one.hidden[some], part_of(modality, some))
                worth = codes * (along[some] @ half.decoder.mT)
                worth = worth if scale is None else worth * scale
                total.index_add_(0, one.rows[some].cpu(), worth.cpu().double())
    return total


def _parts(dictionary: Encoding, one: _Taken) -> list[tuple[Dictionary, Modality | None, Tensor]]:
    """Return dictionaries of the tokens at a tap, their streams, and which tokens are whose."""
    copy, modality = dictionary.to(one.hidden.device), one.modality
    every = torch.arange(len(one.hidden), device=one.hidden.device)
    if isinstance(copy, Dictionary):
        if modality is None and copy.encoder.centers:
            raise _unknown("a dictionary that centres each stream apart")
        return [(copy, modality, every)]
    if modality is None:
        raise _unknown("a dictionary for each stream")
    if not isinstance(modality, Mixed):
        return [(copy.of(modality), modality, every)]
    return [(copy.of(name), name, every[modality.at(name)]) for name in modality.names]


def _unknown(what: str) -> VlmEditError:
    return VlmEditError(
        f"{what} needs to know image tokens from text, and this call of the host shows neither "
        "input_ids nor image inputs: call the whole host"
    )
