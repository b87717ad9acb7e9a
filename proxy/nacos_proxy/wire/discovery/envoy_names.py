"""What a client of Envoy's discovery may ask for: resource names, and the services that it wants as clusters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import Rules
from nacos_proxy.model.services import DEFAULT_GROUP, GROUP_SEPARATOR, Instance, ServiceKey, Snapshot
from nacos_proxy.model.views import View
from nacos_proxy.wire.http import first_of
from nacos_proxy.wire.rest.query import ViewQuery, illegal, refusal

_MAX_NAME = 4_000  # characters
_MAX_GROUPS = 10  # that one request may ask for as a whole: each costs requests to the upstream
_PAGE = 500


class Target(NamedTuple):
    """A service as a resource name spells it. '' is what the name leaves out. `query` has the options behind '?'."""

    namespace: str
    group: str
    service: str
    query: str


def read_name(name: str) -> Target:
    """Reads a resource name; `?` and the parameters of a read may follow each form. Raises `BadCall`.

        SERVICE                          GROUP@@SERVICE
        NAMESPACE/GROUP/SERVICE          NAMESPACE/GROUP@@SERVICE
        outbound|PORT||SERVICE.GROUP.NAMESPACE.nacos

    The last is how Nacos's own module for Istio names a cluster (nacos:istio, IstioCrdUtil). It writes `_` in a group
    as `-`, which cannot be undone but for `DEFAULT-GROUP`.
    """
    path, _, query = name.partition("?")
    if path.startswith("outbound|"):
        return _read_istio_name(path, query)
    left, separator, service = path.partition(GROUP_SEPARATOR)
    if separator:
        namespace, _, group = left.rpartition("/")
        return Target(namespace, group, service, query)
    if path.count("/") == 2:
        namespace, group, service = path.split("/")
        return Target(namespace, group, service, query)
    return Target("", "", path, query)


def _read_istio_name(path: str, query: str) -> Target:
    parts = path.split("|")
    labels = parts[-1].removesuffix(".nacos").rsplit(".", 2)
    if len(parts) != 4 or len(labels) != 3:
        text = f"The name '{path[:200]}' is illegal, it must be outbound|PORT||SERVICE.GROUP.NAMESPACE.nacos."
        raise BadCall("resource_names", Violation.ILLEGAL, text)
    if parts[2]:
        text = f"The name '{path[:200]}' asks for a subset, which is not known here; ask for '…?selector=…'."
        raise BadCall("resource_names", Violation.ILLEGAL, text)
    service, group, namespace = labels
    return Target(namespace, DEFAULT_GROUP if group == "DEFAULT-GROUP" else group, service, query)


class EnvoyQuery(ViewQuery):
    """The options behind '?' in a resource name."""

    unhealthy: Annotated[
        Literal["omit", "mark"],
        Field(description="Whether unhealthy instances are left out, or sent as `UNHEALTHY`."),
    ] = "omit"


class Resource(NamedTuple):
    """What a resource name asks for. `mark`: with its unhealthy instances."""

    name: str
    key: ServiceKey
    view: View
    mark: bool

    def tiers(self, snapshot: Snapshot) -> Sequence[Iterable[Instance]]:
        """The instances by priority."""
        view = self.view
        usable = view.tiers(snapshot)
        if not self.mark:
            return usable
        down = [host for host in replace(view, prefer=None).of(snapshot).hosts if not host.healthy]
        if len(usable) < 2 or view.prefer is None:
            return [[host for tier in usable for host in tier] + down]
        near = view.prefer.selector.matches
        return [
            [*usable[0], *(host for host in down if near(host.metadata))],
            [*usable[1], *(host for host in down if not near(host.metadata))],
        ]


def read_resource(name: str, rules: Rules) -> Resource:
    """Raises `BadCall`."""
    if len(name) > _MAX_NAME:
        text = f"A name is illegal, it must have at most {_MAX_NAME} characters."
        raise illegal("resource_names", text, name)
    target = read_name(name)
    given: dict[str, Any] = first_of(target.query.encode())
    for field, value in (("namespace", target.namespace), ("group", target.group)):
        if value:
            given[field] = value
    if "clusters" in given:
        given["clusters"] = [given["clusters"]]
    try:
        query = EnvoyQuery.model_validate(given)
        return Resource(name, query.service_key(target.service, rules), query.view(rules), query.unhealthy == "mark")
    except ValidationError as error:
        problem = refusal(error.errors())
    except BadCall as error:
        problem = error
    raise illegal("resource_names", f"The name '{name[:200]}' is illegal: {problem}", name)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The clusters that a client wants: by name with their EDS resource, and whole groups with the prefix of their
    clusters' names and the options of their EDS resources."""

    named: Mapping[str, str]
    groups: Sequence[tuple[str, str, ListServices]]

    @classmethod
    def read(cls, services: Sequence[str], rules: Rules, max_services: int) -> Wanted:
        """Raises `BadCall`."""
        named, groups = dict[str, str](), list[tuple[str, str, ListServices]]()
        if len(services) > max_services:
            raise BadCall("services", Violation.OTHER, f"at most {max_services} services can be named")
        for text in services:
            path, _, query = text.partition("?")
            if path.endswith("*"):
                key = read_resource(f"{path[:-1]}x{text[len(path) :]}", rules).key
                if len(groups) == _MAX_GROUPS:
                    raise BadCall("services", Violation.OTHER, f"at most {_MAX_GROUPS} groups can be named with '*'")
                groups.append((path[:-1], query, ListServices(key.namespace, key.group, size=_PAGE)))
                continue
            read_resource(text, rules)
            if path in named:
                raise BadCall("services", Violation.OTHER, f"the cluster '{path[:200]}' is named twice")
            named[path] = text
        return cls(named, groups)
