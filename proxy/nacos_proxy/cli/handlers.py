"""`watch --exec`: runs a command for each change of a service. `cli/deliveries.py` decides what it gets, and when."""

from __future__ import annotations

import json
import math
import shlex
import signal
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from nacos_proxy.cli.client_options import warn
from nacos_proxy.cli.commands import Runner
from nacos_proxy.cli.deliveries import Deliveries
from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.follow import Event, Lost, Query, Stream
from nacos_proxy.cli.pauses import Told
from nacos_proxy.cli.rest_client import RestClient
from nacos_proxy.model.services import GROUP_SEPARATOR
from nacos_proxy.runtime import Clock, SystemClock

MAX_RUNS = 8  # commands at once, of different services


def run_for_events(
    client: RestClient, query: Query, command: Sequence[str], *, once: bool, retry: float, timeout: float
) -> None:
    """Runs `command` for each service's snapshot and changes, until a signal; with `once`, until the first change.

    Raises `Unreached` or `ApiProblem` as `following` does.
    """
    handler = Handler(command, Runner(timeout), SystemClock())
    stream = Stream(client, query, handler.found, retry=retry)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        handler.run(once)
    finally:
        stream.close()
        handler.close()
        signal.signal(signal.SIGTERM, previous)


class Handler:
    """Runs the command, each time in a thread. Messages of the stream and ends of runs come by `found`."""

    def __init__(self, command: Sequence[str], runner: Runner, clock: Clock) -> None:
        self.found: SimpleQueue[Any] = SimpleQueue()
        self._command = tuple(command)
        self._runner = runner
        self._clock = clock
        self._deliveries = Deliveries()
        self._told = Told(warn)
        self._running = 0

    def run(self, once: bool = False) -> None:
        """Returns after a change was delivered, if `once`. Raises what the stream ends with."""
        while True:
            now = self._clock.now()
            for event in self._deliveries.take(now, MAX_RUNS - self._running):
                self._running += 1
                threading.Thread(target=self._deliver, args=(event,), name="command", daemon=True).start()
            due = self._deliveries.next() if self._running < MAX_RUNS else math.inf
            try:
                source, message = self.found.get(timeout=None if due == math.inf else max(0.0, due - now))
            except Empty:
                continue
            if isinstance(message, (Unreached, ApiProblem)):
                raise message
            if isinstance(message, Lost):
                warn(message)
            elif isinstance(source, Event):
                self._delivered(source, str(message))
                if once and source.kind == "change" and not message:
                    return
            elif isinstance(message, Event) and message.kind in ("snapshot", "change"):
                self._deliveries.add(message)

    def close(self) -> None:
        """Ends running commands."""
        self._runner.close()

    def _deliver(self, event: Event) -> None:
        stdin = json.dumps(event.data, ensure_ascii=False).encode("utf-8", "replace")
        self.found.put((event, self._runner.run(self._command, stdin=stdin, env=environment(event))))

    def _delivered(self, event: Event, failure: str) -> None:
        self._running -= 1
        self._deliveries.done(event, not failure, self._clock.now())
        name, command = event.data["name"], shlex.join(self._command)
        if failure:
            self._told.failing(name, f"{command}: {failure}, for {name}. Trying again, after growing pauses.")
        else:
            self._told.over(name, f"{command}: succeeded for {name}")


def environment(event: Event) -> dict[str, str]:
    """The variables that a command gets. A NUL, which no variable can hold, becomes a blank."""
    group, _, name = event.data["name"].partition(GROUP_SEPARATOR)
    found = {
        "SERVICE": name,
        "GROUP": group,
        "NAMESPACE": event.data["namespaceId"],
        "EVENT_ID": event.id,
        "EVENT": event.kind,
    }
    return {f"NACOS_PROXY_{key}": text.replace("\0", " ") for key, text in found.items()}
