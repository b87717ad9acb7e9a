import asyncio
from typing import Any

import pytest

from nacos_proxy.fastpath.asgi import HEAD_KEY, FastPath, Message, Receive, Scope, Send
from nacos_proxy.fastpath.table import ResponseTablePolicy
from nacos_proxy.wire.http import CACHEABLE, Cacheable
from tests.unit.fastpath.drive import LISTS, Service, ask

HOST = (b"host", b"here")


async def times(
    service: Service, n: int, target: str = "/list?name=a", *headers: tuple[bytes, bytes], **scope: Any
) -> Any:
    app, answer = service.app(), None
    for _ in range(n):
        answer = await ask(app, target, headers, **scope)
    return answer


async def test_fast_path_repeats_a_marked_response_from_the_second_request_on() -> None:
    service = Service()
    first = await times(service, 1, "/list?name=a", HOST)
    assert await times(service, 4, "/list?name=a", HOST) == (first[0], _lower(first[1]), first[2])
    assert service.asked == 2
    assert service.table.hit_counts[(LISTS, 200)].target == 3


def _lower(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in headers.items()}


async def test_target_key_ignores_headers_outside_vary() -> None:
    service = Service()
    app = service.app()
    for n in range(10):
        await ask(app, headers=(HOST, (b"requestid", b"%d" % n)))
    assert service.asked == 2


@pytest.mark.parametrize("name", [b"host", b"authorization", b"accesstoken", b"accept", b"origin", b"if-none-match"])
async def test_target_key_differs_by_the_headers_in_vary(name: bytes) -> None:
    service = Service()
    await times(service, 3, "/list", (name, b"one"))
    await times(service, 3, "/list", (name, b"two"))
    await times(service, 3, "/list")
    assert service.asked == 6


async def test_target_key_differs_by_query_raw_path_scheme_and_unix_socket() -> None:
    service = Service()
    for target, scope in (
        ("/list?name=a", {}),
        ("/list?name=b", {}),
        ("/list?name=a", {"raw_path": b"/lis%74"}),
        ("/list?name=a", {"scheme": "https"}),
        ("/list?name=a", {"server": ("/run/socket", None)}),
    ):
        await times(service, 3, target, **scope)
    assert service.asked == 10


@pytest.mark.parametrize(
    "header",
    [
        (b"cache-control", b"no-cache"),
        (b"cache-control", b"max-age=1"),
        (b"pragma", b"no-cache"),
        (b"content-length", b"3"),
        (b"transfer-encoding", b"chunked"),
        (b"expect", b"100-continue"),
        (b"upgrade", b"websocket"),
    ],
)
async def test_fast_path_passes_on_requests_with_a_bypass_header(header: tuple[bytes, bytes]) -> None:
    service = Service()
    await times(service, 3, "/list")
    await times(service, 5, "/list", header)
    assert service.asked == 7


async def test_fast_path_passes_on_what_is_not_marked_or_not_a_get() -> None:
    service = Service()
    await times(service, 4, "/plain")
    await times(service, 4, "/list", method="POST")
    await times(service, 4, "/list", method="HEAD")
    assert service.asked == 12


async def test_fast_path_shows_a_change_at_once() -> None:
    service = Service()
    await times(service, 3)
    service.change()
    _, _, body = await times(service, 1)
    assert b"version 2" in body
    await times(service, 3)
    assert service.asked == 3, "the place is known, so its new answer is kept at once"


async def test_fast_path_asks_the_app_again_at_valid_until() -> None:
    service = Service()
    await times(service, 3)
    service.now = service.valid_until
    await times(service, 3)
    assert service.asked == 5


async def test_recorder_does_not_keep_a_response_that_changed_while_it_was_sent() -> None:
    service = Service()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_change(message: Message) -> None:
            if message["type"] == "http.response.start":
                service.table.forget("key")
            await send(message)

        await service(scope, receive, send_and_change)

    app = FastPath(slow, service.table, service.clock)
    for _ in range(4):
        await ask(app)
    assert service.asked == 4


