"""What a command is about: a model with pairs and, if one is named, a dictionary."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_edit import measuring
from vlm_edit.cli.arguments import Subjected
from vlm_edit.cli.flags import in_flags
from vlm_edit.cli.host import ZOO, load_host
from vlm_edit.cli.shared import LeftOpen
from vlm_edit.dictionaries import Dictionary, Encodes, PairedDictionary, Transcoder
from vlm_edit.dictionaries import load_dictionary as read_dictionary
from vlm_edit.ground.errors import BadArgument, UnknownName, VlmEditError, WrongHost
from vlm_edit.ground.statistics import mcnemar, proportion
from vlm_edit.host import Host
from vlm_edit.measures.probing import hits
from vlm_edit.patches import Patch
from vlm_edit.report import Examples

Loaded = Dictionary | PairedDictionary[Dictionary] | Transcoder[Dictionary]
_RELEASE = "release:"  # of the index of public dictionaries
_ORIGIN = ("site", "hook_name", "layer", "model_name")


def load_pairs(
    name: str, columns: Mapping[str, str | None] | None = None, alone: bool = False
) -> measuring.Pairs:
    """Load pairs of a file or a folder, or the zoo's; their name leads back to them.

    Args:
        name: The file or folder, or ``zoo:pairs``.
        columns: Names of those of images and texts, as ``read_pairs`` takes them.
        alone: Whether prompts without images do, a ``.txt`` file.
    """
    if name == f"{ZOO}pairs":
        if columns and any(columns.values()):
            raise BadArgument(f"{name} has its columns: leave --image-column and --text-column out")
        from vlm_edit import zoo

        return replace(zoo.load_pairs(), name=name)
    with in_flags():
        if measuring.is_sharded(name):
            shards = load_shards(name, columns)
            return replace(measuring.read_all(shards), name=shards.name)
        pairs = measuring.read_pairs(name, **(columns or {}))
    if pairs.only and not alone:
        raise BadArgument(f"{name} holds prompts alone, and this command needs an image with each")
    return replace(pairs, name=str(Path(name).absolute()))


def load_shards(name: str, columns: Mapping[str, str | None] | None = None) -> measuring.Shards:
    """Find shards; nothing of them is read.

    Args:
        name: A folder of them, a file or a pattern.
        columns: As for ``load_pairs``.
    """
    with in_flags():
        return measuring.shards_of(os.path.abspath(name), **(columns or {}))


def load_dictionary(name: str, options: LeftOpen) -> Loaded:
    """Load a dictionary of the zoo, a path or the hub, with what its files leave open."""
    loaded = read_named(name, **options.left_open())
    return without_origin(loaded) if options.any_origin else loaded


def without_origin(dictionary: Loaded) -> Loaded:
    """Return a dictionary that does not say where it was trained."""
    if isinstance(dictionary, PairedDictionary):
        image, text = _without_origin(dictionary.image), _without_origin(dictionary.text)
        return replace(dictionary, image=image, text=text)
    if isinstance(dictionary, Transcoder):
        return replace(dictionary, inner=_without_origin(dictionary.inner))
    return _without_origin(dictionary)


def _without_origin(dictionary: Dictionary) -> Dictionary:
    info = {key: value for key, value in dictionary.info.items() if key not in _ORIGIN}
    return replace(dictionary, info=info)


def read_named(name: str, **left_open: Any) -> Loaded:
    """Load a dictionary of the zoo, of the index, a path or the hub.

    Args:
        name: As typed.
        left_open: What its files leave open, as ``load_dictionary`` takes it.
    """
    if name.startswith(_RELEASE):
        release, _, sae_id = name.removeprefix(_RELEASE).partition("/")
        released: Loaded = read_dictionary(release=release, sae_id=sae_id or None, **left_open)
        return released
    if not name.startswith(ZOO):
        loaded: Loaded = read_dictionary(name, **left_open)
        return loaded
    if left_open:
        raise BadArgument(f"{name} needs none of --dictionary-{', --dictionary-'.join(left_open)}")
    from vlm_edit import zoo

    return zoo.load_dictionary(name.removeprefix(ZOO))


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Embeddings of pairs, and what they find.

    Attributes:
        image: [n, d].
        text: [n, d].
        numbers: The pairs' numbers.
        texts: Theirs.
        images: [n], the number of the first pair that shows a pair's image.
    """

    image: Tensor
    text: Tensor
    numbers: Sequence[int]
    texts: Sequence[str]
    images: Sequence[int]

    def row(self, before: Retrieval) -> tuple[str, str, str, str]:
        """Tell recall at 1 and at 5, what changed, and how far embeddings moved."""
        now, then = (torch.cat([r.image, r.text]) for r in (self, before))
        moved = (now - then).norm(dim=1) / then.norm(dim=1)
        at_1, at_5 = (proportion(int(r.sum()), len(r)).text(3) for r in map(self.found, (1, 5)))
        change = "" if self is before else str(mcnemar(before.found(1), self.found(1)))
        return at_1, at_5, change, f"{float(moved.mean()):.1%}"

    def found(self, k: int) -> Tensor:
        """Tell for each image, once, whether one of its texts is among the k nearest, bool."""
        own = _alike(self.images, self.texts)
        first = {image: i for i, image in reversed(list(enumerate(self.images)))}
        rows = sorted(first.values())
        return hits(self.image[rows], self.text, [own[i] for i in rows], own, k)

    def changed(self, before: Retrieval, title: str, shown: int = 12, seed: int = 0) -> Examples:
        """Draw random images that find another text first than before."""
        now, then = self._first(), before._first()
        moved = [i for i, pair in enumerate(zip(now, then, strict=True)) if pair[0] != pair[1]]
        order = torch.randperm(len(moved), generator=torch.Generator().manual_seed(seed))
        chosen = [moved[i] for i in order[:shown].tolist()]
        lines = [
            (f"before: {then[i]}", f"after: {now[i]}", f"its own: {self.texts[i]}") for i in chosen
        ]
        return Examples(
            title,
            [(self.numbers[i], three) for i, three in zip(chosen, lines, strict=True)],
            f"{len(moved)} of {len(now)} images find another text first; {len(chosen)} of them, "
            f"drawn at random with seed {seed}.",
        )

    def _first(self) -> list[str]:
        """Return the text that each image finds first."""
        image, text = (F.normalize(x, dim=-1) for x in (self.image, self.text))
        first = torch.cat([(some @ text.mT).argmax(1) for some in image.split(1024)])
        return [self.texts[i] for i in first.tolist()]


