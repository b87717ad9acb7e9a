"""`FuzzyWatch` passes the fuzzy watches of a session on to a server, which is made by a function here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
import pytest

from nacos_proxy.catalog.shares import Shares
from nacos_proxy.frontends.auth import AccessControl, AccessPolicy, Token
from nacos_proxy.frontends.grpc.access import HIGH_WATER, Connection
from nacos_proxy.frontends.grpc.fuzzy_watch import MAX_PATTERN, MAX_PATTERNS, FuzzyWatch, FuzzyWatches
from nacos_proxy.model.errors import TooSlow, Unreachable, UpstreamError
from nacos_proxy.runtime import Supervisor
from nacos_proxy.upstream.grpc.session import Target
from nacos_proxy.upstream.grpc.tunnel import Dialed, UpstreamOwner
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from tests.helpers.clock import FakeClock, settle
from tests.helpers.grpc_client import STREAM, FakeTunnel, grpc_world
from tests.unit.frontends.conftest import refuse

SETUP = Payload("ConnectionSetupRequest", b'{"labels":{"module":"naming"},"abilityTable":{"fuzzyWatch":true}}')
GOOD = Payload("NamingFuzzyWatchResponse", b'{"resultCode":200,"errorCode":0,"success":true}')
DENIED = Payload("NamingFuzzyWatchResponse", b'{"resultCode":500,"errorCode":403,"message":"no","success":false}')
CHANGE = Payload("NamingFuzzyWatchChangeNotifyRequest", b'{"requestId":"7","changedType":"ADD_SERVICE"}')
ACK = Payload("NamingFuzzyWatchChangeNotifyResponse", b'{"requestId":"7"}')
READER = Token("reader-token", "read")


def request(pattern: str = "public>>g>>s*", what: str = "WATCH", token: str = "", **fields: Any) -> Payload:
    body = {"groupKeyPattern": pattern, "watchType": what, "receivedGroupKeys": ["public@@g@@s1"], **fields}
    return Payload("NamingFuzzyWatchRequest", orjson.dumps(body), {"accessToken": token} if token else {})


class Client:
    """The connection of an SDK."""

    client, name = "192.0.2.1", "192.0.2.1_50001"
    cause: str | None = None
    reason = ""

    def __init__(self) -> None:
        self.unsent = 0
        self.answers: dict[int, dict[str, Any]] = {}
        self.pushed: list[Payload] = []
        self.closed = False

    def answer(self, stream: int, message: bytes) -> None:
        answer = read_payload(message)
        fields = orjson.loads(answer.body) if answer.body.startswith(b'{"') else {"body": answer.body}
        self.answers[stream] = {"type": answer.type, **fields}

    def push(self, stream: int, message: bytes) -> None:
        assert stream == 3
        self.pushed.append(read_payload(message))

    def close(self) -> None:
        self.closed = True

    def fail(self, stream: int, status: int, text: str) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class Line:
    """One line to the server. `close` tells its owner, as a real one does."""

    unsent = 0

    def __init__(self, server: Server, owner: UpstreamOwner) -> None:
        self.server, self.owner = server, owner
        self.paused = self.closed = False

    async def call(self, message: bytes, *, timeout: float) -> bytes:
        payload = read_payload(message)
        self.server.asked.append(payload)
        answer = self.server.answer(payload)
        if isinstance(answer, UpstreamError):
            raise answer
        return write_payload(answer)

    def open_stream(self) -> None: ...

    def send(self, message: bytes) -> None:
        self.server.said.append(read_payload(message))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.owner.lost("closed here")


class Server:
    """A server and the lines to it."""

    def __init__(self) -> None:
        self.down = False
        self.setups: list[Payload] = []
        self.asked: list[Payload] = []
        self.said: list[Payload] = []
        self.connections: list[Line] = []
        self.answer: Callable[[Payload], Payload | UpstreamError] = lambda payload: GOOD

    def absent(self) -> str:
        return ""

    async def dial(self, key: str, setup: Payload, owner: UpstreamOwner) -> Dialed:
        if self.down:
            raise Unreachable("refused", arrived=False)
        self.setups.append(setup)
        self.connections.append(Line(self, owner))
        return Dialed(self.connections[-1], Target("server", 9848), True)

    def push(self, payload: Payload) -> None:
        self.connections[-1].owner.received(write_payload(payload))


class Account:
    """This proxy's own account: a second login gives another token."""

    def __init__(self) -> None:
        self.token = "first"

    async def headers(self, refused: Mapping[str, str] | None) -> Mapping[str, str]:
        if refused is not None and refused["accessToken"] == self.token:
            self.token = "second"
        return {"accessToken": self.token}


