"""What uvicorn's protocol gets wrong, and how we read and answer it, with the fast path and without."""

import re

import pytest

from nacos_proxy.fastpath.http1 import GRACE, MAX_HELD
from nacos_proxy.fastpath.limits import ConnectionLimits
from nacos_proxy.wire.http import HAS_LEFT
from tests.unit.fastpath.drive import GET, Connection, Service, limited

UPGRADES = {
    "as Java's client": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nUpgrade: h2c\r\n",
    "a websocket": b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n",
    "no token": b"Upgrade: h2c\r\n",
    "many": b"UPGRADE: a\r\nupgrade: b\r\nConnection: x\r\nconnection: Upgrade\r\n",
}
INNER = b"DELETE /list?name=inner HTTP/1.1\r\nHost: here\r\n\r\n"
HELD = b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(params=[True, False], ids=["fast-path", "plain"])
def connection(request: pytest.FixtureRequest) -> Connection:
    return limited(
        Service(), ConnectionLimits(max_head=1000, read_timeout=10.0), fast=request.param, timeout_keep_alive=5
    )


def with_body(method: bytes, upgrade: bytes, framing: str, body: bytes) -> bytes:
    head = method + b" /list HTTP/1.1\r\nHost: here\r\n" + upgrade
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


# upgrades


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"])
async def test_upgrade_is_ignored_and_the_body_is_read_as_a_body(
    method: bytes, framing: str, upgrade: str, connection: Connection
) -> None:
    request = with_body(method, UPGRADES[upgrade], framing, INNER)
    got = b"got %d" % len(INNER)
    for pieces in (1, 2, 7, len(request)):
        size = -(-len(request) // pieces)
        answer = b""
        for at in range(0, len(request), size):
            answer += await connection.say(request[at : at + size])
        assert answer.count(got) == 1 and STATUS.findall(answer) == [b"200"], answer
    assert connection.service.asked == 4
    both = await connection.say(request + request + GET)
    assert both.count(got) == 2 and STATUS.findall(both) == [b"200"] * 3
    assert not connection.transport.closing


async def test_upgrade_fields_are_removed_from_the_head(connection: Connection) -> None:
    seen = []
    app = connection.protocol.app

    async def watching(scope, receive, send) -> None:
        seen.append(scope["headers"])
        await app(scope, receive, send)

    connection.protocol.app = watching
    for upgrade in UPGRADES.values():
        await connection.say(b"POST /list HTTP/1.1\r\nHost: here\r\nX-A:\r\n" + upgrade + b"\r\n")
    host, empty = (b"host", b"here"), (b"x-a", b"")
    assert seen == [
        [host, empty],
        [host, empty, (b"connection", b"keep-alive")],
        [host, empty, (b"upgrade", b"h2c")],  # without `Connection` it asks for nothing
        [host, empty, (b"connection", b"x")],
    ]


async def test_upgrade_with_connection_close_and_http_1_0(connection: Connection) -> None:
    head = b"GET /list HTTP/1.0\r\nConnection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer = await connection.say(head)
    assert STATUS.findall(answer) == [b"200"] and b"\r\nconnection: close\r\n" in answer
    assert connection.transport.closing


async def test_upgrade_does_not_lift_the_bound_on_a_head(connection: Connection) -> None:
    head = b"GET /list HTTP/1.1\r\n" + UPGRADES["a websocket"] + b"X: " + b"a" * 1000 + b"\r\n\r\n"
    assert STATUS.findall(await connection.say(head)) == [b"431"]


@pytest.mark.parametrize("target", [b"here:80", b"/list", b"http://here/list"])
async def test_connect_is_refused_and_nothing_after_it_is_read(target: bytes, connection: Connection) -> None:
    request = b"CONNECT " + target + b" HTTP/1.1\r\nHost: here\r\n\r\n"
    assert STATUS.findall(await connection.say(request + INNER)) == [b"405"]
    assert connection.transport.closing and connection.service.asked == 0


async def test_connect_is_refused_after_the_response_that_is_due(connection: Connection) -> None:
    await connection.say(HELD + b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n" + INNER)
    assert await connection.say(INNER) == b""
    connection.service.gate.set()
    assert STATUS.findall(await connection.rest()) == [b"200"]
    assert connection.transport.closing and connection.service.asked == 1


# HTTP/1.0


@pytest.mark.parametrize("more", [b"", b"Connection: keep-alive\r\n"])
async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(more: bytes, connection: Connection) -> None:
    answer = await connection.say(b"GET /streamed HTTP/1.0\r\n" + more + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"one two"
    assert b"transfer-encoding" not in head and b"\r\nconnection: close" in head
    assert connection.transport.closing


@pytest.mark.parametrize("request_line", [b"HEAD /streamed", b"GET /list", b"POST /list", b"HEAD /list"])
async def test_http_1_0_gets_a_known_content_length(request_line: bytes, connection: Connection) -> None:
    old = await connection.say(request_line + b" HTTP/1.0\r\nHost: here\r\n\r\n")
    assert connection.transport.closing and b"transfer-encoding" not in old
    connection.protocol, connection.transport = connection.open()
    new = await connection.say(request_line + b" HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    assert old == new


# pipelines


async def test_pipelined_requests_cut_anywhere_are_answered_in_order(connection: Connection) -> None:
    post = b"POST /%d HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc"
    chunked = b"POST /%d HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    upgrade = b"POST /%d HTTP/1.1\r\n" + UPGRADES["as Java's client"] + b"Content-Length: 3\r\n\r\nabc"
    every = b"".join(form % number for number, form in enumerate((post, chunked, upgrade, chunked, upgrade, post)))
    for at in range(1, len(every)):
        answer = await connection.say(every[:at])
        answer += await connection.say(every[at:])
        assert re.findall(rb"\r\n/(\d)\?.*got 3", answer) == [b"0", b"1", b"2", b"3", b"4", b"5"], at
    assert not connection.transport.closing


async def test_pipeline_bounds_the_bytes_behind_a_waiting_request(connection: Connection) -> None:
    """Beyond the bound the connection ends: not to read on would be not to notice that its client leaves."""
    one = b"GET /early HTTP/1.1\r\nHost: here\r\n\r\n"
    sent = len(await connection.say(HELD + one))
    while not connection.protocol._refused:
        assert connection.transport.reading
        await connection.say(one * 200)
        sent += 200 * len(one)
        assert sent <= 2 * MAX_HELD
    assert not connection.protocol._held
    connection.service.gate.set()
    answer = await connection.rest()
    for _ in range(20):
        answer += await connection.rest()
    assert STATUS.findall(answer) == [b"200"] * 2
    assert connection.transport.closing


async def test_pipeline_bounds_the_requests_made_of_one_chunk(connection: Connection) -> None:
    await connection.say(HELD + b"GET /early HTTP/1.1\r\n\r\n" * 10_000)
    assert len(connection.protocol.pipeline) < 500
    connection.service.gate.set()
    answer = await connection.rest()
    while more := await connection.rest():
        answer += more
    assert STATUS.findall(answer) == [b"200"] * 10_001


async def test_disconnect_reaches_the_app_while_another_request_waits(connection: Connection) -> None:
    await connection.say(b"GET /long?first HTTP/1.1\r\n\r\n" + b"GET /long?second HTTP/1.1\r\n\r\n")
    await connection.say(b"GET /long?third HTTP/1.1\r\n\r\n")
    assert connection.transport.reading, "or nobody would hear that the client left"
    connection.protocol.connection_lost(None)
    await connection.rest()
    assert connection.service.left == [b"first"] and connection.service.asked == 1
    assert connection.state.tasks == set()


async def test_scope_says_whether_the_client_has_left(connection: Connection) -> None:
    await connection.say(HELD)
    (scope,) = connection.service.scopes
    assert not scope[HAS_LEFT]()
    connection.protocol.connection_lost(None)
    assert scope[HAS_LEFT](), "though the app waits for something else"


async def test_eof_still_gets_the_responses_that_are_ready(connection: Connection) -> None:
    one = b"GET /early HTTP/1.1\r\n\r\n"
    connection.protocol.data_received(one * 3 + HELD + one)
    assert connection.protocol.eof_received() is True, "the connection stays open"
    assert STATUS.findall(await connection.rest()) == [b"200"] * 3
    connection.loop.advance(GRACE)
    assert connection.transport.closing, "and not for what takes longer"


async def test_eof_still_gets_the_response_that_is_due_and_no_more(connection: Connection) -> None:
    """As `nc -N` does. One with nothing due is gone."""
    assert not connection.protocol.eof_received()
    await connection.say(HELD)
    assert connection.protocol.eof_received() and not connection.transport.closing
    assert await connection.say(b"GET /early HTTP/1.1\r\n\r\n") == b""
    connection.service.gate.set()
    assert STATUS.findall(await connection.rest()) == [b"200"]
    assert connection.transport.closing


async def test_eof_does_not_cut_a_response_that_has_begun(connection: Connection) -> None:
    begun = await connection.say(b"GET /slow HTTP/1.1\r\n\r\n" + b"GET /early HTTP/1.1\r\n\r\n")
    assert connection.protocol.eof_received()
    connection.loop.advance(GRACE)
    assert not connection.transport.closing
    connection.service.gate.set()
    whole = begun + await connection.rest()
    assert STATUS.findall(whole) == [b"200"] and whole.endswith(b"got 0")
    assert connection.transport.closing


async def test_eof_ends_a_stream(connection: Connection) -> None:
    """It has no length to be cut short of, and to wait for it would be to hold it for nobody."""
    await connection.say(b"GET /endless HTTP/1.1\r\n\r\n")
    assert connection.protocol.eof_received() and not connection.transport.closing
    connection.loop.advance(GRACE)
    assert connection.transport.closing


async def test_trailers_are_not_headers(connection: Connection) -> None:
    head = b"POST /headers HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    await connection.say(head + b"2\r\nab\r\n0\r\nAuthorization: Bearer admin\r\nHost: evil\r\n\r\n")
    scopes = [scope for scope in connection.service.scopes if scope["path"] == "/headers"]
    assert [dict(scope["headers"]) for scope in scopes] == [{b"host": b"here", b"transfer-encoding": b"chunked"}]


async def test_http_1_0_gets_no_100_continue(connection: Connection) -> None:
    head = b"POST /list HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    assert b"100 Continue" not in await connection.say(head) + await connection.say(b"ab")


# refusals


@pytest.mark.parametrize(
    ("behind", "more"),
    [
        (GET[:10], b""),
        (b"POST /list HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", b""),
        (b"POST /list HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n"),
        (b"\0\0", b""),
    ],
    ids=["half a head", "half a body", "no chunk", "garbage"],
)
@pytest.mark.parametrize("under_way", [b"/held", b"/slow"])
@pytest.mark.parametrize("between", [0, 2])
async def test_refusal_follows_the_responses_that_are_due(
    between: int, under_way: bytes, behind: bytes, more: bytes, connection: Connection
) -> None:
    due = b"GET " + under_way + b" HTTP/1.1\r\nHost: here\r\n\r\n"
    answer = await connection.say(due + b"GET /early HTTP/1.1\r\n\r\n" * between + behind + more)
    connection.loop.advance(11)
    answer += await connection.say(INNER)
    connection.service.gate.set()
    answer += await connection.rest()
    assert STATUS.findall(answer) == [b"200"] * (1 + between)
    assert under_way + b"?" in answer
    assert connection.transport.closing and connection.service.asked == 1 + between
