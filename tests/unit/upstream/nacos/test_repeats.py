"""Calls that came before: they end as any other call does, whatever the server answers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from nacos_proxy.model.calls import BEAT_NOT_FOUND, Beat, BeatResult, Call, Deregister, Fetch, Register
from nacos_proxy.model.errors import ProxyError, Refused, Unreachable
from nacos_proxy.request_context import RequestContext, current_request, work_for
from nacos_proxy.runtime import spawn, stop
from nacos_proxy.upstream.contract import Sent
from nacos_proxy.upstream.http.exchange import HttpPolicy, Timeouts
from nacos_proxy.upstream.nacos.login import Credential, LoginPolicy
from nacos_proxy.upstream.nacos.registry import AuthenticatedClient, NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.repeats import MAX_REPEATED, MAX_REPEATED_LENGTH
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from tests.helpers.build import KEY, instance
from tests.helpers.clock import FakeClock
from tests.helpers.faces import FACES, facing
from tests.unit.upstream.registries import registry_of
from tests.unit.upstream.stub import Request, Say, Stub, ok, read, say, stub

BEAT = Beat(KEY, "10.0.0.1", 80)
FULL_BEAT = Beat(KEY, "10.0.0.1", 80, full=instance("10.0.0.1"))
REGISTER = Register(KEY, instance("10.0.0.1"))

Asked = NacosRegistry | AuthenticatedClient


async def begun(registry: Asked, call: Call[Any]) -> Sent | None:
    """The answered call; None if it was not begun."""
    answered: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
    return await answered if registry.begin(call, answered.set_result) else None


async def again(registry: Asked, call: Call[Any]) -> Any:
    """As callers do: begins the call if possible."""
    if (sent := await begun(registry, call)) is None:
        return await registry.send(call)
    return sent.result if sent.usual else await sent.finish()


async def outcome(sending: Any) -> str:
    try:
        return repr(await sending)
    except ProxyError as error:
        return f"{type(error).__name__}: {str(error).replace(':', '')}"


# --- begun or not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", list(FACES))
@pytest.mark.parametrize("call", [BEAT, FULL_BEAT, REGISTER])
async def test_begin_sends_a_call_from_its_third_time_on(face: str, call: Call[Any]) -> None:
    async with facing(face) as server, registry_of(server.url) as registry:
        await registry.send(REGISTER)
        ways: list[bool] = []
        for _ in range(4):
            sent = await begun(registry, call)
            ways.append(sent is not None)
            result = await registry.send(call) if sent is None else sent.result
            assert sent is None or sent.usual
            assert result is None or result.code != BEAT_NOT_FOUND
        assert ways[1:] == [True, True, True]
        assert registry.status()["servers"][0]["outcomes"]["ok"] >= 5
        assert (await registry.send(Fetch(KEY))).find("10.0.0.1", 80) is not None


async def known(registry: Asked, call: Call[Any] = BEAT) -> None:
    """From now on the call can be begun: two connections are open, even if one is used to ask for the version."""
    assert await begun(registry, call) is None
    await asyncio.gather(registry.send(call), registry.send(call))


def beating(answers: Callable[[], Say] = lambda: ok(b'{"code":10200,"clientBeatInterval":5000}')) -> Any:
    """A server of v1; `answers` are those to beats."""

    def play(request: Request) -> Say:
        if request.line.startswith(b"PUT "):
            return answers()
        if request.line.startswith(b"GET /nacos/v1/ns/operator/metrics"):
            return ok(b'{"status":"UP"}')
        return ok(b'{"accessToken":"t2","tokenTtl":18000}') if b"login" in request.line else ok(b"ok")

    return play


async def test_begin_sends_the_same_bytes_as_send_apart_from_the_ids_of_the_request() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:

        async def work() -> None:
            work_for(RequestContext("it-0"))
            await registry.send(BEAT)
            await known(registry)
            work_for(RequestContext("it-1"))
            assert await begun(registry, BEAT) is not None

        await spawn(work(), name="request")
        first, *_, last = [request.head for request in server.requests if request.line.startswith(b"PUT ")]
        assert last == first.replace(b"it-0", b"it-1")
        assert b"X-Nacos-Proxy-Hops: " in last and b"X-Request-Id: it-1\r\n" in last


async def test_begin_names_the_proxies_that_the_request_has_passed() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        await known(registry)

        async def work() -> None:
            request = RequestContext("it-1")
            request.hops = ("above",)
            work_for(request)
            assert await begun(registry, BEAT) is not None

        await spawn(work(), name="request")
        assert b"X-Nacos-Proxy-Hops: above, " in server.requests[-1].head


async def test_begin_leaves_a_traced_request_to_send() -> None:
    class Traced(RequestContext):
        traced = True

    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        await known(registry)

        async def work() -> None:
            work_for(Traced("it-1"))
            assert await begun(registry, BEAT) is None

        await spawn(work(), name="request")
        assert await begun(registry, BEAT) is not None


async def test_begin_sends_nothing_if_no_connection_is_idle() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        await known(registry)
        registry.http.renew(registry.servers.all[0].origin)
        before = len(server.requests)
        assert await begun(registry, BEAT) is None
        assert len(server.requests) == before
        await registry.send(BEAT)
        assert await begun(registry, BEAT) is not None


async def test_begin_leaves_all_other_calls_and_long_ones_to_send() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        long = Register(KEY, instance("10.0.0.1", metadata={"note": "x" * MAX_REPEATED_LENGTH}))
        for call in (Deregister(KEY, "10.0.0.1", 80), long):
            for _ in range(3):
                assert await begun(registry, call) is None
                await registry.send(call)


async def test_begin_needs_a_transport_that_can_repeat() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"ok")

    policy = NacosPolicy(ServersPolicy(("127.0.0.1:8848",)), dialect="v1")
    registry = NacosRegistry(policy, FakeClock(), httpx.MockTransport(answer))
    for _ in range(3):
        assert await begun(registry, REGISTER) is None
        await registry.send(REGISTER)
    await registry.close()


async def test_begin_keeps_a_bounded_number_of_calls() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        await known(registry)
        assert await begun(registry, BEAT) is not None
        others = [Beat(KEY, f"10.1.{n // 250}.{n % 250}", 80) for n in range(MAX_REPEATED)]
        for call in others:
            for _ in range(2):
                registry.begin(call, lambda sent: None)
        assert await begun(registry, BEAT) is None  # it was the oldest


async def test_begin_without_a_known_server_leaves_the_call_to_send() -> None:
    async with stub(lambda _: ok(b"")) as addresses:
        servers = ServersPolicy(endpoint=addresses.url)
        async with registry_of(servers=servers) as registry:
            assert [await begun(registry, BEAT) for _ in range(2)] == [None, None]
            with pytest.raises(Unreachable):
                await registry.send(BEAT)


# --- tokens and servers ------------------------------------------------------------------------------------------


async def test_begin_uses_the_current_token_and_leaves_a_login_to_send() -> None:
    clock = FakeClock()
    login = LoginPolicy("nacos", "secret")
    async with facing("v1", clock, passwords={"nacos": "secret"}) as server:
        async with registry_of(server.url, clock=clock, login=login, dialect="v1") as registry:
            assert await begun(registry, REGISTER) is None
            await registry.send(REGISTER)
            assert await begun(registry, REGISTER) is not None
            await clock.advance(17_000)
            assert await begun(registry, REGISTER) is None
            await registry.send(REGISTER)
            while registry.session.logins < 2:
                await asyncio.sleep(0)
            sent = await begun(registry, REGISTER)
            assert sent is not None and sent.usual


async def test_begin_of_a_client_uses_its_own_token_and_finish_reports_that_it_is_refused() -> None:
    refused: list[str] = []
    accepted = {b"accessToken: one", b"accessToken: two"}

    def play(request: Request) -> Say:
        if any(line in accepted for line in request.head.split(b"\r\n")):
            return ok(b"ok")
        return say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\n\r\ntoken expired!")

    async with stub(play) as server, registry_of(server.url, dialect="v1") as registry:
        credential = Credential("one")
        client = registry.acting_as(credential, lambda error: refused.append(error.text))
        await known(client, REGISTER)
        credential.token = "two"
        sent = await begun(client, REGISTER)
        assert sent is not None and sent.usual
        assert b"accessToken: two\r\n" in server.requests[-1].head
        accepted.clear()
        sent = await begun(client, REGISTER)
        assert sent is not None and not sent.usual and refused == []
        with pytest.raises(Refused, match="token expired!"):
            await sent.finish()
        assert refused == ["token expired!"]


async def test_begin_sends_an_instance_to_the_server_that_took_its_last_call() -> None:
    async with stub(beating()) as one, stub(beating()) as two:
        async with registry_of(one.url, two.url, dialect="v1") as registry:
            await known(registry)
            first, second = (one, two) if any(b"/beat" in r.line for r in one.requests) else (two, one)
            assert await begun(registry, BEAT) is not None
            first.play = beating(lambda: say(then="close"))
            sent = await begun(registry, BEAT)
            assert sent is not None and not sent.usual
            assert isinstance(await sent.finish(), BeatResult)
            assert _beats(second) == 1
            assert await again(registry, BEAT)
            assert (_beats(second), isinstance(await again(registry, BEAT), BeatResult)) == (2, True)


def _beats(server: Stub) -> int:
    return sum(b"/beat" in request.line for request in server.requests)


# --- any answer --------------------------------------------------------------------------------------------------

_GZIP = gzip.compress(b'{"code":10200}')
_OK = b'{"code":10200,"clientBeatInterval":5000}'

ANSWERS: dict[str, Say] = {
    "ok": ok(_OK),
    "another interval": ok(b'{"code":10200,"clientBeatInterval":7000}'),
    "not found": ok(b'{"code":20404}'),
    "in two pieces": say(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + _OK[:9], _OK[9:]),
    "a late head": say(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 40\r\n\r\n" + _OK),
    "chunked": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n28\r\n" + _OK + b"\r\n0\r\n\r\n"),
    "until the end": say(b"HTTP/1.1 200 OK\r\n\r\n" + _OK, then="close"),
    "and closes": ok(_OK, b"Connection: close"),
    "continues": say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + _OK),
    "more than one answer": say(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + _OK + b"HTTP/1.1 200 OK\r\n"),
    "garbage": ok(b"}{"),
    "HTML": ok(b"<html>"),
    "compressed": ok(_GZIP, b"Content-Encoding: gzip"),
    "a redirect": say(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
    "no content": say(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "bad request": say(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad"),
    "forbidden": say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 21\r\n\r\nauthorization failed!"),
    "gone": say(b"HTTP/1.1 410 Gone\r\nContent-Length: 4\r\n\r\ngone"),
    "not implemented": say(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 2\r\n\r\nno"),
    "broken": say(b"HTTP/1.1 500 Broken\r\nContent-Length: 6\r\n\r\nbroken"),
    "not ready": say(b"HTTP/1.1 503 Not Ready\r\nContent-Length: 4\r\n\r\nDOWN"),
    "no HTTP": say(b"who are you?\r\n\r\n"),
    "closed": say(then="close"),
    "reset": say(then="abort"),
    "cut off": say(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + _OK[:9], then="close"),
    "no answer": say(then="hang"),
    "half an answer": say(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + _OK[:9], then="hang"),
}

SOON = HttpPolicy(timeouts=Timeouts(reads=0.2, writes=0.2))


@asynccontextmanager
async def warm(answer: Say) -> AsyncGenerator[tuple[Stub, NacosRegistry]]:
    """A server that gives this answer to the next beat, the good one to all others."""
    turns = Counter[str]()

    def beats() -> Say:
        turns["beats"] += 1
        return answer if turns["beats"] == 3 else ok(_OK)

    async with stub(beating(beats)) as server, registry_of(server.url, dialect="v1", http=SOON) as registry:
        await known(registry)
        yield server, registry


async def told(answer: Say, way: Callable[[Asked, Call[Any]], Any]) -> dict[str, Any]:
    """What a caller gets, what the server was asked and in which state all is afterwards."""
    async with warm(answer) as (server, registry):
        first = await outcome(way(registry, BEAT))
        after = await outcome(registry.send(BEAT))
        [state] = registry.status()["servers"]
        return {
            "first": first.replace(server.url.replace(":", ""), "URL"),
            "after": after.replace(server.url.replace(":", ""), "URL"),
            "beats": _beats(server),
            "state": (state["state"], json.dumps(state["outcomes"])),
        }


def sends(registry: Asked, call: Call[Any]) -> Any:
    return registry.send(call)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=list(ANSWERS))
async def test_begin_and_finish_tell_the_same_as_send_for_any_answer(answer: Say) -> None:
    assert await told(answer, again) == await told(answer, sends)


@pytest.mark.parametrize("name", ["ok", "another interval", "a late head", "chunked", "and closes", "continues"])
async def test_begin_takes_a_good_answer_as_the_usual_one(name: str) -> None:
    async with warm(ANSWERS[name]) as (_, registry):
        sent = await begun(registry, BEAT)
        assert sent is not None and sent.usual and isinstance(sent.result, BeatResult)


async def test_begin_gives_each_caller_its_own_answer() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        calls = [Beat(KEY, f"10.0.0.{n}", 80) for n in range(20)]
        await asyncio.gather(*(known(registry, call) for call in calls))
        assert all(
            sent is not None and sent.usual for sent in await asyncio.gather(*(begun(registry, c) for c in calls))
        )
        assert Counter(r.line for r in server.requests if b"/beat" in r.line).most_common()[-1][1] == 3


async def test_finish_that_goes_to_another_server_leaves_no_connection_behind() -> None:
    async with stub(beating()) as one, stub(beating()) as two:
        async with registry_of(one.url, two.url, dialect="v1", http=SOON) as registry:
            await known(registry)
            first = one if _beats(one) else two
            first.play = beating(lambda: say(b"HTTP/1.1 500 Broken\r\nContent-Length: 6\r\n\r\nbroken"))
            sent = await begun(registry, BEAT)
            assert sent is not None and not sent.usual
            server = next(s for s in registry.servers.all if s.origin == first.url)
            server.up = False  # another call has found it down
            assert isinstance(await sent.finish(), BeatResult)
            await first.gone.wait()


# --- what changes before the answer ------------------------------------------------------------------------------

GONE = say(b"HTTP/1.1 410 Gone\r\nContent-Length: 4\r\n\r\ngone")
DENIED = say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 14\r\n\r\ntoken expired!")


async def test_finish_does_not_read_an_answer_in_another_dialect() -> None:
    upgraded = False

    def play(request: Request) -> Say:
        if request.line.startswith(b"POST /nacos/v3/client/ns/instance") and upgraded:
            return ok(b'{"code":0,"message":"success","data":"ok"}')
        return ok(_OK) if request.line.startswith(b"PUT /nacos/v1/") and not upgraded else GONE

    async with stub(play) as server, registry_of(server.url) as registry:
        calls = [Beat(KEY, f"10.0.0.{n}", 80) for n in range(6)]
        await asyncio.gather(*(known(registry, call) for call in calls))
        upgraded = True
        results = await asyncio.gather(*(again(registry, call) for call in calls))
        assert all(isinstance(result, BeatResult) for result in results)


async def test_finish_does_not_take_the_refusal_of_an_old_token_for_one_of_the_new_token() -> None:
    valid, logins, late = b"t1", 0, asyncio.Event()

    async def play(request: Request) -> Say:
        nonlocal valid, logins
        if b"login" in request.line:
            logins += 1
            valid = b"t%d" % logins
            return ok(b'{"accessToken":"%b","tokenTtl":18000}' % valid)
        accepted = b"accessToken: " + valid + b"\r\n" in request.head
        if b"10.0.0.2" in request.line:
            await late.wait()
        return ok(_OK) if accepted else DENIED

    slow, other = Beat(KEY, "10.0.0.2", 80), BEAT
    async with slow_stub(play) as url:
        async with registry_of(url, dialect="v1", login=LoginPolicy("nacos", "secret")) as registry:
            late.set()
            await known(registry, slow)
            await known(registry, other)
            assert isinstance(registry.clock, FakeClock)
            await registry.clock.advance(100)  # the login may be tried again
            valid = b"another"
            late.clear()
            waiting = spawn(again(registry, slow), name="slow")
            assert isinstance(await registry.send(other), BeatResult)
            late.set()
            assert isinstance(await waiting, BeatResult)
            assert logins == 2


@asynccontextmanager
async def slow_stub(play: Callable[[Request], Awaitable[Say]]) -> AsyncGenerator[str]:
    """As `stub`, with answers that may wait."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                writer.writelines((await play(await read(reader))).pieces)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            await stop(task)


