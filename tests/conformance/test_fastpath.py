"""The fast path answers every cacheable read, byte for byte as the proxy does without it."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.app.components import build
from nacos_proxy.app.server import App, uvicorn_config
from nacos_proxy.app.settings import Settings
from nacos_proxy.runtime import SystemClock
from tests.helpers.app import Served, running, serving
from tests.helpers.clock import FakeClock
from tests.helpers.live import ProxyProcess

V1, V2, V3 = "/nacos/v1/ns/instance", "/nacos/v2/ns/instance", "/nacos/v3/client/ns/instance"
ONE = "ip=10.0.0.1&port=80"
READS = {
    "v1 list": f"{V1}/list?serviceName=NAME",
    "v1 list of healthy ones in clusters": f"{V1}/list?serviceName=NAME&healthyOnly=true&clusters=DEFAULT,b",
    "v1 list of a group": f"{V1}/list?serviceName=DEFAULT_GROUP@@NAME&namespaceId=public",
    "v1 instance": f"{V1}?serviceName=NAME&{ONE}",
    "v2 list": f"{V2}/list?serviceName=NAME",
    "v2 instance": f"{V2}?serviceName=NAME&{ONE}",
    "v3 list": f"{V3}/list?serviceName=NAME",
    "service": "/api/v1/services/NAME",
    "instances": "/api/v1/services/NAME/instances",
    "instance": "/api/v1/services/NAME/instances/10.0.0.1:80",
    "pick": "/api/v1/services/NAME/pick",
    "pick in turn": "/api/v1/services/NAME/pick?strategy=round_robin",
    "pick by hash": "/api/v1/services/NAME/pick?strategy=hash&key=me",
    "pick as text": "/api/v1/services/NAME/pick?format=text",
    "http_sd": "/api/v1/sd/prometheus?service=NAME",
    "traefik": "/api/v1/sd/traefik?service=NAME",
    "endpointslice": "/api/v1/sd/endpointslice?service=NAME",
    "addresses": "/api/v1/sd/text?service=NAME",
    "nginx": "/api/v1/sd/nginx?service=NAME",
    "haproxy": "/api/v1/sd/haproxy?service=NAME",
}
NO_READS = [
    "/healthz",
    "/api/v1/services/NAME?grup=x",
    "/api/v1/services/NAME/pick?format=text&healthyonly=1",
    "/api/v1/services",
    "/nothing",
    f"{V1}/list",
    "/api/v1/services/NAME/pick?strategy=none",
]
REGISTER = [f"{V1}?serviceName=NAME&ip=10.0.0.{n}&port=80&weight={n}&ephemeral=false" for n in (1, 2, 3)]
REPEATED_WRITES = [
    ("PUT", f"{V1}/beat?serviceName=NAME&{ONE}"),
    ("PUT", f"{V2}/beat?serviceName=DEFAULT_GROUP@@NAME&{ONE}"),
    ("POST", f"{V3}?serviceName=NAME&{ONE}&heartBeat=true"),
    ("POST", f"{V1}?serviceName=NAME&ip=10.0.0.4&port=80&ephemeral=false"),
    ("DELETE", f"{V1}?serviceName=NAME&ip=10.0.0.4&port=80&ephemeral=false"),
    ("POST", f"{V1}?serviceName=NAME&ip=10.0.0.5&port=99999"),
]
GONE = re.compile(rb"\r\n(date: [^\r]*|x-request-id: [0-9a-f]{8}-[0-9a-f]+(?=\r))")
_names = itertools.count()


class Line:
    """One connection. `ask` returns the answer without its Date and an id that was made for it; `<end>` marks a closed
    connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, url: str, **options: Any) -> Line:
        host, _, port = url.rpartition("/")[2].partition(":")
        return cls(*await asyncio.open_connection(host, int(port), **options))

    async def ask(self, request: bytes) -> bytes:
        self._writer.write(request)
        return GONE.sub(b"", await self.answer(head_only=request.startswith(b"HEAD")))

    async def answer(self, *, head_only: bool = False) -> bytes:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            body = int(length[1]) if length and not head_only else 0
            read = head + await self._reader.readexactly(body)
            return read + b"<end>" if b"connection: close" in head else read
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            return getattr(error, "partial", b"") + b"<end>"

    def close(self) -> None:
        self._writer.close()


