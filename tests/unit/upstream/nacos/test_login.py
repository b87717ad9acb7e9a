from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from nacos_proxy.model.errors import Garbled, ProxyError, Reason, Refused, TooSlow, Unreachable
from nacos_proxy.runtime import spawn
from nacos_proxy.upstream.nacos.login import Credential, LoginPolicy, Session, token_headers
from nacos_proxy.wire.http import JSON_TYPE, TEXT_TYPE, HttpReply, HttpRequest
from tests.helpers.clock import FakeClock, settle
from tests.helpers.recordings import Row, load

V1, V3 = "/v1/auth/login", "/v3/auth/user/login"
NOT_FOUND = HttpReply(404, JSON_TYPE, b'{"status":404,"error":"Not Found","message":"No message available"}')
WRONG = HttpReply(403, TEXT_TYPE, b"user not found!")


def good(token: str = "t1", ttl: float = 100) -> HttpReply:
    return HttpReply(200, JSON_TYPE, b'{"accessToken":"%b","tokenTtl":%d}' % (token.encode(), int(ttl)))


class Server:
    """Answers logins as its `script` says: a reply, an error, or a future of either."""

    def __init__(self, script: Callable[[HttpRequest], Any]) -> None:
        self.script = script
        self.asked: list[HttpRequest] = []

    async def __call__(self, request: HttpRequest) -> HttpReply:
        self.asked.append(request)
        answer = self.script(request)
        if isinstance(answer, asyncio.Future):
            answer = await answer
        if isinstance(answer, ProxyError):
            raise answer
        return answer

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.asked]


def numbered(ttl: float = 100) -> Callable[[HttpRequest], HttpReply]:
    count = iter(range(1, 1000))
    return lambda _: good(f"t{next(count)}", ttl)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def session(clock: FakeClock) -> Session:
    return Session(LoginPolicy("nacos", "hunter2"), clock)


async def test_session_without_a_username_does_not_log_in(clock: FakeClock) -> None:
    server = Server(numbered())
    anonymous = Session(LoginPolicy(), clock)
    assert not anonymous.enabled
    assert await anonymous.token("a", server) == await anonymous.renew("", "a", server) == ""
    assert server.asked == []


async def test_session_token_logs_in_once_with_the_account_in_the_body(clock: FakeClock) -> None:
    server = Server(numbered())
    nacos = session(clock)
    assert [await nacos.token("a", server) for _ in range(3)] == ["t1"] * 3
    [request] = server.asked
    assert (request.method, request.target) == ("POST", V1), "nothing in a URL, which access logs keep"
    assert request.body == b"username=nacos&password=hunter2"


async def test_session_token_is_renewed_beside_the_calls_before_it_ends(clock: FakeClock) -> None:
    server = Server(numbered(ttl=100))
    nacos = session(clock)
    await nacos.token("a", server)
    await clock.advance(89.0)
    assert await nacos.token("a", server) == "t1"
    await settle()
    assert nacos.logins == 1
    await clock.advance(1.0)
    assert await nacos.token("a", server) == "t1", "no call waits for the renewal"
    await settle()
    assert nacos.logins == 2
    assert await nacos.token("a", server) == "t2"


async def test_session_token_retries_a_failed_renewal_while_the_token_lasts(clock: FakeClock) -> None:
    server = Server(numbered(ttl=100))
    nacos = session(clock)
    await nacos.token("a", server)
    server.script = lambda _: Unreachable("gone", arrived=False)
    await clock.advance(90.0)
    for _ in range(9):
        assert await nacos.token("a", server) == "t1"
        await clock.advance(1.0)
    assert len(server.asked) == 1 + 2, "at 90 s and at 95 s"
    assert nacos.error == "gone"
    server.script = numbered()
    await clock.advance(1.0)
    await nacos.token("a", server)
    await settle()
    assert nacos.error == ""


