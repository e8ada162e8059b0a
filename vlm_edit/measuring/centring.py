"""Centring each stream apart, so that a constant offset between them makes no dominance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vlm_edit.dictionaries import AnyDictionary, Dictionary
from vlm_edit.ground.errors import BadArgument
from vlm_edit.measuring.reader import STREAMS


def centred(dictionary: AnyDictionary, means: Mapping[str, Tensor]) -> Dictionary:
    """Return the dictionary that sees both streams about one common mean.

    What is constant in a stream is no information about any of its examples, and can make
    features of one modality all the same. Measure with both, and compare.

    Args:
        dictionary: In memory, one for both streams.
        means: [d] per stream, of normed activations: ``Measurement.means`` of an earlier run.

    Returns:
        The same features, with each stream's mean moved onto the mean of both.

    Raises:
        VlmEditError: A stream without a mean, or of another width; a dictionary per stream, or
            one left on disk.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> neurons = Dictionary.identity(width=2)
        >>> means = {"image": torch.tensor([3.0, 0.0]), "text": torch.tensor([1.0, 0.0])}
        >>> both = centred(neurons, means)
        >>> both.encode(torch.tensor([3.0, 0.0]), "image"), both.encode(means["text"], "text")
        (tensor([2., 0.]), tensor([2., 0.]))
    """
    dictionary = expect_centrable(dictionary)
    for stream in STREAMS:
        if stream not in means or tuple(means[stream].shape) != (dictionary.width,):
            shape = tuple(means[stream].shape) if stream in means else "none"
            raise BadArgument(
                f"centring needs the mean of the {stream} stream, [{dictionary.width}], got "
                f"{shape}: take Measurement.means of a run with this dictionary"
            )
    encoder = dictionary.encoder
    offsets = {
        stream: means[stream].double() - encoder.centers[stream].double()
        if encoder.centers
        else means[stream].double()
        for stream in STREAMS
    }
    common = (offsets["image"] + offsets["text"]) / 2
    centers = {stream: (means[stream].double() - common).float() for stream in STREAMS}
    return replace(dictionary, encoder=replace(encoder, centers=centers))


def expect_centrable(dictionary: AnyDictionary) -> Dictionary:
    """Refuse a dictionary that is not one for both streams and in memory; return it.

    Raises:
        VlmEditError: It is not.
    """
    if not isinstance(dictionary, Dictionary):
        raise BadArgument(
            f"a {type(dictionary).__name__} cannot be centred: load() one that was left on disk; "
            "of one per stream, train each with center=True"
        )
    return dictionary
