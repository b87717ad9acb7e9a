import asyncio
from typing import Any

import pytest

from nacos_proxy.fastpath.asgi import (
    HEAD_KEY,
    FastPath,
    Message,
    Receive,
    Scope,
    Send,
)
from nacos_proxy.fastpath.table import ResponseTablePolicy
from nacos_proxy.wire.http import CACHEABLE, Cacheable
from tests.unit.fastpath.drive import Service, ask

HOST = (b"host", b"here")


async def times(
    service: Service, n: int, target: str = "/list?name=a", *headers: tuple[bytes, bytes], **scope: Any
) -> Any:
    app, answer = service.app(), None
    for _ in range(n):
        answer = await ask(app, target, headers, **scope)
    return answer


async def test_a_marked_answer_is_repeated_from_the_second_sight_on() -> None:
    service = Service()
    first = await times(service, 1, "/list?name=a", HOST)
    assert await times(service, 4, "/list?name=a", HOST) == (first[0], _lower(first[1]), first[2])
    assert service.asked == 2
    assert service.answers.hit_counts[("list", 200)].target == 3


def _lower(headers: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name.lower(): value for name, value in headers.items()}


async def test_headers_that_do_not_matter_do_not_make_another_answer() -> None:
    service = Service()
    app = service.app()
    for n in range(10):
        await ask(app, headers=(HOST, (b"requestid", b"%d" % n)))
    assert service.asked == 2


@pytest.mark.parametrize("name", [b"host", b"authorization", b"accesstoken", b"accept", b"origin", b"if-none-match"])
async def test_headers_that_matter_make_another_answer(name: bytes) -> None:
    service = Service()
    await times(service, 3, "/list", (name, b"one"))
    await times(service, 3, "/list", (name, b"two"))
    await times(service, 3, "/list")
    assert service.asked == 6


async def test_the_query_the_path_as_sent_the_scheme_and_a_unix_socket_make_another_answer() -> None:
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
async def test_requests_that_ask_for_more_than_an_answer_always_reach_the_app(header: tuple[bytes, bytes]) -> None:
    service = Service()
    await times(service, 3, "/list")
    await times(service, 5, "/list", header)
    assert service.asked == 7


async def test_what_is_not_marked_or_not_a_get_always_reaches_the_app() -> None:
    service = Service()
    await times(service, 4, "/plain")
    await times(service, 4, "/list", method="POST")
    await times(service, 4, "/list", method="HEAD")
    assert service.asked == 12


async def test_a_change_is_seen_at_once() -> None:
    service = Service()
    await times(service, 3)
    service.change()
    _, _, body = await times(service, 1)
    assert b"version 2" in body
    await times(service, 3)
    assert service.asked == 3, "the place is known, so its new answer is kept at once"


async def test_an_answer_is_asked_for_again_when_it_is_no_longer_fresh() -> None:
    service = Service()
    await times(service, 3)
    service.now = service.valid_until
    await times(service, 3)
    assert service.asked == 5


async def test_an_answer_that_changed_while_it_was_sent_is_not_kept() -> None:
    service = Service()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_change(message: Message) -> None:
            if message["type"] == "http.response.start":
                service.answers.forget("key")
            await send(message)

        await service(scope, receive, send_and_change)

    app = FastPath(slow, service.answers, service.clock)
    for _ in range(4):
        await ask(app)
    assert service.asked == 4


async def test_not_modified_is_an_answer_too() -> None:
    service = Service()
    status, headers, body = await times(service, 3, "/list", (b"if-none-match", b'"1"'))
    assert (status, body, service.asked) == (304, b"", 2)
    assert b"content-length" not in headers
    assert service.answers.hit_counts[("list", 304)].target == 1


async def test_a_drawn_body_is_drawn_each_time_with_its_length() -> None:
    service = Service()
    app = service.app()
    lengths: list[int] = []
    for _ in range(5):
        _, headers, body = await ask(app, "/draw")
        assert _lower(headers)[b"content-length"] == b"%d" % len(body)
        lengths.append(len(body))
    assert (lengths, service.asked) == ([1, 2, 3, 4, 5], 2)


async def test_a_body_in_pieces_is_kept_whole() -> None:
    service = Service()
    asked: list[int] = []

    async def pieces(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(1)
        scope[CACHEABLE] = Cacheable("key", 0.0, 2000.0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        for body in (b"abc", b"def"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    app = FastPath(pieces, service.answers, service.clock)
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


async def test_an_answer_cut_short_is_not_kept() -> None:
    service = Service()

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        scope[CACHEABLE] = Cacheable("key", 0.0, 2000.0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": b"abc"})

    app = FastPath(broken, service.answers, service.clock)
    for _ in range(3):
        await ask(app)
    assert len(service.answers) == 0


async def test_a_head_that_the_protocol_door_left_is_offered_with_its_answer() -> None:
    service = Service()
    for n in range(4):
        await times(service, 1, "/list", **{HEAD_KEY: b"GET /list"})
        assert (service.answers.find(b"GET /list", service.now) is not None) == (n >= 1)
    assert service.asked == 2


async def test_a_head_whose_target_is_known_gets_that_answer() -> None:
    service = Service()
    await times(service, 2, "/list")
    await times(service, 2, "/list", **{HEAD_KEY: b"GET /list"})
    assert service.asked == 2
    found = service.answers.find(b"GET /list", service.now)
    assert found is not None
    assert found.path == "/list"


@pytest.mark.parametrize(("version", "connection"), [("1.0", b"keep-alive"), ("1.1", b"close"), ("1.1", b"x, close")])
async def test_a_head_that_ends_its_connection_is_left_to_the_server(version: str, connection: bytes) -> None:
    service = Service()
    for _ in range(4):
        scope = {HEAD_KEY: b"GET /list", "http_version": version}
        await times(service, 1, "/list", (b"connection", connection), **scope)
    assert service.answers.find(b"GET /list", service.now) is None
    assert service.asked == 2


async def test_a_place_too_long_is_not_kept() -> None:
    service = Service()
    await times(service, 4, "/list?" + "x" * ResponseTablePolicy().max_head)
    assert service.asked == 4


async def test_other_kinds_of_scope_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    service = Service()

    async def nothing(*_: object) -> Any:
        return await asyncio.sleep(0)

    await FastPath(app, service.answers, service.clock)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]
