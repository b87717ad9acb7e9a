"""A subscription of the client: reads one event stream in a thread, and reconnects after the last event."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx

from nacos_proxy.client.legacy import NacosException, NacosRequestException
from nacos_proxy.model.backoff import Backoff
from nacos_proxy.wire.rest.sse import CONTENT_TYPE, decode

log = logging.getLogger("nacos_proxy.client")

MIN_DELAY = 0.1  # seconds until a reconnection
MAX_SILENCE = 40.0  # seconds without a byte until a stream counts as dead; the proxy sends a comment every 15 s
Listener = Callable[[dict[str, Any]], None]


class Subscription:
    """Call `start`, later `stop` and `join`. Failures are logged.

    It reconnects after the delay that the stream asked for last (`retry`), with which a stopping proxy spreads its
    clients over time. Repeated failures double the delay, up to `max_delay` seconds.
    """

    def __init__(
        self,
        http: httpx.Client,
        params: dict[str, str],
        listeners: list[Listener],
        max_delay: float,
        stopped: threading.Event | None = None,
    ) -> None:
        self.listeners = listeners
        self._http = http
        self._params = params
        self._max_delay = max_delay
        self._stopped = stopped or threading.Event()
        self._socket: socket.socket | None = None
        self._last_id = ""
        self._delay = MIN_DELAY
        self._thread = threading.Thread(target=self._run, name=f"events {params['service']}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the stream at once; shutting its socket down wakes the thread."""
        self._stopped.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Waits for the thread; returns at once if called by a listener."""
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
            except (httpx.HTTPError, NacosException, ValueError) as error:
                if self._stopped.is_set():
                    return
                failures += 1
                log.warning("the event stream of %s failed, reconnecting: %s", self._params["service"], error)
            self._stopped.wait(Backoff(self._delay, self._max_delay).delay(max(0, failures - 1)))

    def _follow(self) -> None:
        headers = {"accept": CONTENT_TYPE} | ({"last-event-id": self._last_id} if self._last_id else {})
        timeout = httpx.Timeout(3.0, read=MAX_SILENCE)
        with self._http.stream("GET", "/api/v1/events", params=self._params, headers=headers, timeout=timeout) as reply:
            if reply.status_code != 200:
                reply.read()
                raise NacosRequestException(f"{reply.status_code} {reply.text}", reply.status_code)
            self._socket = reply.extensions["network_stream"].get_extra_info("socket")
            if self._stopped.is_set():  # `stop` was called before there was a socket to shut down
                return
            if not reply.headers.get("content-type", "").startswith(CONTENT_TYPE):
                raise NacosRequestException("the answer is no event stream", reply.status_code)
            for event in decode(reply.iter_raw()):
                if self._stopped.is_set():
                    return
                self._last_id = event.id or self._last_id
                if event.retry is not None:
                    self._delay = max(MIN_DELAY, event.retry / 1000)
                if event.kind in ("snapshot", "change"):
                    self._notify({"event": event.kind, **json.loads(event.data)})

    def _notify(self, change: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            try:
                listener(change)
            except Exception:
                log.exception("a listener for %s failed", self._params["service"])
