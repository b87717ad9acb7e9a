"""`nacos-proxy list`: the services of a group, or of all groups and namespaces, with what the proxy knows of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

from nacos_proxy.cli.client_options import ANY_OUTPUT, Session, client_command, warn
from nacos_proxy.cli.failures import ApiProblem, reason_of
from nacos_proxy.cli.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, Name, is_known, known, listed
from nacos_proxy.cli.tables import Cell, print_table
from nacos_proxy.model.printable import printable

PAGE_SIZE = 1000  # services, the most that the proxy gives at once
COLOURS = {"fresh": "green", "stale": "yellow", "expired": "red"}
Rows = Mapping[Name, Mapping[str, Any]]


@client_command("list", short_help="List services; all groups with -A.", outputs=ANY_OUTPUT)
@click.option("-A", "--all", "everything", is_flag=True, help="All groups of --namespace, or of all namespaces.")
@click.option("--page", type=click.IntRange(min=1), help="Only this page.")
@click.option("--size", type=click.IntRange(min=1, max=PAGE_SIZE), help="Services on a page [100].")
def list_services(session: Session, everything: bool, page: int | None, size: int | None) -> None:
    """List services: those of a group, or all with -A.

    Counts, health, state and age are what the proxy knows; - stands for a service that it was not asked for yet.
    -o name prints only names, -o wide also who subscribes and what went wrong.
    """
    if everything and (page or size):
        raise click.UsageError("-A shows everything: leave --page and --size out")
    if everything:
        _show_all(session)
    else:
        _show_group(session, page, size)


def _show_group(session: Session, page: int | None, size: int | None) -> None:
    body = all_pages(session) if page is None and size is None else _page(session, page or 1, size or 100)
    space, group = body.get("namespaceId", DEFAULT_NAMESPACE), body.get("groupName", DEFAULT_GROUP)
    names = [Name(space, group, service) for service in body["services"]]

    def print_services() -> None:
        if session.output == "name":
            for name in names:
                click.echo(printable(name.service))
        else:
            _print_rows(session, names, _known(session, namespace=space, group=group), ("SERVICE",))
        shown = "" if len(names) == body["count"] else f", {len(names)} on page {body['page']}"
        stale = ". Nacos does not answer: these are the ones that the proxy knows" if body.get("stale") else ""
        where = "" if names else f" in group {group} of namespace {space}; -A shows all groups and namespaces"
        click.echo(printable(f"{_count(body['count'])}{shown}{stale}{where}"), err=True)

    session.show(body, print_services)


def _show_all(session: Session) -> None:
    space = session.scope["namespace"]
    cached, missing = known(session, **({"namespace": space} if space else {})), ""
    names = set(cached)
    try:
        # Without the names that somebody only asked for: the cache has an empty list for each.
        names = listed(session, space) | {
            name for name, row in cached.items() if row["instances"] or row["subscribers"]
        }
    except ApiProblem as error:
        missing = (
            f"Nacos does not list all groups, so this shows only the services that the proxy knows{reason_of(error)}."
        )
    if group := session.scope["group"]:
        names = {name for name in names if name.group == group}
    ordered = sorted(names)

    def print_services() -> None:
        if session.output == "name":
            for name in ordered:
                click.echo(printable(name.grouped if space else f"{name.namespace}/{name.grouped}"))
        else:
            _print_rows(session, ordered, cached, ("NAMESPACE", "GROUP", "SERVICE"))
        click.echo(_count(len(ordered)), err=True)

    shown = [_json(name, cached.get(name)) for name in ordered]
    session.show({"count": len(ordered), "complete": not missing, "services": shown}, print_services)
    if missing:
        warn(missing)


def _page(session: Session, page: int, size: int, **scope: str) -> dict[str, Any]:
    query = {**session.scope, **scope, "page": str(page), "size": str(size)}
    body = session.client.json("GET", "/api/v1/services", query)
    return body | {"services": sorted(body["services"])}


def all_pages(session: Session, namespace: str = "", group: str = "") -> dict[str, Any]:
    """All pages of a group as one; without arguments, of the command's group. Raises `Unreached` or `ApiProblem`."""
    scope = {"namespace": namespace, "group": group} if group else {}
    body = _page(session, 1, PAGE_SIZE, **scope)
    names, page = set(body["services"]), 1
    while body["services"] and len(names) < body["count"]:
        page += 1
        body = _page(session, page, PAGE_SIZE, **scope)
        names.update(body["services"])
    return body | {"count": len(names), "page": 1, "size": len(names), "services": sorted(names)}


def _known(session: Session, **query: str) -> Rows:
    try:
        return known(session, **query)
    except ApiProblem:  # a token without the right to read the status: the names are still worth showing
        return {}


def _print_rows(session: Session, names: Iterable[Name], rows: Rows, first: tuple[str, ...]) -> None:
    wide = session.output == "wide"
    cells = [
        (*map(Cell, name[-len(first) :]), *_facts(rows.get(name)), *(_more(rows.get(name)) if wide else ()))
        for name in names
    ]
    if cells:
        more = ("SUBSCRIBERS", "REVISION", "ERROR") if wide else ()
        print_table((*first, "INSTANCES", "HEALTHY", "STATE", "AGE", *more), cells, whole=wide)


def _facts(row: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    if row is None or not is_known(row):
        return (Cell("-"),) * 4
    instances, healthy, state = row["instances"], row["healthy"], str(row["state"])
    alarm = "" if healthy == instances else "red" if not healthy else "yellow"
    return (
        Cell(str(instances)),
        Cell(str(healthy), alarm),
        Cell(state, COLOURS.get(state, "")),
        Cell(short(row["ageSeconds"])),
    )


def _more(row: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    if row is None:
        return (Cell("-"), Cell("-"), Cell(""))
    return Cell(str(row["subscribers"])), Cell(row["revision"] or "-"), Cell(row["error"] or "", "red")


def _json(name: Name, row: Mapping[str, Any] | None) -> dict[str, Any]:
    shown = {"namespaceId": name.namespace, "groupName": name.group, "name": name.service}
    given: Mapping[str, Any] = row if row is not None and is_known(row) else {}
    return shown | {key: given.get(key) for key in ("instances", "healthy", "state", "ageSeconds")}


def _count(number: int) -> str:
    return f"{number} {'service' if number == 1 else 'services'}"


def short(seconds: float) -> str:
    """A length of time in two units at most: 0.4s, 12s, 3m5s, 2h, 4d7h."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    left, parts = round(seconds), list[str]()
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= length or parts:
            parts.append(f"{left // length}{unit}")
            left %= length
    return "".join(part for part in parts[:2] if not part.startswith("0"))
