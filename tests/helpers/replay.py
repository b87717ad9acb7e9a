"""Plays recorded requests through a proxy and compares the answers with those of the server. Contains no tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.helpers.app import Served
from tests.helpers.clock import FakeClock
from tests.helpers.recordings import Row, load

# These differ between runs of one server: only their type is compared.
VOLATILE = {
    "timestamp": "the moment of a refusal",
    "lastRefTime": "the moment at which the server last made its list",
    "cpu": "the machine's load",
    "load": "the machine's load",
    "mem": "the machine's memory",
    "serviceCount": "counted now and then",
    "clientCount": "an ip:port stays a client for a while after its last instance has gone",
    "ephemeralIpPortClientCount": "as clientCount",
    "responsibleClientCount": "as clientCount",
    "server_port": "where that server listened",
    "version": "of the server, not of the API: whatever is behind the proxy",
}
# Java keeps these in hash maps and hash sets: their order means nothing.
HASHED = ("metadata", "clusterMap", "META-INF/services")
SHUFFLED = ("hosts", "doms", "services", "public", "serviceList", "pageItems", "data")
PAGES = ("doms", "services", "serviceList", "pageItems")

FILES = [(name, name) for name in ("nacos-2.5.1", "nacos-3.0.3")]
FILES += [(name, server) for name in ("modify", "protection") for server in ("nacos-2.5.1", "nacos-3.0.3")]
FILES += [("v3-only", "nacos-3.0.3")]

# What the servers held before the first request: services and their number of persistent instances.
BEFORE = {"nacos-2.5.1": {"bench": 10, "ryw": 1}, "nacos-3.0.3": {"ryw": 1}}


@dataclass(frozen=True)
class Answer:
    status: int
    type: str | None
    body: Any


def is_played(row: Row, server: str) -> bool:
    """Whether the server accepted the request. 3.0.3 refused most of v1 and v2 with 410; 2.5.1 has no v3."""
    return row.server == server and row.status != 410 and not (server == "nacos-2.5.1" and "/v3/" in row.path)


def is_compared(row: Row) -> bool:
    """v1 and v2 are compared with 2.5.1, v3 with 3.0.3. The v1 rows of 3.0.3 only prepare the state for v3."""
    return row.server == "nacos-2.5.1" or "/v3/" in row.path or row.case.startswith(("modify:", "protection:"))


def compared(name: str, server: str) -> dict[str, Row]:
    """The rows whose answers are compared, in order, each with a unique title."""
    rows = [row for row in load(name) if is_played(row, server) and is_compared(row)]
    return {f"{number:03} {row.case}": row for number, row in enumerate(rows)}


async def play(proxy: Served, clock: FakeClock, name: str, server: str, *asking: str) -> dict[str, list[Answer]]:
    """The proxy's answers to the compared rows, by title: one to a write, one for each of `asking` to a read.

    `asking`: Cache-Control headers; '' sends none.
    """
    answers: list[list[Answer]] = []
    for net, (service, count) in enumerate(BEFORE.get(name, {}).items(), 1):
        for number in range(count):
            query = {"serviceName": service, "ip": f"10.{net}.0.{number}", "port": "80", "ephemeral": "false"}
            await proxy.http.post("/nacos/v1/ns/instance", params=query)
    for row in load(name):
        if is_played(row, server):
            await clock.advance(row.wait)
            given = [await ask(proxy, row, control) for control in (asking if row.method == "GET" else ("",))]
            if is_compared(row):
                answers.append([await with_recorded_page(proxy, row, answer) for answer in given])
    return dict(zip(compared(name, server), answers, strict=True))


async def ask(proxy: Served, row: Row, control: str = "", **more: str) -> Answer:
    form, query = dict(row.form) or None, {**row.query, **more}
    headers = {**row.headers, **({"cache-control": control} if control else {})}
    reply = await proxy.http.request(row.method, row.path, params=query, data=form, headers=headers)
    try:
        body = reply.json()
    except ValueError:
        body = reply.text
    return Answer(reply.status_code, reply.headers.get("content-type"), body)


# comparison


async def with_recorded_page(proxy: Served, row: Row, answer: Answer) -> Answer:
    """Replaces a page of services by the recorded ones, taken from the list of all: a page shows a random selection.

    The size of the page, each row and the counts must still be equal.
    """
    field, wanted = page_of(row.body)
    if field is None:
        return answer
    _, ours = page_of(answer.body)
    _, everything = page_of((await ask(proxy, row, pageNo="1", pageSize="500")).body)
    if len(ours) != len(wanted) or not all(item in everything for item in ours):
        return answer
    names = [name_of(item) for item in wanted]
    ours[:] = [item for item in everything if name_of(item) in names]
    return answer


def page_of(body: Any) -> tuple[str | None, list[Any]]:
    holder = body.get("data", body) if isinstance(body, dict) else None
    field = next((name for name in PAGES if isinstance(holder, dict) and name in holder), None)
    return field, holder[field] if field else []


def name_of(item: Any) -> Any:
    return item if isinstance(item, str) else (item.get("name") or item["serviceName"], item["groupName"])


def stable(value: Any, name: str = "") -> Any:
    """Converts a body so that `==` compares the order of fields but nothing that changes between runs."""
    if name in VOLATILE:
        return type(value).__name__
    if isinstance(value, dict):
        pairs = [(key, stable(item, key)) for key, item in named(value).items()]
        return sorted(pairs) if name in HASHED or "startup_mode" in value else pairs
    if isinstance(value, list):
        items = [stable(item) for item in value]
        return sorted(items, key=str) if name in SHUFFLED else items
    return value


def as_2_5_spells(body: Any) -> Any:
    """3.0.3 writes `allIps` in a v1 list; 2.5.1 and the proxy write `allIPs`."""
    return json.loads(json.dumps(body).replace('"allIps"', '"allIPs"'))


def named(value: dict[str, Any]) -> dict[str, Any]:
    """Adds ids: servers omit them for v2 and v3 registrations; the proxy sends them, because SDKs key hosts by id."""
    if not {"ip", "port", "clusterName", "serviceName"} <= value.keys() or value.get("instanceId"):
        return value
    made = "{ip}#{port}#{clusterName}#{serviceName}".format(**value)
    return {**value, "instanceId": made} if "instanceId" in value else {"instanceId": made, **value}


def is_same(answer: Answer, row: Row) -> bool:
    same = (answer.status, answer.type) == (row.status, row.type)
    return same and stable(answer.body) == stable(as_2_5_spells(row.body))


def assert_same(answer: Answer, row: Row) -> None:
    assert (answer.status, answer.type) == (row.status, row.type)
    assert stable(answer.body) == stable(as_2_5_spells(row.body))
