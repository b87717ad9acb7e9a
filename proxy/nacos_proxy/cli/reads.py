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
from nacos_proxy.catalog.load_balancing import STRATEGIES
from nacos_proxy.catalog.picks import MAX_PICKED
from nacos_proxy.cli.client_options import (
    COMMAND,
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
from nacos_proxy.cli.follow import Lost, following
from nacos_proxy.cli.handlers import run_for_events
from nacos_proxy.cli.rest_client import ApiProblem, service_path

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
@click.option("--strategy", type=click.Choice(STRATEGIES), default="weighted")
@click.option("--key", default="", help="For hash: equal keys get the same instance.")
@click.option("-n", "number", type=click.IntRange(1, MAX_PICKED), help="Choose this many different instances.")
@click.option("--split", default="", metavar="SELECTOR:PERCENT", help="This share to these: 'version=2:10'.")
@view_options
@click.option("--healthy-only/--any-health", default=True, help="Choose among healthy instances only [yes].")
def pick(session: Session, service: str, view: dict[str, str], number: int | None, **options: Any) -> None:
    """Choose one instance, or several, and print ip:port, one on each line."""
    view |= {name: options[name] for name in ("strategy", "key", "split")}
    view |= {"healthy_only": str(options["healthy_only"]).lower(), "n": "" if number is None else str(number)}
    body = session.json("GET", service_path(service, "pick"), **view)
    chosen = [body] if number is None else body["instances"]
    session.show(body, lambda: click.echo("\n".join(map(address_of, chosen))))


@client_command("watch")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE…")
@view_options
@click.option("--healthy-only", is_flag=True, help="Only healthy instances.")
@click.option("--once", is_flag=True, help="Stop after the first change.")
@click.option("--retry", type=DURATION, default="500ms", show_default=True, help="First reconnection delay.")
@click.option(
    "--exec", "command", type=COMMAND, metavar="COMMAND", help="Run this for each event, instead of printing."
)
@click.option("--timeout", type=DURATION, default="30s", show_default=True, help="How long COMMAND may take.")
def watch(
    session: Session,
    services: tuple[str, ...],
    view: dict[str, str],
    healthy_only: bool,
    once: bool,
    retry: float,
    command: tuple[str, ...] | None,
    timeout: float,
) -> None:
    """Print changes as they happen, until interrupted. '*' watches every service of the group.

    Reconnects by itself and resumes after the last event; if events were lost, it prints a new snapshot.

    COMMAND is split into words as a shell does, but runs without one. It gets the event as JSON on standard input, and
    NACOS_PROXY_SERVICE, _GROUP, _NAMESPACE, _EVENT_ID and _EVENT (snapshot or change) in the environment. Each service
    has one run at a time; changes that come meanwhile are one event. A failed run is tried again.
    """
    query: dict[str, str | list[str]] = {"service": list(services), **{k: v for k, v in session.scope.items() if v}}
    query |= {name: text for name, text in view.items() if text}
    query |= {"healthy_only": "true"} if healthy_only else {}
    try:
        if command is not None:
            run_for_events(session.client, query, command, once=once, retry=retry, timeout=timeout)
            return
        _interrupt_when_reader_leaves()
        _follow(session, query, once, retry)
    except KeyboardInterrupt:
        return


def _follow(session: Session, query: dict[str, str | list[str]], once: bool, retry: float) -> None:
    for message in following(session.client, query, retry):
        if isinstance(message, Lost):
            warn(message)
            continue
        _print_event(session, message.kind, message.data)
        if once and message.kind == "change":
            return


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