def get(target: str, *more: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *more, "", ""]
    return "\r\n".join(lines).encode()


async def write(line: Line, target: str, method: str = "POST") -> None:
    assert (await line.ask(get(target, "Content-Length: 0", method=method))).startswith(b"HTTP/1.1 200 OK")


def known_writes(served: Served) -> int:
    return len(served.app.writes or ())


def repeated(served: Served) -> int:
    return sum(tally.head + tally.target for tally in served.components.response_table.hit_counts.values())


# every read


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Served]:
    async with serving(FakeClock()) as served:  # or an age of one second would make equal answers differ
        yield served


@dataclass
class Filled:
    """A connection to a proxy, and a service of three instances with a unique name."""

    served: Served
    line: Line
    name: str
    before: int

    def get(self, read: str, *more: str) -> bytes:
        return get(READS[read].replace("NAME", self.name), *more)

    @property
    def repeated(self) -> int:
        return repeated(self.served) - self.before


@pytest_asyncio.fixture(loop_scope="module")
async def filled(shared: Served) -> AsyncIterator[Filled]:
    line, name = await Line.to(shared.url), f"orders-{next(_names)}"
    for target in REGISTER:
        await write(line, target.replace("NAME", name))
    yield Filled(shared, line, name, repeated(shared))
    line.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("read", READS)
async def test_fast_path_repeats_every_cacheable_read(filled: Filled, read: str) -> None:
    for _ in range(4):
        assert (await filled.line.ask(filled.get(read))).startswith(b"HTTP/1.1 200 OK")
    assert filled.repeated == 2, "from the second sight on"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("read", [read for read in READS if not read.startswith(("pick", "http_sd"))])
async def test_fast_path_repeats_not_modified(filled: Filled, read: str) -> None:
    tag = re.search(rb"\r\netag: ([^\r]*)", await filled.line.ask(filled.get(read)))
    assert tag is not None
    for _ in range(4):
        answer = await filled.line.ask(filled.get(read, f"If-None-Match: {tag[1].decode()}"))
        assert answer.startswith(b"HTTP/1.1 304 Not Modified")
    assert filled.repeated == 2


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("read", READS)
async def test_fast_path_shows_a_write_to_the_next_pipelined_read(filled: Filled, read: str) -> None:
    line, request = filled.line, filled.get(read)
    before = [await line.ask(request) for _ in range(3)]
    # Two leave and the third changes: every read of the service must change.
    for target in REGISTER[1:]:
        await write(line, target.replace("NAME", filled.name), "DELETE")
    await write(line, f"{V1}?serviceName={filled.name}&{ONE}&ephemeral=false&weight=7&metadata=seen%3Dnow")
    after = await line.ask(request)
    assert after == await line.ask(request) == await line.ask(request)
    assert b"10.0.0.2" not in after and b"10.0.0.3" not in after
    if b"weight" in before[0] or b"metadata" in before[0]:
        assert after != before[0]


@pytest.mark.asyncio(loop_scope="module")
async def test_fast_path_picks_anew_for_each_request(filled: Filled) -> None:
    request = get(f"/api/v1/services/{filled.name}/pick?strategy=round_robin&format=text")
    chosen = [(await filled.line.ask(request)).rpartition(b"\r\n")[2] for _ in range(9)]
    assert chosen[:3] * 3 == chosen and len(set(chosen)) == 3


