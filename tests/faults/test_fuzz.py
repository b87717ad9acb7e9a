"""Random bytes as requests, with and without the fast path, and as answers of an upstream."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import orjson
import pytest
from uvicorn.server import ServerState

from nacos_proxy.app.server import App, build, uvicorn_config
from nacos_proxy.app.settings import Settings
from nacos_proxy.background.state_rows import dump_snapshot
from nacos_proxy.core.agent import Agent
from nacos_proxy.model.calls import (
    Alive,
    Beat,
    Call,
    Fetch,
    GetInstance,
    GetService,
    ListServices,
    Metrics,
    Namespaces,
    Ready,
    ServiceNames,
    Subscribers,
    Switches,
)
from nacos_proxy.model.calls import ServerState as AskState
from nacos_proxy.model.errors import ProxyError
from nacos_proxy.model.services import Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from nacos_proxy.wire.rest.bodies import snapshot_json
from tests.helpers.build import KEY, agent
from tests.helpers.clock import FakeClock
from tests.helpers.recordings import load
from tests.unit.fastpath.drive import KeptTransport, StillLoop

CASES = int(os.environ.get("NACOS_PROXY_TEST_CASES", "50000"))  # each is sent to both proxies
HOSTILE = 10_000


# --- requests ----------------------------------------------------------------------------------------------------

_FORM = b"serviceName=orders&ip=10.0.0.%d&port=80&metadata=%%7B%%22a%%22%%3A%%22b%%22%%7D&weight=2.5"

_PARTS = (
    b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field
        for field in ((b"serviceName", b"orders"), (b"ip", b"10.0.0.5"), (b"port", b"80"), (b"metadata", b'{"a":"b"}'))
    )
    + b"--b--\r\n"
)


def _get(target: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join((b"GET " + target + b" HTTP/1.1", b"Host: 127.0.0.1:8840", *fields, b"", b""))


def _send(
    method: bytes, target: bytes, body: bytes, kind: bytes = b"application/x-www-form-urlencoded", *fields: bytes
) -> bytes:
    head = (method + b" " + target + b" HTTP/1.1", b"Host: localhost", b"Content-Type: " + kind, *fields)
    return b"\r\n".join((*head, b"Content-Length: %d" % len(body), b"", body))


JAVA = (
    b"Connection: Upgrade, HTTP2-Settings",
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    b"Upgrade: h2c",
)
FORM = b"application/x-www-form-urlencoded"

SEEDS = (
    _get(b"/nacos/v1/ns/instance/list?serviceName=orders", *JAVA),
    _get(b"/nacos/v1/ns/instance/list?serviceName=orders", b"Connection: upgrade", b"Upgrade: websocket"),
    _send(b"POST", b"/nacos/v1/ns/instance", _FORM % 5, FORM, *JAVA),
    _send(b"DELETE", b"/nacos/v1/ns/instance", _FORM % 5, FORM, *JAVA),
    _get(b"/nacos/v1/ns/instance/list?serviceName=orders").replace(b"HTTP/1.1", b"HTTP/1.0"),
    _send(b"PUT", b"/nacos/v1/ns/instance", _FORM % 1).replace(b"HTTP/1.1", b"HTTP/1.0"),
    _get(b"/nacos/v1/ns/instance/list?serviceName=orders"),
    _get(b"/nacos/v1/ns/instance/list?serviceName=orders&clusters=a,b&healthyOnly=true&namespaceId=dev"),
    _get(b"/nacos/v1/ns/instance/list?serviceName=g%40%40orders", b'If-None-Match: "abc"', b"User-Agent: x"),
    _get(b"/nacos/v1/ns/instance?serviceName=orders&ip=10.0.0.1&port=80"),
    _get(b"/nacos/v1/ns/service/list?pageNo=1&pageSize=10"),
    _get(b"/nacos/v2/ns/instance/list?serviceName=orders"),
    _get(b"/nacos/v3/client/ns/instance/list?serviceName=orders", b"Cache-Control: max-age=5"),
    _get(b"/nacos/v1/cs/configs?dataId=a&group=b"),
    _get(b"/nacos/../etc/passwd"),
    _get(b"/api/v1/services/orders", b"Accept-Encoding: gzip"),
    _get(b"/api/v1/services/orders/pick?strategy=hash&key=a"),
    _get(b"/healthz"),
    _send(b"POST", b"/nacos/v1/ns/instance", _FORM % 1),
    _send(b"POST", b"/nacos/v2/ns/instance", _FORM % 2),
    _send(b"PUT", b"/nacos/v1/ns/instance", _FORM % 1),
    _send(b"PUT", b"/nacos/v1/ns/instance/beat", b"serviceName=orders&beat=%7B%22ip%22%3A%2210.0.0.3%22%7D"),
    _send(b"DELETE", b"/nacos/v1/ns/instance", _FORM % 2),
    _send(b"POST", b"/nacos/v1/ns/instance", _PARTS, b"multipart/form-data; boundary=b"),
    _send(b"PUT", b"/nacos/v2/ns/instance", _PARTS, b"multipart/form-data; boundary=b"),
    _send(b"POST", b"/api/v1/services/orders/instances", b'{"ip":"10.0.0.4","port":80}', b"application/json"),
    _send(b"PATCH", b"/api/v1/services/orders/instances/10.0.0.4:80", b'{"weight":3}', b"application/json"),
    b"POST /nacos/v1/ns/instance HTTP/1.1\r\nHost: ::1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nip=\r\n0\r\n\r\n",
)
NACOS = tuple(seed for seed in SEEDS if b"/nacos/" in seed)
INVALID = b"HTTP/1.1 400 Bad Request\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-type: text/plain"
DIFFERENT = re.compile(rb"\r\nage: \d+|; ttl=-?\d+|\r\nx-request-id: [0-9a-f]{8}-[0-9a-f]+")
TOKENS = (
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b"%00",
    b"%",
    b"%zz",
    b"%c3%28",
    b"\xff\xfe",
    b"\xe2\x82\xac",
    b" ",
    b"\t",
    b"&",
    b"=",
    b"@@",
    b"..",
    b"/",
    b"//",
    b"?",
    b"#",
    b"Host: evil\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"99999999999999999999",
    b"true",
    b"null",
    b"{",
    b"}",
    b"[",
    b'"',
    b"{}",
    b"[]",
    b"[" * 300,
    b'{"ip":{}}',
    b"A" * 3000,
    b"serviceName=",
    b"ip=",
    b"port=",
    b"metadata=%7B",
    b"\xed\xa0\x80",
    b"OPTIONS ",
    b"CONNECT ",
)


def mutate(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """A seed, sometimes unchanged, usually with some faults; sometimes followed by another request."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 5))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                del data[at : at + rng.choice((1, 1, 3, 20))]
            case 2:
                data[at:at] = data[max(0, at - rng.randrange(40)) : at]
            case 3:
                data[at:at] = rng.choice(TOKENS)
            case 4:
                data[at : at + rng.randrange(8)] = rng.choice(TOKENS)
            case _ if rng.random() < 0.2:
                del data[at:]
            case _:
                pass
    if rng.random() < 0.1:
        data += rng.choice(seeds)
    return bytes(data)


