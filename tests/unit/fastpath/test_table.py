from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nacos_proxy.fastpath.table import PreparedResponse, ResponseTable, ResponseTablePolicy, is_repeatable
from nacos_proxy.wire.http import Cacheable
from tests.unit.fastpath.drive import LISTS

HEADERS = [(b"Age", b"0"), (b"Content-Length", b"2"), (b"Cache-Status", b"nacos-proxy; fwd=miss; ttl=10")]


def response(key: object = "a", born: float = 0.0, valid_until: float = 10.0, body: bytes = b"{}") -> PreparedResponse:
    return PreparedResponse(Cacheable(key, born, valid_until), 200, HEADERS, body)


def make_table(**policy: int) -> ResponseTable:
    return ResponseTable(ResponseTablePolicy(**policy))


def test_find_returns_what_was_offered() -> None:
    table = make_table()
    offered = response()
    assert table.offer(b"head", offered, table.serial)
    assert table.find(b"head", 1.0) is offered
    assert table.find(b"other", 1.0) is None


def test_find_drops_a_response_at_valid_until() -> None:
    table = make_table()
    table.offer(b"head", response(valid_until=10.0), table.serial)
    assert table.find(b"head", 9.999) is not None
    assert table.find(b"head", 10.0) is None
    assert repr(table) == "<ResponseTable 0 of 0 keys, 0 of 67108864 bytes>"


def test_find_keeps_a_revalidated_response_and_updates_its_age() -> None:
    table, spans = make_table(), iter([(4.0, 14.0), (4.0, 14.0), None])
    mark = Cacheable("a", 0.0, 10.0, revalidate=lambda now: next(spans) if now >= 5 else None)
    table.offer(b"head", PreparedResponse(mark, 200, HEADERS, b"{}"), table.serial)
    found = table.find(b"head", 3.5)
    assert found is not None and found.headers[0] == (b"age", b"3")
    assert table.find(b"head", 7.0) is found and found.headers[0] == (b"age", b"3")
    assert table.find(b"head", 12.5) is found and found.headers[2] == (b"cache-status", b"nacos-proxy; hit; ttl=1")
    assert table.find(b"head", 14.0) is None


def test_find_updates_only_the_last_entry_of_cache_status() -> None:
    table = make_table()
    given = b"nacos-proxy; hit; ttl=44; detail=50%, nacos-proxy; fwd=miss; ttl=9"
    kept = PreparedResponse(Cacheable("a", 0.0, 10.0), 200, [(b"cache-status", given)], b"{}")
    table.offer(b"head", kept, table.serial)
    found = table.find(b"head", 3.5)
    expected = b"nacos-proxy; hit; ttl=44; detail=50%, nacos-proxy; hit; ttl=6"
    assert found is not None and found.headers == [(b"cache-status", expected)]


def test_find_keeps_a_response_that_is_not_revalidated_until_valid_until() -> None:
    table = make_table()
    mark = Cacheable("a", 0.0, 10.0, revalidate=lambda now: None)
    table.offer(b"head", PreparedResponse(mark, 200, HEADERS, b"{}"), table.serial)
    assert table.find(b"head", 9.9) is not None
    assert table.find(b"head", 10.0) is None


def test_forget_drops_all_responses_of_a_key_and_no_others() -> None:
    table = make_table()
    for lookup_key, key in ((b"1", "a"), (b"2", "a"), (b"3", "b")):
        table.offer(lookup_key, response(key), table.serial)
    table.forget("a")
    assert [table.find(lookup_key, 1.0) is not None for lookup_key in (b"1", b"2", b"3")] == [False, False, True]
    table.forget("a")
    table.forget("never seen")


def test_offer_refuses_a_response_whose_key_was_forgotten_while_it_was_made() -> None:
    table = make_table()
    since = table.serial
    table.forget("a")
    assert not table.offer(b"1", response("a"), since)
    assert table.offer(b"2", response("b"), since)
    assert table.offer(b"1", response("a"), table.serial)


def test_offer_refuses_a_response_older_than_the_remembered_changes() -> None:
    table = make_table()
    since = table.serial
    for n in range(1025):
        table.forget(n)
    assert not table.offer(b"1", response("a"), since)


