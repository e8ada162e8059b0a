"""Every type of transformers that sees images, however it is resolved: a row of docs/hosts.md each.

Which tokens are image is asked of the host itself, by two oracles that are none of our witnesses:
which positions of the first shared layer's input move when the pictures are others, and, where the
host puts embeddings of its own among them, the mask it gives to ``masked_scatter``.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from any_hosts import TYPES, AnyHost, NotBuilt, build
from any_hosts.checks import ROWS, SEVERAL, VIDEOS, WITHOUT, Row
from any_hosts.newer import added
from hosts_page import PAGE, WRITE
from test_modes import MODES, Mode, run
from torch import Tensor

from vlm_edit import Host
from vlm_edit.hooks import Tokens, attach
from vlm_edit.host import Site, layouts_in, registered_adapter
from vlm_edit.testing import check_adapter

NOT_RUN = ("host refuses", "host is random")
ANOTHER = 50  # the number of the first of other pictures
# What else a prompt may hold.
PROMPTS: dict[str, list[Row]] = {
    "several images a row": SEVERAL,
    "a row without": WITHOUT,
    "videos": VIDEOS,
}


class Stop(Exception):
    """Ends a forward at the layer that was looked at."""


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


@torch.no_grad()
def prompt_mask(host: AnyHost, site: Site, rows: list[Row]) -> Tensor:
    """Where features of pictures stand in the prompt, [B, P]: by shaking, or as scattered."""
    module, count = site.taps[0].module, sum(isinstance(p, str) for row in rows for p in row)
    seen: list[Tensor] = []
    scattered: list[Tensor] = []
    original, put = Tensor.masked_scatter, Tensor.index_put

    def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(entering(args, kwargs).clone())
        raise Stop

    def spy(self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
        if self.ndim == 3:
            scattered.append(mask.expand_as(self)[..., 0])
        return original(self, mask, source)

    def spy_put(self: Tensor, indices: Any, values: Tensor, *rest: Any, **more: Any) -> Tensor:
        if self.ndim == 3 and len(indices) == 2:
            marks = torch.zeros(self.shape[:2], dtype=torch.bool)
            marks[tuple(indices)] = True
            scattered.append(marks)
        return put(self, indices, values, *rest, **more)

    for first in (0, ANOTHER):
        handle = module.register_forward_pre_hook(look, with_kwargs=True)
        scattered.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "masked_scatter", spy)
            patch.setattr(Tensor, "index_put", spy_put)
            try:
                host.model(**host.inputs(rows, numbers=range(first, first + count)))
            except Stop:
                pass
            finally:
                handle.remove()
    moved = (seen[0] != seen[1]).any(-1)
    if moved.ndim == 3:  # residual streams, before or behind the tokens
        shape = host.inputs(rows)["input_ids"].shape
        moved = moved.any(0 if moved.shape[1:] == shape else -1)
    return functools.reduce(
        torch.logical_or, [m for m in scattered if m.shape == moved.shape], moved
    )


def passes(
    host: Host, site: Site, act: Callable[[], Any]
) -> list[tuple[torch.Size, Tensor | None]]:
    """What we know of image tokens at each pass through a site: the output's shape, our mask."""
    kept: list[tuple[torch.Size, Tensor | None]] = []

    def keep(hidden: Tensor, tokens: Tokens) -> Tensor:
        kept.append((hidden.shape, tokens.mask("visual")))
        return hidden

    handle = attach(host, site, keep)
    try:
        act()
    finally:
        handle.remove()
    return kept


