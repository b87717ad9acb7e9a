"""One service's event stream in a thread, for `client`: reconnects with the last id, so that nothing is missed."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError

from nacos_proxy.client.legacy import NacosException, NacosRequestException

log = logging.getLogger("nacos_proxy.client")

FIRST_PAUSE = 0.1  # seconds until a new attempt, unless the stream has said otherwise
SILENCE = 40.0  # seconds without a byte, comments included, after which a stream counts as dead; they come every 15 s
Listener = Callable[[dict[str, Any]], None]


class Subscription:
    """`start`, then `stop` and `join`. A failure is logged and tried again, at most `longest` seconds later.

    A stream that ended is opened again after what it said last (`retry`), which is how a proxy that stops spreads
    its readers; attempts that fail come ever later.
    """

    def __init__(
        self,
        http: httpx.Client,
        params: dict[str, str],
        listeners: list[Listener],
        longest: float,
        stopped: threading.Event | None = None,
    ) -> None:
        self.listeners = listeners
        self._http = http
        self._params = params
        self._longest = longest
        self._stopped = stopped or threading.Event()
        self._socket: socket.socket | None = None
        self._last_id = ""
        self._pause = FIRST_PAUSE
        self._thread = threading.Thread(target=self._run, name=f"events {params['service']}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the stream at once: a reader that waits for the next event is woken by its socket's end."""
        self._stopped.set()
        waiting = self._socket
        if waiting is not None:
            with contextlib.suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                self._follow()
                failures = 0
            except (httpx.HTTPError, NacosException, SSEError, ValueError) as error:
                if self._stopped.is_set():
                    return
                failures += 1
                log.warning("the events of %s broke off, trying again: %s", self._params["service"], error)
            self._stopped.wait(min(self._longest, self._pause * 2.0 ** min(max(0, failures - 1), 16)))

    def _follow(self) -> None:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": self._last_id} if self._last_id else {})
        timeout = httpx.Timeout(3.0, read=SILENCE)
        with self._http.stream("GET", "/api/v1/events", params=self._params, headers=headers, timeout=timeout) as reply:
            if reply.status_code != 200:
                reply.read()
                raise NacosRequestException(f"{reply.status_code} {reply.text}", reply.status_code)
            self._socket = reply.extensions["network_stream"].get_extra_info("socket")
            if self._stopped.is_set():  # told while we connected: `stop` could not wake us
                return
            for event in EventSource(reply).iter_sse():
                if self._stopped.is_set():
                    return
                self._last_id = event.id or self._last_id
                if event.retry is not None:
                    self._pause = max(FIRST_PAUSE, event.retry / 1000)
                if event.event in ("snapshot", "change"):
                    self._tell({"event": event.event, **json.loads(event.data)})

    def _tell(self, change: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            try:
                listener(change)
            except Exception:
                log.exception("a listener of %s failed", self._params["service"])
