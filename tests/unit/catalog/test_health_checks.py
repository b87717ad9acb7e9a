"""The settings of health checks, and what their results mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.catalog.health_checks import CheckedInstance, CheckSpec, is_local_host, seconds, startable
from nacos_proxy.model.errors import BadCall
from nacos_proxy.model.services import Instance, ServiceKey


def managed(**spec: object) -> CheckedInstance:
    return CheckedInstance(ServiceKey.of("orders"), Instance("127.0.0.1", 80), CheckSpec("tcp", "127.0.0.1:80", **spec))  # type: ignore[arg-type]


def test_checked_instance_result_beats_while_the_check_passes() -> None:
    instance = managed(interval=5)
    assert instance.result("", now=10) == "beat"
    assert instance.due_at == 15


def test_checked_instance_result_is_silence_after_consecutive_failures() -> None:
    instance = managed(failures=3)
    assert [instance.result("refused", now=n) for n in range(4)] == ["beat", "beat", "silence", "silence"]
    assert not instance.passing
    assert instance.result("", now=9) == "beat"
    assert instance.passing


def test_checked_instance_result_deregisters_after_failing_for_too_long() -> None:
    instance = managed(failures=1, deregister_after=10)
    assert [instance.result("refused", now=n) for n in (0, 9, 10)] == ["silence", "silence", "deregister"]


def test_checked_instance_result_never_deregisters_by_default() -> None:
    instance = managed(failures=1)
    assert [instance.result("refused", now=n) for n in (0, 1e9)] == ["silence", "silence"]


def test_checked_instance_expired_without_a_sign_of_life() -> None:
    instance = CheckedInstance(ServiceKey.of("o"), Instance("127.0.0.1", 80), CheckSpec("ttl", ttl=30), last_heard=100)
    assert instance.expired(now=129) == ""
    assert instance.expired(now=130) == "no sign of life for 30 s"


@pytest.mark.parametrize(
    "body",
    [
        {"check": {"http": "http://127.0.0.1:8080/health"}},
        {"check": {"tcp": "127.0.0.1:8080"}, "interval": "500ms", "failures": 1},
        {"check": {"ttl": "30s"}, "deregisterAfter": "2m"},
    ],
)
def test_check_spec_dump_is_read_by_parse(body: dict[str, object]) -> None:
    spec = CheckSpec.parse(body)
    assert CheckSpec.parse(spec.dump()) == spec


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ([], "managed"),
        ({}, "managed.check"),
        ({"check": {}}, "managed.check"),
        ({"check": {"icmp": "x"}}, "managed.check"),
        ({"check": {"http": "ftp://x"}}, "managed.check.http"),
        ({"check": {"http": "http://user:secret@127.0.0.1/"}}, "managed.check.http"),
        ({"check": {"http": "http://127.0.0.1:99999/"}}, "managed.check.http"),
        ({"check": {"http": "http://[::1"}}, "managed.check.http"),
        ({"check": {"tcp": f"127.0.0.1:{'0' * 5000}80"}}, "managed.check.tcp"),
        ({"check": {"ttl": "30s"}, "timeout": "6s"}, "managed.timeout"),
        ({"check": {"ttl": "30s"}, "interval": "2m", "timeout": "61s"}, "managed.timeout"),
        ({"check": {"ttl": "30s"}, "interval": "3d", "timeout": "2d"}, "managed.interval"),
        ({"check": {"ttl": "30s"}, "timeout": "nan"}, "managed.timeout"),
        ({"check": {"http": "http://a\nb"}}, "managed.check.http"),
        ({"check": {"http": ["http://127.0.0.1"]}}, "managed.check.http"),
        ({"check": {"tcp": "nowhere"}}, "managed.check.tcp"),
        ({"check": {"tcp": "127.0.0.1:" + "9" * 5000}}, "managed.check.tcp"),
        ({"check": {"tcp": "127.0.0.1:\u0668\u0660"}}, "managed.check.tcp"),
        ({"check": {"ttl": ["30s"]}}, "managed.check.ttl"),
        ({"check": {"ttl": "soon"}}, "managed.check.ttl"),
        ({"check": {"ttl": "30s"}, "interval": "-1s"}, "managed.interval"),
        ({"check": {"ttl": "30s"}, "failures": 0}, "managed.failures"),
        ({"check": {"ttl": "30s"}, "colour": "red"}, "managed"),
    ],
)
def test_check_spec_parse_names_the_wrong_field(body: object, parameter: str) -> None:
    with pytest.raises(BadCall) as caught:
        CheckSpec.parse(body)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("body", "timeout"),
    [({}, 2.0), ({"interval": "500ms"}, 0.5), ({"timeout": "5s"}, 5.0), ({"interval": "2m", "timeout": "60s"}, 60.0)],
)
def test_check_spec_timeout_is_at_most_its_interval(body: dict[str, object], timeout: float) -> None:
    assert CheckSpec.parse({"check": {"ttl": "30s"}, **body}).timeout == timeout


def test_check_spec_parse_names_the_bound_of_a_timeout() -> None:
    with pytest.raises(BadCall, match="at most its interval, which is 5 s here, not 86400 s"):
        CheckSpec.parse({"check": {"ttl": "30s"}, "timeout": "24h"})
    with pytest.raises(BadCall, match="at most 60 s"):
        CheckSpec.parse({"check": {"ttl": "30s"}, "timeout": "24h", "interval": "24h"})
    assert CheckSpec.parse({"check": {"ttl": "30s"}, "timeout": "24h"}, restored=True).timeout == 5.0


GROUPS = st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=120)


def checks_of(groups: list[tuple[str, bool]]) -> list[CheckedInstance]:
    of = managed()
    return [
        CheckedInstance(of.service, of.instance, of.spec, owner, slow=slow, due_at=n)
        for n, (owner, slow) in enumerate(groups)
    ]


@given(GROUPS, GROUPS, st.integers(32, 128))
def test_startable_keeps_the_bound_and_starts_checks_of_every_group(
    before: list[tuple[str, bool]], waiting: list[tuple[str, bool]], most: int
) -> None:
    """Each of the six groups takes at most half of what is left, so the last one still gets 1 of 32."""
    running = startable(checks_of(before), [], most)
    begun = startable(checks_of(waiting), running, most)
    assert len(running) + len(begun) <= most
    idle = {m.group for m in checks_of(waiting)} - {m.group for m in running}
    assert idle <= {m.group for m in begun}
    for group in idle:
        due = [m.due_at for m in begun if m.group == group]
        assert due == [m.due_at for m in checks_of(waiting) if m.group == group][: len(due)], (
            "the longest overdue first"
        )


def test_checked_instance_group_depends_on_owner_and_speed() -> None:
    quick, slow, long = managed(timeout=2.0), managed(timeout=5.0), managed(timeout=60.0)
    for check in (quick, slow, long):
        assert check.slow, "nothing is known of it yet"
    quick.result("refused", now=0, took=0.1)
    slow.result("no answer in 5 s", now=0, took=5.0)
    assert len({quick.group, slow.group, long.group}) == 3
    long.result("", now=0, took=0.2)
    assert long.group == quick.group


def test_startable_gives_a_group_no_more_than_it_leaves_free() -> None:
    evil = checks_of([("evil", True)] * 100)
    running = startable(evil, [], 100)
    assert len(running) == 50
    assert len(startable(checks_of([("good", False)] * 100), running, 100)) == 25


@pytest.mark.parametrize(
    ("text", "value"), [("5s", 5.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), (3, 3.0), ("2.5", 2.5)]
)
def test_seconds_reads_durations_as_people_write_them(text: object, value: float) -> None:
    assert seconds("x", text) == value


@pytest.mark.parametrize(
    ("host", "here"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("example.org", False)],
)
def test_is_local_host_holds_for_certain_names_only(host: str, here: bool) -> None:
    assert is_local_host(host) is here
