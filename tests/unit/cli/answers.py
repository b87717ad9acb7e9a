"""A proxy for `RestClient` that is a function: no socket, no thread."""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any

import httpx

from nacos_proxy.cli.rest_client import Connect

Answer = Callable[[httpx.Request], httpx.Response]


class Answered(io.BytesIO):
    """What http.client calls a response."""

    def __init__(self, reply: httpx.Response) -> None:
        super().__init__(b"".join(reply.iter_raw()) if not reply.is_stream_consumed else reply.content)
        self.status, self.reason, self.headers = reply.status_code, reply.reason_phrase, Message()
        for name, value in reply.headers.multi_items():
            self.headers[name] = value


class Connection(http.client.HTTPConnection):
    def __init__(self, answer: Answer) -> None:
        super().__init__("127.0.0.1", 8840)
        self._answer = answer

    def connect(self) -> None:
        self.sock = socket.socket()

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, Any] = {},
        *,
        encode_chunked: bool = False,
    ) -> None:
        self._request = httpx.Request(method, f"http://127.0.0.1:8840{url}", content=body, headers=dict(headers))

    def getresponse(self) -> Any:
        return Answered(self._answer(self._request))


def answered_by(answer: Answer) -> Connect:
    """`answer` may raise an `OSError`, as a connection does."""
    return lambda timeout: Connection(answer)
