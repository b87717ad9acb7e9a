"""Realms: one view for each token, bounded, ended when unused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from proxy.errors import Denied
from proxy.realms import Realms, RealmsPolicy, token_of
from tests.helpers.clock import FakeClock


def scope(query: str = "", **headers: str) -> Scope:
    given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "query_string": query.encode(), "headers": given}


@dataclass
class View:
    token: str
    streams: int = 0
    ended: list[str] = field(default_factory=list)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def end_streams(self) -> None:
        self.ended.append("streams")

    async def close(self) -> None:
        self.ended.append("closed")


class Opened:
    """A factory of views that remembers them; `fails` are tokens for which it raises."""

    def __init__(self, *fails: str) -> None:
        self.views: list[View] = []
        self.fails = list(fails)

    async def __call__(self, token: str) -> View:
        await asyncio.sleep(0)
        if token in self.fails:
            self.fails.remove(token)
            raise OSError("no socket")
        self.views.append(View(token))
        return self.views[-1]


def realms(opened: Opened, clock: FakeClock | None = None, **policy: Any) -> Realms:
    return Realms(opened, RealmsPolicy(**policy), (clock or FakeClock()).now)


@pytest.mark.parametrize(
    ("request_", "bearer", "token"),
    [
        (scope("accessToken=t1&serviceName=a"), True, "t1"),
        (scope(accessToken="t2"), True, "t2"),
        (scope(Authorization="Bearer t3"), True, "t3"),
        (scope(Authorization="bearer  t3 "), True, "t3"),
        (scope(Authorization="Bearer ours"), False, ""),
        (scope("accessToken=t4", Authorization="Bearer ours"), False, "t4"),
        (scope(Authorization="Basic dTpw"), True, ""),
        (scope("accessToken="), True, ""),
        (scope(), True, ""),
    ],
)
def test_a_token_is_found_where_nacos_clients_put_it(request_: Scope, bearer: bool, token: str) -> None:
    assert token_of(request_, bearer=bearer) == token


BODY = b"serviceName=DEFAULT_GROUP@@s&beat={}&accessToken=t5"


async def test_a_token_in_a_form_is_found() -> None:
    """As the Go SDK shows it when it registers and beats."""
    assert token_of(scope(), bearer=True, form=BODY) == "t5"
    view = await realms(Opened()).of(scope(), BODY)
    assert isinstance(view, View) and view.token == "t5"


async def test_a_token_has_one_view_however_many_ask_at_once() -> None:
    opened = Opened()
    some = realms(opened)
    found = await asyncio.gather(*(some.of(scope("accessToken=a")) for _ in range(20)))
    other = await some.of(scope("accessToken=b"))
    assert [view.token for view in opened.views] == ["a", "b"]
    assert {id(view) for view in found} == {id(opened.views[0])}
    assert other is opened.views[1]


async def test_who_shows_no_token_has_no_view_of_its_own() -> None:
    assert await realms(Opened()).of(scope()) is None


async def test_a_view_that_could_not_be_opened_is_tried_again() -> None:
    some = realms(Opened("a"))
    with pytest.raises(OSError, match="no socket"):
        await some.of(scope("accessToken=a"))
    view = await some.of(scope("accessToken=a"))
    assert view is not None


async def test_the_longest_unused_view_makes_room() -> None:
    opened = Opened()
    some = realms(opened, most=2)
    for token in ("a", "b", "a", "c"):
        await some.of(scope(f"accessToken={token}"))
    await asyncio.sleep(0)
    assert [(view.token, view.ended) for view in opened.views] == [("a", []), ("b", ["closed"]), ("c", [])]


async def test_a_view_with_event_streams_stays_and_one_too_many_is_refused() -> None:
    opened = Opened()
    some = realms(opened, most=1)
    await some.of(scope("accessToken=a"))
    opened.views[0].streams = 1
    with pytest.raises(Denied) as caught:
        await some.of(scope("accessToken=b"))
    assert caught.value.status == 429


async def test_a_view_that_nobody_used_for_long_ends_when_another_opens() -> None:
    opened, clock = Opened(), FakeClock()
    some = realms(opened, clock, idle=60.0)
    await some.of(scope("accessToken=a"))
    await clock.advance(61.0)
    await some.of(scope("accessToken=b"))
    await asyncio.sleep(0)
    assert (len(some), opened.views[0].ended) == (1, ["closed"])


async def test_a_stop_ends_streams_and_then_every_view() -> None:
    opened = Opened()
    some = realms(opened)
    await some.of(scope("accessToken=a"))
    some.end_streams()
    await some.close()
    assert (len(some), opened.views[0].ended) == (0, ["streams", "closed"])
