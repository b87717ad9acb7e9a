"""The clients of the load tests, against a minimal server."""

import asyncio

import pytest

from loadtest.wire import Caller, Connection, at_once, close_streams, open_streams, percentile


def test_percentile_is_a_measured_value() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 0.999)) == (51.0, 100.0, 100.0)
    assert (percentile([3.0], 0.5), percentile([], 0.5)) == (3.0, 0.0)


class Answering(asyncio.Protocol):
    """404 for /missing, an event stream for /events, else the target in chunks."""

    heard: list[bytes]
    streams: list[asyncio.Transport]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        target = data.split(b" ")[1]
        self.heard.append(target)
        if target == b"/missing":
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
            return
        self._transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if target == b"/events":
            self.streams.append(self._transport)
        else:
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(target), target))


async def server() -> tuple[asyncio.Server, str, type[Answering]]:
    made = type("Made", (Answering,), {"heard": [], "streams": []})
    listening = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    return listening, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", made


async def test_connection_sends_one_request_after_the_other() -> None:
    listening, url, _ = await server()
    async with listening:
        connection = Connection(url)
        assert await connection.ask("GET", "/a") == (200, b"/a")
        assert await connection.ask("GET", "/missing") == (404, b"no")
        assert await connection.ask("POST", "/b", b"body") == (200, b"/b")
        await connection.close()


async def test_caller_returns_the_whole_answer_in_pieces_of_any_size() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /a "):
            for piece in (b"HTTP/1.1 200 OK\r\nConte", b"nt-Length: 3\r\n\r", b"\na", b"bc"):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        caller = await asyncio.to_thread(Caller, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        for _ in range(2):
            whole = await asyncio.to_thread(caller.get, "/a")
            assert whole == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
        with pytest.raises(RuntimeError, match="404"):
            await asyncio.to_thread(caller.get, "/b")
        with pytest.raises(ConnectionError, match="closed"):
            await asyncio.to_thread(caller.get, "/a")
        caller.close()


async def test_at_once_makes_every_call_and_raises_on_a_refusal() -> None:
    listening, url, made = await server()
    async with listening:
        await at_once(url, [("GET", f"/{n}") for n in range(100)], connections=4)
        assert sorted(made.heard) == sorted(b"/%d" % n for n in range(100))
        with pytest.raises(RuntimeError, match="GET /missing: 404"):
            await at_once(url, [("GET", "/missing")])


async def test_stream_reader_finds_a_text_that_arrives_in_two_pieces() -> None:
    listening, url, made = await server()
    async with listening:
        seen: asyncio.Queue[float] = asyncio.Queue()
        streams = await open_streams(url, "/events", 150, lambda: b"mark-1-", seen.put_nowait)
        assert len(made.streams) == 150
        made.streams[0].write(b"x mar")
        await asyncio.sleep(0)
        made.streams[0].write(b"k-1-")
        made.streams[1].write(b"mark-1-")
        assert await seen.get() <= await seen.get()
        close_streams(streams)
