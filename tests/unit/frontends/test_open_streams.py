"""What is open for long ends when what opened it would be refused."""

from __future__ import annotations

from nacos_proxy.frontends.open_streams import (
    HOLDER,
    Held,
    Opened,
    hold,
)
from nacos_proxy.model.errors import Denied, ProxyError
from tests.helpers.asgi import scope

OLD, NEW = Opened("old", "GET", "/a"), Opened("new", "GET", "/a")


def refuse_old(opened: Opened) -> ProxyError | None:
    return Denied("revoked", status=401) if opened == OLD else None


def test_what_is_refused_now_ends_once_and_nothing_else() -> None:
    held, ended = Held(), list[str]()
    held.add(OLD, lambda why: ended.append(f"old: {why}"))
    release = held.add(NEW, lambda why: ended.append(f"new: {why}"))
    held.end(refuse_old)
    held.end(refuse_old)
    assert (ended, len(held)) == (["old: revoked"], 1)
    release()
    release()
    assert len(held) == 0


def test_what_has_ended_by_itself_is_not_ended_again() -> None:
    held, ended = Held(), list[ProxyError]()
    held.add(OLD, ended.append)()
    held.end(refuse_old)
    assert ended == []


def test_an_end_may_release_what_ends() -> None:
    held, ended = Held(), list[ProxyError]()

    def end(why: ProxyError) -> None:
        release()
        ended.append(why)

    release = held.add(OLD, end)
    held.end(refuse_old)
    assert len(ended) == 1


def test_a_request_is_held_by_what_the_guard_left_and_by_nobody_without_one() -> None:
    held = Held()
    hold(scope("GET", "/a"), lambda why: None)()
    release = hold({**scope("GET", "/a"), HOLDER: (held, OLD)}, lambda why: None)
    assert len(held) == 1
    release()
    assert len(held) == 0


def test_no_token_is_shown_in_a_repr() -> None:
    assert "old" not in repr(OLD)


def test_what_was_revoked_before_it_was_held_ends_at_once() -> None:
    """The guard let it in; until it is open, a first read or its tenant's may take a while."""
    held, ended = Held(refuse_old), list[str]()
    held.add(OLD, lambda why: ended.append(str(why)))()
    held.add(NEW, lambda why: ended.append(str(why)))
    assert (ended, len(held)) == (["revoked"], 1)
