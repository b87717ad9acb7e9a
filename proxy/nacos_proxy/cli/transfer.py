"""`nacos-proxy export` and `import`: the instances of a namespace as JSON lines, to move them to another server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import IO, Any, NamedTuple, TypeAlias

import click

from nacos_proxy.cli.client_options import Session, client_command, warn
from nacos_proxy.cli.failures import ApiProblem, reason_of
from nacos_proxy.cli.names import DEFAULT_GROUP, DEFAULT_NAMESPACE, Name, known, listed
from nacos_proxy.cli.rest_client import address_segment, service_path
from nacos_proxy.cli.services import all_pages
from nacos_proxy.model.addresses import address_of

# The fields of a line that belong to the instance, with their types; `cluster` is clusterName in answers.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "ip": str,
    "port": int,
    "cluster": str,
    "weight": (int, float),
    "enabled": bool,
    "healthy": bool,
    "ephemeral": bool,
    "metadata": dict,
}
_COMPARED = ("cluster", "weight", "enabled", "ephemeral", "metadata")  # health changes by itself


class Line(NamedTuple):
    """One instance, and the service that it belongs to."""

    name: Name
    instance: dict[str, Any]

    @property
    def address(self) -> str:
        return address_of(self.instance["ip"], self.instance["port"])

    def to_json(self) -> str:
        where = {"namespace": self.name.namespace, "group": self.name.group, "service": self.name.service}
        return json.dumps({**where, **self.instance}, ensure_ascii=False)


Present: TypeAlias = dict[Name, dict[tuple[str, str], dict[str, Any]]]
"""The instances that are there, by service, then by address and cluster."""


@client_command("export", outputs=("json",), short_help="Print all instances of a namespace, as JSON lines.")
def export(session: Session) -> None:
    """Print all instances of a namespace, or of one group, as JSON lines that `import` reads.

    \b
    nacos-proxy export -n shop > shop.jsonl
    nacos-proxy import shop.jsonl --server http://127.0.0.1:8841

    It reads through the proxy, so it shows what Nacos lists: Nacos 1.x and 2.x leave disabled instances out.
    """
    names = sorted(_names(session))
    count, stale = 0, list[str]()
    for name in names:
        query = {"namespace": name.namespace, "group": name.group}
        body = session.client.json("GET", service_path(name.service, "instances"), query)
        stale += [name.grouped] if body.get("stale") else []
        for host in body["instances"]:
            click.echo(Line(name, _instance_of(host)).to_json())
            count += 1
    if stale:
        warn(f"Nacos has not confirmed these lists lately: {', '.join(stale)}")
    space = session.scope["namespace"] or DEFAULT_NAMESPACE
    click.echo(f"exported {count} instances of {len(names)} services of namespace {space}", err=True)


def _names(session: Session) -> set[Name]:
    space, group = session.scope["namespace"] or DEFAULT_NAMESPACE, session.scope["group"]
    if not group:
        try:
            return listed(session, space)
        except ApiProblem as error:
            groups = {name.group for name in known(session, namespace=space)} | {DEFAULT_GROUP}
            warn(f"Nacos does not list all groups, so only those that the proxy knows are exported: "
                 f"{', '.join(sorted(groups))}. Name others with -g{reason_of(error)}.")  # fmt: skip
    else:
        groups = {group}
    return {Name(space, one, service) for one in groups for service in all_pages(session, space, one)["services"]}


def _instance_of(host: dict[str, Any]) -> dict[str, Any]:
    named = {**host, "cluster": host["clusterName"]}
    metadata = {key: value for key, value in host["metadata"].items() if value is not None}
    return {field: named[field] for field in _FIELDS} | {"metadata": metadata}


@client_command("import", outputs=("json",), short_help="Register the instances of an export.")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--ephemeral", is_flag=True, help="Ephemeral ones, too. Nacos drops each that sends no heartbeats.")
@click.option("--replace", is_flag=True, help="Register an instance again that is there, but differs.")
@click.option("--dry", is_flag=True, help="Print what would be registered; register nothing.")
def import_(session: Session, file: IO[str], ephemeral: bool, replace: bool, dry: bool) -> None:
    """Register the instances that `export` has printed. FILE - is standard input.

    --namespace and --group move them to another namespace or group. What is there already stays as it is, unless you
    say --replace, so the same command can run again after a failure. Ephemeral instances are left out: their own
    clients register them.
    """
    lines = [_moved(line, session) for line in read_lines(file)]
    counts: Counter[str] = Counter()
    there: Present = {}
    for line in lines:
        if line.instance["ephemeral"] and not ephemeral:
            counts["skipped"] += 1
            continue
        try:
            counts[_put(session, line, there, replace, dry)] += 1
        except ApiProblem as error:
            counts["failed"] += 1
            warn(f"{line.name.grouped} {line.address}: {error}")
    body = {word: counts[word] for word in ("registered", "unchanged", "different", "skipped", "failed")}
    session.show(body, lambda: click.echo(_summary(counts, dry)))
    if counts["failed"]:
        raise SystemExit(1)


def read_lines(file: Iterable[str]) -> list[Line]:
    """Raises `click.UsageError` for the first line that is wrong."""
    lines: list[Line] = []
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            lines.append(_read(json.loads(text)))
        except ValueError as error:
            raise click.UsageError(f"line {number}: {error}. Nothing was registered.") from error
    return lines


def _read(given: Any) -> Line:
    if not isinstance(given, dict):
        raise ValueError("it is not a JSON object")
    for field, kind in {**_FIELDS, "namespace": str, "group": str, "service": str}.items():
        value: Any = given.get(field)  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{field} is missing or has another type")
    instance: dict[str, Any] = {field: given[field] for field in _FIELDS}
    address_segment(address_of(instance["ip"], instance["port"]))
    return Line(Name(given["namespace"], given["group"], given["service"]), instance)


def _moved(line: Line, session: Session) -> Line:
    space, group = session.scope["namespace"], session.scope["group"]
    return line._replace(name=Name(space or line.name.namespace, group or line.name.group, line.name.service))


def _put(session: Session, line: Line, there: Present, replace: bool, dry: bool) -> str:
    """Registers an instance, unless it is there. `there` remembers the lists of services."""
    path = service_path(line.name.service, "instances")
    query = {"namespace": line.name.namespace, "group": line.name.group}
    if line.name not in there:
        hosts = session.client.json("GET", path, query)["instances"]
        there[line.name] = {
            (address_of(host["ip"], host["port"]), host["clusterName"]): _instance_of(host) for host in hosts
        }
    slot = (line.address, line.instance["cluster"])
    present = there[line.name].get(slot)
    if present is not None and _compared(present) == _compared(line.instance):
        return "unchanged"
    if present is not None and not replace:
        about = f"{line.name.grouped} {line.address}"
        warn(f"{about} is there, but differs. It stays as it is; --replace registers it again.")
        return "different"
    if dry:
        if session.output != "json":
            kind = "ephemeral" if line.instance["ephemeral"] else "persistent"
            click.echo(f"{line.name.namespace} {line.name.grouped} {line.address} {kind}")
    else:
        session.client.json("POST", path, query, line.instance)
        there[line.name][slot] = line.instance
    return "registered"


def _compared(instance: dict[str, Any]) -> dict[str, Any]:
    return {field: instance[field] for field in _COMPARED}


def _summary(counts: Counter[str], dry: bool) -> str:
    parts = [f"{counts['registered']} {'to register' if dry else 'registered'}", f"{counts['unchanged']} already there"]
    parts += [f"{counts['different']} different, left as they are"] if counts["different"] else []
    parts += [f"{counts['skipped']} ephemeral left out (--ephemeral)"] if counts["skipped"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    return ", ".join(parts)
