"""Whether the upstream accepts a client: its token, or its name and password."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nacos_proxy.model.errors import ProxyError, Reason, Refused, Unreachable
from nacos_proxy.model.services import Snapshot
from nacos_proxy.upstream.nacos.login import Credential
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.rights import AcceptedCredential, accept_account, accept_token, prove
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from tests.helpers.build import KEY
from tests.helpers.clock import FakeClock
from tests.helpers.faces import facing

PASSWORDS = {"nacos": "secret-of-nacos", "app": "secret-of-app"}
DEAD = "http://127.0.0.1:1"


def registry(*urls: str) -> NacosRegistry:
    return NacosRegistry(NacosPolicy(ServersPolicy(urls)), FakeClock())


class FixedRegistry:
    """Answers every call in the same way."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def send(self, call: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def close(self) -> None: ...


def no(text: str, reason: Reason = Reason.NO_RIGHT, status: int = 403) -> Refused:
    return Refused(reason, text, status=status)


@pytest.mark.parametrize("answer", [Snapshot(KEY), no("authorization failed!")])
async def test_prove_accepts_a_token_whose_account_is_known_whatever_its_rights(answer: Any) -> None:
    await prove(FixedRegistry(answer), "dev")


@pytest.mark.parametrize(
    "answer",
    [
        no("token invalid!"),
        no("Code: 401, Message: token expired!."),
        no("Server failed", Reason.OTHER, 500),
        no("unknown", Reason.OTHER, 400),
        Unreachable("no connection", arrived=False),
    ],
)
async def test_prove_raises_every_other_error(answer: ProxyError) -> None:
    with pytest.raises(type(answer), match=str(answer)):
        await prove(FixedRegistry(answer), "")


@pytest.mark.parametrize("face", ["v1", "1.x", "v1+v2", "3.0", "v3"])
async def test_accept_token_and_accept_account_with_every_face(face: str) -> None:
    async with facing(face, passwords=PASSWORDS) as server:
        assert server.users is not None
        asked = registry(server.url)
        good = await accept_token(asked, server.users.login("app"), "dev")
        assert (good.renew_at, good.ends_at) == (math.inf, math.inf)
        with pytest.raises(Refused) as caught:
            await accept_token(asked, "made-up", "")
        assert caught.value.reason is Reason.NO_RIGHT
        account = await accept_account(asked, "app", PASSWORDS["app"])
        now = asked.clock.now()
        assert account is not None and account.credential.token in server.users.tokens
        assert (account.renew_at, account.ends_at) == (now + 16_200, now + 18_000)
        with pytest.raises(Refused, match="the login as 'app' was refused") as wrong:
            await accept_account(asked, "app", "guessed")
        assert "guessed" not in str(wrong.value) and wrong.value.status == 403
        await asked.close()


async def test_accept_account_tries_the_next_server_if_one_is_gone() -> None:
    async with facing("v1+v2", passwords=PASSWORDS) as server:
        asked = registry(DEAD, server.url)
        for user in PASSWORDS:
            assert await accept_account(asked, user, PASSWORDS[user]) is not None
        await asked.close()


@pytest.mark.parametrize("urls", [(), (DEAD,)])
async def test_accept_account_raises_unreachable_if_no_server_answers(urls: tuple[str, ...]) -> None:
    asked = registry(*urls)
    with pytest.raises(Unreachable):
        await accept_account(asked, "app", "secret-of-app")
    await asked.close()


def test_accepted_credential_renew_gives_the_credential_the_new_token() -> None:
    credential = Credential("old")
    held = AcceptedCredential(credential, 1.0, 2.0)
    held.renew(AcceptedCredential(Credential("new"), 3.0, 4.0))
    assert (credential.headers[1], held.renew_at, held.ends_at) == (("accessToken", "new"), 3.0, 4.0)
