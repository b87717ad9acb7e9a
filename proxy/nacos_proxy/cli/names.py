"""Names of services in all groups and namespaces, as the upstream lists them and as the proxy knows them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nacos_proxy.cli.client_options import Session
from nacos_proxy.cli.failures import ApiProblem

MOST = "1000000"  # services, the largest limit of /status
DEFAULT_NAMESPACE = "public"
DEFAULT_GROUP = "DEFAULT_GROUP"


class Name(NamedTuple):
    """A service, with its namespace and group."""

    namespace: str
    group: str
    service: str

    @classmethod
    def of(cls, namespace: str, grouped: str) -> Name:
        group, _, service = grouped.rpartition("@@")
        return cls(namespace or DEFAULT_NAMESPACE, group or DEFAULT_GROUP, service)

    @property
    def grouped(self) -> str:
        return f"{self.group}@@{self.service}"


def meant(session: Session, service: str) -> Name:
    """The service that `service` means with the options of this command."""
    named = Name.of(session.scope["namespace"], service)
    return named if "@@" in service else named._replace(group=session.scope["group"] or DEFAULT_GROUP)


def known(session: Session, **query: str) -> dict[Name, dict[str, Any]]:
    """The services in the cache of the proxy, with what `/status` says of each. Raises `Unreached` or `ApiProblem`."""
    rows = session.client.json("GET", "/status", {"limit": MOST, **query})["services"]
    return {Name.of(row["namespaceId"], row["service"]): row for row in rows}


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether the proxy has a list of the service, perhaps an empty one: it may not have fetched it yet."""
    return row["ageSeconds"] is not None


def listed(session: Session, namespace: str = "") -> set[Name]:
    """The services that the upstream lists: of all groups, and without `namespace` of all namespaces.

    Raises `Unreached` or `ApiProblem`: not every server has such a list.
    """
    body = session.client.json("GET", "/nacos/v1/ns/service/names", {"namespaceId": namespace})
    found = body.get("META-INF/services", {})
    return {Name.of(space, grouped) for space, names in found.items() for grouped in names}


def elsewhere(session: Session, wanted: Name) -> list[Name]:
    """Services of the same name in other groups and namespaces that have instances, as far as can be told."""
    found: set[Name] = set()
    try:
        rows = known(session, search=wanted.service)
        found = {name for name, row in rows.items() if row["instances"]}
        if not any(name.service == wanted.service for name in found):
            empty = {name for name, row in rows.items() if is_known(row) and not row["instances"]}
            found = listed(session) - empty
    except (ApiProblem, KeyError, TypeError, AttributeError):  # an older proxy, a token without the right, r-nacos
        pass
    same = [name for name in found if name.service == wanted.service and name != wanted]
    return sorted(same, key=lambda name: (name.namespace != wanted.namespace, name))


def hint_at(wanted: Name, others: Iterable[Name], shown: int = 3) -> str:
    """A sentence that says where else the service is. Empty if nowhere."""
    places = [_options(wanted, other) for other in others]
    if not places:
        return ""
    more = f" (and {len(places) - shown} more)" if len(places) > shown else ""
    return f" It is in {'; '.join(places[:shown])}{more}."


def _options(wanted: Name, other: Name) -> str:
    """Quoted, because people paste it into a shell, and anybody can register a name."""
    texts, options = list[str](), list[str]()
    if other.group != wanted.group:
        texts.append(f"group {other.group}")
        options.append(f"-g {shlex.quote(other.group)}")
    if other.namespace != wanted.namespace:
        texts.append(f"namespace {other.namespace}")
        options.append(f"--namespace {shlex.quote(other.namespace)}")
    return f"{' of '.join(texts)}: {' '.join(options)}"