def _alike(images: Sequence[int], texts: Sequence[str]) -> list[str]:
    """Name alike what is of one image, or of one text."""
    names: dict[int, int] = {}

    def of(image: int) -> int:
        while names.setdefault(image, image) != image:
            image = names[image]
        return image

    first: dict[str, int] = {}
    for image, text in zip(images, texts, strict=True):
        one, other = of(image), of(first.setdefault(text, image))
        names[max(one, other)] = min(one, other)
    return [str(of(image)) for image in images]


@dataclass(eq=False)
class Subject:
    """A model with pairs and, if one is given, a dictionary.

    Attributes:
        source: What is measured: the pairs, or shards, which are not read before.
        also: What else is measured in the same pass: a site and a dictionary for each.
    """

    host: Host
    source: measuring.Pairs | measuring.Shards
    dictionary: Loaded | None
    site: str
    batch_size: int
    also: Sequence[tuple[str, Loaded]] = ()
    read: int = 0
    images: int = 0
    skipped: tuple[tuple[int, str], ...] = ()
    truncated: int = 0

    @classmethod
    def load(
        cls,
        options: Subjected,
        host: Host | None = None,
        alone: bool = False,
        also: Sequence[str] = (),
        sharded: bool = False,
    ) -> Subject:
        """Load everything that the arguments name; what is quick to refuse comes first.

        Args:
            options: The arguments.
            host: The one they name, where it is loaded already.
            alone: Whether prompts without images do.
            also: What else is measured, ``SITE=DICTIONARY`` each.
            sharded: Whether shards are left as they are.
        """
        source: measuring.Pairs | measuring.Shards
        if sharded and measuring.is_sharded(options.pairs):
            source, only = load_shards(options.pairs, options.columns()), None
        else:
            source = load_pairs(options.pairs, options.columns(), alone=alone)
            only = source.only
        named = options.dictionary
        dictionary = None
        if named not in (None, "neurons"):
            dictionary = load_dictionary(named, options)
        more = [_also(text, options) for text in also]
        host = host or load_host(options.model, options, only == "text")
        site = host.site(options.site)
        if named == "neurons":
            norm = "constant_norm_rescale" if site.name == "joint" else "none"
            dictionary = Dictionary.identity(site.width, norm)
        return cls(host, source, dictionary, site.name, options.batch_size, more)

    @property
    def pairs(self) -> measuring.Pairs:
        """Return the pairs."""
        assert isinstance(self.source, measuring.Pairs)
        return self.source

    def measure(self, **options: Any) -> list[measuring.Measurement]:
        """Measure the dictionary's features, and what else is; options as of ``measure``."""
        readings = self.readings()
        if "dictionary" in options:
            readings = [(self.site, options.pop("dictionary"))]
        options = {"batch_size": self.batch_size, **options}
        return measuring.measure_together(self.host, self.source, readings, **options)

    def share(self, out: Path, part: tuple[int, int], **options: Any) -> measuring.Sharing:
        """Take one of several parts of what ``measure`` with these options would give."""
        options = {"batch_size": self.batch_size, **options}
        return measuring.Sharing(out, self.host, self.source, self.readings(), part=part, **options)

    def was_measured(self, folders: Sequence[Path], **options: Any) -> bool:
        """Tell whether folders hold what ``measure`` with these options would give."""
        options = {"batch_size": self.batch_size, **options}
        return all(
            self._holds(folder, site, dictionary, options)
            for folder, (site, dictionary) in zip(folders, self.readings(), strict=True)
        )

    def _holds(self, folder: Path, site: str, dictionary: Loaded, options: dict[str, Any]) -> bool:
        try:
            run = measuring.load_measurement(folder)
        except VlmEditError:
            return False
        return measuring.was_measured(run, self.host, self.source, dictionary, site, **options)

    def readings(self) -> list[tuple[str, Loaded]]:
        """Return the site and the dictionary of each run."""
        return [(self.site, self.expect_dictionary()), *self.also]

    def load_run(self, folder: str) -> measuring.Measurement:
        """Load a run of this model on these pairs and, if one is named, with this dictionary.

        Raises:
            VlmEditError: No run there, or of something else.
        """
        return run_of(folder, self.host, self.dictionary, self.pairs)

    def expect_dictionary(self) -> Loaded:
        """Return the dictionary."""
        if self.dictionary is None:
            raise VlmEditError("features are numbers in a dictionary: name it with --dictionary")
        return self.dictionary

    def retrieval(self, patch: Patch | None, check_host: bool = True) -> Retrieval:
        """Embed what is retrieved at the joint site, edited or not."""
        with patch.attach(self.host, check_host=check_host) if patch else nullcontext():
            image, text, numbers = self._embeddings()
        self.read = len(numbers)
        images = self._shown[numbers].tolist()
        self.images = len(set(images))
        return Retrieval(image, text, numbers, [self.pairs.texts[i] for i in numbers], images)

    @cached_property
    def _shown(self) -> Any:
        """Return which image each pair shows, found once for all patches."""
        return measuring.shown(self.pairs)

    def _embeddings(self) -> tuple[Tensor, Tensor, list[int]]:
        joint = self.host.site("joint")
        reader = measuring.Reader(
            self.host, Dictionary.identity(joint.width), batch_size=self.batch_size
        )
        batches = list(reader.read(self.pairs))
        self.skipped, self.truncated = tuple(reader.skipped), reader.truncated
        image, text = (torch.cat([b.hidden[s] for b in batches]) for s in ("image", "text"))
        return image, text, [number for batch in batches for number in batch.numbers]