async def test_session_token_waits_for_a_new_one_after_the_end(clock: FakeClock) -> None:
    server = Server(numbered(ttl=100))
    nacos = session(clock)
    await nacos.token("a", server)
    await clock.advance(100.0)
    assert await nacos.token("a", server) == "t2"


async def test_session_token_has_one_login_in_flight_for_many_callers(clock: FakeClock) -> None:
    answer: asyncio.Future[HttpReply] = asyncio.get_running_loop().create_future()
    server = Server(lambda _: answer)
    nacos = session(clock)
    callers = [spawn(nacos.token(f"server {n % 3}", server), name="caller") for n in range(50)]
    await settle()
    callers[0].cancel()
    await settle()
    answer.set_result(good())
    assert await asyncio.gather(*callers[1:]) == ["t1"] * 49, "whoever began it may go away"
    assert len(server.asked) == 1


async def test_session_renew_replaces_a_refused_token_once(clock: FakeClock) -> None:
    server = Server(numbered())
    nacos = session(clock)
    await nacos.token("a", server)
    assert await nacos.renew("t1", "a", server) == "t1", (
        "a login was tried just now: the token is valid, and lacks the right"
    )
    await clock.advance(5.0)
    fresh = await asyncio.gather(*(nacos.renew("t1", "a", server) for _ in range(10)))
    assert fresh == ["t2"] * 10
    assert len(server.asked) == 2
    assert await nacos.renew("t1", "a", server) == "t2", "another call has renewed it already"
    assert await nacos.renew("t2", "a", server) == "t2"
    assert len(server.asked) == 2


async def test_session_token_is_empty_until_the_server_requires_one(clock: FakeClock) -> None:
    server = Server(lambda _: good("AUTH_DISABLED", 18000))
    nacos = session(clock)
    assert await nacos.token("a", server) == ""
    await clock.advance(60.0)
    server.script = numbered()
    assert await nacos.renew("", "a", server) == "t1"


@pytest.mark.parametrize("gone", [NOT_FOUND, HttpReply(410, JSON_TYPE, b"{}"), HttpReply(501, None, b"")])
async def test_session_token_tries_the_login_path_that_worked_last_first(clock: FakeClock, gone: HttpReply) -> None:
    server = Server(lambda request: gone if request.path == V1 else good())
    nacos = session(clock)
    for _ in range(2):
        assert await nacos.token("a", server) == "t1"
        await clock.advance(100.0)
    assert server.paths == [V1, V3, V3]
    server.script = lambda request: gone if request.path == V3 else good("old")
    assert await nacos.token("a", server) == "old", "a downgrade"


async def test_session_token_is_empty_for_a_server_without_logins(clock: FakeClock) -> None:
    server = Server(lambda _: NOT_FOUND)
    nacos = session(clock)
    assert [await nacos.token("a", server) for _ in range(3)] == [""] * 3
    assert server.paths == [V1, V3]


@pytest.mark.parametrize("row", [row for row in load("auth") if f"login wrong password at /nacos{V1}" in row.case])
async def test_session_token_reports_a_wrong_password_whatever_the_server_calls_it(clock: FakeClock, row: Row) -> None:
    with pytest.raises(Refused, match="the login as 'nacos' was refused: ") as raised:
        await session(clock).token("a", Server(lambda _: row.reply))
    assert (raised.value.status, raised.value.reason) == (403, Reason.NO_RIGHT)


async def test_session_token_backs_off_after_a_wrong_password(clock: FakeClock) -> None:
    """A directory behind them may lock the account."""
    server = Server(lambda _: WRONG)
    nacos = session(clock)
    moments: list[float] = []
    begin = clock.now()
    for _ in range(300):
        before = len(server.asked)
        with pytest.raises(Refused, match="the login as 'nacos' was refused: user not found!"):
            await nacos.token("a", server)
        if len(server.asked) > before:
            moments.append(clock.now() - begin)
        await clock.advance(1.0)
    assert moments == [0, 5, 15, 35, 75, 135, 195, 255]
    server.script = numbered()
    await clock.advance(60.0)
    assert await nacos.token("a", server) == "t1"
    assert nacos.error == ""


