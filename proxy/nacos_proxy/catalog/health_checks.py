"""Health checks of instances that the proxy beats for: their settings, and the actions that follow from results.

result            | while passing        | while failing
------------------|----------------------|------------------------------------------------------
pass              | passing              | passing again: a beat at once
fail              | after n in a row:    | silence: the registry marks the instance unhealthy;
                  | failing              | after `deregister_after` seconds of it: deregister

While an instance passes, it beats as often as Nacos expects, whatever the interval of the checks.

An instance that a service file declares has a phase. It waits until its check passes for the first time, then it is
registered; the same again after it failed for `deregister_after` seconds, or after its file changed. When its file no
longer declares it, it leaves. What the phase requires is written like a beat: once, and again every few seconds until
the upstream accepts it.

A bounded number of checks run at once. `Shares` divides them among groups, so that a few groups cannot keep the others
waiting. A group is an owner (a client's address) with one of three speeds: quick at the last check, slow with a short
timeout, slow with a long timeout. So slow checks do not delay quick ones even if all clients share one address.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from nacos_proxy.catalog.registrations import RegistrationKey
from nacos_proxy.catalog.shares import Shares
from nacos_proxy.model.errors import BadCall, Violation
from nacos_proxy.model.heartbeats import beat_interval
from nacos_proxy.model.services import Instance, ServiceKey

Kind = Literal["http", "tcp", "ttl", "none"]
Phase = Literal["waiting", "registered", "leaving"]
Action = Literal["beat", "silence", "deregister"]

MAX_TIMEOUT = 60.0  # seconds
MIN_BEAT_INTERVAL = 1.0  # seconds, even if the metadata asks for less
QUICK = 1.0  # seconds that a quick check may take
LONG = 5.0  # seconds; a longer timeout counts as long

_PORT = re.compile(r"[0-9]{1,5}")  # Python refuses to convert a very long number
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def _bad(parameter: str, problem: str) -> BadCall:
    return BadCall(parameter, Violation.BODY, f"{parameter} {problem}")


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
        raise _bad(parameter, f"is a duration such as '5s' or '500ms', not {text[:40]!r}")
    return result


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """The settings of a check; times in seconds. `target` is a URL, `host:port`, or '' for a TTL and for none.

    `timeout` is at most `interval` and at most 60 s, because the number of checks that run at once is bounded.
    """

    kind: Kind
    target: str = ""
    interval: float = 5.0
    timeout: float = 2.0
    failures: int = 3
    deregister_after: float = 0.0  # 0: never
    ttl: float = 0.0

    @classmethod
    def parse(cls, body: object, *, restored: bool = False) -> CheckSpec:
        """From the `managed` object of a registration. Raises `BadCall`, which names the wrong field.

        `restored`: the object comes from disk. A longer `timeout`, which older versions accepted, is shortened, and an
        instance of a service file may have no check.
        """
        managed = _mapping("managed", body)
        known = {"interval", "check", "timeout", "failures", "deregisterAfter"}
        if unknown := set(managed) - known:
            raise _bad("managed", f"has no field {sorted(unknown)[0][:100]!r}; it has {sorted(known)}")
        check = _mapping("managed.check", managed.get("check"))
        kinds = ("http", "tcp", "ttl", *(("none",) if restored else ()))
        if len(check) != 1 or next(iter(check)) not in kinds:
            raise _bad("managed.check", 'is one of {"http": URL}, {"tcp": "host:port"}, {"ttl": "30s"}')
        kind, value = next(iter(check.items()))
        failures = managed.get("failures", 3)
        if not isinstance(failures, int) or not 1 <= failures <= 1000:
            raise _bad("managed.failures", "is a number from 1 to 1000")
        interval = seconds("managed.interval", managed.get("interval", 5))
        return cls(
            kind,  # pyright: ignore[reportArgumentType] - one of the three kinds, as checked above
            _target(kind, value),
            interval,
            _timeout(managed.get("timeout"), interval, restored),
            failures,
            seconds("managed.deregisterAfter", managed["deregisterAfter"]) if "deregisterAfter" in managed else 0.0,
            seconds("managed.check.ttl", value) if kind == "ttl" else 0.0,
        )

    @property
    def host(self) -> str:
        """The host to which the check connects, '' if it does not."""
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
        raise _bad(parameter, "is an object")
    return body  # pyright: ignore[reportUnknownVariableType]


def _timeout(value: object, interval: float, restored: bool) -> float:
    max_timeout = min(interval, MAX_TIMEOUT)
    timeout = 2.0 if value is None else seconds("managed.timeout", value)
    if timeout <= max_timeout or restored or value is None:
        return min(timeout, max_timeout)
    bound = f"its interval, which is {interval:g} s here" if interval < MAX_TIMEOUT else f"{MAX_TIMEOUT:g} s"
    raise _bad("managed.timeout", f"is at most {bound}, not {timeout:g} s")


def _target(kind: str, value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else ""
    if kind == "http" and not _is_url(text):
        raise _bad("managed.check.http", "is a URL such as http://127.0.0.1:8080/health")
    if kind == "tcp":
        host, _, port = text.rpartition(":")
        if not host or _PORT.fullmatch(port) is None or not 0 < int(port) < 65536:
            raise _bad("managed.check.tcp", "is host:port, such as 127.0.0.1:8080")
    return text if kind in ("http", "tcp") else ""


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)  # raises if brackets hold no address
        _ = parts.port  # raises if it is no port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None


def is_local_host(host: str) -> bool:
    """Whether a host is certainly this one; names are not resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Why an instance is kept out of traffic, whatever its check says, and since when (seconds since 1970)."""

    reason: str
    since: float


@dataclass(slots=True)
class CheckedInstance:
    """An instance that the proxy beats for. `owner`: the address of the client that registered it.

    `file`: the service file that declares it, '' if a client registered it; `declared`: a digest of what it declares.
    In `maintenance` it is disabled and gets no beats, because one could register it again as enabled.
    `last_heard`: the last sign of life for a TTL check. `slow`: the last check took long, or none has ended yet.
    `refused`: why the last registration or deregistration for its file did not get through.
    """

    service: ServiceKey
    instance: Instance
    spec: CheckSpec
    owner: str = ""
    file: str = ""
    declared: str = ""
    phase: Phase = "registered"
    refused: str = ""
    maintenance: Maintenance | None = None
    due_at: float = 0.0
    beat_at: float = 0.0
    slow: bool = True
    last_heard: float = 0.0
    failed: int = 0
    failing_since: float | None = None
    last_error: str = ""
    actions: dict[str, int] = field(default_factory=lambda: {})

    def begin(self, now: float, *, registered: bool) -> None:
        """The first check is due at once. If the instance was just `registered`, the first beat is an interval later.

        An instance from disk beats as soon as it passes, because the upstream may have removed it meanwhile.
        """
        self.due_at, self.last_heard = now, self.last_heard or now
        self.beat_at = now + self._beat_interval if registered else math.inf

    @property
    def passing(self) -> bool:
        return self.failing_since is None

    @property
    def key(self) -> RegistrationKey:
        return (self.service, self.instance.ip, self.instance.port)

    @property
    def group(self) -> Hashable:
        """The holder of a share (see the module's docstring)."""
        return self.owner, self.slow, self.slow and self.spec.timeout > LONG

    @property
    def _beat_interval(self) -> float:
        return max(MIN_BEAT_INTERVAL, beat_interval(self.instance.metadata) / 1000)

    def beats(self, now: float) -> bool:
        """Whether a beat is due, or what the phase requires instead. If so, schedules the next an interval later."""
        if now < self.beat_at or not (self.passing or self.phase == "leaving"):
            return False
        if self.maintenance is not None and self.phase == "registered":
            return False
        self.beat_at = now + self._beat_interval
        return self.phase != "registered" or self.instance.ephemeral or self.spec.kind != "none"

    def leave(self, now: float) -> None:
        """Its file no longer declares it."""
        self.phase, self.beat_at = "leaving", now

    def result(self, error: str, now: float, took: float = 0.0) -> Action:
        """A check ended after `took` seconds; `error` is '' for a pass. Schedules the next, returns what to do."""
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

    def saved(self) -> dict[str, Any]:
        """The settings, where they come from, and the maintenance, for the state file."""
        kept = {"owner": self.owner, "file": self.file, "declared": self.declared}
        found = self.spec.dump() | {name: text for name, text in kept.items() if text}
        return found | ({"maintenance": asdict(self.maintenance)} if self.maintenance else {})

    @classmethod
    def restored(cls, service: ServiceKey, instance: Instance, saved: Mapping[str, Any]) -> CheckedInstance:
        """From what `saved` returned. Raises `BadCall`."""
        left = dict(saved)
        owner, file, declared = (str(left.pop(name, "")) for name in ("owner", "file", "declared"))
        maintenance = left.pop("maintenance", None)
        spec = CheckSpec.parse(left, restored=True)
        kept = maintenance and Maintenance(**maintenance)
        return cls(service, instance, spec, owner, file, declared, maintenance=kept)

    def shift(self, gap: float, now: float) -> None:
        """This process stood still for `gap` seconds, which counts neither as silence nor as failing."""
        self.last_heard = min(now, self.last_heard + gap)
        if self.failing_since is not None:
            self.failing_since = min(now, self.failing_since + gap)

    def expired(self, now: float) -> str:
        """The error of a TTL check, '' if the last sign of life is recent enough."""
        return "" if now - self.last_heard < self.spec.ttl else f"no sign of life for {self.spec.ttl:g} s"


def startable(
    waiting: Iterable[CheckedInstance], running: Iterable[CheckedInstance], max_running: int
) -> list[CheckedInstance]:
    """The checks that may start now, the most overdue first. At most `max_running` run at once."""
    shares = Shares(max_running, (checked.group for checked in running))
    chosen: list[CheckedInstance] = []
    for checked in sorted(waiting, key=lambda checked: checked.due_at):
        if shares.room(checked.group):
            shares.take(checked.group)
            chosen.append(checked)
    return chosen
