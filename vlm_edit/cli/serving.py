"""``vlm-edit app``: load what the page needs, and serve it until interrupted."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_edit.app import Desk, Server, expect_gradio, serve
from vlm_edit.cli import kept, telling
from vlm_edit.cli.host import ZOO, load_model
from vlm_edit.cli.patching import open_patch
from vlm_edit.cli.reporting import pairs_of
from vlm_edit.cli.served import App
from vlm_edit.cli.subject import Loaded, load_dictionary, load_pairs, run_of
from vlm_edit.dictionaries import Dictionary
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.host import Host
from vlm_edit.measuring import Measurement, Pairs, measure


def app(options: App) -> int:
    """Serve the page until somebody interrupts it, or a machine that shuts down ends it."""
    with _ended_by_signals(), start(options) as server:
        telling.wrote("page", server.url)
        if server.public:
            telling.wrote("page", server.public, "for anybody")
        print("vlm-edit: Ctrl-C ends it", file=sys.stderr, flush=True)
        sys.stdout.flush()
        server.wait()
    return 0


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C meanwhile, and Ctrl-C also where a shell has it ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def start(options: App) -> Server:
    """Load what the command names, and begin to serve.

    Args:
        options: Its arguments.

    Raises:
        VlmEditError: Something cannot be loaded, does not fit, or cannot be shown.
    """
    expect_gradio()
    if options.max_new_tokens < 1:
        raise BadArgument(f"--max-new-tokens {options.max_new_tokens}: it must be at least 1")
    if options.port is not None and not 0 < options.port < 2**16:
        raise BadArgument(f"--port {options.port}: give a number from 1 to 65535")
    patch = open_patch(options.patch, verify=not options.no_verify) if options.patch else None
    dictionary = None
    if options.dictionary != "neurons":
        dictionary = load_dictionary(options.dictionary, options)
    host, pipe = _host(options)
    site = _site(options, host, dictionary)
    if dictionary is None:
        width = host.site(site).width
        norm = "constant_norm_rescale" if site == "joint" else "none"
        dictionary = Dictionary.identity(width, norm)
    run, pairs = _known(options, host, dictionary, site)
    desk = Desk(host, dictionary, site, run, pairs, pipe, _names(options, run))
    if patch is not None:
        patch.attach(host).remove()  # refused before anything is served
    return serve(
        desk,
        port=options.port,
        host=options.host,
        share=options.share,
        most=options.max_new_tokens,
        patch=patch,
    )


def _host(options: App) -> tuple[Host, Any]:
    """Load what is edited, and the pipeline that draws with it, if that is what was named."""
    host = load_model(options.model, options)
    if not host.is_pipeline:
        host.expect_processor("the page")
        return host, None
    pipe: Any = host.model
    pipe.set_progress_bar_config(disable=True)
    clip, processor = getattr(pipe, "clip", None), getattr(pipe, "processor", None)
    # One that draws from joint embeddings is edited in its CLIP, as ``draw`` does it.
    return (host if clip is None else Host.of(clip, processor)), pipe


def _site(options: App, host: Host, dictionary: Loaded | None) -> str:
    if options.site is not None:
        return host.site(options.site).name
    half = getattr(dictionary, "image", dictionary)
    own = dict(getattr(half, "info", {})).get("site")
    for name in (own, "joint"):
        if name in host.sites:
            return str(name)
    raise BadArgument(
        f"the dictionary does not say where it belongs: name it with --site, one of "
        f"{', '.join(host.sites)}"
    )


def _known(
    options: App, host: Host, dictionary: Loaded, site: str
) -> tuple[Measurement | None, Pairs | None]:
    """Load the run and its pairs; without one, measure the first of some pairs."""
    if options.run is not None:
        run = run_of(options.run, host, dictionary)
        if run.site != site:
            raise BadArgument(f"{options.run} measured {run.site}: name it with --site {run.site}")
        return run, pairs_of(run, options)
    named = options.pairs or (f"{ZOO}pairs" if options.model.startswith(ZOO) else None)
    if named is None:
        return None, None
    pairs = load_pairs(named, options.columns())
    if options.measured < 1:
        return None, pairs
    try:
        some = pairs.select(range(min(options.measured, len(pairs))))
        return measure(host, some, dictionary, site, progress=not options.quiet), pairs
    except VlmEditError as error:
        print(f"vlm-edit: nothing was measured, so no classes: {error}", file=sys.stderr)
        return None, pairs


def _names(options: App, run: Measurement | None) -> dict[int, str]:
    """Return what features of the run are called, where that beats chance."""
    if options.run is None or run is None:
        return {}
    kept_names = kept.names(Path(options.run), run.checksum()) or {}
    return {feature: told["name"] for feature, told in kept_names.items() if told["held"]}
