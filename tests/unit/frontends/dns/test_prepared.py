from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.frontends.dns.prepared import OVERHEAD, PreparedAnswers
from tests.helpers.build import KEY, key

OTHER = key("users")


def test_prepared_answer_next_takes_turns() -> None:
    table = PreparedAnswers(10_000)
    table.add(b"q", [b"1", b"2", b"3"], "NOERROR", 10.0)
    answer = table.get(b"q")
    assert answer is not None
    assert {answer.next() for _ in range(3)} == {b"1", b"2", b"3"}
    assert (answer.code, answer.valid_until) == ("NOERROR", 10.0)


def test_prepared_answers_forget_drops_what_depends_on_a_service() -> None:
    table = PreparedAnswers(10_000)
    table.add(b"one", [b""], "", 1.0, [KEY])
    table.add(b"both", [b""], "", 1.0, [KEY, OTHER])
    table.add(b"other", [b""], "", 1.0, [OTHER])
    table.forget(KEY)
    assert [name for name in (b"one", b"both", b"other") if table.get(name)] == [b"other"]
    table.forget(OTHER)
    assert (len(table), table.bytes) == (0, 0)


@given(st.lists(st.tuples(st.binary(max_size=3), st.integers(0, 300), st.booleans())))
def test_prepared_answers_are_bounded_in_bytes_and_drop_the_oldest(added: list[tuple[bytes, int, bool]]) -> None:
    table = PreparedAnswers(4 * OVERHEAD)
    for query, size, forget in added:
        table.add(query, [bytes(size)], "", 1.0, [KEY])
        assert table.bytes <= 4 * OVERHEAD
        assert table.get(query) is not None
        if forget:
            table.forget(KEY)
            assert (len(table), table.bytes) == (0, 0)
