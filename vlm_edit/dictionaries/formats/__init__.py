"""Dictionaries on disk: recognise a format by its content and read it."""

from __future__ import annotations

import os
import re
from typing import Literal, overload

from vlm_edit.dictionaries.dictionary import Dictionary
from vlm_edit.dictionaries.formats import (
    bussmann,
    circuit_tracer,
    clipscope,
    crosscoder,
    dictionary_learning,
    dncbm,
    gemma_scope_1,
    goodfire,
    gytdau,
    hypothesaes,
    llama_scope,
    lm_saes,
    mayfull,
    msae,
    openai,
    overcomplete,
    patchsae,
    prisma,
    saelens,
    saev,
    scope,
    scope_layers,
    sparsify,
    state_dict,
    visaebench,
    vlsae,
)
from vlm_edit.dictionaries.formats.cause import cause
from vlm_edit.dictionaries.formats.format import Format as Format
from vlm_edit.dictionaries.formats.format import Hints, Stored
from vlm_edit.dictionaries.formats.format import Layout as Layout
from vlm_edit.dictionaries.formats.hub import WEIGHTS, candidates, locate
from vlm_edit.dictionaries.formats.licence import licensed
from vlm_edit.dictionaries.formats.source import Source
from vlm_edit.dictionaries.formats.strangers import stranger
from vlm_edit.dictionaries.paired import STREAMS, PairedDictionary
from vlm_edit.dictionaries.releases import resolve
from vlm_edit.dictionaries.stored import StoredDictionary
from vlm_edit.dictionaries.transcoder import AnyDictionary, Transcoder
from vlm_edit.ground.errors import BadArgument, DamagedFile, UnknownName, VlmEditError, expect_kind
from vlm_edit.ground.registry import Registry

FORMATS: Registry[Format] = Registry("format", "vlm_edit.formats", Format)


def register_format(format: Format) -> Format:
    """Add a format of one's own, which ``load_dictionary`` then knows, and return it.

    A package that others install declares it as an entry point of the group ``vlm_edit.formats``
    instead, under the format's name.

    Raises:
        BadArgument: Not a ``Format``, or another one has its name.
    """
    expect_kind("format", format, Format, "a vlm_edit.dictionaries.Format")
    return FORMATS.add(format.name, format)


for _format_of_ours in (
    saelens.FORMAT,
    dictionary_learning.FORMAT,
    clipscope.FORMAT,
    gytdau.FORMAT,
    msae.FORMAT,
    openai.FORMAT,
    overcomplete.FORMAT,
    prisma.FORMAT,
    saev.FORMAT,
    sparsify.FORMAT,
    mayfull.FORMAT,
    scope.GEMMA,
    scope.QWEN,
    gemma_scope_1.FORMAT,
    llama_scope.FORMAT,
    lm_saes.FORMAT,
    goodfire.FORMAT,
    patchsae.FORMAT,
    visaebench.FORMAT,
    hypothesaes.FORMAT,
    dncbm.FORMAT,
    bussmann.FORMAT,
    circuit_tracer.FORMAT,
    circuit_tracer.LAYERS,
    scope_layers.FORMAT,
    crosscoder.FORMAT,
    vlsae.FORMAT,
    state_dict.FORMAT,
):
    register_format(_format_of_ours)


@overload
def load_dictionary(
    path: str | os.PathLike[str] | None = None,
    format: str | None = None,
    *,
    release: str | None = None,
    sae_id: str | None = None,
    file: str | None = None,
    revision: str | None = None,
    k: int | None = None,
    activation: str | None = None,
    threshold: float | None = None,
    layout: Layout | None = None,
    lazy: Literal[False] = False,
) -> Dictionary | PairedDictionary[Dictionary] | Transcoder[Dictionary]: ...


@overload
def load_dictionary(
    path: str | os.PathLike[str] | None = None,
    format: str | None = None,
    *,
    release: str | None = None,
    sae_id: str | None = None,
    file: str | None = None,
    revision: str | None = None,
    k: int | None = None,
    activation: str | None = None,
    threshold: float | None = None,
    layout: Layout | None = None,
    lazy: Literal[True],
) -> StoredDictionary | PairedDictionary[StoredDictionary] | Transcoder[StoredDictionary]: ...


