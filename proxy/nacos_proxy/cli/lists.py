"""What templates read: lists of instances and of names, as a proxy answers them.

`Lists` keeps each answer until an event says that the service has changed. `Reader` gives one template its lists, and
holds the last list of a service that has no instance any more.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nacos_proxy.cli.rest_client import service_path
from nacos_proxy.model.addresses import plain_ip
from nacos_proxy.model.errors import Malformed
from nacos_proxy.model.services import Instance, ServiceKey, without_nulls
from nacos_proxy.wire.discovery.addresses import host_of
from nacos_proxy.wire.nacos.hosts import read_each

MAX_SERVICES = 500  # that one event stream of a proxy follows
PAGE = 1000

# Control characters and separators of lines, with which metadata could end a line; and what UTF-8 cannot encode.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Ask = Callable[[str, Mapping[str, str]], Any]
"""GET of a path of the REST API: returns the JSON object. Raises `Unreached` or `ApiProblem`."""


class BadRequest(Exception):
    """A template asks for something that cannot be read; the message says what."""


class Service(NamedTuple):
    """One call of `service()` in a template: `filters` are parameters of the REST API."""

    key: ServiceKey
    filters: tuple[tuple[str, str], ...] = ()
    usable: bool = True

    @property
    def healthy_only(self) -> bool:
        return ("healthy_only", "true") in self.filters

    @property
    def unfiltered(self) -> Service:
        """The call for all usable instances, of the same kind of health."""
        return Service(self.key, tuple(row for row in self.filters if row[0] == "healthy_only"))

    @property
    def text(self) -> str:
        """The call as JSON, for files."""
        return json.dumps([*self.key, dict(self.filters), self.usable])


class Group(NamedTuple):
    """One call of `services()`."""

    namespace: str
    group: str

    @property
    def text(self) -> str:
        return json.dumps(list(self))

    def __str__(self) -> str:
        return f"the group {self.namespace}/{self.group}"


@dataclass(frozen=True, slots=True)
class Found:
    """The JSON of hosts, and the revision of the whole service."""

    revision: str
    hosts: Sequence[Any]


class Lists:
    """Answers of the proxy, by call. Raises what `ask` raises."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._services: dict[Service, Found] = {}
        self._names: dict[Group, tuple[str, ...]] = {}

    def hosts(self, asked: Service) -> Sequence[Any]:
        """The JSON of the instances."""
        found = self._services.get(asked)
        if found is None:
            key = asked.key
            query = {"namespace": key.namespace, "group": key.group, **dict(asked.filters)}
            body = self._ask(service_path(key.grouped), query)
            found = self._services[asked] = Found(body.get("revision", ""), body.get("hosts", []))
        return found.hosts

    def names(self, group: Group, before: Sequence[str] = ()) -> tuple[str, ...]:
        """The names of a group, sorted. A stale list, of a proxy whose upstream is away, lacks no name of `before`."""
        if group not in self._names:
            self._names[group] = self._ask_names(group, before)
        return self._names[group]

    def changed(self, key: ServiceKey, healthy_only: bool, revision: str) -> bool:
        """An event says that the service has this revision now: whether an answer that is kept is older."""
        old = [
            asked
            for asked, found in self._services.items()
            if asked.key == key and asked.healthy_only == healthy_only and found.revision != revision
        ]
        for asked in old:
            del self._services[asked]
        return bool(old)

    def refresh_names(self) -> bool:
        """Lists the names of all groups again: whether any list has changed."""
        before = self._names
        self._names = {group: self._ask_names(group, names) for group, names in before.items()}
        return self._names != before

    def keep_only(self, used: set[Service], groups: set[Group]) -> None:
        """Forgets the answers that no template uses any more."""
        self._services = {asked: found for asked, found in self._services.items() if asked in used}
        self._names = {group: names for group, names in self._names.items() if group in groups}

    def forget(self) -> None:
        self._services.clear()
        self._names.clear()

    def _ask_names(self, group: Group, before: Sequence[str]) -> tuple[str, ...]:
        names, stale = set[str](), False
        for page in range(1, 1000):
            query = {"namespace": group.namespace, "group": group.group, "page": str(page), "size": str(PAGE)}
            body = self._ask("/api/v1/services", query)
            names.update(name for name in body["services"] if name == one_line(name))
            stale = stale or bool(body.get("stale"))
            if len(body["services"]) < PAGE:
                break
        return tuple(sorted(names | set(before) if stale else names))