def without_differences(answer: bytes) -> bytes:
    """The answer without what may differ.

    After a good answer, one of the proxies sends 400 and the other closes the connection. Ages differ: a repeated
    answer keeps its age, while a request with `no-cache` may have confirmed the entry since. And no two requests get
    the same id.
    """
    good, bad, _ = answer.partition(INVALID)
    return DIFFERENT.sub(b"", (good if good else bad).replace(b"connection: close\r\n", b""))


class SocketlessProxy:
    """A whole proxy with the embedded registry and one kind of protocol class, driven without a socket."""

    def __init__(self, *, fast: bool) -> None:
        settings = Settings(upstream="embedded", disk=False, udp_push=False, push="off", fast_path=fast)  # type: ignore[arg-type]
        self.clock = FakeClock()
        self.app = App(build(settings, self.clock))
        self.config = uvicorn_config(self.app, settings)
        self.config.lifespan = "off"
        self.config.load()
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
        self.loop = StillLoop()

    async def answer_to(self, pieces: list[bytes]) -> bytes:
        """The answer on a new connection. Raises if the app does not finish."""
        protocol = self.config.http_protocol_class(self.config, self.state, {}, self.loop)  # type: ignore[call-arg, arg-type]
        transport = KeptTransport()
        transport.protocol = protocol
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
            await self._run_tasks(50)
            if transport.closing:
                break
        answer = transport.take()
        protocol.connection_lost(None)
        if not await self._run_tasks(1000):
            raise AssertionError(f"a request hangs: {pieces}")
        self.loop.timers.clear()
        return answer

    async def _run_tasks(self, rounds: int) -> bool:
        for _ in range(rounds):
            if not self.state.tasks:
                return True
            await asyncio.sleep(0)
        return not self.state.tasks

    async def close(self) -> None:
        await self.app.components.agent.close()


