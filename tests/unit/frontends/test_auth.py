"""Access control: host names, origins, tokens and their rights."""

from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nacos_proxy.frontends.auth import RIGHT, AccessControl, AccessPolicy, Token, host_name, required_right
from nacos_proxy.frontends.open_streams import Admission, Right
from nacos_proxy.frontends.request_body import read_body
from tests.helpers.asgi import ask
from tests.unit.frontends.conftest import refuse

TOKENS = (Token("reader", "read"), Token("writer", "write"), Token("boss", "admin"))


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def status(
    policy: AccessPolicy,
    method: str = "GET",
    path: str = "/x",
    query: str = "",
    app: ASGIApp | None = None,
    **headers: str,
) -> int:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    await AccessControl(app or inner, policy, refuse)(
        scope | {"headers": raw, "server": ("127.0.0.1", 8840)}, receive, send
    )
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8840", 200),
        ("127.0.0.1:8840", 200),
        ("127.9.9.9", 200),
        ("[::1]:8840", 200),
        ("proxy.localhost", 200),
        ("evil.example:8840", 421),
        ("10.0.0.1:8840", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 200),
    ],
)
async def test_host_check_refuses_a_rebound_name_on_loopback(host: str, expected: int) -> None:
    assert await status(AccessPolicy(), host=host) == expected


async def test_host_check_accepts_names_in_hosts() -> None:
    assert await status(AccessPolicy(hosts=frozenset({"proxy.internal"})), host="proxy.internal:80") == 200
    assert await status(AccessPolicy(hosts=frozenset({"*"})), host="anything") == 200


@pytest.mark.parametrize(
    ("path", "method", "headers", "expected"),
    [
        ("/v3/discovery:endpoints", "POST", {"host": "nacos_proxy"}, 200),
        ("/v3/discovery:clusters", "POST", {"host": "Nacos-Proxy"}, 200),
        ("/v3/discovery:endpoints", "POST", {"host": "nacos_proxy:8848"}, 200),
        # the internet's names have a dot
        ("/v3/discovery:endpoints", "POST", {"host": "evil.example.com"}, 421),
        ("/v3/discovery:endpoints", "POST", {"host": "evil.example.com."}, 421),
        ("/v3/discovery:endpoints", "POST", {"host": "evil."}, 421),
        ("/v3/discovery:endpoints", "POST", {"host": "10.0.0.1"}, 421),
        ("/v3/discovery:endpoints", "POST", {"host": "[fe80::1]"}, 421),
        # what a browser sends for a page of the local network, which may have a name without a dot
        ("/v3/discovery:endpoints", "POST", {"host": "evil:8848", "origin": "http://evil:8848"}, 421),
        ("/v3/discovery:endpoints", "POST", {"host": "evil", "origin": "null"}, 421),
        ("/v3/discovery:endpoints", "POST", {"host": "evil", "sec_fetch_site": "same-origin"}, 421),
        ("/v3/discovery:endpoints", "GET", {"host": "evil"}, 421),
        # nothing else is open to these names
        ("/v3/discovery:routes", "POST", {"host": "nacos_proxy"}, 421),
        ("/v3/discovery:endpoints/", "POST", {"host": "nacos_proxy"}, 421),
        ("/api/v1/services", "GET", {"host": "nacos_proxy"}, 421),
        ("/nacos/v1/ns/instance", "POST", {"host": "nacos_proxy"}, 421),
    ],
)
async def test_host_check_accepts_the_cluster_name_of_envoy_but_no_rebound_page(
    path: str, method: str, headers: dict[str, str], expected: int
) -> None:
    assert await status(AccessPolicy(), method, path, **headers) == expected


@pytest.mark.parametrize("context", ["/nacos", ""])
async def test_discovery_by_post_needs_the_right_to_read(context: str) -> None:
    assert required_right("POST", "/v3/discovery:endpoints", context) == "read"
    policy = AccessPolicy(tokens=TOKENS, context_path=context)
    assert await status(policy, "POST", "/v3/discovery:clusters", host="nacos_proxy") == 401
    for_reader = {"host": "nacos_proxy", "authorization": "Bearer reader"}
    assert await status(policy, "POST", "/v3/discovery:clusters", **for_reader) == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8840"}, 200),
        ({"origin": "https://127.0.0.1:8840", "sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "http://evil.example", "sec_fetch_site": "same-origin"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "https://console.example"}, 200),
    ],
)
async def test_origin_check_refuses_changes_by_a_page_of_another_site(headers: dict[str, str], expected: int) -> None:
    """A browser sends a form of any page, though the page cannot read the answer."""
    policy = AccessPolicy(origins=frozenset({"https://console.example"}))
    where = {"host": "127.0.0.1:8840", **headers}
    assert await status(policy, "POST", "/nacos/v1/ns/instance", **where) == expected
    assert await status(policy, "GET", "/nacos/v1/ns/instance/list", **where) == 200


