"""One server as one set of rights is given it: what it answers, and to which question."""

from __future__ import annotations

import pytest

from nacos_proxy.model.calls import Fetch, GetInstance
from nacos_proxy.model.errors import Garbled
from nacos_proxy.upstream.nacos.registry import NacosPolicy, NacosRegistry
from nacos_proxy.upstream.nacos.servers import ServersPolicy
from tests.helpers.build import KEY, key
from tests.helpers.clock import FakeClock
from tests.unit.upstream.stub import Request, Say, ok, stub


def listing(name: bytes) -> bytes:
    return b'{"name":"DEFAULT_GROUP@@%s","hosts":[{"ip":"10.0.0.1","port":80}]}' % name


async def test_an_answer_to_another_question_is_garbled_and_its_connection_is_not_used_again() -> None:
    """A server, or what stands before it, that is one answer behind on a connection would be so for ever."""
    answers = [listing(b"orders"), listing(b"orders"), listing(b"carts")]

    def play(request: Request) -> Say:
        return ok(answers.pop(0)) if b"/instance/list" in request.line else ok(b'{"version":"2.5.1"}')

    async with stub(play) as server:
        registry = NacosRegistry(NacosPolicy(ServersPolicy((server.url,)), dialect="v1"), FakeClock())
        registry.servers.all[0].spoken.asked_at = 0.0
        await registry.send(Fetch(KEY))
        with pytest.raises(Garbled, match="asked for 'DEFAULT_GROUP@@carts', but the answer is about") as caught:
            await registry.send(Fetch(key("carts")))
        assert caught.value.answered and server.connections == 1
        assert (await registry.send(Fetch(key("carts")))).key == key("carts")
        assert server.connections == 2 and registry.servers.all[0].up
        await registry.close()


async def test_an_answer_that_cannot_be_read_keeps_its_connection() -> None:
    answers = [b'{"hosts":1}', b'{"ip":1,"port":80}', listing(b"orders")]
    async with stub(lambda request: ok(answers.pop(0))) as server:
        registry = NacosRegistry(NacosPolicy(ServersPolicy((server.url,)), dialect="v1"), FakeClock())
        registry.servers.all[0].spoken.asked_at = 0.0
        for call in (Fetch(KEY), GetInstance(KEY, "10.0.0.1", 80)):
            with pytest.raises(Garbled):
                await registry.send(call)
        await registry.send(Fetch(KEY))
        assert server.connections == 1
        await registry.close()
