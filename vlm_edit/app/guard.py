"""Who may ask the server, and how much at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HERE = ("localhost", "127.0.0.1", "[::1]")


class Guard:
    """Refuse requests that name another host, come from another site's page, or send too much.

    A page elsewhere whose name suddenly leads to this machine (DNS rebinding) says its own name
    in ``Host``, and so is told from the page itself.

    Args:
        app: What answers all others.
        here: Whether only this machine's own names are taken.
        most: Bytes that a request may send.
    """

    def __init__(self, app: Any, here: bool = True, most: int = 2**25) -> None:
        self.app, self.here, self.most = app, here, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse in a sentence."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _refuse(scope["type"], send, *refusal)
            return
        await self.app(scope, self._counted(receive), send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str] | None:
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self.most:
            return 413, f"a request may send at most {self.most // 2**20} MiB"
        if not self.here:
            return None
        server = scope.get("server") or (None, None)
        allowed = {f"{name}:{server[1]}" for name in HERE}
        host = headers.get(b"host", "")
        if host.lower() not in allowed:
            return 403, "this page is for this machine alone: open it by the address it printed"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() not in allowed:
            return 403, "a page of another site may not ask this one"
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Count what is sent without saying how much it will be."""
        read = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                return {"type": "http.disconnect"}
            return message

        return counted


async def _refuse(kind: str, send: Send, status: int, told: str) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": told})
        return
    body = told.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