async def test_session_token_resets_the_back_off_after_a_success(clock: FakeClock) -> None:
    server = Server(lambda _: WRONG)
    nacos = session(clock)
    for seconds in (5.0, 10.0):
        with pytest.raises(Refused):
            await nacos.token("a", server)
        await clock.advance(seconds)
    server.script = numbered(ttl=10)
    await nacos.token("a", server)
    server.script = lambda _: WRONG
    await clock.advance(10.0)
    with pytest.raises(Refused):
        await nacos.token("a", server)
    await clock.advance(5.0)
    server.script = numbered()
    assert await nacos.token("a", server) == "t1"


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_session_token_does_not_back_off_after_the_refusal_of_a_gateway(clock: FakeClock, status: int) -> None:
    """The call goes to the next server, where a login may be tried at once."""
    nacos = session(clock)
    with pytest.raises(Refused) as raised:
        await nacos.token("a", Server(lambda _: HttpReply(status, TEXT_TYPE, b"server is STARTING now")))
    assert (raised.value.status, raised.value.reason) == (status, Reason.OTHER)
    assert await nacos.token("b", Server(numbered())) == "t1"


async def test_session_token_tries_the_callers_own_server_if_the_login_at_another_fails(clock: FakeClock) -> None:
    """A caller that waits for the login at another server tries its own server if that fails."""
    slow: asyncio.Future[ProxyError] = asyncio.get_running_loop().create_future()
    dead, well = Server(lambda _: slow), Server(numbered())
    nacos = session(clock)
    at_dead = [spawn(nacos.token("dead", dead), name="caller") for _ in range(5)]
    await settle()
    at_well = [spawn(nacos.token("well", well), name="caller") for _ in range(5)]
    await settle()
    assert well.asked == []
    slow.set_result(TooSlow("no answer in time"))
    assert await asyncio.gather(*at_well) == ["t1"] * 5
    failed = await asyncio.gather(*at_dead, return_exceptions=True)
    assert [type(error) for error in failed] == [TooSlow] * 5
    assert (len(dead.asked), len(well.asked)) == (1, 1)


@pytest.mark.parametrize("reply", [HttpReply(200, JSON_TYPE, b""), HttpReply(200, JSON_TYPE, b'["x"]'), good("")])
async def test_session_token_raises_garbled_for_an_unreadable_answer(clock: FakeClock, reply: HttpReply) -> None:
    with pytest.raises(Garbled, match="the answer to a login cannot be read"):
        await session(clock).token("a", Server(lambda _: reply))


async def test_session_shows_no_secret_in_errors_reprs_and_logs(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    nacos = session(clock)
    shown = [repr(LoginPolicy("nacos", "hunter2")), repr(Credential("t0ken")), repr(nacos)]
    for answer in (WRONG, NOT_FOUND, HttpReply(200, JSON_TYPE, b"[]"), Unreachable("gone", arrived=False)):
        await clock.advance(1000.0)
        try:
            await nacos.token("a", Server(lambda _, answer=answer: answer))  # type: ignore[misc]
        except ProxyError as error:
            shown += [str(error), repr(error), nacos.error]
    await clock.advance(1000.0)
    assert await nacos.token("a", Server(lambda _: good("t0ken"))) == "t0ken"
    shown += [repr(nacos), nacos.error, caplog.text]
    assert [text for text in shown if "hunter2" in text or "t0ken" in text] == []


def test_token_headers_are_both_or_none() -> None:
    assert Credential("x").headers == (("Authorization", "Bearer x"), ("accessToken", "x"))
    assert token_headers("") == ()
    for token in ("北京", "é", "a\r\nX-Evil: 1", "a\0", "\ufffd"):
        with pytest.raises(Refused):
            token_headers(token)