@pytest.mark.timeout(900)
async def test_fuzz_requests_are_answered_alike_with_and_without_the_fast_path(
    rng: random.Random, errors: list[str]
) -> None:
    fast, plain = SocketlessProxy(fast=True), SocketlessProxy(fast=False)
    seen: dict[bytes, int] = {}
    for number in range(CASES):
        data = mutate(rng, SEEDS if rng.random() < 0.1 else NACOS)  # schemathesis covers the REST API
        pieces = [data]
        if rng.random() < 0.2 and data:
            cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 2, 5))))
            pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        answers = [await proxy.answer_to([p for p in pieces if p]) for proxy in (fast, plain)]
        if b"/pick" in data or b"text/html" in answers[0]:  # random choices, and a page that counts requests
            answers = [answer[:12] for answer in answers]
        assert without_differences(answers[0]) == without_differences(answers[1]), f"case {number}: {data!r}"
        assert errors == [], f"case {number}: {data!r}"
        status = answers[0][9:12]
        seen[status] = seen.get(status, 0) + 1
        if number % 500 == 0:  # so that answers become stale and instances without beats expire
            for proxy in (fast, plain):
                await proxy.clock.advance(2.0)
    print({status.decode(): number for status, number in sorted(seen.items())})
    assert seen[b"200"] > CASES / 20 and seen[b"400"] > CASES / 20, seen
    tallies = fast.app.components.response_table.hit_counts.values()
    assert sum(tally.head for tally in tallies) > 0, "the fast path had its part"
    for proxy in (fast, plain):
        await proxy.close()


@pytest.mark.parametrize("fast", [True, False], ids=["fast-path", "plain"])
async def test_fuzz_pipelines_answer_every_request_and_run_no_body(
    fast: bool, rng: random.Random, errors: list[str]
) -> None:
    proxy = SocketlessProxy(fast=fast)
    inner = b"serviceName=inner&ip=10.6.6.6&port=80"
    smuggled = _send(b"POST", b"/nacos/v1/ns/instance", inner)
    for number in range(1000):
        requests = [valid_request(rng, smuggled) for _ in range(rng.randint(1, 6))]
        data = b"".join(requests)
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((0, 1, 2, 8))))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        answer = await proxy.answer_to([piece for piece in pieces if piece])
        assert answer.count(b"HTTP/1.1 ") == len(requests), f"case {number}: {pieces!r}"
        names = [entry.key.name for entry in proxy.app.components.agent.catalog.cache.entries()]
        assert "inner" not in names, f"case {number}: {pieces!r}"
    assert errors == []
    await proxy.close()


def valid_request(rng: random.Random, body: bytes) -> bytes:
    """A valid request with or without a body; it may ask for an upgrade."""
    fields = [b"Host: localhost", b"Content-Type: text/plain", *rng.choice(((), JAVA, JAVA[2:], JAVA))]
    rng.shuffle(fields)
    match rng.randrange(3):
        case 0:
            body = b""
        case 1:
            fields.append(b"Content-Length: %d" % len(body))
        case _:
            fields.append(b"Transfer-Encoding: chunked")
            at = rng.randrange(1, len(body))
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:at], body[at:])) + b"0\r\n\r\n"
    method = rng.choice((b"GET", b"POST", b"PUT", b"DELETE"))
    return b"\r\n".join((method + b" /nacos/v1/ns/instance/list?serviceName=a HTTP/1.1", *fields, b"", body))