async def test_a_begun_call_binds_its_instance_to_the_server_that_took_it() -> None:
    async with stub(beating()) as one, stub(beating()) as two:
        async with registry_of(one.url, two.url, dialect="v1") as registry:
            await known(registry, REGISTER)
            await registry.send(Deregister(KEY, "10.0.0.1", 80))
            assert await begun(registry, REGISTER) is not None
            assert (KEY, "10.0.0.1", 80) in registry.servers._pins


async def test_an_answer_comes_in_the_context_of_its_own_request() -> None:
    seen: list[str] = []

    def note(_: object) -> None:
        request = current_request()
        seen.append("" if request is None else request.id)

    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:

        async def work(id: str, act: Callable[[], Awaitable[object]]) -> None:
            work_for(RequestContext(id))
            await act()

        async def begin() -> None:
            registry.servers.all[0].up = False
            registry.servers.on_up.append(note)
            assert await begun(registry, BEAT) is not None

        await spawn(work("opens the connections", partial(known, registry)), name="request")
        await spawn(work("begins", begin), name="request")
        assert seen == ["begins"]


async def test_an_exception_of_a_listener_does_not_leave_the_caller_without_an_answer() -> None:
    def fail(_: object) -> None:
        raise KeyError("a listener")

    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        await known(registry)
        registry.servers.all[0].up = False
        registry.servers.on_up.append(fail)
        sent = await begun(registry, BEAT)
        assert sent is not None and not sent.usual
        assert isinstance(await sent.finish(), BeatResult), "it was up by then"