def test_clear_empties_the_table_and_offer_refuses_responses_begun_before() -> None:
    table = make_table()
    since = table.serial
    table.offer(b"1", response(), since)
    table.clear()
    assert (len(table), table.bytes, table.find(b"1", 1.0)) == (0, 0, None)
    assert not table.offer(b"1", response(), since)
    assert table.offer(b"1", response(), table.serial)


def test_offer_replaces_a_response_under_the_same_lookup_key() -> None:
    table = make_table()
    table.offer(b"1", response("a"), table.serial)
    second = response("b")
    table.offer(b"1", second, table.serial)
    assert table.find(b"1", 1.0) is second
    table.forget("a")
    assert table.find(b"1", 1.0) is second
    table.forget("b")
    assert table.find(b"1", 1.0) is None


def test_admits_a_key_the_second_time_it_is_seen() -> None:
    table = make_table()
    assert [table.admits(b"head"), table.admits(b"head"), table.admits(b"head")] == [False, True, True]


def test_admits_never_takes_a_key_that_is_too_long() -> None:
    table = make_table(max_head=10)
    assert [table.admits(b"x" * 11), table.admits(b"x" * 11)] == [False, False]


def test_admits_keeps_keys_seen_once_from_flushing_the_table() -> None:
    table = make_table(entries=10, remembered=100)
    table.admits(b"hot")
    table.offer(b"hot", response(), table.serial)
    assert not any(table.admits(b"%d" % n) for n in range(10_000))
    assert table.find(b"hot", 1.0) is not None


def test_admits_remembers_as_many_keys_as_the_policy_says() -> None:
    table = make_table(remembered=100)
    table.admits(b"seldom")
    for n in range(99):
        table.admits(b"%d" % n)
    assert table.admits(b"seldom")


def test_offer_bounds_the_entries_and_evicts_the_least_recently_used() -> None:
    table = make_table(entries=3, size=30_000)
    for lookup_key in (b"1", b"2", b"3"):
        table.offer(lookup_key, response(lookup_key), table.serial)
    assert table.find(b"1", 1.0)
    table.offer(b"4", response(b"4"), table.serial)
    assert [table.find(lookup_key, 1.0) is not None for lookup_key in (b"1", b"2", b"3", b"4")] == [
        True,
        False,
        True,
        True,
    ]
    table.forget(b"2")


def test_offer_bounds_the_bytes() -> None:
    table = make_table(size=10_000)
    for n in range(100):
        table.offer(b"%d" % n, response(n, body=b"x" * 1000), table.serial)
    assert table.bytes <= 10_000
    assert 1 < len(table) < 10


def test_offer_refuses_a_response_larger_than_its_limit_or_the_table() -> None:
    assert not make_table(max_body=100).offer(b"1", response(body=b"x" * 101), 0)
    assert not make_table(size=100).offer(b"1", response(), 0)


def test_render_makes_age_and_ttl_right_at_every_moment_and_says_hit() -> None:
    table = make_table()
    table.offer(b"1", response(born=0.5, valid_until=10.0), table.serial)
    seen: list[dict[bytes, bytes]] = []
    for now in (0.5, 1.25, 1.5, 2.0, 9.9):
        found = table.find(b"1", now)
        assert found is not None
        seen.append(dict(found.headers))
    assert [headers[b"age"] for headers in seen] == [b"0", b"0", b"1", b"1", b"9"]
    assert [headers[b"cache-status"] for headers in seen] == [b"nacos-proxy; hit; ttl=%d" % n for n in (9, 8, 8, 8, 0)]


ticks = st.integers(1, 100 * 1024).map(lambda n: n / 1024)  # exact sums and differences


@given(ticks, ticks, ticks)
def test_render_gives_the_age_and_ttl_of_a_new_response(born: float, ttl: float, later: float) -> None:
    table, now = make_table(), born + later
    table.offer(b"1", response(born=born, valid_until=born + ttl), table.serial)
    table.find(b"1", born)
    found = table.find(b"1", now)
    if now < born + ttl:
        assert found is not None
        headers = dict(found.headers)
        assert headers[b"age"] == b"%d" % int(now - born)
        assert headers[b"cache-status"] == b"nacos-proxy; hit; ttl=%d" % int(born + ttl - now)
    else:
        assert found is None


