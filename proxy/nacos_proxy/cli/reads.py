"""The commands that read: get, list, pick, watch."""

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
    DURATION,
    Session,
    address_of,
    client_command,
    console,
    line_of,
    table_of,
    view_options,
    warn,
)
from nacos_proxy.cli.rest_client import ApiProblem, Unreached, service_path
from nacos_proxy.model.backoff import Backoff

MAX_RECONNECT_DELAY = 10.0  # seconds
_SIGNS = (("+", "green", "added"), ("~", "yellow", "modified"), ("-", "red", "removed"))


@client_command("get")
@click.argument("service")
@view_options
@click.option("--healthy-only", is_flag=True, help="Only healthy instances.")
@click.option("--all", "everything", is_flag=True, help="Include disabled instances, and show the true health of each.")
def get(session: Session, service: str, view: dict[str, str], healthy_only: bool, everything: bool) -> None:
    """Show the instances of a service, as clients see them."""
    path = service_path(service, "instances") if everything else service_path(service)
    body = session.json("GET", path, **view, healthy_only="true" if healthy_only else "")
    found = body["instances"] if everything else body["hosts"]
    if found or session.as_json:
        session.show(body, lambda: console().print(table_of(body, found)))
    if not found:
        raise ApiProblem(404, f"{body['name']} has no instance in namespace {body['namespaceId']}")


@client_command("list")
@click.option("--page", default=1, show_default=True)
@click.option("--size", default=100, show_default=True)
def list_services(session: Session, page: int, size: int) -> None:
    """List the services of a group."""
    body = session.json("GET", "/api/v1/services", page=str(page), size=str(size))

    def print_names() -> None:
        for name in body["services"]:
            click.echo(printable(name))
        shown = "" if len(body["services"]) == body["count"] else f", {len(body['services'])} on page {page}"
        stale = ", STALE" if body.get("stale") else ""
        click.echo(f"{body['count']} {'service' if body['count'] == 1 else 'services'}{shown}{stale}", err=True)

    session.show(body, print_names)


@client_command("pick")
@click.argument("service")
@click.option("--strategy", type=click.Choice(["weighted", "round_robin", "random", "hash"]), default="weighted")
@click.option("--key", default="", help="For hash: equal keys get the same instance.")
@view_options
@click.option("--healthy-only/--any-health", default=True, help="Choose among healthy instances only [yes].")
def pick(session: Session, service: str, strategy: str, key: str, view: dict[str, str], healthy_only: bool) -> None:
    """Choose one instance and print its ip:port."""
    view["healthy_only"] = str(healthy_only).lower()
    body = session.json("GET", service_path(service, "pick"), strategy=strategy, key=key, **view)
    session.show(body, lambda: click.echo(address_of(body)))


@client_command("watch")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE…")
@view_options
@click.option("--healthy-only", is_flag=True, help="Only healthy instances.")
@click.option("--once", is_flag=True, help="Stop after the first change.")
@click.option("--retry", type=DURATION, default="500ms", show_default=True, help="First reconnection delay.")
def watch(
    session: Session, services: tuple[str, ...], view: dict[str, str], healthy_only: bool, once: bool, retry: float
) -> None:
    """Print changes as they happen, until interrupted. '*' watches every service of the group.

    Reconnects by itself and resumes after the last event; if events were lost, it prints a new snapshot.
    """
    query: dict[str, str | list[str]] = {"service": list(services), **{k: v for k, v in session.scope.items() if v}}
    query |= {name: text for name, text in view.items() if text}
    query |= {"healthy_only": "true"} if healthy_only else {}
    _interrupt_when_reader_leaves()
    try:
        _follow(session, query, once, retry)
    except KeyboardInterrupt:
        return


def _follow(session: Session, query: dict[str, str | list[str]], once: bool, retry: float) -> None:
    backoff, failures = Backoff(retry, max(retry, MAX_RECONNECT_DELAY)), 0
    last, pause, connected = "", threading.Event(), False
    while True:
        try:
            for event_id, kind, data in session.client.events(query, last):
                last, failures, connected = event_id or last, 0, True
                _print_event(session, kind, data)
                if once and kind == "change":
                    return
            warn("the event stream ended; reconnecting")
        except (Unreached, ApiProblem) as error:
            if not connected or (isinstance(error, ApiProblem) and not error.temporary):
                raise
            warn(f"{error} Trying again.")
        pause.wait(backoff.delay(failures))
        failures += 1


def _interrupt_when_reader_leaves() -> None:
    """If a reader such as `head` leaves while nothing is written, no write fails; so a thread waits for that."""
    try:
        descriptor = sys.stdout.fileno()
    except UnsupportedOperation:  # standard output is not a real file
        return

    def wait_for_hang_up() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # errors and hang-ups are always reported
        if poll.poll():
            signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    threading.Thread(target=wait_for_hang_up, name="reader-gone", daemon=True).start()


def _print_event(session: Session, kind: str, data: dict[str, Any]) -> None:
    if session.as_json:
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
