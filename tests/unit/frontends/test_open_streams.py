"""`OpenStreams` ends long-lived requests whose admission no longer holds."""

from __future__ import annotations

from nacos_proxy.frontends.open_streams import OPEN_STREAMS, Admission, OpenStreams, end_on_revocation
from nacos_proxy.model.errors import Denied, ProxyError
from tests.helpers.asgi import scope

OLD, NEW = Admission("old", "read"), Admission("new", "read")


class Tokens:
    """Checks admissions: all are good until revoked."""

    def __init__(self) -> None:
        self.revoked: list[Admission] = []

    def check(self, admission: Admission) -> ProxyError | None:
        return Denied("revoked", status=401) if admission in self.revoked else None


def test_end_revoked_ends_a_revoked_stream_once_and_no_other() -> None:
    tokens, ended = Tokens(), list[str]()
    streams = OpenStreams(tokens.check)
    streams.add(OLD, lambda why: ended.append(f"old: {why}"))
    release = streams.add(NEW, lambda why: ended.append(f"new: {why}"))
    streams.end_revoked()
    assert ended == []
    tokens.revoked.append(OLD)
    streams.end_revoked()
    streams.end_revoked()
    assert (ended, len(streams)) == (["old: revoked"], 1)
    release()
    release()
    assert len(streams) == 0


def test_end_revoked_does_not_end_what_has_ended_by_itself() -> None:
    tokens, ended = Tokens(), list[ProxyError]()
    streams = OpenStreams(tokens.check)
    streams.add(OLD, ended.append)()
    tokens.revoked.append(OLD)
    streams.end_revoked()
    assert ended == []


def test_end_revoked_allows_an_end_that_releases_its_stream() -> None:
    tokens, ended = Tokens(), list[ProxyError]()
    streams = OpenStreams(tokens.check)

    def end(why: ProxyError) -> None:
        release()
        ended.append(why)

    release = streams.add(OLD, end)
    tokens.revoked.append(OLD)
    streams.end_revoked()
    assert len(ended) == 1


def test_add_ends_a_stream_at_once_that_was_revoked_since_it_was_admitted() -> None:
    """The first read may take a while between the check and `add`."""
    tokens, ended = Tokens(), list[str]()
    streams = OpenStreams(tokens.check)
    tokens.revoked.append(OLD)
    streams.add(OLD, lambda why: ended.append(str(why)))()
    streams.add(NEW, lambda why: ended.append(str(why)))
    assert (ended, len(streams)) == (["revoked"], 1)


def test_end_on_revocation_adds_to_the_open_streams_in_the_scope_if_there_are_any() -> None:
    streams = OpenStreams()
    end_on_revocation(scope("GET", "/a"), lambda why: None)()
    release = end_on_revocation({**scope("GET", "/a"), OPEN_STREAMS: (streams, OLD)}, lambda why: None)
    assert len(streams) == 1
    release()
    assert len(streams) == 0


def test_admission_does_not_show_its_token_in_a_repr() -> None:
    assert "old" not in repr(OLD)
