"""Questions and answers of HAProxy's agent checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.model.limits import NACOS
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.discovery.agent_check import (
    DISABLED,
    DOWN,
    DRAIN,
    UP,
    Answer,
    Question,
    answers_of,
    read_question,
    write_answer,
)
from tests.helpers.build import KEY, instance, snapshot

ORDERS = "10.0.0.1:8080"


@pytest.mark.parametrize(
    ("line", "question"),
    [
        (b"orders/10.0.0.1:8080", Question(KEY, ORDERS, False)),
        (b"orders/10.0.0.1:8080\r", Question(KEY, ORDERS, False)),
        (b"orders/10.0.0.1:8080 weight", Question(KEY, ORDERS, True)),
        (b"g@@orders/10.0.0.1:8080", Question(ServiceKey("public", "g", "orders"), ORDERS, False)),
        (b"dev/g@@orders/10.0.0.1:8080", Question(ServiceKey("dev", "g", "orders"), ORDERS, False)),
        (b"dev/g@@a/b/10.0.0.1:8080", Question(ServiceKey("dev", "g", "a/b"), ORDERS, False)),
        (b"orders/[2001:DB8::0:7]:80", Question(KEY, "[2001:db8::7]:80", False)),
        (b"orders/Web:80", Question(KEY, "web:80", False)),
    ],
)
def test_read_question_finds_service_and_address(line: bytes, question: Question) -> None:
    assert read_question(line, NACOS) == question


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"orders", b"/", b"orders/", b"/10.0.0.1:80", b"orders/10.0.0.1", b"orders/10.0.0.1:80 percent"),
        *(b"orders/10.0.0.1:99999", b"@@orders/10.0.0.1:80", b"GET / HTTP/1.1", b"orders/a b:80", b"\xff/a:1"),
    ],
)
def test_read_question_refuses_anything_else(line: bytes) -> None:
    assert read_question(line, NACOS) is None


@given(st.binary(max_size=60))
def test_read_question_raises_on_no_bytes(line: bytes) -> None:
    read_question(line, NACOS)
    read_question(b"orders/" + line, NACOS)


def test_answers_of_has_a_state_for_each_instance() -> None:
    found = answers_of(
        snapshot(
            instance("10.0.0.1", 80, weight=2.0),
            instance("10.0.0.2", 80, weight=0.5),
            instance("10.0.0.3", 80, weight=0.0),
            instance("10.0.0.4", 80, healthy=False),
            instance("10.0.0.5", 80, enabled=False),
        )
    )
    assert [(address, answer.words) for address, answer in sorted(found.items())] == [
        ("10.0.0.1:80", UP),
        ("10.0.0.2:80", UP),
        ("10.0.0.3:80", DRAIN),
        ("10.0.0.4:80", DOWN),
        ("10.0.0.5:80", DISABLED),
    ]
    assert [found[f"10.0.0.{n}:80"].percent for n in (1, 2, 3)] == [100, 25, 0]


def test_answers_of_takes_the_best_of_an_address_and_honours_protection() -> None:
    twice = snapshot(instance("10.0.0.1", 80, cluster="a", healthy=False), instance("10.0.0.1", 80, cluster="b"))
    assert answers_of(twice)["10.0.0.1:80"].words is UP
    protected = snapshot(instance("10.0.0.1", 80, healthy=False), threshold=0.5)
    assert answers_of(protected)["10.0.0.1:80"].words is UP


def test_write_answer_has_a_percentage_only_on_request() -> None:
    assert write_answer(Answer(UP, 25), weight=False) == b"up ready\n"
    assert write_answer(Answer(UP, 25), weight=True) == b"up ready 25%\n"
    assert write_answer(Answer(DRAIN), weight=True) == b"up drain #weight 0\n"


@given(st.lists(st.tuples(st.floats(0, 10_000), st.booleans(), st.booleans()), max_size=5))
def test_every_answer_sets_health_and_administration(rows: list[tuple[float, bool, bool]]) -> None:
    """Else what an earlier answer set would stay."""
    hosts = [
        instance(f"10.0.0.{n}", 80, weight=weight, healthy=healthy, enabled=enabled)
        for n, (weight, healthy, enabled) in enumerate(rows)
    ]
    for answer in answers_of(snapshot(*hosts)).values():
        words = write_answer(answer, weight=True).decode().partition("#")[0].split()
        assert words[0] in ("up", "down") and words[1] in ("ready", "drain", "maint")
        assert all(1 <= int(word.rstrip("%")) <= 100 for word in words[2:])
