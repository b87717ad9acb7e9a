"""What the response cache keeps between two fetches, and when a reply counts as unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.calls import ServiceInfo
from nacos_proxy.model.services import Snapshot
from nacos_proxy.upstream.nacos.response_cache import (
    ADMIN_RETRY,
    INFO_TTL,
    MAX_CLUSTERS,
    ResponseCache,
    Versioned,
    digest,
)
from nacos_proxy.wire.http import HttpReply
from tests.helpers.build import KEY, key


def listing(moment: int, checksum: str = "", *, metadata: dict[str, str] | None = None, wrapped: bool = False) -> bytes:
    body: Any = {"name": "g@@s", "hosts": [{"ip": "10.0.0.1", "metadata": metadata or {}}]}
    body |= {"lastRefTime": moment, "checksum": checksum, "valid": True}
    return json.dumps({"code": 0, "data": body} if wrapped else body, separators=(",", ":")).encode()


@pytest.mark.parametrize("wrapped", [False, True])
def test_digest_ignores_the_moment_of_a_reply(wrapped: bool) -> None:
    assert digest(listing(1, "a", wrapped=wrapped)) == digest(listing(2, "b", wrapped=wrapped))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("words", ['"lastRefTime":5', ']"lastRefTime":5', "lastRefTime", "}]}"])
def test_digest_includes_metadata_with_the_same_words_as_the_moment(words: str, wrapped: bool) -> None:
    one, two = ({"a": words, "lastRefTime": str(n), "checksum": str(n)} for n in (1, 2))
    assert digest(listing(1, metadata=one, wrapped=wrapped)) != digest(listing(1, metadata=two, wrapped=wrapped))


def test_digest_includes_an_object_after_the_hosts() -> None:
    one, two = (b'{"hosts":[],"m":{"k":"]","lastRefTime":%d}}' % n for n in (1, 2))
    assert digest(one) != digest(two)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_digest_accepts_any_bytes(one: bytes, two: bytes) -> None:
    assert len(digest(one)) == 16
    if digest(one) != digest(two):
        assert one != two


def test_response_cache_parse_reads_an_unchanged_reply_once_and_a_refusal_each_time() -> None:
    cache = ResponseCache()
    reads: list[int] = []

    def read(reply: HttpReply) -> object:
        reads.append(reply.status)
        return object()

    first = cache.parse(KEY, "s", HttpReply(200, None, listing(1)), read)
    assert cache.parse(KEY, "s", HttpReply(200, None, listing(2)), read) is first
    other = cache.parse(KEY, "other", HttpReply(200, None, listing(2)), read)
    assert other.value is not first.value and other.version != first.version
    refused = cache.parse(KEY, "s", HttpReply(503, None, listing(2)), read)
    assert refused.version != first.version
    assert cache.parse(KEY, "s", HttpReply(200, None, listing(3)), read) is first
    assert reads == [200, 200, 503]


def test_response_cache_derive_builds_again_only_for_another_version() -> None:
    cache = ResponseCache()
    first = cache.derive(KEY, "s", ("one",), lambda: Snapshot(KEY))
    assert first == Versioned(Snapshot(KEY), ("one",))
    assert cache.derive(KEY, "s", ("one",), lambda: Snapshot(KEY)).value is first.value
    assert cache.derive(KEY, "s", ("other",), lambda: Snapshot(KEY)).value is not first.value
    assert cache.derive(KEY, "s", ("one", "other"), lambda: Snapshot(KEY)).value is not first.value


def test_response_cache_info_is_due_after_its_ttl() -> None:
    cache = ResponseCache()
    assert cache.info(KEY, 0.0) == (None, True)
    info = ServiceInfo(KEY, 0.5, clusters=("c1",))
    assert cache.set_info(KEY, info, 0.0) is info
    assert cache.info(KEY, INFO_TTL - 0.1) == (info, False)
    assert cache.info(KEY, INFO_TTL) == (info, True)
    assert cache.set_info(KEY, ServiceInfo(KEY, 0.5, clusters=("c1",)), 30.0) is info
    assert cache.set_info(KEY, None, 60.0) is None
    assert cache.info(KEY, 61.0) == (None, False)


def test_response_cache_clusters_are_bounded_and_default_is_first() -> None:
    cache = ResponseCache()
    assert cache.clusters(KEY) == ("DEFAULT",)
    cache.add_clusters(KEY, ["c1"])
    cache.add_clusters(KEY, ["c2", "", "a,b", "c1", *(f"c{n}" for n in range(3, MAX_CLUSTERS + 10))])
    assert cache.clusters(KEY) == ("DEFAULT", *(f"c{n}" for n in range(1, MAX_CLUSTERS)))
    assert cache.clusters(key("other")) == ("DEFAULT",)


def test_response_cache_bounds_the_number_of_services() -> None:
    cache = ResponseCache(max_services=10)
    for number in range(100):
        cache.add_clusters(key(f"s{number}"), ["c1"])
        cache.set_list_by_cluster(key(f"s{number}"))
    assert sum(cache.list_by_cluster(key(f"s{n}")) for n in range(100)) == 10
    assert sum(len(cache.clusters(key(f"s{n}"))) == 2 for n in range(100)) == 10


def test_response_cache_bounds_unknown_services_apart_from_known_ones() -> None:
    cache = ResponseCache(max_services=10, max_unknown=5)
    reply = HttpReply(200, None, b'{"hosts":[]}')
    cache.add_clusters(KEY, ["c1"])
    first = cache.parse(KEY, "list", reply, lambda _: object())
    for number in range(100):
        name = key(f"s{number}")
        empty = cache.parse(name, "list", reply, lambda _: ())
        cache.add_clusters(name, empty.value)
        cache.derive(name, "raw", (empty.version,), lambda: Snapshot(KEY))
        cache.set_info(name, ServiceInfo(name), 0.0)
    assert len(cache) == 1 + 5
    assert cache.clusters(KEY) == ("DEFAULT", "c1")
    assert cache.parse(KEY, "list", reply, lambda _: object()) is first


def test_response_cache_keeps_the_info_of_a_service_whose_first_instance_is_seen() -> None:
    cache = ResponseCache(max_unknown=1)
    info = ServiceInfo(KEY, 0.5)
    cache.set_info(KEY, info, 0.0)
    cache.add_clusters(KEY, ["DEFAULT"])
    cache.set_info(key("other"), None, 0.0)
    assert cache.info(KEY, 1.0) == (info, False)


def test_response_cache_parse_bounds_the_values_of_one_service() -> None:
    cache = ResponseCache()
    reads: list[int] = []
    for _ in range(2):
        for number in range(1000):
            cache.parse(KEY, ("cluster", number), HttpReply(200, None, b"x"), lambda reply: reads.append(reply.status))
    assert len(reads) >= 1000 + 1000 - (2 * MAX_CLUSTERS + 1)


def test_response_cache_admin_refused_lasts_for_a_while() -> None:
    cache = ResponseCache()
    assert cache.admin_refused_until < 0
    cache.admin_refused(100.0)
    assert cache.admin_refused_until == 100.0 + ADMIN_RETRY
