"""The requests of SDKs, as h11 reads them."""

import h11
import pytest

from loadtest import sdks


def read(request: str) -> h11.Request:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request.replace("{host}", "127.0.0.1:8848").replace("{id}", "0-1").encode())
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    return event


@pytest.mark.parametrize(("name", "heads"), [
    ("java", sdks.java_read("cart", 46_001)),
    ("go", sdks.go_read("cart", 46_001)),
    ("node", sdks.node_read("cart", 46_001)),
])  # fmt: skip
def test_a_poll_names_its_service_and_udp_port_and_has_a_new_id(name: str, heads: list[str]) -> None:
    for head in heads:
        request = read(head)
        assert request.target.startswith(b"/nacos/v1/ns/instance/list?")
        assert b"cart" in request.target and b"udpPort=46001" in request.target
        assert (b"requestid", b"0-1") in request.headers


def test_the_go_sdk_sends_its_parameters_in_seven_orders() -> None:
    targets = {read(head).target for head in sdks.go_read("cart", 46_001)}
    assert len(targets) == 7
    assert {tuple(sorted(target.partition(b"?")[2].split(b"&"))) for target in targets} == {
        (b"app=", b"clientIP=127.0.0.1", b"clusters=", b"healthyOnly=false", b"namespaceId=",
         b"serviceName=DEFAULT_GROUP@@cart", b"udpPort=46001")
    }  # fmt: skip


def test_the_python_sdk_sends_no_id_and_closes_its_connection() -> None:
    (head,) = sdks.python_read("cart", 0)
    assert "{id}" not in head
    assert (b"connection", b"close") in read(head).headers


def test_the_java_sdk_writes_without_a_body() -> None:
    beat, register = read(sdks.java_beat("cart", "10.0.0.1")), read(sdks.java_register("cart", "10.0.0.1"))
    assert (beat.method, register.method) == (b"PUT", b"POST")
    assert b"ip=10.0.0.1" in beat.target and b"ip=10.0.0.1" in register.target
    assert not any(name == b"content-length" for request in (beat, register) for name, _ in request.headers)
