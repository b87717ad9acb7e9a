import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from nacos_proxy.fastpath.protocol import make_protocol
from nacos_proxy.request_context import Answered
from tests.unit.fastpath.drive import GET, LISTS, Connection, Service, settle

KEEP_ALIVE = 5.0


async def test_head_stage_sends_the_bytes_that_the_app_sent_without_asking_it() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.say(GET)
    assert await connection.say(GET) == first
    connection.protocol.data_received(GET)
    assert connection.transport.take() == first, "written at once, without a task"
    assert service.asked == 2
    assert service.table.hit_counts[(LISTS, 200)].head == 1


async def test_head_stage_is_shared_by_all_connections() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.warm()
    protocol, transport = connection.open()
    protocol.data_received(GET)
    assert transport.take() == first


async def test_head_stage_shows_a_change_to_the_next_request() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    service.change()
    assert b"version 2" in await connection.say(GET)
    assert b"version 2" in await connection.say(GET)
    assert service.asked == 3


async def test_head_stage_does_not_send_a_stale_response() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    service.now = service.valid_until
    await connection.say(GET)
    assert service.asked == 3


async def test_head_stage_updates_age_and_ttl() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    service.now += 4
    answer = await connection.say(GET)
    assert b"\r\nage: 5\r\n" in answer
    assert b"; ttl=6\r\n" in answer
    assert service.asked == 2


async def test_head_stage_sends_the_server_s_current_date() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    await connection.say(GET)
    connection.state.default_headers = [(b"date", b"later"), (b"Server", b"other")]
    assert (await connection.say(GET)).startswith(b"HTTP/1.1 200 OK\r\ndate: later\r\nserver: other\r\nage: ")
    assert service.asked == 2


async def test_head_stage_repeats_not_modified() -> None:
    service = Service()
    connection = Connection(service)
    head = b'GET /list HTTP/1.1\r\nHost: here\r\nIf-None-Match: "1"\r\n\r\n'
    first = await connection.warm(head)
    assert first.startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert await connection.say(head) == first
    assert service.asked == 2


async def test_head_stage_calls_make_body_each_time_and_sends_its_length() -> None:
    service = Service()
    connection = Connection(service)
    head = b"GET /draw HTTP/1.1\r\nHost: here\r\n\r\n"
    for n in range(1, 40):
        answer = await connection.say(head)
        body = b"x" * (n % 12)
        assert b"content-length: %d\r\n" % len(body) in answer
        assert answer.endswith(b"\r\n\r\n" + body)
    assert service.asked == 2


async def test_head_stage_counts_requests() -> None:
    connection = Connection(Service())
    for _ in range(5):
        await connection.say(GET)
    assert connection.state.total_requests == 5


LINE = Answered("GET", "/list", "name=%20a", "/list", 200, 0.0, 50, "127.0.0.1", "", repeated=True)


