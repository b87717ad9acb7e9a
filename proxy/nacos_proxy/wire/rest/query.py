"""The parameters of our own API: what stands in a path and in a query string → values, checked.

Not for: bodies (`rest`). Errors name the parameter as our API calls it; the rules are Nacos's own (nacos-http.md 1.6).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from nacos_proxy.model.calls import ListServices
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.limits import check_port
from nacos_proxy.model.services import (
    Selection,
    ServiceKey,
    Snapshot,
    plain_ip,
)
from nacos_proxy.wire.http import pairs
from nacos_proxy.wire.nacos.rules import NACOS, Rules

MAX_PAGE_SIZE = 1000
LONGEST_WAIT = 300.0
TOKENS = ("accessToken", "access_token")  # as the guard takes one from a query
CREDENTIALS = (*TOKENS, "username", "password")  # what may stand on any path: who asks, as Nacos clients say it

# What Nacos's own checks call a parameter, and what it is called here.
_OUR_NAMES = {
    "namespaceId/tenant": "namespace",
    "serviceName": "service",
    "Metadata": "metadata",
    "clusterName": "cluster",
}
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
_WAIT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_ADDRESS = re.compile(r"(?:\[(?P<inside>.*)\]|(?P<bare>.*)):(?P<port>[0-9]+)")


class Query:
    """The decoded parameters of a query string; of one given twice the first counts, except in `all`.

    `rules` is what all values of the request are held to.
    """

    def __init__(self, text: str, rules: Rules = NACOS) -> None:
        self.rules = rules
        self._pairs = pairs(text)
        self._first = dict(reversed(self._pairs))

    def text(self, name: str, default: str = "") -> str:
        return self._first.get(name, "") or default

    def all(self, name: str) -> list[str]:
        """Every non-empty value of the parameter, in order, each once."""
        return list(dict.fromkeys(value for given, value in self._pairs if given == name and value))

    def only(self, known: Collection[str]) -> None:
        """Raises `BadCall` that names the first parameter beside these and `CREDENTIALS`."""
        for name, _ in self._pairs:
            if name not in known and name not in CREDENTIALS:
                raise unknown(name, [*known])

    def flag(self, name: str, default: bool) -> bool:
        text = self.text(name).lower()
        if not text:
            return default
        if text not in _TRUE and text not in _FALSE:
            raise illegal(name, f"Param '{name}' is illegal, it must be true or false.", text)
        return text in _TRUE

    def number(self, name: str, default: int, least: int, most: int) -> int:
        text = self.text(name)
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
            raise illegal(name, f"Param '{name}' is illegal, it must be a number from {least} to {most}.", text)
        return int(text)

    def one_of(self, name: str, default: str, words: Collection[str]) -> str:
        text = self.text(name, default)
        if text not in words:
            choices = ", ".join(filter(None, words))
            raise illegal(name, f"Param '{name}' is illegal, it must be one of: {choices}.", text)
        return text


def unknown(name: str, known: Collection[str], problem: Violation = Violation.ILLEGAL) -> BadCall:
    """A misspelt name that was ignored would send traffic elsewhere, unseen."""
    name = name[:100]
    close = get_close_matches(name, known, 1)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    text = f"Param '{name}' is not known here{hint} Known are: {', '.join(known) or 'none'}."
    return BadCall(name, problem, text)


def illegal(parameter: str, text: str, value: str = "", problem: Violation = Violation.ILLEGAL) -> BadCall:
    return BadCall(parameter, problem, text, value=value[:200])


def missing(parameter: str) -> BadCall:
    return BadCall(parameter, Violation.MISSING, f"Param '{parameter}' is required.")


def checked(check: Callable[[Any], object], value: Any, parameter: str = "") -> None:
    """Run one of Nacos's checks and let its error speak of our parameter (`parameter`, else by the table of names)."""
    try:
        check(value)
    except BadCall as error:
        ours = parameter or _OUR_NAMES.get(error.parameter, error.parameter)
        text = error.text.replace(f"'{error.parameter}'", f"'{ours}'")
        raise BadCall(ours, error.violation, text, value=error.value, status=error.status) from None