def verdict(kept: list[tuple[torch.Size, Tensor | None]], prompt: Tensor) -> str:
    """Whether our masks are the prompt's, wherever a pass stands, in a word."""
    read, length = 0, prompt.shape[1]
    for shape, ours in kept:
        rows, now = shape[0], shape[1]
        if ours is None:
            return "unknown"
        expected = torch.zeros(len(prompt), now, dtype=torch.bool)
        if now >= length:
            expected[:, :length], read = prompt, length
        elif read < length:
            expected, read = prompt[:, read : read + now], read + now
        if not torch.equal(ours, expected.repeat_interleave(rows // len(prompt), 0)):
            return "other tokens"
    return "equal"


def embedded(host: AnyHost, inputs: dict[str, Any]) -> dict[str, Any]:
    embeds = host.model.get_input_embeddings()(inputs["input_ids"]).detach()
    return {k: v for k, v in inputs.items() if k != "input_ids"} | {"inputs_embeds": embeds}


def tried(host: AnyHost, ours: Host, site: Site, mode: Mode, rows: list[Row]) -> str:
    """How one way of running ends."""
    inputs = host.inputs(rows)
    prompt = prompt_mask(host, site, rows)
    try:
        inputs = embedded(host, inputs) if mode.embedded else inputs
        plain = run(mode, host.model, inputs)
    except Exception:
        return "host refuses"
    if not torch.equal(plain, run(mode, host.model, inputs)):
        return "host is random"
    said: list[Tensor] = []
    try:
        kept = passes(ours, site, lambda: said.append(run(mode, host.model, inputs)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not torch.equal(plain, said[0]):
        return "the host says something else"
    if kept and kept[0][1] is None:
        return "unknown"
    return verdict(kept, prompt)


def shared_site(host: Host) -> Site | None:
    """The first site of images and text in one sequence, by ids: not of a Q-Former's, by order."""
    by_order = tuple(f"{path}." for path in layouts_in(host.root, host.adapter))
    mixed = (s for s in host.sites.values() if s.taps[0].stream == "mixed")
    return next((s for s in mixed if not s.taps[0].path.startswith(by_order)), None)


@functools.cache
def ways(model_type: str) -> dict[str, str]:
    """How each way of running a type ends; empty where images share no sequence with text."""
    host = build(model_type)
    ours = Host.of(host.model)
    site = shared_site(ours)
    if site is None:
        return {}
    found = {}
    for name, mode in MODES.items():
        if mode.options is None or host.generates:
            found[name] = tried(host, ours, site, mode, [ROWS[i] for i in mode.rows])
    for name, rows in PROMPTS.items():
        wanted = host.videos if name == "videos" else host.several
        if wanted:
            found[name] = tried(host, ours, site, Mode({} if host.generates else None), rows)
    return found


@functools.cache
def sites_of(model_type: str) -> str:
    """What an edit at every site comes to."""
    host = build(model_type)
    try:
        check_adapter(host.model, host.inputs(ROWS))
    except AssertionError as error:
        return str(error)
    return "all act"


def kinds(host: Host) -> str:
    """The host's sites, layers as one with the parts that can be told inside them."""
    groups: dict[str, dict[str, None]] = {}
    for name in host.sites:
        told = (inner.removeprefix(f"{name}.").partition(".")[0] for inner in host.inside(name))
        parts = (part for part in told if part not in ("mid", "mlp_in", "mlp_out"))
        groups.setdefault(re.sub(r"\.\d+", ".{i}", name), {}).update(dict.fromkeys(parts))
    letters = {name: "".join(part[0] for part in parts) for name, parts in groups.items()}
    return ", ".join(f"`{name}` {letters[name]}".strip() for name in groups)


def row_of(model_type: str) -> str:
    """The type's row of the page."""
    named = f"| `{model_type}` | `{TYPES[model_type]}` |"
    try:
        host = build(model_type)
    except NotBuilt as reason:
        if "library but it was not found" in str(reason):  # the second environment has it
            pytest.skip(str(reason))
        return f"{named} {reason} | | |"
    how = "conventions" if registered_adapter(host.model) is None else "declared"
    results = ways(model_type)
    words: dict[str, list[str]] = {}
    for name, word in results.items():
        words.setdefault(word, []).append(name)
    equal = words.pop("equal", [])
    ran = len(results) - sum(len(words.get(word, [])) for word in NOT_RUN)
    told = f"{len(equal)} of {ran}" if results else "no shared sequence"
    notes = [f"{word}: {', '.join(names)}" for word, names in words.items()]
    if sites_of(model_type) != "all act":
        notes.append(f"sites: {sites_of(model_type)}")
    note = "; ".join(notes).replace("|", "/").replace("\n", " ")
    return f"{named} {how}: {kinds(Host.of(host.model))} | {told} | {note} |"


BEGIN, END = "<!-- types: begin -->\n", "<!-- types: end -->"


def written(model_type: str, row: str) -> None:
    """Put a type's row into the page."""
    page = PAGE.read_text("utf-8")
    head, rest = page.split(BEGIN)
    table, tail = rest.split(END)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    rows[model_type] = row
    title = "| type | class | sites | masks equal | notes |\n| --- | --- | --- | --- | --- |\n"
    lines = "".join(f"{rows[name]}\n" for name in sorted(rows))
    PAGE.write_text(f"{head}{BEGIN}\n{title}{lines}\n{END}{tail}", "utf-8")


@pytest.mark.parametrize("model_type", TYPES)
def test_the_page_has_what_a_type_does(model_type: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = row_of(model_type)
    if os.environ.get(WRITE) == "1":
        written(model_type, row)
    assert f"{row}\n" in PAGE.read_text("utf-8"), row


def test_every_type_has_its_row() -> None:
    page = Path(PAGE).read_text("utf-8")
    table = page.split(BEGIN)[1].split(END)[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert rows == sorted(rows)
    lacking = added(page)
    pinned = Path(PAGE).parents[1] / "constraints.txt"
    if f"transformers=={transformers.__version__}\n" in pinned.read_text("utf-8"):
        assert not lacking
    elif lacking:
        warnings.warn(
            f"docs/hosts.md lacks types of transformers {transformers.__version__}: "
            f"{', '.join(lacking)}; python -m any_hosts.newer says more",
            stacklevel=1,
        )


def test_no_token_is_called_image_that_is_none() -> None:
    table = Path(PAGE).read_text("utf-8").split(BEGIN)[1].split(END)[0]
    assert "other tokens" not in table
    assert "says something else" not in table