async def test_fast_path_reads_count_in_the_metrics() -> None:
    async with serving(FakeClock()) as served:
        line = await Line.to(served.url)
        await write(line, REGISTER[0].replace("NAME", "orders"))
        for n in range(5):
            await line.ask(get(f"{V1}/list?serviceName=orders", f"Number: {n}"))
            await line.ask(get("/api/v1/services/orders/pick"))
        metrics = (await served.http.get("/metrics")).text
        line.close()
    for stage in ("head", "target"):
        assert f'nacos_proxy_repeated_total{{stage="{stage}"}} 3.0' in metrics
    lists, picks = ("v1", "GET /v1/ns/instance/list"), ("discovery", "GET /api/v1/services/{service}/pick")
    for frontend, route in (lists, picks):
        labels = f'frontend="{frontend}",route="{route}",status="200"'
        assert f"nacos_proxy_requests_total{{{labels}}} 5.0" in metrics
        assert f"nacos_proxy_request_duration_seconds_count{{{labels}}} 5.0" in metrics
    for outcome, number in (("hit", 9), ("miss", 1)):
        assert f'nacos_proxy_reads_total{{outcome="{outcome}"}} {number}.0' in metrics


async def test_fast_path_renews_the_udp_push_of_the_polls_that_it_repeats() -> None:
    clock = FakeClock()
    async with serving(clock, udp_push=True) as served:
        udp = served.components.udp
        assert udp is not None
        line = await Line.to(served.url)
        await write(line, REGISTER[0].replace("NAME", "orders"))
        target = f"{V1}/list?serviceName=orders&clientIP=127.0.0.1&udpPort=9"
        for n in range(15):
            await line.ask(get(target, "User-Agent: Nacos-Java-Client:v1.4.8", f"RequestId: {n}"))
            await clock.advance(10.0)
        assert repeated(served) >= 10
        assert [s.address for s in udp.subscribers] == [("127.0.0.1", 9)]
        await line.ask(get(target.replace("udpPort=9", "udpPort=8"), "User-Agent: curl/8.5"))
        assert len(udp.subscribers) == 1
        await line.ask(get(target.replace("udpPort=9", "udpPort=8"), "User-Agent: Nacos-Java-Client:v1.4.8"))
        assert len(udp.subscribers) == 2
        line.close()


async def test_fast_path_writes_are_begun_again_and_count_in_the_metrics() -> None:
    async with serving(FakeClock()) as served:
        line = await Line.to(served.url)
        for method, target in REPEATED_WRITES:
            request = get(target.replace("NAME", "orders"), "Content-Length: 0", "RequestId: NUMBER", method=method)
            answers = {await line.ask(request.replace(b"NUMBER", b"%d" % n)) for n in range(4)}
            assert len(answers) == 1, target
        metrics = (await served.http.get("/metrics")).text
        line.close()
        assert known_writes(served) == 5, "all but the one that is refused"
    assert 'requests_total{frontend="v1",route="PUT /v1/ns/instance/beat",status="200"} 4.0' in metrics
    assert 'writes_total{outcome="ok"} 20.0' in metrics


@pytest.mark.parametrize(("more", "known"), [({}, 1), ({"cors_origins": "http://a"}, 1), ({"fast_path": False}, 0)])
async def test_fast_path_knows_writes_whatever_the_settings(more: dict[str, Any], known: int) -> None:
    async with serving(FakeClock(), **more) as served:
        line = await Line.to(served.url)
        for _ in range(4):
            await write(line, REGISTER[0].replace("NAME", "orders"))
        line.close()
        assert known_writes(served) == known


# access


async def test_fast_path_refuses_a_known_write_when_its_token_is_removed() -> None:
    settings = {"disk": False, "udp_push": False, "push": "off", "upstream": "embedded", "port": 0}
    chosen = Settings(**settings, tokens="write:token-one")  # type: ignore[arg-type]
    app = App(build(chosen, SystemClock()))
    async with running(uvicorn_config(app, chosen)) as url:
        line = await Line.to(url)
        target = REGISTER[0].replace("NAME", "orders")
        request = get(target, "Content-Length: 0", "accessToken: token-one", method="POST")
        for _ in range(4):
            assert (await line.ask(request)).startswith(b"HTTP/1.1 200 OK")
        assert app.writes is not None and len(app.writes) == 1
        app.reload(Settings(**settings, tokens="write:token-two"))  # type: ignore[arg-type]
        assert (await line.ask(request)).startswith(b"HTTP/1.1 403")
        line.close()


