"""`GrpcTunnels` pass payloads between a client and its own line to a server, which is made by a function here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.frontends.auth import AccessControl, AccessPolicy, Token
from nacos_proxy.frontends.grpc.access import HIGH_WATER, Tunnel
from nacos_proxy.frontends.grpc.tunnel import GrpcTunnels, TunnelPolicy, required_right, response_class
from nacos_proxy.model.errors import BadCall, ProxyError, Reason, Refused, TooSlow, Unreachable, UpstreamError
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.grpc.session import Target
from nacos_proxy.upstream.grpc.tunnel import CALLS, Dialed, UpstreamOwner
from nacos_proxy.wire.nacos.grpc.payload import Payload, read_payload, write_payload
from tests.helpers.clock import settle
from tests.helpers.grpc_recordings import exchanges
from tests.unit.frontends.conftest import refuse

READER, ADMIN = Token("reader-token", "read"), Token("admin-token", "admin")
QUERY = Payload("ConfigQueryRequest", b'{"dataId":"d","group":"g","tenant":""}', {"accessToken": "theirs"}, "192.0.2.1")
DEFAULT = TunnelPolicy()
ACK = Payload("ConfigChangeNotifyResponse", b'{"requestId":"1"}')


def setup(abilities: object = None) -> Payload:
    return Payload("ConnectionSetupRequest", orjson.dumps({"labels": {"module": "config"}, "abilityTable": abilities}))


class Client:
    """The connection of a client. `done` is what happened to it, in short."""

    client, name = "192.0.2.1", "192.0.2.1_50001"

    def __init__(self) -> None:
        self.unsent = 0
        self.done: list[str] = []
        self.answers: dict[int, Payload] = {}
        self.paused = False

    def answer(self, stream: int, message: bytes) -> None:
        self.answers[stream] = read_payload(message)

    def fail(self, stream: int, status: int, text: str) -> None:
        self.done.append(f"fail {stream}: {status} {text}")

    def push(self, stream: int, message: bytes) -> None:
        self.done.append(f"push {stream}: {read_payload(message).type}")

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        raise AssertionError("a tunnel closes connections in order")


async def echo(message: bytes) -> bytes:
    return message


class Server:
    """A server, with the one line to it. `answer` answers a call."""

    def __init__(self, *, acknowledges: bool = True, error: UpstreamError | None = None, absent: str = "") -> None:
        self.answer: Callable[[bytes], Awaitable[bytes]] = echo
        self.unsent = 0
        self.got: list[Payload] = []
        self.paused = self.closed = False
        self.owner: UpstreamOwner | None = None
        self.error, self.why, self._acknowledges = error, absent, acknowledges

    def absent(self) -> str:
        return self.why

    async def dial(self, key: str, setup: Payload, owner: UpstreamOwner) -> Dialed:
        if self.error is not None:
            raise self.error
        self.owner = owner
        self.got.append(setup)
        return Dialed(self, Target("server", 9848), self._acknowledges)

    async def call(self, message: bytes, *, timeout: float) -> bytes:
        self.got.append(read_payload(message))
        return await self.answer(message)

    def open_stream(self) -> None: ...

    def send(self, message: bytes) -> None:
        self.got.append(read_payload(message))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True


async def nothing(*_: object) -> None: ...


def guard(*tokens: Token) -> AccessControl:
    return AccessControl(nothing, AccessPolicy(tokens), refuse)


@dataclass
class World:
    client: Client
    server: Server
    tunnels: GrpcTunnels
    tunnel: Tunnel

    async def ask(self, payload: Payload, stream: int = 1) -> Payload:
        self.tunnel.unary(stream, payload)
        await settle()
        return self.client.answers[stream]

    @property
    def owner(self) -> UpstreamOwner:
        assert self.server.owner is not None
        return self.server.owner


async def world(
    *tokens: Token, server: Server | None = None, policy: TunnelPolicy = DEFAULT, payload: Payload | None = None
) -> World:
    client, server = Client(), server or Server()
    tunnels = GrpcTunnels(server, guard(*tokens), policy)
    tunnel = await tunnels.open(client.client, payload or setup({}), client, 3)
    return World(client, server, tunnels, tunnel)


# --- the setup -------------------------------------------------------------------------------------------------------


async def test_open_sends_the_setup_unchanged() -> None:
    w = await world()
    assert w.server.got == [setup({})]
    assert w.client.done == []  # the server's own acknowledgement comes by the stream


@pytest.mark.parametrize(("abilities", "done"), [({}, ["push 3: SetupAckRequest"]), (None, [])])
async def test_open_acknowledges_for_a_server_that_does_not(abilities: object, done: list[str]) -> None:
    w = await world(server=Server(acknowledges=False), payload=setup(abilities))
    assert w.client.done == done


async def test_open_raises_and_logs_once_while_the_upstream_cannot_be_reached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, client = Server(error=Unreachable("refused", arrived=False)), Client()
    tunnels = GrpcTunnels(server, guard())
    for _ in range(2):
        with pytest.raises(Unreachable):
            await tunnels.open("a", setup(), client, 3)
    assert tunnels.status() == {"open": 0, "opened": 0, "refused": 0, "error": "cannot be reached: refused"}
    server.error = None
    await tunnels.open("a", setup(), client, 3)
    assert tunnels.status() == {"open": 1, "opened": 1, "refused": 0, "error": ""}
    assert [record.getMessage() for record in caplog.records] == [
        "clients ask for configuration by gRPC, but the upstream cannot be reached: refused",
        "clients reach the upstream's gRPC again",
    ]


async def test_open_refuses_an_address_beyond_its_share_and_close_gives_it_back() -> None:
    server = Server()
    tunnels = GrpcTunnels(server, guard(), TunnelPolicy(tunnels=2))
    first = await tunnels.open("a", setup(), Client(), 3)
    with pytest.raises(BadCall) as caught:
        await tunnels.open("a", setup(), Client(), 3)
    assert (caught.value.status, tunnels.refused) == (429, 1)
    first.close()
    first.close()
    assert tunnels.tunnels.total == 0
    await tunnels.open("a", setup(), Client(), 3)


@pytest.mark.parametrize("dialer", [None, Server(absent="Nacos 1.x has none")])
async def test_an_upstream_without_grpc_answers_302_and_health_checks(dialer: Server | None) -> None:
    client = Client()
    tunnels = GrpcTunnels(dialer, guard())
    tunnel = await tunnels.open(client.client, setup({}), client, 3)
    assert client.done == ["push 3: SetupAckRequest"]
    tunnel.unary(1, QUERY)
    tunnel.unary(5, Payload("HealthCheckRequest"))
    tunnel.stream(ACK)
    tunnel.drained()
    refused, healthy = client.answers[1], orjson.loads(client.answers[5].body)
    assert (refused.type, orjson.loads(refused.body)["errorCode"]) == ("ErrorResponse", 302)
    assert (client.answers[5].type, healthy["resultCode"]) == ("HealthCheckResponse", 200)
    assert tunnels.error.startswith("has no gRPC")
    tunnel.close()


# --- payloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["nacos-2.5.1", "nacos-3.0.3", "r-nacos-0.8.8"])
async def test_unary_passes_every_recorded_case_unchanged(server: str) -> None:
    cases = [one for one in exchanges(f"{server}-raw-cases") if "Config" in one.request.payload.type]
    assert len(cases) >= 7
    w = await world()
    for number, case in enumerate(cases):
        recorded = case.answer.payload

        async def answer(message: bytes, recorded: Payload = recorded) -> bytes:
            return write_payload(recorded)

        w.server.answer = answer
        assert await w.ask(case.request.payload, number) == recorded
        assert w.server.got[-1] == case.request.payload


@given(
    st.builds(
        Payload,
        st.text(max_size=20),
        st.binary(max_size=50),
        st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        st.text(max_size=9),
    )
)
def test_unary_passes_any_payload_unchanged(payload: Payload) -> None:
    async def run() -> None:
        w = await world()
        assert await w.ask(payload) == payload
        assert w.server.got[-1] == payload

    asyncio.run(run())


async def test_unary_answers_in_the_order_of_the_answers() -> None:
    w = await world()
    waiting: list[asyncio.Future[bytes]] = []

    def answer(message: bytes) -> Awaitable[bytes]:
        waiting.append(asyncio.get_running_loop().create_future())
        return waiting[-1]

    w.server.answer = answer
    w.tunnel.unary(1, QUERY)
    w.tunnel.unary(5, QUERY)
    await settle()
    waiting[1].set_result(write_payload(ACK))
    await settle()
    assert list(w.client.answers) == [5]
    waiting[0].set_result(write_payload(ACK))
    await settle()
    assert list(w.client.answers) == [5, 1]


@pytest.mark.parametrize(
    ("error", "done"),
    [
        (TooSlow("no answer"), "fail 1: 4 no answer"),
        (Unreachable("lost", arrived=True), "fail 1: 14 lost"),
        (Refused(Reason.OTHER, "status 12"), "fail 1: 2 status 12"),
    ],
)
async def test_unary_fails_with_a_status_if_the_call_fails(error: ProxyError, done: str) -> None:
    w = await world()

    async def answer(message: bytes) -> bytes:
        raise error

    w.server.answer = answer
    w.tunnel.unary(1, QUERY)
    await settle()
    assert w.client.done == [done]
    assert w.tunnels.bytes.total == 0


async def test_unary_refuses_more_unanswered_bytes_than_an_address_may_have() -> None:
    w = await world(policy=TunnelPolicy(bytes=2 * len(write_payload(QUERY))))
    never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    w.server.answer = lambda message: never
    w.tunnel.unary(1, QUERY)
    w.tunnel.unary(5, QUERY)
    await settle()
    assert w.client.done == ["fail 5: 8 this address has too many requests under way"]
    never.set_result(b"")
    await settle()
    assert w.tunnels.bytes.total == 0


async def test_stream_passes_responses_and_setups_and_nothing_else() -> None:
    w = await world()
    for payload in (ACK, QUERY, setup({})):
        w.tunnel.stream(payload)
    assert w.server.got[1:] == [ACK, setup({})]
    w.owner.received(write_payload(Payload("ConfigChangeNotifyRequest")))
    assert w.client.done == ["push 3: ConfigChangeNotifyRequest"]


async def test_the_death_of_either_end_closes_the_other() -> None:
    w = await world()
    w.owner.lost("the server closed it")
    assert (w.client.done, w.server.closed, w.tunnels.tunnels.total) == (["close"], True, 0)
    w = await world()
    w.tunnel.close()
    assert (w.client.done, w.server.closed, w.tunnels.tunnels.total) == ([], True, 0)
    w.tunnel.drained()


async def test_a_client_that_leaves_while_its_server_is_dialed_leaves_no_line() -> None:
    server, client = Server(), Client()
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    dial = server.dial

    class Slow(Server):
        async def dial(self, key: str, setup: Payload, owner: UpstreamOwner) -> Dialed:
            await gate
            return await dial(key, setup, owner)

    tunnels = GrpcTunnels(Slow(), guard())
    opening = spawn(tunnels.open("a", setup(), client, 3), name="open")
    await settle()
    assert tunnels.tunnels.total == 1
    opening.cancel()
    await settle()
    assert (tunnels.tunnels.total, server.closed, server.owner) == (0, False, None)


# --- flow control ----------------------------------------------------------------------------------------------------


async def test_a_server_is_not_read_while_its_client_does_not_read() -> None:
    w = await world()
    w.client.unsent = HIGH_WATER + 1
    w.owner.received(write_payload(ACK))
    assert w.server.paused
    w.client.unsent = 0
    w.tunnel.drained()
    assert not w.server.paused


async def test_a_client_is_not_read_while_its_server_does_not_read() -> None:
    w = await world()
    w.server.unsent = HIGH_WATER + 1
    w.tunnel.stream(ACK)
    assert w.client.paused
    w.server.unsent = 0
    w.owner.drained()
    assert not w.client.paused


async def test_answers_wait_one_by_one_for_a_client_that_does_not_read() -> None:
    w = await world()
    answer = w.client.answer

    def full(stream: int, message: bytes) -> None:
        answer(stream, message)
        w.client.unsent = HIGH_WATER + 1

    w.client.answer = full
    w.client.unsent = HIGH_WATER + 1
    for stream in range(1, 2 * CALLS + 2, 2):
        w.tunnel.unary(stream, QUERY)
    await settle()
    assert len(w.server.got) == 1 + CALLS
    assert w.client.answers == {}
    for read in range(1, 3):
        w.client.unsent = 0
        w.tunnel.drained()
        await settle()
        assert len(w.client.answers) == read
    w.tunnel.close()
    await settle()
    assert w.tunnels.bytes.total == 0


async def test_the_two_ends_never_wait_for_each_other() -> None:
    """A paused end's window updates are not read, so with both paused neither could go on."""
    w = await world()
    w.server.unsent = HIGH_WATER + 1
    w.tunnel.stream(ACK)
    w.client.unsent = HIGH_WATER + 1
    w.owner.received(write_payload(ACK))
    assert (w.server.paused, w.client.paused) == (True, False)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        ("HealthCheckRequest", None),
        ("ConfigQueryRequest", "read"),
        ("ConfigBatchListenRequest", "read"),
        ("ConfigPublishRequest", "admin"),
        ("ConfigRemoveRequest", "admin"),
        ("LockOperationRequest", "admin"),
        ("NobodyKnowsRequest", "admin"),
    ],
)
async def test_required_right_is_admin_unless_the_request_only_reads(kind: str, right: str | None) -> None:
    assert required_right(kind) == right


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("ConfigBatchListenRequest", "ConfigChangeBatchListenResponse"),
        ("ConfigPublishRequest", "ConfigPublishResponse"),
        ("Odd", "OddResponse"),
    ],
)
def test_response_class(kind: str, answer: str) -> None:
    assert response_class(kind) == answer


