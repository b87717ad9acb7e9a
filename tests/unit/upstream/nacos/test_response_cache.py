"""What is remembered between two fetches, and when it is the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import ServiceInfo
from nacos_proxy.model.services import Snapshot
from nacos_proxy.upstream.nacos.response_cache import ResponseCache, ResponseCachePolicy, digest
from nacos_proxy.wire.http import HttpReply
from tests.helpers.build import KEY, instance, key


def listing(moment: int, checksum: str = "", *, metadata: dict[str, str] | None = None, wrapped: bool = False) -> bytes:
    body: Any = {"name": "g@@s", "hosts": [{"ip": "10.0.0.1", "metadata": metadata or {}}]}
    body |= {"lastRefTime": moment, "checksum": checksum, "valid": True}
    return json.dumps({"code": 0, "data": body} if wrapped else body, separators=(",", ":")).encode()


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_answer_that_differs_in_its_moment_alone_is_the_same(wrapped: bool) -> None:
    assert digest(listing(1, "a", wrapped=wrapped)) == digest(listing(2, "b", wrapped=wrapped))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("words", ['"lastRefTime":5', ']"lastRefTime":5', "lastRefTime", "}]}"])
def test_metadata_with_the_same_words_is_no_moment(words: str, wrapped: bool) -> None:
    one, two = ({"a": words, "lastRefTime": str(n), "checksum": str(n)} for n in (1, 2))
    assert digest(listing(1, metadata=one, wrapped=wrapped)) != digest(listing(1, metadata=two, wrapped=wrapped))


def test_an_object_behind_the_hosts_counts_as_it_is() -> None:
    one, two = (b'{"hosts":[],"m":{"k":"]","lastRefTime":%d}}' % n for n in (1, 2))
    assert digest(one) != digest(two)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_no_bytes_break_it(one: bytes, two: bytes) -> None:
    assert len(digest(one)) == 16
    if digest(one) != digest(two):
        assert one != two


def test_an_unchanged_answer_is_parsed_once_and_a_refusal_each_time() -> None:
    memory = ResponseCache()
    reads: list[int] = []

    def read(reply: HttpReply) -> object:
        reads.append(reply.status)
        return object()

    first = memory.parsed(KEY, "s", HttpReply(200, None, listing(1)), read)
    assert memory.parsed(KEY, "s", HttpReply(200, None, listing(2)), read) is first
    assert memory.parsed(KEY, "other", HttpReply(200, None, listing(2)), read) is not first
    memory.parsed(KEY, "s", HttpReply(503, None, b""), read)
    assert memory.parsed(KEY, "s", HttpReply(200, None, listing(3)), read) is first
    assert (reads, memory.parses) == ([200, 200, 503], 2)


def test_what_is_made_of_the_same_parts_is_the_same() -> None:
    memory = ResponseCache()
    part, other = object(), object()
    first = memory.made(KEY, "s", (part,), lambda: Snapshot(KEY))
    assert memory.made(KEY, "s", (part,), lambda: Snapshot(KEY)) is first
    assert memory.made(KEY, "s", (other,), lambda: Snapshot(KEY)) is not first
    assert memory.made(KEY, "s", (part, other), lambda: Snapshot(KEY)) is not first


def test_a_services_own_data_is_asked_for_again_after_a_while() -> None:
    memory = ResponseCache(ResponseCachePolicy(info=30.0))
    assert memory.info(KEY, 0.0) == (None, True)
    info = ServiceInfo(KEY, 0.5, clusters=("c1",))
    assert memory.learned(KEY, info, 0.0) is info
    assert memory.info(KEY, 29.9) == (info, False)
    assert memory.info(KEY, 30.0) == (info, True)
    assert memory.learned(KEY, ServiceInfo(KEY, 0.5, clusters=("c1",)), 30.0) is info
    assert memory.learned(KEY, None, 60.0) is None
    assert memory.info(KEY, 61.0) == (None, False)


def test_clusters_are_remembered_up_to_a_bound_default_first() -> None:
    memory = ResponseCache(ResponseCachePolicy(clusters=4))
    assert memory.clusters(KEY) == ("DEFAULT",)
    memory.saw_hosts(KEY, [instance(cluster="c1")])
    memory.saw(KEY, ["c2", "", "a,b", "c1", "c3", "c4"])
    assert memory.clusters(KEY) == ("DEFAULT", "c1", "c2", "c3")
    assert memory.clusters(key("other")) == ("DEFAULT",)


def test_it_holds_no_more_services_than_it_may() -> None:
    memory = ResponseCache(ResponseCachePolicy(services=10))
    for number in range(100):
        memory.saw(key(f"s{number}"), ["c1"])
        memory.crowd(key(f"s{number}"))
    assert sum(memory.crowded(key(f"s{n}")) for n in range(100)) == 10
    assert sum(len(memory.clusters(key(f"s{n}"))) == 2 for n in range(100)) == 10


def test_names_without_an_instance_take_no_room_from_the_services() -> None:
    memory = ResponseCache(ResponseCachePolicy(services=10, unknown=5))
    reply = HttpReply(200, None, b'{"hosts":[]}')
    memory.saw_hosts(KEY, [instance(cluster="c1")])
    first = memory.parsed(KEY, "list", reply, lambda _: object())
    for number in range(100):
        name = key(f"s{number}")
        empty = memory.parsed(name, "list", reply, lambda _: ())
        memory.saw_hosts(name, empty)
        memory.made(name, "list", (empty,), lambda: Snapshot(KEY))
        memory.learned(name, ServiceInfo(name), 0.0)
    assert len(memory) == 1 + 5
    assert memory.clusters(KEY) == ("DEFAULT", "c1")
    assert memory.parsed(KEY, "list", reply, lambda _: object()) is first


def test_what_is_known_of_a_name_stays_known_when_its_first_instance_is_seen() -> None:
    memory = ResponseCache(ResponseCachePolicy(unknown=1))
    info = ServiceInfo(KEY, 0.5)
    memory.learned(KEY, info, 0.0)
    memory.saw_hosts(KEY, [instance()])
    memory.learned(key("other"), None, 0.0)
    assert memory.info(KEY, 1.0) == (info, False)


def test_answers_of_clusters_that_come_and_go_are_bounded() -> None:
    memory = ResponseCache(ResponseCachePolicy(clusters=4))
    for _ in range(2):
        for number in range(1000):
            memory.parsed(KEY, ("cluster", number), HttpReply(200, None, b"x"), lambda _: object())
    assert memory.parses >= 1000 + 1000 - 9


def test_a_missing_right_is_tried_again_after_a_while() -> None:
    memory = ResponseCache(ResponseCachePolicy(bar=60.0))
    assert memory.barred_until < 0
    memory.bar(100.0)
    assert memory.barred_until == 160.0