async def test_fast_path_refuses_a_removed_token(tmp_path: Path) -> None:
    settings = {"disk": False, "udp_push": False, "push": "off", "upstream": "embedded", "port": 0}
    chosen = Settings(**settings, tokens="read:token-one")  # type: ignore[arg-type]
    app = App(build(chosen, SystemClock()))
    async with running(uvicorn_config(app, chosen)) as url:
        line = await Line.to(url)
        requests = [
            get(f"{V1}/list?serviceName=orders", "Authorization: Bearer token-one"),
            get(f"{V1}/list?serviceName=orders&accessToken=token-one"),
            get(f"{V1}/list?serviceName=orders", "accessToken: token-one"),
        ]
        for request in requests * 4:
            assert (await line.ask(request)).startswith(b"HTTP/1.1 200 OK")
        assert (await line.ask(get(f"{V1}/list?serviceName=orders"))).startswith(b"HTTP/1.1 403")
        assert b"not one of this proxy's" in await line.ask(requests[0].replace(b"localhost", b"evil.test"))
        app.reload(Settings(**settings, tokens="read:token-two"))  # type: ignore[arg-type]
        for request in requests:
            assert (await line.ask(request)).startswith(b"HTTP/1.1 403")
        line.close()


# other sockets


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    options = ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *options, *files]
    subprocess.run(command, check=True, capture_output=True)
    return folder


async def talk(line: Line) -> None:
    """Makes a write and reads that are repeated, as the metrics show."""
    await write(line, REGISTER[0].replace("NAME", "orders"))
    request = get(READS["v1 list"].replace("NAME", "orders"))
    answers = {await line.ask(request) for _ in range(4)}
    assert any(b"10.0.0.1" in answer for answer in answers)
    metrics = await line.ask(get("/metrics"))
    assert b'nacos_proxy_repeated_total{stage="head"} 2.0' in metrics
    line.close()


async def test_fast_path_works_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with ProxyProcess("--uds", str(path)):
        await talk(Line(*await asyncio.open_unix_connection(str(path))))


async def test_fast_path_works_with_tls(certificate: Path) -> None:
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    files = ("--tls-cert", str(certificate / "cert.pem"), "--tls-key", str(certificate / "key.pem"))
    with ProxyProcess(*files) as process:
        await talk(await Line.to(process.url, ssl=context, server_hostname="localhost"))


async def test_fast_path_reads_are_in_the_access_log() -> None:
    with ProxyProcess("--access-log") as process:
        line = await Line.to(process.url)
        for n in range(4):
            await line.ask(get("/api/v1/sd/text?service=some"))
            await line.ask(get("/api/v1/sd/text?service=other", f"Number: {n}"))
        await line.ask(get("/healthz"))
        line.close()
        process.wait_for(re.compile("/healthz"))
    assert process.log.count("GET /api/v1/sd/text?service=some 200") == 4
    assert process.log.count("GET /api/v1/sd/text?service=other 200") == 4


# equal bytes for any requests

