"""`Dialect`: which operation a request and a call find; the calls that only clients make."""

from __future__ import annotations

from typing import Any

import pytest

from nacos_proxy.model.calls import Call, Deregister, Fetch, GetInstance, Metrics
from nacos_proxy.model.errors import Malformed
from nacos_proxy.model.services import ServiceKey
from nacos_proxy.wire.http import HttpReply, HttpRequest
from nacos_proxy.wire.nacos.base import ANY, KEY, Dialect, Operation, ReadPage, ReadService
from nacos_proxy.wire.nacos.shapes import as_text
from nacos_proxy.wire.nacos.v1 import V1
from nacos_proxy.wire.nacos.v2 import V2
from nacos_proxy.wire.nacos.v3 import V3
from tests.helpers.build import KEY as SERVICE
from tests.helpers.pair import CALLS


def row(method: str, path: str, call: type, asks: tuple[type, ...] = (), **roles: Any) -> Operation[Any, Any]:
    def read(_request: HttpRequest) -> Any:
        raise NotImplementedError

    return Operation(method, path, call, read, lambda c, r: as_text("ok"), asks=asks, **roles)


def ask(call: Any) -> HttpRequest:
    return HttpRequest("GET", f"/asked/{type(call).__name__}")


def reply_of(call: Any, reply: HttpReply) -> Any:
    return {}[reply.status]


LIST = row("GET", "/n/list", Metrics, (Fetch,), write_request=ask, read_reply=reply_of)
STATUSES = row(ANY, f"/n/statuses{KEY}", Metrics)
NAMES = row(ANY, "/n/names", Metrics)
BESIDE = row("GET", "/beside", Metrics)


def say(request: HttpRequest, *_: Any) -> HttpReply:
    return as_text(request.path)


def table(*, slash: bool = True, head: bool = True) -> Dialect:
    rows = [LIST, row("GET", "/n/list", Deregister), STATUSES, NAMES, BESIDE]
    return Dialect("t", ["/n"], rows, unknown=say, write_error=say, slash=slash, head=head)


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/n/list", LIST),
        ("GET", "/n/list/", LIST),
        ("HEAD", "/n/list", LIST),
        ("POST", "/n/list", None),
        ("GET", "/n/list//", None),
        ("PATCH", "/n/names", NAMES),
        ("DELETE", "/n/statuses/g@@s", STATUSES),
        ("GET", "/n/statuses", None),
        ("GET", "/n/statuses/", None),
        ("GET", "/", None),
        ("GET", "", None),
    ],
)
def test_dialect_match_finds_the_row_of_a_method_and_path(
    method: str, path: str, found: Operation[Any, Any] | None
) -> None:
    assert table().match(method, path) is found


def test_dialect_match_may_be_strict_about_a_slash_at_the_end_and_head() -> None:
    strict = table(slash=False, head=False)
    assert strict.match("GET", "/n/list/") is None
    assert strict.match("HEAD", "/n/list") is None
    assert strict.match("HEAD", "/beside") is BESIDE  # outside of the naming API, HEAD is always answered


def test_dialect_owns_whole_path_segments_only() -> None:
    assert table().owns("/n") and table().owns("/n/anything")
    assert not table().owns("/names") and not table().owns("/")


def test_dialect_write_request_finds_the_row_of_a_call() -> None:
    dialect = table()
    assert dialect.can_send(Fetch(SERVICE))
    assert dialect.write_request(Fetch(SERVICE)).path == "/asked/Fetch"
    assert not dialect.can_send(Metrics())
    assert not dialect.can_send(GetInstance(SERVICE, "10.0.0.1", 80))
    with pytest.raises(KeyError):
        dialect.write_request(Metrics())


@pytest.mark.parametrize("dialect", [V1, V2, V3], ids=repr)
@pytest.mark.parametrize("call", CALLS, ids=repr)
def test_write_request_of_every_dialect_puts_all_but_a_full_beat_into_the_query(
    dialect: Dialect, call: Call[Any]
) -> None:
    """1.x ignores the form of a POST; a cluster loses the form of a DELETE."""
    if not dialect.can_send(call):
        return
    request = dialect.write_request(call)
    assert {name for name, _ in request.form} <= {"beat"}
    assert "beat" not in dict(request.query)
    if isinstance(service := getattr(call, "service", None), ServiceKey):
        assert (
            service.name
            in dict(request.query)["serviceName" if "serviceName" in dict(request.query) else "serviceNameParam"]
        )


@pytest.mark.parametrize("dialect", [V1, V2, V3], ids=repr)
def test_calls_has_every_call_of_the_client_role(dialect: Dialect) -> None:
    asked = {c for o in dialect.operations if o.write_request and o.read_reply for c in o.asks or (o.call,)}
    assert asked <= {type(call) for call in CALLS}


def test_dialect_write_request_moves_a_form_into_the_query() -> None:
    written = HttpRequest("DELETE", "/n", (("a", "1"),), (("b", "2"), ("beat", "{}")))
    only = row("DELETE", "/n", Fetch, write_request=lambda call: written, read_reply=reply_of)
    request = Dialect("t", ["/n"], [only], unknown=say, write_error=say, slash=True, head=True).write_request(
        Fetch(SERVICE)
    )
    assert request == HttpRequest("DELETE", "/n", (("a", "1"), ("b", "2")), (("beat", "{}"),))


def test_dialect_read_reply_turns_what_its_row_raises_into_malformed() -> None:
    with pytest.raises(Malformed, match="Fetch: KeyError"):
        table().read_reply(Fetch(SERVICE), HttpReply(200, None, b""))


def test_dialect_repr_and_unknown() -> None:
    assert repr(table()) == "<dialect t>"
    assert table().unknown(HttpRequest("GET", "/n/x"), 0).body == b"/n/x"


def test_read_service_cluster_set_splits_clusters() -> None:
    call = ReadService(SERVICE, "c1,,c2,")
    assert call.clusters == "c1,,c2,"
    assert call.cluster_set == {"c1", "c2"}
    assert ReadPage(SERVICE).cluster_set == frozenset()
