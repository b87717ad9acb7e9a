"""Every recorded request, in its order, through the whole proxy on the embedded registry: the same answer comes back.

v1 and v2 requests are answered as Nacos 2.5.1 answered them, v3 requests as 3.0.3 did. Pauses are played on the
injected clock. Reads are asked three times, so that the fast path's answer is compared too.

A real server lists a write 500-600 ms after it, the proxy at once, by design. No recorded answer hangs on that: where a
list follows a write directly ("v1 list at once after register"), the last write was of another service.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.app import serving
from tests.helpers.clock import FakeClock
from tests.helpers.recordings import load
from tests.helpers.replay import FILES, Answer, assert_same, compared, play


@dataclass(frozen=True)
class Other:
    """How the proxy answers a recorded case in its own way, and why; docs/compatibility.md lists these."""

    why: str
    status: int
    says: str


NO_USERS = Other(
    "the embedded registry has no users, and no upstream to pass a login to", 404, "no upstream to pass it to"
)
PARSER = Other(
    "the words of Java's JSON parser, with its line and column",
    500,
    "Server failed, caused: errCode: 101, errMsg: Nacos deserialize for class "
    "[com.alibaba.nacos.naming.healthcheck.RsInfo] failed, cause error[",
)
OTHERWISE = {
    "v1 beat, bad json": PARSER,
    "v1 login, bad": NO_USERS,
    "v1 login users, bad": NO_USERS,
    "v3 login bad": NO_USERS,
}


@cache
def replayed(name: str, server: str) -> dict[str, list[Answer]]:
    async def run() -> dict[str, list[Answer]]:
        clock = FakeClock()
        async with serving(clock=clock) as proxy:
            return await play(proxy, clock, name, server, "", "", "")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "server", "title"),
    [
        pytest.param(name, server, title, id=f"{name}-{server}-{title}")
        for name, server in FILES
        for title in compared(name, server)
    ],
)
def test_the_proxy_answers_as_the_server_did(name: str, server: str, title: str) -> None:
    row, answers = compared(name, server)[title], replayed(name, server)[title]
    if other := OTHERWISE.get(row.case):
        assert [(answer.status, other.says in str(answer.body)) for answer in answers] == [(other.status, True)]
        return
    for answer in answers:
        assert_same(answer, row)


def test_the_differences_are_of_recorded_cases_and_stand_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text("utf-8")
    recorded = {row.case for name, _ in FILES for row in load(name)}
    assert [case for case in OTHERWISE if case not in recorded or f"`{case}`" not in page] == []
