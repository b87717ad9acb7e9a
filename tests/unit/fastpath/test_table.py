from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nacos_proxy.fastpath.table import (
    PreparedResponse,
    ResponseTable,
    ResponseTablePolicy,
    is_repeatable,
)
from nacos_proxy.wire.http import Cacheable

HEADERS = [(b"Age", b"0"), (b"Content-Length", b"2"), (b"Cache-Status", b"nacos-proxy; fwd=miss; ttl=10")]


def answer(key: object = "a", born: float = 0.0, valid_until: float = 10.0, body: bytes = b"{}") -> PreparedResponse:
    return PreparedResponse(Cacheable(key, born, valid_until), 200, HEADERS, body)


def table(**policy: int) -> ResponseTable:
    return ResponseTable(ResponseTablePolicy(**policy))


def test_what_was_offered_is_found() -> None:
    answers = table()
    offered = answer()
    assert answers.offer(b"head", offered, answers.serial)
    assert answers.find(b"head", 1.0) is offered
    assert answers.find(b"other", 1.0) is None


def test_an_answer_is_gone_when_it_is_no_longer_fresh() -> None:
    answers = table()
    answers.offer(b"head", answer(valid_until=10.0), answers.serial)
    assert answers.find(b"head", 9.999) is not None
    assert answers.find(b"head", 10.0) is None
    assert repr(answers) == "<ResponseTable 0 of 0 keys, 0 of 67108864 bytes>"


def test_an_answer_that_is_confirmed_stays_and_says_how_old_it_is_now() -> None:
    answers, spans = table(), iter([(4.0, 14.0), (4.0, 14.0), None])
    mark = Cacheable("a", 0.0, 10.0, revalidate=lambda now: next(spans) if now >= 5 else None)
    answers.offer(b"head", PreparedResponse(mark, 200, HEADERS, b"{}"), answers.serial)
    found = answers.find(b"head", 3.5)
    assert found is not None and found.headers[0] == (b"age", b"3")
    assert answers.find(b"head", 7.0) is found and found.headers[0] == (b"age", b"3")
    assert answers.find(b"head", 12.5) is found and found.headers[2] == (b"cache-status", b"nacos-proxy; hit; ttl=1")
    assert answers.find(b"head", 14.0) is None


def test_an_answer_that_is_confirmed_no_more_lasts_as_long_as_it_was_told() -> None:
    answers = table()
    mark = Cacheable("a", 0.0, 10.0, revalidate=lambda now: None)
    answers.offer(b"head", PreparedResponse(mark, 200, HEADERS, b"{}"), answers.serial)
    assert answers.find(b"head", 9.9) is not None
    assert answers.find(b"head", 10.0) is None


def test_forgetting_a_key_removes_all_its_answers_and_no_others() -> None:
    answers = table()
    for place, key in ((b"1", "a"), (b"2", "a"), (b"3", "b")):
        answers.offer(place, answer(key), answers.serial)
    answers.forget("a")
    assert [answers.find(place, 1.0) is not None for place in (b"1", b"2", b"3")] == [False, False, True]
    answers.forget("a")
    answers.forget("never seen")


def test_an_answer_whose_key_changed_while_it_was_made_is_not_taken() -> None:
    answers = table()
    since = answers.serial
    answers.forget("a")
    assert not answers.offer(b"1", answer("a"), since)
    assert answers.offer(b"2", answer("b"), since)
    assert answers.offer(b"1", answer("a"), answers.serial)


def test_after_more_changes_than_are_remembered_no_older_answer_is_taken() -> None:
    answers = table()
    since = answers.serial
    for n in range(1025):
        answers.forget(n)
    assert not answers.offer(b"1", answer("a"), since)


def test_clearing_empties_the_table_and_refuses_answers_begun_before() -> None:
    answers = table()
    since = answers.serial
    answers.offer(b"1", answer(), since)
    answers.clear()
    assert (len(answers), answers.bytes, answers.find(b"1", 1.0)) == (0, 0, None)
    assert not answers.offer(b"1", answer(), since)
    assert answers.offer(b"1", answer(), answers.serial)