# --- answers of an upstream --------------------------------------------------------------------------------------

Given = dict[str, Any]


class FixedTransport(httpx.AsyncBaseTransport):
    """Answers each request with `status`, `headers` and `body`."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, {"content-type": "application/json"}, b""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, headers=self.headers, content=self.body)


def registry_of(dialect: Any, transport: FixedTransport, clock: FakeClock) -> NacosRegistry:
    return NacosRegistry(NacosPolicy(ServersPolicy(("http://127.0.0.1:1",)), dialect=dialect), clock, transport)


def recorded_bodies() -> tuple[bytes, ...]:
    rows = [
        row for name in ("nacos-2.5.1", "nacos-3.0.3", "r-nacos-0.8.8", "v3-only", "protection") for row in load(name)
    ]
    return tuple(
        {row.body.encode() if isinstance(row.body, str) else orjson.dumps(row.body) for row in rows if row.body}
    )


READS: tuple[Callable[[], Call[Any]], ...] = (
    lambda: Fetch(KEY),
    lambda: GetInstance(KEY, "10.0.0.1", 80),
    lambda: ListServices(KEY.namespace, KEY.group, 1, 10),
    lambda: GetService(KEY),
    lambda: Beat(KEY, "10.0.0.1", 80),
    lambda: ServiceNames(KEY.namespace),
    lambda: Subscribers(KEY),
    Metrics,
    Switches,
    AskState,
    Namespaces,
    Alive,
    Ready,
)
DIALECTS = ("v1", "v2", "v3")
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x",
    "NaN",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    [{}],
    "\ud800",
    2**64 - 1,
    json.loads("[" * 400 + "]" * 400),
    json.loads('{"a":' * 400 + "1" + "}" * 400),
)


def mutate_body(rng: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """A recorded body with faults in its bytes or its structure."""
    if rng.random() < 0.5:
        return mutate(rng, seeds)
    try:
        value = orjson.loads(rng.choice(seeds))
    except orjson.JSONDecodeError:
        return rng.choice(seeds)
    for _ in range(rng.randint(1, 3)):
        value = mutate_json(rng, value)
    try:
        return orjson.dumps(value)
    except TypeError:  # a value that orjson reads but does not write
        return json.dumps(value).encode()


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Replaces, removes or adds one value inside a JSON value."""
    if isinstance(value, dict) and rng.random() < 0.1:
        return {**value, "own": rng.choice(ODD_VALUES)}
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        if rng.random() < 0.2:
            return {n: v for n, v in value.items() if n != name}
        return {**value, name: mutate_json(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_json(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD_VALUES)


def plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else list(value)


async def test_fuzz_upstream_answers_are_results_or_proxy_errors(rng: random.Random, errors: list[str]) -> None:
    seeds, transport, clock = recorded_bodies(), FixedTransport(), FakeClock()
    registries = [registry_of(dialect, transport, clock) for dialect in DIALECTS]
    outcomes = {"answer": 0, "error": 0}
    for number in range(HOSTILE):
        transport.status = rng.choice((200, 200, 200, 200, 204, 301, 400, 403, 404, 410, 500, 503))
        transport.body = mutate_body(rng, seeds)
        call = rng.choice(READS)()
        registry = rng.choice(registries)
        try:
            answer = await registry.send(call)
            outcomes["answer"] += 1
            assert orjson.dumps(answer, default=plain)
        except ProxyError:
            outcomes["error"] += 1
        except Exception as error:
            raise AssertionError(f"case {number}: {call} {transport.status} {transport.body!r}") from error
        clock._now += 0.3
    print(outcomes)
    assert outcomes["error"] > HOSTILE / 10 and outcomes["answer"] > HOSTILE / 100
    await asyncio.sleep(0)
    assert errors == []
    for registry in registries:
        await registry.close()


GOOD: Given = {
    "name": "DEFAULT_GROUP@@orders",
    "groupName": "DEFAULT_GROUP",
    "clusters": "",
    "cacheMillis": 10000,
    "hosts": [
        {
            "instanceId": "",
            "ip": f"10.0.0.{n}",
            "port": 80,
            "weight": 1.0,
            "healthy": True,
            "enabled": True,
            "ephemeral": True,
            "clusterName": "DEFAULT",
            "serviceName": "DEFAULT_GROUP@@orders",
            "metadata": {"zone": "a"},
        }
        for n in (1, 2, 3)
    ],
    "lastRefTime": 1,
    "checksum": "",
    "allIPs": False,
    "reachProtectionThreshold": False,
    "valid": True,
}


def hosts_of(body: bytes) -> list[dict[str, Any]]:
    """The hosts with an address in a body, parsed independently of the program."""
    try:
        hosts = orjson.loads(body)["hosts"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []
    found = [host for host in hosts if isinstance(host, dict)] if isinstance(hosts, list) else []
    return [h for h in found if isinstance(h.get("ip"), str) and isinstance(h.get("port"), int | float)]


def is_unambiguous(host: dict[str, Any]) -> bool:
    """Whether a host is unambiguous; a reader may leave out any other host."""
    texts = all(isinstance(host.get(name) or "", str) for name in ("clusterName", "instanceId", "serviceName"))
    metadata = host.get("metadata") or {}
    plain = isinstance(metadata, dict) and all(isinstance(v, str | int | float | None) for v in metadata.values())
    return host["ip"] != "" and type(host["port"]) is int and 0 <= host["port"] <= 65535 and texts and plain


def written(snapshot: Snapshot) -> bytes:
    return orjson.dumps(snapshot_json(snapshot, View()))


@pytest.fixture
async def agent_and_upstream() -> AsyncIterator[tuple[Agent, FixedTransport, FakeClock]]:
    transport, clock = FixedTransport(), FakeClock()
    one = agent(registry_of("v1", transport, clock), clock)
    transport.body = orjson.dumps(GOOD)
    await one.read(KEY)
    yield one, transport, clock
    await one.close()


async def test_fuzz_upstream_answers_replace_no_good_list(
    rng: random.Random, agent_and_upstream: tuple[Agent, FixedTransport, FakeClock], errors: list[str]
) -> None:
    one, transport, clock = agent_and_upstream
    seeds = (orjson.dumps(GOOD),)
    kept = replaced = 0
    for number in range(HOSTILE // 2):
        before = one.catalog.cache.lookup(KEY, clock.now()).snapshot
        assert before is not None
        transport.status = rng.choice((200, 200, 200, 200, 302, 404, 500))
        transport.body = mutate_body(rng, seeds)
        one.refresh(KEY)
        while one.fetching:
            await asyncio.sleep(0)
        after = one.catalog.cache.lookup(KEY, clock.now()).snapshot
        assert after is not None, f"case {number}: {transport.body!r}"
        clock._now += 40.0  # quarantine and pending writes are over
        if after is before:
            kept += 1
            continue
        replaced += 1
        assert dump_snapshot(after) and after.revision and json.loads(written(after))
        assert transport.status == 200, f"case {number}: {transport.body!r}"
        shown = {(i.ip, i.port) for i in after.instances}
        hosts = hosts_of(transport.body)
        said = {(host["ip"], int(host["port"])) for host in hosts}
        sure = {(host["ip"], host["port"]) for host in hosts if is_unambiguous(host)}
        assert sure <= shown <= said, f"case {number}: {transport.body!r}"
        if replaced % 20 == 0:
            transport.status, transport.body = 200, orjson.dumps(GOOD)
            one.refresh(KEY)
            while one.fetching:
                await asyncio.sleep(0)
    print(f"{kept} kept, {replaced} replaced")
    assert kept > HOSTILE / 10 and replaced > 0
    assert errors == []