async def test_begin_leaves_a_token_that_cannot_be_sent_to_send() -> None:
    async with stub(beating()) as server, registry_of(server.url, dialect="v1") as registry:
        credential = Credential("one")
        client = registry.acting_as(credential)
        await known(client)
        credential.token = "é"
        assert await begun(client, BEAT) is None
        with pytest.raises(Refused, match="printable ASCII"):
            await client.send(BEAT)


async def test_finish_says_that_a_call_may_have_arrived_when_the_registry_is_closed() -> None:
    answered: list[Sent] = []
    async with stub(beating()) as server:
        async with registry_of(server.url, dialect="v1") as registry:
            await known(registry)
            server.play = beating(lambda: say(then="hang"))
            assert registry.begin(BEAT, answered.append)
        (sent,) = answered
        with pytest.raises(Unreachable) as caught:
            await sent.finish()
        assert caught.value.arrived


def test_what_comes_once_is_bounded_in_bytes_and_pushes_out_nothing_that_came_twice() -> None:
    registry = NacosRegistry(NacosPolicy(ServersPolicy(("127.0.0.1:1",))), FakeClock())
    repeats = registry.own_client._repeats
    for call in (BEAT, BEAT):
        assert not registry.begin(call, print)
    tracemalloc.start()
    try:
        for number in range(MAX_REPEATED + 100):
            note = {"note": f"{number}" + "x" * 100_000} if number % 100 == 0 else {}
            assert not registry.begin(Register(KEY, instance("10.0.0.1", metadata=note)), print)
        assert tracemalloc.get_traced_memory()[0] < 3_000_000
    finally:
        tracemalloc.stop()
    assert len(repeats._seen) == MAX_REPEATED
    assert [known.call for known in repeats._known.values()] == [BEAT]
