"""`DialectPair`."""

from __future__ import annotations

import pytest

from nacos_proxy.model.calls import Deregister, Fetch, GetInstance
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.base import ReadInstance, ReadService
from nacos_proxy.wire.nacos.v1 import V1
from tests.helpers.build import KEY
from tests.helpers.pair import DialectPair, asked_by


def test_dialect_pair_send_returns_the_result() -> None:
    pair = DialectPair(V1, lambda call: None)
    call = Deregister(KEY, "10.0.0.1", 80)
    pair.send(call)
    assert pair.seen == [call]
    assert pair.replies[0].body == b"ok"


def test_dialect_pair_send_raises_refused_for_an_error() -> None:
    pair = DialectPair(V1, lambda call: Refused(Reason.WRONG_KIND, "Current service g@@s is persistent service, …"))
    with pytest.raises(Refused, match="persistent"):
        pair.send(Deregister(KEY, "10.0.0.1", 80))


def test_dialect_pair_serve_answers_an_unknown_path() -> None:
    assert DialectPair(V1, lambda call: None).serve(HttpRequest("GET", "/v1/ns/nothing")).status == 501


def test_asked_by_gives_the_client_call_of_a_server_call() -> None:
    assert asked_by(ReadService(KEY)) == Fetch(KEY)
    assert asked_by(ReadInstance(KEY, "10.0.0.1", 80, "c1")) == GetInstance(KEY, "10.0.0.1", 80, "c1")
    assert asked_by(Fetch(KEY)) == Fetch(KEY)
