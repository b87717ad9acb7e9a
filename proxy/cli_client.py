"""The commands that ask a running proxy: tables for people, `--json` for programs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.rest_client import Problem, RestClient, Unreached, place_of, service_path

console = Console(soft_wrap=True)


class Asked:
    """What every client command is given."""

    def __init__(self, server: str, token: str, namespace: str, group: str, as_json: bool) -> None:
        self.client = RestClient(server, token)
        self.where = {"namespace": namespace, "group": group}
        self.as_json = as_json

    def show(self, body: Any, people: Callable[[], None]) -> None:
        if self.as_json:
            click.echo(json.dumps(body, ensure_ascii=False))
        else:
            people()


def client_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with the options that all of them share."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def wrapped(server: str, token: str, namespace: str, group: str, as_json: bool, **more: Any) -> None:
            function(Asked(server, token, namespace, group, as_json), **more)

        wrapped.__doc__ = function.__doc__
        wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        options = (
            click.option("--server", envvar="NACOS_PROXY_SERVER", default="http://127.0.0.1:8840", show_default=True,
                         help="The proxy to ask: a URL, or unix:PATH."),
            click.option("--token", envvar="NACOS_PROXY_TOKEN", default="", help="API token."),
            click.option("--namespace", envvar="NACOS_PROXY_NAMESPACE", default="", help="Namespace [public]."),
            click.option("--group", default="", help="Group [DEFAULT_GROUP]."),
            click.option("--json", "as_json", is_flag=True, help="JSON for programs."),
        )  # fmt: skip
        for option in reversed(options):
            wrapped = option(wrapped)
        return click.command(name)(wrapped)

    return decorate


def table_of(body: dict[str, Any]) -> Table:
    """A snapshot as a table."""
    title = f"{body['name']}  ({body['namespaceId']})" + ("  STALE" if body.get("stale") else "")
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("address", "cluster", "weight", "state", "kind", "metadata"):
        table.add_column(column)
    for host in body["hosts"]:
        table.add_row(*_cells(host))
    return table


def _cells(host: dict[str, Any]) -> tuple[Text, ...]:
    address = f"[{host['ip']}]:{host['port']}" if ":" in host["ip"] else f"{host['ip']}:{host['port']}"
    state = "disabled" if not host["enabled"] else "healthy" if host["healthy"] else "unhealthy"
    colour = {"healthy": "green", "unhealthy": "red", "disabled": "yellow"}[state]
    metadata = " ".join(f"{k}={v}" for k, v in host["metadata"].items())
    kind = "ephemeral" if host["ephemeral"] else "persistent"
    return (
        Text(address),
        Text(host["clusterName"]),
        Text(f"{host['weight']:g}"),
        Text(state, colour),
        Text(kind),
        Text(metadata),
    )


@client_command("get")
@click.argument("service")
@click.option("--clusters", default="", help="Only these, separated by commas.")
@click.option("--healthy-only", is_flag=True)
def get(asked: Asked, service: str, clusters: str, healthy_only: bool) -> None:
    """Show a service's instances."""
    query = {**asked.where, "clusters": clusters, "healthy_only": "true" if healthy_only else ""}
    body = asked.client.call("GET", service_path(service), query).json()
    asked.show(body, lambda: console.print(table_of(body)))


@client_command("list")
@click.option("--page", default=1, show_default=True)
@click.option("--size", default=100, show_default=True)
def list_services(asked: Asked, page: int, size: int) -> None:
    """List the services of a group."""
    body = asked.client.call("GET", "/api/v1/services", {**asked.where, "page": str(page), "size": str(size)}).json()

    def people() -> None:
        for row in body["services"]:
            click.echo(row if isinstance(row, str) else row["name"])
        click.echo(f"{body['count']} services", err=True)

    asked.show(body, people)