async def nothing(*_: object) -> None: ...


class World:
    def __init__(
        self,
        *tokens: Token,
        headers: Callable[[Mapping[str, str] | None], Awaitable[Mapping[str, str]]] | None = None,
        capacity: int = 1 << 20,
    ) -> None:
        self.client, self.server, self.clock = Client(), Server(), FakeClock()
        self.guard = AccessControl(nothing, AccessPolicy(tokens), refuse)
        self.connections: Shares[str] = Shares(10)
        self.bytes: Shares[str] = Shares(capacity)
        supervisor = Supervisor(self.clock)
        self.offered = True
        self.host = FuzzyWatches(
            self.server, self.guard, lambda: self.offered, headers, self.clock, supervisor, self.connections, self.bytes
        )
        opened = self.host.open(SETUP, self.client, 3)
        assert opened is not None
        self.watch: FuzzyWatch = opened
        self._stream = 1

    async def ask(self, payload: Payload) -> dict[str, Any]:
        self._stream += 4
        self.watch.unary(self._stream, payload)
        await settle()
        return self.client.answers[self._stream]


def test_open_returns_none_if_the_upstream_has_no_fuzzy_watch() -> None:
    w = World()
    w.offered = False
    assert w.host.open(SETUP, w.client, 3) is None


async def test_requests_pass_on_one_line_with_the_setup_of_the_session() -> None:
    w = World()
    assert await w.ask(request("a>>b>>c")) == {"type": GOOD.type, **orjson.loads(GOOD.body)}
    await w.ask(request("a>>b>>d"))
    assert w.server.setups == [SETUP]
    assert w.server.asked == [request("a>>b>>c"), request("a>>b>>d")]
    assert (w.connections.total, w.bytes.total) == (1, 0)


async def test_pushes_and_their_acknowledgements_pass_unchanged() -> None:
    w = World()
    w.watch.stream(ACK)  # without a line there is nobody to tell
    await w.ask(request())
    w.server.push(CHANGE)
    w.watch.stream(ACK)
    assert (w.client.pushed, w.server.said) == ([CHANGE], [ACK])


async def test_what_else_the_server_asks_is_answered_here() -> None:
    w = World()
    await w.ask(request())
    w.server.push(Payload("ClientDetectionRequest", b'{"requestId":"9"}'))
    w.server.push(Payload("SetupAckRequest", b'{"abilityTable":{}}'))
    w.server.push(Payload("ClientDetectionRequest", b"{"))
    assert [payload.type for payload in w.server.said] == ["ClientDetectionResponse"]
    assert orjson.loads(w.server.said[0].body)["requestId"] == "9"
    assert w.client.pushed == []


async def test_a_lost_line_is_replaced_and_gets_the_patterns_that_are_left() -> None:
    w = World()
    await w.ask(request("a>>b>>c", initializing=True))
    await w.ask(request("a>>b>>d"))
    await w.ask(request("a>>b>>d", "CANCEL_WATCH"))
    w.server.asked.clear()
    w.server.down = True
    w.server.connections[0].close()
    await w.clock.advance(10)
    assert (w.client.closed, w.server.asked, w.connections.total) == (False, [], 0)
    w.server.down = False
    await w.clock.advance(30)
    assert [orjson.loads(payload.body) for payload in w.server.asked] == [
        {"groupKeyPattern": "a>>b>>c", "watchType": "WATCH", "receivedGroupKeys": [], "initializing": True}
    ]
    assert (len(w.server.connections), w.connections.total) == (2, 1)