def _also(text: str, options: Subjected) -> tuple[str, Loaded]:
    site, equals, name = text.partition("=")
    if not (site and equals and name):
        raise BadArgument(f"--also takes SITE=DICTIONARY, such as joint=zoo:joint, got {text!r}")
    return site, load_dictionary(name, options)


def run_of(
    folder: str, host: Host, dictionary: Loaded | None, pairs: measuring.Pairs | None = None
) -> measuring.Measurement:
    """Load a run of this model and, if they are named, with this dictionary and on these pairs.

    Raises:
        VlmEditError: No run there, or of something else.
    """
    run = measuring.load_measurement(folder)
    try:
        site = host.site(run.site)
    except UnknownName as error:
        raise BadArgument(
            f"{folder} measured {run.site}, which {host.kind.__name__} lacks: name a run of "
            "this model, or leave --run out"
        ) from error
    known: Encodes = dictionary or Dictionary.identity(site.width)
    here = measuring.provenance(host, site, known, {})
    there = run.provenance
    same = {
        "model": here["host"]["sites"] == there.get("host", here["host"])["sites"],
        "pairs": pairs is None
        or there.get("pairs", {}).get("listing") == measuring.pairs_listing(pairs),
        "dictionary": dictionary is None
        or there.get("dictionary", {}).get("digest") == here["dictionary"]["digest"],
    }
    for what, holds in same.items():
        if not holds:
            raise WrongHost(
                f"{folder} is a run with another {what}: measure this one first, or leave --run out"
            )
    return run
