"""Shared by the commands for a running proxy: options, and output as tables, JSON or YAML.

Control characters in texts of other users are escaped.
"""

from __future__ import annotations

import functools
import json
import math
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import click

from nacos_proxy.cli.commands import words
from nacos_proxy.cli.completion import groups
from nacos_proxy.cli.failures import EXIT_CODES, ApiProblem
from nacos_proxy.cli.rest_client import RestClient, address_segment
from nacos_proxy.cli.tables import Cell
from nacos_proxy.model.addresses import address_of as plain_address_of
from nacos_proxy.model.durations import parse_duration
from nacos_proxy.model.printable import printable

COLUMNS = ("ADDRESS", "CLUSTER", "WEIGHT", "STATE", "KIND", "METADATA")  # of `row_of`
PAUSE_STEP = 0.5  # seconds
SHARED = ("server", "token", "ca", "cert", "namespace", "group", "output", "as_json", "help")
ANY_OUTPUT = ("table", "wide", "json", "yaml", "name")


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
    """The first argument of each client command. Its calls are about `scope`, a namespace and a group.

    `output` is the value of `-o`, and '' for the command's own text.
    """

    def __init__(self, client: RestClient, namespace: str, group: str, output: str = "") -> None:
        self.client = client
        self.scope = {"namespace": namespace, "group": group}
        self.output = output

    def call(self, method: str, path: str, body: object = None, **query: str) -> None:
        """Raises `Unreached` or `ApiProblem`."""
        reply = self.client.call(method, path, {**self.scope, **query}, body)
        if reply.body:
            self.client.read_json(reply)

    def status(self, **query: str) -> Any:
        """The JSON object of `/status`. Raises `Unreached` or `ApiProblem`, also for a proxy that is too old."""
        body = self.client.json("GET", "/status", query)
        if not {"status", "warnings", "summary"} <= body.keys():
            version = printable(str(body.get("version", "?")))
            raise ApiProblem(400, f"the proxy is of version {version}; this command needs 0.2.0 or newer there")
        return body

    def json(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Returns the JSON object of the answer. Raises `Unreached` or `ApiProblem`."""
        return self.client.json(method, path, {**self.scope, **query}, body)

    @property
    def for_programs(self) -> bool:
        return self.output in ("json", "yaml")

    def show(self, body: Any, print_for_people: Callable[[], None]) -> None:
        if self.output == "json":
            click.echo(json.dumps(body, ensure_ascii=False))
        elif self.output == "yaml":
            from nacos_proxy.cli.yaml import yaml_of  # its patterns take long to compile

            click.echo(yaml_of(body), nl=False)
        else:
            print_for_people()
        if self.client.local:
            warn("Nacos is down. The proxy accepted this by itself and will send changes to Nacos when it is back.")


class ClientCommand(click.Command):
    """Shows the options that all client commands share below its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own, shared = list[tuple[str, str]](), list[tuple[str, str]]()
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx)) is not None:
                (shared if parameter.name in SHARED else own).append(row)
        for heading, rows in (("Options", own), ("Options of every client command", shared)):
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def client_command(
    name: str,
    *,
    outputs: tuple[str, ...] = ("json", "yaml"),
    n_is_namespace: bool = True,
    epilog: str = EXIT_CODES,
    short_help: str | None = None,
) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a command with the shared options; the function gets a `Session` and its own options."""
    short = ("-n",) if n_is_namespace else ()
    options = (
        click.option("--server", envvar="NACOS_PROXY_SERVER", default="http://127.0.0.1:8840", show_default=True,
                     help="The proxy: a URL, or unix:PATH."),
        click.option("--token", envvar="NACOS_PROXY_TOKEN", default="", help="API token; prefer NACOS_PROXY_TOKEN."),
        click.option("--ca", envvar="NACOS_PROXY_SERVER_CA", default="", help="PEM authorities for an https proxy."),
        click.option("--cert", envvar="NACOS_PROXY_SERVER_CERT", default="", help="PEM client certificate and key."),
        click.option(*short, "--namespace", envvar="NACOS_PROXY_NAMESPACE", default="",
                     shell_complete=groups, help="Namespace [public]."),
        click.option("-g", "--group", default="", shell_complete=groups, help="Group [DEFAULT_GROUP]."),
        click.option("-o", "--output", type=click.Choice(outputs), help="How to print the answer."),
        click.option("--json", "as_json", is_flag=True, help="The same as -o json."),
    )  # fmt: skip

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def command(
            server: str, token: str, ca: str, cert: str, namespace: str, group: str, output: str | None,
            as_json: bool, **more: Any,
        ) -> None:  # fmt: skip
            try:
                client = RestClient(server, token, ca=ca, cert=cert)
            except ValueError as error:
                raise click.UsageError(str(error)) from error
            with client:
                function(Session(client, namespace, group, "json" if as_json else output or ""), **more)

        wrapped: Callable[..., None] = command
        for option in reversed(options):
            wrapped = option(wrapped)
        return click.command(name, cls=ClientCommand, epilog=epilog, short_help=short_help)(wrapped)

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


def title_of(body: dict[str, Any]) -> str:
    """The name and namespace of a service, and whether its list is stale."""
    return printable(f"{body['name']} ({body['namespaceId']})" + (" STALE" if body.get("stale") else ""))


def row_of(host: dict[str, Any]) -> tuple[Cell, ...]:
    """An instance as the cells of `COLUMNS`."""
    state = "disabled" if not host["enabled"] else "healthy" if host["healthy"] else "unhealthy"
    metadata = " ".join(f"{k}={'null' if v is None else v}" for k, v in host["metadata"].items())
    return (
        Cell(plain_address_of(host["ip"], host["port"])),
        Cell(host["clusterName"]),
        Cell(f"{host['weight']:g}"),
        Cell(state, {"healthy": "green", "unhealthy": "red", "disabled": "yellow"}[state]),
        Cell("ephemeral" if host["ephemeral"] else "persistent"),
        Cell(metadata),
    )


def line_of(sign: str, colour: str, name: str, host: dict[str, Any], source: str) -> str:
    """A changed instance as one line."""
    cells = "  ".join(text for text, _ in row_of(host) if text)
    return click.style(printable(f"{sign} {name}  {cells}  ({source})"), colour)


def address_of(host: dict[str, Any]) -> str:
    return printable(plain_address_of(host["ip"], host["port"]))


def can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def pause(seconds: float) -> None:
    """Waits, in steps: a signal that comes just before a wait is not handled until its end."""
    nothing = threading.Event()
    while seconds > 0:
        nothing.wait(min(seconds, PAUSE_STEP))
        seconds -= PAUSE_STEP


def warn(text: object) -> None:
    click.secho(f"nacos-proxy: {printable(str(text))}", fg="yellow", err=True)
    sys.stderr.flush()