HEADERS = st.lists(
    st.sampled_from(
        [
            "If-None-Match: *",
            'If-None-Match: "x"',
            "Accept: text/plain",
            "Accept-Encoding: gzip",
            "Cache-Control: no-cache",
            "Cache-Control: max-age=2",
            "Connection: keep-alive",
            "Connection: close",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA",
            "Content-Length: 0",
            "Expect: 100-continue",
            "User-Agent: Nacos-Java-Client:v1.4.6",
            "X-Forwarded-For: 10.9.9.9",
            "X-Request-Id: mine",
            "X-Request-Id: not mine",
            "Range: bytes=0-3",
        ]
    ),
    max_size=2,
    unique=True,
)
REQUESTS = st.builds(
    get,
    st.sampled_from([*READS.values(), *READS.values(), *NO_READS]),
    HEADERS.map("\r\n".join).filter(bool) | st.just("X: y"),
    method=st.sampled_from(["GET", "GET", "GET", "GET", "HEAD"]),
    version=st.sampled_from(["1.1", "1.1", "1.1", "1.0"]),
)
STEPS = st.one_of(
    st.tuples(st.just("repeat"), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.just("repeat"), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.just("number"), st.integers(0, 2), st.integers(2, 4)),
    st.tuples(st.just("pipeline"), st.integers(0, 2), st.integers(2, 3)),
    st.tuples(st.just("pieces"), st.integers(0, 2), st.integers(1, 60)),
    st.tuples(st.just("write"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("again"), st.integers(0, 5), st.integers(2, 5)),
    st.tuples(st.just("pass"), st.integers(0, 3), st.just(0)),
)
SECONDS = (0.4, 1.5, 12.0, 50.0)


class Side:
    """A proxy and one connection to it. `said`: its answers."""

    def __init__(self, served: Served, clock: FakeClock) -> None:
        self.served = served
        self.clock = clock
        self.said: list[bytes] = []

    async def converse(self, name: str, requests: list[bytes], steps: list[tuple[str, int, int]]) -> list[bytes]:
        self.said = []
        self.line = await Line.to(self.served.url)
        for what, which, number in steps:
            request = requests[which % len(requests)].replace(b"NAME", name.encode())
            await self._do(what, which, number, request, name)
        self.line.close()
        return self.said

    async def _do(self, what: str, which: int, number: int, request: bytes, name: str) -> None:
        match what:
            case "repeat":
                for _ in range(number):
                    await self._ask(request)
            case "number":
                name = (b"X-Request-Id", b"RequestId", b"Number")[which]
                for n in range(number):
                    await self._ask(request.replace(b"\r\n", b"\r\n%b: %d\r\n" % (name, n), 1))
            case "pipeline":
                await self._ask(request * number, number)
            case "pieces":
                self.line._writer.write(request[:number])
                await asyncio.sleep(0.002)
                await self._ask(request[number:], head_only=request.startswith(b"HEAD"))
            case "again":
                method, target = REPEATED_WRITES[which]
                lines = ("Content-Length: 0", "RequestId: NUMBER")
                sent = get(target.replace("NAME", name), *lines, method=method)
                for n in range(number):
                    await self._ask(sent.replace(b"NUMBER", b"%d" % n))
            case "write" | "remove":
                target = REGISTER[which].replace("NAME", name)
                await self._ask(get(target, "Content-Length: 0", method="POST" if what == "write" else "DELETE"))
            case _:
                await self.clock.advance(SECONDS[which])

    async def _ask(self, request: bytes, times: int = 1, head_only: bool = False) -> None:
        self.line._writer.write(request)
        for _ in range(times):
            answer = await self.line.answer(head_only=head_only or request.startswith(b"HEAD"))
            self.said.append(GONE.sub(b"", answer))
            if answer.endswith(b"<end>"):
                self.line.close()
                self.line = await Line.to(self.served.url)
                return


@asynccontextmanager
async def both() -> AsyncIterator[tuple[Side, Side]]:
    async with AsyncExitStack() as stack:
        sides: list[Side] = []
        for fast in (True, False):
            clock = FakeClock()
            # bytes after an upgrade in one packet are never answered: the client waits for keep_alive to end
            served = await stack.enter_async_context(serving(clock, fast_path=fast, keep_alive=3))
            sides.append(Side(served, clock))
        yield sides[0], sides[1]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[asyncio.AbstractEventLoop, Side, Side]]:
    loop = asyncio.new_event_loop()
    context = both()
    fast, plain = loop.run_until_complete(context.__aenter__())
    try:
        yield loop, fast, plain
        assert repeated(fast.served) and not repeated(plain.served), "what was compared went two ways"
        assert known_writes(fast.served) and not known_writes(plain.served)
    finally:
        loop.run_until_complete(context.__aexit__(None, None, None))
        loop.close()


@given(requests=st.lists(REQUESTS, min_size=1, max_size=3), steps=st.lists(STEPS, min_size=1, max_size=12))
def test_fast_path_answers_equal_those_without_it(
    pair: tuple[asyncio.AbstractEventLoop, Side, Side], requests: list[bytes], steps: list[tuple[str, int, int]]
) -> None:
    loop, fast, plain = pair
    name = f"same-{next(_names)}"
    said: list[list[bytes]] = []
    for side in (fast, plain):
        random.seed(name)  # both sides draw the same choices and poll times
        said.append(loop.run_until_complete(asyncio.wait_for(side.converse(name, requests, steps), 60)))
    assert said[0] == said[1]