@client_command("pick")
@click.argument("service")
@click.option("--strategy", type=click.Choice(["weighted", "round_robin", "random", "hash"]), default="weighted")
@click.option("--key", default="", help="What hash keeps on its instance.")
@click.option("--healthy-only/--any-health", default=True)
def pick(asked: Asked, service: str, strategy: str, key: str, healthy_only: bool) -> None:
    """Choose one instance and print its ip:port."""
    query = {**asked.where, "strategy": strategy, "key": key, "healthy_only": str(healthy_only).lower()}
    body = asked.client.call("GET", service_path(service, "pick"), query).json()
    ip = f"[{body['ip']}]" if ":" in body["ip"] else body["ip"]
    asked.show(body, lambda: click.echo(f"{ip}:{body['port']}"))


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    broken = next((pair for pair in pairs if "=" not in pair), None)
    if broken is not None:
        raise click.UsageError(f"--metadata is written key=value, not {broken!r}")
    return dict(pair.split("=", 1) for pair in pairs)


@client_command("register")
@click.argument("service")
@click.argument("address", metavar="IP:PORT")
@click.option("--weight", type=float)
@click.option("--cluster", default="")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
@click.option("--ephemeral/--persistent", default=True)
@click.option("--enabled/--disabled", default=True)
@click.option("--healthy/--unhealthy", default=True)
@click.option("--managed", is_flag=True, help="Let the proxy beat for it.")
@click.option("--check-http", metavar="URL", help="Managed: it lives while this answers below 400.")
@click.option("--check-tcp", metavar="HOST:PORT", help="Managed: it lives while this accepts connections.")
@click.option("--check-ttl", metavar="DURATION", help="Managed: it lives while `beat` comes this often.")
@click.option("--interval", default="5s", show_default=True, help="Managed: how often the check runs.")
@click.option("--failures", default=3, show_default=True, help="Managed: failures in a row until its beats stop.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND …]")
def register(asked: Asked, service: str, address: str, command: tuple[str, ...], **options: Any) -> None:
    """Register an instance. With --managed and a COMMAND: run it, beat for it, deregister when it ends."""
    ip, _, port = address.rpartition(":")
    place_of(address)
    body: dict[str, Any] = {"ip": ip.strip("[]"), "port": int(port), "metadata": _metadata(options["metadata"])}
    body |= {name: options[name] for name in ("ephemeral", "enabled", "healthy")}
    body |= {"weight": options["weight"]} if options["weight"] is not None else {}
    body |= {"clusterName": options["cluster"]} if options["cluster"] else {}
    checks = {kind: options[f"check_{kind}"] for kind in ("http", "tcp", "ttl") if options[f"check_{kind}"]}
    if checks and not options["managed"]:
        raise click.UsageError("a check needs --managed")
    if options["managed"]:
        check = checks or ({"ttl": "30s"} if command else None)
        if check is None or len(check) != 1:
            raise click.UsageError("--managed needs one of --check-http, --check-tcp, --check-ttl")
        body["managed"] = {"interval": options["interval"], "failures": options["failures"], "check": check}
    if command and not options["managed"]:
        raise click.UsageError("a COMMAND needs --managed")
    if not command:
        made = asked.client.call("POST", service_path(service, "instances"), asked.where, body).json()
        asked.show(made, lambda: click.echo(f"registered {address} in {service}"))
        return
    raise SystemExit(_run_managed(asked, service, address, body, command))


def _run_managed(asked: Asked, service: str, address: str, body: dict[str, Any], command: tuple[str, ...]) -> int:
    """The exit code of the command; its instance lives as long as it does."""
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise click.UsageError(f"{shlex.join(command)} cannot be run: {error.strerror}") from error
    path = service_path(service, "instances", place_of(address))
    try:
        asked.client.call("POST", service_path(service, "instances"), asked.where, body)
        while (code := _wait(child, 5.0)) is None:
            if "ttl" in body["managed"]["check"]:
                _quietly(lambda: asked.client.call("PUT", f"{path}/beat", asked.where))
        return code
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        _quietly(lambda: asked.client.call("DELETE", path, asked.where))


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    except KeyboardInterrupt:
        child.terminate()
        return child.wait()


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except (Problem, Unreached) as error:
        click.secho(f"nacos-proxy: {error}", fg="yellow", err=True)


