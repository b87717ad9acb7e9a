"""What the process that asks the upstream does for its workers; the two ends together are held by `test_mirror.py`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from proxy.fastpath.table import Answers, AnswersPolicy
from proxy.feed import Desk, Feed, FeedPolicy
from proxy.managed import Keeper, ManagedPolicy
from proxy.poller import Poller, PollPolicy
from proxy.wire.base import HttpReply
from tests.helpers.build import KEY, agent, instance, key, snapshot
from tests.helpers.clock import FakeClock
from tests.helpers.scripted import ScriptedRegistry, Shelf


async def operations(path: str, query: str, accept: str) -> HttpReply:
    return HttpReply(200, None, b"")


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    main = agent(ScriptedRegistry(Shelf(snapshot(instance()))), FakeClock())
    keeper = Keeper(main, ManagedPolicy())
    desk = Desk(
        main,
        Poller(main, PollPolicy()),
        keeper,
        Answers(AnswersPolicy()),
        lambda number: None,
        operations,
        lambda: True,
    )
    feed = Feed(desk, FeedPolicy())
    feed.start()
    yield feed
    await feed.stop()
    await keeper.stop()


async def test_a_write_waits_for_nobody_where_nobody_joined(feed: Feed) -> None:
    await feed.settled()
    assert (feed.workers, feed.streams) == ([], 0)


async def test_a_worker_that_does_not_serve_yet_holds_up_nothing(feed: Feed) -> None:
    fed, link = feed.join()
    feed.welcome(fed)
    link.tell("before its link stands")
    assert feed.workers == [fed]
    await feed.settled()


async def test_what_nobody_understands_is_said(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    fed, _ = feed.join()
    with caplog.at_level(logging.ERROR, "nacos_proxy.workers"):
        feed._hear(fed, "sing", (KEY,))
    assert "'sing'" in caplog.text
    assert repr(feed) == "<Feed 0 workers, 0 streams>"


async def test_nothing_is_left_of_what_a_worker_no_longer_listens_to(feed: Feed) -> None:
    fed, _ = feed.join()
    for number in range(100):
        told = (f"s{number}", "DEFAULT_GROUP")
        for word in ("discover", "forget"):
            feed._hear(fed, word, told)
        for word in ("watch", "watch", "unwatch", "unwatch"):
            feed._hear(fed, word, ((key(f"s{number}"),),))
    assert (len(fed.watched), len(fed.groups)) == (0, 0)
    feed._hear(fed, "watch", ((KEY,),))
    feed._hear(fed, "watch", ((KEY,),))
    feed._hear(fed, "unwatch", ((KEY,),))
    assert fed.watched == {KEY: 1}
