"""The commands that ask: get, list, pick, watch."""

from __future__ import annotations

import json
import select
import signal
import sys
import threading
from io import UnsupportedOperation
from typing import Any

import click
from rich.text import Text

from nacos_proxy.app.logs import printable
from nacos_proxy.cli.client_options import (
    Asked,
    Seconds,
    address_of,
    client_command,
    console,
    line_of,
    table_of,
    warn,
)
from nacos_proxy.cli.rest_client import ApiProblem, Unreached, service_path

LONGEST_PAUSE = 10.0  # seconds between two attempts of `watch`
_SIGNS = (("+", "green", "added"), ("~", "yellow", "modified"), ("-", "red", "removed"))


@client_command("get")
@click.argument("service")
@click.option("--clusters", default="", help="Only these, separated by commas.")
@click.option("--healthy-only", is_flag=True)
@click.option("--all", "everything", is_flag=True, help="Disabled instances, too, and the true health of each.")
def get(asked: Asked, service: str, clusters: str, healthy_only: bool, everything: bool) -> None:
    """Show a service's instances, as clients see them."""
    query = {**asked.where, "clusters": clusters, "healthy_only": "true" if healthy_only else ""}
    path = service_path(service, "instances") if everything else service_path(service)
    body = asked.client.json("GET", path, query)
    found = body["instances"] if everything else body["hosts"]
    if found or asked.as_json:
        asked.show(body, lambda: console().print(table_of(body, found)))
    if not found:
        raise ApiProblem(404, f"{body['name']} has no instance in namespace {body['namespaceId']}")


@client_command("list")
@click.option("--page", default=1, show_default=True)
@click.option("--size", default=100, show_default=True)
def list_services(asked: Asked, page: int, size: int) -> None:
    """List the services of a group."""
    body = asked.client.json("GET", "/api/v1/services", {**asked.where, "page": str(page), "size": str(size)})

    def people() -> None:
        for name in body["services"]:
            click.echo(printable(name))
        shown = "" if len(body["services"]) == body["count"] else f", {len(body['services'])} on page {page}"
        stale = ", STALE" if body.get("stale") else ""
        click.echo(f"{body['count']} {'service' if body['count'] == 1 else 'services'}{shown}{stale}", err=True)

    asked.show(body, people)


@client_command("pick")
@click.argument("service")
@click.option("--strategy", type=click.Choice(["weighted", "round_robin", "random", "hash"]), default="weighted")
@click.option("--key", default="", help="What hash keeps on its instance.")
@click.option("--clusters", default="", help="Only these, separated by commas.")
@click.option("--healthy-only/--any-health", default=True)
def pick(asked: Asked, service: str, strategy: str, key: str, clusters: str, healthy_only: bool) -> None:
    """Choose one instance and print its ip:port."""
    query = {**asked.where, "strategy": strategy, "key": key, "clusters": clusters}
    body = asked.client.json("GET", service_path(service, "pick"), {**query, "healthy_only": str(healthy_only).lower()})
    asked.show(body, lambda: click.echo(address_of(body)))


@client_command("watch")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE…")
@click.option("--clusters", default="", help="Only these, separated by commas.")
@click.option("--healthy-only", is_flag=True)
@click.option("--once", is_flag=True, help="End after the first change.")
@click.option("--retry", type=Seconds(), default="500ms", show_default=True, help="First pause before a new attempt.")
def watch(asked: Asked, services: tuple[str, ...], clusters: str, healthy_only: bool, once: bool, retry: float) -> None:
    """Print changes as they come, until interrupted. '*' watches every service of the group.

    It reconnects by itself and resumes where it was: nothing is missed, or a new snapshot comes.
    """
    query: dict[str, str | list[str]] = {"service": list(services), **{k: v for k, v in asked.where.items() if v}}
    query |= {"clusters": clusters} if clusters else {}
    query |= {"healthy_only": "true"} if healthy_only else {}
    _interrupt_when_unread()
    try:
        _follow(asked, query, once, retry)
    except KeyboardInterrupt:
        return


def _follow(asked: Asked, query: dict[str, str | list[str]], once: bool, retry: float) -> None:
    last, wait, pause, connected = "", retry, threading.Event(), False
    while True:
        try:
            for number, kind, data in asked.client.events(query, last):
                last, wait, connected = number or last, retry, True
                _print_event(asked, kind, data)
                if once and kind == "change":
                    return
            warn("the stream ended; coming back")
        except (Unreached, ApiProblem) as error:
            if not connected or (isinstance(error, ApiProblem) and not error.passing):
                raise
            warn(f"{error} Trying again.")
        pause.wait(wait)
        wait = min(2 * wait, LONGEST_PAUSE)


def _interrupt_when_unread() -> None:
    """Nothing is written while nothing changes, so a reader that has gone, as `head` does, is looked for apart."""
    try:
        descriptor = sys.stdout.fileno()
    except UnsupportedOperation:  # not a file of the system
        return

    def look() -> None:
        gone = select.poll()
        gone.register(descriptor, 0)  # errors and hang-ups are always told
        if gone.poll():
            signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    threading.Thread(target=look, name="reader-gone", daemon=True).start()


def _print_event(asked: Asked, kind: str, data: dict[str, Any]) -> None:
    if asked.as_json:
        click.echo(json.dumps({"event": kind, **data}, ensure_ascii=False))
    elif kind == "snapshot":
        console().print(table_of(data, data["hosts"]))
    elif kind == "upstream":
        text = f"upstream is {data.get('state')}: {data.get('reason') or 'it answers'}"
        console().print(Text(printable(text), "bold yellow"))
    else:
        for sign, colour, field in _SIGNS:
            for host in data[field]:
                console().print(line_of(sign, colour, data["name"], host, data["source"]), soft_wrap=True)
