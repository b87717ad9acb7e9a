"""Which event a command gets next: one at a time for each service, and always the newest state. Pure.

Each event of the proxy has the whole state of its service, so events that come while a command runs are merged into
one, which says what has changed since the last one that a command took with success.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nacos_proxy.cli.follow import Event
from nacos_proxy.model.backoff import Backoff

RETRY = Backoff(initial=1.0, maximum=60.0)
Key = tuple[str, str]
"""Namespace, and `group@@name`."""

_CHANGES = ("added", "modified", "removed")


@dataclass(slots=True)
class _State:
    """One service. `merged`: `newest` stands for more than itself. `delivered` are the hosts of the last success."""

    newest: Event | None = None
    merged: bool = False
    running: Event | None = None
    delivered: list[Any] | None = None
    failures: int = 0
    due: float = -math.inf


class Deliveries:
    """All services of one command. Times are in seconds of a monotonic clock."""

    def __init__(self, backoff: Backoff = RETRY) -> None:
        self._backoff = backoff
        self._states: dict[Key, _State] = {}

    def add(self, event: Event) -> None:
        """A `snapshot` or `change` has come."""
        state = self._states.setdefault(key_of(event), _State())
        state.merged = state.newest is not None or state.running is not None
        state.newest = event

    def take(self, now: float, room: int) -> list[Event]:
        """At most `room` events to deliver now. Each must be reported with `done`."""
        found: list[Event] = []
        for state in self._states.values():
            if len(found) < room and state.newest is not None and state.running is None and state.due <= now:
                event = _since(state.delivered, state.newest, state.merged)
                state.newest, state.merged = None, False
                if event is None:
                    state.failures, state.due = 0, -math.inf
                    continue
                state.running = event
                found.append(event)
        return found

    def done(self, event: Event, success: bool, now: float) -> None:
        """A delivery has ended. After a failure the newest state is delivered again, after growing pauses."""
        state = self._states[key_of(event)]
        state.running = None
        if success:
            state.delivered, state.failures, state.due = event.data["hosts"], 0, -math.inf
            return
        if state.newest is None:
            state.newest = event
        state.merged = True
        state.due = now + self._backoff.delay(state.failures)
        state.failures += 1

    def next(self) -> float:
        """When `take` has something next, if nothing comes and nothing ends before."""
        return min((state.due for state in self._waiting()), default=math.inf)

    def _waiting(self) -> Iterator[_State]:
        return (state for state in self._states.values() if state.newest is not None and state.running is None)


def key_of(event: Event) -> Key:
    return event.data["namespaceId"], event.data["name"]


def _since(delivered: list[Any] | None, event: Event, merged: bool) -> Event | None:
    """The event as a command gets it; None if the command knows this state already."""
    hosts = event.data["hosts"]
    if delivered is None:
        state = {name: value for name, value in event.data.items() if name not in (*_CHANGES, "source")}
        return replace(event, kind="snapshot", data=state)
    if delivered == hosts and (merged or event.kind == "snapshot"):
        return None
    if event.kind == "snapshot" or not merged:
        return event
    return replace(event, data={**event.data, **_changes(delivered, hosts)})


def _changes(before: list[Any], after: list[Any]) -> dict[str, list[Any]]:
    old, new = ({_address(host): host for host in hosts} for hosts in (before, after))
    return {
        "added": [host for key, host in new.items() if key not in old],
        "modified": [host for key, host in new.items() if key in old and old[key] != host],
        "removed": [host for key, host in old.items() if key not in new],
    }


def _address(host: Any) -> tuple[Any, ...]:
    return host["ip"], host["port"], host["clusterName"]
