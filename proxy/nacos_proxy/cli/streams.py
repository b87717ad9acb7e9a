"""The event streams that say when the lists of templates change."""

from __future__ import annotations

from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple

from nacos_proxy.cli.follow import Event, Stream
from nacos_proxy.cli.rest_client import RestClient
from nacos_proxy.model.services import ServiceKey

Topic = tuple[str, bool]
"""A namespace, and whether the stream shows the truly healthy instances only (`healthy_only`)."""


class Revision(NamedTuple):
    """What is kept of an event, because a command may run for long while events come."""

    key: ServiceKey
    revision: str


class Streams:
    """One stream for each topic. Their messages are put into `found`: `Revision`, and what else a `Stream` puts."""

    def __init__(self, client: RestClient, found: SimpleQueue[Any]) -> None:
        self._client = client
        self._found = found
        self._open: dict[Topic, tuple[frozenset[str], Stream]] = {}
        self._lost: set[Stream] = set()

    def follow(self, wanted: Mapping[Topic, frozenset[str]]) -> None:
        """Makes streams of these services (`group@@name`), and closes those of others."""
        for topic in [topic for topic, (names, _) in self._open.items() if wanted.get(topic) != names]:
            _, stream = self._open.pop(topic)
            stream.close()
            self._lost.discard(stream)
        for topic in wanted.keys() - self._open.keys():
            self._open[topic] = (wanted[topic], self._stream(*topic, wanted[topic]))

    def topic_of(self, stream: Stream) -> Topic | None:
        """None if it was closed; then its messages mean nothing any more."""
        return next((topic for topic, (_, open) in self._open.items() if open is stream), None)

    def set_lost(self, stream: Stream, lost: bool) -> None:
        (self._lost.add if lost else self._lost.discard)(stream)

    @property
    def lost(self) -> bool:
        """Whether any stream is lost, and not opened again yet."""
        return bool(self._lost)

    def close(self) -> None:
        self.follow({})

    def _stream(self, namespace: str, healthy_only: bool, names: frozenset[str]) -> Stream:
        query: dict[str, str | list[str]] = {"namespace": namespace, "service": sorted(names)}
        query |= {"healthy_only": "true"} if healthy_only else {}
        return Stream(self._client, query, self._found, patient=True, reduced=_revision)


def _revision(event: Event) -> Revision | None:
    if event.kind not in ("snapshot", "change"):
        return None
    data = event.data
    return Revision(ServiceKey.of(data["name"], namespace=data["namespaceId"]), data["revision"])
