"""The Python client against a real proxy."""

from __future__ import annotations

import inspect
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nacos_proxy.client.client import NacosClient, NacosException, NacosRequestException
from tests.helpers.live import ProxyProcess, free_port

WAIT = 60.0


@pytest.fixture
def client(running: ProxyProcess) -> Iterator[NacosClient]:
    with NacosClient(running.url, timeout=WAIT) as client:
        yield client
    assert leftover() == []


def leftover() -> list[str]:
    """Threads of a client that should be gone."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("events ", "beat "))]


def host(client: NacosClient, service: str, **more: Any) -> dict[str, Any]:
    (found,) = client.list_naming_instance(service, **more)["hosts"]
    return found


def test_client_methods_take_the_parameters_of_the_legacy_sdk() -> None:
    """By position, so that a call that was written for the SDK means the same. `unsubscribe` takes the listener itself:
    the SDK's `listener_name` is the name of a class of its own."""
    nacos = pytest.importorskip("nacos")
    for name in (
        "add_naming_instance", "remove_naming_instance", "modify_naming_instance", "list_naming_instance",
        "get_naming_instance", "send_heartbeat", "subscribe", "stop_subscribe",
    ):  # fmt: skip
        theirs = list(inspect.signature(getattr(nacos.NacosClient, name)).parameters)
        ours = list(inspect.signature(getattr(NacosClient, name)).parameters)
        if "args" not in theirs:
            assert ours[: len(theirs)] == theirs, name


def test_client_adds_lists_gets_and_removes_an_instance(client: NacosClient) -> None:
    assert client.add_naming_instance("py", "10.0.0.1", 80, "c1", 2.0, {"zone": "a"}) is True
    found = host(client, "py", clusters="c1")
    assert (found["ip"], found["port"], found["weight"], found["metadata"]) == ("10.0.0.1", 80, 2.0, {"zone": "a"})
    assert client.list_naming_instance("py", clusters=["c2"])["hosts"] == []
    one = client.get_naming_instance("py", "10.0.0.1", 80, "c1")
    assert (one["ip"], one["port"], one["clusterName"], one["metadata"]) == ("10.0.0.1", 80, "c1", {"zone": "a"})
    assert client.remove_naming_instance("py", "10.0.0.1", 80, "c1") is True
    assert client.list_naming_instance("py")["hosts"] == []
    assert client.remove_naming_instance("py", "10.0.0.1", 80) is True


def test_list_naming_instance_has_the_fields_of_nacos(client: NacosClient) -> None:
    client.add_naming_instance("fields", "10.0.0.1", 80, group_name="G")
    body = client.list_naming_instance("fields", group_name="G")
    assert (body["name"], body["groupName"]) == ("G@@fields", "G")
    assert {"clusters", "cacheMillis", "hosts", "lastRefTime"} <= body.keys()


def test_modify_naming_instance_changes_only_what_it_is_given(client: NacosClient) -> None:
    client.add_naming_instance("mod", "10.0.0.1", 80, weight=2.0, metadata="a=1,b=2")
    assert client.modify_naming_instance("mod", "10.0.0.1", 80, metadata={"b": "3"}) is True
    assert (host(client, "mod")["weight"], host(client, "mod")["metadata"]) == (2.0, {"a": "1", "b": "3"})
    client.modify_naming_instance("mod", "10.0.0.1", 80, weight=7.0)
    assert (host(client, "mod")["weight"], host(client, "mod")["metadata"]) == (7.0, {"a": "1", "b": "3"})
    client.modify_naming_instance("mod", "10.0.0.1", 80, enable=False)
    assert client.list_naming_instance("mod")["hosts"] == []
    client.modify_naming_instance("mod", "10.0.0.1", 80, enable=True)
    assert host(client, "mod")["weight"] == 7.0


def test_client_takes_ipv6_and_grouped_names(client: NacosClient) -> None:
    client.add_naming_instance("G2@@six", "2001:db8::1", 80)
    client.modify_naming_instance("G2@@six", "2001:db8::1", 80, weight=3.0)
    assert host(client, "six", group_name="G2")["weight"] == 3.0


def test_send_heartbeat_answers_as_nacos_does_and_registers_the_instance(client: NacosClient) -> None:
    answer = client.send_heartbeat("beaten", "10.0.0.1", 80, metadata={"zone": "a"})
    assert (answer["code"], answer["clientBeatInterval"], answer["lightBeatEnabled"]) == (10200, 5000, True)
    assert host(client, "beaten")["metadata"] == {"zone": "a"}