class Reader:
    """The lists for one rendering of one template. `kept`: the last lists that its file was made from, by `text`.

    A service that has no usable instance now, but had some in `kept`, keeps these, unless `allow_empty`; the same for
    a group of services. If only other lists of the service are in `kept`, or nothing is known about the file
    (`unknown`), there is nothing to hold: `blocked` names the service, and the file must stay as it is.
    """

    def __init__(
        self, lists: Lists, kept: Mapping[str, Sequence[Any]], *, allow_empty: bool = False, unknown: bool = False
    ) -> None:
        self.used: dict[Service, Sequence[Any]] = {}
        self.groups: dict[Group, Sequence[str]] = {}
        self.held: list[ServiceKey | Group] = []
        self.blocked: list[ServiceKey | Group] = []
        self._lists = lists
        self._kept = kept
        self._allow_empty = allow_empty
        self._unknown = unknown
        self._kept_services = {tuple(json.loads(text)[:3]) for text in kept}

    def service(self, asked: Service) -> list[Instance]:
        hosts = self._lists.hosts(asked)
        found = instances_of(hosts, asked)
        if not found and not self._allow_empty and not self._has_others(asked):
            hosts = self._kept.get(asked.text, ())
            found = instances_of(hosts, asked)
            if found:
                self._note(self.held, asked.key)
            elif self._unknown or tuple(asked.key) in self._kept_services:
                self._note(self.blocked, asked.key)
        self.used[asked] = hosts if found else ()
        return found

    def names(self, group: Group) -> Sequence[str]:
        kept = self._kept.get(group.text, ())
        found: Sequence[str] = self._lists.names(group, kept)
        if not found and not self._allow_empty:
            found = kept
            if found:
                self._note(self.held, group)
            elif self._unknown:
                self._note(self.blocked, group)
        self.groups[group] = found
        return found

    @property
    def lists(self) -> dict[str, Sequence[Any]]:
        """What this rendering was made from, without empty lists: the next `kept`."""
        return {asked.text: found for asked, found in (*self.used.items(), *self.groups.items()) if found}

    def _has_others(self, asked: Service) -> bool:
        """Whether only the filters leave the list empty: then it is meant to be empty."""
        plain = asked.unfiltered
        if plain == asked:
            return False
        self.used.setdefault(plain, ())  # followed as well, but never kept
        return bool(instances_of(self._lists.hosts(plain), plain))

    @staticmethod
    def _note(found: list[ServiceKey | Group], key: ServiceKey | Group) -> None:
        if key not in found:
            found.append(key)


def instances_of(hosts: Sequence[Any], asked: Service) -> list[Instance]:
    """The instances that a template may write as they are: an IP address or host name, and no text with line breaks.

    `usable`: only enabled and healthy ones with a weight and a port. Different spellings of an address count once.
    """
    try:
        found = read_each(hosts, asked.key).instances
    except Malformed as error:
        raise BadRequest(f"the proxy's list of {asked.key} cannot be read: {error}") from error
    by_address: dict[str, Instance] = {}
    for instance in map(_clean, found):
        if host_of(instance.ip) and (not asked.usable or _usable(instance)):
            first = by_address.setdefault(instance.address, instance)
            if instance.weight > first.weight:
                by_address[instance.address] = instance
    return list(by_address.values())


def _usable(instance: Instance) -> bool:
    return instance.enabled and instance.healthy and 0 < instance.weight < math.inf and 0 < instance.port <= 65535


def _clean(instance: Instance) -> Instance:
    metadata = {one_line(name): one_line(text or "") for name, text in without_nulls(instance.metadata).items()}
    ip = plain_ip(instance.ip)
    return replace(instance, ip=ip, cluster=one_line(instance.cluster), metadata=metadata, instance_id="", extra={})


def one_line(text: str) -> str:
    """Text that cannot end a line: control characters become blanks."""
    return _BREAKS.sub(" ", text)


def followed(used: Iterable[Service]) -> dict[tuple[str, bool], frozenset[str]]:
    """The streams that say when these lists change: names (`group@@name`) by namespace and `healthy_only`.

    Raises `BadRequest` if a stream would follow more services than a proxy allows.
    """
    found: dict[tuple[str, bool], set[str]] = {}
    for asked in used:
        found.setdefault((asked.key.namespace, asked.healthy_only), set()).add(asked.key.grouped)
    for names in found.values():
        if len(names) > MAX_SERVICES:
            text = f"the templates use {len(names)} services; one event stream follows at most {MAX_SERVICES}."
            raise BadRequest(f"{text} Use several `render`, or fewer services")
    return {stream: frozenset(names) for stream, names in found.items()}