@pytest.mark.parametrize("more", [b"", b"Other: 1\r\n"], ids=["head stage", "target stage"])
async def test_make_protocol_logs_each_repeated_response(more: bytes) -> None:
    service, lines = Service(), list[Answered]()
    connection = Connection(service, log=lines.append)
    head = b"GET /list?name=%20a HTTP/1.1\r\nHost: here\r\n\r\n"
    await connection.warm(head)
    assert lines == [], "the app's own log has these"
    answer = await connection.say(head.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n"))
    await connection.say(b"GET /draw HTTP/1.1\r\nHost: here\r\n\r\n")
    assert lines == [LINE._replace(size=len(answer.partition(b"\r\n\r\n")[2]))]


# request ids


async def test_target_stage_sends_the_request_id_of_its_client_back() -> None:
    service, lines = Service(), list[Answered]()
    connection = Connection(service, log=lines.append)
    plain = await connection.warm()
    for n in range(3):
        answer = await connection.say(numbered(7, b"X-Request-Id: it-%d\r\n" % n))
        assert answer == plain.replace(b"\r\n", b"\r\nx-request-id: it-%d\r\n" % n, 1)
    assert service.asked == 2
    assert [line.id for line in lines] == ["it-0", "it-1", "it-2"]


async def test_head_stage_sends_the_request_id_of_each_request_back() -> None:
    service, lines = Service(), list[Answered]()
    connection = Connection(service, log=lines.append)
    plain = await connection.warm()
    for n in range(4):
        connection.protocol.data_received(GET.replace(b"\r\n\r\n", b"\r\nX-REQUEST-ID: it-%d \r\n\r\n" % n))
        answer = connection.transport.take()
        assert answer == plain.replace(b"\r\n", b"\r\nx-request-id: it-%d\r\n" % n, 1)
    assert (service.table.hit_counts[(LISTS, 200)].target, service.table.hit_counts[(LISTS, 200)].head) == (0, 4)
    assert [line.id for line in lines] == ["it-0", "it-1", "it-2", "it-3"]
    assert b"x-request-id" not in await connection.say(GET)


@pytest.mark.parametrize("field", [b"RequestId: %d", b"traceparent:00-%d-01", b"x-b3-traceid: %d\r\nX-B3-SpanId: %d"])
async def test_head_stage_repeats_a_response_for_the_next_id_of_an_sdk_or_a_tracer(field: bytes) -> None:
    service = Service()
    connection = Connection(service)
    heads = [GET.replace(b"\r\n\r\n", b"\r\n" + field.replace(b"%d", b"%d" % n) + b"\r\n\r\n") for n in range(6)]
    first = await connection.say(heads[0])
    for head in heads[1:]:
        assert await connection.say(head) == first
    assert service.asked == 2
    assert (service.table.hit_counts[(LISTS, 200)].target, service.table.hit_counts[(LISTS, 200)].head) == (0, 4)


async def test_head_stage_leaves_an_id_that_the_parser_refuses_to_the_parser() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    answer = await connection.say(GET.replace(b"\r\n\r\n", b"\r\nRequestId: a\0b\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("other", [b"", b"Number: 1\r\n"], ids=["head stage", "target stage"])
async def test_a_request_id_that_could_do_harm_is_not_sent_back(other: bytes) -> None:
    connection = Connection(Service())
    plain = await connection.warm()
    for id in (b"a b", b"\xe4", b"x" * 129, b'"'):
        head = GET.replace(b"\r\n\r\n", b"\r\nX-Request-Id: " + id + b"\r\n" + other + b"\r\n")
        assert await connection.say(head) == plain


# heads that are another each time


def numbered(number: int, more: bytes = b"") -> bytes:
    return unique(GET, number).replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n")


async def test_target_stage_answers_a_head_that_differs_each_time_without_a_task() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.say(numbered(1))
    assert await connection.say(numbered(2)) == first
    for n in range(3, 9):
        connection.protocol.data_received(numbered(n))
        assert connection.transport.take() == first, "written at once"
    assert service.asked == 2
    assert (service.table.hit_counts[(LISTS, 200)].target, service.table.hit_counts[(LISTS, 200)].head) == (6, 0)
    assert connection.state.total_requests == 8
    assert connection.loop.armed == [KEEP_ALIVE]


async def test_target_stage_offers_the_response_under_the_head_key() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    for _ in range(4):
        await connection.say(numbered(1))
    hits = service.table.hit_counts[(LISTS, 200)]
    assert (hits.target, hits.head, service.asked) == (2, 2, 2)


async def test_one_chunk_with_many_known_targets_is_answered_in_order_at_once() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.warm()
    other = first.replace(b"name=a", b"name=b")
    await connection.warm(GET.replace(b"name=a", b"name=b"))
    connection.protocol.data_received(GET + GET.replace(b"name=a", b"name=b") + GET)
    assert connection.transport.take() == first + other + first


async def test_target_stage_shows_a_change_to_the_next_request() -> None:
    service = Service()
    connection = Connection(service)
    for n in range(4):
        await connection.say(numbered(n))
    service.change()
    assert b"version 2" in await connection.say(numbered(9))


@pytest.mark.parametrize(
    "more",
    [
        b"Upgrade: h2c\r\n",
        b"Cache-Control: max-age=1\r\n",
        b"Content-Length: 0\r\n",
        b"Authorization: Bearer other\r\n",
        b"accessToken: other\r\n",
        b"Host: there\r\n",
    ],
)
async def test_target_stage_differs_by_the_headers_in_vary(more: bytes) -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    assert await connection.say(numbered(1, more)) != b""
    assert service.asked == 3


@pytest.mark.parametrize("more", [b"Connection: x\r\n", b"Connection: close, x\r\n"])
async def test_target_stage_passes_on_what_the_server_must_see(more: bytes) -> None:
    connection = Connection(Service())
    await connection.warm()
    connection.protocol.data_received(numbered(1, more))
    assert connection.transport.take() == b""
    assert await connection.rest() != b""


async def test_target_stage_passes_on_a_head_that_is_too_long() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    connection.protocol.data_received(numbered(1, b"X: " + b"x" * 9000 + b"\r\n"))
    assert connection.transport.take() == b""
    assert await connection.rest() != b""


# what is parsed


CLOSING = b"GET /list HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("new", [b"", b"RequestId: %d\r\n", b"Number: %d\r\n"], ids=["same", "head", "target"])
async def test_connection_close_closes_the_connection_behind_a_repeated_response(new: bytes) -> None:
    service = Service()
    connection = Connection(service)
    first = None
    for n in range(5):
        connection.protocol, connection.transport = connection.open()
        head = CLOSING.replace(b"\r\n\r\n", b"\r\n" + new.replace(b"%d", b"%d" % n) + b"\r\n")
        answer = await connection.say(head)
        assert answer.count(b"\r\nconnection: close\r\n") == 1
        assert answer == (first := first or answer)
        assert connection.transport.closing
    assert service.asked == 2
    assert b"connection" not in await connection.warm(CLOSING.replace(b"Connection: close\r\n", b""))


async def test_connection_close_keeps_what_is_behind_it_from_the_app() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm(CLOSING.replace(b"Connection: close\r\n", b""))
    post = b"POST /plain HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"
    answer = await connection.say(CLOSING + post)
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert connection.transport.closing
    assert [scope["method"] for scope in service.scopes if scope["path"] == "/plain"] == []


async def test_proxy_connection_close_closes_the_connection() -> None:
    connection = Connection(Service())
    await connection.warm()
    for _ in range(3):
        connection.protocol, connection.transport = connection.open()
        answer = await connection.say(GET.replace(b"\r\n\r\n", b"\r\nProxy-Connection: close\r\n\r\n"))
        assert b"\r\nconnection: close\r\n" in answer
        assert connection.transport.closing


async def test_http_1_0_closes_the_connection_each_time() -> None:
    service = Service()
    connection = Connection(service)
    for _ in range(4):
        connection.protocol, connection.transport = connection.open()
        answer = await connection.say(b"GET /list HTTP/1.0\r\nHost: here\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert connection.transport.closing
    assert service.table.hits_of(LISTS, 200).head == 0


@pytest.mark.parametrize(
    "head",
    [
        b"HEAD /list HTTP/1.1\r\nHost: here\r\n\r\n",
        b"POST /list HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nUpgrade: h2c\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nCache-Control: max-age=1\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nProxy-Connection: keep-alive\r\n\r\n",
        b"GET /plain HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET /list HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
    ],
)
async def test_bypass_headers_always_reach_the_parser(head: bytes) -> None:
    service = Service()
    connection = Connection(service)
    for _ in range(4):
        await connection.say(head)
    assert service.table.hits_of(LISTS, 200).head == 0
    assert connection.state.total_requests == 4


async def test_several_heads_in_one_chunk_are_parsed() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.warm()
    for _ in range(3):
        assert await connection.say(GET + GET) == first + first
    assert service.table.hits_of(LISTS, 200).head == 0


async def test_a_head_in_pieces_is_parsed() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.warm()
    assert await connection.say(GET[:20]) == b""
    assert await connection.say(GET[20:]) == first
    assert service.table.hits_of(LISTS, 200).head == 0
    assert await connection.say(GET) == first
    assert service.table.hits_of(LISTS, 200).head == 1


async def test_a_known_head_that_is_another_request_s_body_is_no_request() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    await connection.say(b"POST /plain HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(GET))
    assert (await connection.say(GET)).endswith(b"got %d" % len(GET))


async def test_a_known_head_that_is_a_body_nobody_waits_for_is_no_request() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    early = b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % (2 * len(GET))
    assert await connection.say(early) != b""
    assert await connection.say(GET) == b""
    assert await connection.say(GET) == b""
    assert await connection.say(GET) != b""


async def test_a_known_head_behind_a_part_of_another_is_no_request() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    for _ in range(3):
        assert await connection.say(GET[:-2]) == b""
        assert (await connection.say(b"X: " + GET)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_known_head_behind_a_request_in_progress_waits_for_its_turn() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.warm()
    assert await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n") == b""
    assert await connection.say(GET) == b""
    service.gate.set()
    both = await connection.rest()
    assert both.startswith(b"HTTP/1.1 200 OK\r\n")
    assert both.endswith(first)
    assert await connection.say(GET) == first


async def test_head_stage_waits_while_the_client_does_not_read() -> None:
    service = Service()
    connection = Connection(service)
    first = await connection.warm()
    connection.transport.fill()
    assert await connection.say(GET) == b""
    assert await connection.say(GET) == b""
    assert len(connection.protocol.pipeline) == 1, "the second waits"
    connection.transport.empty()
    assert await connection.rest() == first + first
    assert connection.transport.reading


async def test_head_key_differs_by_unix_socket_and_tls() -> None:
    service = Service()
    connection = Connection(service)
    for extra in ({}, {"sockname": "/run/socket", "peername": ""}, {"sslcontext": object()}):
        connection.protocol, connection.transport = connection.open(**extra)
        await connection.warm()
        await connection.say(GET)
    assert service.asked == 6
    assert service.table.hits_of(LISTS, 200).head == 3


async def test_nothing_is_written_to_a_connection_that_is_closing() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    connection.transport.close()
    connection.protocol.data_received(GET)
    assert service.table.hits_of(LISTS, 200).head == 0


async def test_after_a_parse_error_the_connection_is_closed_as_ever() -> None:
    connection = Connection(Service())
    await connection.warm()
    assert (await connection.say(b"NONSENSE\r\n\r\n")).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert connection.transport.closing


# time-outs and the end


async def test_keep_alive_counts_from_the_last_response() -> None:
    connection = Connection(Service())
    await connection.warm()
    for _ in range(4):
        connection.loop.advance(KEEP_ALIVE - 1)
        await connection.say(GET)
    connection.loop.advance(KEEP_ALIVE - 0.01)
    assert not connection.transport.closing
    connection.loop.advance(0.01)
    assert connection.transport.closing


async def test_keep_alive_ends_a_connection_with_only_prepared_responses() -> None:
    connection = Connection(Service())
    await connection.warm()
    connection.protocol, connection.transport = connection.open()
    await connection.say(GET)
    connection.loop.advance(KEEP_ALIVE)
    assert connection.transport.closing


async def test_keep_alive_uses_one_timer_for_many_prepared_responses() -> None:
    connection = Connection(Service())
    await connection.warm()
    made = len(connection.loop.timers)
    for _ in range(100):
        await connection.say(GET)
    assert len(connection.loop.timers) == made
    assert len(connection.loop.armed) == 1


async def test_keep_alive_of_a_prepared_response_does_not_end_a_request_in_progress() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    await connection.say(GET)
    await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n")
    connection.loop.advance(10 * KEEP_ALIVE)
    assert not connection.transport.closing
    service.gate.set()
    assert await connection.rest() != b""
    assert connection.loop.armed == [connection.loop.now + KEEP_ALIVE]


async def test_shutdown_closes_an_idle_connection_at_once() -> None:
    connection = Connection(Service())
    await connection.warm()
    await connection.say(GET)
    connection.protocol.shutdown()
    assert connection.transport.closing


async def test_shutdown_lets_a_request_in_progress_end_and_then_closes() -> None:
    service = Service()
    connection = Connection(service)
    await connection.warm()
    await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n")
    connection.protocol.shutdown()
    assert not connection.transport.closing
    service.gate.set()
    assert b"\r\nconnection: close\r\n" in await connection.rest()
    assert connection.transport.closing


async def test_a_lost_connection_leaves_nothing_behind() -> None:
    connection = Connection(Service())
    await connection.warm()
    await connection.say(GET)
    connection.protocol.connection_lost(None)
    assert connection.state.connections == set()
    assert connection.loop.armed == []


# the same bytes as without the fast path, over real sockets

HEADERS = st.lists(
    st.sampled_from(
        [
            b"Host: here\r\n",
            b"host:  there \r\n",
            b"User-Agent: Nacos-Java-Client:v2.1.0\r\n",
            b"RequestId: 1\r\n",
            b'If-None-Match: "1"\r\n',
            b"Connection: keep-alive\r\n",
            b"Connection: close\r\n",
            b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
            b"Cache-Control: no-cache\r\n",
            b"Expect: 100-continue\r\n",
            b"X-Forwarded-For: 10.0.0.1\r\n",
            b"X-Long: " + b"x" * 9000 + b"\r\n",
            b"Content-Length: 0\r\n",
            b"no colon\r\n",
            b" folded\r\n",
            b"X: \x00\r\n",
            b"Y: bare line feed\n",
        ]
    ),
    max_size=3,
)
HELD = b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n"
OLD = b"GET /list HTTP/1.0\r\nHost: here\r\n\r\n"
CLOSING = b"GET /list HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
BODIES = st.sampled_from(
    [
        (b"", b""),
        (b"Content-Length: 3\r\n", b"abc"),
        (b"Content-Length: %d\r\n" % len(GET), GET),
        (b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n"),
        (b"Content-Length: 10\r\n", b"short"),
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, most often one that is near to what is repeatable."""
    if draw(st.integers(0, 2)):
        return draw(st.sampled_from([GET, GET, GET, HELD, OLD, CLOSING]))
    method = draw(st.sampled_from([b"GET", b"GET", b"GET", b"GET", b"HEAD", b"POST", b"BREW", b""]))
    target = draw(
        st.sampled_from(
            [b"/list", b"/list", b"/lis%74", b"/draw", b"/plain", b"/held", b"/early", b"*", b"http://x/list"]
        )
    )
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0", b"2.0"]))
    headers = draw(HEADERS)
    if version != b"1.1":  # uvicorn sends HTTP/1.0 clients a 100, `Http1Protocol` does not (`test_http1`)
        headers = [header for header in headers if not header.startswith(b"Expect")]
    announced, body = draw(BODIES) if draw(st.booleans()) else (b"", b"")
    return b"%b %b HTTP/%b\r\n%b%b\r\n%b" % (method, target, version, b"".join(headers), announced, body)


def unique(request: bytes, number: int) -> bytes:
    """With a header that is new in each request, and that nothing knows."""
    return request.replace(b"\r\n", b"\r\nNumber: %d\r\n" % number, 1)


ODD = [b"\r\n", b"\r", b"\n", b"\x16\x03\x01", b"GET ", GET[:-2], GET[:-1]]


@st.composite
def conversations(draw: st.DrawFn) -> list[Any]:
    """Pieces of bytes, what happens in between ('change', 'open', 'reconnect'), and seconds that pass."""
    pool = draw(st.lists(requests(), min_size=1, max_size=2))
    steps: list[Any] = []
    for _ in range(draw(st.integers(1, 6))):
        request = draw(st.sampled_from(pool))
        match draw(st.sampled_from(["repeat", "repeat", "unique", "pieces", "pipeline", "odd", "step"])):
            case "repeat":
                steps += [request] * draw(st.integers(1, 4))
            case "unique":
                steps += [unique(request, n) for n in range(draw(st.integers(2, 5)))]
            case "pieces":
                cut = draw(st.integers(1, max(1, len(request) - 1)))
                steps += [request[:cut], request[cut:]] * draw(st.integers(1, 3))
            case "pipeline":
                steps += [request * draw(st.integers(2, 3))] * draw(st.integers(1, 3))
            case "odd":
                steps += [draw(st.sampled_from(ODD)), request]
            case _:
                steps += [draw(st.sampled_from(["change", "open", "reconnect", 0.5, 3, 20])), request]
    return steps


class Side:
    """A server and one client of it, on real sockets of this host; `exchange` is what comes back for a piece."""

    def __init__(self, fast: bool) -> None:
        self.service = Service()
        app = self.service.app() if fast else self.service
        config = Config(app, ws="none", lifespan="off", log_config=None)  # type: ignore[arg-type]
        config.load()
        made = make_protocol(self.service.table, self.service.clock) if fast else HttpToolsProtocol
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"today"), *config.encoded_headers]
        self.received = 0
        side = self

        class Counting(made):  # type: ignore[misc, valid-type]
            def data_received(self, data: bytes) -> None:
                try:
                    super().data_received(data)
                finally:
                    side.received += len(data)

        self._make: Callable[[], HttpToolsProtocol] = lambda: Counting(config, self.state, {})

    async def start(self) -> None:
        self.server = await asyncio.get_running_loop().create_server(self._make, "127.0.0.1", 0)
        await self.connect()

    async def connect(self) -> None:
        self.client = socket.socket()
        self.client.setblocking(False)
        before = len(self.state.connections)
        await asyncio.get_running_loop().sock_connect(self.client, self.server.sockets[0].getsockname())
        while len(self.state.connections) == before:
            await asyncio.sleep(0)

    async def exchange(self, data: bytes) -> bytes:
        due = self.received + len(data)
        await asyncio.get_running_loop().sock_sendall(self.client, data)
        while self.state.connections and self.received < due and self._reading():
            await asyncio.sleep(0)
        await settle()
        return self._read()

    def _reading(self) -> bool:
        return any(not c.flow.read_paused and not c.transport.is_closing() for c in self.state.connections)

    def _read(self) -> bytes:
        read = b""
        while True:
            try:
                piece = self.client.recv(1 << 16)
            except BlockingIOError:
                return read
            except ConnectionError:
                return read + b"<reset>"
            if not piece:
                return read + b"<end>"
            read += piece

    async def reconnect(self) -> None:
        await self.hang_up()
        self.service.gate.clear()
        await self.connect()

    async def hang_up(self) -> None:
        self.service.gate.set()  # where requests wait for each other the server does not read, nor see us leave
        self.client.close()
        while self.state.connections:
            await asyncio.sleep(0)

    async def stop(self) -> None:
        await self.hang_up()
        self.server.close()
        await self.server.wait_closed()
        await settle()


async def converse(side: Side, steps: list[Any]) -> list[bytes]:
    await side.start()
    said: list[bytes] = []
    try:
        for step in steps:
            if isinstance(step, bytes):
                said.append(await side.exchange(step))
                if said[-1].endswith((b"<end>", b"<reset>")):
                    await side.reconnect()
            elif step == "change":
                side.service.change()
            elif step == "open":
                side.service.gate.set()
                said.append(await side.exchange(b""))
                side.service.gate.clear()
            elif step == "reconnect":
                await side.reconnect()
            else:
                side.service.now += step
    finally:
        await side.stop()
    return said


LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", LOOPS, ids=["asyncio", "uvloop"])
@given(steps=conversations())
def test_fast_protocol_sends_the_same_bytes_as_uvicorn_whatever_is_sent(
    new_loop: Callable[[], asyncio.AbstractEventLoop], steps: list[Any]
) -> None:
    loop = new_loop()
    try:
        with_fast_path = loop.run_until_complete(converse(Side(fast=True), steps))
        without = loop.run_until_complete(converse(Side(fast=False), steps))
    finally:
        loop.close()
    assert with_fast_path == without


async def test_bytes_that_are_not_http_find_no_response() -> None:
    """Neither those that an answer is kept by beside its head, nor a head with the name of another kind of socket."""
    service = Service()
    connection = Connection(service)
    others = [{"sslcontext": True}, {"sockname": "/run/it", "peername": ""}]
    for extra in others:
        connection.protocol, connection.transport = connection.open(**extra)
        await connection.warm()
    connection.protocol, connection.transport = connection.open()
    await connection.warm()
    asked = service.asked
    for kind in (b"http", b"https", b"http unix", b"https unix"):
        for said in (b"\n".join((kind, b"/list", b"name=a", b"host", b"here")), GET + kind):
            connection.protocol, connection.transport = connection.open()
            answer = await connection.say(said)
            assert answer.count(b"HTTP/1.1 200 ") == said.startswith(GET), said
    assert service.asked == asked


async def test_upgrade_gets_prepared_responses_too() -> None:
    connection = Connection(Service())
    head = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n")
    first = await connection.warm(head)
    assert await connection.say(head) == first
    assert connection.service.asked == 2
    (hits,) = connection.service.table.hit_counts.values()
    assert hits.head == 1
