"""What stands on the stream, in the server role."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacos_proxy.wire.nacos.base import ServiceView
from nacos_proxy.wire.nacos.grpc import client
from nacos_proxy.wire.nacos.grpc.payload import Payload
from nacos_proxy.wire.nacos.grpc.server import encode_info
from nacos_proxy.wire.nacos.grpc.stream import (
    MAX_BODY,
    MAX_ENTRIES,
    MAX_TEXT,
    Acknowledgement,
    ConnectionSetup,
    read_stream,
    write_detection,
    write_notify,
    write_prepared_notify,
    write_reset,
    write_setup_ack,
)
from tests.helpers.build import KEY, instance, snapshot
from tests.helpers.grpc_recordings import FILES, streamed

SETUPS = {
    "java25": ("Nacos-Java-Client:v2.5.1", "unknown", {}),
    "java3": ("Nacos-Java-Client:v3.0.3", "unknown", {"fuzzyWatch": True, "lock": True, "mcp": True}),
    "go2": ("Nacos-Go-Client:v2.2.7", "", None),
    "python3": ("Nacos-Python-Client:v3.2.0", "", {"mcp": True, "agent": True}),
    "rust": ("Nacos-Rust-Client:0.8.0", "rapp", None),
}


def setup(**fields: Any) -> ConnectionSetup:
    found = read_stream(Payload("ConnectionSetupRequest", json.dumps(fields).encode()))
    assert isinstance(found, ConnectionSetup)
    return found


@pytest.mark.parametrize("server", ["nacos-2.5.1", "nacos-3.0.3", "r-nacos-0.8.8"])
@pytest.mark.parametrize("sdk", SETUPS)
def test_read_stream_reads_the_setup_of_sdks(server: str, sdk: str) -> None:
    payloads = [message.payload for message in streamed(f"{server}-{sdk}") if message.sender == "client"]
    found = read_stream(next(payload for payload in payloads if payload.type == "ConnectionSetupRequest"))
    version, app, abilities = SETUPS[sdk]
    assert isinstance(found, ConnectionSetup)
    assert (found.client_version, found.app, found.abilities) == (version, app, abilities)
    assert (found.module, found.namespace, found.labels["source"]) == ("naming", "public", "sdk")


@pytest.mark.parametrize("file", FILES)
def test_read_stream_reads_what_sdks_answer_and_ignores_what_servers_ignore(file: str) -> None:
    for message in streamed(file):
        if message.sender != "client":
            continue
        found = read_stream(message.payload)
        match message.payload.type:
            case "ConnectionSetupRequest":
                assert isinstance(found, ConnectionSetup)
            case "HealthCheckRequest" | "NoSuchRequest":
                assert found is None
            case kind:
                assert found == Acknowledgement(kind, message.body["requestId"])
                assert message.body["requestId"]


@pytest.mark.parametrize("table", [{}, {"a": True}])
def test_setup_has_abilities_if_and_only_if_the_table_is_not_null(table: dict[str, bool]) -> None:
    assert setup(abilityTable=table).abilities == table
    assert setup(abilityTable=None).abilities is None
    assert setup(clientAbilities={}, abilities={"a": True}).abilities is None


def test_setup_of_no_module_and_no_namespace() -> None:
    assert (setup().module, setup().app, setup().namespace, setup().client_version) == ("", "", "public", "")
    assert setup(labels={"module": "config", "a": None}).labels == {"module": "config"}
    assert setup(tenant="dev").namespace == "dev"


def test_setup_keeps_only_a_bounded_part() -> None:
    found = setup(clientVersion="v" * 1000, labels={f"{n}" * 300: "x" * 300 for n in range(10, 60)})
    assert len(found.client_version) == MAX_TEXT
    assert len(found.labels) == MAX_ENTRIES
    assert max(len(name) + len(value) for name, value in found.labels.items()) <= 2 * MAX_TEXT


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"requestId":"1"}'.ljust(MAX_BODY + 1)])
def test_read_stream_ignores_what_it_cannot_read(body: bytes) -> None:
    assert read_stream(Payload("ConnectionSetupRequest", body)) is None
    assert read_stream(Payload("NotifySubscriberResponse", body)) is None


PLAIN = st.none() | st.booleans() | st.integers() | st.text()


@given(PLAIN | st.lists(PLAIN) | st.dictionaries(st.text(), PLAIN | st.dictionaries(st.text(), PLAIN)))
def test_read_stream_reads_any_json(value: Any) -> None:
    fields = {name: value for name in ("labels", "abilityTable", "clientVersion", "tenant", "requestId")}
    for kind in ("ConnectionSetupRequest", "XResponse"):
        assert read_stream(Payload(kind, json.dumps(fields).encode())) is not None


def test_write_setup_ack_writes_what_servers_do() -> None:
    recorded = [m for m in streamed("nacos-2.5.1-java25") if m.payload.type == "SetupAckRequest"]
    assert write_setup_ack({"supportPersistentInstanceByGrpc": True}).body == recorded[0].payload.body


def test_write_detection_writes_what_servers_do() -> None:
    recorded = next(m for m in streamed("nacos-2.5.1-raw-timing") if m.payload.type == "ClientDetectionRequest")
    assert write_detection(recorded.body["requestId"]).body == recorded.payload.body


def test_write_reset_leaves_the_address_out_if_there_is_none() -> None:
    assert json.loads(write_reset("7").body) == {"headers": {}, "requestId": "7", "module": "internal"}
    found = client.read_push(write_reset("7", "10.0.0.1", 9848))
    assert found == client.ResetRequest("7", "10.0.0.1", 9848)


@pytest.mark.parametrize("file", [name for name in FILES if name.startswith("nacos")])
def test_write_notify_writes_what_servers_push(file: str) -> None:
    pushed = [m for m in streamed(file) if m.payload.type == "NotifySubscriberRequest"]
    assert pushed
    for message in pushed:
        notify = client.read_push(message.payload)
        assert isinstance(notify, client.Notify)
        key = KEY._replace(group=notify.group, name=notify.name)
        listed = client.read_notified(key, notify).snapshot
        view = ServiceView(listed, listed.select())
        body = message.body
        info = body["serviceInfo"]
        info["allIPs"] = info.pop("allIps", info.get("allIPs"))
        written = json.loads(write_notify(body["requestId"], view, info["clusters"]).body)
        for shown in (info, written["serviceInfo"]):
            shown["hosts"].sort(key=lambda host: (host["ip"], host["port"]))
        assert written == body


def test_write_prepared_notify_writes_as_write_notify() -> None:
    listed = snapshot(*(instance(port=port + 1) for port in range(200)))
    view = ServiceView(listed, listed.select())
    assert write_prepared_notify("7", encode_info(view, "a")) == write_notify("7", view, "a")
