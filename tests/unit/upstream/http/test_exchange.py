"""Calls over a real socket, some over TLS."""

from __future__ import annotations

import asyncio
import gc
import gzip
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from nacos_proxy.model.errors import Garbled, TooSlow, Unreachable, UpstreamError
from nacos_proxy.model.masking import shown_origin
from nacos_proxy.upstream.http.exchange import HttpClient, HttpPolicy, Timeouts, TlsPolicy, tls_context
from nacos_proxy.upstream.http.transport import FastTransport, PreparedRequest, TransportPolicy
from nacos_proxy.wire.http import HttpReply, HttpRequest
from tests.helpers.fault import MODES, Mode, fault_proxy
from tests.unit.upstream.stub import Request, Say, Stub, ok, say, stub

CERTIFICATES = Path(__file__).parents[3] / "certificates"
CA, SERVER, CLIENT, STRANGER = (str(CERTIFICATES / f"{name}.pem") for name in ("ca", "server", "client", "stranger"))
LIST = HttpRequest("GET", "/v1/ns/instance/list", query=(("serviceName", "g@@a"),))
WRITE = HttpRequest("POST", "/v1/ns/instance", form=(("ip", "10.0.0.1"), ("metadata", '{"a":"b c"}')))

Address = tuple[str, str]  # origin and context path


def address(url: str) -> Address:
    return url, "/nacos"


@asynccontextmanager
async def served(
    play: Callable[[Request], Say], policy: HttpPolicy | None = None, transport: TransportPolicy | None = None
) -> AsyncIterator[tuple[Stub, HttpClient, Address]]:
    async with stub(play) as seen:
        http = HttpClient(policy or HttpPolicy(), FastTransport(transport or TransportPolicy()))
        try:
            yield seen, http, address(seen.url)
        finally:
            await http.transport.aclose()


async def test_http_client_send_sends_the_request_and_returns_the_reply() -> None:
    async with served(lambda _: ok(b'{"hosts":[]}', b"Content-Type: application/json;charset=UTF-8")) as (
        seen,
        http,
        to,
    ):
        reply = await http.send(*to, LIST, [("accessToken", "x")], idempotent=True)
        assert reply == HttpReply(200, "application/json;charset=UTF-8", b'{"hosts":[]}')
        await http.send(*to, WRITE, idempotent=True)
    read, write = seen.requests
    assert read.line == b"GET /nacos/v1/ns/instance/list?serviceName=g%40%40a HTTP/1.1"
    assert b"\r\naccessToken: x\r\n" in read.head
    assert b"\r\nUser-Agent: nacos-proxy\r\n" in read.head
    assert b"ontent-" not in read.head
    assert write.line == b"POST /nacos/v1/ns/instance HTTP/1.1"
    assert b"\r\nContent-Type: application/x-www-form-urlencoded\r\n" in write.head
    assert write.body == b"ip=10.0.0.1&metadata=%7B%22a%22%3A%22b+c%22%7D"