def test_to_bytes_writes_again_only_when_a_header_has_changed() -> None:
    table, defaults = make_table(), [(b"Date", b"today")]
    table.offer(b"1", response(valid_until=10.0), table.serial)
    found = table.find(b"1", 0.1)
    assert found is not None
    raw = found.to_bytes(defaults)
    assert raw.startswith(b"HTTP/1.1 200 OK\r\ndate: today\r\nage: 0\r\n") and raw.endswith(b"\r\n\r\n{}")
    table.find(b"1", 0.9)
    assert found.to_bytes(defaults) is raw
    table.find(b"1", 1.0)
    assert b"\r\nage: 1\r\n" in found.to_bytes(defaults)
    assert b"date: tomorrow\r\n" in found.to_bytes([(b"Date", b"tomorrow")])


def test_headers_for_a_length_have_that_content_length() -> None:
    assert dict(response().headers_for(123))[b"content-length"] == b"123"


def test_copy_shares_the_hit_counts_and_nothing_that_is_rendered() -> None:
    first = response()
    second = first.copy()
    first.render(5.0)
    second.render(7.0)
    assert (first.headers[0], second.headers[0]) == ((b"age", b"5"), (b"age", b"7"))
    assert first.hits is second.hits


def test_hits_of_a_route_and_status_are_counted_together() -> None:
    table = make_table()
    table.hits_of(LISTS, 200).head += 1
    table.hits_of(LISTS, 304)
    assert table.hits_of(LISTS, 200).head == 1
    assert set(table.hit_counts) == {(LISTS, 200), (LISTS, 304)}


LENGTH = (b"Content-Length", b"2")


def test_is_repeatable_is_true_for_a_complete_response() -> None:
    assert is_repeatable(200, [LENGTH], b"{}")
    assert is_repeatable(304, [], b"")
    assert is_repeatable(304, [(b"content-length", b"0")], b"")


def test_is_repeatable_is_false_for_a_partial_response_or_one_bound_to_a_connection() -> None:
    assert not is_repeatable(404, [LENGTH], b"{}")
    assert not is_repeatable(200, [], b"{}")
    assert not is_repeatable(200, [LENGTH], b"{")
    assert not is_repeatable(200, [LENGTH, LENGTH], b"{}")
    assert not is_repeatable(304, [], b"{}")
    for header in (b"Connection", b"Transfer-Encoding", b"Set-Cookie"):
        assert not is_repeatable(200, [LENGTH, (header, b"x")], b"{}")


class TableBesideModel(RuleBasedStateMachine):
    """Whatever happens: what is found is fresh, and the newest that was offered since its key was last forgotten."""

    lookup_keys = st.sampled_from([b"1", b"2", b"3", b"4", b"5", b"6"])
    keys = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = make_table(entries=4, size=40_000)
        self.model: dict[bytes, PreparedResponse] = {}

    @rule(lookup_key=lookup_keys, key=keys, lifetime=st.floats(0, 5))
    def offer(self, lookup_key: bytes, key: str, lifetime: float) -> None:
        made = response(key, self.now, self.now + lifetime)
        assert self.table.offer(lookup_key, made, self.table.serial)
        self.model[lookup_key] = made

    @rule(key=keys)
    def forget(self, key: str) -> None:
        self.table.forget(key)
        self.model = {
            lookup_key: made for lookup_key, made in self.model.items() if made.cacheable.invalidation_key != key
        }

    @rule(seconds=st.floats(0, 3))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    @rule(lookup_key=lookup_keys)
    def find(self, lookup_key: bytes) -> None:
        found = self.table.find(lookup_key, self.now)
        if found is not None:
            assert found is self.model[lookup_key]
            assert self.now < found.cacheable.valid_until

    @invariant()
    def bounded(self) -> None:
        assert len(self.table) <= 4
        assert self.table.bytes <= 40_000


TestTableBesideModel = TableBesideModel.TestCase
