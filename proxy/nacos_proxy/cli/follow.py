"""Follows event streams: reconnects by itself, and resumes after the last event.

`following` is a loop for one reader; `Stream` runs it in a thread and puts what happens into a queue.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.rest_client import RestClient
from nacos_proxy.model.backoff import Backoff

MAX_RECONNECT_DELAY = 10.0  # seconds
RETRY = 0.5  # seconds until the first reconnection

Query = Mapping[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream; `data` is its JSON object."""

    id: str
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """A stream ended, and will be opened again. `error` is None if the proxy ended it."""

    error: Unreached | ApiProblem | None

    def __str__(self) -> str:
        return "the event stream ended; reconnecting" if self.error is None else f"{self.error} Trying again."


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream was opened, for the first time or again."""


def following(
    client: RestClient,
    query: Query,
    retry: float = RETRY,
    *,
    patient: bool = False,
    stopped: threading.Event | None = None,
    opened: Callable[[Callable[[], None]], None] = lambda _: None,
) -> Iterator[Event | Lost]:
    """Yields events, and `Lost` before each reconnection, until `stopped`. `retry`: seconds before the first one.

    Raises `Unreached` or `ApiProblem` if the first attempt fails, and if the proxy refuses the stream for good; a
    `patient` reader tries again in these cases, too. `opened` is as in `RestClient.events`.
    """
    stopped = stopped or threading.Event()
    backoff, failures = Backoff(retry, max(retry, MAX_RECONNECT_DELAY)), 0
    last, connected = "", patient
    while not stopped.is_set():
        error: Unreached | ApiProblem | None = None
        try:
            for event_id, kind, data in client.events(query, last, opened):
                last, failures, connected = event_id or last, 0, True
                yield Event(event_id, kind, data)
        except (Unreached, ApiProblem) as caught:
            lasting = isinstance(caught, ApiProblem) and not caught.temporary
            if not connected or (lasting and not patient):
                raise
            error = caught
        if stopped.is_set():
            return
        yield Lost(error)
        stopped.wait(backoff.delay(failures))
        failures += 1


class Stream:
    """Reads one stream in a thread, and puts `(stream, message)` into `found`: `Event`, `Lost`, `Opened`, an exception.

    The thread ends with an exception if `following` does. Who takes messages late passes `reduced`, which makes of an
    event, with its whole list, what is put into the queue.
    """

    def __init__(
        self,
        client: RestClient,
        query: Query,
        found: SimpleQueue[Any],
        *,
        retry: float = RETRY,
        patient: bool = False,
        reduced: Callable[[Event], object] = lambda event: event,
    ) -> None:
        self._client = client
        self._query = query
        self._found = found
        self._retry = retry
        self._patient = patient
        self._reduced = reduced
        self._stopped = threading.Event()
        self._end: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="event stream", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the stream and waits for its thread. What is in the queue already stays there."""
        self._stopped.set()
        self._end()
        self._thread.join(timeout=5.0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        events = following(
            self._client, self._query, self._retry, patient=self._patient, stopped=self._stopped, opened=self._opened
        )
        try:
            for message in events:
                self._found.put((self, self._reduced(message) if isinstance(message, Event) else message))
        except (Unreached, ApiProblem) as error:
            self._found.put((self, error))

    def _opened(self, end: Callable[[], None]) -> None:
        self._end = end
        if self._stopped.is_set():  # `close` was called before there was a connection to end
            end()
        self._found.put((self, Opened()))