@pytest.mark.parametrize("token", ["", "unknown", "reader-token"])
async def test_unary_denies_a_change_without_the_admin_right(token: str) -> None:
    w = await world(READER, ADMIN)
    headers = {"accessToken": token} if token else {}
    denied = await w.ask(Payload("ConfigPublishRequest", b"{}", headers))
    assert (denied.type, orjson.loads(denied.body)["errorCode"]) == ("ConfigPublishResponse", 403)
    assert len(w.server.got) == 1


async def test_unary_needs_no_token_for_a_health_check() -> None:
    w = await world(READER)
    assert (await w.ask(Payload("HealthCheckRequest", b"{}"))).type == "HealthCheckRequest"


async def test_unary_removes_own_tokens_from_headers_and_body() -> None:
    """The Python SDK repeats the headers of a payload in its body."""
    w = await world(READER, ADMIN)
    headers = {"accessToken": "reader-token", "app": "x"}
    await w.ask(Payload("ConfigQueryRequest", orjson.dumps({"headers": headers, "dataId": "d"}), headers))
    assert w.server.got[-1] == Payload("ConfigQueryRequest", b'{"headers":{"app":"x"},"dataId":"d"}', {"app": "x"})


async def test_unary_refuses_a_body_in_which_own_tokens_cannot_be_found() -> None:
    w = await world(READER)
    answer = await w.ask(Payload("ConfigQueryRequest", b'{"accessToken":', {"accessToken": "reader-token"}))
    assert (answer.type, orjson.loads(answer.body)["errorCode"]) == ("ErrorResponse", 502)
    w.tunnel.stream(Payload("ConfigChangeNotifyResponse", b"{"))
    assert len(w.server.got) == 1


async def test_unary_passes_the_upstreams_tokens() -> None:
    w = await world()
    await w.ask(QUERY)
    assert w.server.got[-1].headers == {"accessToken": "theirs"}


async def test_a_revoked_token_ends_the_connection() -> None:
    w = await world(READER, ADMIN)
    query = replace_token(QUERY, "reader-token")
    await w.ask(query)
    await w.ask(query)
    assert len(w.tunnels.guard.open_streams) == 1
    w.tunnels.guard.set_policy(AccessPolicy((ADMIN,)))
    assert (w.client.done, w.server.closed, len(w.tunnels.guard.open_streams)) == (["close"], True, 0)


async def test_a_revoked_token_that_a_client_has_replaced_ends_nothing() -> None:
    w = await world(READER, ADMIN)
    await w.ask(replace_token(QUERY, "reader-token"))
    await w.ask(replace_token(QUERY, "admin-token"))
    w.tunnels.guard.set_policy(AccessPolicy((ADMIN,)))
    assert w.client.done == []
    w.tunnel.close()
    assert len(w.tunnels.guard.open_streams) == 0


def replace_token(payload: Payload, token: str) -> Payload:
    return payload._replace(headers={"accessToken": token})
