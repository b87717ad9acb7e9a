"""Any parameter, body or header gets an answer: no exception and no fault of the proxy.

Covers every operation of the REST API and of the three dialects, each parameter by name. `test_fuzz` covers bytes that
are not requests.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nacos_proxy.app.server import App, build
from nacos_proxy.app.settings import Settings
from nacos_proxy.wire.nacos.administration import WHOLE
from nacos_proxy.wire.nacos.base import ANY
from nacos_proxy.wire.rest.bodies import BeatBody, RegisterBody, UpdateBody
from tests.helpers.asgi import Exchange, scope, start
from tests.helpers.clock import FakeClock

FUZZ = settings(suppress_health_check=list(HealthCheck), deadline=None)
DIGITS = "9" * 5000  # more digits than Python converts
HOSTILE: tuple[str, ...] = (
    *("", " ", "\0", "\n", "a\r\nb: c", "\x85", "\u2028", "\ud800", "\udcff", "é", "北京", "\U0001f600", "\u0661", "²"),
    *(DIGITS, f"-{DIGITS}", f"1e{DIGITS}", f"0.{DIGITS}", f"{DIGITS}.0", "1e999", "NaN", "-Infinity", "1_0", "0x7f"),
    *("+1", "-1", "0", "1", "80", "80.0", "65536", "2147483648", "9223372036854775808", "true", "maybe", "null", "[]"),
    *("{}", "[" * 2000, '{"a":' * 2000, '{"a":"b"', '{"ip":{}}', '[{"ip":[]}]', '{"type":"label"}', '{"type":[]}', '"'),
    *(f'{{"ip":"a","port":{DIGITS}}}', f'{{"weight":{DIGITS}}}', f'{{"weight":"{DIGITS}","port":"1"}}', "a=b=c", "="),
    *(
        '[{"port":1e999}]',
        '{"port":{"a":1}}',
        '{"metadata":[1]}',
        '{"weight":"x"}',
        '{"a":"\\ud800"}',
        '{"checker":{}}',
    ),
    *("k=v", ",", "@", "@@", "a@@b", "@@a", "a@@", "a@@b@@c", "##a@@b", "n##a@@b", "#", "a#b", "..", "/", "a/b", "*"),
    *("%", "%zz", "a" * 3000, "orders", "[::1", "::1]", "[::1]", "[]", "]", "[[", "10.0.0.1", "10.0.0.1:80", "a:b:c"),
    *(
        "[::1]:80",
        "::1%eth0",
        "::1%a\0b",
        "fe80::1%a\0b",
        "fe80::1%é",
        "http://[::1",
        "http://a:b@c",
        "30s",
        "1h",
        f"{DIGITS}s",
        "1ms",
        f"max-age={DIGITS}",
    ),
    *("no-cache, max-age=-1", "weighted", "hash", "v1", "TCP", "NONE", "HTTP", "text/plain", "multipart/form-data"),
    *("multipart/form-data; boundary=a", 'W/"a"', f"e-{DIGITS[:90]}", "Bearer", f"Bearer {DIGITS}", "bytes=0-1"),
    *("application/openmetrics-text; version=x.y", f"application/openmetrics-text; version={DIGITS}", "*/*;q=a"),
)
NAMES = (
    "app beat checker checkPort clientId clientIP cluster clusterName clusters consistencyType enable enabled "
    "enabledOnly encoding entry ephemeral groupName groupNameParam hasIpCount healthChecker healthy healthyOnly "
    "heartBeat ignoreEmptyService instances ip key metadata namespaceId pageNo pageSize port protectThreshold selector "
    "serviceName serviceNameParam udpPort useInstancePort4Check valid value weight withInstances"
).split()
REST_NAMES = (
    "service namespace group clusters cluster healthy_only ephemeral page size index wait strategy key format limit"
).split()
PUSHED = {"user-agent": "Nacos-Java-Client:v1.4.6"}
GOOD = {
    "udpPort": "9",
    "serviceName": "orders",
    "ip": "10.0.0.1",
    "port": "80",
    "clusterName": "DEFAULT",
    "key": "g@@orders",
}
HEADERS = ("accept", "cache-control", "content-type", "if-none-match", "last-event-id", "user-agent", "client-version")
HEADERS += ("authorization", "accesstoken", "content-length", "range", "x-forwarded-for")

SETTINGS: dict[str, Any] = {"upstream": "embedded", "disk": False, "udp_push": True, "push": "off"}
values = st.sampled_from(HOSTILE)
FORM = "application/x-www-form-urlencoded"


def form(pairs: dict[str, str]) -> bytes:
    return "&".join(f"{name}={quote(text.encode('utf-8', 'surrogatepass'))}" for name, text in pairs.items()).encode()


@pytest.fixture(params=["on", "off"])
async def app(request: pytest.FixtureRequest) -> AsyncIterator[App]:
    """The whole program around the embedded registry, with and without Nacos's parameter check."""
    made = App(build(Settings(**SETTINGS, parameter_check=request.param), FakeClock()))
    yield made
    await made.components.agent.close()


