"""`Dialer` gets a line to the first server that answers the check, with the client's setup on its stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from nacos_proxy.model.errors import Garbled, ProxyError, Refused, TooSlow, Unreachable
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.grpc.session import PAUSE, Target
from nacos_proxy.upstream.grpc.tunnel import Dialer, UpstreamConnection, UpstreamOwner
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from nacos_proxy.wire.nacos.grpc.refusals import NotRegistered
from tests.helpers.clock import FakeClock

ONE, TWO = Target("one", 9848), Target("two", 9848)
SETUP = Payload("ConnectionSetupRequest", b'{"labels":{"module":"config"}}', {"app": "x"}, "192.0.2.1")
GOOD = b'{"resultCode":200,"errorCode":0,"connectionId":"1_a_2","supportAbilityNegotiation":true,"success":true}'
UNREGISTERED = Payload("ErrorResponse", b'{"resultCode":500,"errorCode":301,"success":false}')
STARTING = b'{"resultCode":500,"errorCode":300,"message":"server is starting","success":false}'


class Server:
    """A server and the only line to it. `check` is its answer to the check, or what the call raises."""

    unsent = 0

    def __init__(self, check: Payload | ProxyError | bytes) -> None:
        self.check = check
        self.health = [Payload("HealthCheckResponse", b'{"resultCode":200,"errorCode":0,"success":true}')]
        self.calls: list[str] = []
        self.closed = False
        self.owner: UpstreamOwner | None = None
        self.on_setup: Callable[[], None] = lambda: None

    async def call(self, message: bytes, *, timeout: float) -> bytes:
        kind = read_payload(message).type
        self.calls.append(f"{kind} {timeout}")
        if kind == "HealthCheckRequest":
            return write_payload(self.health.pop(0) if len(self.health) > 1 else self.health[0])
        if isinstance(self.check, ProxyError):
            raise self.check
        return write_payload(self.check) if isinstance(self.check, Payload) else self.check

    def open_stream(self) -> None:
        self.calls.append("stream")

    def send(self, message: bytes) -> None:
        assert read_payload(message) == SETUP
        self.calls.append("setup")
        self.on_setup()

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Owner:
    def __init__(self) -> None:
        self.told: list[str] = []

    def received(self, message: bytes) -> None:
        self.told.append(read_payload(message).type)

    def drained(self) -> None:
        self.told.append("drained")

    def lost(self, reason: str) -> None:
        self.told.append(f"lost: {reason}")


def dialer(servers: dict[Target, Server | OSError], clock: FakeClock | None = None) -> Dialer:
    async def connect(target: Target, owner: UpstreamOwner, timeout: float) -> UpstreamConnection:
        found = servers[target]
        if isinstance(found, OSError):
            raise found
        found.owner = owner
        return found

    return Dialer(lambda key: servers, connect, clock=clock or FakeClock())


def answer(body: bytes = GOOD, kind: str = "ServerCheckResponse") -> Payload:
    return Payload(kind, body)


async def test_dial_checks_the_server_and_then_sends_the_setup() -> None:
    server = Server(answer())
    dialed = await dialer({ONE: server}).dial("k", SETUP, Owner())
    assert (dialed.connection, dialed.target, dialed.acknowledges) == (server, ONE, True)
    assert server.calls == ["ServerCheckRequest 2.0", "stream", "setup", "HealthCheckRequest 2.0"]


async def test_dial_waits_until_the_server_knows_the_session() -> None:
    server, clock = Server(answer()), FakeClock()
    server.health = [UNREGISTERED, UNREGISTERED, *server.health]
    dialing = spawn(dialer({ONE: server}, clock).dial("k", SETUP, Owner()), name="dial")
    await clock.advance(PAUSE.delay(0))
    assert not dialing.done()
    await clock.advance(PAUSE.delay(1))
    assert dialing.result().connection is server


async def test_dial_waits_for_a_server_only_until_the_time_limit() -> None:
    server, clock = Server(answer()), FakeClock()
    server.health = [UNREGISTERED]
    dialing = asyncio.gather(dialer({ONE: server}, clock).dial("k", SETUP, Owner()), return_exceptions=True)
    await clock.advance(3)
    assert isinstance(dialing.result()[0], NotRegistered)
    assert server.closed


async def test_dial_says_if_a_server_does_not_acknowledge_setups() -> None:
    rnacos = answer(b'{"resultCode":200,"errorCode":0,"message":null,"connectionId":"1"}')
    assert not (await dialer({ONE: Server(rnacos)}).dial("k", SETUP, Owner())).acknowledges


@pytest.mark.parametrize(
    "failing",
    [
        OSError("refused"),
        Server(TooSlow("late")),
        Server(Unreachable("lost", arrived=True)),
        Server(answer(STARTING, "ErrorResponse")),
        Server(b"\xff"),
        Server(answer(b"[]")),
    ],
)
async def test_dial_goes_to_the_next_server_if_one_fails(failing: Server | OSError) -> None:
    good, owner = Server(answer()), Owner()
    dialed = await dialer({ONE: failing, TWO: good}).dial("k", SETUP, owner)
    assert dialed.target == TWO
    if isinstance(failing, Server):
        assert failing.closed and failing.owner is not None
        failing.owner.drained()
        failing.owner.lost("closed")
        assert owner.told == []


@pytest.mark.parametrize(
    ("failing", "error", "text"),
    [
        (OSError("refused"), Unreachable, "gRPC of one:9848: refused"),
        (Server(answer(STARTING, "ErrorResponse")), Refused, "server is starting"),
        (Server(b"\xff"), Garbled, "gRPC of one:9848: the answer cannot be read: a payload ends within a number"),
    ],
)
async def test_dial_raises_the_error_of_the_last_server(
    failing: Server | OSError, error: type[ProxyError], text: str
) -> None:
    with pytest.raises(error, match=text):
        await dialer({ONE: failing}).dial("k", SETUP, Owner())


async def test_dial_raises_if_no_server_is_known() -> None:
    with pytest.raises(Unreachable, match="no server is known"):
        await dialer({}).dial("k", SETUP, Owner())


async def test_dial_raises_if_the_server_hangs_up_on_the_setup() -> None:
    server, owner = Server(answer()), Owner()
    server.on_setup = lambda: server.owner.lost("closed") if server.owner else None
    with pytest.raises(Unreachable, match="closed"):
        await dialer({ONE: server}).dial("k", SETUP, owner)
    assert owner.told == []


async def test_dialed_line_tells_its_owner_what_happens() -> None:
    server, owner = Server(answer()), Owner()
    await dialer({ONE: server}).dial("k", SETUP, owner)
    assert server.owner is not None
    server.owner.received(write_payload(Payload("SetupAckRequest")))
    server.owner.drained()
    server.owner.lost("closed")
    assert owner.told == ["SetupAckRequest", "drained", "lost: closed"]