def load_dictionary(
    path: str | os.PathLike[str] | None = None,
    format: str | None = None,
    *,
    release: str | None = None,
    sae_id: str | None = None,
    file: str | None = None,
    revision: str | None = None,
    k: int | None = None,
    activation: str | None = None,
    threshold: float | None = None,
    layout: Layout | None = None,
    lazy: bool = False,
) -> AnyDictionary:
    """Read a dictionary from disk or from the hub; no code from a file is run.

    docs/dictionaries.md lists the formats, what they lack, and what each was checked against.

    Args:
        path: A folder or a file; or ``owner/name`` of a repository on the hub, which
            huggingface_hub fetches into its cache (offline: takes from there).
        format: The format's name; by default recognised by content.
        release: In the place of ``path``: a release of SAELens, or another of the index in
            docs/dictionaries.md, which tells its licence where no page beside the file does.
        sae_id: Which of a release's.
        file: A folder or a file inside ``path``, such as ``model.layers.24``.
        revision: Branch, tag or commit of a repository.
        k: Number of active features, where a format's files do not keep it.
        activation: Likewise.
        threshold: Likewise.
        layout: Where a plain state dict keeps what.
        lazy: Whether to leave the matrices on disk and read rows when they are needed.

    Returns:
        The dictionary, float32, on the CPU; a ``PairedDictionary`` where there is one for each
        stream: in one file, or as folders ``image`` and ``text``.

    Raises:
        VlmEditError: No such path, unknown or ambiguous format, or content that is not valid.

    Example:
        >>> import tempfile, torch
        >>> from vlm_edit import Dictionary, load_dictionary
        >>> from vlm_edit.dictionaries import Encoder, save_saelens
        >>> relu = Dictionary(Encoder(torch.eye(4), torch.zeros(4)), torch.eye(4), torch.zeros(4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_saelens(relu, folder)
        ...     load_dictionary(folder).n_features
        4
    """
    source = _whole(Source(locate(*_meant(path, file, release, sae_id), revision)), format)
    options = Hints(k=k, activation=activation, threshold=threshold, layout=layout)
    halves = [Source(source.file(stream)) for stream in STREAMS]
    if all(half.is_folder for half in halves) and not any(f.recognises(source) for f in FORMATS):
        image, text = (_format(half, format).open(half, options) for half in halves)
        stored: Stored
        stored = PairedDictionary(_expect_one(halves[0], image), _expect_one(halves[1], text))
    else:
        stored = _format(source, format).open(source, options)
    stored = licensed(stored, source.path, release or str(path))
    try:
        return stored if lazy else stored.load()
    except VlmEditError as error:
        raise DamagedFile(f"{source.path}: {error}") from error


def _meant(
    path: str | os.PathLike[str] | None,
    file: str | None,
    release: str | None,
    sae_id: str | None,
) -> tuple[str | os.PathLike[str], str | None]:
    """Return a path or a repository and what is in it, of which a release says both."""
    if (path is None) == (release is None):
        raise BadArgument(
            "say either a path (or a repository), or release= (and sae_id=)"
            + (f": got {str(path)!r} and {release!r}" if release is not None else "")
        )
    if path is not None:
        if sae_id is not None:
            raise BadArgument(f"sae_id={sae_id!r} goes with release=; in a path, say file=")
        return path, file
    if file is not None:
        raise BadArgument(f"file={file!r} goes with a path; of a release, say sae_id=")
    assert release is not None
    return resolve(release, sae_id)


def _whole(source: Source, name: str | None) -> Source:
    """Return the folder that a file of weights was named for, where alone it is of no format."""
    path = source.path
    weights = source.path.suffix in WEIGHTS
    if not weights or source.is_folder or any(known.recognises(source) for known in FORMATS):
        return source
    folder, names = Source(path.parent), {path.name, f"{path.parent.name}/{path.name}"}
    fitting = [f for f in FORMATS if name in (None, f.name) and f.recognises(folder)]
    named = any(names & set(re.split("[ ,]+", known.files)) for known in fitting)
    return folder if named else source


def _format(source: Source, name: str | None) -> Format:
    """Return the one format that is named, or that a source is in."""
    if name is not None:
        return FORMATS.find(name, f" ({_what_each_has()})")
    fitting = [f for f in FORMATS if f.recognises(source)]
    if not fitting:
        _expect_whole_files(source)
    places = candidates(source.path) if not fitting and source.is_folder else []
    if places:
        names = ", ".join(repr(place) for place in places[:10])
        raise UnknownName(
            f"{str(source.path)!r} is no dictionary itself, folders in it may be: say which with "
            f"file=, such as {names}"
        )
    reason = None if fitting else stranger(source)
    if reason is not None:
        raise UnknownName(f"{source.path} {reason}")
    if not fitting:
        raise UnknownName(
            f"the format of {str(source.path)!r} is not known; known formats: "
            f"{', '.join(FORMATS.names())} ({_what_each_has()})"
        )
    if len(fitting) > 1:
        fits = ", ".join(f.name for f in fitting)
        raise BadArgument(f"{str(source.path)!r} could be {fits}: say which with format=")
    return fitting[0]


def _expect_whole_files(source: Source) -> None:
    """Refuse files of weights that are of no format because they cannot be opened."""
    for name in source.names():
        path = source.file(name) if source.is_folder else source.path
        if path.suffix not in (*WEIGHTS, ".bin"):
            continue
        reason = cause(path)
        if reason is not None:
            raise DamagedFile(f"{path} {reason}")
        if path.suffix == ".safetensors":
            source.tensors(name)
        elif path.suffix in (".pt", ".pth", ".ckpt"):
            source.torch(name if source.is_folder else None)


def _what_each_has() -> str:
    return "; ".join(f"{f.name} has {f.files}" for f in FORMATS)


def _expect_one(source: Source, found: Stored) -> StoredDictionary:
    if isinstance(found, Transcoder):
        raise BadArgument(f"{source.path} is a transcoder: load it by itself")
    if isinstance(found, PairedDictionary):
        raise DamagedFile(f"{source.path} holds one dictionary for each stream, not one's alone")
    return found
