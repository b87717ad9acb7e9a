import logging
from typing import Any

import pytest

from nacos_proxy.fastpath.limits import ConnectionLimits, LimitedProtocol
from nacos_proxy.request_context import Answered
from tests.unit.fastpath.drive import GET, Connection, Service, limited

LIMITS = ConnectionLimits(max_head=1000, read_timeout=10.0, max_connections=3)
LONG = b"X-Long: " + b"a" * 2000 + b"\r\n"


@pytest.fixture(params=[True, False], ids=["fast-path", "plain"])
def fast(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def connect(service: Service, fast: bool, **settings: Any) -> Connection:
    return limited(service, LIMITS, fast=fast, **settings)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(GET.replace(b"\r\n\r\n", b"\r\nMore: " + b"x" * 500 + b"\r\n\r\n"), 431), (b"no head\r\n\r\n", 400)],
)
async def test_a_refusal_is_in_the_access_log(sent: bytes, status: int, fast: bool) -> None:
    lines: list[Answered] = []
    connection = limited(Service(), ConnectionLimits(max_head=400), fast=fast, log=lines.append)
    assert (await connection.say(sent)).startswith(b"HTTP/1.1 %d " % status)
    assert lines == [Answered("", "", "", "", status, 0.0, 0, "127.0.0.1", "")]