async def test_a_reset_by_the_server_makes_a_new_line() -> None:
    w = World()
    await w.ask(request())
    w.server.push(Payload("ConnectResetRequest", b'{"requestId":"1"}'))
    await w.clock.advance(2)
    assert len(w.server.connections) == 2


async def test_a_line_without_patterns_is_not_replaced() -> None:
    w = World()
    await w.ask(request(what="CANCEL_WATCH"))
    w.server.connections[0].close()
    await w.clock.advance(60)
    assert len(w.server.connections) == 1


@pytest.mark.parametrize("error", [TooSlow("late"), Unreachable("lost", arrived=True)])
async def test_a_line_that_does_not_answer_is_replaced(error: UpstreamError) -> None:
    w = World()
    w.server.answer = lambda payload: error
    answer = await w.ask(request())
    assert (answer["type"], answer["errorCode"], answer["message"]) == (GOOD.type, 500, str(error))
    w.server.answer = lambda payload: GOOD
    await w.clock.advance(2)
    assert len(w.server.connections) == 2


async def test_an_upstream_that_is_away_is_said_in_the_requests_own_class() -> None:
    w = World()
    w.server.down = True
    answer = await w.ask(request())
    assert (answer["type"], answer["errorCode"]) == ("NamingFuzzyWatchResponse", 500)


async def test_close_ends_the_line_and_what_waits() -> None:
    w = World()
    await w.ask(request())
    w.watch.close()
    w.watch.close()
    assert (w.server.connections[0].closed, w.connections.total, len(w.guard.open_streams)) == (True, 0, 0)
    other = World()
    await other.ask(request())
    other.server.down = True
    other.server.connections[0].close()
    await other.clock.advance(3)
    other.watch.close()
    other.server.down = False
    await other.clock.advance(60)
    assert len(other.server.connections) == 1


async def test_a_server_is_not_read_while_its_sdk_does_not_read() -> None:
    w = World()
    await w.ask(request())
    w.client.unsent = HIGH_WATER + 1
    w.server.push(CHANGE)
    assert w.server.connections[0].paused
    w.client.unsent = 0
    w.watch.drained()
    assert not w.server.connections[0].paused


async def test_patterns_are_bounded() -> None:
    w = World()
    for number in range(MAX_PATTERNS):
        assert (await w.ask(request(f"a>>b>>{number}")))["success"]
    assert (await w.ask(request("a>>b>>0")))["success"]
    assert (await w.ask(request("a>>b>>x")))["errorCode"] == 50310
    assert (await w.ask(request("x" * (MAX_PATTERN + 1))))["errorCode"] == 400


@pytest.mark.parametrize(("body", "code"), [(b"{", 502), (b"[]", 400), (b'{"groupKeyPattern":1}', 400)])
async def test_what_cannot_be_read_is_refused(body: bytes, code: int) -> None:
    w = World()
    assert (await w.ask(Payload("NamingFuzzyWatchRequest", body)))["errorCode"] == code
    assert w.server.connections == []


async def test_bytes_and_lines_of_an_address_are_bounded() -> None:
    w = World(capacity=10)
    assert (await w.ask(request()))["errorCode"] == 400
    w = World()
    w.connections.take(w.client.client, 5)
    assert (await w.ask(request()))["errorCode"] == 400
    assert w.server.connections == []


# --- tokens ----------------------------------------------------------------------------------------------------------


