"""Dictionaries that read some places of a host and write others: transcoders and crosscoders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from vlm_edit.dictionaries.check import Check
from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.encoder import expect
from vlm_edit.dictionaries.encodes import facts, words
from vlm_edit.dictionaries.norms import norm_of
from vlm_edit.dictionaries.origin import expect_layers
from vlm_edit.dictionaries.paired import PairedDictionary
from vlm_edit.dictionaries.predicting import check_prediction
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.ground.codes import SparseCodes
from vlm_edit.ground.errors import BadArgument, CannotKnow, WrongHost
from vlm_edit.ground.modality import Modality
from vlm_edit.ground.notebook import card, one_line
from vlm_edit.ground.sites import BESIDE, layer_of

Inner = TypeVar("Inner", Dictionary, StoredDictionary)


class Places(NamedTuple):
    """Where in a host a transcoder reads and writes, as names of sites, part by part."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def read(self) -> str:
        """Return the name of all that is read, side by side."""
        return BESIDE.join(self.reads)

    @property
    def both(self) -> str:
        """Return the name of what is read and then what is written, side by side."""
        return BESIDE.join((*self.reads, *self.writes))


@dataclass(frozen=True, eq=False)
class Transcoder(Generic[Inner]):
    """Features that read one place of each of some layers and write another, or the same.

    What a norm of what is read divides out is put back into what is written, if it is put back.

    A transcoder has one part, an MLP: its codes are of what enters, its decoder rows of what is
    added. A crosscoder has several layers, whose states it reads end to end and writes so. A
    cross-layer transcoder has several MLPs. An edit acts where they write; its site is named as
    what is written: ``language.3.mlp_out``, or ``language.1+language.3`` of several.

    Attributes:
        inner: Its encoder of what is read and its decoder of what is written, end to end: each
            ``parts`` places of one width.
        reads: The place inside of a layer that is read, such as ``mlp_in``; ``""`` for its output;
            None where the file does not say.
        writes: Likewise, what is written.
        parts: Of how many layers.
        skip: [d, d], what ``predict`` adds to the decoder's output of what is read; None for none.

    Example:
        >>> import torch
        >>> from vlm_edit import Dictionary
        >>> mlp = Transcoder(Dictionary.identity(width=2), "mlp_in", "mlp_out")
        >>> mlp.places("language.3.mlp_out")
        Places(reads=('language.3.mlp_in',), writes=('language.3.mlp_out',))
    """

    inner: Inner
    reads: str | None
    writes: str | None
    parts: int = 1
    skip: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the parts are of one width, and the skip of theirs."""
        width = self.inner.width
        if self.parts < 1 or width % self.parts:
            raise BadArgument(f"{self.parts} parts of one width are not {width} wide together")
        if self.skip is not None:
            expect("skip", self.skip, (width, width))
        if self.parts > 1 and self._norm != "none":
            raise BadArgument(
                f"the norm {self._norm!r} is of one place, and this reads {self.parts}"
            )

    def __repr__(self) -> str:
        """Say on a line what it is."""
        left = ", left on disk" if isinstance(self.inner, StoredDictionary) else ""
        return one_line(f"Transcoder({self.way()}, {words(self.inner)}{left})")

    def _repr_html_(self) -> str:
        """Say it in a notebook."""
        return card("Transcoder", {"from": self.way(), **facts(self.inner)})

    def way(self) -> str:
        """Say in words from where to where it leads."""
        names = ["?" if at is None else at or "a layer" for at in (self.reads, self.writes)]
        way = names[0] if names[0] == names[1] else f"{names[0]} to {names[1]}"
        return way if self.parts == 1 else f"{way} of {self.parts} layers"

    @property
    def _norm(self) -> str:
        inner = self.inner
        return inner.encoder.norm if isinstance(inner, Dictionary) else inner.norm

    @property
    def width(self) -> int:
        """Return the size d of what is read, all of it."""
        return self.inner.width

    @property
    def n_features(self) -> int:
        """Return the number m of features."""
        return self.inner.n_features

    @property
    def info(self) -> Mapping[str, str]:
        """Return what it was trained on."""
        return self.inner.info

    @property
    def same_place(self) -> bool:
        """Whether it writes what it reads."""
        return self.reads == self.writes

    def places(self, site: str) -> Places:
        """Return where it reads and writes.

        Args:
            site: The name of what is written, of several layers joined by ``+``, in the order of
                a forward.

        Raises:
            CannotKnow: The file does not say which places of a layer are meant.
            WrongHost: A site that is no such place, or another number of them.
        """
        reads, writes = self.reads, self.writes
        if reads is None or writes is None:
            hook = self.info.get("hook_name")
            raise CannotKnow(
                "the file of this transcoder does not say which place of a layer it reads"
                + (f" ({hook!r} is not known)" if hook else "")
                + ": say it with dataclasses.replace(transcoder, reads='mlp_in', writes='mlp_out')"
                + (", or reads='', writes='' of a crosscoder" if self.parts > 1 else "")
            )
        names = site.split(BESIDE)
        ending = f".{writes}" if writes else ""
        if len(names) != self.parts or not all(name.endswith(ending) for name in names):
            layers = [layer_of(name) for name in names]
            if len(layers) != self.parts:
                layers = [f"language.{i}" for i in range(self.parts)]
            example = BESIDE.join(f"{layer}{ending}" for layer in layers)
            raise WrongHost(
                f"this transcoder ({self.way()}) is not at {site!r}: name what it writes, such as "
                f"{example!r}"
            )
        if len(set(names)) < len(names):
            raise WrongHost(f"{site!r} names a site twice: each of {self.parts} layers has its own")
        layers = [name.removesuffix(ending) for name in names]
        self._expect_layers(layers)
        return Places(tuple(f"{name}.{reads}" if reads else name for name in layers), tuple(names))

    def read_at(self, site: str) -> str:
        """Return the name of what is read, side by side, where this is what is written."""
        return self.places(site).read

    def _expect_layers(self, names: list[str]) -> None:
        """Refuse other layers than the file says, or another order than theirs."""
        numbers = [name.rpartition(".")[2] for name in names]
        said = self.info.get("layers")
        if said is not None and [word.strip() for word in said.split(",")] != numbers:
            raise WrongHost(
                f"this was trained at the layers {said}, not at {', '.join(names)}, where its "
                "features mean nothing"
            )
        whole = [int(number) for number in numbers if number.isdecimal()]
        if len(whole) == len(names) and whole != sorted(whole):
            raise WrongHost(f"{', '.join(names)}: name layers in the order of a forward")

    def expect_site(self, site: str) -> None:
        """Refuse another site than the one the file says it was trained at.

        Raises:
            VlmEditError: As ``places``, or its layer or tower is another.
        """
        places, ending = self.places(site), f".{self.writes}" if self.writes else ""
        layers = [name.removesuffix(ending) for name in places.writes]
        output = not self.reads and not self.writes
        expect_layers(self.info, (site, places.read, places.both), layers, output)

    def encode(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Return the codes [..., m] of what is read, [..., d], as ``Dictionary.encode``.

        Raises:
            VlmEditError: Wrong width, or a stream is needed.
        """
        return self.inner.encode(x, stream)

    def encode_sparse(self, x: Tensor, stream: Modality | None = None) -> SparseCodes:
        """Return the codes of what is read, kept sparse, as ``Dictionary.encode_sparse``.

        Raises:
            VlmEditError: As ``encode``, or another number of axes.
        """
        return self.inner.encode_sparse(x, stream)

    def decode(self, codes: Tensor | SparseCodes) -> Tensor:
        """Return what codes write, [..., d], without the skip's share."""
        return self.inner.decode(codes)

    def predict(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Return what it makes of what is read: what would be written, [..., d] float32.

        Raises:
            VlmEditError: As ``encode``.

        Example:
            >>> import torch
            >>> from vlm_edit import Dictionary
            >>> eye = Dictionary.identity(width=2)
            >>> Transcoder(eye, "mlp_in", "mlp", skip=torch.eye(2)).predict(
            ...     torch.tensor([1.0, 3.0])
            ... )
            tensor([2., 6.])
        """
        written = self.decode(self.encode(x, stream))
        if self.skip is not None:
            written = written + x.float() @ self.skip
        return norm_of(self._norm).restore(written, x.float())

    def normalise(self, x: Tensor, stream: Modality | None = None) -> Tensor:
        """Norm what is read, as ``Dictionary.normalise``."""
        return self.inner.normalise(x, stream)

    def check(self, activations: Tensor, stream: Modality | None = None, **options: Any) -> Check:
        """Say how well it predicts, as ``Dictionary.check`` says it of a reconstruction.

        Args:
            activations: [n, 2 d], what is read and then what is written, end to end, as
                ``collect`` gives it of the site ``places(site).both``; [n, d] where both are one.
            stream: As in ``encode``.
            options: As for ``Dictionary.check``.
        """
        return check_prediction(self, activations, stream, **options)

    def writing(self, *parts: int) -> Transcoder[Inner]:
        """Return one that reads as this and writes some of its places alone.

        Args:
            parts: Counted from 0, or from the end.

        Raises:
            BadArgument: There is no such place.

        Example:
            >>> import torch
            >>> from vlm_edit import Dictionary
            >>> both = Transcoder(Dictionary.identity(width=4), "", "", parts=2)
            >>> both.writing(-1).decode(torch.ones(4))
            tensor([0., 0., 1., 1.])
        """
        chosen = range(self.parts)
        if not parts or any(not -self.parts <= part < self.parts for part in parts):
            raise BadArgument(f"{parts} are no places of {self.parts}: count from 0, or from -1")
        kept = torch.zeros(self.parts, self.width // self.parts)
        kept[[chosen[part] for part in parts]] = 1.0
        inner = self.inner
        mask = kept.flatten().to(inner.decoder_bias.device)
        bias = inner.decoder_bias * mask
        if isinstance(inner, Dictionary):
            inner = replace(inner, decoder=inner.decoder * mask, decoder_bias=bias)
        else:
            scale = mask if inner.decoder.scale is None else inner.decoder.scale * mask
            inner = replace(inner, decoder=replace(inner.decoder, scale=scale), decoder_bias=bias)
        skip = None if self.skip is None else self.skip * mask.to(self.skip.device)
        return replace(self, inner=inner, skip=skip)

    def split(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is read and what is written of both end to end.

        Raises:
            BadArgument: They are of another width.
        """
        if self.same_place and activations.shape[-1] == self.width:
            return activations, activations
        if activations.shape[-1] != 2 * self.width:
            raise BadArgument(
                f"a transcoder predicts what is written from what is read: give both end to end, "
                f"{2 * self.width} wide, not {activations.shape[-1]}: collect(host, pairs, "
                "site=transcoder.places(site).both)"
            )
        return activations[..., : self.width], activations[..., self.width :]

    def to(self, device: torch.device | str) -> Transcoder[Inner]:
        """Return the same on another device."""
        skip = None if self.skip is None else self.skip.to(device)
        return replace(self, inner=self.inner.to(device), skip=skip)

    def load(self) -> Transcoder[Dictionary]:
        """Load all of it into memory."""
        inner = self.inner if isinstance(self.inner, Dictionary) else self.inner.load()
        return Transcoder(inner, self.reads, self.writes, self.parts, self.skip)

    def digest(self) -> str:
        """Return 32 hexadecimal digits that others do not have."""
        text = f"{self.inner.digest()} {self.reads} {self.writes} {self.parts}"
        hasher = hashlib.blake2b(text.encode(), digest_size=16)
        if self.skip is not None:
            hasher.update(self.skip.detach().cpu().contiguous().numpy().tobytes())
        return hasher.hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return activation, norm and what is read and written, JSON-able."""
        return {**self.inner.summary(), "way": self.way()}


PlainDictionary = (
    Dictionary
    | StoredDictionary
    | PairedDictionary[Dictionary]
    | PairedDictionary[StoredDictionary]
)
AnyDictionary = PlainDictionary | Transcoder[Dictionary] | Transcoder[StoredDictionary]


def expect_plain(dictionary: AnyDictionary, what: str) -> PlainDictionary:
    """Refuse a transcoder where what is read must be what is written.

    Args:
        dictionary: Anybody's.
        what: What is done with it, for the message.

    Raises:
        BadArgument: It is a transcoder.
    """
    if isinstance(dictionary, Transcoder):
        raise BadArgument(
            f"{what} is for dictionaries of one place; this is {dictionary!r}, whose codes are of "
            "other activations than its decoder's rows"
        )
    return dictionary
