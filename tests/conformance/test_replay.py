"""Every recorded request, in order, through the whole proxy: the answer equals the recorded one for every upstream.

The proxy answers v1 and v2 as Nacos 2.5.1 does, v3 as 3.0.3 does. A `FakeClock` plays the pauses. Each read is sent
three times, so that the fast path answers, too. With an upstream over HTTP the second read asks the server, so that
both the proxy's prediction after a write and the server's list are compared.

A real server lists a write after 500-600 ms, the proxy at once, by design. No recorded answer depends on it: before "v1
list at once after register" the last write was to another service.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.app import serving
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing
from tests.helpers.recordings import load
from tests.helpers.replay import FILES, Answer, assert_same, compared, is_same, play


@dataclass(frozen=True)
class Other:
    """A recorded case that the proxy answers differently, and why; docs/compatibility.md lists these.

    `sooner`: only answers given without asking the server differ.
    """

    why: str
    status: int
    says: str
    sooner: bool = False


NO_USERS = Other(
    "the embedded registry has no users, and no upstream to pass a login to", 404, "no upstream to pass it to"
)
PARSER = Other(
    "the words of Java's JSON parser, with its line and column",
    500,
    "Server failed, caused: errCode: 101, errMsg: Nacos deserialize for class "
    "[com.alibaba.nacos.naming.healthcheck.RsInfo] failed, cause error[",
)
FORETOLD = Other("a registration after a modification: the server keeps the modified weight", 200, '"weight": 9.0')
OLD = Other("the copy is up to a poll old, and the question makes it new", 200, "rec-exp", sooner=True)
LOGIN = "logins are the server's own"
NO_CALL = Other("r-nacos has no such call", 410, '"error": "Gone"')
UNCHANGED = Other("the call before was not there", 200, '"hosts": [{')
MIXED = Other("a service of r-nacos holds instances of both kinds", 200, "")
MORE = Other("it holds a service more, as the one before was not deleted", 200, "count")
ONE_GROUP = Other("r-nacos tells only the services of one group", 200, "DEFAULT_GROUP")
HIDDEN = Other("lists of v1 and v2 hide disabled instances", 200, "rec-v3o")
KNOWN = Other("v3 tells no namespaces that exist by a registration alone", 200, "rec-beat")

SERVER = {
    "v1 beat, bad json": PARSER,
    "modify: list after registering again": FORETOLD,
    "modify: list after beat": replace(FORETOLD, sooner=True),
    "expiry: list after a further 5 s": OLD,
}
TWO = {
    "v3 login bad": Other(LOGIN, 500, "User nobody not found;"),
}
R_NACOS = {
    "v1 metadata batch put": NO_CALL,
    "v1 list after metadata batch": UNCHANGED,
    "v1 service names": NO_CALL,
    "v1 health update": NO_CALL,
    "v1 server state": NO_CALL,
    "v2 metadata batch": NO_CALL,
    "v3 admin metadata batch": NO_CALL,
    "v3 list after update": Other(UNCHANGED.why, 200, '"data": [{'),
    "v3 admin state": NO_CALL,
    "v1 login, bad": Other(LOGIN, 500, "User nobody not found;"),
    "v1 login users, bad": Other(LOGIN, 500, "User nobody not found;"),
    "v1 register healthy in svc": MIXED,
    "v1 register unhealthy in svc": MIXED,
    "v1 register unhealthy 2 in svc": MIXED,
    "v1 list under protection": MIXED,
    "v1 list under protection healthyOnly": MIXED,
    "v1 service delete non-empty": Other(MIXED.why, 400, "is not empty, can't be delete"),
    "v1 service list": MORE,
    "v1 service list selector": MORE,
    "v1 service list page 0": MORE,
    "v1 operator metrics full": Other(MORE.why, 200, "instanceCount"),
    "v2 service list": MORE,
    "v1 catalog services": ONE_GROUP,
    "v3 admin service list": ONE_GROUP,
    "v3 admin service list with ignoreEmpty": ONE_GROUP,
}
COMPATIBLE, REFUSED = Other(LOGIN, 500, "Handle API Compatibility failed"), Other(LOGIN, 403, "Access Denied")
THREE = {**SERVER, "v1 service names": KNOWN}
OTHERWISE: dict[str, dict[str, Other]] = {
    "embedded": {
        "v1 beat, bad json": PARSER,
        "v1 login, bad": NO_USERS,
        "v1 login users, bad": NO_USERS,
        "v3 login bad": NO_USERS,
    },
    "v1": {**SERVER, **TWO, **R_NACOS},
    "v1+v2": {**SERVER, **TWO},
    "3.0": {**THREE, "v1 login, bad": COMPATIBLE, "v1 login users, bad": COMPATIBLE},
    "v3": {**THREE, "v1 login, bad": REFUSED, "v1 login users, bad": REFUSED},
}


@cache
def replayed(behind: str, name: str, server: str) -> dict[str, list[Answer]]:
    async def run() -> dict[str, list[Answer]]:
        clock = FakeClock()
        async with AsyncExitStack() as stack:
            if behind == "embedded":
                proxy = await stack.enter_async_context(serving(clock=clock))
                return await play(proxy, clock, name, server, "", "", "")
            face = await stack.enter_async_context(facing(behind, clock))
            check = "on" if behind == "v1" else "auto"  # the recorded servers have it, this one does not
            proxy = await stack.enter_async_context(serving(clock=clock, upstream=face.url, parameter_check=check))
            return await play(proxy, clock, name, server, "", "no-cache", "")

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("behind", "name", "server", "title"),
    [
        pytest.param(behind, name, server, title, id=f"{behind}-{name}-{server}-{title}")
        for behind in OTHERWISE
        for name, server in FILES
        for title in compared(name, server)
    ],
)
def test_replay_answers_as_the_recorded_server(behind: str, name: str, server: str, title: str) -> None:
    row, answers = compared(name, server)[title], replayed(behind, name, server)[title]
    other = OTHERWISE[behind].get(row.case)
    if other is None:
        for answer in answers:
            assert_same(answer, row)
        return
    own = [answer for answer in answers if not is_same(answer, row)]
    assert [(answer.status, other.says in json.dumps(answer.body)) for answer in own] == [(other.status, True)] * len(
        own
    )
    if other.sooner:
        assert is_same(answers[-1], row)


@pytest.mark.parametrize("behind", OTHERWISE)
def test_replay_differences_that_are_listed_exist(behind: str) -> None:
    """A case that is answered as recorded must not be listed."""
    like: list[str] = []
    for case in (case for case, other in OTHERWISE[behind].items() if not other.sooner):
        played = [
            (replayed(behind, name, server)[title], row)
            for name, server in FILES
            for title, row in compared(name, server).items()
            if row.case == case
        ]
        if all(is_same(answer, row) for answers, row in played for answer in answers):
            like.append(case)
    assert like == []


def test_replay_differences_name_recorded_cases_and_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text("utf-8")
    recorded = {row.case for name, _ in FILES for row in load(name)}
    listed = {case for cases in OTHERWISE.values() for case in cases}
    assert sorted(case for case in listed if case not in recorded or f"`{case}`" not in page) == []
