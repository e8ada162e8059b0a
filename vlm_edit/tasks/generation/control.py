"""What an image takes from a reference or leaves out: edits of what it is drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_edit.dictionaries import Dictionary, expect_features
from vlm_edit.edits import Ablate, Blend, Keep, Scale
from vlm_edit.ground.errors import BadArgument
from vlm_edit.hooks import TokenChoice, record
from vlm_edit.host import Host, Model
from vlm_edit.patches import Patch

Stream = Literal["image", "text"]


def read_reference(
    host: Host | Model, site: str, call: Callable[[], Any], stream: Stream = "image"
) -> Tensor:
    """Return what passes a site while a reference is encoded: its mean over tokens.

    Args:
        host: The host whose site conditions the drawing.
        site: The site.
        call: Encodes one reference by the host, such as
            ``lambda: host.get_image_features(**inputs)``.
        stream: Whether the reference is an image or a text.

    Returns:
        [d] float32, on the CPU.

    Raises:
        VlmEditError: The call did not run the site, or encoded several references at once.

    Example:
        >>> from vlm_edit import zoo
        >>> host, processor = zoo.load_host()
        >>> inputs = processor(text=["a cat"], return_tensors="pt")
        >>> call = lambda: host.get_text_features(**inputs)
        >>> read_reference(host, "joint", call, "text").shape
        torch.Size([192])
    """
    with torch.no_grad(), record(host, site) as recording:
        call()
    hidden = recording.last(site, stream).hidden.float().cpu()
    if len(hidden) != 1:
        raise BadArgument(
            f"the call encoded {len(hidden)} references: a patch takes from one, read them one by "
            "one"
        )
    return hidden.reshape(-1, hidden.shape[-1]).mean(0)


def take(
    site: str,
    dictionary: Dictionary,
    features: Sequence[int],
    reference: Tensor,
    strength: float = 1.0,
    stream: Stream = "image",
    tokens: TokenChoice = "all",
) -> Patch:
    """Make a patch by which drawings take some features from a reference, and nothing else of it.

    ``Blend`` of the features toward the reference's code. With vision-dominant features that is its
    style, with cross-modal ones what it shows.

    Args:
        site: Whose activations condition the drawing.
        dictionary: Its own.
        features: Such as ``selection.by_class(measurement, "vision")``.
        reference: [d], of ``read_reference``.
        strength: 0 draws what was asked for, 1 takes the features' code over.
        stream: Of the reference.
        tokens: As for ``Patch``.

    Raises:
        VlmEditError: A reference of another width, or features that the dictionary lacks.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> patch = take(
        ...     "joint", Dictionary.identity(4), [1, 2], torch.tensor([0.0, 1.0, 2.0, 3.0])
        ... )
        >>> patch.bindings[0].splice(torch.zeros(1, 4))
        tensor([[0., 1., 2., 0.]])
    """
    dictionary.encoder.expect_width(reference)
    numbers = Ablate(features).features  # whole numbers, each once
    expect_features(numbers, dictionary.n_features)
    code = dictionary.encode(reference[None], stream)[0]
    rule = Blend(numbers, code[list(numbers)].tolist(), strength=strength)
    return Patch(site, dictionary, rule, tokens=tokens)


def scale(
    site: str,
    dictionary: Dictionary,
    features: Sequence[int],
    factor: float,
    tokens: TokenChoice = "all",
) -> Patch:
    """Make a patch by which drawings have more or less of some features of their source.

    ``Scale``: 0 leaves the features out, 1 changes nothing, 2 doubles them.

    Args:
        site: As for ``take``.
        dictionary: Its own.
        features: Such as ``selection.by_class(measurement, "vision")``.
        factor: By which their code is multiplied.
        tokens: As for ``Patch``.

    Raises:
        VlmEditError: Features that the dictionary lacks.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> patch = scale("joint", Dictionary.identity(3), [1], 2.0)
        >>> patch.bindings[0].splice(torch.tensor([[1.0, 1.0, 1.0]]))
        tensor([[1., 2., 1.]])
    """
    return Patch(site, dictionary, Scale(features, factor=factor), tokens=tokens)


def keep(
    site: str,
    dictionary: Dictionary,
    features: Sequence[int],
    strength: float = 1.0,
    tokens: TokenChoice = "all",
) -> Patch:
    """Make a patch by which drawings keep some features of their source, and lose others.

    ``Keep``. What the dictionary does not explain stays.

    Args:
        site: As for ``take``.
        dictionary: Its own.
        features: As for ``scale``.
        strength: 0 changes nothing, 1 deletes all other features.
        tokens: As for ``Patch``.

    Raises:
        VlmEditError: Features that the dictionary lacks.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> patch = keep("joint", Dictionary.identity(3), [1], strength=0.5)
        >>> patch.bindings[0].splice(torch.tensor([[1.0, 1.0, 1.0]]))
        tensor([[0.5000, 1.0000, 0.5000]])
    """
    return Patch(site, dictionary, Keep(features, strength=strength), tokens=tokens)


def interpolate(
    site: str, reference: Tensor, strength: float = 1.0, tokens: TokenChoice = "all"
) -> Patch:
    """Go toward the whole embedding of the reference: the baseline without a dictionary.

    The reference is brought to the length of the embedding that is edited.

    Args:
        site: As for ``take``.
        reference: [d].
        strength: 1 is the reference.
        tokens: As for ``Patch``.

    Example:
        >>> import torch
        >>> patch = interpolate("joint", torch.tensor([0.0, 5.0]))
        >>> patch.bindings[0].splice(torch.tensor([[2.0, 0.0]])).round()
        tensor([[0., 2.]])
    """
    width = reference.shape[-1]
    neurons = Dictionary.identity(width, "constant_norm_rescale")
    return take(site, neurons, range(width), reference, strength, tokens=tokens)
