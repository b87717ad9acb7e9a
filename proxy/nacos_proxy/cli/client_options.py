"""Shared by the commands for a running proxy: options, and output as tables or JSON (`--json`).

Control characters in texts of other users are escaped.
"""

from __future__ import annotations

import functools
import json
import math
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nacos_proxy.app.logs import printable
from nacos_proxy.app.setting_types import parse_duration
from nacos_proxy.cli.commands import words
from nacos_proxy.cli.rest_client import RestClient, address_segment
from nacos_proxy.model.services import address_of as plain_address_of

EXIT_CODES = "Exit codes: 0 done, 1 refused or not found, 2 wrong usage or settings, 3 no proxy answers."
WIDE = 10_000  # columns if the output is not a terminal, so that no line is folded


class Parameter(click.ParamType[Any]):
    """The type of an option or argument. `parse` raises `ValueError` with the message for the user."""

    def __init__(self, name: str, parse: Callable[[Any], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _parse_address(value: str) -> str:
    address_segment(value)
    return value


def _parse_weight(value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"{value!r} is not a number")
    return weight


COMMAND = Parameter("COMMAND", words)
ADDRESS = Parameter("IP:PORT", _parse_address)
DURATION = Parameter("DURATION", parse_duration)
WEIGHT = Parameter("NUMBER", _parse_weight)  # the proxy checks its range


class Session:
    """The first argument of each client command. Its calls are about `scope`, a namespace and a group."""

    def __init__(self, client: RestClient, namespace: str, group: str, as_json: bool) -> None:
        self.client = client
        self.scope = {"namespace": namespace, "group": group}
        self.as_json = as_json

    def call(self, method: str, path: str, body: object = None, **query: str) -> None:
        """Raises `Unreached` or `ApiProblem`."""
        self.client.call(method, path, {**self.scope, **query}, body)

    def json(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Returns the JSON object of the answer. Raises `Unreached` or `ApiProblem`."""
        return self.client.json(method, path, {**self.scope, **query}, body)

    def show(self, body: Any, print_for_people: Callable[[], None]) -> None:
        if self.as_json:
            click.echo(json.dumps(body, ensure_ascii=False))
        else:
            print_for_people()
        if self.client.local:
            warn("Nacos is down. The proxy accepted this by itself and will send changes to Nacos when it is back.")


def client_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a command with the shared options; the function gets a `Session` and its own options."""
    options = (
        click.option("--server", envvar="NACOS_PROXY_SERVER", default="http://127.0.0.1:8840", show_default=True,
                     help="The proxy: a URL, or unix:PATH."),
        click.option("--token", envvar="NACOS_PROXY_TOKEN", default="", help="API token; prefer NACOS_PROXY_TOKEN."),
        click.option("--ca", envvar="NACOS_PROXY_SERVER_CA", default="", help="PEM authorities for an https proxy."),
        click.option("--cert", envvar="NACOS_PROXY_SERVER_CERT", default="", help="PEM client certificate and key."),
        click.option("--namespace", envvar="NACOS_PROXY_NAMESPACE", default="", help="Namespace [public]."),
        click.option("--group", default="", help="Group [DEFAULT_GROUP]."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )  # fmt: skip

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def command(
            server: str, token: str, ca: str, cert: str, namespace: str, group: str, as_json: bool, **more: Any
        ) -> None:
            try:
                client = RestClient(server, token, ca=ca, cert=cert)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            with client:
                function(Session(client, namespace, group, as_json), **more)

        wrapped: Callable[..., None] = command
        for option in reversed(options):
            wrapped = option(wrapped)
        return click.command(name, epilog=EXIT_CODES)(wrapped)

    return decorate


def view_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options for a view of a service; the function gets them as `view`, the parameters of the REST API."""

    @functools.wraps(function)
    def with_view(*args: Any, clusters: str, selector: str, prefer: str, prefer_min: str, **more: Any) -> None:
        view = {"clusters": clusters, "selector": selector, "prefer": prefer, "prefer_min": prefer_min}
        function(*args, view=view, **more)

    wrapped: Callable[..., None] = with_view
    for option in (
        click.option("--prefer-min", default="", metavar="SHARE",
                     help="The share of the healthy weight that --prefer needs [0.3]."),
        click.option("--prefer", default="", metavar="SELECTOR",
                     help="Only these, while enough of them are healthy; otherwise all."),
        click.option("-l", "--selector", default="", help="Only these, by metadata: 'zone=a,version!=1,canary,!old'."),
        click.option("--clusters", default="", help="Only these clusters, separated by commas."),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


def metadata_of(pairs: Iterable[str]) -> dict[str, str]:
    """Parses texts `key=value`. Raises `click.UsageError`."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise click.UsageError(f"write --metadata as key=value, not {pair!r}")
        found[key] = value
    return found


def console() -> Console:
    """A console on standard output: styles on a terminal only, and no colours with NO_COLOR."""
    console = Console(color_system=None) if os.environ.get("NO_COLOR") else Console()
    return console if console.is_terminal else Console(width=WIDE)


def table_of(body: dict[str, Any], hosts: list[dict[str, Any]]) -> Table:
    """Instances as a table; `body` has the name and namespace of the service."""
    title = f"{body['name']}  ({body['namespaceId']})" + ("  STALE" if body.get("stale") else "")
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold")
    for column in ("address", "cluster", "weight", "state", "kind", "metadata"):
        table.add_column(column)
    for host in hosts:
        table.add_row(*_cells(host))
    return table


def line_of(sign: str, colour: str, name: str, host: dict[str, Any], source: str) -> Text:
    """A changed instance as one line."""
    cells = "  ".join(cell.plain for cell in _cells(host) if cell)
    return Text(f"{sign} {printable(name)}  {cells}  ({source})", colour)


def address_of(host: dict[str, Any]) -> str:
    return printable(plain_address_of(host["ip"], host["port"]))


def _cells(host: dict[str, Any]) -> tuple[Text, ...]:
    state = "disabled" if not host["enabled"] else "healthy" if host["healthy"] else "unhealthy"
    colour = {"healthy": "green", "unhealthy": "red", "disabled": "yellow"}[state]
    metadata = " ".join(f"{k}={'null' if v is None else v}" for k, v in host["metadata"].items())
    return (
        Text(address_of(host)),
        Text(printable(host["clusterName"])),
        Text(f"{host['weight']:g}"),
        Text(state, colour),
        Text("ephemeral" if host["ephemeral"] else "persistent"),
        Text(printable(metadata)),
    )


def can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def warn(text: object) -> None:
    click.secho(f"nacos-proxy: {printable(str(text))}", fg="yellow", err=True)
    sys.stderr.flush()
