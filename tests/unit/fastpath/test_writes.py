"""Writes that are begun again without their parse and without the app."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.fastpath.asgi import Message, Receive, Scope, Send
from nacos_proxy.fastpath.writes import LEFT, MAX_LENGTH, MAX_WRITES, KnownWrites, key_and_id, key_without
from nacos_proxy.model.limits import LENIENT, NACOS, Rules
from nacos_proxy.request_context import Answered, current_request
from nacos_proxy.wire.http import REMEMBER, HttpReply, RouteName
from tests.unit.fastpath.drive import Connection, Service, settle

ROUTE = RouteName("v1", "PUT /beat")
HEAD = b"PUT /beat?ip=1 HTTP/1.1\r\nHost: here\r\nRequestId: %d\r\nContent-Length: 0\r\n\r\n"
DONE = HttpReply(200, "text/plain", b"ok")


class Beat:
    """A `Repeatable` that the test answers. `ids`: those of the requests that it began for."""

    route, method, path, query = ROUTE, "PUT", "/beat", "ip=1"

    def __init__(self) -> None:
        self.rules: Rules = NACOS
        self.answers: list[Callable[[HttpReply], object]] = []
        self.ids: list[str] = []
        self.hops: list[Sequence[str]] = []
        self.willing = True

    def begin(self, answered: Callable[[HttpReply], object]) -> bool:
        if self.willing:
            request = current_request()
            self.ids.append("" if request is None else request.id)
            self.hops.append(() if request is None else request.hops)
            self.answers.append(answered)
        return self.willing

    def answer(self, reply: HttpReply = DONE) -> None:
        self.answers.pop(0)(reply)


class World:
    """An app that offers each write as `beat`, and connections to it. `asked`: how many requests reached the app."""

    def __init__(self) -> None:
        self.beat = Beat()
        self.asked = 0
        self.before_offer: Callable[[], object] = lambda: None
        self.rules: Rules = NACOS
        self.counted: list[tuple[RouteName, int, float]] = []
        self.logged: list[Answered] = []
        self.service = Service()
        count = lambda *one: self.counted.append(one)  # noqa: E731
        self.writes = KnownWrites(lambda: self.rules, count, self.service.clock)
        self.connection = Connection(self.service, self, log=self.logged.append, writes=self.writes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        self.before_offer()
        if REMEMBER in scope:
            scope[REMEMBER](self.beat)
        headers = [(b"x-request-id", b"theirs"), *DONE.raw_headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": DONE.body})

    async def know(self, request: bytes = HEAD) -> bytes:
        """Sends a write until it is known. Returns the app's answer."""
        for number in range(2):
            answer = await self.connection.say(request % number if b"%d" in request else request)
        return answer

    def begin(self, number: int = 7) -> None:
        self.connection.protocol.data_received(HEAD % number)

    async def answered(self) -> bytes:
        self.beat.answer()
        return await self.connection.rest()


def with_id(answer: bytes, id: str) -> bytes:
    return re.sub(rb"x-request-id: [^\r]*", b"x-request-id: " + id.encode(), answer)


async def test_a_known_write_is_begun_again_without_the_app() -> None:
    world = World()
    answer = await world.know()
    world.begin()
    assert (world.asked, len(world.beat.answers)) == (2, 1)
    assert await world.connection.rest() == b"", "its answer is still to come"
    assert await world.answered() == with_id(answer, world.beat.ids[0])
    assert world.connection.transport.writes == 3, "head and body in one"


async def test_a_write_is_known_from_the_third_time_on() -> None:
    world = World()
    for number in range(4):
        await world.connection.say(HEAD % number)
        if world.beat.answers:
            await world.answered()
    assert world.asked == 2


async def test_a_known_write_keeps_its_own_request_id_and_else_gets_one() -> None:
    world = World()
    request = b"PUT /beat HTTP/1.1\r\nHost: here\r\nX-Request-Id: id-%d\r\n\r\n"
    await world.know(request)
    answer = await world.connection.say(request % 9)
    assert answer == b"" and world.beat.ids == ["id-9"]
    assert b"\r\nx-request-id: id-9\r\n" in await world.answered()


async def test_a_known_write_counts_and_is_logged_like_any_other() -> None:
    world = World()
    await world.know()
    world.begin()
    world.service.now += 0.25
    await world.answered()
    assert world.counted == [(ROUTE, 200, 0.25)]
    about = ("PUT", "/beat", "ip=1", "/beat", 200, 0.25, 2, "127.0.0.1", world.beat.ids[0])
    assert world.logged == [Answered(*about)]
    assert world.connection.state.total_requests == 3


async def test_a_known_write_goes_to_the_app_under_other_rules() -> None:
    world = World()
    await world.know()
    world.rules = LENIENT
    await world.connection.say(HEAD % 8)
    assert world.asked == 3 and not world.beat.answers


async def test_a_known_write_goes_to_the_app_if_it_takes_more_steps() -> None:
    world = World()
    await world.know()
    world.beat.willing = False
    assert (await world.connection.say(HEAD % 8)).endswith(b"ok")
    assert world.asked == 3


