"""`nacos-proxy status` and `version`: the state of the proxy, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from nacos_proxy import __version__
from nacos_proxy.cli.client_options import Session, client_command
from nacos_proxy.cli.failures import ApiProblem, Unreached
from nacos_proxy.cli.services import short
from nacos_proxy.cli.tables import Cell, print_table

_COLOURS = {"ready": "green", "degraded": "yellow", "unready": "red", "up": "green", "down": "red", "ok": "green"}
_EXIT_CODES = "Exit codes: 0 ready, 1 degraded or not ready, 2 wrong usage, 3 no proxy answers."


@client_command(
    "status",
    short_help="Show what is wrong, and what to do.",
    outputs=("table", "json", "yaml", "name"),
    epilog=_EXIT_CODES,
)
def status(session: Session) -> None:
    """Show the state of the proxy: what is wrong and what to do, Nacos, push, services, readers.

    -o name prints only ready, degraded or unready.
    """
    body = session.status(limit="0")

    def print_status() -> None:
        if session.output == "name":
            click.echo(body["status"])
            return
        _print_health(body)
        print_table((), ((Cell(name), cell) for name, cell in facts(body)), whole=True)

    session.show(body, print_status)
    if body["status"] != "ready":
        raise SystemExit(1)


def _print_health(body: dict[str, Any]) -> None:
    word = click.style(body["status"], _COLOURS.get(body["status"], ""), bold=True)
    click.echo(f"nacos-proxy {body['version']} is {word}, up for {short(body['uptimeSeconds'])}")
    for warning in body["warnings"]:
        print_table((), [(Cell("!", "yellow" if warning["advice"] else ""), Cell(warning["reason"]))], whole=True)
        if warning["advice"]:
            print_table((), [(Cell("  ->"), Cell(warning["advice"]))], whole=True)
    click.echo()


def facts(body: dict[str, Any]) -> Iterator[tuple[str, Cell]]:
    """The lines of the screen below the health: a name and a text each."""
    upstream, summary = body["upstream"], body["summary"]
    kind = " (embedded registry)" if upstream.get("kind") == "embedded" else ""
    reason = f": {upstream['reason']}" if upstream.get("reason") else ""
    text = f"{upstream['state']} for {short(upstream['forSeconds'])}{kind}{reason}"
    yield "upstream", Cell(text, _COLOURS.get(upstream["state"], ""))
    for server in upstream.get("servers", ()):
        yield "", _server(server)
    for name in ("push", "polling", "disk", "serviceFiles", "dns"):
        part = body.get(name, {})
        if name in body and not (name == "dns" and part["state"] == "off"):
            yield _NAMES.get(name, name), _part(name, part)
    states = [f"{number} {state}" for state, number in summary["states"].items() if number]
    yield "services", Cell(f"{summary['services']}{': ' if states else ''}{', '.join(states)}")
    sick = summary["instances"] - summary["healthy"]
    healthy = f", {sick} unhealthy" if sick else ", all healthy" if summary["instances"] else ""
    yield "instances", Cell(f"{summary['instances']}{healthy}", "yellow" if sick else "")
    if (age := summary["oldestAgeSeconds"]) is not None:
        yield "oldest answer", Cell(f"{short(age)} old, of the services that are kept up to date")
    share = f", {100 * summary['hits'] / summary['reads']:.1f} % from memory" if summary["reads"] else ""
    yield "reads", Cell(f"{summary['reads']}{share}")
    streams, clients = body["subscribers"]["streams"], len(body["subscribers"].get("byClient", {}))
    yield "subscribers", Cell(f"{streams} event streams of {clients} clients")
    if (grpc := body.get("grpc")) is not None:
        known = f"{grpc.get('sessionsTotal', 0)} sessions on port {grpc.get('port')}"
        yield "gRPC", Cell(known if grpc["state"] == "ok" else f"{grpc['state']}: {grpc.get('reason', '')}")
    yield "registered here", Cell(f"{body['registrations']} instances")
    if out := body.get("outOfTraffic", {}).get("instances"):
        yield "out of traffic", Cell(f"{out} instances, drained or in maintenance", "yellow")


_NAMES = {"serviceFiles": "service files", "dns": "DNS"}


def _server(server: dict[str, Any]) -> Cell:
    latency = server.get("latencyMs")
    parts = [
        f"{server['url']} {server['state']}",
        f"{latency:g} ms" if latency is not None else "",
        f"Nacos {server['version']}" if server.get("version") else "",
        f"APIs {' '.join(server['dialects'])}" if server.get("dialects") else "",
        str(server.get("error") or ""),
    ]
    return Cell(", ".join(filter(None, parts)), "red" if server["state"] == "down" else "")


def _part(name: str, part: dict[str, Any]) -> Cell:
    text = part["state"] + (f": {part['reason']}" if part.get("reason") else "")
    if name == "dns" and part["state"] == "ok":
        text += f" at {', '.join(part.get('addresses', ()))}; {sum(part.get('answers', {}).values())} answers"
    return Cell(text, _COLOURS.get(part["state"], ""))


@client_command(
    "version",
    short_help="Show the versions of this program and of the proxy.",
    epilog="Exit code: 0, also if no proxy answers.",
)
def version(session: Session) -> None:
    """Show the version of this program, and of the proxy if one answers."""
    running, why = None, ""
    try:
        running = session.client.json("GET", "/status", {"limit": "0"})["version"]
    except (ApiProblem, Unreached) as error:
        why = str(error)

    def print_versions() -> None:
        rows = [(Cell("nacos-proxy"), Cell(__version__)), (Cell("proxy"), Cell(running or why))]
        print_table((), rows, whole=True)

    session.show({"client": __version__, "proxy": running}, print_versions)