async def test_origin_check_accepts_any_page_with_a_star() -> None:
    policy = AccessPolicy(origins=frozenset({"*"}))
    assert await status(policy, "DELETE", host="localhost", origin="http://anything.example") == 200


async def test_host_check_accepts_any_host_beyond_loopback_but_a_token_is_required() -> None:
    policy = AccessPolicy(tokens=TOKENS, loopback=False)
    assert await status(policy, host="10.0.0.1") == 401
    assert await status(policy, host="10.0.0.1", authorization="Bearer reader") == 200


async def test_host_check_accepts_only_named_hosts_beyond_loopback_if_there_are_any() -> None:
    """A container published on a loopback port can be reached by a rebound name, too."""
    policy = AccessPolicy(loopback=False, hosts=frozenset({"proxy"}))
    assert [await status(policy, host=host) for host in ("proxy:8840", "10.0.0.1", "localhost")] == [200] * 3
    assert await status(policy, host="evil.example") == 421


@pytest.mark.parametrize(
    ("token", "method", "path", "expected"),
    [
        ("reader", "GET", "/api/v1/services", 200),
        ("reader", "POST", "/api/v1/services/a/instances", 403),
        ("writer", "POST", "/api/v1/services/a/instances", 200),
        ("writer", "PUT", "/nacos/v1/ns/instance/beat", 200),
        ("writer", "POST", "/nacos/v1/cs/configs", 403),
        ("writer", "DELETE", "/nacos/v1/ns/service", 403),
        ("boss", "POST", "/nacos/v1/cs/configs", 200),
        ("stranger", "GET", "/api/v1/services", 401),
    ],
)
async def test_access_control_gives_each_token_its_right(token: str, method: str, path: str, expected: int) -> None:
    assert await status(AccessPolicy(tokens=TOKENS), method, path, authorization=f"Bearer {token}") == expected


@pytest.mark.parametrize(
    ("token", "right", "expected"),
    [
        (None, "read", 401),
        ("unknown", "read", 401),
        ("reader", "read", 0),
        ("reader", "write", 403),
        ("writer", "write", 0),
        ("writer", "admin", 403),
        ("boss", "admin", 0),
    ],
)
def test_check_needs_no_http_request(token: str | None, right: Right, expected: int) -> None:
    error = AccessControl(inner, AccessPolicy(tokens=TOKENS), refuse).check(Admission(token, right))
    assert (0 if error is None else error.status) == expected
    assert AccessControl(inner, AccessPolicy(), refuse).check(Admission(token, right)) is None


@pytest.mark.parametrize(("more", "right"), [({}, None), ({"authorization": "Bearer writer"}, "write")])
async def test_access_control_tells_the_app_the_right_of_the_token(more: dict[str, str], right: Right | None) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope.get(RIGHT, "none needed"))
        await inner(scope, receive, send)

    for policy, expected in ((AccessPolicy(tokens=TOKENS), right), (AccessPolicy(), "none needed")):
        assert await status(policy, path="/ui", app=app, **more) == 200
        assert seen.pop() == expected


def test_is_own_knows_this_proxys_tokens() -> None:
    guard = AccessControl(inner, AccessPolicy(tokens=TOKENS), refuse)
    assert guard.is_own("boss") and not guard.is_own("of the upstream")


async def test_access_control_takes_the_token_from_query_and_accesstoken_header() -> None:
    policy = AccessPolicy(tokens=TOKENS)
    assert await status(policy, query="accessToken=reader") == 200
    assert await status(policy, accesstoken="reader") == 200
    assert await status(policy, query="accessToken=wrong") == 401


@pytest.mark.parametrize(
    "path", ["/readyz", "/healthz", "/docs", "/docs/start.js", "/openapi.json", "/", "/ui", "/ui/", "/ui/page.js"]
)
async def test_open_paths_need_no_token(path: str) -> None:
    assert await status(AccessPolicy(tokens=TOKENS), path=path) == 200


@pytest.mark.parametrize(
    "path", ["/status", "/status/a", "/metrics", "/docs/", "/docs/../status", "/readyz/", "/ui/x", "/ui/../status"]
)
async def test_other_paths_need_a_token(path: str) -> None:
    assert await status(AccessPolicy(tokens=TOKENS), path=path) == 401


def test_access_policy_does_not_show_a_token_in_a_repr() -> None:
    assert "reader" not in repr(AccessPolicy(tokens=TOKENS))


