"""Event streams that reconnect, and streams in threads that others can end."""

from __future__ import annotations

import json
from queue import SimpleQueue
from typing import Any

import httpx
import pytest

from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.follow import Event, Lost, Opened, Stream, following
from nacos_proxy.cli.rest_client import RestClient
from tests.helpers.live import ProxyProcess, free_port
from tests.unit.cli.answers import answered_by
from tests.unit.conftest import Run


def client(*answers: httpx.Response | Exception) -> tuple[RestClient, list[httpx.Request]]:
    """A proxy that gives these answers to one request each."""
    left, seen = list(answers), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return RestClient("127.0.0.1:8840", connect=answered_by(answer)), seen


def stream(*events: tuple[str, str, Any]) -> httpx.Response:
    text = "".join(f"id: {id}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for id, kind, data in events)
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, text=text)


NOBODY = ConnectionRefusedError(111, "refused")
REFUSED = httpx.Response(403, json={"title": "no", "detail": "never"})
BUSY = httpx.Response(503, json={"title": "busy", "detail": "later"})


def test_following_reconnects_after_the_last_event() -> None:
    proxy, seen = client(stream(("e-1", "snapshot", {"a": 1})), NOBODY, BUSY, stream(), REFUSED)
    with proxy:
        found = following(proxy, {"service": "orders"}, 0.0)
        assert next(found) == Event("e-1", "snapshot", {"a": 1})
        lost = [str(next(found)) for _ in range(4)]
        with pytest.raises(ApiProblem, match="never"):
            next(found)
    assert [request.headers.get("last-event-id") for request in seen] == [None, *["e-1"] * 4]
    assert (lost[0], lost[3]) == ("the event stream ended; reconnecting", "the event stream ended; reconnecting")
    assert "refused" in lost[1]
    assert lost[2].startswith("later")


@pytest.mark.parametrize(("first", "kind"), [(NOBODY, Unreached), (REFUSED, ApiProblem)])
def test_following_raises_if_the_first_attempt_fails_unless_patient(
    first: httpx.Response | Exception, kind: type[Exception]
) -> None:
    with client(first)[0] as proxy, pytest.raises(kind):
        next(following(proxy, {}, 0.0))
    with client(first, stream(("1", "change", {})))[0] as proxy:
        found = following(proxy, {}, 0.0, patient=True)
        lost = next(found)
        assert isinstance(lost, Lost) and isinstance(lost.error, kind)
        assert next(found) == Event("1", "change", {})


def test_stream_puts_what_happens_into_a_queue_until_it_is_closed(ask: Run, running: ProxyProcess) -> None:
    found = SimpleQueue[Any]()
    with RestClient(running.url) as proxy:
        ask("register", "streamed", "10.0.0.1:80")
        stream = Stream(proxy, {"service": "streamed"}, found)
        assert found.get(timeout=20) == (stream, Opened())
        _, event = found.get(timeout=20)
        assert (event.kind, event.data["hosts"][0]["ip"]) == ("snapshot", "10.0.0.1")
        stream.close()
        assert not stream.alive
    assert found.empty()


def test_stream_puts_the_error_that_ends_it(running: ProxyProcess) -> None:
    found = SimpleQueue[Any]()
    with RestClient(running.url) as proxy:
        stream = Stream(proxy, {"service": "a@@b@@c!"}, found)
        source, error = found.get(timeout=20)
        assert (source, type(error)) == (stream, ApiProblem)
        stream.close()


def test_stream_closes_while_it_waits_to_reconnect() -> None:
    found = SimpleQueue[Any]()
    with RestClient(f"127.0.0.1:{free_port()}") as proxy:
        stream = Stream(proxy, {"service": "orders"}, found, retry=1000.0, patient=True)
        _, lost = found.get(timeout=20)
        assert isinstance(lost, Lost)
        stream.close()
        assert not stream.alive
