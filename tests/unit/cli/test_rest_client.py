"""The REST client of the command line: calls, errors, event streams."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from nacos_proxy.cli.rest_client import ApiProblem, RestClient, Unreached, address_segment, service_path
from tests.helpers.live import ProxyProcess
from tests.unit.cli.answers import Answer, answered_by


def client(answer: Answer, token: str = "") -> RestClient:
    return RestClient("127.0.0.1:8840", token, connect=answered_by(answer))


def saying(status: int, **more: object) -> Answer:
    return lambda request: httpx.Response(status, **more)  # type: ignore[arg-type]


def stream(*events: str) -> Answer:
    headers = {"content-type": "text/event-stream"}
    return lambda request: httpx.Response(200, headers=headers, text="".join(events))


def test_rest_client_sends_query_body_and_token() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"ok": 1})

    with client(answer, "12345678") as proxy:
        assert proxy.json("POST", "/api/v1/x", {"group": "", "cluster": "c"}, {"ip": "10.0.0.1"}) == {"ok": 1}
    (request,) = seen
    assert str(request.url) == "http://127.0.0.1:8840/api/v1/x?cluster=c"
    assert request.headers["authorization"] == "Bearer 12345678"
    assert request.content == b'{"ip": "10.0.0.1"}'


def test_api_problem_has_the_detail_and_a_hint() -> None:
    document = {"title": "The request is not allowed", "detail": "no token was given"}
    with client(saying(401, json=document)) as proxy, pytest.raises(ApiProblem) as caught:
        proxy.call("GET", "/")
    assert str(caught.value) == "no token was given. Set an API token: --token, or NACOS_PROXY_TOKEN."
    assert (caught.value.status, caught.value.temporary) == (401, False)


def test_api_problem_says_that_the_upstream_refused() -> None:
    document = {"type": "urn:upstream-refused", "title": "The upstream refused", "detail": "no such service"}
    with client(saying(400, json=document)) as proxy, pytest.raises(ApiProblem, match="The upstream refused: no such"):
        proxy.call("GET", "/")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (saying(502, text="<html>bad gateway</html>"), "502 Bad Gateway: <html>bad gateway</html>"),
        (saying(500, json=["no object"]), '500 Internal Server Error: ["no object"]'),
        (saying(503, json={"title": "Nothing is known"}), "Nothing is known"),
    ],
)
def test_api_problem_without_a_document_has_status_and_text(answer: Answer, text: str) -> None:
    with client(answer) as proxy, pytest.raises(ApiProblem) as caught:
        proxy.call("GET", "/")
    assert (str(caught.value), caught.value.temporary) == (text, True)


def test_unreached_names_the_url() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise ConnectionRefusedError(111, "refused")

    with client(answer) as proxy, pytest.raises(Unreached, match=r"no proxy answers at http://127.0.0.1:8840: refused"):
        proxy.call("GET", "/")
    with client(answer) as proxy, pytest.raises(Unreached):
        next(proxy.events({"service": "a"}))


@pytest.mark.parametrize("answer", [saying(200, text="hello"), saying(200, json=[1])])
def test_rest_client_recognises_another_program(answer: Answer) -> None:
    with client(answer) as proxy, pytest.raises(Unreached, match="is not a nacos-proxy"):
        proxy.json("GET", "/")


def test_rest_client_takes_a_redirect_for_no_answer() -> None:
    """A gateway that sends http to https would otherwise make each write a success."""
    away = saying(301, headers={"location": "https://a/\x1b"})
    with client(away) as proxy:
        with pytest.raises(Unreached, match=r"redirects to https://a/"):
            proxy.call("DELETE", "/")
        with pytest.raises(Unreached, match="redirects to"):
            next(proxy.events({"service": "a"}))


def test_rest_client_refuses_a_compressed_answer() -> None:
    def packed(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, headers={"content-encoding": "gzip, gzip"}, stream=httpx.ByteStream(b"a bomb"))

    with client(packed) as asking:
        with pytest.raises(Unreached, match=r"the answer is compressed \(gzip, gzip\)"):
            asking.json("GET", "/status")
        with pytest.raises(Unreached, match="the answer is compressed"):
            list(asking.events({}))


def test_rest_client_events_have_id_and_type() -> None:
    answer = stream("retry: 2000\n\n", ": heartbeat\n\n", 'id: e-1\nevent: change\ndata: {"name": "a"}\n\n')
    with client(answer) as proxy:
        assert list(proxy.events({"service": "a"})) == [("e-1", "change", {"name": "a"})]


def test_rest_client_events_resume_after_the_last_id() -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("last-event-id"))
        return stream("")(request)

    with client(answer) as proxy:
        assert list(proxy.events({"service": "a"})) + list(proxy.events({"service": "a"}, "e-7")) == []
    assert seen == [None, "e-7"]


def test_rest_client_events_raise_for_a_refused_stream() -> None:
    with client(saying(404, json={"title": "no"})) as proxy, pytest.raises(ApiProblem, match="no"):
        next(proxy.events({"service": "a"}))
    with client(saying(200, json={})) as proxy, pytest.raises(Unreached):
        next(proxy.events({"service": "a"}))
    with client(stream("data: no json\n\n")) as proxy, pytest.raises(Unreached):
        next(proxy.events({"service": "a"}))


@pytest.mark.parametrize("server", ["ftp://a", "http://", "http://a:b", "http://[::1"])
def test_rest_client_refuses_an_invalid_url(server: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        RestClient(server)


@pytest.mark.parametrize("token", ["ä", "a\nb"])
def test_rest_client_refuses_a_token_that_no_header_can_carry(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        RestClient("http://a", token)


def test_rest_client_names_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot use .*none\.pem: No such file"):
        RestClient("https://a", ca=str(tmp_path / "none.pem"))
    (tmp_path / "bad.pem").write_text("nothing")
    with pytest.raises(ValueError, match=r"cannot use .*bad\.pem"):
        RestClient("https://a", cert=str(tmp_path / "bad.pem"))


def test_rest_client_connects_to_a_unix_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreached, match="No such file"), RestClient(f"unix:{tmp_path}/none.sock") as proxy:
        proxy.call("GET", "/healthz")
    with ProxyProcess("--uds", str(tmp_path / "proxy.sock")), RestClient(f"unix:{tmp_path}/proxy.sock") as proxy:
        assert proxy.json("GET", "/healthz") == {"status": "ok"}


def test_service_path_encodes_names() -> None:
    assert service_path("a/b@@c d") == "/api/v1/services/a%2Fb%40%40c%20d"
    assert service_path("a", "instances", address_segment("10.0.0.1:80")) == "/api/v1/services/a/instances/10.0.0.1:80"
    assert address_segment("[2001:db8::1]:80") == "[2001:db8::1]:80"


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:", ":80", "10.0.0.1:abc", "2001:db8::1:80", "10.0.0.1:²"])
def test_address_segment_refuses_other_text(address: str) -> None:
    with pytest.raises(ValueError, match="is not ip:port"):
        address_segment(address)
