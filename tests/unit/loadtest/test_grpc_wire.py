"""The gRPC client of the load tests, against the stand-in on grpcio."""

import asyncio

import pytest
from hpack import Decoder

from loadtest.grpc import queries
from loadtest.grpc_wire import connected, each, headers, message, naming
from tests.helpers.faces import facing
from tests.helpers.grpcio_client import unpack


def test_message_is_what_protobuf_reads() -> None:
    body = {"serviceName": "s" * 300}
    packed = message("ServiceQueryRequest", body)
    assert (packed[0], int.from_bytes(packed[1:5], "big")) == (0, len(packed) - 5)
    read = unpack(packed[5:])
    assert (read.type, read.body) == ("ServiceQueryRequest", body)


def test_headers_are_decoded_by_hpack() -> None:
    fields = Decoder().decode(headers(b"/Request/request", b"127.0.0.1:9848"))
    assert [(name, value) for name, value in fields] == [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/Request/request"),
        (":authority", "127.0.0.1:9848"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]


async def test_grpc_connection_hears_and_acknowledges_pushes() -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with facing("v1+v2", grpc=True) as server:
        assert server.grpc is not None
        sessions = await connected("127.0.0.1", server.grpc.port, 60, lambda message, moment: heard.put_nowait(message))
        assert len(server.grpc.known) == 60
        await each(sessions[:1], naming("SubscribeServiceRequest", "s", subscribe=True, clusters=""))
        assert unpack(await heard.get()).type == "NotifySubscriberRequest"
        while server.grpc.known[0].waiting:
            await asyncio.sleep(0)
        assert server.grpc.acked == ["NotifySubscriberResponse"]
        server.grpc.detect(server.grpc.known[1])
        assert unpack(await heard.get()).type == "ClientDetectionRequest"
        with pytest.raises(RuntimeError, match="1 of 1 calls failed"):
            await each(sessions[1:2], message("NoSuchRequest", {}))
        for session in sessions:
            session.close()


async def test_grpc_connection_whose_server_goes_fails_its_calls() -> None:
    async with facing("v1+v2", grpc=True) as server:
        assert server.grpc is not None
        sessions = await connected("127.0.0.1", server.grpc.port, 1)
        server.grpc.silent.add("ServiceQueryRequest")
        asking = asyncio.gather(each(sessions, naming("ServiceQueryRequest", "s")), return_exceptions=True)
        while "ServiceQueryRequest" not in server.grpc.asked:
            await asyncio.sleep(0)
        server.grpc.drop(server.grpc.known[0])
        assert "1 of 1 calls failed" in str(*await asking)


async def test_queries_are_all_answered() -> None:
    async with facing("v1+v2", grpc=True) as server:
        figures = await queries(server.url, 0.1, connections=2, at_once=2)
    assert figures["errors"] == 0 < figures["requests"]
    assert 0 < figures["p50"] <= figures["p99"]