async def say(app: App, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Exchange:
    """Sends a request and returns its answer; raises an exception of the app. Disconnects from a stream."""
    sent = {name: text for name, text in headers.items() if text.isascii() and text.isprintable()}
    exchange = await start(app, scope(method, target, sent), body)
    if not exchange.complete:
        await exchange.leave()
    await exchange.ended()
    return exchange


OPERATIONS = sorted(
    {
        (dialect.name, "GET" if row.method == ANY else row.method, row.path.replace("{key}", "orders"))
        for dialect in WHOLE
        for row in dialect.operations
    }
)


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
@FUZZ
@given(
    st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from(HEADERS), values, max_size=2),
)
async def test_nacos_api_answers_any_parameters_without_a_fault(
    app: App,
    errors: list[str],
    operation: tuple[str, str, str],
    given: dict[str, str],
    whole: bool,
    by_form: bool,
    headers: dict[str, str],
) -> None:
    _, method, path = operation
    parameters, target, body = form({**(GOOD if whole else {}), **given}), f"/nacos{path}", b""
    if by_form and method != "GET":
        headers, body = {"content-type": FORM, **PUSHED, **headers}, parameters
    else:
        target, headers = f"{target}?{parameters.decode()}", {**PUSHED, **headers}
    answer = await say(app, method, target, headers, body)
    # Some parameters make Nacos answer 500, so the proxy does too; faults of the proxy would be logged
    assert answer.status <= 501, answer.body
    assert errors == []


ROUTES = sorted(
    (path, method.upper())
    for path, item in App(build(Settings(**SETTINGS), FakeClock())).router.rest.openapi()["paths"].items()
    for method in item
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | values,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(values, inner, max_size=2),
    max_leaves=4,
)
CHECKS = st.fixed_dictionaries(
    {"check": st.dictionaries(st.sampled_from(["http", "tcp", "ttl"]), JSON, min_size=1, max_size=1) | JSON},
    optional={name: JSON for name in ("interval", "timeout", "failures", "deregisterAfter")},
)
RAW = st.sampled_from(
    [
        *(
            b"",
            b" ",
            b"\xff",
            b"{",
            b"[" * 5000,
            b'{"metadata":' * 3000,
            b'{"ip":"\\ud800","port":1}',
            b'{"ip":1,"ip":2}',
        ),
        *(b'{"ip":"a","port":%b}' % DIGITS.encode(), b'{"weight":1e999}', b'{"weight":%b}' % DIGITS.encode()),
    ]
)
FIELDS = {*RegisterBody.model_fields, *UpdateBody.model_fields, *BeatBody.model_fields}
BODIES = st.one_of(
    st.dictionaries(st.sampled_from(sorted(FIELDS)), JSON, max_size=3),
    CHECKS.map(lambda managed: {"ip": "127.0.0.1", "port": 80, "managed": managed}),
    JSON,
)


@pytest.mark.parametrize("operation", ROUTES, ids=" ".join)
@FUZZ
@given(
    st.dictionaries(st.sampled_from(REST_NAMES), values, max_size=4),
    st.sampled_from(["orders", *HOSTILE]),
    st.sampled_from(["10.0.0.1:80", *HOSTILE, *(f"{ip}:{port}" for ip in ("", "[::1", "[]", "a") for port in HOSTILE)]),
    BODIES.map(lambda body: json_bytes(body)) | RAW,
    st.dictionaries(st.sampled_from(HEADERS), values, max_size=2),
)
async def test_rest_api_answers_any_parameters_without_a_fault(
    app: App,
    errors: list[str],
    operation: tuple[str, str],
    query: dict[str, str],
    service: str,
    address: str,
    body: bytes,
    headers: dict[str, str],
) -> None:
    path, method = operation
    names = {"service": quoted(service), "address": quoted(address)}
    if "{service}" in path:
        query.pop("service", None)
    target = f"{path.format(**names)}?{form(query).decode()}"
    sent = {} if method == "GET" else {"content-type": "application/json"}
    answer = await say(app, method, target, {**headers, **sent}, body)
    assert answer.status < 500 or (answer.status == 503 and b"nothing-to-pick" in answer.body), answer.body
    assert errors == []


@pytest.mark.parametrize("port", [DIGITS, "\u0668", "0", "65536", "-1", "", "x"])
async def test_managed_check_tcp_requires_a_port_from_1_to_65535(app: App, port: str) -> None:
    assert await parameter_of(app, {"check": {"tcp": f"127.0.0.1:{port}"}}) == "managed.check.tcp"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://[::1",
            "http://[x]/",
            f"http://a:{DIGITS}",
            "http://a:0x1",
            "//127.0.0.1",
            "http://\0",
            "http://",
            "",
        ),
        *(["http://127.0.0.1"], {"a": 1}, 80, None, "ftp://127.0.0.1", "http://a@127.0.0.1"),
    ],
)
async def test_managed_check_http_requires_a_valid_url(app: App, url: object) -> None:
    assert await parameter_of(app, {"check": {"http": url}}) == "managed.check.http"


@pytest.mark.parametrize(("depth", "named"), [(1, True), (20, True), (900, False)])
@pytest.mark.parametrize("deep", [[], {}])
async def test_managed_refuses_nested_values(app: App, deep: Any, depth: int, named: bool) -> None:
    """Above some depth the whole body is refused."""
    for _ in range(depth):
        deep = {"a": deep} if isinstance(deep, dict) else [deep]
    for kind in ("http", "tcp", "ttl"):
        assert await parameter_of(app, {"check": {kind: deep}}) == (f"managed.check.{kind}" if named else None)
    for field in ("interval", "timeout", "failures", "deregisterAfter"):
        assert await parameter_of(app, {"check": {"ttl": "1s"}, field: deep}) == (f"managed.{field}" if named else None)


async def parameter_of(app: App, managed: dict[str, Any]) -> str | None:
    """The parameter for which a managed registration is refused; None if it is the body."""
    body = json.dumps({"ip": "127.0.0.1", "port": 80, "managed": managed}).encode()
    answer = await say(app, "POST", "/api/v1/services/orders/instances", {"content-type": "application/json"}, body)
    assert answer.status == 400, answer.body
    return answer.json().get("parameter")


def quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def json_bytes(value: Any) -> bytes:
    """Also encodes what JSON cannot hold, such as a lone surrogate."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