def test_list_naming_instance_healthy_only_leaves_out_unhealthy_ones(client: NacosClient) -> None:
    client.add_naming_instance("sick", "10.0.0.1", 80, healthy=False, ephemeral=False)
    assert client.list_naming_instance("sick", healthy_only=True)["hosts"] == []
    assert host(client, "sick")["healthy"] is False


def test_client_namespaces_are_separate(running: ProxyProcess) -> None:
    with (
        NacosClient(running.url, namespace="dev", timeout=WAIT) as dev,
        NacosClient(running.url, timeout=WAIT) as public,
    ):
        dev.add_naming_instance("apart", "10.0.0.1", 80)
        dev.modify_naming_instance("apart", "10.0.0.1", 80, weight=4.0)
        assert host(dev, "apart")["weight"] == 4.0
        assert public.list_naming_instance("apart")["hosts"] == []
        assert len(public.list_naming_instance("apart", namespace_id="dev")["hosts"]) == 1


# errors


def test_nacos_exception_is_not_a_request_exception_for_invalid_parameters(client: NacosClient) -> None:
    with pytest.raises(NacosException, match="port must be a number") as bad:
        client.add_naming_instance("x", "10.0.0.1", 70000)
    assert not isinstance(bad.value, NacosRequestException)
    with pytest.raises(NacosRequestException) as refused:
        client.add_naming_instance("x", "10.0.0.1", 80, weight=99999.0)
    assert 400 <= refused.value.status <= 500
    assert "weight" in str(refused.value)
    with pytest.raises(NacosRequestException) as missing:
        client.get_naming_instance("nobody", "10.0.0.1", 80)
    assert missing.value.status == 404
    with pytest.raises(NacosException, match="server_addresses is empty"):
        NacosClient("")


def test_nacos_request_exception_without_an_answer_has_status_0() -> None:
    with NacosClient(f"127.0.0.1:{free_port()}") as nobody:
        with pytest.raises(NacosRequestException, match="no answer from the proxy") as failed:
            nobody.list_naming_instance("orders")
        assert failed.value.status == 0


def test_client_takes_a_redirect_for_a_failure() -> None:
    """A gateway that sends http to https would otherwise make each write a success."""
    away = httpx.MockTransport(lambda request: httpx.Response(301, headers={"location": "https://a/"}))
    with NacosClient("127.0.0.1:1", transport=away) as client, pytest.raises(NacosRequestException) as moved:
        client.remove_naming_instance("py", "10.0.0.1", 80)
    assert moved.value.args[0].startswith("DELETE ")


def test_nacos_request_exception_for_an_answer_that_is_not_json() -> None:
    html = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>login</html>"))
    with NacosClient("127.0.0.1:1", transport=html) as client, pytest.raises(NacosRequestException, match="not JSON"):
        client.list_naming_instance("orders")


# whose it is


def test_client_refuses_a_compressed_answer() -> None:
    def packed(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept-encoding"] == "identity"
        return httpx.Response(200, headers={"content-encoding": "gzip, gzip"}, stream=httpx.ByteStream(b"a bomb"))

    with NacosClient("localhost:1", transport=httpx.MockTransport(packed)) as client:
        with pytest.raises(NacosRequestException, match=r"the answer is compressed \(gzip, gzip\)"):
            client.list_naming_instance("a")


def test_client_sends_the_token_with_every_call() -> None:
    with ProxyProcess(env={"NACOS_PROXY_TOKENS": "write:client-token"}) as guarded:
        told: queue.Queue[dict[str, Any]] = queue.Queue()
        with NacosClient(guarded.url, token="client-token", timeout=WAIT) as client:
            client.add_naming_instance("orders", "10.0.0.1", 80)
            client.subscribe(told.put, service_name="orders")
            assert told.get(timeout=WAIT)["event"] == "snapshot"
        with NacosClient(guarded.url, timeout=WAIT) as stranger, pytest.raises(NacosRequestException) as refused:
            stranger.list_naming_instance("orders")
        assert refused.value.status == 403  # as Nacos says it


def test_client_logs_in_once_and_sends_the_token() -> None:
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.headers.get("authorization")))
        return httpx.Response(200, json={"accessToken": "given", "hosts": []})

    transport = httpx.MockTransport(answer)
    with NacosClient("127.0.0.1:1", username="u", password="p", transport=transport) as client:
        client.list_naming_instance("orders")
    assert seen == [("/nacos/v1/auth/login", None), ("/nacos/v1/ns/instance/list", "Bearer given")]


def test_client_closes_its_connections_if_the_login_fails() -> None:
    refuse = httpx.MockTransport(lambda request: httpx.Response(403, text="unknown user!"))
    with pytest.raises(NacosRequestException, match="unknown user"):
        NacosClient("127.0.0.1:1", username="u", password="p", transport=refuse)


