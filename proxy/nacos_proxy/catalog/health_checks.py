"""Heartbeats on behalf of services: what a check's results mean. Told the time and the results, it never looks.

result            | while passing        | while failing
------------------|----------------------|------------------------------------------------------
pass              | passing              | passing again: a beat at once
fail              | after n in a row:    | silence: the registry turns the instance unhealthy;
                  | failing              | after `deregister_after` seconds of it: deregister

Beats have a time of their own: while an instance passes, it beats as often as Nacos expects, however seldom it is
looked at.

Only so many checks run at once. A group of them has no more places than it leaves free, so that no group, nor a few,
can keep the others waiting. A group is an owner's checks that answered quickly the last time, or its others, those that
may hold a place for long apart: where all clients have one address, that is what tells them apart.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import Instance, ServiceKey

Kind = Literal["http", "tcp", "ttl"]
Action = Literal["beat", "silence", "deregister"]

LONGEST_TIMEOUT = 60.0  # seconds
OFTENEST_BEAT = 1.0  # seconds between two beats, whatever the metadata says
QUICK = 1.0  # seconds in which a check has to end to count as quick
LONG = 5.0  # seconds of a timeout beyond which a check that is not quick holds a place for long

_NUMBER = re.compile(r"[0-9]{1,5}")  # of more digits Python may refuse to make one
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def seconds(parameter: str, value: object) -> float:
    """A duration as clients write it: `"5s"`, `"500ms"`, `"2m"`, or a number of seconds. Raises `BadCall`."""
    text = str(value).strip() if isinstance(value, str | int | float) else ""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :]
    try:
        result = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        result = -1.0
    if not 0 < result < 86_400 * 366:
        raise BadCall(
            parameter, Violation.BODY, f"{parameter} is a duration such as '5s' or '500ms', not {text[:40]!r}"
        )
    return result


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """What to look at, how often, and what failures mean; seconds. `target` is a URL, `host:port`, or '' for a TTL.

    `timeout` is at most `interval` and at most 60 s: who waits for an answer holds a place of the others.
    """

    kind: Kind
    target: str = ""
    interval: float = 5.0
    timeout: float = 2.0
    failures: int = 3
    deregister_after: float = 0.0  # 0: never
    ttl: float = 0.0

    @classmethod
    def parse(cls, body: object, *, kept: bool = False) -> CheckSpec:
        """From the `managed` object of a registration. Raises `BadCall` that names what is wrong.

        `kept`: it was accepted before, by a version that knew no bound for `timeout`, and is shortened.
        """
        managed = _mapping("managed", body)
        known = {"interval", "check", "timeout", "failures", "deregisterAfter"}
        if unknown := set(managed) - known:
            raise BadCall(
                "managed", Violation.BODY, f"managed has no field {sorted(unknown)[0][:100]!r}; it has {sorted(known)}"
            )
        check = _mapping("managed.check", managed.get("check"))
        if len(check) != 1 or next(iter(check)) not in ("http", "tcp", "ttl"):
            raise BadCall(
                "managed.check",
                Violation.BODY,
                'managed.check is one of {"http": URL}, {"tcp": "host:port"}, {"ttl": "30s"}',
            )
        kind, value = next(iter(check.items()))
        failures = managed.get("failures", 3)
        if not isinstance(failures, int) or not 1 <= failures <= 1000:
            raise BadCall("managed.failures", Violation.BODY, "managed.failures is a number from 1 to 1000")
        interval = seconds("managed.interval", managed.get("interval", 5))
        return cls(
            kind,  # pyright: ignore[reportArgumentType] - one of the three, as checked above
            _target(kind, value),
            interval,
            _timeout(managed.get("timeout"), interval, kept),
            failures,
            seconds("managed.deregisterAfter", managed["deregisterAfter"]) if "deregisterAfter" in managed else 0.0,
            seconds("managed.check.ttl", value) if kind == "ttl" else 0.0,
        )

    @property
    def host(self) -> str:
        """The host that a check would connect to, '' for a TTL."""
        if self.kind == "http":
            return urlsplit(self.target).hostname or ""
        return self.target.rpartition(":")[0].strip("[]")

    def dump(self) -> dict[str, Any]:
        """As `parse` reads it."""
        value = f"{self.ttl:g}s" if self.kind == "ttl" else self.target
        body: dict[str, Any] = {"interval": f"{self.interval:g}s", "timeout": f"{self.timeout:g}s"}
        body |= {"failures": self.failures, "check": {self.kind: value}}
        return body | ({"deregisterAfter": f"{self.deregister_after:g}s"} if self.deregister_after else {})


def _mapping(parameter: str, body: object) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise BadCall(parameter, Violation.BODY, f"{parameter} is an object")
    return body  # pyright: ignore[reportUnknownVariableType]


def _timeout(value: object, interval: float, kept: bool) -> float:
    most = min(interval, LONGEST_TIMEOUT)
    if value is None:
        return min(2.0, most)
    timeout = seconds("managed.timeout", value)
    if timeout <= most or kept:
        return min(timeout, most)
    bound = f"its interval, which is {interval:g} s here" if interval < LONGEST_TIMEOUT else f"{LONGEST_TIMEOUT:g} s"
    text = f"managed.timeout is at most {bound}, not {timeout:g} s"
    raise BadCall("managed.timeout", Violation.BODY, text)


def _target(kind: str, value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else ""
    if kind == "http" and not _is_url(text):
        raise BadCall(
            "managed.check.http", Violation.BODY, "managed.check.http is a URL such as http://127.0.0.1:8080/health"
        )
    if kind == "tcp":
        host, _, port = text.rpartition(":")
        if not host or _NUMBER.fullmatch(port) is None or not 0 < int(port) < 65536:
            raise BadCall("managed.check.tcp", Violation.BODY, "managed.check.tcp is host:port, such as 127.0.0.1:8080")
    return "" if kind == "ttl" else text


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)  # raises for brackets that are no address
        _ = parts.port  # raises for one that is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None


def local(host: str) -> bool:
    """Whether a host is certainly this one, without asking a resolver."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(slots=True)