def read_key(service: str, query: Query) -> ServiceKey:
    """The service of a path or a parameter, `name` or `group@@name`; `group` and `namespace` are parameters."""
    group, separator, name = service.partition("@@")
    if not (name if separator else service).strip():
        raise missing("service")
    if separator and not group:
        raise illegal("service", "Param 'service' is illegal, the group before '@@' is empty.", service)
    key = ServiceKey.of(service, query.text("group"), query.text("namespace"))
    checked(query.rules.service, key)
    return key


SHORT = 256  # characters of a view's clusters: what is made for a longer one is not kept


@dataclass(frozen=True, slots=True)
class View:
    """What a reader wants to see of a snapshot. `clusters` is as it was asked for, and echoed so."""

    clusters: str = ""
    healthy_only: bool = False

    @property
    def cluster_set(self) -> frozenset[str]:
        return frozenset(part for part in self.clusters.split(",") if part)

    def within(self, snapshot: Snapshot) -> View | None:
        """The one of all views that show the same of this snapshot that names no cluster but its own.

        None where it has none of those that are named. Names that nobody has make nothing new.
        """
        if not self.clusters:
            return self
        named = sorted(self.cluster_set & snapshot.clusters)
        return View(",".join(named), self.healthy_only) if named else None

    def of(self, snapshot: Snapshot) -> Selection:
        return snapshot.select(self.cluster_set, self.healthy_only)


def read_view(query: Query, *, healthy_only: bool = False) -> View:
    """`clusters=a,b` (also given twice) and `healthy_only`."""
    parts = [part.strip() for value in query.all("clusters") for part in value.split(",")]
    for part in parts:
        checked(query.rules.cluster, part, "clusters")
    clusters, healthy_only = ",".join(part for part in parts if part), query.flag("healthy_only", healthy_only)
    return _view(clusters, healthy_only) if len(clusters) <= SHORT else View(clusters, healthy_only)


@lru_cache(maxsize=1024)
def _view(clusters: str, healthy_only: bool) -> View:
    """Thousands of readers have the same one: then it need not be compared."""
    return View(clusters, healthy_only)


def read_list(query: Query) -> ListServices:
    key = ServiceKey.of("*", query.text("group"), query.text("namespace"))
    checked(query.rules.service, key)
    page, size = query.number("page", 1, 1, 10**9 - 1), query.number("size", 100, 1, MAX_PAGE_SIZE)
    return ListServices(key.namespace, key.group, page, size)


def read_wait(query: Query, default: float = 30.0) -> float:
    """`wait=30s`, `1500ms`, `2m` or plain seconds; more than five minutes is five minutes."""
    text = query.text("wait")
    if not text:
        return default
    match = _WAIT.fullmatch(text)
    if match is None:
        raise illegal("wait", "Param 'wait' is illegal, it must be a time like 30s, 1500ms or 2m.", text)
    return min(float(match[1]) * _UNITS[match[2]], LONGEST_WAIT)


def read_cluster(query: Query) -> str:
    """`cluster`, '' where none is named."""
    cluster = query.text("cluster")
    checked(query.rules.cluster, cluster)
    return cluster


class InstanceAddress(NamedTuple):
    ip: str
    port: int


def read_address(text: str, rules: Rules = NACOS) -> InstanceAddress:
    """`ip:port` of a path, an IPv6 address in brackets or without them, in whichever spelling (`model.plain_ip`)."""
    match = _ADDRESS.fullmatch(text)
    bare = "" if match is None else match["bare"] or ""
    if match is None or (":" in bare and plain_ip(f"[{bare}]").startswith("[")):  # without brackets nothing but IPv6
        wanted = "Param 'address' is illegal, it must be ip:port, an IPv6 address in brackets ([::1]:8080)."
        raise illegal("address", wanted, text)
    return InstanceAddress(read_ip(plain_ip(bare or match["inside"] or ""), rules), read_port(match["port"]))


def read_ip(ip: str, rules: Rules) -> str:
    if not ip.strip():
        raise missing("ip")
    checked(rules.ip, ip)
    return ip


def read_port(port: str | int) -> int:
    """Whatever the rules: of no use is a port that nobody can connect to."""
    checked(check_port, port)
    return check_port(port)
