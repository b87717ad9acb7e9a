"""The bookkeeping of UDP push: subscriptions lapse, datagrams are repeated once, strangers acknowledge nothing."""

from proxy.catalog.pushes import Pushes, PushesPolicy
from proxy.model import ServiceKey

KEY = ServiceKey.of("orders")
HERE = ("127.0.0.1", 5000)


def pushes(**policy: float) -> Pushes:
    return Pushes(PushesPolicy(lapse=60, again=10, **policy))


def test_a_subscription_lives_from_the_last_list() -> None:
    book = pushes()
    assert book.listed(KEY, HERE, "", "agent", "", now=0)
    assert not book.listed(KEY, HERE, "", "agent", "", now=50)
    assert [s.address for s in book.of(KEY, now=100)] == [HERE]
    assert book.of(KEY, now=111) == []
    assert book.lapse(now=111) == [KEY]
    assert len(book) == 0


def test_a_gap_in_our_own_time_is_no_silence() -> None:
    book = pushes()
    book.listed(KEY, HERE, "", "agent", "", now=0)
    book.shift(100, now=120)
    assert book.lapse(now=120) == []
    assert book.lapse(now=160) == [KEY]
    assert book.listed(KEY, HERE, "", "agent", "", now=160)
    book.shift(100, now=161)
    assert [s.seen for s in book] == [161], "not later than now"


def test_each_clusters_that_one_socket_lists_has_a_subscription_of_its_own() -> None:
    """An SDK has one socket for all its callers, and they list one service with other clusters each."""
    book = pushes()
    assert book.listed(KEY, HERE, "a", "agent", "", now=0)
    assert book.listed(KEY, HERE, "a,b", "agent", "", now=1)
    assert not book.listed(KEY, HERE, "a", "agent", "", now=50)
    assert [s.clusters for s in book.of(KEY, now=50)] == ["a", "a,b"]
    assert book.lapse(now=61) == []
    assert ([s.clusters for s in book.of(KEY, now=61)], len(book)) == (["a"], 1)


def test_a_datagram_without_an_acknowledgement_is_sent_once_more_and_then_given_up() -> None:
    book = pushes()
    book.listed(KEY, HERE, "", "agent", "", now=0)
    (subscription,) = book.of(KEY, now=0)
    book.sent(1, subscription, b"x", now=0)
    assert book.again(now=9) == []
    assert [s.packet for s in book.again(now=10)] == [b"x"]
    assert book.again(now=15) == []
    assert book.again(now=20) == []
    assert book.given_up == 1


def test_an_acknowledgement_ends_the_repeating() -> None:
    book = pushes()
    book.listed(KEY, HERE, "", "agent", "", now=0)
    (subscription,) = book.of(KEY, now=0)
    book.sent(1, subscription, b"x", now=0)
    assert not book.acked(1, ("10.0.0.9", 5000))
    assert book.acked(1, ("127.0.0.1", 6000))
    assert book.again(now=30) == []
    assert (book.acknowledged, book.given_up) == (1, 0)


def test_a_newer_datagram_takes_the_place_of_an_older_one() -> None:
    book = pushes()
    book.listed(KEY, HERE, "", "agent", "", now=0)
    (subscription,) = book.of(KEY, now=0)
    book.sent(1, subscription, b"old", now=0)
    book.sent(2, subscription, b"new", now=1)
    assert [s.packet for s in book.again(now=20)] == [b"new"]


def test_a_newer_datagram_takes_no_place_of_another_subscription() -> None:
    book = pushes()
    first, second = (book.listed(KEY, HERE, clusters, "agent", "", now=0) for clusters in ("a", "b"))
    assert first is not None and second is not None
    book.sent(1, first, b"first", now=0)
    book.sent(2, second, b"second", now=0)
    book.sent(3, first, b"newer", now=1)
    assert [s.packet for s in book.again(now=20)] == [b"second", b"newer"]


def test_the_number_of_subscriptions_is_bounded() -> None:
    book = Pushes(PushesPolicy(most=2))
    new = [book.listed(KEY, ("127.0.0.1", port), "", "a", "", now=0) for port in range(4)]
    assert [subscription is not None for subscription in new] == [True, True, False, False]
    assert len(book) == 2
