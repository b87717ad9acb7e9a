"""UDP push: subscriptions expire, datagrams are repeated once, and only their receiver acknowledges them."""

from nacos_proxy.catalog.udp_subscribers import UdpSubscribers, UdpSubscribersPolicy
from nacos_proxy.model.services import ServiceKey
from tests.helpers.build import instance, snapshot

KEY = ServiceKey.of("orders")
HERE = ("127.0.0.1", 5000)


def udp_subscribers(**policy: float) -> UdpSubscribers:
    return UdpSubscribers(UdpSubscribersPolicy(expire_after=60, repeat_after=10, **policy))


def test_udp_subscribers_expire_counts_from_the_last_list_call() -> None:
    subscribers = udp_subscribers()
    assert subscribers.listed(KEY, HERE, "", "agent", "", now=0)
    assert not subscribers.listed(KEY, HERE, "", "agent", "", now=50)
    assert [s.address for s in subscribers.of(KEY, now=100)] == [HERE]
    assert subscribers.of(KEY, now=111) == []
    subscribers.expire(now=111)
    assert (len(subscribers), list(subscribers)) == (0, [])


def test_udp_subscribers_shift_does_not_count_a_standstill_as_silence() -> None:
    subscribers = udp_subscribers()
    subscribers.listed(KEY, HERE, "", "agent", "", now=0)
    subscribers.shift(100, now=120)
    subscribers.expire(now=120)
    assert len(subscribers) == 1
    subscribers.expire(now=160)
    assert len(subscribers) == 0
    assert subscribers.listed(KEY, HERE, "", "agent", "", now=160)
    subscribers.shift(100, now=161)
    assert [s.seen for s in subscribers] == [161], "not later than now"


def test_udp_subscribers_listed_makes_a_subscription_for_each_set_of_clusters() -> None:
    """An SDK has one socket for all its callers, each of which may list a service with other clusters."""
    subscribers = udp_subscribers()
    assert subscribers.listed(KEY, HERE, "a", "agent", "", now=0)
    assert subscribers.listed(KEY, HERE, "a,b", "agent", "", now=1)
    assert not subscribers.listed(KEY, HERE, "a", "agent", "", now=50)
    assert [s.clusters for s in subscribers.of(KEY, now=50)] == ["a", "a,b"]
    subscribers.expire(now=61)
    assert ([s.clusters for s in subscribers.of(KEY, now=61)], len(subscribers)) == (["a"], 1)


def test_udp_subscribers_due_again_repeats_an_unacknowledged_datagram_once() -> None:
    subscribers = udp_subscribers()
    subscribers.listed(KEY, HERE, "", "agent", "", now=0)
    (subscription,) = subscribers.of(KEY, now=0)
    subscribers.sent(1, subscription, b"x", now=0)
    assert subscribers.due_again(now=9) == []
    assert [s.packet for s in subscribers.due_again(now=10)] == [b"x"]
    assert subscribers.due_again(now=15) == []
    assert subscribers.due_again(now=20) == []
    assert subscribers.given_up == 1


def test_udp_subscribers_acked_ends_the_repeating() -> None:
    subscribers = udp_subscribers()
    subscribers.listed(KEY, HERE, "", "agent", "", now=0)
    (subscription,) = subscribers.of(KEY, now=0)
    subscribers.sent(1, subscription, b"x", now=0)
    assert not subscribers.acked(1, ("10.0.0.9", 5000))
    assert subscribers.acked(1, ("127.0.0.1", 6000))
    assert subscribers.due_again(now=30) == []
    assert (subscribers.acknowledged, subscribers.given_up) == (1, 0)


def test_udp_subscribers_sent_replaces_an_older_datagram() -> None:
    subscribers = udp_subscribers()
    subscribers.listed(KEY, HERE, "", "agent", "", now=0)
    (subscription,) = subscribers.of(KEY, now=0)
    subscribers.sent(1, subscription, b"old", now=0)
    subscribers.sent(2, subscription, b"new", now=1)
    assert [s.packet for s in subscribers.due_again(now=20)] == [b"new"]


def test_udp_subscribers_sent_keeps_datagrams_of_other_subscriptions() -> None:
    subscribers = udp_subscribers()
    first, second = (subscribers.listed(KEY, HERE, clusters, "agent", "", now=0) for clusters in ("a", "b"))
    assert first is not None and second is not None
    subscribers.sent(1, first, b"first", now=0)
    subscribers.sent(2, second, b"second", now=0)
    subscribers.sent(3, first, b"newer", now=1)
    assert [s.packet for s in subscribers.due_again(now=20)] == [b"second", b"newer"]


