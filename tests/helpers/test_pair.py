"""The helper itself."""

from __future__ import annotations

import pytest

from nacos_proxy.model.calls import Deregister, Fetch, GetInstance
from nacos_proxy.model.errors import Reason, Refused
from nacos_proxy.wire.http import HttpRequest
from nacos_proxy.wire.nacos.base import ReadInstance, ReadService
from nacos_proxy.wire.nacos.v1 import V1
from tests.helpers.build import KEY
from tests.helpers.pair import DialectPair, asked_by


def test_a_call_arrives_and_its_result_comes_back() -> None:
    pair = DialectPair(V1, lambda call: None)
    call = Deregister(KEY, "10.0.0.1", 80)
    pair.send(call)
    assert pair.seen == [call]
    assert pair.replies[0].body == b"ok"


def test_an_error_comes_back_as_a_refusal() -> None:
    pair = DialectPair(V1, lambda call: Refused(Reason.WRONG_KIND, "Current service g@@s is persistent service, …"))
    with pytest.raises(Refused, match="persistent"):
        pair.send(Deregister(KEY, "10.0.0.1", 80))


def test_an_unknown_path_is_answered_as_such() -> None:
    assert DialectPair(V1, lambda call: None).serve(HttpRequest("GET", "/v1/ns/nothing")).status == 501


def test_what_a_client_asks_for_what_a_server_reads() -> None:
    assert asked_by(ReadService(KEY)) == Fetch(KEY)
    assert asked_by(ReadInstance(KEY, "10.0.0.1", 80, "c1")) == GetInstance(KEY, "10.0.0.1", 80, "c1")
    assert asked_by(Fetch(KEY)) == Fetch(KEY)