@client_command("deregister")
@click.argument("service")
@click.argument("address", metavar="IP:PORT")
@click.option("--cluster", default="")
@click.option("--ephemeral/--persistent", default=True)
def deregister(asked: Asked, service: str, address: str, cluster: str, ephemeral: bool) -> None:
    """Deregister an instance; of an unknown one it is a success."""
    query = {**asked.where, "cluster": cluster, "ephemeral": str(ephemeral).lower()}
    asked.client.call("DELETE", service_path(service, "instances", place_of(address)), query)
    asked.show({"deregistered": address}, lambda: click.echo(f"deregistered {address} from {service}"))


@client_command("modify")
@click.argument("service")
@click.argument("address", metavar="IP:PORT")
@click.option("--cluster", default="")
@click.option("--weight", type=float)
@click.option("--enabled/--disabled", default=None)
@click.option("--metadata", multiple=True, metavar="KEY=VALUE")
def modify(asked: Asked, service: str, address: str, cluster: str, weight: float | None, enabled: bool | None,
           metadata: tuple[str, ...]) -> None:  # fmt: skip
    """Change what is named and nothing else."""
    body: dict[str, Any] = {"weight": weight} if weight is not None else {}
    body |= {"enabled": enabled} if enabled is not None else {}
    body |= {"metadata": _metadata(metadata)} if metadata else {}
    if not body:
        raise click.UsageError("name what to change: --weight, --enabled or --disabled, --metadata")
    query = {**asked.where, "cluster": cluster}
    made = asked.client.call("PATCH", service_path(service, "instances", place_of(address)), query, body).json()
    asked.show(made, lambda: click.echo(f"changed {address} of {service}"))


@client_command("beat")
@click.argument("service")
@click.argument("address", metavar="IP:PORT")
@click.option("--cluster", default="")
@click.option("--every", type=float, metavar="SECONDS", help="Keep beating until interrupted.")
def beat(asked: Asked, service: str, address: str, cluster: str, every: float | None) -> None:
    """Send a heartbeat."""
    path = service_path(service, "instances", place_of(address), "beat")
    pause = threading.Event()
    while True:
        body = asked.client.call("PUT", path, {**asked.where, "cluster": cluster}).json()
        asked.show(body, lambda body=body: click.echo(f"next beat in {body['clientBeatInterval'] / 1000:g} s"))
        if every is None:
            return
        try:
            pause.wait(every)
        except KeyboardInterrupt:
            return


@client_command("watch")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE…")
@click.option("--clusters", default="")
@click.option("--healthy-only", is_flag=True)
@click.option("--once", is_flag=True, help="End after the first change.")
def watch(asked: Asked, services: tuple[str, ...], clusters: str, healthy_only: bool, once: bool) -> None:
    """Print changes as they come; '*' watches every service of the group. Reconnects by itself."""
    query: dict[str, str | list[str]] = {"service": list(services), **{k: v for k, v in asked.where.items() if v}}
    query |= {"clusters": clusters} if clusters else {}
    query |= {"healthy_only": "true"} if healthy_only else {}
    last, wait, pause, connected = "", 0.5, threading.Event(), False
    try:
        while True:
            try:
                for number, kind, data in asked.client.events(query, last):
                    last, wait, connected = number or last, 0.5, True
                    _print_event(asked, kind, data)
                    if once and kind == "change":
                        return
            except Unreached as error:
                if not connected:
                    raise
                click.secho(f"nacos-proxy: {error} Trying again.", fg="yellow", err=True)
            pause.wait(wait)
            wait = min(2 * wait, 10.0)
    except KeyboardInterrupt:
        return


def _print_event(asked: Asked, kind: str, data: dict[str, Any]) -> None:
    if asked.as_json:
        sys.stdout.write(json.dumps({"event": kind, **data}, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    if kind == "snapshot":
        console.print(table_of(data))
    elif kind == "upstream":
        console.print(Text(f"upstream is {data.get('state')}: {data.get('reason') or 'it answers'}", "bold yellow"))
    else:
        for sign, colour, field in (("+", "green", "added"), ("~", "yellow", "modified"), ("-", "red", "removed")):
            for host in data[field]:
                cells = "  ".join(str(cell) for cell in _cells(host) if str(cell))
                console.print(Text(f"{sign} {data['name']}  {cells}  ({data['source']})", colour))


COMMANDS = (get, list_services, watch, pick, register, deregister, modify, beat)
