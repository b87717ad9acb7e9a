"""The demo: its steps, and what it does afterwards."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest

from tests.helpers.live import Process, free_port
from tests.unit.conftest import Run


def test_demo_prints_every_step(cli: Run) -> None:
    port = free_port()
    done = cli("demo", "--once", "--port", str(port), NACOS_PROXY_UPSTREAM="http://127.0.0.1:1")
    assert done.exit_code == 0, done.output
    text = done.output
    url = f"http://127.0.0.1:{port}"
    steps = [
        f"$ curl -s -X POST '{url}/nacos/v1/ns/instance?serviceName=shop&ip=10.0.0.1&port=8080'\nok\n",
        f"$ curl -s -X POST '{url}/nacos/v1/ns/instance?serviceName=shop&ip=10.0.0.2&port=8080'\nok\n",
        f"$ curl -i '{url}/nacos/v1/ns/instance/list?serviceName=shop'\nHTTP/1.1 200\n",
        '"name": "DEFAULT_GROUP@@shop"',
        f"$ curl -i '{url}/nacos/v1/ns/instance/list?serviceName=shop'\nHTTP/1.1 200\nage: ",
        "cache-status: nacos-proxy; hit",
        f"$ curl -N '{url}/api/v1/events?service=shop' &\n  event: snapshot, 2 instances\n",
        f"-d '{{\"weight\": 5}}' {url}/api/v1/services/shop/instances/10.0.0.1:8080\n",
        '  event: change, {"modified": ["10.0.0.1:8080 weight 5"]}\n',
        "$ curl -s -X DELETE",
        '  event: change, {"removed": ["10.0.0.2:8080 weight 1"]}\n',
        f"$ curl -s '{url}/api/v1/services/shop/pick?format=text'\n10.0.0.1:8080\n",
    ]
    place = 0
    for step in steps:
        assert step in text[place:], step
        place = text.index(step, place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_serves_until_interrupted(number: signal.Signals) -> None:
    with Process([sys.executable, "-m", "nacos_proxy", "demo", "--port", "0"], env=dict(os.environ)) as demo:
        demo.wait_for(re.compile("is still running at http://127"))
        demo.wait_for(re.compile("Ctrl-C stops it"))
        demo.signal(number)
        assert demo.wait() == 0
        assert demo.log.endswith("bye\n")


def test_demo_skips_a_port_in_use(cli: Run) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cli("demo", "--once", "--port", str(port))
    assert done.exit_code == 0
    assert f"127.0.0.1:{port}/" not in done.output
