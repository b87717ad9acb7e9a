"""Which registrations are remembered, and for how long."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.registrations import CONNECTION, Registration, Registrations
from nacos_proxy.model.calls import Beat, Deregister, Register, Update
from nacos_proxy.model.services import Instance
from tests.helpers.build import KEY, instance, key

OTHER = key("stock")
X, Y = instance("10.0.0.1"), instance("10.0.0.2")
FAST = {"preserved.heart.beat.timeout": "3000", "preserved.ip.delete.timeout": "6000"}


def ledger(*registered: Instance, max_registrations: int = 100, now: float = 100.0) -> Registrations:
    found = Registrations(max_registrations)
    for one in registered:
        assert found.record_write(Register(KEY, one), now)
    return found


def known(of: Registrations, one: Instance = X) -> Registration:
    found = of.find(KEY, one.ip, one.port)
    assert found is not None
    return found


def beat(one: Instance = X, full: Instance | None = None) -> Beat:
    return Beat(KEY, one.ip, one.port, full=full)


# what is remembered


def test_registrations_wrote_remembers_all_data_of_an_instance() -> None:
    one = instance(weight=2.0, metadata={"a": "1"}, cluster="c1", enabled=False)
    found = ledger(one)
    assert (known(found).instance, known(found).last_heard, known(found).beats) == (one, 100.0, False)
    assert (len(found), found.count(KEY), found.count(OTHER)) == (1, 1, 0)


def test_registrations_wrote_again_is_a_sign_of_life_and_no_change() -> None:
    found = ledger(X)
    assert not found.record_write(Register(KEY, X), 110.0)
    assert (known(found).last_heard, found.count(KEY)) == (110.0, 1)


def test_a_registration_of_another_client_takes_an_instance_from_its_connection() -> None:
    found = ledger(X, Y)
    known(found).check, known(found, Y).check = CONNECTION, {"check": {}}
    assert known(found).of_connection and not known(found, Y).of_connection
    for one in (X, Y):
        found.record_write(beat(one, full=one), 105.0)
        found.record_write(Update(KEY, one.ip, one.port, weight=2.0), 106.0)
    assert known(found).of_connection
    for one in (X, Y):
        found.record_write(Register(KEY, one), 110.0)
    assert known(found).check is None and known(found, Y).check == {"check": {}}


def test_registrations_wrote_replaces_the_data_even_in_another_cluster() -> None:
    """On 2.x ip and port identify an instance; the proxy remembers the last one."""
    found = ledger(X)
    assert found.record_write(Register(KEY, instance(cluster="c1", weight=2.0)), 110.0)
    assert (known(found).instance, len(found)) == (instance(cluster="c1", weight=2.0), 1)


def test_registrations_wrote_forgets_what_is_deregistered() -> None:
    found = ledger(X, Y)
    assert found.record_write(Deregister(KEY, X.ip, X.port), 101.0)
    assert not found.record_write(Deregister(KEY, X.ip, X.port), 101.0)
    assert (found.find(KEY, X.ip, X.port), found.count(KEY)) == (None, 1)
    assert found.record_write(Deregister(KEY, Y.ip, Y.port), 101.0)
    assert found.count(KEY) == 0


def test_registrations_wrote_applies_updates() -> None:
    found = ledger(instance(metadata={"a": "1"}, cluster="c1"))
    assert found.record_write(Update(KEY, X.ip, X.port, weight=5.0, enabled=False, metadata={"b": "2"}), 101.0)
    assert known(found).instance == instance(cluster="c1", weight=5.0, enabled=False, metadata={"a": "1", "b": "2"})
    assert known(found).last_heard == 100.0


def test_registrations_wrote_of_an_update_without_effect_is_no_change() -> None:
    found = ledger(X)
    assert not found.record_write(Update(KEY, X.ip, X.port), 101.0)
    assert not found.record_write(Update(KEY, Y.ip, Y.port, weight=2.0), 101.0)
    assert len(found) == 1


# beats


def test_registrations_wrote_of_a_beat_is_a_sign_of_life() -> None:
    found = ledger(X)
    assert not found.record_write(beat(), 105.0)
    assert (known(found).last_heard, known(found).beats) == (105.0, True)


def test_registrations_wrote_of_a_full_beat_does_not_change_a_known_instance() -> None:
    """nacos-http.md 2.7: weight and metadata of a beat are not applied to a known instance."""
    found = ledger(X)
    found.record_write(beat(full=instance(weight=9.0)), 105.0)
    assert known(found).instance == X


def test_registrations_wrote_of_a_full_beat_registers_an_unknown_instance() -> None:
    found = ledger()
    assert not found.record_write(beat(), 100.0)
    assert len(found) == 0
    assert found.record_write(beat(full=X), 100.0)
    assert (known(found).instance, known(found).beats) == (X, True)


# the end


def test_registrations_expire_removes_silent_instances_after_they_are_unhealthy() -> None:
    found = ledger(X)
    one = known(found)
    assert [one.healthy(now) for now in (114.9, 115.0)] == [True, False]
    assert found.expire(129.9) == []
    assert found.expire(130.0) == [one]
    assert (len(found), found.count(KEY), found.expire(1e9)) == (0, 0, [])


def test_registrations_shift_does_not_count_a_standstill_as_silence() -> None:
    """An instance that beat before the gap was noticed does not get a time in the future."""
    some = ledger(X, Y)
    some.record_write(beat(Y), 170)
    some.shift(60, 171)
    assert (known(some, X).last_heard, known(some, Y).last_heard) == (160, 171)
    assert known(some, X).healthy(174) and not known(some, X).healthy(175)
    assert known(some, X).unhealthy_at == 175
    assert some.expire(189) == []
    assert [r.instance for r in some.expire(190)] == [X]


def test_registrations_room_ends_at_the_maximum() -> None:
    assert ledger(X, max_registrations=2).room
    assert not ledger(X, Y, max_registrations=2).room


def test_registration_left_is_reset_by_the_next_sign_of_life() -> None:
    some = ledger(X)
    known(some).deregistering = True
    some.record_write(beat(), 101)
    assert not known(some).deregistering
    known(some).deregistering = True
    some.record_write(Register(KEY, X), 102)
    assert not known(some).deregistering


def test_registrations_expire_keeps_instances_that_beat() -> None:
    found = ledger(X)
    for now in range(105, 1000, 5):
        found.record_write(beat(), float(now))
        assert found.expire(float(now)) == []
    assert len(found.expire(995.0 + 30.0)) == 1


def test_registrations_expire_after_the_times_in_the_metadata() -> None:
    found = ledger(X, instance(Y.ip, metadata=FAST))
    assert not known(found, Y).healthy(103.0)
    assert [r.instance.ip for r in found.expire(106.0)] == [Y.ip]


def test_registrations_expire_honours_a_shorter_time_that_came_later() -> None:
    found = ledger(X, Y)
    assert found.expire(101.0) == []
    found.record_write(Update(KEY, X.ip, X.port, metadata=FAST), 101.0)
    found.record_write(Register(KEY, instance(Y.ip, metadata=FAST)), 102.0)
    assert [r.instance.ip for r in found.expire(106.5)] == [X.ip]
    assert [r.instance.ip for r in found.expire(108.0)] == [Y.ip]


def test_registrations_expire_never_removes_persistent_instances() -> None:
    found = ledger(instance(ephemeral=False))
    assert found.expire(1e9) == []
    assert known(found).healthy(1e9) and known(found).alive(1e9)


steps = st.lists(
    st.tuples(st.sampled_from(["register", "fast", "beat", "update", "lapse"]), st.integers(1, 4), st.integers(0, 12)),
    max_size=40,
)


@given(steps)
def test_registrations_expire_misses_none_by_its_shortcut(made: list[tuple[str, int, int]]) -> None:
    """`expire` returns at once while none can have expired, which must not hide any."""
    found, now = ledger(), 100.0
    for what, number, passed in made:
        now += passed
        one = instance(f"10.0.0.{number}", metadata=FAST if what == "fast" else {})
        if what in ("register", "fast"):
            found.record_write(Register(KEY, one), now)
        elif what == "beat":
            found.record_write(beat(one), now)
        elif what == "update":
            found.record_write(Update(KEY, one.ip, one.port, metadata=FAST), now)
        else:
            silent = [r.key for r in found if not r.alive(now)]
            assert [r.key for r in found.expire(now)] == silent
            assert all(r.alive(now) for r in found)
    assert sum(found.count(k) for k in {r.service for r in found}) == len(found)


# bounds


def test_registrations_wrote_beyond_the_maximum_is_not_remembered() -> None:
    found = ledger(X, max_registrations=1)
    assert not found.full
    assert not found.record_write(Register(KEY, Y), 100.0)
    assert not found.record_write(beat(Y, full=Y), 100.0)
    assert (found.full, len(found), found.find(KEY, Y.ip, Y.port)) == (True, 1, None)
    assert found.record_write(Register(KEY, instance(X.ip, weight=3.0)), 100.0), "a known one is still followed"


def test_registrations_wrote_uses_room_that_was_made() -> None:
    found = ledger(X, max_registrations=1)
    found.record_write(Register(KEY, Y), 100.0)
    found.record_write(Deregister(KEY, X.ip, X.port), 100.0)
    assert not found.full
    assert found.record_write(beat(Y, full=Y), 101.0)


# after a start


def test_registrations_restore_keeps_all_fields() -> None:
    found, managed = ledger(), {"check": {"ttl": "30s"}}
    found.restore(Registration(KEY, X, last_heard=90.0, beats=True))
    found.restore(Registration(KEY, Y, last_heard=90.0, check=managed))
    assert (known(found).last_heard, known(found).beats, known(found, Y).check) == (90.0, True, managed)
    assert found.count(KEY) == 2
    assert found.expire(119.9) == []
    assert [r.instance for r in found.expire(120.0)] == [X]


def test_registrations_expire_leaves_managed_ones_to_their_health_checker() -> None:
    """Its check may fail for long while it stays listed as unhealthy."""
    found = ledger(X)
    known(found).check = {"check": {"ttl": "30s"}}
    assert found.expire(1000.0) == []
    known(found).check = None
    assert len(found.expire(1001.0)) == 1


def test_registrations_restore_never_replaces_a_newer_registration() -> None:
    found = ledger(instance(weight=7.0))
    found.restore(Registration(KEY, X, last_heard=90.0))
    assert (known(found).instance.weight, known(found).last_heard, found.count(KEY)) == (7.0, 100.0, 1)


def test_registrations_restore_keeps_the_bound() -> None:
    found = ledger(X, max_registrations=1)
    found.restore(Registration(OTHER, Y, last_heard=90.0))
    assert (len(found), found.full, found.count(OTHER)) == (1, True, 0)


def test_registrations_restore_of_a_long_silent_client_expires() -> None:
    found = ledger()
    found.restore(Registration(KEY, X, last_heard=-math.inf))
    assert len(found.expire(0.0)) == 1


def test_registrations_may_change_while_iterated() -> None:
    found: Any = ledger(X, Y)
    for registration in found:
        found.record_write(Deregister(KEY, registration.instance.ip, registration.instance.port), 100.0)
    assert repr(found) == "<Registrations 0 instances of 0 services>"