async def test_http_client_send_allows_a_long_query() -> None:
    class Target(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            assert isinstance(request, PreparedRequest)
            return httpx.Response(200, content=request.target)

    http, metadata = HttpClient(HttpPolicy(), Target()), (("metadata", "\u4e2d" * 30_000),)
    reply = await http.send(
        *address("http://a:8848"), HttpRequest("POST", "/v1/ns/instance", metadata), idempotent=True
    )
    assert reply.body == b"/nacos/v1/ns/instance?metadata=" + b"%E4%B8%AD" * 30_000


async def test_http_client_send_caches_nothing_of_the_names_in_requests() -> None:
    """Requests for a million names take no memory: only what belongs to the server is cached."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=request.url.query)

    http, to = HttpClient(HttpPolicy(), httpx.MockTransport(answer)), address("http://a:8848")
    held: list[int] = []
    tracemalloc.start()
    try:
        for number in range(1500):
            named = HttpRequest("GET", "/v1/ns/instance/list", (("serviceName", f"g@@{number}-{'x' * 60}"),))
            assert (await http.send(*to, named, idempotent=True)).body.startswith(b"serviceName=g%%40%%40%d-" % number)
            if number in (499, 1499):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 100_000


@pytest.mark.parametrize("status", [200, 400, 403, 404, 410, 500, 501, 503])
async def test_http_client_send_returns_any_status(status: int) -> None:
    answer = say(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nno" % status)
    async with served(lambda _: answer) as (_, http, to):
        assert await http.send(*to, LIST, idempotent=True) == HttpReply(status, None, b"no")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ok(b"<html><body>It works!"), "an HTML page with status 200"),
        (ok(b"\r\n  <!DOCTYPE html>"), "an HTML page with status 200"),
        (say(b"HTTP/1.1 502 X\r\nContent-Length: 6\r\n\r\n<html>"), "an HTML page with status 502"),
        (say(b"HTTP/1.1 302 X\r\nLocation: https://login/\r\nContent-Length: 0\r\n\r\n"), "a redirect with status 302"),
        (say(b"HTTP/1.1 304 X\r\n\r\n"), "a redirect with status 304"),
        (say(b"\x00\x01\x02\r\n\r\n"), "the answer is not valid HTTP"),
        (say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", then="close"), "during the answer"),
        (say(b"HTTP/1.1 204 X\r\n\r\n"), "the status 204"),
        (say(b"HTTP/1.1 205 X\r\nContent-Length: 2\r\n\r\nok"), "the status 205"),
        (say(b"HTTP/1.1 999 X\r\nContent-Length: 2\r\n\r\nok"), "the invalid status 999"),
    ],
)
async def test_http_client_send_raises_garbled_for_answers_that_are_not_from_nacos(answer: Say, said: str) -> None:
    async with served(lambda _: answer) as (seen, http, to):
        with pytest.raises(Garbled, match=said) as raised:
            await http.send(*to, LIST, idempotent=True)
        assert str(raised.value).startswith(f"{seen.url}: ")


CODINGS = [
    (b"Content-Encoding: gzip",),
    (b"Content-Encoding: x-gzip",),
    (b"content-encoding: GZIP",),
    (b"Content-Encoding: deflate",),
    (b"Content-Encoding: br",),
    (b"Content-Encoding: zstd",),
    (b"Content-Encoding: gzip, gzip",),
    (b"Content-Encoding: identity, gzip",),
    (b"Content-Encoding: gzip", b"Content-Encoding: identity"),
    (b"Content-Encoding: of-nobody",),
]


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Compressed twice, a gigabyte fits into a kilobyte."""
    packed = gzip.compress(gzip.compress(bytes(64 << 20)))
    assert len(packed) < 1000
    return packed


@pytest.mark.parametrize("fields", CODINGS)
@pytest.mark.parametrize("whole", [True, False])
async def test_http_client_send_refuses_a_compressed_answer_before_reading_it(
    bomb: bytes, fields: tuple[bytes, ...], whole: bool
) -> None:
    answer = ok(bomb, *fields)
    if not whole:
        answer = say(answer.pieces[0].replace(b"Content-Length: ", b"Content-Length: 1"), then="hang")
    async with served(lambda _: answer) as (seen, http, to):
        tracemalloc.start()
        try:
            for ask in (lambda: http.send(*to, LIST, idempotent=True), lambda: http.get(seen.url)):
                with pytest.raises(Garbled, match="the answer is compressed"):
                    await ask()
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
    assert all(b"\r\nAccept-Encoding: identity\r\n" in request.head for request in seen.requests)


async def test_http_client_send_accepts_the_identity_encoding() -> None:
    async with served(lambda _: ok(b"[]", b"Content-Encoding: Identity")) as (_, http, to):
        assert (await http.send(*to, LIST, idempotent=True)).body == b"[]"


async def test_http_client_send_bounds_the_answer() -> None:
    async with served(lambda _: ok(b"x" * 400_000), HttpPolicy(max_body=300_000)) as (seen, http, to):
        with pytest.raises(Garbled, match="more than 300000 bytes"):
            await http.send(*to, LIST, idempotent=True)
        with pytest.raises(Garbled, match="more than 300000 bytes"):
            await http.send(*to, LIST, idempotent=True)
        assert len(seen.requests) == 2, "nothing that was left over is taken for the next answer"


async def test_http_client_send_limits_the_total_time_of_a_trickling_answer() -> None:
    trickle = say(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", *[b"x"] * 3000, then="hang")
    policy = HttpPolicy(timeouts=Timeouts(reads=0.05, writes=60.0))
    async with served(lambda request: ok() if request.body else trickle, policy) as (_, http, to):
        await http.send(*to, WRITE, idempotent=True)
        with pytest.raises(TooSlow, match="no answer in time"):
            await http.send(*to, LIST, idempotent=True)


async def test_http_client_send_has_separate_timeouts_for_reads_and_writes() -> None:
    policy = HttpPolicy(timeouts=Timeouts(reads=0.02, writes=60.0))
    answers = {b"GET": say(then="hang"), b"POS": ok()}
    async with served(lambda request: answers[request.head[:3]], policy) as (_, http, to):
        assert (await http.send(*to, WRITE, idempotent=True)).status == 200
        with pytest.raises(TooSlow):
            await http.send(*to, LIST, idempotent=True)


@pytest.mark.parametrize(("idempotent", "requests"), [(True, 3), (False, 2)])
async def test_http_client_send_repeats_an_idempotent_call_after_a_stale_connection(
    idempotent: bool, requests: int
) -> None:
    answers = iter([ok(), say(then="close"), ok(b"again")])
    async with served(lambda _: next(answers)) as (seen, http, to):
        await http.send(*to, LIST, idempotent=True)
        call = http.send(*to, HttpRequest("DELETE", "/v1/ns/service"), idempotent=idempotent)
        if idempotent:
            assert (await call).body == b"again"
        else:
            with pytest.raises(Unreachable) as raised:
                await call
            assert raised.value.arrived
        assert len(seen.requests) == requests


async def test_http_client_send_without_a_server_is_unreachable_and_did_not_arrive() -> None:
    async with stub(lambda _: ok()) as gone:
        pass
    http = HttpClient(HttpPolicy(), FastTransport())
    with pytest.raises(Unreachable) as raised:
        await http.send(*address(gone.url), WRITE, idempotent=False)
    assert (str(raised.value), raised.value.arrived) == (f"{gone.url}: no connection: Connection refused", False)


@pytest.mark.parametrize("mode", MODES)
async def test_http_client_send_turns_every_network_fault_into_our_error_or_a_reply(mode: Mode) -> None:
    """Every fault raises an `UpstreamError`, and none calls a write unsent that was sent."""
    async with stub(lambda _: ok(b"[]")) as seen, fault_proxy(int(seen.url.rpartition(":")[2])) as way:
        transport = FastTransport()
        await HttpClient(HttpPolicy(), transport).send(*address(way.url), LIST, idempotent=True)
        await way.set(mode)
        seconds = 0.5 if mode in ("slow", "blackhole") else 30.0
        http = HttpClient(HttpPolicy(timeouts=Timeouts(30.0, seconds, seconds)), transport)
        while transport.connections:  # the one that stood is cut
            await asyncio.sleep(0)
        for request in (LIST, WRITE):
            try:
                reply = await http.send(*address(way.url), request, idempotent=False)
            except UpstreamError as error:
                if mode != "reset":  # which may come before or after the request went out
                    assert error.arrived is (mode != "refuse")
                assert error.status == (504 if mode in ("slow", "blackhole") else 502)
            else:
                assert mode in ("status_500", "empty", "wrong_type"), reply
        await transport.aclose()


# any URL


async def test_http_client_get_sends_nothing_that_is_only_for_nacos() -> None:
    policy = HttpPolicy("ours", ("serverIdentity", "secret"), sni="nacos.example")
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, text="10.0.0.1\n")

    http = HttpClient(policy, httpx.MockTransport(answer))
    assert (await http.get("http://address:8080/nacos/serverlist?x=1")).body == b"10.0.0.1\n"
    [request] = asked
    assert "sni_hostname" not in request.extensions
    assert "secret" not in str(request.headers)
    assert request.extensions["total"] == policy.timeouts.reads


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://nacos:8848/a?accessToken=secret", "http://nacos:8848"),
        ("http://user:secret@nacos/a", "http://nacos"),
        ("http://nacos?token=secret", "http://nacos"),
        ("http://user:secret@nacos?x=@secret#secret", "http://nacos"),
        ("https://[::1]:80#secret", "https://[::1]:80"),
    ],
)
async def test_http_client_get_error_names_the_server_and_no_secret(url: str, shown: str) -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no connection")

    assert shown_origin(url) == shown
    with pytest.raises(Unreachable) as raised:
        await HttpClient(HttpPolicy(), httpx.MockTransport(broken)).get(url)
    assert str(raised.value) == f"{shown}: no connection"


