"""The commands that read instances: get, pick, watch."""

from __future__ import annotations

import json
import select
import signal
import sys
import threading
from io import UnsupportedOperation
from typing import Any

import click

from nacos_proxy.cli.client_options import (
    ANY_OUTPUT,
    COLUMNS,
    COMMAND,
    DURATION,
    Session,
    address_of,
    client_command,
    line_of,
    row_of,
    title_of,
    view_options,
    warn,
)
from nacos_proxy.cli.completion import service_names
from nacos_proxy.cli.failures import ApiProblem
from nacos_proxy.cli.follow import Lost, following
from nacos_proxy.cli.names import elsewhere, hint_at, meant
from nacos_proxy.cli.rest_client import service_path
from nacos_proxy.cli.tables import Cell, lines_of, print_table, screen_width
from nacos_proxy.model.printable import printable
from nacos_proxy.model.strategies import MAX_PICKED, STRATEGIES

_SIGNS = (("+", "green", "added"), ("~", "yellow", "modified"), ("-", "red", "removed"))


@client_command("get", outputs=ANY_OUTPUT)
@click.argument("services", nargs=-1, required=True, metavar="SERVICE…", shell_complete=service_names)
@view_options
@click.option("--healthy-only", is_flag=True, help="Only healthy instances.")
@click.option("--all", "everything", is_flag=True, help="Include disabled instances, and show the true health of each.")
def get(
    session: Session, services: tuple[str, ...], view: dict[str, str], healthy_only: bool, everything: bool
) -> None:
    """Show the instances of services, as clients see them.

    On a terminal, metadata is cut at its width; -o wide shows all. -o name prints only addresses, one on each line. A
    service of another group can be written GROUP@@SERVICE.
    """
    healthy = "true" if healthy_only else ""
    paths = [service_path(service, "instances") if everything else service_path(service) for service in services]
    bodies = [session.json("GET", path, **view, healthy_only=healthy) for path in paths]
    found = [body["instances"] if everything else body["hosts"] for body in bodies]
    several = len(services) > 1
    empty = [service for service, hosts in zip(services, found, strict=True) if not hosts]

    def print_instances() -> None:
        rows = [
            ((Cell(service),) if several else ()) + row_of(host)
            for service, hosts in zip(services, found, strict=True)
            for host in hosts
        ]
        if session.output == "name":
            for hosts in found:
                for host in hosts:
                    click.echo(address_of(host))
        elif rows:
            print_table((*(("SERVICE",) if several else ()), *COLUMNS), rows, whole=session.output == "wide")
        for body in bodies:
            if body.get("stale"):
                warn(f"{title_of(body)}: Nacos has not confirmed this list lately.")

    session.show(bodies if several else bodies[0], print_instances)
    if empty:
        raise ApiProblem(404, "\n".join(_none_of(session, service) for service in empty))


def _none_of(session: Session, service: str) -> str:
    wanted = meant(session, service)
    text = f"{wanted.service} has no instance in group {wanted.group} of namespace {wanted.namespace}."
    return text if session.for_programs else text + hint_at(wanted, elsewhere(session, wanted))


@client_command(
    "pick",
    short_help="Choose instances, as a load balancer does.",
    outputs=("json", "yaml", "name"),
    n_is_namespace=False,
)
@click.argument("service", shell_complete=service_names)
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
    try:
        body = session.json("GET", service_path(service, "pick"), **view)
    except ApiProblem as error:
        if error.status == 503 and (hint := hint_at(wanted := meant(session, service), elsewhere(session, wanted))):
            raise ApiProblem(error.status, f"{error}.{hint}") from error
        raise
    chosen = [body] if number is None else body["instances"]
    session.show(body, lambda: click.echo("\n".join(map(address_of, chosen))))


@client_command("watch", short_help="Print changes as they happen.", outputs=("json",))
@click.argument("services", nargs=-1, required=True, metavar="SERVICE…", shell_complete=service_names)
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
            from nacos_proxy.cli.handlers import run_for_events  # asyncio takes long to import

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
    if session.output == "json":
        click.echo(json.dumps({"event": kind, **data}, ensure_ascii=False))
    elif kind == "snapshot":
        rows = list(map(row_of, data["hosts"]))
        lines = lines_of(COLUMNS if rows else (), rows, screen_width())
        # One write: a reader that leaves after the first line has left when the next event comes.
        click.echo("\n".join([click.style(title_of(data), bold=True), *lines]))
    elif kind == "upstream":
        text = f"upstream is {data.get('state')}: {data.get('reason') or 'it answers'}"
        click.secho(printable(text), fg="yellow", bold=True)
    else:
        for sign, colour, field in _SIGNS:
            for host in data[field]:
                click.echo(line_of(sign, colour, data["name"], host, data["source"]))