# events


def subscribed(client: NacosClient, service: str) -> queue.Queue[dict[str, Any]]:
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    client.subscribe(told.put, service_name=service)
    assert told.get(timeout=WAIT)["event"] == "snapshot"
    return told


def test_subscribe_passes_the_whole_event_to_the_listener(client: NacosClient) -> None:
    told = subscribed(client, "told")
    client.add_naming_instance("told", "10.0.0.1", 80)
    change = told.get(timeout=WAIT)
    assert [h["ip"] for h in change["hosts"]] == [h["ip"] for h in change["added"]] == ["10.0.0.1"]
    client.modify_naming_instance("told", "10.0.0.1", 80, weight=3.0)
    assert [h["weight"] for h in told.get(timeout=WAIT)["modified"]] == [3.0]
    client.remove_naming_instance("told", "10.0.0.1", 80)
    gone = told.get(timeout=WAIT)
    assert (gone["hosts"], [h["ip"] for h in gone["removed"]]) == ([], ["10.0.0.1"])


def test_unsubscribe_ends_one_listener_or_all_of_a_service(client: NacosClient) -> None:
    first, second = subscribed(client, "left"), subscribed(client, "left")
    other = subscribed(client, "stays")
    client.unsubscribe("left", first.put)
    client.add_naming_instance("left", "10.0.0.1", 80)
    assert second.get(timeout=WAIT)["event"] == "change"
    assert first.empty()
    client.unsubscribe("left")
    assert leftover() == ["events stays"]
    client.add_naming_instance("stays", "10.0.0.1", 80)
    assert other.get(timeout=WAIT)["event"] == "change"
    client.stop_subscribe()
    assert leftover() == []


def test_unsubscribe_may_be_called_by_the_listener(client: NacosClient) -> None:
    done = threading.Event()

    def once(event: dict[str, Any]) -> None:
        client.unsubscribe("own")
        done.set()

    client.subscribe(once, service_name="own")
    assert done.wait(WAIT)


def test_close_waits_for_a_listener_that_ended_its_own_subscription(client: NacosClient) -> None:
    done, gate = threading.Event(), threading.Event()

    def lingers(event: dict[str, Any]) -> None:
        client.unsubscribe("lingers")
        done.set()
        gate.wait(WAIT)

    client.subscribe(lingers, service_name="lingers")
    assert done.wait(WAIT)
    closing = threading.Thread(target=client.close)
    closing.start()
    assert leftover() == ["events lingers"]
    gate.set()
    closing.join(WAIT)
    assert leftover() == []


# beats


def test_add_naming_instance_sends_heartbeats_until_the_instance_is_removed(
    client: NacosClient, running: ProxyProcess
) -> None:
    client.add_naming_instance("alive", "10.0.0.1", 80, metadata={"zone": "a"}, heartbeat_interval=0.01)
    assert leftover() == ["beat alive 10.0.0.1:80"]
    # a registry that lost it hears of it again by the beats
    with httpx.Client(base_url=running.url, trust_env=False) as http:
        http.delete("/api/v1/services/alive/instances/10.0.0.1:80").raise_for_status()
        while not http.get("/api/v1/services/alive").json()["hosts"]:
            pass
    assert host(client, "alive")["metadata"] == {"zone": "a"}
    client.remove_naming_instance("alive", "10.0.0.1", 80)
    assert leftover() == []
    assert client.list_naming_instance("alive")["hosts"] == []


def test_add_naming_instance_logs_a_failed_heartbeat_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    beats = threading.Semaphore(0)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/beat"):
            beats.release()
            return httpx.Response(503, text="away")
        return httpx.Response(200, text="ok")

    with NacosClient("127.0.0.1:1", transport=httpx.MockTransport(answer)) as client:
        client.add_naming_instance("x", "10.0.0.1", 80, heartbeat_interval=0.001)
        for _ in range(3):
            assert beats.acquire(timeout=WAIT)
    assert "a heartbeat of x 10.0.0.1:80 failed" in caplog.text
    assert leftover() == []


def test_close_leaves_no_thread(running: ProxyProcess) -> None:
    client = NacosClient(running.url, timeout=WAIT)
    client.add_naming_instance("closing", "10.0.0.1", 80, heartbeat_interval=0.001)
    subscribed(client, "closing")
    client.close()
    assert leftover() == []
    client.close()


def test_add_naming_instance_keeps_any_metadata(client: NacosClient) -> None:
    odd = {"k=v,": "ä€😀", "quote": '"', "empty": ""}
    client.add_naming_instance("odd", "10.0.0.1", 80, metadata=json.dumps(odd))
    assert host(client, "odd")["metadata"] == odd
