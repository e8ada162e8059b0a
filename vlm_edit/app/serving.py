"""Serve the page: to this machine alone, unless one asks for more."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from vlm_edit.app.desk import Desk
from vlm_edit.app.guard import Guard
from vlm_edit.app.look import CSS, theme
from vlm_edit.ground.errors import BadArgument, VlmEditError
from vlm_edit.patches import Patch

HERE = "127.0.0.1"
MOST_BYTES = 32 * 2**20


class _Folder:
    """Hold a folder for what visitors send and take, one for all servers of the process.

    gradio is told of it by the environment, which a process has once.
    """

    def __init__(self) -> None:
        self._servers = 0
        self._made: tempfile.TemporaryDirectory[str] | None = None
        self._former: str | None = None

    def enter(self) -> Path:
        if self._made is None:
            self._made = tempfile.TemporaryDirectory(
                prefix="vlm-edit-app-", ignore_cleanup_errors=True
            )
            self._former = os.environ.get(_VARIABLE)
            os.environ[_VARIABLE] = self._made.name
        self._servers += 1
        return Path(self._made.name)

    def leave(self) -> None:
        self._servers -= 1
        if self._servers or self._made is None:
            return
        self._made.cleanup()
        self._made = None
        os.environ.pop(_VARIABLE)
        if self._former is not None:
            os.environ[_VARIABLE] = self._former


_VARIABLE = "GRADIO_TEMP_DIR"
_folder = _Folder()


class Server:
    """Hold a page that is served, until it is closed; a context manager closes it.

    Attributes:
        url: Where it is.
        public: Where else it is, with ``share``; None elsewhere.
    """

    def __init__(self, blocks: Any, url: str, public: str | None) -> None:
        self.url, self.public = url, public
        self._blocks: Any = blocks

    def wait(self) -> None:
        """Wait until somebody interrupts the process, then close."""
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """End it; with the last of the process, delete what visitors sent and took."""
        if self._blocks is not None:
            self._blocks.close(verbose=False)
            self._blocks = None
            _folder.leave()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def serve(
    desk: Desk,
    *,
    port: int | None = None,
    host: str = HERE,
    share: bool = False,
    most: int = 64,
    patch: Patch | None = None,
) -> Server:
    """Serve the page of a desk.

    Args:
        desk: What is turned.
        port: Where; None for the first free one from 7860.
        host: Address to listen at. By any but this machine's own, others reach the page.
        share: Whether to ask gradio for a public link, by which anybody reaches it.
        most: New tokens of an answer, at most.
        patch: What is loaded at the beginning; None for nothing.

    Returns:
        The server, which answers from now on.

    Raises:
        VlmEditError: gradio is missing, or the port is taken.
    """
    # Said before gradio is imported, which asks its maker's server otherwise.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    folder = _folder.enter()
    try:
        page = _page(desk, folder, most, patch)
        _, url, public = page.blocks.queue(max_size=64, api_open=False).launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            show_error=False,
            max_file_size=MOST_BYTES,
            ssr_mode=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            theme=theme(),
            css=CSS,
            app_kwargs={"middleware": [_guard(host == HERE and not share)]},
        )
    except BaseException as error:
        _folder.leave()
        if isinstance(error, OSError):
            told = f"port {port} cannot be served ({error}): name another one"
            raise VlmEditError(told) from error
        raise
    return Server(page.blocks, url, public)


def expect_gradio() -> None:
    """Refuse to begin without gradio, which takes seconds to import and is looked for alone.

    Raises:
        BadArgument: It is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise BadArgument("the page needs gradio: pip install 'vlm-edit[app]'")


def _page(desk: Desk, folder: Path, most: int, patch: Patch | None) -> Any:
    expect_gradio()
    try:
        import gradio as gradio
    except ImportError as error:
        raise BadArgument(
            f"the page needs gradio ({error}): pip install 'vlm-edit[app]'"
        ) from error
    from vlm_edit.app.page import Page

    return Page(desk, folder, most, patch)


def _guard(here: bool) -> Any:
    from starlette.middleware import Middleware

    return Middleware(Guard, here=here, most=MOST_BYTES + 2**20)