async def test_a_repeated_write_names_the_proxies_that_its_request_has_passed() -> None:
    world = World()
    request_ = b"PUT /beat HTTP/1.1\r\nHost: here\r\nX-Nacos-Proxy-Hops: a1, b2\r\n\r\n"
    for _ in range(2):
        await world.connection.say(request_)
    world.connection.protocol.data_received(request_)
    assert world.beat.hops == [("a1", "b2")]
    await world.answered()


async def test_a_known_write_is_forgotten_when_rights_change() -> None:
    world = World()
    await world.know()
    assert len(world.writes) == 1
    world.writes.clear()
    await world.connection.say(HEAD % 8)
    assert world.asked == 3


async def test_a_write_that_passed_access_control_before_rights_changed_is_not_known() -> None:
    world = World()
    await world.connection.say(HEAD % 1)
    world.before_offer = world.writes.clear
    assert (await world.connection.say(HEAD % 2)).endswith(b"ok")
    assert len(world.writes) == 0


async def test_a_repeated_write_has_a_new_id_if_its_own_could_do_harm() -> None:
    world = World()
    request_ = b"PUT /beat HTTP/1.1\r\nHost: here\r\nX-Request-Id: a b\r\n\r\n"
    for _ in range(2):
        await world.connection.say(request_)
    world.connection.protocol.data_received(request_)
    answer = await world.answered()
    assert world.asked == 2
    assert b"a b" not in answer
    assert answer.count(b"\r\nx-request-id: ") == 1


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"PUT /beat HTTP/1.1\r\nHost: here\r\nOrigin: http://here\r\n\r\n", id="CORS adds headers"),
        pytest.param(b"PUT /beat HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\n\r\n", id="100 comes first"),
        pytest.param(b"PUT /beat HTTP/1.0\r\nHost: here\r\nConnection: keep-alive\r\n\r\n", id="HTTP/1.0"),
        pytest.param(
            b"PUT /beat HTTP/1.1\r\nHost: here\r\nX-Request-Id: a\r\nx-request-id: b\r\n\r\n", id="two request ids"
        ),
        pytest.param(b"PUT /beat HTTP/1.1\r\nHost: here\r\nX: %b\r\n\r\n" % (b"x" * MAX_LENGTH), id="too long"),
    ],
)
async def test_some_requests_are_not_repeated(request_: bytes) -> None:
    world = World()
    for number in range(1, 5):
        if world.connection.transport.closing:
            world.connection.protocol, world.connection.transport = world.connection.open()
        await world.connection.say(request_)
        assert world.asked == number
    assert len(world.writes) == 0


async def test_a_request_in_two_pieces_is_not_repeated() -> None:
    world = World()
    await world.know()
    whole = HEAD % 5
    await world.connection.say(whole[:30])
    assert (await world.connection.say(whole[30:])).endswith(b"ok")
    assert world.asked == 3


async def test_what_follows_a_known_write_waits_for_its_answer() -> None:
    world = World()
    await world.know()
    world.begin()
    other = b"POST /other HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"
    assert await world.connection.say(other) == b"" and world.asked == 2
    world.beat.answer(HttpReply(500, None, b"first"))
    answers = await world.connection.rest()
    assert answers.startswith(b"HTTP/1.1 500") and answers.count(b"HTTP/1.1") == 2 and answers.endswith(b"ok")
    world.begin()
    assert (await world.answered()).endswith(b"ok"), "and the connection goes on"


async def test_a_known_write_whose_client_has_left_goes_on_and_counts_as_left() -> None:
    world = World()
    await world.know()
    world.begin()
    world.connection.protocol.connection_lost(None)
    assert await world.answered() == b""
    assert [status for _, status, _ in world.counted] == [LEFT] and world.logged[-1].status == LEFT


async def test_a_known_write_is_answered_before_the_server_stops() -> None:
    world = World()
    await world.know()
    world.begin()
    world.connection.protocol.shutdown()
    assert not world.connection.transport.closing
    assert b"\r\nconnection: close\r\n" in await world.answered()
    assert world.connection.transport.closing


async def test_a_server_that_stops_waits_for_a_known_write_whose_client_has_left() -> None:
    world = World()
    await world.know()
    world.begin()
    world.connection.protocol.connection_lost(None)
    (waiting,) = world.connection.state.tasks
    waiting.cancel()
    assert world.connection.state.tasks, "only its answer ends it"
    await world.answered()
    assert not world.connection.state.tasks


async def test_a_known_write_holds_off_the_keep_alive_timer() -> None:
    world = World()
    await world.know()
    world.begin()
    world.connection.loop.advance(600)
    assert not world.connection.transport.closing
    await world.answered()
    world.connection.loop.advance(600)
    assert world.connection.transport.closing


async def test_a_known_write_of_a_client_that_does_not_read_goes_to_the_app() -> None:
    world = World()
    await world.know()
    world.connection.transport.fill()
    world.begin()
    await settle()
    assert world.asked == 3
    world.connection.transport.empty()
    assert (await world.connection.rest()).endswith(b"ok")


