"""What a server that stands for the hub needs beside its answers."""

from http.server import BaseHTTPRequestHandler
from typing import Any


class HubHandler(BaseHTTPRequestHandler):
    """Answers by ``answer``, which a kind of hub has of its own; with a body where one is asked."""

    def answer(self, body: bool) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.answer(True)

    def do_HEAD(self) -> None:
        self.answer(False)

    def reply(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
