"""Ids of requests, and which tasks work for a request."""

from __future__ import annotations

import asyncio

import pytest

from nacos_proxy.request_context import (
    Answered,
    RequestContext,
    current_request,
    hops_of,
    loop_in,
    new_id,
    sane_id,
    work_for,
)
from nacos_proxy.runtime import Supervisor, SystemClock, outlive, spawn
from tests.helpers.clock import settle


def test_new_id_is_sane_and_never_the_same() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(sane_id(id.encode()) == id for id in ids)


@pytest.mark.parametrize(
    "given", [b"7f3c", b"4bf92f35-77b3-4da6-a3ce-929d0e0e4736", b"Root=1-67891233-abcdef", b"a+b/c==", b"x" * 128]
)
def test_sane_id_keeps_what_clients_send(given: bytes) -> None:
    assert sane_id(given) == given.decode()


def test_sane_id_does_not_count_the_white_space_around_a_value() -> None:
    assert sane_id(b" a \t ") == "a"


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\tb", b'"a"', b"<a>", b"a,b", "ä".encode(), b"a\r\nb"])
def test_sane_id_refuses_what_could_do_harm(given: bytes) -> None:
    assert sane_id(given) == ""


async def test_work_for_holds_for_the_tasks_that_a_task_starts() -> None:
    seen: dict[str, str] = {}

    async def note(name: str) -> None:
        request = current_request()
        seen[name] = "" if request is None else request.id

    async def a_request(id: str) -> None:
        work_for(RequestContext(id))
        supervisor = Supervisor(SystemClock())
        spawn(note(f"{id} spawn"), name="it")
        supervisor.once(note(f"{id} once"), name="it")
        supervisor.once(note(f"{id} once for it"), name="it", for_request=True)
        supervisor.keep(lambda: note(f"{id} keep"), name="it")
        await outlive(note(f"{id} outlive"), name="it")

    await asyncio.gather(spawn(a_request("a"), name="a"), spawn(a_request("b"), name="b"))
    await note("outside")
    await settle()
    assert seen == {
        **{"a spawn": "a", "a once for it": "a", "a outlive": "a", "a once": "", "a keep": ""},
        **{"b spawn": "b", "b once for it": "b", "b outlive": "b", "b once": "", "b keep": ""},
        "outside": "",
    }


def test_request_context_without_a_trace_gives_its_calls_the_id_alone() -> None:
    request = RequestContext("it-1")
    with request.call("GET", lambda: "http://n") as call:
        assert (call.headers, call.status) == ((("X-Request-Id", "it-1"),), 0)
    request.ended(Answered("GET", "/", "", "", 200, 0.0, 0, "", "it-1"))
    assert request.log_fields == {"requestId": "it-1"}


def test_hops_of_are_the_proxies_that_a_request_has_passed() -> None:
    assert hops_of(b"a1, b2 ,c3") == ("a1", "b2", "c3")


@pytest.mark.parametrize("given", [b"", b"a,", b"a b", b"x" * 65, b",".join([b"a"] * 17), "ä".encode()])
def test_hops_of_ignores_what_no_proxy_sends(given: bytes) -> None:
    assert hops_of(given) == ()


@pytest.mark.parametrize(
    ("hops", "why"),
    [(["a"], ""), (["a", "b", "c"], ""), (["a", "me"], "leads back"), (list("abcd"), "passed 4 proxies")],
)
def test_loop_in_refuses_four_proxies_and_the_same_one_twice(hops: list[str], why: str) -> None:
    assert (why in loop_in(hops, "me"), bool(loop_in(hops, "me"))) == (True, bool(why))