def test_http_policy_repr_shows_no_secret() -> None:
    assert "secret" not in repr(HttpPolicy(identity=("serverIdentity", "secret")))


# TLS


@asynccontextmanager
async def over_tls(
    policy: TlsPolicy, *, wants: str = "", sni: str = "", certificate: str = SERVER
) -> AsyncIterator[tuple[HttpClient, Address, list[str | None]]]:
    """A server that requires a client certificate of the authority `wants`; yields the names that it was asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if wants:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(wants)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with stub(lambda _: ok(b"hello"), context) as seen:
        http = HttpClient(HttpPolicy(sni=sni), FastTransport(tls=tls_context(policy)))
        try:
            yield http, address(seen.url), names
        finally:
            await http.transport.aclose()


async def said(http: HttpClient, to: Address) -> Any:
    return (await http.send(*to, LIST, idempotent=True)).body


async def test_tls_context_trusts_the_given_authority() -> None:
    async with over_tls(TlsPolicy(ca=CA)) as (http, to, _):
        assert await said(http, to) == b"hello"


async def test_tls_context_does_not_trust_an_unknown_authority() -> None:
    async with over_tls(TlsPolicy()) as (http, to, _):
        with pytest.raises(Unreachable, match="certificate verify failed") as raised:
            await said(http, to)
        assert raised.value.arrived is False
    async with over_tls(TlsPolicy(ca=CA), certificate=STRANGER) as (http, to, _):
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await said(http, to)


async def test_tls_context_without_verify_trusts_every_server() -> None:
    async with over_tls(TlsPolicy(verify=False), certificate=STRANGER) as (http, to, _):
        assert await said(http, to) == b"hello"


async def test_http_client_sni_is_sent_and_must_match_the_certificate() -> None:
    async with over_tls(TlsPolicy(ca=CA), sni="localhost") as (http, to, names):
        assert await said(http, to) == b"hello"
        assert names == ["localhost"]
    async with over_tls(TlsPolicy(ca=CA), sni="nacos.example") as (http, to, names):
        with pytest.raises(Unreachable, match=r"nacos\.example"):
            await said(http, to)
        assert names == ["nacos.example"]


async def test_tls_context_presents_the_client_certificate() -> None:
    async with over_tls(TlsPolicy(ca=CA, certificate=CLIENT), wants=CA) as (http, to, _):
        assert await said(http, to) == b"hello"
        assert await said(http, to) == b"hello"


async def test_http_client_send_fails_without_a_required_client_certificate() -> None:
    async with over_tls(TlsPolicy(ca=CA), wants=CA) as (http, to, _):
        with pytest.raises(Unreachable):
            await said(http, to)
    async with over_tls(TlsPolicy(ca=CA, certificate=STRANGER), wants=CA) as (http, to, _):
        with pytest.raises(Unreachable):
            await said(http, to)


async def test_http_client_send_with_the_wrong_scheme_raises_our_errors() -> None:
    async with over_tls(TlsPolicy(ca=CA)) as (http, to, _):
        with pytest.raises(UpstreamError):
            await said(http, address(to[0].replace("https", "http")))
    async with served(lambda _: ok()) as (_, http, to):
        with pytest.raises(UpstreamError):
            await said(http, address(to[0].replace("http", "https")))


@pytest.mark.parametrize("policy", [TlsPolicy(ca="/nowhere.pem"), TlsPolicy(certificate="/nowhere.pem")])
def test_tls_context_raises_for_a_missing_file(policy: TlsPolicy) -> None:
    with pytest.raises(OSError, match=r".+"):
        tls_context(policy)


def test_tls_context_raises_for_a_file_that_is_not_a_certificate(tmp_path: Path) -> None:
    path = tmp_path / "no.pem"
    path.write_text("no certificate")
    for policy in (TlsPolicy(ca=str(path)), TlsPolicy(certificate=str(path)), TlsPolicy(ca=CA, certificate=CA)):
        with pytest.raises(ssl.SSLError):
            tls_context(policy)
