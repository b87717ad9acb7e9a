"""The streams of `render`: one for each topic, opened again only if its services change."""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any

from nacos_proxy.cli.follow import Lost, Opened, Stream
from nacos_proxy.cli.rest_client import RestClient
from nacos_proxy.cli.streams import Revision, Streams
from nacos_proxy.model.services import ServiceKey
from tests.helpers.live import ProxyProcess, free_port
from tests.unit.conftest import Run

ONE, TWO, DEV = frozenset({"g@@one"}), frozenset({"g@@one", "g@@two"}), frozenset({"g@@dev"})


class Found(SimpleQueue[Any]):
    """Messages of streams."""

    def opened(self, number: int = 1) -> list[Stream]:
        """The streams of the next messages that say `Opened`."""
        streams = list[Stream]()
        while len(streams) < number:
            stream, message = self.get(timeout=20)
            streams += [stream] if isinstance(message, Opened) else []
        return streams


def test_streams_open_and_close_as_topics_change(running: ProxyProcess) -> None:
    found = Found()
    with RestClient(running.url) as client:
        streams = Streams(client, found)
        streams.follow({("public", False): ONE, ("public", True): ONE, ("dev", False): DEV})
        first = {streams.topic_of(stream): stream for stream in found.opened(3)}
        assert first.keys() == {("public", False), ("public", True), ("dev", False)}
        streams.follow({("public", False): TWO, ("dev", False): DEV})
        (second,) = found.opened()
        assert (streams.topic_of(second), streams.topic_of(first[("dev", False)])) == (
            ("public", False),
            ("dev", False),
        )
        for topic in (("public", False), ("public", True)):
            assert (streams.topic_of(first[topic]), first[topic].alive) == (None, False)
        streams.close()
        assert not second.alive


def test_streams_reduce_events_to_revisions(ask: Run, running: ProxyProcess) -> None:
    found = Found()
    ask("register", "g@@reduced", "10.0.0.1:80")
    with RestClient(running.url) as client:
        streams = Streams(client, found)
        streams.follow({("public", True): frozenset({"g@@reduced"})})
        (stream,) = found.opened()
        key, (source, message) = ServiceKey("public", "g", "reduced"), found.get(timeout=20)
        assert (source, message) == (stream, Revision(key, message.revision))
        ask("modify", "g@@reduced", "10.0.0.1:80", "--weight", "3")
        _, changed = found.get(timeout=20)
        assert (changed.key, changed.revision != message.revision) == (key, True)
        streams.close()


def test_streams_are_lost_until_all_are_open_again_or_closed() -> None:
    found = Found()
    with RestClient(f"127.0.0.1:{free_port()}") as client:
        streams = Streams(client, found)
        streams.follow({("public", False): ONE, ("dev", False): DEV})
        for _ in range(2):
            stream, message = found.get(timeout=20)
            assert isinstance(message, Lost)
            streams.set_lost(stream, True)
        streams.set_lost(stream, False)
        assert streams.lost
        streams.follow({})
        assert not streams.lost
