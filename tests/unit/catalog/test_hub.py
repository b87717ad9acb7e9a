"""Every event arrives once and in order; slow readers converge; a resuming reader misses nothing, or is reset."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nacos_proxy.catalog.hub import Event, Filter, Hub, HubPolicy, Mailbox, Notice
from nacos_proxy.model.services import Change, ServiceKey, Snapshot, diff
from tests.helpers.build import KEY, instance, key, snapshot

OTHER = key("stock")
BOTH = Filter(frozenset({KEY, OTHER}))
EVERYTHING = Filter(everything=("public", "DEFAULT_GROUP"))
UP, DOWN = Notice("up", ""), Notice("down", "refused")


def quiet() -> None:
    """No reader needs to be woken."""


def state(weight: float, service: ServiceKey = KEY) -> Snapshot:
    return snapshot(instance(weight=weight), service=service)


def step(before: float, after: float, service: ServiceKey = KEY) -> Change:
    change = diff(state(before, service), state(after, service), "poll")
    assert change is not None
    return change


def hub(**policy: int) -> Hub:
    return Hub(HubPolicy(**policy), "e")


def numbers(events: list[Event]) -> list[int]:
    return [event.number for event in events]


# publishing


def test_hub_publish_numbers_events_even_without_readers() -> None:
    found = hub()
    assert found.last_id == "e-0"
    first, second = found.publish(step(1, 2)), found.publish(DOWN)
    assert [found.id_of(first), found.id_of(second), found.last_id] == ["e-1", "e-2", "e-2"]
    assert found.published == 2


def test_hub_publish_delivers_every_event_once_and_in_order() -> None:
    found = hub()
    mailbox = found.subscribe(BOTH, quiet)
    heard: list[Any] = []
    for body in (step(1, 2), DOWN, step(1, 2, OTHER), UP, step(2, 1)):
        found.publish(body)
        heard += [(event.number, event.body, event.resumable) for event in mailbox.take()]
    assert heard == [
        (1, step(1, 2), True), (2, DOWN, True), (3, step(1, 2, OTHER), True), (4, UP, True), (5, step(2, 1), True)
    ]  # fmt: skip
    assert (mailbox.take(), len(mailbox)) == ([], 0)


def test_hub_publish_delivers_only_what_the_filter_wants() -> None:
    found = hub()
    mailbox = found.subscribe(Filter(frozenset({OTHER})), quiet)
    found.publish(step(1, 2))
    found.publish(step(1, 2, key("stock", group="g")))
    found.publish(step(1, 2, key("stock", namespace="dev")))
    assert mailbox.take() == []


def test_hub_publish_delivers_all_services_of_a_group_to_a_reader_of_everything() -> None:
    found = hub()
    mailbox = found.subscribe(EVERYTHING, quiet)
    for service in (KEY, OTHER, key("new"), key("new", group="g"), key("new", namespace="dev")):
        found.publish(step(1, 2, service))
    assert numbers(mailbox.take()) == [1, 2, 3]


def test_hub_publish_delivers_once_to_a_reader_of_a_service_and_its_group() -> None:
    found, woken = hub(), []
    mailbox = found.subscribe(Filter(frozenset({KEY}), ("public", "DEFAULT_GROUP")), lambda: woken.append(1))
    found.publish(step(1, 2))
    assert (numbers(mailbox.take()), woken) == ([1], [1])


def test_hub_unsubscribe_leaves_nothing_behind() -> None:
    found = hub()
    mailboxes = [found.subscribe(interest, quiet) for interest in (BOTH, EVERYTHING, BOTH)]
    assert found.readers == 3
    for mailbox in (*mailboxes, mailboxes[0]):
        found.unsubscribe(mailbox)
    found.publish(step(1, 2))
    found.publish(DOWN)
    assert (found.readers, [len(mailbox) for mailbox in mailboxes]) == (0, [0, 0, 0])
    assert repr(found) == "<Hub e-2, 0 readers, 2 kept>"


def test_hub_publish_allows_readers_to_come_and_go_meanwhile() -> None:
    found = hub()
    mailboxes: list[Mailbox] = []

    def leave_and_come() -> None:
        found.unsubscribe(mailboxes[0])
        mailboxes.append(found.subscribe(BOTH, quiet))

    mailboxes += [found.subscribe(BOTH, leave_and_come), found.subscribe(BOTH, quiet)]
    found.publish(step(1, 2))
    assert [len(mailbox) for mailbox in mailboxes] == [1, 1, 0]
    found.publish(step(2, 3))
    assert [len(mailbox) for mailbox in mailboxes] == [1, 1, 1]


# mailboxes


def test_mailbox_wakes_its_reader_only_if_it_was_empty() -> None:
    found, woken = hub(), []
    mailbox = found.subscribe(BOTH, lambda: woken.append(1))
    found.publish(step(1, 2))
    found.publish(step(1, 2, OTHER))
    assert woken == [1]
    mailbox.take()
    found.publish(step(2, 3))
    assert woken == [1, 1]


def test_mailbox_merges_the_changes_of_a_service() -> None:
    found = hub()
    mailbox = found.subscribe(BOTH, quiet)
    for weight in range(1, 100):
        found.publish(step(weight, weight + 1))
        found.publish(step(weight, weight + 1, OTHER))
    assert len(mailbox) == 2
    events = mailbox.take()
    assert [(event.number, event.body) for event in events] == [(197, step(1, 100)), (198, step(1, 100, OTHER))]


def test_mailbox_drops_a_change_that_is_undone_before_it_is_read() -> None:
    found, woken = hub(), []
    mailbox = found.subscribe(BOTH, lambda: woken.append(1))
    found.publish(step(1, 2))
    found.publish(step(2, 1))
    assert (len(mailbox), mailbox.take(), woken) == (0, [], [1])
    found.publish(step(1, 3))
    assert (woken, [(e.number, e.body, e.resumable) for e in mailbox.take()]) == ([1, 1], [(3, step(1, 3), True)])


def test_mailbox_keeps_only_the_last_notice() -> None:
    found = hub()
    mailbox = found.subscribe(BOTH, quiet)
    for notice in (DOWN, UP, DOWN, UP):
        found.publish(notice)
    assert [(event.number, event.body) for event in mailbox.take()] == [(4, UP)]


def test_mailbox_take_keeps_notices_in_order_among_the_changes() -> None:
    found = hub()
    mailbox = found.subscribe(BOTH, quiet)
    for body in (step(1, 2), DOWN, step(1, 2, OTHER), step(2, 3)):
        found.publish(body)
    assert [event.body for event in mailbox.take()] == [DOWN, step(1, 2, OTHER), step(1, 3)]


def test_mailbox_take_marks_an_event_before_an_older_change_as_not_resumable() -> None:
    found = hub()
    mailbox = found.subscribe(BOTH, quiet)
    for body in (step(1, 2), step(1, 2, OTHER), step(2, 3)):
        found.publish(body)
    events = mailbox.take()
    assert [(event.number, event.resumable) for event in events] == [(2, False), (3, True)]
    assert found.subscribe(BOTH, quiet, found.id_of(events[0])).reset
    assert not found.subscribe(BOTH, quiet, found.id_of(events[1])).reset


def test_mailbox_take_marks_an_event_between_a_change_and_its_undoing_as_not_resumable() -> None:
    """A reader resuming after it would see the undoing of a change that it never saw, or, worse, nothing at all."""
    found = hub()
    mailbox = found.subscribe(BOTH, quiet)
    for body in (step(1, 2), step(1, 2, OTHER), step(2, 1)):
        found.publish(body)
    assert [(event.number, event.resumable) for event in mailbox.take()] == [(2, False)]
    found.publish(DOWN)
    assert [(event.number, event.resumable) for event in mailbox.take()] == [(4, True)]


# coming back


def test_hub_subscribe_after_an_id_delivers_what_was_missed() -> None:
    found = hub()
    for body in (step(1, 2), DOWN, step(1, 2, OTHER), step(1, 2, key("third"))):
        found.publish(body)
    mailbox = found.subscribe(BOTH, quiet, "e-1")
    assert (mailbox.reset, numbers(mailbox.take())) == (False, [2, 3])
    found.publish(step(2, 3))
    assert numbers(mailbox.take()) == [5]


def test_hub_subscribe_after_the_last_id_does_not_reset() -> None:
    found = hub()
    found.publish(step(1, 2))
    mailbox = found.subscribe(BOTH, quiet, found.last_id)
    assert (mailbox.reset, len(mailbox)) == (False, 0)


def test_hub_subscribe_without_an_id_delivers_nothing_old() -> None:
    found = hub()
    found.publish(step(1, 2))
    mailbox = found.subscribe(BOTH, quiet)
    assert (mailbox.reset, len(mailbox)) == (False, 0)


@pytest.mark.parametrize("after", ["x-1", "e-3", "e-", "e", "-1", "e-x", "e-1-1", "e--1", "e-+1", "e- 1", "1", "\0"])
def test_hub_subscribe_resets_after_an_id_of_another_run(after: str) -> None:
    found = hub()
    found.publish(step(1, 2))
    found.publish(step(2, 3))
    mailbox = found.subscribe(BOTH, quiet, after)
    assert (mailbox.reset, len(mailbox)) == (True, 0)
    found.publish(step(3, 4))
    assert numbers(mailbox.take()) == [3]


def test_hub_subscribe_accepts_an_epoch_with_a_hyphen() -> None:
    found = Hub(HubPolicy(), "a-b")
    found.publish(step(1, 2))
    assert len(found.subscribe(BOTH, quiet, "a-b-0")) == 1
    assert found.subscribe(BOTH, quiet, "b-0").reset


@pytest.mark.parametrize(
    ("after", "reset", "missed"), [("e-6", True, []), ("e-7", False, [8, 9, 10]), ("e-10", False, [])]
)
def test_hub_history_is_bounded_in_events(after: str, reset: bool, missed: list[int]) -> None:
    found = hub(history=3)
    for weight in range(10):
        found.publish(step(weight, weight + 1, key(f"s{weight}")))
    mailbox = found.subscribe(EVERYTHING, quiet, after)
    assert (mailbox.reset, numbers(mailbox.take())) == (reset, missed)


def test_hub_subscribe_without_a_history_resumes_only_if_nothing_was_missed() -> None:
    found = hub(history=0)
    found.publish(step(1, 2))
    assert (found.subscribe(BOTH, quiet, "e-0").reset, found.subscribe(BOTH, quiet, "e-1").reset) == (True, False)


def test_hub_history_is_bounded_in_instances() -> None:
    """Otherwise a service of a thousand instances that changes each second would take gigabytes."""
    found = hub(hosts=30)
    for weight in range(10):
        big = [snapshot(*(instance(port=n + 1, weight=w) for n in range(9))) for w in (weight, weight + 1)]
        found.publish(Change(big[0], big[1], "poll"))
    assert repr(found) == "<Hub e-10, 0 readers, 3 kept>"
    assert (found.subscribe(BOTH, quiet, "e-6").reset, found.subscribe(BOTH, quiet, "e-7").reset) == (True, False)


# encodings


def added_by(event: Event) -> bytes:
    assert isinstance(event.body, Change)
    return b"%d" % len(event.body.added)


def weight_of(event: Event) -> bytes:
    assert isinstance(event.body, Change)
    return b"%g" % event.body.after.instances[0].weight


def test_hub_encoded_encodes_once_for_each_variant() -> None:
    found, made = hub(), []

    def encode(event: Event) -> bytes:
        made.append(event.number)
        return b"bytes"

    event = found.publish(step(1, 2))
    for variant in ("a", "b", "a", "b"):
        assert found.encoded(event, variant, encode) == b"bytes"
    assert made == [1, 1]


def test_hub_encoded_tells_a_merged_change_from_a_single_one_with_its_number() -> None:
    found = hub()
    mailboxes = [found.subscribe(BOTH, quiet) for _ in range(2)]
    one = diff(snapshot(), snapshot(instance()), "poll")
    two = diff(snapshot(instance()), snapshot(instance(), instance("10.0.0.2")), "poll")
    assert one is not None and two is not None
    found.publish(one)
    mailboxes[0].take()
    found.publish(two)
    assert [found.encoded(mailbox.take()[0], "v", added_by) for mailbox in mailboxes] == [b"1", b"2"]


def test_hub_encoded_keeps_a_bounded_number_of_bytes() -> None:
    found, made = hub(encoded=10_000), []

    def encode(event: Event) -> bytes:
        made.append(event.number)
        return b"x" * (20_000 if event.number == 1 else 4_000)

    events = [found.publish(step(1, 2)) for _ in range(4)]
    assert [len(found.encoded(event, "v", encode)) for event in events] == [20_000, 4_000, 4_000, 4_000]
    for event in reversed(events):
        found.encoded(event, "v", encode)
    assert made == [1, 2, 3, 4, 2, 1]


# every reader, however slow and however often cut off


class Reader:
    """What a client of a stream holds of each service, of one cluster alone; it resumes as an EventSource does."""

    def __init__(self, of: Hub, truth: dict[ServiceKey, Snapshot]) -> None:
        self.hub, self.truth = of, truth
        self.interest = Filter(frozenset(truth))
        self.holds = {key: self.view(found) for key, found in truth.items()}
        self.last_id = of.last_id
        self.heard: list[int] = []
        self.resets = 0
        self.mailbox = of.subscribe(self.interest, quiet)

    @staticmethod
    def view(found: Snapshot) -> object:
        return found.select(frozenset({"c1"}))

    def drain(self, most: int) -> None:
        """Gets up to `most` of what waits; if there was more, the connection is lost with it."""
        events = self.mailbox.take()
        for event in events[:most]:
            self.hear(event)
        if len(events) > most:
            self.come_back()

    def hear(self, event: Event) -> None:
        assert isinstance(event.body, Change)
        assert not self.heard or event.number > self.heard[-1]
        self.heard.append(event.number)
        if self.view(event.body.before) == self.view(event.body.after):
            return  # the view shows no change: nothing is sent
        self.holds[event.body.key] = self.view(event.body.after)
        self.last_id = self.hub.id_of(event)

    def come_back(self) -> None:
        self.hub.unsubscribe(self.mailbox)
        self.mailbox = self.hub.subscribe(self.interest, quiet, self.last_id)
        self.heard = []
        if self.mailbox.reset:
            self.resets += 1
            self.holds = {key: self.view(found) for key, found in self.truth.items()}
            self.last_id = self.hub.last_id


published = st.tuples(st.sampled_from("ab"), st.sampled_from(["c1", "c1", "c2"]), st.sampled_from([1.0, 2.0]))
drained = st.sampled_from([0, 1, 1, 2, 99])
life = st.lists(st.one_of(published, published, drained, st.just("cut")), max_size=40)


def live(script: list[Any], **policy: int) -> Reader:
    found = hub(**policy)
    truth = {key(name): snapshot(service=key(name)) for name in "ab"}
    reader = Reader(found, truth)
    for what in script:
        if what == "cut":
            reader.come_back()
        elif isinstance(what, int):
            reader.drain(what)
        else:
            name, cluster, weight = what
            others = [i for i in truth[key(name)].instances if i.cluster != cluster]
            place = 80 if cluster == "c1" else 81
            after = truth[key(name)].with_instances([*others, instance(port=place, cluster=cluster, weight=weight)])
            change = diff(truth[key(name)], after, "poll")
            truth[key(name)] = after
            if change is not None:
                found.publish(change)
        assert len(reader.mailbox) <= len(truth)
    reader.drain(99)
    return reader


A1, A2, B1 = ("a", "c1", 1.0), ("a", "c1", 2.0), ("b", "c1", 1.0)
A_UNSEEN = ("a", "c2", 2.0)


@given(life)
@example([A1, 99, A2, B1, A1, 99, A2, "cut"])  # undone while it waited, then done again while the reader was away
@example([A1, B1, A_UNSEEN, 1])  # cut off ahead of a change whose last part the view does not show
@settings(max_examples=200)
def test_hub_brings_every_reader_to_the_last_state_of_each_service(script: list[Any]) -> None:
    reader = live(script)
    assert reader.holds == {name: reader.view(found) for name, found in reader.truth.items()}


@given(life)
def test_hub_brings_every_reader_to_the_last_state_without_a_history(script: list[Any]) -> None:
    reader = live(script, history=2)
    assert reader.holds == {name: reader.view(found) for name, found in reader.truth.items()}


@given(st.lists(st.integers(1, 3) | st.tuples(st.integers(0, 2), st.booleans()), max_size=60))
def test_hub_encoded_gives_every_reader_the_bytes_of_what_it_sees(script: list[Any]) -> None:
    """The numbers of the first and the last change that were merged identify the merged one."""
    found, weight = hub(), 1

    def encode(event: Event) -> bytes:
        assert isinstance(event.body, Change)
        return repr((event.body.before, event.body.after)).encode()

    mailboxes = [found.subscribe(BOTH, quiet) for _ in range(3)]
    for what in script:
        if isinstance(what, int):
            if what != weight:
                found.publish(step(weight, what))
            weight = what
            continue
        number, resumes = what
        for event in mailboxes[number].take():
            assert found.encoded(event, "v", encode) == encode(event)
        if resumes:
            found.unsubscribe(mailboxes[number])
            mailboxes[number] = found.subscribe(BOTH, quiet, f"e-{found.published // 2}")


@given(st.lists(published, max_size=20))
def test_hub_subscribe_resumes_after_each_event_without_a_reset(script: list[Any]) -> None:
    reader = live([part for event in script for part in (event, 99, "cut")])
    assert reader.resets == 0
    assert reader.holds == {name: reader.view(found) for name, found in reader.truth.items()}