class CheckedInstance:
    """An instance that the proxy beats for. `heard` is the last sign of life of a TTL check.

    `owner` is the address of the client that registered it. `slow`: its last check took long, or it had none yet.
    """

    service: ServiceKey
    instance: Instance
    spec: CheckSpec
    owner: str = ""
    due_at: float = 0.0
    beat_at: float = 0.0
    slow: bool = True
    heard: float = 0.0
    failed: int = 0
    failing_since: float | None = None
    last_error: str = ""
    actions: dict[str, int] = field(default_factory=lambda: {})

    def begin(self, now: float, *, registered: bool) -> None:
        """Its first check is due at once, and a beat when an interval has passed since it was registered.

        One that was read back beats with its first pass: nobody knows what became of it meanwhile.
        """
        self.due_at, self.heard = now, self.heard or now
        self.beat_at = now + self._beat_interval if registered else math.inf

    @property
    def passing(self) -> bool:
        return self.failing_since is None

    @property
    def key(self) -> RegistrationKey:
        return (self.service, self.instance.ip, self.instance.port)

    @property
    def group(self) -> Hashable:
        """With what it shares its places."""
        return self.owner, self.slow, self.slow and self.spec.timeout > LONG

    @property
    def _beat_interval(self) -> float:
        return max(OFTENEST_BEAT, beat_interval(self.instance.metadata) / 1000)

    def beats(self, now: float) -> bool:
        """Whether a beat is due; then the next one is due an interval later."""
        if not self.passing or now < self.beat_at:
            return False
        self.beat_at = now + self._beat_interval
        return True

    def result(self, error: str, now: float, took: float = 0.0) -> Action:
        """A check ended after so many seconds ('' for a pass): what to do now. Sets when the next one is due."""
        self.due_at = now + self.spec.interval
        self.last_error = error
        self.slow = took > QUICK
        action = self._passed(now) if not error else self._failed(now)
        self.actions[action] = self.actions.get(action, 0) + 1
        return action

    def _passed(self, now: float) -> Action:
        if not self.passing or not self.actions or self.beat_at == math.inf:
            self.beat_at = now
        self.failed, self.failing_since = 0, None
        return "beat"

    def _failed(self, now: float) -> Action:
        self.failed += 1
        if self.failed < self.spec.failures:
            return "beat"
        if self.failing_since is None:
            self.failing_since = now
        long = self.spec.deregister_after and now - self.failing_since >= self.spec.deregister_after
        return "deregister" if long else "silence"

    def shift(self, gap: float, now: float) -> None:
        """For so long nothing was looked at and nobody could be heard: that is neither silence nor failure."""
        self.heard = min(now, self.heard + gap)
        if self.failing_since is not None:
            self.failing_since = min(now, self.failing_since + gap)

    def expired(self, now: float) -> str:
        """The error of a TTL check, '' while its last sign of life is young enough."""
        return "" if now - self.heard < self.spec.ttl else f"no sign of life for {self.spec.ttl:g} s"


def startable(
    waiting: Iterable[CheckedInstance], running: Iterable[CheckedInstance], max_running: int
) -> list[CheckedInstance]:
    """The checks that may begin now, the longest overdue first; `most` run at once."""
    shares = Shares(max_running, (managed.group for managed in running))
    chosen: list[CheckedInstance] = []
    for managed in sorted(waiting, key=lambda managed: managed.due_at):
        if shares.room(managed.group):
            shares.take(managed.group)
            chosen.append(managed)
    return chosen