def test_an_answer_offered_again_replaces_the_first_also_under_another_key() -> None:
    answers = table()
    answers.offer(b"1", answer("a"), answers.serial)
    second = answer("b")
    answers.offer(b"1", second, answers.serial)
    assert answers.find(b"1", 1.0) is second
    answers.forget("a")
    assert answers.find(b"1", 1.0) is second
    answers.forget("b")
    assert answers.find(b"1", 1.0) is None


def test_a_place_is_wanted_from_its_second_sight_on() -> None:
    answers = table()
    assert [answers.admits(b"head"), answers.admits(b"head"), answers.admits(b"head")] == [False, True, True]


def test_too_long_a_place_is_never_wanted() -> None:
    answers = table(max_head=10)
    assert [answers.admits(b"x" * 11), answers.admits(b"x" * 11)] == [False, False]


def test_places_seen_once_cannot_flush_the_table() -> None:
    answers = table(entries=10, remembered=100)
    answers.admits(b"hot")
    answers.offer(b"hot", answer(), answers.serial)
    assert not any(answers.admits(b"%d" % n) for n in range(10_000))
    assert answers.find(b"hot", 1.0) is not None


def test_a_second_sight_counts_within_as_many_places_as_are_remembered() -> None:
    answers = table(remembered=100)
    answers.admits(b"seldom")
    for n in range(99):
        answers.admits(b"%d" % n)
    assert answers.admits(b"seldom")


def test_the_number_of_entries_is_bounded_and_the_longest_unused_goes_first() -> None:
    answers = table(entries=3, size=30_000)
    for place in (b"1", b"2", b"3"):
        answers.offer(place, answer(place), answers.serial)
    assert answers.find(b"1", 1.0)
    answers.offer(b"4", answer(b"4"), answers.serial)
    assert [answers.find(place, 1.0) is not None for place in (b"1", b"2", b"3", b"4")] == [True, False, True, True]
    answers.forget(b"2")


def test_the_bytes_are_bounded() -> None:
    answers = table(size=10_000)
    for n in range(100):
        answers.offer(b"%d" % n, answer(n, body=b"x" * 1000), answers.serial)
    assert answers.bytes <= 10_000
    assert 1 < len(answers) < 10


def test_what_is_larger_than_the_limit_or_the_table_is_not_kept() -> None:
    assert not table(max_body=100).offer(b"1", answer(body=b"x" * 101), 0)
    assert not table(size=100).offer(b"1", answer(), 0)


def test_age_and_ttl_are_right_at_every_moment_and_the_answer_is_a_hit() -> None:
    answers = table()
    answers.offer(b"1", answer(born=0.5, valid_until=10.0), answers.serial)
    seen: list[dict[bytes, bytes]] = []
    for now in (0.5, 1.25, 1.5, 2.0, 9.9):
        found = answers.find(b"1", now)
        assert found is not None
        seen.append(dict(found.headers))
    assert [headers[b"age"] for headers in seen] == [b"0", b"0", b"1", b"1", b"9"]
    assert [headers[b"cache-status"] for headers in seen] == [b"nacos-proxy; hit; ttl=%d" % n for n in (9, 8, 8, 8, 0)]


ticks = st.integers(1, 100 * 1024).map(lambda n: n / 1024)  # exact sums and differences


@given(ticks, ticks, ticks)
def test_a_rendering_counts_as_the_answer_of_that_moment_would(born: float, ttl: float, later: float) -> None:
    answers, now = table(), born + later
    answers.offer(b"1", answer(born=born, valid_until=born + ttl), answers.serial)
    answers.find(b"1", born)
    found = answers.find(b"1", now)
    if now < born + ttl:
        assert found is not None
        headers = dict(found.headers)
        assert headers[b"age"] == b"%d" % int(now - born)
        assert headers[b"cache-status"] == b"nacos-proxy; hit; ttl=%d" % int(born + ttl - now)
    else:
        assert found is None


