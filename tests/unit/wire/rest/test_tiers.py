"""What an upper proxy tells a lower one is what the lower one reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.freshness import CacheResult, Freshness, cache_headers
from nacos_proxy.model.errors import Malformed, Misplaced, NothingKnown, ProxyError, Reason, Refused
from nacos_proxy.model.services import Instance, ServiceKey, Snapshot, Via
from nacos_proxy.wire.http import JSON_TYPE, HttpReply
from nacos_proxy.wire.rest.problem import plain_problem, problem
from nacos_proxy.wire.rest.tiers import (
    Begin,
    Current,
    FollowBody,
    read_begin,
    read_current,
    read_data,
    read_list,
    read_reply_via,
    read_whole,
    services_in,
    via_json,
    whole_json,
    write_begin,
    write_current,
    write_fetch,
    write_follow,
)
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.pair import EXTRA, KEYS, LISTED, METADATA

NULLS = st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5), max_size=3)
HOSTS: st.SearchStrategy[Instance] = st.builds(
    lambda host, enabled, nulls, plain: replace(host, enabled=enabled, metadata={**plain, **nulls}),
    LISTED,
    st.booleans(),
    NULLS,
    METADATA,
)
WHOLES = st.builds(
    lambda key, hosts, threshold, masking, millis, extra, moment, by_cluster, unreadable: Snapshot.of(
        key,
        hosts,
        threshold=threshold,
        masking=masking,
        cache_millis=millis,
        extra=extra,
        last_ref_time=moment,
        by_cluster=by_cluster,
        unreadable=tuple(unreadable),
    ),
    KEYS,
    st.lists(HOSTS, max_size=5),
    st.floats(0.0, 1.0),
    st.booleans(),
    st.integers(1, 2**40),
    EXTRA,
    st.integers(0, 2**53),
    st.booleans(),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=2),
)
VIAS = st.builds(Via, st.integers(0, 10**6).map(float), st.booleans(), st.text("abc; =,", max_size=20))


def sent(value: Any) -> Any:
    return read_data(orjson.dumps(value).decode())


@given(WHOLES, st.none() | VIAS)
def test_read_whole_gives_back_all_that_whole_json_says(whole: Snapshot, via: Via | None) -> None:
    read = read_whole(sent({**whole_json(whole), **({} if via is None else via_json(via))}))
    assert read.snapshot == whole
    assert (read.revision, read.snapshot.revision) == (whole.revision, whole.revision)
    others = ("last_ref_time", "by_cluster", "unreadable")
    assert [getattr(read.snapshot, name) for name in others] == [getattr(whole, name) for name in others]
    assert read.snapshot.via == via


def test_read_whole_reads_many_hosts() -> None:
    whole = snapshot(*(instance(f"10.0.{n // 250}.{n % 250}") for n in range(500)))
    assert read_whole(sent(whole_json(whole))).snapshot == whole


@pytest.mark.parametrize(
    "change", [{"name": 1}, {"hosts": None}, {"protectThreshold": "much"}, {"extra": [1]}, {"revision": ...}]
)
def test_read_whole_refuses_what_is_no_whole_snapshot(change: dict[str, Any]) -> None:
    value = {name: item for name, item in {**whole_json(snapshot()), **change}.items() if item is not ...}
    with pytest.raises(Malformed):
        read_whole(value)
    with pytest.raises(Malformed):
        read_whole(["a list"])


@given(st.dictionaries(KEYS, st.text("0123456789abcdef", max_size=16), max_size=5))
def test_follow_names_all_services_with_their_revisions(revisions: dict[ServiceKey, str]) -> None:
    assert services_in(FollowBody.model_validate_json(write_follow(revisions)).services) == revisions


@given(st.none() | VIAS, st.frozensets(KEYS, max_size=5))
def test_read_current_gives_back_what_was_written(via: Via | None, unconfirmed: frozenset[ServiceKey]) -> None:
    assert read_current(sent(orjson.loads(write_current(via, unconfirmed)))) == Current(via, unconfirmed)


@pytest.mark.parametrize("begin", [Begin(True, ""), Begin(False, "connection refused")])
def test_read_begin_gives_back_what_was_written(begin: Begin) -> None:
    assert read_begin(orjson.loads(write_begin(begin))) == begin


@pytest.mark.parametrize("value", [None, [], {}, {"reset": True}, {"confirmed": {"age": "old"}, "unconfirmed": {}}])
def test_readers_of_events_refuse_other_json(value: Any) -> None:
    for read in (read_begin, read_current):
        with pytest.raises(Malformed):
            read(value)


def test_write_fetch_names_group_and_namespace() -> None:
    request = write_fetch(ServiceKey("dev", "g", "a/b c"))
    assert (request.method, request.target) == ("GET", "/api/v1/services/g@@a%2Fb%20c/whole?namespace=dev")


def answered(service: Snapshot) -> HttpReply:
    return HttpReply(200, JSON_TYPE, orjson.dumps(whole_json(service)))


def test_read_list_reads_the_requested_service_only() -> None:
    assert read_list(KEY, answered(snapshot(instance()))) == snapshot(instance())
    with pytest.raises(Misplaced):
        read_list(KEY, answered(snapshot(service=KEY._replace(name="stock"))))


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (Refused(Reason.NO_RIGHT, "no", status=403), Reason.NO_RIGHT, 403),
        (Refused(Reason.SERVICE_NOT_FOUND, "no", status=400), Reason.SERVICE_NOT_FOUND, 404),
        (ProxyError("a bug"), Reason.OTHER, 500),
    ],
)
def test_read_list_raises_the_refusal(error: ProxyError, reason: Reason, status: int) -> None:
    with pytest.raises(Refused) as caught:
        read_list(KEY, problem(error, "/"))
    assert (caught.value.reason, caught.value.status, caught.value.text) == (reason, status, str(error))


def test_read_list_takes_a_missing_token_for_a_missing_right() -> None:
    with pytest.raises(Refused) as caught:
        read_list(KEY, plain_problem(401, "no API token", "/"))
    assert caught.value.reason is Reason.NO_RIGHT


@pytest.mark.parametrize("reply", [HttpReply(404, None, b"404 page"), HttpReply(200, None, b"[]")])
def test_read_list_names_a_server_that_is_no_proxy(reply: HttpReply) -> None:
    with pytest.raises(Malformed):
        read_list(KEY, reply)


def test_read_list_of_a_service_of_which_nothing_is_known_says_why() -> None:
    with pytest.raises(Malformed, match="nothing is known: no"):
        read_list(KEY, problem(NothingKnown("nothing is known: no"), "/"))


@pytest.mark.parametrize(("state", "stale"), [(Freshness.FRESH, False), (Freshness.STALE, True)])
def test_read_reply_via_reads_the_headers_of_a_read(state: Freshness, stale: bool) -> None:
    farther = Via(5.0, stale, "nacos-proxy; hit; ttl=30; detail=disk")
    headers = cache_headers(CacheResult(state, snapshot(), 7.9, 3.0, via=farther))
    via = read_reply_via(HttpReply(200, None, b"", headers))
    assert (via.age, via.stale) == (7.0, stale)
    assert via.status.startswith("nacos-proxy; hit; ttl=30; detail=disk, nacos-proxy; hit; ttl=3")


@pytest.mark.parametrize("headers", [(), (("age", "old"), ("cache-status", "a; hit")), (("age", "1"),)])
def test_read_reply_via_refuses_an_answer_without_age(headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Malformed):
        read_reply_via(HttpReply(200, None, b"", headers))
