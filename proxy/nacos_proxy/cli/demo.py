"""`nacos-proxy demo`: shows what the proxy does, step by step, as curl commands."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Any

import click

from nacos_proxy.cli.client_options import can_bind
from nacos_proxy.cli.rest_client import RestClient

SERVICE = "shop"  # not used in README.md, whose commands must work at the same time
V1 = "/nacos/v1/ns/instance"


@click.command(short_help="Show what the proxy does. Needs no Nacos.")
@click.option("--port", default=8840, show_default=True, help="Port to serve on; if it is in use, the next free one.")
@click.option("--once", is_flag=True, help="Stop after the last step.")
def demo(port: int, once: bool) -> None:
    """Show what the proxy does, with the embedded registry. Needs no Nacos."""
    if not once:
        for number in (signal.SIGTERM, signal.SIGHUP):  # else the proxy would outlive this process
            signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="nacos-proxy-demo-") as state, _serving(_free(port), state) as url:
            with RestClient(url) as client:
                Demo(url, client).steps()
                if not once:
                    click.secho(f"\nThe proxy is still running at {url}. Open {url}/ui and {url}/docs.", bold=True)
                    click.secho("Ctrl-C stops it.", bold=True)
                    _beat(client)
    except KeyboardInterrupt:
        click.echo("\nbye")


def _free(port: int) -> int:
    return next((candidate for candidate in range(port, port + 20) if can_bind("127.0.0.1", candidate)), 0)


@contextmanager
def _serving(port: int, state: str) -> Generator[str, None, None]:
    command = [sys.executable, "-m", "nacos_proxy", "serve", "--upstream", "embedded", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--state-dir", state, "--log-level", "warning"]
    # The demo ignores the settings of a real proxy. It is in a session of its own, so that only we stop it, not Ctrl-C.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NACOS_PROXY_")}
    clean["NACOS_PROXY_CONFIG"] = os.devnull
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean, start_new_session=True) as process:
        assert process.stdout is not None
        urls = (line.split("listening on ", 1)[1].strip() for line in process.stdout if "listening on " in line)
        url = next(urls, None)
        if url is None:
            raise click.ClickException("the proxy did not start")
        try:
            yield url
        finally:
            process.terminate()
            process.wait()


class Demo:
    """The steps: each prints a text and a curl command, sends the request, and prints the answer."""

    def __init__(self, url: str, client: RestClient) -> None:
        self._url = url
        self._client = client

    def steps(self) -> None:
        self._title("1. Two instances register, as with any Nacos SDK.")
        for ip in ("10.0.0.1", "10.0.0.2"):
            self._curl("POST", f"{V1}?serviceName={SERVICE}&ip={ip}&port=8080")
        self._title("2. A client lists them. The headers show how fresh the answer is.")
        self._curl("GET", f"{V1}/list?serviceName={SERVICE}", headers=True)
        self._title("3. The same read again, from memory.")
        self._curl("GET", f"{V1}/list?serviceName={SERVICE}", headers=True, body=False)
        self._title("4. A subscriber gets events when a weight changes and an instance leaves.")
        with self._subscribed() as print_next_change:
            self._curl("PATCH", f"/api/v1/services/{SERVICE}/instances/10.0.0.1:8080", {"weight": 5})
            print_next_change()
            self._curl("DELETE", f"{V1}?serviceName={SERVICE}&ip=10.0.0.2&port=8080")
            print_next_change()
        self._title("5. A load balancer picks one instance.")
        self._curl("GET", f"/api/v1/services/{SERVICE}/pick?format=text")

    def _title(self, text: str) -> None:
        click.secho(f"\n{text}", fg="cyan", bold=True)

    def _curl(
        self, method: str, target: str, json_body: Any = None, *, headers: bool = False, body: bool = True
    ) -> None:
        words = ["curl", "-i" if headers else "-s"]
        words += [] if method == "GET" else ["-X", method]
        if json_body is not None:
            words += ["-H", "Content-Type: application/json", "-d", json.dumps(json_body)]
        click.secho(f"$ {shlex.join(words)} {shlex.quote(self._url + target)}", fg="yellow")
        reply = self._client.call(method, target, body=json_body)
        if headers:
            click.echo(f"HTTP/1.1 {reply.status}")
            for name in ("age", "cache-status", "etag"):
                click.echo(f"{name}: {reply.headers.get(name, '')}")
        if body:
            show(reply.text)

    @contextmanager
    def _subscribed(self) -> Generator[Callable[[], None], None, None]:
        click.secho(f"$ curl -N {shlex.quote(f'{self._url}/api/v1/events?service={SERVICE}')} &", fg="yellow")
        with closing(self._client.events({"service": SERVICE})) as events:
            _, kind, data = next(events)
            click.secho(f"  event: {kind}, {len(data['hosts'])} instances", fg="green")

            def print_next_change() -> None:
                change = next(data for _, kind, data in events if kind == "change")
                hosts = {
                    name: [f"{host['ip']}:{host['port']} weight {host['weight']:g}" for host in change[name]]
                    for name in ("added", "modified", "removed")
                    if change[name]
                }
                click.secho(f"  event: change, {json.dumps(hosts)}", fg="green")

            yield print_next_change


def show(text: str) -> None:
    """Prints JSON indented; other text unchanged."""
    try:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        pass
    click.echo(text)


def _beat(client: RestClient) -> None:
    """Keeps the instance of step 1 healthy, until interrupted."""
    pause = threading.Event()
    while not pause.wait(5.0):
        client.call("PUT", f"/api/v1/services/{SERVICE}/instances/10.0.0.1:8080/beat")