def test_to_bytes_writes_again_only_when_a_header_has_changed() -> None:
    answers, defaults = table(), [(b"Date", b"today")]
    answers.offer(b"1", answer(valid_until=10.0), answers.serial)
    found = answers.find(b"1", 0.1)
    assert found is not None
    raw = found.to_bytes(defaults)
    assert raw.startswith(b"HTTP/1.1 200 OK\r\ndate: today\r\nage: 0\r\n") and raw.endswith(b"\r\n\r\n{}")
    answers.find(b"1", 0.9)
    assert found.to_bytes(defaults) is raw
    answers.find(b"1", 1.0)
    assert b"\r\nage: 1\r\n" in found.to_bytes(defaults)
    assert b"date: tomorrow\r\n" in found.to_bytes([(b"Date", b"tomorrow")])


def test_a_drawn_body_has_its_own_length() -> None:
    assert dict(answer().headers_for(123))[b"content-length"] == b"123"


def test_twins_share_their_tally_and_nothing_that_is_rendered() -> None:
    first = answer()
    second = first.copy()
    first.render(5.0)
    second.render(7.0)
    assert (first.headers[0], second.headers[0]) == ((b"age", b"5"), (b"age", b"7"))
    assert first.hits is second.hits


def test_answers_of_a_kind_and_status_share_a_tally() -> None:
    answers = table()
    answers.hits_of("list", 200).head += 1
    answers.hits_of("list", 304)
    assert answers.hits_of("list", 200).head == 1
    assert set(answers.hit_counts) == {("list", 200), ("list", 304)}


LENGTH = (b"Content-Length", b"2")


def test_a_complete_response_is_repeatable() -> None:
    assert is_repeatable(200, [LENGTH], b"{}")
    assert is_repeatable(304, [], b"")
    assert is_repeatable(304, [(b"content-length", b"0")], b"")


def test_what_is_not_whole_or_belongs_to_one_connection_or_client_is_not_repeatable() -> None:
    assert not is_repeatable(404, [LENGTH], b"{}")
    assert not is_repeatable(200, [], b"{}")
    assert not is_repeatable(200, [LENGTH], b"{")
    assert not is_repeatable(200, [LENGTH, LENGTH], b"{}")
    assert not is_repeatable(304, [], b"{}")
    for header in (b"Connection", b"Transfer-Encoding", b"Set-Cookie"):
        assert not is_repeatable(200, [LENGTH, (header, b"x")], b"{}")


class TableBesideModel(RuleBasedStateMachine):
    """Whatever happens: what is found is fresh, and the newest that was offered since its key was last forgotten."""

    places = st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6"])
    keys = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.answers = table(entries=4, size=40_000)
        self.model: dict[bytes, PreparedResponse] = {}

    @rule(place=places, key=keys, lifetime=st.floats(0, 5))
    def offer(self, place: bytes, key: str, lifetime: float) -> None:
        made = answer(key, self.now, self.now + lifetime)
        assert self.answers.offer(place, made, self.answers.serial)
        self.model[place] = made

    @rule(key=keys)
    def forget(self, key: str) -> None:
        self.answers.forget(key)
        self.model = {place: made for place, made in self.model.items() if made.cacheable.invalidation_key != key}

    @rule(seconds=st.floats(0, 3))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(place=places)
    def find(self, place: bytes) -> None:
        found = self.answers.find(place, self.now)
        if found is not None:
            assert found is self.model[place]
            assert self.now < found.cacheable.valid_until

    @invariant()
    def bounded(self) -> None:
        assert len(self.answers) <= 4
        assert self.answers.bytes <= 40_000


TestTableBesideModel = TableBesideModel.TestCase