async def test_fast_path_repeats_not_modified() -> None:
    service = Service()
    status, headers, body = await times(service, 3, "/list", (b"if-none-match", b'"1"'))
    assert (status, body, service.asked) == (304, b"", 2)
    assert b"content-length" not in headers
    assert service.table.hit_counts[(LISTS, 304)].target == 1


async def test_fast_path_calls_make_body_each_time_and_sends_its_length() -> None:
    service = Service()
    app = service.app()
    lengths: list[int] = []
    for _ in range(5):
        _, headers, body = await ask(app, "/draw")
        assert _lower(headers)[b"content-length"] == b"%d" % len(body)
        lengths.append(len(body))
    assert (lengths, service.asked) == ([1, 2, 3, 4, 5], 2)


async def test_recorder_joins_a_body_in_pieces() -> None:
    service = Service()
    asked: list[int] = []

    async def pieces(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(1)
        scope[CACHEABLE] = Cacheable("key", 0.0, 2000.0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        for body in (b"abc", b"def"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    app = FastPath(pieces, service.table, service.clock)
    for _ in range(2):
        await ask_raw(app)
    assert (await ask(app, "/pieces"))[2] == b"abcdef"
    assert len(asked) == 2


async def ask_raw(app: FastPath) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing to receive")

    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "http_version": "1.1", "scheme": "http", "path": "/pieces",
        "query_string": b"", "headers": [], "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def test_recorder_does_not_keep_a_response_cut_short() -> None:
    service = Service()

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        scope[CACHEABLE] = Cacheable("key", 0.0, 2000.0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"abc"})

    app = FastPath(broken, service.table, service.clock)
    for _ in range(3):
        await ask(app)
    assert len(service.table) == 0


async def test_recorder_offers_the_response_under_the_head_key_too() -> None:
    service = Service()
    for n in range(4):
        await times(service, 1, "/list", **{HEAD_KEY: b"GET /list"})
        assert (service.table.find(b"GET /list", service.now) is not None) == (n >= 1)
    assert service.asked == 2


async def test_fast_path_offers_a_known_target_under_the_head_key() -> None:
    service = Service()
    await times(service, 2, "/list")
    await times(service, 2, "/list", **{HEAD_KEY: b"GET /list"})
    assert service.asked == 2
    found = service.table.find(b"GET /list", service.now)
    assert found is not None
    assert found.path == "/list"


@pytest.mark.parametrize(("version", "connection"), [("1.0", b"keep-alive"), ("1.0", b"close"), ("1.1", b"x, close")])
async def test_recorder_does_not_use_the_head_key_of_a_request_whose_connection_may_end(
    version: str, connection: bytes
) -> None:
    service = Service()
    for _ in range(4):
        scope = {HEAD_KEY: b"GET /list", "http_version": version}
        await times(service, 1, "/list", (b"connection", connection), **scope)
    assert service.table.find(b"GET /list", service.now) is None
    assert service.asked == 2


@pytest.mark.parametrize(("connection", "closes"), [(b"keep-alive", False), (b"Close", True)])
async def test_recorder_keeps_whether_the_connection_ends(connection: bytes, closes: bool) -> None:
    service = Service()
    for _ in range(2):
        await times(service, 1, "/list", (b"connection", connection), **{HEAD_KEY: b"GET /list", "http_version": "1.1"})
    found = service.table.find(b"GET /list", service.now)
    assert found is not None
    assert found.closes is closes


async def test_recorder_does_not_keep_a_key_that_is_too_long() -> None:
    service = Service()
    await times(service, 4, "/list?" + "x" * ResponseTablePolicy().max_head)
    assert service.asked == 4


async def test_fast_path_passes_on_other_scope_types() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    service = Service()

    async def nothing(*_: object) -> Any:
        return await asyncio.sleep(0)

    await FastPath(app, service.table, service.clock)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]
