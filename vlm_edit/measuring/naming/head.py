"""The output head of a host that speaks: which tokens a direction of its stream promotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_edit.ground.errors import CannotKnow
from vlm_edit.host import Host

# What families call the norm behind their last layer, seen from what holds the layers.
_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "final_norm", "layer_norm")
_MEND = "pass judge=, a function that names features from their examples"


@dataclass(frozen=True, eq=False)
class OutputHead:
    """Hold the last norm and the output head of a host, and the words of its tokens.

    A direction is read as the logit lens reads a state: through the last norm and the head, less
    what both give for no direction at all, their biases.

    Attributes:
        norm: Behind the last layer.
        head: To logits.
        ids: [w], tokens that are words: neither special nor blank, each text once.
        texts: Theirs, without blanks around them.
    """

    norm: nn.Module
    head: nn.Module
    ids: Tensor
    texts: tuple[str, ...]

    @classmethod
    def of(cls, host: Host, site: str) -> OutputHead:
        """Find them in a host.

        Args:
            host: With its tokenizer.
            site: A layer of its language model.

        Raises:
            CannotKnow: No language layer, no output head, no norm behind the last layer, or no
                tokenizer.
        """
        head = _head_of(host, site)
        weight = next(head.parameters())
        norm = _norm_of(host, site)
        tokenizer = getattr(host.processor, "tokenizer", host.processor)
        if not hasattr(tokenizer, "decode"):
            raise CannotKnow(f"{host.kind.__name__} has no tokenizer to spell its tokens: {_MEND}")
        special = {*(host.special_ids(site) or ()), *getattr(tokenizer, "all_special_ids", ())}
        count = min(len(tokenizer), weight.shape[0])
        spelled = _spelled(tokenizer, [i for i in range(count) if i not in special])
        return cls(norm, head, torch.tensor(list(spelled.values())), tuple(spelled))

    def values(self, directions: Tensor) -> Tensor:
        """Return how much directions promote each word, [t, w] float32.

        In standard deviations over the words, from their mean: a direction has no length of its
        own, and what a softmax is raised by as a whole changes nothing.

        Args:
            directions: [t, d], decoder rows.
        """
        weight = next(self.norm.parameters(), next(self.head.parameters()))
        both = torch.cat([directions, torch.zeros_like(directions[:1])])
        with torch.no_grad():
            logits: Tensor = self.head(self.norm(both.to(weight.device, weight.dtype)))
        logits = logits.float().cpu()[:, self.ids]
        promoted = logits[:-1] - logits[-1]
        centred: Tensor = promoted - promoted.mean(1, keepdim=True)
        return centred / centred.std(1, keepdim=True).clamp_min(1e-12)


def reads_words(host: Host, site: str) -> bool:
    """Tell whether directions of a site can be read by the host's output head."""
    try:
        _head_of(host, site)
        _norm_of(host, site)
    except CannotKnow:
        return False
    return True


def _head_of(host: Host, site: str) -> nn.Module:
    get: Any = getattr(host.root, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if not isinstance(head, nn.Module) or next(head.parameters(), None) is None:
        raise CannotKnow(
            f"{host.kind.__name__} has no output head, so that nothing says which words {site!r} "
            f"promotes: {_MEND}"
        )
    return head


def _norm_of(host: Host, site: str) -> nn.Module:
    """Return what stands behind the last layer, beside the list that holds the layers."""
    layer = host.site(site)
    kind, _, number = site.partition(".")
    path = layer.taps[0].path
    holder, _, last = path.rpartition(".")
    if kind not in ("language", "decoder") or not number.isdecimal() or not last.isdecimal():
        raise CannotKnow(
            f"{site!r} is no layer of the language model of {host.kind.__name__}, so that no "
            f"output head reads it: {_MEND}"
        )
    beside = host.root.get_submodule(holder.rpartition(".")[0])
    for name in _NORMS:
        norm = getattr(beside, name, None)
        if isinstance(norm, nn.Module):
            return norm
    raise CannotKnow(
        f"no norm behind the last layer of {host.kind.__name__} is known, of {', '.join(_NORMS)}: "
        f"{_MEND}"
    )


def _spelled(tokenizer: Any, ids: Sequence[int]) -> dict[str, int]:
    """Return the first token of each text."""
    first: dict[str, int] = {}
    for number, text in _texts(tokenizer, ids):
        if text and text.isprintable() and "\ufffd" not in text:
            first.setdefault(text, number)
    return first


def _texts(tokenizer: Any, ids: Sequence[int]) -> Iterator[tuple[int, str]]:
    for number in ids:
        yield number, str(tokenizer.decode([number])).strip()
