"""What the results of a managed instance's checks mean."""

import pytest

from proxy.catalog.checks import CheckSpec, Managed, local, seconds
from proxy.errors import BadCall
from proxy.model import Instance, ServiceKey


def managed(**spec: object) -> Managed:
    return Managed(ServiceKey.of("orders"), Instance("127.0.0.1", 80), CheckSpec("tcp", "127.0.0.1:80", **spec))  # type: ignore[arg-type]


def test_it_beats_while_the_check_passes() -> None:
    instance = managed(interval=5)
    assert instance.result("", now=10) == "beat"
    assert instance.due_at == 15


def test_it_falls_silent_after_the_given_number_of_failures_in_a_row() -> None:
    instance = managed(failures=3)
    assert [instance.result("refused", now=n) for n in range(4)] == ["beat", "beat", "silence", "silence"]
    assert not instance.passing
    assert instance.result("", now=9) == "beat"
    assert instance.passing


def test_it_is_deregistered_when_it_has_failed_for_too_long() -> None:
    instance = managed(failures=1, deregister_after=10)
    assert [instance.result("refused", now=n) for n in (0, 9, 10)] == ["silence", "silence", "deregister"]


def test_it_is_never_deregistered_unless_asked_for() -> None:
    instance = managed(failures=1)
    assert [instance.result("refused", now=n) for n in (0, 1e9)] == ["silence", "silence"]


def test_a_ttl_check_fails_without_a_sign_of_life() -> None:
    instance = Managed(ServiceKey.of("o"), Instance("127.0.0.1", 80), CheckSpec("ttl", ttl=30), heard=100)
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
def test_what_a_client_wrote_survives_being_written_down(body: dict[str, object]) -> None:
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
        ({"check": {"tcp": "nowhere"}}, "managed.check.tcp"),
        ({"check": {"ttl": "soon"}}, "managed.check.ttl"),
        ({"check": {"ttl": "30s"}, "interval": "-1s"}, "managed.interval"),
        ({"check": {"ttl": "30s"}, "failures": 0}, "managed.failures"),
        ({"check": {"ttl": "30s"}, "colour": "red"}, "managed"),
    ],
)
def test_a_bad_check_is_refused_with_the_name_of_what_is_wrong(body: object, parameter: str) -> None:
    with pytest.raises(BadCall) as caught:
        CheckSpec.parse(body)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("text", "value"), [("5s", 5.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), (3, 3.0), ("2.5", 2.5)]
)
def test_durations_are_read_as_people_write_them(text: object, value: float) -> None:
    assert seconds("x", text) == value


@pytest.mark.parametrize(
    ("host", "here"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("example.org", False)],
)
def test_only_certain_names_count_as_this_host(host: str, here: bool) -> None:
    assert local(host) is here