async def test_max_head_answers_431_and_ends_the_connection(fast: bool) -> None:
    connection = connect(Service(), fast)
    answer = await connection.say(b"GET /list HTTP/1.1\r\nHost: here\r\n" + LONG + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert connection.transport.closing
    assert connection.service.asked == 0


async def test_max_head_counts_the_target(fast: bool) -> None:
    connection = connect(Service(), fast)
    answer = await connection.say(b"GET /list?" + b"a" * 2000 + b" HTTP/1.1\r\nHost: here\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_max_head_bounds_a_head_without_an_end(fast: bool) -> None:
    connection = connect(Service(), fast)
    answer = await connection.say(b"GET /list HTTP/1.1\r\nHost: here\r\nX-Long: ")
    pieces = 0
    while not answer:
        answer = await connection.say(b"a" * 100)
        pieces += 1
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert pieces <= 11
    assert await connection.say(b"\r\n\r\n") == b"", "nobody reads what comes behind"


async def test_max_head_does_not_count_the_body(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Le")
    answer = await connection.say(b"ngth: 5000\r\n\r\n" + b"a" * 5000)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not connection.transport.closing


async def test_read_timeout_ends_an_incomplete_head(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"GET /list HTTP/1.1\r\n")
    for letter in b"X: abcdef":  # a byte a second does not put it off
        connection.loop.advance(1.0)
        assert await connection.say(bytes([letter])) == b""
    connection.loop.advance(1.0)
    assert (await connection.rest()).startswith(b"HTTP/1.1 408 ")
    assert connection.transport.closing
    assert connection.service.asked == 0


async def test_read_timeout_starts_again_for_the_second_head(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.warm()
    connection.loop.advance(4.0)
    await connection.say(GET[:10])
    connection.loop.advance(9.9)
    assert not connection.transport.closing
    connection.loop.advance(0.2)
    assert (await connection.rest()).startswith(b"HTTP/1.1 408 ")
    assert connection.transport.closing


async def test_read_timeout_ends_with_a_head_in_two_packets(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(GET[:10])
    assert (await connection.say(GET[10:])).startswith(b"HTTP/1.1 200 ")
    connection.loop.advance(4.9)
    assert (await connection.say(GET)).startswith(b"HTTP/1.1 200 ")
    connection.loop.advance(4.9)
    assert (await connection.say(GET)).startswith(b"HTTP/1.1 200 ")
    connection.loop.advance(4.9)
    assert not connection.transport.closing


async def test_read_timeout_ends_a_body_that_stalls_but_not_a_slow_one(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"POST /list HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n")
    for _ in range(5):
        connection.loop.advance(9.0)
        await connection.say(b"a")
    assert not connection.transport.closing
    connection.loop.advance(10.1)
    assert (await connection.rest()).startswith(b"HTTP/1.1 408 ")
    assert connection.transport.closing
    connection.protocol.connection_lost(None)
    await connection.rest()


async def test_read_timeout_does_not_run_while_the_app_works(fast: bool) -> None:
    service = Service()
    connection = connect(service, fast)
    await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n")
    connection.loop.advance(1000.0)
    assert not connection.transport.closing
    service.gate.set()
    assert (await connection.rest()).startswith(b"HTTP/1.1 200 ")


async def test_keep_alive_timeout_ends_a_connection_without_a_request(fast: bool) -> None:
    connection = connect(Service(), fast)
    connection.loop.advance(4.9)
    assert not connection.transport.closing
    connection.loop.advance(0.2)
    assert connection.transport.closing
    assert await connection.rest() == b""


async def test_max_connections_serves_that_many_and_refuses_the_next(fast: bool) -> None:
    connection = connect(Service(), fast)
    others = [connection.open() for _ in range(3)]
    for protocol, transport in others[:2]:
        protocol.data_received(GET)
        await connection.rest()
        assert transport.take().startswith(b"HTTP/1.1 200 ")
    refused, transport = others[2]
    assert transport.take().startswith(b"HTTP/1.1 503 ")
    assert transport.closing
    refused.connection_lost(None)
    others[0][0].connection_lost(None)
    protocol, transport = connection.open()
    protocol.data_received(GET)
    await connection.rest()
    assert transport.take().startswith(b"HTTP/1.1 200 "), "room again"


async def test_refusal_of_garbage_follows_the_response_that_is_due(fast: bool) -> None:
    service = Service()
    connection = connect(service, fast)
    assert await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n" + b"\0\0\r\n\r\n") == b""
    assert await connection.say(b"more of it") == b""
    service.gate.set()
    answer = await connection.rest()
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b"HTTP/1.1 ") == 1
    assert connection.transport.closing


async def test_refusal_of_a_malformed_body_is_400(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"POST /list HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert (await connection.say(b"zz\r\n")).startswith(b"HTTP/1.1 400 ")
    assert connection.transport.closing
    connection.protocol.connection_lost(None)
    await connection.rest()


async def test_upgrade_to_http_2_is_ignored_without_a_warning(fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    connection = connect(Service(), fast)
    head = b"GET /list HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    assert (await connection.say(head)).startswith(b"HTTP/1.1 200 ")
    assert (await connection.say(GET)).startswith(b"HTTP/1.1 200 ")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_limits_have_defaults() -> None:
    assert LimitedProtocol.limits == ConnectionLimits(65_536, 10.0, 0)


# a head and its body


async def test_coalescing_transport_writes_a_head_and_its_body_at_once(fast: bool) -> None:
    connection = connect(Service(), fast)
    for number in (1, 2):
        assert (await connection.say(b"POST /list HTTP/1.1\r\nHost: here\r\n\r\n")).endswith(b"got 0")
        assert connection.transport.writes == number


async def test_coalescing_transport_does_not_wait_for_a_later_body(fast: bool) -> None:
    connection = connect(Service(), fast)
    head = await connection.say(b"POST /slow HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n")
    connection.service.gate.set()
    assert (await connection.rest()).startswith(b"/slow")
    assert connection.transport.closing


async def test_coalescing_transport_writes_a_head_without_a_body_before_the_next_response(fast: bool) -> None:
    connection = connect(Service(), fast)
    get = await connection.warm()
    connection.loop.busy = True
    head = await connection.say(GET.replace(b"GET", b"HEAD"))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n")
    assert await connection.say(GET) == get


async def test_keep_alive_timeout_reads_waiting_input_first_after_the_process_stood_still(
    fast: bool,
) -> None:
    connection = connect(Service(), fast, timeout_keep_alive=5)
    assert (await connection.say(GET)).startswith(b"HTTP/1.1 200 ")
    connection.loop.jump(60)
    connection.loop.advance(0.1)
    assert not connection.transport.closing
    assert (await connection.say(GET)).startswith(b"HTTP/1.1 200 ")
    connection.loop.jump(60)
    connection.loop.advance(1.1)
    assert connection.transport.closing, "nothing came"


async def test_read_timeout_reads_waiting_input_first_after_the_process_stood_still(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(GET[:20])
    connection.loop.jump(60)
    connection.loop.advance(0.1)
    assert (await connection.say(GET[20:])).startswith(b"HTTP/1.1 200 ")
    await connection.say(GET[:20])
    connection.loop.jump(60)
    connection.loop.advance(1.1)
    assert (await connection.rest()).startswith(b"HTTP/1.1 408 ")


# bodies that drip, answers that nobody reads


async def test_min_body_rate_ends_a_body_that_drips(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"POST /list HTTP/1.1\r\nHost: here\r\nContent-Length: 10000\r\n\r\n")
    for _ in range(9):
        connection.loop.advance(6.0)
        assert await connection.say(b"a") == b""
    connection.loop.advance(6.1)
    assert (await connection.rest()).startswith(b"HTTP/1.1 408 ")
    assert connection.transport.closing


async def test_min_body_rate_gives_a_large_body_its_time(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"POST /list HTTP/1.1\r\nHost: here\r\nContent-Length: 200000\r\n\r\n")
    answer = b""
    for _ in range(40):
        connection.loop.advance(4.0)
        answer += await connection.say(b"a" * 5000)
    assert answer.endswith(b"got 200000") and not connection.transport.closing


async def test_write_timeout_ends_a_connection_whose_response_is_not_read(fast: bool) -> None:
    connection = connect(Service(), fast)
    await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n")
    connection.transport.fill(100_000)
    connection.loop.advance(29.0)
    connection.transport.unsent = 99_999
    connection.loop.advance(30.0)
    assert not connection.transport.aborted, "it reads, if slowly"
    connection.loop.advance(30.1)
    assert connection.transport.aborted
    connection.protocol.connection_lost(None)
    connection.service.gate.set()
    await connection.rest()
    assert connection.state.tasks == set()


async def test_write_timeout_ends_when_the_response_is_read(fast: bool) -> None:
    connection = connect(Service(), fast)
    connection.service.gate.set()
    assert await connection.say(b"GET /held HTTP/1.1\r\nHost: here\r\n\r\n")
    connection.transport.fill(100_000)
    connection.transport.empty()
    assert set(connection.loop.armed) == {5.0}, "that of a connection without a request"


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"], ids=["kept alive", "closed"])
async def test_write_timeout_applies_to_a_closing_connection(more: bytes, fast: bool) -> None:
    connection = connect(Service(), fast)
    connection.transport.unsent = 1000  # too little to hold up writing
    await connection.say(b"GET /early HTTP/1.1\r\nHost: here\r\n" + more + b"\r\n")
    connection.loop.advance(5.1)
    assert connection.transport.closing and not connection.transport.aborted
    connection.loop.advance(30.1)
    assert connection.transport.aborted


async def test_max_head_counts_two_heads_in_one_chunk_separately(fast: bool) -> None:
    connection = connect(Service(), fast)
    long = b"GET /early HTTP/1.1\r\nHost: here\r\nX: " + b"a" * 600 + b"\r\n\r\n"
    both = long * 4
    answer = b""
    for at in range(0, len(both), 900):
        answer += await connection.say(both[at : at + 900])
    assert answer.count(b"HTTP/1.1 200 ") == 4