async def test_a_client_that_closed_its_side_still_gets_the_answer_to_a_known_write() -> None:
    world = World()
    await world.know()
    world.begin()
    assert world.connection.protocol.eof_received() is True
    assert b"\r\nconnection: close\r\n" in await world.answered()


async def test_known_writes_of_a_unix_socket_are_not_those_of_a_port() -> None:
    world = World()
    await world.know()
    world.connection.protocol, world.connection.transport = world.connection.open(sockname="/run/proxy.sock")
    await world.connection.say(HEAD % 8)
    assert world.asked == 3


def test_known_writes_are_bounded() -> None:
    writes = KnownWrites(lambda: NACOS, lambda *_: None, lambda: 0.0)
    for number in range(MAX_WRITES + 10):
        writes.offer(b"%d" % number, writes.serial, (), Beat())
    assert len(writes) == MAX_WRITES
    assert writes.find(b"9") is None and writes.find(b"10") is not None


@pytest.mark.parametrize(
    ("request_", "rest", "id"),
    [
        (b"PUT / HTTP/1.1\r\nRequestId: 1-a\r\nHost: h\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n", b""),
        (b"PUT / HTTP/1.1\r\nHost: h\r\nX-Request-Id: 1\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n", b" 1"),
        (b"PUT / HTTP/1.1\r\nx-request-id:1\r\ntraceparent: 00-a\r\n\r\nbody", b"PUT / HTTP/1.1\r\n\r\nbody", b"1"),
    ],
)
def test_key_and_id_leaves_the_ids_of_the_head_out_of_the_key(request_: bytes, rest: bytes, id: bytes) -> None:
    assert key_and_id(request_, b"http") == (key_and_id(rest, b"http")[0], id)


@pytest.mark.parametrize(
    "request_",
    [
        b"PUT / HTTP/1.1\r\nHost: h\r\n\r\nx\r\nRequestId: 1\r\nin the body",
        b"PUT / HTTP/1.1\r\nHost: h\r\nRequestId: 1",  # no whole head
    ],
)
def test_key_and_id_keeps_what_is_no_field_of_the_head(request_: bytes) -> None:
    assert key_and_id(request_, b"http") != key_and_id(request_.replace(b"\r\nRequestId: 1", b""), b"http")


@given(st.lists(st.sampled_from([b"PUT /", b" HTTP/1.1\r\n", b"a: 1", b"\r\n", b"RequestId: 1", b"body"]), max_size=9))
def test_key_and_id_tells_requests_and_sockets_apart(pieces: list[bytes]) -> None:
    request_ = b"".join(pieces)
    keys = {key_and_id(request_ + more, kind)[0] for more in (b"", b"x") for kind in (b"http", b"https unix")}
    assert len(keys) == 4
    assert all(len(key) == 16 for key in keys), "of what may be a secret, nothing is kept"


@given(st.binary(max_size=40), st.from_regex(rb"[\w.-]{1,20}", fullmatch=True), st.binary(max_size=40))
def test_key_and_id_has_the_same_key_for_each_id(before: bytes, id: bytes, body: bytes) -> None:
    head = b"PUT /%b HTTP/1.1\r\nHost: h\r\nRequestId: %b\r\nA: b\r\n\r\n%b"
    before = before.replace(b"\r", b"").replace(b"\n", b"")
    rest = head.replace(b"\r\nRequestId: %b", b"") % (before, body)
    assert key_and_id(head % (before, id, body), b"http") == (key_and_id(rest, b"http")[0], b"")


_LINES = [
    b"Host: h",
    b"RequestId: 1",
    b"RequestId: 2-b",
    b"RequestId:3",
    b"X-Request-Id: 4",
    b"traceparent: 00-a",
    b" RequestId: 5",
]


@given(st.lists(st.sampled_from(_LINES), max_size=4), st.sampled_from([b"", b"a=b", b"\r\nRequestId: 6\r\nc: d"]))
def test_key_without_a_field_is_the_key_of_the_request_or_of_no_other(lines: list[bytes], body: bytes) -> None:
    def request_(*lines: bytes) -> bytes:
        return b"\r\n".join((b"PUT / HTTP/1.1", *lines, b"A: b", b"", body))

    key = key_without(b"\r\nRequestId: ", request_(*lines), b"http")
    others = {key_and_id(request_(*some), b"http") for some in itertools.product(_LINES, repeat=2)}
    others |= {key_and_id(request_(*some), b"http") for some in ((), *((line,) for line in _LINES))}
    own, id = key_and_id(request_(*lines), b"http")
    assert (key, b"") == (own, id) or key not in {other for other, _ in others}


async def test_a_known_write_is_found_by_the_one_field_that_its_client_renews() -> None:
    world = World()
    await world.know()
    for number in (7, 8, 9):
        world.begin(number)
        await world.answered()
    world.connection.protocol.data_received(
        (HEAD % 10).replace(b"\r\nRequestId", b"\r\nX-Request-Id: mine\r\nRequestId")
    )
    assert b"x-request-id: mine" in await world.answered()
    assert world.asked == 2