@pytest.mark.parametrize(("host", "name"), [("A:1", "a"), ("[::1]:1", "::1"), ("x", "x")])
def test_host_name_has_no_port(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize("context", ["/nacos", "/a/b", ""])
@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("POST", "/v1/auth/login", "read"),
        ("POST", "/v1/auth/users/login", "read"),
        ("POST", "/v3/auth/user/login", "read"),
        # an account created upstream may have more rights than the token that created it
        ("POST", "/v1/auth/users", "admin"),
        ("POST", "/v1/auth/roles", "admin"),
        ("PUT", "/v3/auth/user", "admin"),
        ("POST", "/v1/cs/configs;/auth/login", "admin"),
        ("POST", "/v1/cs/configs/auth/login", "admin"),
        ("POST", "/v1/ns/instance", "write"),
        ("PUT", "/v1/ns/instance/metadata/batch", "write"),
        ("POST", "/v3/client/ns/instance", "write"),
        ("PUT", "/v3/admin/ns/instance", "write"),
        ("POST", "/v1/ns/instances-of-others", "admin"),
        ("PUT", "/v1/ns/operator/switches", "admin"),
        ("DELETE", "/v1/auth/login", "admin"),
    ],
)
def test_required_right_of_nacos_calls(context: str, method: str, path: str, right: str) -> None:
    assert required_right(method, context + path, context) == right


@pytest.mark.parametrize("context", ["/nacos", "/a/b", ""])
def test_required_right_of_the_rest_api_is_write_with_any_context_path(context: str) -> None:
    assert required_right("POST", "/api/v1/services/a/instances", context) == "write"


def test_required_right_of_an_event_stream_is_read_with_any_method() -> None:
    assert {required_right(method, "/api/v1/events", "/nacos") for method in ("GET", "POST")} == {"read"}


def test_required_right_of_unknown_paths_below_the_context_path_is_admin() -> None:
    assert required_right("POST", "/nacos/actuator/shutdown", "/nacos") == "admin"
    assert (
        required_right("POST", "/nacosx/v1/cs/configs", "/nacos") == "write"
    )  # not forwarded: the upstream has no such path


async def posted(policy: AccessPolicy, body: bytes, method: str = "POST", **headers: str) -> tuple[int, bytes]:
    """The status of a form request, and the part of its body that the app behind received."""
    seen = b""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal seen
        seen = await read_body(scope, receive, 1 << 20)
        await inner(scope, receive, send)

    given = {"content-length": str(len(body)), "content-type": "application/x-www-form-urlencoded", **headers}
    reply = await ask(AccessControl(app, policy, refuse), method, "/nacos/v1/ns/instance", headers=given, body=body)
    return reply.status, seen


@pytest.mark.parametrize("name", ["accessToken", "access_token"])
async def test_access_control_takes_the_token_from_a_form_and_replays_it(name: str) -> None:
    """The Go SDK sends its token so."""
    policy = AccessPolicy(tokens=TOKENS)
    body = f"serviceName=a&{name}=writer".encode()
    assert await posted(policy, body) == (200, body)
    assert (await posted(policy, b"serviceName=a&accessToken=reader"))[0] == 403
    assert (await posted(policy, b"serviceName=a&accessToken=wrong"))[0] == 401
    assert (await posted(policy, b"serviceName=a"))[0] == 401


async def test_access_control_takes_the_token_from_a_multipart_form() -> None:
    policy, kind = AccessPolicy(tokens=TOKENS), {"content-type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="accessToken"\r\n\r\n%b\r\n--b--\r\n'
    assert await posted(policy, body % b"writer", **kind) == (200, body % b"writer")
    assert (await posted(policy, body % b"reader", **kind))[0] == 403
    assert (await posted(policy, b"x", **kind))[0] == 401


async def test_access_control_prefers_a_token_in_the_headers_to_one_in_the_form() -> None:
    policy = AccessPolicy(tokens=TOKENS)
    assert (await posted(policy, b"accessToken=writer", accesstoken="wrong"))[0] == 401
    assert (await posted(policy, b"accessToken=theirs", authorization="Bearer writer"))[0] == 200


async def test_access_control_finds_no_token_in_a_long_form_or_another_type() -> None:
    policy = AccessPolicy(tokens=TOKENS, max_form=30)
    assert (await posted(policy, b"accessToken=writer&a=" + b"x" * 30))[0] == 401
    kind = {"content-type": "application/json"}
    assert (await posted(AccessPolicy(tokens=TOKENS), b"accessToken=writer", **kind))[0] == 401
    assert (await posted(AccessPolicy(tokens=TOKENS), b"accessToken=writer", "GET"))[0] == 401