def test_udp_subscribers_listed_bounds_the_number_of_subscriptions() -> None:
    subscribers = UdpSubscribers(UdpSubscribersPolicy(max_subscriptions=4))
    new = [subscribers.listed(KEY, ("127.0.0.1", port), "", "a", "", now=0) for port in range(4)]
    assert [subscription is not None for subscription in new] == [True, True, False, False]
    more = [subscribers.listed(KEY, (f"10.0.0.{number}", 1), "", "a", "", now=0) for number in range(9)]
    assert [subscription is not None for subscription in more] == [True, True, *[False] * 7]
    assert len(subscribers) == 4


def test_udp_subscribers_listed_leaves_room_for_other_clients() -> None:
    subscribers = UdpSubscribers(UdpSubscribersPolicy(max_subscriptions=100))
    evil = [subscribers.listed(KEY, ("10.0.0.1", port), "", "a", "", now=0) for port in range(1000)]
    assert sum(subscription is not None for subscription in evil) == 50
    assert all(subscribers.listed(KEY, ("10.0.0.2", port), "", "a", "", now=50) for port in range(20))
    subscribers.expire(now=60)
    assert len(subscribers) == 20
    assert all(subscribers.listed(KEY, ("10.0.0.1", port), "", "a", "", now=60) for port in range(20))


def test_udp_subscribers_listed_bounds_the_subscriptions_of_a_socket() -> None:
    subscribers = UdpSubscribers(UdpSubscribersPolicy(per_socket=3))
    new = [subscribers.listed(ServiceKey.of(f"s{n}"), HERE, "", "a", "", now=0) for n in range(5)]
    assert [subscription is not None for subscription in new] == [True, True, True, False, False]
    assert subscribers.listed(KEY, ("127.0.0.1", 5001), "", "a", "", now=0)


def test_udp_subscribers_listed_shortens_names_and_refuses_long_clusters() -> None:
    subscribers = udp_subscribers()
    known = subscribers.listed(KEY, HERE, "", "a" * 9999, "b" * 9999, now=0)
    assert known is not None and (len(known.agent), len(known.app)) == (200, 200)
    subscribers.listed(KEY, HERE, "", "c" * 9999, "d" * 9999, now=1)
    assert (len(known.agent), len(known.app)) == (200, 200)
    assert subscribers.listed(KEY, HERE, "c" * 1001, "a", "", now=0) is None


def test_udp_subscribers_sent_bounds_the_bytes_that_wait() -> None:
    subscribers = udp_subscribers(max_unacknowledged=40_000)
    for number in range(1, 101):
        client = "10.0.0.1" if number <= 90 else "10.0.0.2"
        subscription = subscribers.listed(KEY, (client, number), "", "a", "", now=0)
        assert subscription is not None
        subscribers.sent(number, subscription, b"x" * 500, now=0)
    waiting = [s.subscription.address[0] for s in subscribers.due_again(now=10)]
    assert (waiting.count("10.0.0.1"), waiting.count("10.0.0.2")) == (20, 10)
    assert all(subscribers.acked(number, ("10.0.0.1", 0)) for number in range(1, 21))
    again = subscribers.listed(KEY, ("10.0.0.1", 9999), "", "a", "", now=10)
    assert again is not None
    subscribers.sent(9999, again, b"x" * 15_000, now=10)
    assert subscribers.acked(9999, ("10.0.0.1", 0)), "what was acknowledged leaves its room"


def test_udp_subscribers_due_again_honours_its_limit() -> None:
    subscribers = udp_subscribers()
    for number in range(1, 11):
        subscription = subscribers.listed(KEY, ("127.0.0.1", number), "", "a", "", now=0)
        assert subscription is not None
        subscribers.sent(number, subscription, b"x", now=0)
    assert [len(subscribers.due_again(now=10, limit=4)) for _ in range(4)] == [4, 4, 2, 0]


def test_udp_subscribers_next_takes_turns_by_client_and_gives_only_the_last_state() -> None:
    subscribers, other = udp_subscribers(), ServiceKey.of("other")
    for port in range(50):
        subscribers.listed(KEY, ("10.0.0.1", port), "", "a", "", now=0)
    subscribers.listed(other, HERE, "", "a", "", now=0)
    gone = subscribers.listed(KEY, HERE, "", "a", "", now=-30)
    assert gone is not None
    first, last = snapshot(instance()), snapshot(instance(), instance("10.0.0.2"))
    subscribers.changed(first, now=1)
    subscribers.changed(snapshot(instance(), service=other), now=1)
    subscribers.changed(last, now=1)
    assert subscribers.queued == 52
    subscribers.expire(now=31)
    heard: list[tuple[str, str]] = []
    while (told := subscribers.next()) is not None:
        subscription, shown = told
        heard.append((subscription.address[0], shown.key.name))
        assert shown is last or shown.key == other
    assert (len(heard), subscribers.queued) == (51, 0)
    assert ("127.0.0.1", "other") in heard[:3]


def test_udp_subscribers_changed_without_subscribers_queues_nothing() -> None:
    subscribers = udp_subscribers()
    subscribers.changed(snapshot(instance()), now=0)
    assert (subscribers.queued, subscribers.next()) == (0, None)