async def test_own_account_is_used_for_a_client_without_a_token_and_logs_in_again() -> None:
    account = Account()
    w = World(headers=account.headers)
    w.server.answer = lambda payload: GOOD if payload.headers.get("accessToken") == "second" else DENIED
    assert (await w.ask(request()))["success"]
    assert [payload.headers["accessToken"] for payload in w.server.asked] == ["first", "second"]
    w.server.answer = lambda payload: DENIED
    account.token = "third"
    w.server.asked.clear()
    assert (await w.ask(request(token="theirs")))["errorCode"] == 403
    assert [payload.headers["accessToken"] for payload in w.server.asked] == ["theirs"]


@pytest.mark.parametrize("body", [b"{", b"[]"])
async def test_an_answer_that_cannot_be_read_passes_unchanged_with_our_own_account(body: bytes) -> None:
    w = World(headers=Account().headers)
    w.server.answer = lambda payload: Payload(GOOD.type, body)
    assert await w.ask(request()) == {"type": GOOD.type, "body": body}
    assert len(w.server.asked) == 1


async def test_an_api_token_is_checked_and_removed_and_ends_the_connection_when_revoked() -> None:
    w = World(READER)
    assert (await w.ask(request()))["errorCode"] == 403
    assert (await w.ask(request(token="reader-token")))["success"]
    assert (await w.ask(request(token="reader-token")))["success"]
    assert [dict(payload.headers) for payload in w.server.asked] == [{}, {}]
    assert len(w.guard.open_streams) == 1
    w.guard.set_policy(AccessPolicy((Token("another", "admin"),)))
    assert w.client.closed


# --- in a session ----------------------------------------------------------------------------------------------------


class Offer:
    """Opens `tunnel` for each session; None: not offered."""

    def __init__(self, tunnel: FakeTunnel | None) -> None:
        self.tunnel = tunnel

    def open(self, setup: Payload, connection: Connection, stream: int) -> FakeTunnel | None:
        if self.tunnel is not None:
            self.tunnel.got.append(("open", setup.type, stream))
        return self.tunnel


@pytest.mark.parametrize("offered", [True, False])
async def test_session_offers_fuzzy_watch_where_the_upstream_has_it(offered: bool) -> None:
    async with grpc_world() as world:
        world.server.fuzzy = Offer(FakeTunnel() if offered else None)
        sdk = world.connect()
        sdk.set_up(abilityTable={"fuzzyWatch": True})
        assert ("fuzzyWatch" in sdk.connection.pushed[-1][1]["abilityTable"]) == offered
        if not offered:
            assert (await sdk.ask("NamingFuzzyWatchRequest"))[1]["errorCode"] == 302


async def test_session_does_not_offer_fuzzy_watch_to_an_sdk_without_it() -> None:
    async with grpc_world() as world:
        world.server.fuzzy = Offer(FakeTunnel())
        sdk = world.connect()
        sdk.set_up(abilityTable={})
        assert "fuzzyWatch" not in sdk.connection.pushed[-1][1]["abilityTable"]
        assert (await sdk.ask("NamingFuzzyWatchRequest"))[1]["errorCode"] == 302


async def test_session_passes_fuzzy_watch_on_and_nothing_else() -> None:
    async with grpc_world() as world:
        tunnel = FakeTunnel()
        world.server.fuzzy = Offer(tunnel)
        sdk = world.connect()
        sdk.set_up(abilityTable={"fuzzyWatch": True})
        sdk.session.unary(9, write_payload(request()))
        sdk.say(ACK.type, requestId="7")
        sdk.say("NotifySubscriberResponse", requestId="8")
        assert (await sdk.ask("HealthCheckRequest"))[0] == "HealthCheckResponse"
        sdk.session.drained()
        sdk.session.lost()
        assert tunnel.got == [
            ("open", "ConnectionSetupRequest", STREAM),
            ("unary", 9, "NamingFuzzyWatchRequest"),
            ("stream", "NamingFuzzyWatchChangeNotifyResponse"),
            ("drained",),
            ("close",),
        ]
